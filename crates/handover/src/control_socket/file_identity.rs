//! The identity of the file that a socket has: a path may lead to another file later.

use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

/// The file of a socket in its file system. A new file at the same path has another identity. Part of the
/// state that is handed over: the names of its fields are those of every build.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct FileIdentity {
    /// The path of the socket.
    #[serde(with = "crate::path")]
    pub path: PathBuf,
    device: u64,
    inode: u64,
}

impl FileIdentity {
    pub(super) fn of(path: &Path) -> io::Result<Self> {
        let metadata = fs::symlink_metadata(path)?;
        Ok(Self { path: path.into(), device: metadata.dev(), inode: metadata.ino() })
    }

    /// Returns true if the file is still at its path.
    pub fn exists(&self) -> bool {
        Self::of(&self.path).is_ok_and(|now| now == *self)
    }
}
