//! Reading a text file, whatever kind of file has its name.

use std::{
    fs::File,
    io::{self, ErrorKind, Read},
    os::unix::fs::OpenOptionsExt,
    path::Path,
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, poll},
    io::Errno,
};

/// The largest file that is read, in bytes: no settings are larger, but other files, and devices without an end, are.
const MAX_SIZE: usize = 1 << 20;

/// The content of a file.
pub(super) struct Content {
    pub(super) bytes: Vec<u8>,
    /// True if the same can be read again: what came through a FIFO or a device is gone.
    pub(super) stays: bool,
}

/// Reads a whole file. If it is a FIFO or a device, what comes from it within `wait` must be complete: a FIFO
/// that no process writes to (fifo(7)) would otherwise be waited for without end.
///
/// # Errors
/// When it cannot be read, is larger than 1 MiB, or does not come to its end in time.
pub(super) fn read(path: &Path, wait: Duration) -> io::Result<Content> {
    let deadline = Instant::now() + wait;
    // Without O_NONBLOCK, opening a FIFO waits for its writer. A regular file is read as usual all the same.
    let mut file = File::options().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path)?;
    let is_regular = file.metadata()?.is_file();
    let (mut bytes, mut chunk) = (Vec::new(), [0; 8192]);
    loop {
        if !is_regular {
            wait_readable(&file, deadline)?;
        }
        match file.read(&mut chunk) {
            Ok(0) => return Ok(Content { bytes, stays: is_regular }),
            Ok(count) => bytes.extend_from_slice(&chunk[..count]),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(error) => return Err(error),
        }
        if bytes.len() > MAX_SIZE {
            return Err(io::Error::new(ErrorKind::FileTooLarge, "it is larger than 1 MiB"));
        }
    }
}

fn wait_readable(file: &File, deadline: Instant) -> io::Result<()> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let mut polled = [PollFd::new(file, PollFlags::IN)];
        match poll(&mut polled, Some(&left.try_into().map_err(io::Error::other)?)) {
            Ok(0) => {
                let what = "it is a FIFO or a device, and what comes from it does not end";
                return Err(io::Error::new(ErrorKind::TimedOut, what));
            }
            Ok(_) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Returns true if there is a symbolic link on the way to a file that is not there.
pub(super) fn is_dangling(path: &Path) -> bool {
    path.ancestors().any(|path| path.is_symlink() && !path.exists())
}

/// Returns the text, without the byte order mark (U+FEFF) that some editors put first. `None` if it is not UTF-8.
pub(super) fn decode(bytes: Vec<u8>) -> Option<String> {
    let text = String::from_utf8(bytes).ok()?;
    Some(text.strip_prefix('\u{feff}').map(str::to_owned).unwrap_or(text))
}

#[cfg(test)]
mod tests {
    use std::{io::Write, os::unix::net::UnixListener};

    use rustix::fs::{CWD, FileType, Mode, mknodat};

    use super::*;

    fn fifo(dir: &tempfile::TempDir) -> std::path::PathBuf {
        let path = dir.path().join("fifo");
        mknodat(CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        path
    }

    #[test]
    fn a_fifo_without_a_writer_is_given_up() {
        let dir = tempfile::tempdir().unwrap();
        let error = read(&fifo(&dir), Duration::from_millis(50)).map(drop).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TimedOut);
    }

    #[test]
    fn a_fifo_with_a_writer_is_read_to_its_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = fifo(&dir);
        let writing = std::thread::spawn({
            let path = path.clone();
            move || {
                let mut fifo = File::options().write(true).open(path).unwrap();
                fifo.write_all(b"port = ").unwrap();
                fifo.write_all(b"1\n").unwrap();
            }
        });
        let content = read(&path, Duration::from_secs(30)).unwrap();
        assert_eq!((content.bytes.as_slice(), content.stays), (&b"port = 1\n"[..], false));
        writing.join().unwrap();
    }

    #[test]
    fn devices_folders_and_sockets_do_not_hold_the_reader() {
        let wait = Duration::from_secs(30);
        let error = |path: &Path| read(path, wait).map(drop).unwrap_err().kind();
        assert_eq!(read(Path::new("/dev/null"), wait).unwrap().bytes, b"");
        assert_eq!(error(Path::new("/dev/zero")), ErrorKind::FileTooLarge);
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(error(dir.path()), ErrorKind::IsADirectory);
        let socket = dir.path().join("socket");
        let _listener = UnixListener::bind(&socket).unwrap();
        error(&socket);
    }

    #[test]
    fn a_link_that_leads_nowhere_is_distinguished_from_no_file() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::os::unix::fs::symlink("nowhere", at("link")).unwrap();
        std::os::unix::fs::symlink(".", at("here")).unwrap();
        for (name, dangling) in [("link", true), ("link/file", true), ("here/file", false), ("file", false)] {
            assert_eq!(is_dangling(&at(name)), dangling, "{name}");
        }
        assert!(read(&at("here/link"), Duration::ZERO).is_err() && is_dangling(&at("here/link")));
        std::fs::write(at("nowhere"), "").unwrap();
        assert!(!is_dangling(&at("link")) && read(&at("link"), Duration::ZERO).unwrap().stays);
    }

    #[test]
    fn a_byte_order_mark_is_not_text() {
        assert_eq!(decode("\u{feff}port = 1".into()).as_deref(), Some("port = 1"));
        assert_eq!(decode("port = 1".into()).as_deref(), Some("port = 1"));
        assert_eq!(decode(b"\xff\xfep\0".into()), None, "UTF-16");
    }
}
