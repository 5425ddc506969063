//! The log file of the day.

use std::{
    io::{self, Write},
    path::{Path, PathBuf},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use tracing_appender::rolling::{InitError, RollingFileAppender, Rotation};

const SECONDS_OF_A_DAY: u64 = 24 * 60 * 60;

/// How long to wait before a file that could not be opened is tried again.
const REOPEN_INTERVAL: Duration = Duration::from_secs(1);

/// A file for each day (UTC) in a folder: `lastcall.2026-01-31.log`.
///
/// `RollingFileAppender` changes files by itself, but when it cannot, it tells stderr alone, and panics when
/// stderr is closed. So the next day's is opened here, and an error is returned.
pub(super) struct DailyFile {
    dir: PathBuf,
    file: RollingFileAppender,
    /// The day of `file`, in days since 1970.
    day: u64,
    /// When the file of a new day is tried again.
    retry: Option<Instant>,
    today: fn() -> u64,
}

impl DailyFile {
    /// Opens the file of today; makes the folder if it is not there.
    pub(super) fn open(dir: &Path) -> Result<Self, InitError> {
        let today = today;
        // Before it is opened: if the day changes meanwhile, it is opened once more.
        let day = today();
        Ok(Self { dir: dir.to_owned(), file: open(dir)?, day, retry: None, today })
    }

    fn follow_the_day(&mut self) -> io::Result<()> {
        let day = (self.today)();
        if day == self.day {
            return Ok(());
        }
        if self.retry.is_some_and(|retry| Instant::now() < retry) {
            return Err(io::Error::other("the file of a new day could not be opened"));
        }
        self.retry = Some(Instant::now() + REOPEN_INTERVAL);
        self.file = open(&self.dir).map_err(io::Error::other)?;
        (self.day, self.retry) = (day, None);
        Ok(())
    }
}

impl Write for DailyFile {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.follow_the_day()?;
        self.file.write(line)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

fn open(dir: &Path) -> Result<RollingFileAppender, InitError> {
    RollingFileAppender::builder()
        .rotation(Rotation::DAILY)
        .filename_prefix("lastcall")
        .filename_suffix("log")
        .build(dir)
}

/// Returns days since 1970.
fn today() -> u64 {
    // 0 if the clock is set to a time before that.
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs() / SECONDS_OF_A_DAY
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_that_is_unusable_on_a_new_day_is_an_error_until_it_is_usable() {
        let dir = tempfile::tempdir().unwrap();
        let (logs, kept) = (dir.path().join("logs"), dir.path().join("kept"));
        let mut file = DailyFile::open(&logs).unwrap();
        file.write_all(b"first\n").unwrap();
        // As on a new day.
        file.today = || today() + 1;
        std::fs::rename(&logs, &kept).unwrap();
        std::fs::write(&logs, "no folder").unwrap();
        file.write_all(b"lost\n").unwrap_err();
        file.write_all(b"lost\n").unwrap_err();
        std::fs::remove_file(&logs).unwrap();
        file.retry = None;
        file.write_all(b"second\n").unwrap();
        let text = |dir: &Path| {
            let files: Vec<_> = std::fs::read_dir(dir).unwrap().collect();
            assert_eq!(files.len(), 1);
            std::fs::read_to_string(files[0].as_ref().unwrap().path()).unwrap()
        };
        assert_eq!((text(&kept), text(&logs)), ("first\n".into(), "second\n".into()));
    }
}
