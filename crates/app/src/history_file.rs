//! The file to which a graceful shutdown writes the history, and from which the next start reads it.

use std::{fs, io, path::Path};

use rustix::fs::{Access, access};
use thiserror::Error;

/// Why there can be no such file.
#[derive(Debug, Error)]
pub(crate) enum HistoryFileError {
    #[error("its folder cannot be used: {0}")]
    Folder(io::Error),
    #[error("it is not a regular file")]
    NotRegular,
    #[error("cannot write there: {0}")]
    NotWritable(io::Error),
}

/// Checks that a file can be written at this path, without writing it: a shutdown would find out too late.
///
/// # Errors
/// When its folder does not exist or cannot be written, or something other than a regular file has that name.
pub(crate) fn check(path: &Path) -> Result<(), HistoryFileError> {
    let folder = path.parent().unwrap_or(Path::new("/"));
    let metadata = fs::metadata(folder).map_err(HistoryFileError::Folder)?;
    if !metadata.is_dir() {
        return Err(HistoryFileError::Folder(io::ErrorKind::NotADirectory.into()));
    }
    access(folder, Access::WRITE_OK | Access::EXEC_OK)
        .map_err(|error| HistoryFileError::NotWritable(error.into()))?;
    match fs::metadata(path) {
        Ok(metadata) if !metadata.is_file() => Err(HistoryFileError::NotRegular),
        // The one that reads it says why it cannot be read.
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_history_file_needs_a_folder_and_may_not_be_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        fs::write(path("old"), "").unwrap();
        assert!(check(&path("new")).is_ok() && check(&path("old")).is_ok());
        assert!(!path("new").exists(), "nothing was written");
        for (name, reason) in [
            ("none/new", "its folder cannot be used: No such file"),
            ("old/new", "its folder cannot be used: not a directory"),
            (".", "it is not a regular file"),
        ] {
            let error = check(&path(name)).unwrap_err().to_string();
            assert!(error.starts_with(reason), "{error}");
        }
    }
}
