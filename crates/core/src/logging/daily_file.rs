//! The log file of the day.

use std::{
    fs::{self, File, Metadata},
    io::{self, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use jiff::{Timestamp, tz::Offset};
use rustix::process::geteuid;

use crate::clock;

const SECONDS_OF_A_DAY: u64 = 24 * 60 * 60;

/// The wait before a file that could not be opened is tried again.
const REOPEN_INTERVAL: Duration = Duration::from_secs(1);

/// A file for each day (UTC) in a folder: `lastcall.2026-01-31.log`, for this user alone. None is ever
/// removed.
///
/// tracing-appender changes files by itself, but when it cannot, it tells stderr alone, and panics when
/// stderr is closed, or when the clock is set to the end of the year 9999. So the next day's is opened here,
/// and an error is returned.
pub(super) struct DailyFile {
    dir: PathBuf,
    file: File,
    /// The day of `file`, in days since 1970.
    day: u64,
    /// The time at which the file of a new day is tried again.
    retry: Option<Instant>,
    today: fn() -> u64,
}

impl DailyFile {
    /// Opens the file of today; makes the folder if it is not there.
    ///
    /// # Errors
    /// When the file cannot be opened, or is not one of this user's own.
    pub(super) fn open(dir: &Path) -> io::Result<Self> {
        let today = today;
        let day = today();
        Ok(Self { dir: dir.to_owned(), file: open(dir, day)?, day, retry: None, today })
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
        self.file = open(&self.dir, day)?;
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

/// Opens the file of a day. Somebody who may write in the folder could have put a link there, which leads to
/// another file, or a FIFO, which takes nothing.
fn open(dir: &Path, day: u64) -> io::Result<File> {
    fs::create_dir_all(dir)?;
    let path = dir.join(format!("lastcall.{}.log", date(day)));
    let mut options = File::options();
    options.append(true).create(true).mode(0o600);
    // Without O_NONBLOCK, opening a FIFO waits for its reader.
    let file = options.custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY).open(&path);
    let opened = file.and_then(|file| Ok((file.metadata()?, file)));
    let (metadata, file) = opened.map_err(|error| {
        let in_place = fs::symlink_metadata(&path);
        in_place.and_then(|metadata| check(&path, &metadata)).err().unwrap_or(error)
    })?;
    check(&path, &metadata)?;
    Ok(file)
}

/// Checks that what is at a path is a file of this user, and leads nowhere else.
fn check(path: &Path, metadata: &Metadata) -> io::Result<()> {
    let what = if metadata.is_symlink() {
        "is a symbolic link".to_owned()
    } else if !metadata.is_file() {
        "is not a regular file".to_owned()
    } else if metadata.uid() != geteuid().as_raw() {
        format!("belongs to another user, number {}", metadata.uid())
    } else {
        return Ok(());
    };
    Err(io::Error::other(format!("{} {what}: remove it, or choose another folder", path.display())))
}

/// Returns a day as in `2026-01-31`.
fn date(day: u64) -> String {
    let seconds = i64::try_from(day.saturating_mul(SECONDS_OF_A_DAY)).unwrap_or(i64::MAX);
    // A clock that is set to a later time has the last day that there is a name for.
    let time = Timestamp::from_second(seconds).unwrap_or(Timestamp::MAX);
    Offset::UTC.to_datetime(time).date().to_string()
}

/// Returns days since 1970.
fn today() -> u64 {
    clock::since_1970().as_secs() / SECONDS_OF_A_DAY
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

    #[test]
    fn a_file_is_for_this_user_alone_and_is_continued() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(format!("lastcall.{}.log", date(today())));
        for text in ["first\n", "first\nsecond\n"] {
            let mut file = DailyFile::open(dir.path()).unwrap();
            file.write_all(text.lines().last().unwrap().as_bytes()).unwrap();
            file.write_all(b"\n").unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
        }
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o600);
    }

    #[test]
    fn what_has_the_name_of_a_day_and_is_no_file_of_ours_is_refused_each_day_until_it_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let victim = dir.path().join("victim");
        fs::write(&victim, "kept").unwrap();
        let mut running = DailyFile::open(dir.path()).unwrap();
        running.today = || today() + 1;
        let path = dir.path().join(format!("lastcall.{}.log", date(today() + 1)));
        let link = |to: &str| std::os::unix::fs::symlink(to, &path).unwrap();
        let fifo = || {
            use rustix::fs::{CWD, FileType, Mode, mknodat};
            mknodat(CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        };
        for (make, why) in [
            (&(|| link("victim")) as &dyn Fn(), "is a symbolic link"),
            (&|| link("nothing"), "is a symbolic link"),
            (&|| link("/dev/null"), "is a symbolic link"),
            (&fifo, "is not a regular file"),
            (&|| fs::create_dir(&path).unwrap(), "is not a regular file"),
        ] {
            make();
            running.retry = None;
            let error = running.write_all(b"line\n").unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
            fs::remove_file(&path).or_else(|_| fs::remove_dir(&path)).unwrap();
        }
        assert_eq!(fs::read_to_string(&victim).unwrap(), "kept");
        assert!(!dir.path().join("nothing").exists());
        running.retry = None;
        running.write_all(b"line\n").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "line\n");
    }

    #[test]
    fn a_day_has_a_name_whatever_the_clock_says() {
        assert_eq!((date(0).as_str(), date(20_484).as_str()), ("1970-01-01", "2026-01-31"));
        assert_eq!((date(2_932_896).as_str(), date(u64::MAX).as_str()), ("9999-12-30", "9999-12-30"));
    }
}
