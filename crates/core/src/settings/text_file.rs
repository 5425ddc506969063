//! Reading a text file, whatever kind of file has its name.

use std::{
    fs::{self, File},
    io::{self, ErrorKind, Read},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::Path,
    string::FromUtf8Error,
};

/// The largest file that is read, in bytes: no settings are larger, but other files, and devices without an
/// end, are.
const MAX_SIZE: u64 = 1 << 20;

/// The content of a file.
pub(super) struct Content {
    pub(super) bytes: Vec<u8>,
    /// True if the same can be read again: what came through a pipe is gone.
    pub(super) stays: bool,
}

/// Reads a file that was asked for. A pipe, such as the `<(…)` of a shell, is read to its end and waited for:
/// a program may be decrypting the settings.
///
/// # Errors
/// When it cannot be read, or is larger than 1 MiB.
pub(super) fn read_named(path: &Path) -> io::Result<Content> {
    let file = File::open(path)?;
    let stays = file.metadata()?.is_file();
    Ok(Content { bytes: read(file)?, stays })
}

/// Reads a file that nobody asked for, so that something else may have its name. Waits for nothing.
///
/// # Errors
/// As [`read_named`]; [`ErrorKind::IsADirectory`] when it is a folder, and [`ErrorKind::Unsupported`] when it
/// is a FIFO or a device other than `/dev/null`, which is an empty file.
pub(super) fn read_found(path: &Path) -> io::Result<Content> {
    // Without O_NONBLOCK, opening a FIFO waits for its writer. A regular file is read as usual all the same.
    let file = File::options().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path)?;
    let metadata = file.metadata()?;
    let is_null = || fs::metadata("/dev/null").is_ok_and(|null| null.rdev() == metadata.rdev());
    if metadata.is_dir() {
        Err(io::Error::new(ErrorKind::IsADirectory, "it is a folder"))
    } else if metadata.is_file() || is_null() {
        Ok(Content { bytes: read(file)?, stays: true })
    } else {
        Err(io::Error::new(ErrorKind::Unsupported, "it is a FIFO or a device, and no file"))
    }
}

fn read(file: File) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let size = file.take(MAX_SIZE + 1).read_to_end(&mut bytes)?;
    if size as u64 > MAX_SIZE {
        return Err(io::Error::new(ErrorKind::FileTooLarge, "it is larger than 1 MiB"));
    }
    Ok(bytes)
}

/// Returns true if there is a symbolic link on the way to a file that is not there.
pub(super) fn is_dangling(path: &Path) -> bool {
    path.ancestors().any(|path| path.is_symlink() && !path.exists())
}

/// Returns the text, without the byte order mark (U+FEFF) that some editors put first.
///
/// # Errors
/// When the bytes are not UTF-8.
pub(super) fn decode(bytes: Vec<u8>) -> Result<String, FromUtf8Error> {
    let text = String::from_utf8(bytes)?;
    Ok(text.strip_prefix('\u{feff}').map(str::to_owned).unwrap_or(text))
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
        let content = read_named(&path).unwrap();
        assert_eq!((content.bytes.as_slice(), content.stays), (&b"port = 1\n"[..], false));
        writing.join().unwrap();
    }

    #[test]
    fn devices_folders_and_sockets_do_not_hold_the_reader() {
        let named = |path: &Path| read_named(path).map(drop).unwrap_err().kind();
        let found = |path: &Path| read_found(path).map(drop).unwrap_err().kind();
        let null = Path::new("/dev/null");
        assert_eq!((read_named(null).unwrap().bytes, read_found(null).unwrap().bytes), (vec![], vec![]));
        let zero = Path::new("/dev/zero");
        assert_eq!((named(zero), found(zero)), (ErrorKind::FileTooLarge, ErrorKind::Unsupported));
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(
            (named(dir.path()), found(dir.path())),
            (ErrorKind::IsADirectory, ErrorKind::IsADirectory)
        );
        assert_eq!(found(&fifo(&dir)), ErrorKind::Unsupported);
        let socket = dir.path().join("socket");
        let _listener = UnixListener::bind(&socket).unwrap();
        assert!(read_named(&socket).is_err() && read_found(&socket).is_err());
        let large = dir.path().join("large");
        fs::write(&large, vec![b'#'; 1 << 20]).unwrap();
        assert_eq!(read_found(&large).unwrap().bytes.len(), 1 << 20);
        fs::write(&large, vec![b'#'; (1 << 20) + 1]).unwrap();
        assert_eq!((named(&large), found(&large)), (ErrorKind::FileTooLarge, ErrorKind::FileTooLarge));
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
        assert!(read_found(&at("here/link")).is_err() && is_dangling(&at("here/link")));
        std::fs::write(at("nowhere"), "").unwrap();
        assert!(!is_dangling(&at("link")) && read_found(&at("link")).unwrap().stays);
    }

    #[test]
    fn a_byte_order_mark_is_not_text() {
        assert_eq!(decode("\u{feff}port = 1".into()).as_deref(), Ok("port = 1"));
        assert_eq!(decode("port = 1".into()).as_deref(), Ok("port = 1"));
        assert!(decode(b"\xff\xfep\0".into()).is_err(), "UTF-16");
    }
}
