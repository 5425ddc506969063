//! The Unix socket of a running process, which only its own user can reach.

use std::{
    fs::{self, DirBuilder, Permissions},
    io,
    os::unix::{
        fs::{DirBuilderExt, MetadataExt, PermissionsExt},
        net::{SocketAddr, UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
};

use rustix::{
    fs::{Access, access},
    net::sockopt::socket_peercred,
    process::geteuid,
};

use crate::channel::Channel;

/// The socket cannot be had, or not be trusted.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// The folder is not there and cannot be made.
    #[error("cannot make the folder {folder}")]
    Folder {
        /// Which.
        folder: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Others could put a socket of theirs there.
    #[error(
        "the folder {folder} must belong to this user (number {uid}) and be writable by nobody else; it has \
         owner {owner} and mode {mode:o}"
    )]
    NotOurs {
        /// Which.
        folder: PathBuf,
        /// This user.
        uid: u32,
        /// Its owner.
        owner: u32,
        /// Its mode.
        mode: u32,
    },
    /// The socket cannot be made.
    #[error("cannot listen on {path}")]
    Listen {
        /// Where.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Nobody listens there.
    #[error("no server listens on {path}")]
    Connect {
        /// Where.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Somebody else is at the other end.
    #[error("user {peer} is at the other end of {path}, not this one ({uid})")]
    Stranger {
        /// Where.
        path: PathBuf,
        /// Who.
        peer: u32,
        /// This user.
        uid: u32,
    },
}

/// Where the process that serves `port` has its socket.
pub fn path(folder: &Path, port: u16) -> PathBuf {
    folder.join(format!("lastcall-{port}.sock"))
}

/// Where a socket is made before it takes the place of the one that was there.
fn fresh(path: &Path) -> PathBuf {
    path.with_extension(format!("{}.new", std::process::id()))
}

/// Checks that a socket could be made in this folder; makes the folder if it is not there.
///
/// # Errors
/// When it could not, as for [`Socket::listen`].
pub fn check(folder: &Path) -> Result<(), SocketError> {
    let path = fresh(&path(folder, u16::MAX));
    make_folder(folder)?;
    access(folder, Access::WRITE_OK | Access::EXEC_OK)
        .map_err(io::Error::from)
        // Its name may be too long: sun_path of unix(7) has room for 107 bytes.
        .and_then(|()| SocketAddr::from_pathname(&path).map(drop))
        .map_err(|source| SocketError::Listen { path, source })
}

/// A socket that listens. Its file goes when this is dropped, unless another process has put its own there.
#[derive(Debug)]
pub struct Socket {
    listener: UnixListener,
    path: PathBuf,
    inode: u64,
}

impl Socket {
    /// Listens at `path`, in a folder that only this user can write; makes the folder if it is not there.
    /// What was there before is replaced in one step: whoever connects gets one process or the other.
    ///
    /// # Errors
    /// When the folder cannot be made or trusted, or the socket not be made.
    pub fn listen(path: &Path) -> Result<Self, SocketError> {
        let folder = path.parent().unwrap_or(Path::new("."));
        make_folder(folder)?;
        let error = |source| SocketError::Listen { path: path.into(), source };
        let fresh = fresh(path);
        let bound = || {
            match fs::remove_file(&fresh) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            let listener = UnixListener::bind(&fresh)?;
            fs::set_permissions(&fresh, Permissions::from_mode(0o600))?;
            let inode = fs::symlink_metadata(&fresh)?.ino();
            fs::rename(&fresh, path)?;
            listener.set_nonblocking(true)?;
            Ok((listener, inode))
        };
        let (listener, inode) = bound().map_err(error)?;
        Ok(Self { listener, path: path.into(), inode })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The listener, to wait on: it does not block.
    pub fn listener(&self) -> &UnixListener {
        &self.listener
    }

    /// Connects to the process that listens at `path`, if it is this user's.
    ///
    /// # Errors
    /// When nobody listens there, or somebody else.
    pub fn connect(path: &Path) -> Result<Channel, SocketError> {
        if let Some(folder) = path.parent() {
            check_folder(folder)?;
        }
        let error = |source| SocketError::Connect { path: path.into(), source };
        let stream = UnixStream::connect(path).map_err(error)?;
        trust(stream, path)
    }

    /// Takes a connection that was accepted, if it is this user's.
    ///
    /// # Errors
    /// When it is somebody else's.
    pub fn welcome(&self, stream: UnixStream) -> Result<Channel, SocketError> {
        trust(stream, &self.path)
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if fs::symlink_metadata(&self.path).is_ok_and(|file| file.ino() == self.inode) {
            // A file that stays behind does no harm: the next process replaces it.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Root may, as root may do anything anyway.
fn trust(stream: UnixStream, path: &Path) -> Result<Channel, SocketError> {
    let error = |source| SocketError::Connect { path: path.into(), source };
    let peer = socket_peercred(&stream).map_err(|errno| error(errno.into()))?.uid;
    if peer != geteuid() && !peer.is_root() {
        return Err(SocketError::Stranger {
            path: path.into(),
            peer: peer.as_raw(),
            uid: geteuid().as_raw(),
        });
    }
    Channel::new(stream).map_err(error)
}

fn make_folder(folder: &Path) -> Result<(), SocketError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .map_err(|source| SocketError::Folder { folder: folder.into(), source })?;
    check_folder(folder)
}

fn check_folder(folder: &Path) -> Result<(), SocketError> {
    let file =
        fs::metadata(folder).map_err(|source| SocketError::Folder { folder: folder.into(), source })?;
    let (uid, owner, mode) = (geteuid(), file.uid(), file.mode() & 0o7777);
    // systemd makes a RuntimeDirectory for the service's user, with mode 0755: others may look, not write.
    let ours = owner == uid.as_raw() || uid.is_root() && owner == 0;
    if ours && mode & 0o022 == 0 {
        return Ok(());
    }
    Err(SocketError::NotOurs { folder: folder.into(), uid: uid.as_raw(), owner, mode })
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn it_is_for_this_user_only_and_goes_with_its_process() {
        let folder = tempfile::tempdir().unwrap();
        let path = path(&folder.path().join("new"), 8000);
        let socket = Socket::listen(&path).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o777;
        assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o600, 0o700));

        let client = Socket::connect(&path).unwrap();
        let server = socket.welcome(socket.listener().accept().unwrap().0).unwrap();
        let soon = Instant::now() + Duration::from_secs(10);
        client.send(&"hello", soon).unwrap();
        assert_eq!(server.receive::<String>(soon).unwrap(), "hello");

        let next = Socket::listen(&path).unwrap();
        drop(socket);
        assert!(path.exists(), "it is the next one's by now");
        drop(next);
        assert!(!path.exists());
        assert!(matches!(Socket::connect(&path), Err(SocketError::Connect { .. })));
    }

    #[test]
    fn a_folder_that_others_can_write_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        fs::set_permissions(folder.path(), Permissions::from_mode(0o777)).unwrap();
        let path = path(folder.path(), 1);
        let error = Socket::listen(&path).unwrap_err().to_string();
        assert!(error.contains("writable by nobody else") && error.contains("mode 777"), "{error}");
        assert!(matches!(Socket::connect(&path), Err(SocketError::NotOurs { .. })));
        assert!(matches!(check(folder.path()), Err(SocketError::NotOurs { .. })));
        fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).unwrap();
        check(folder.path()).unwrap();
        Socket::listen(&path).unwrap();
        assert!(matches!(Socket::listen(Path::new("/dev/null/x")), Err(SocketError::Folder { .. })));
        assert!(matches!(check(Path::new("/dev/null/x")), Err(SocketError::Folder { .. })));
        let long = folder.path().join("x".repeat(100));
        assert!(matches!(check(&long), Err(SocketError::Listen { .. })));
    }
}
