//! Why a control socket cannot be made or used.

use std::{fs, io, os::unix::fs::MetadataExt, path::Path, path::PathBuf};

use rustix::process::geteuid;

/// The control socket cannot be made, or cannot be trusted.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// The folder is not there and cannot be made, or cannot be locked.
    #[error("cannot use the folder {folder} for the control socket")]
    Folder {
        /// The folder.
        folder: PathBuf,
        /// The error of the system.
        source: io::Error,
    },
    /// Other users could put a socket of theirs there.
    #[error(
        "the folder {folder} must belong to this user (number {uid}) and be writable by no other user; it has \
         owner {owner} and mode {mode:o}"
    )]
    FolderNotPrivate {
        /// The folder.
        folder: PathBuf,
        /// This user.
        uid: u32,
        /// Its owner.
        owner: u32,
        /// Its mode.
        mode: u32,
    },
    /// Another user decides where the folder is.
    #[error(
        "the way to the folder {folder} is a symbolic link of user {owner}, {link}: remove it, or choose another folder"
    )]
    ForeignLink {
        /// The folder.
        folder: PathBuf,
        /// The link.
        link: PathBuf,
        /// The owner of the link.
        owner: u32,
    },
    /// The socket cannot be made.
    #[error("cannot listen on {path}")]
    Listen {
        /// The path of the socket.
        path: PathBuf,
        /// The error of the system.
        source: io::Error,
    },
    /// Another process listens there.
    #[error("another server listens on {path}; give each server a `runtime_dir` of its own")]
    InUse {
        /// The path of the socket.
        path: PathBuf,
    },
    /// No process listens there.
    #[error("no server listens on {path}")]
    Connect {
        /// The path of the socket.
        path: PathBuf,
        /// The error of the system.
        source: io::Error,
    },
    /// The process at the other end belongs to another user.
    #[error("user {peer} is at the other end of {path}, which is neither root nor user {expected}")]
    OtherUser {
        /// The path of the socket.
        path: PathBuf,
        /// The user of the process at the other end.
        peer: u32,
        /// The user that would be right.
        expected: u32,
    },
}

impl SocketError {
    /// Returns the error for a folder that other users could write, with these metadata.
    pub(super) fn not_private(folder: &Path, metadata: &fs::Metadata) -> Self {
        Self::FolderNotPrivate {
            folder: folder.into(),
            uid: geteuid().as_raw(),
            owner: metadata.uid(),
            mode: metadata.mode() & 0o7777,
        }
    }
}
