//! The control socket: a Unix socket at which operators reach a running process. Only its own user, and root,
//! can use it.
//!
//! It is bound under its final name and never renamed: systemd-tmpfiles(8) spares a socket only while the
//! kernel lists it under the name that it has. An upgrade hands the listening descriptor on, so the name
//! always leads to a process that answers.

mod error;
mod file_identity;
mod folder;
mod name;
mod peer;

use std::{
    fs::{self, Permissions},
    io::{self, ErrorKind},
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::{
            fs::{MetadataExt, PermissionsExt},
            net::{SocketAddr as UnixAddress, UnixListener, UnixStream},
        },
    },
    path::Path,
};

use rustix::{
    fs::{Access, access},
    net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with},
    process::geteuid,
};

pub use error::SocketError;
pub use file_identity::FileIdentity;
pub use name::{SocketName, bound_sockets, find_socket};

use crate::stream::FramedStream;

/// A control socket that listens. Its file is removed when this is dropped, unless
/// [`ControlSocket::keep_file`] was called.
#[derive(Debug)]
pub struct ControlSocket {
    listener: UnixListener,
    identity: FileIdentity,
    remove: bool,
}

impl ControlSocket {
    /// Checks that a socket with this name could be made; makes the folder if it is not there.
    ///
    /// # Errors
    /// When it could not, as for [`ControlSocket::bind`].
    pub fn check_folder(folder: &Path, name: SocketName) -> Result<(), SocketError> {
        let path = name.path(folder);
        folder::make(folder)?;
        access(folder, Access::WRITE_OK | Access::EXEC_OK)
            .map_err(io::Error::from)
            // Its name may be too long: sun_path of unix(7) has room for 107 bytes.
            .and_then(|()| UnixAddress::from_pathname(&path).map(drop))
            .map_err(|source| SocketError::Listen { path, source })
    }

    /// Listens at `path`, in a folder that only this user can write; makes the folder if it is not there. A
    /// socket at which no process listens any more is replaced.
    ///
    /// # Errors
    /// When the folder cannot be made or trusted, when another process listens there, or when the socket
    /// cannot be made.
    pub fn bind(path: &Path) -> Result<Self, SocketError> {
        let folder = path.parent().unwrap_or(Path::new("."));
        folder::make(folder)?;
        let _lock = folder::lock(folder)?;
        let error = |source| SocketError::Listen { path: path.into(), source };
        match connect_now(path) {
            // WouldBlock: many connections wait to be accepted.
            Ok(_) => return Err(SocketError::InUse { path: path.into() }),
            Err(busy) if busy.kind() == ErrorKind::WouldBlock => {
                return Err(SocketError::InUse { path: path.into() });
            }
            Err(refused) if refused.kind() == ErrorKind::ConnectionRefused => {
                fs::remove_file(path).map_err(error)?;
            }
            // Not there; or no socket at all, which bind(2) reports.
            Err(_) => {}
        }
        let listener = UnixListener::bind(path).map_err(error)?;
        let made = || {
            // Until here, the folder alone keeps other users away.
            fs::set_permissions(path, Permissions::from_mode(0o600))?;
            listener.set_nonblocking(true)?;
            FileIdentity::of(path)
        };
        let identity = made().map_err(error)?;
        Ok(Self { listener, identity, remove: true })
    }

    /// Makes a control socket of the listener of an old process, and the file that it has. The file is the
    /// old process's until [`ControlSocket::own_file`] is called.
    ///
    /// # Errors
    /// When the descriptor cannot be used.
    pub fn from_listener(listener: OwnedFd, identity: FileIdentity) -> io::Result<Self> {
        let listener = UnixListener::from(listener);
        listener.set_nonblocking(true)?;
        Ok(Self { listener, identity, remove: false })
    }

    /// Takes the file over from the old process: it is removed when this is dropped.
    pub fn own_file(&mut self) {
        self.remove = true;
    }

    /// Returns the file of the socket.
    pub fn identity(&self) -> &FileIdentity {
        &self.identity
    }

    /// Returns the path of the socket.
    pub fn path(&self) -> &Path {
        &self.identity.path
    }

    /// Returns the listener, which does not block.
    pub fn listener(&self) -> &UnixListener {
        &self.listener
    }

    /// Leaves the file to the new process, which has the listener: it is not removed when this is dropped.
    pub fn keep_file(&mut self) {
        self.remove = false;
    }

    /// Connects to the process that listens at `path`, if it is this user's. Root may connect to every
    /// user's.
    ///
    /// # Errors
    /// When no process listens there, or when another user could have put the socket there.
    pub fn connect(path: &Path) -> Result<FramedStream, SocketError> {
        let folder = path.parent().unwrap_or(Path::new("."));
        let error = |source| SocketError::Connect { path: path.into(), source };
        let metadata = fs::metadata(folder).map_err(error)?;
        folder::check_links(folder, metadata.uid())?;
        let uid = geteuid();
        if metadata.mode() & 0o022 != 0 || !(uid.is_root() || metadata.uid() == uid.as_raw()) {
            return Err(SocketError::not_private(folder, &metadata));
        }
        let stream = connect_now(path).map_err(error)?;
        peer::check(&stream, path, metadata.uid())?;
        FramedStream::new(stream).map_err(error)
    }

    /// Checks that a connection that was accepted comes from this user, or from root.
    ///
    /// # Errors
    /// When it comes from another user.
    pub fn check_peer(&self, stream: &impl AsRawFd) -> Result<(), SocketError> {
        peer::check(stream, self.path(), geteuid().as_raw())
    }
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        if !self.remove {
            return;
        }
        let folder = self.identity.path.parent().unwrap_or(Path::new("."));
        // If that fails, the file stays behind, and the next process that needs its name replaces it.
        if let Ok(_lock) = folder::lock(folder)
            && self.identity.exists()
        {
            let _ = fs::remove_file(&self.identity.path);
        }
    }
}

/// Connects without waiting for room in the queue of connections: connect(2) has no timeout for that.
fn connect_now(path: &Path) -> io::Result<UnixStream> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    connect(&socket, &SocketAddrUnix::new(path)?)?;
    let stream = UnixStream::from(socket);
    stream.set_nonblocking(false)?;
    Ok(stream)
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(10)
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().mode() & 0o777
    }

    #[test]
    fn the_socket_is_for_this_user_only_and_is_removed_with_its_process() {
        let folder = tempfile::tempdir().unwrap();
        let path = SocketName::OwnFolder.path(&folder.path().join("new"));
        let socket = ControlSocket::bind(&path).unwrap();
        assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o600, 0o700));

        let client = ControlSocket::connect(&path).unwrap();
        let accepted = socket.listener().accept().unwrap().0;
        socket.check_peer(&accepted).unwrap();
        client.send(&"hello", soon()).unwrap();
        assert_eq!(FramedStream::new(accepted).unwrap().receive::<String>(soon()).unwrap(), "hello");

        drop(socket);
        assert!(!path.exists());
        assert!(matches!(ControlSocket::connect(&path), Err(SocketError::Connect { .. })));
    }

    #[test]
    fn a_name_that_a_process_uses_is_refused_and_one_that_is_left_over_is_taken() {
        let folder = tempfile::tempdir().unwrap();
        let path = SocketName::OwnFolder.path(folder.path());
        let mut socket = ControlSocket::bind(&path).unwrap();
        assert!(matches!(ControlSocket::bind(&path), Err(SocketError::InUse { .. })));
        ControlSocket::connect(&path).unwrap();
        // As after kill -9: the file is there, and no process listens.
        socket.keep_file();
        drop(socket);
        let next = ControlSocket::bind(&path).unwrap();
        ControlSocket::connect(&path).unwrap();
        assert!(next.identity().exists());
    }

    #[test]
    fn a_process_removes_only_its_own_socket() {
        let folder = tempfile::tempdir().unwrap();
        let path = SocketName::OwnFolder.path(folder.path());
        let first = ControlSocket::bind(&path).unwrap();
        fs::remove_file(&path).unwrap();
        assert!(!first.identity().exists());
        let second = ControlSocket::bind(&path).unwrap();
        drop(first);
        assert!(second.identity().exists());
        ControlSocket::connect(&path).unwrap();
    }

    #[test]
    fn a_socket_goes_on_in_another_process() {
        let folder = tempfile::tempdir().unwrap();
        let path = SocketName::OwnFolder.path(folder.path());
        let mut old = ControlSocket::bind(&path).unwrap();
        let descriptor = OwnedFd::from(old.listener().try_clone().unwrap());
        let mut new = ControlSocket::from_listener(descriptor, old.identity().clone()).unwrap();
        // Connected while both have it, and accepted by the new one.
        let _client = ControlSocket::connect(&path).unwrap();
        old.keep_file();
        drop(old);
        new.listener().accept().unwrap();
        // One that fails before it serves leaves the file to the old process.
        drop(ControlSocket::from_listener(
            new.listener().try_clone().unwrap().into(),
            new.identity().clone(),
        ));
        assert!(path.exists());
        new.own_file();
        drop(new);
        assert!(!path.exists());
    }

    #[test]
    fn a_folder_behind_another_users_link_is_refused() {
        // Only root can give a link away.
        if !geteuid().is_root() {
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let (own, link) = (folder.path().join("own"), folder.path().join("link"));
        std::os::unix::fs::symlink("own", &link).unwrap();
        for in_link in [link.clone(), link.join("below")] {
            let path = SocketName::OwnFolder.path(&in_link);
            fs::create_dir(&own).unwrap();
            std::os::unix::fs::lchown(&link, Some(65534), None).unwrap();
            let refused = |error| matches!(error, SocketError::ForeignLink { owner: 65534, .. });
            assert!(refused(ControlSocket::bind(&path).unwrap_err()));
            assert!(refused(ControlSocket::check_folder(&in_link, SocketName::OwnFolder).unwrap_err()));
            assert_eq!(fs::read_dir(&own).unwrap().count(), 0);
            std::os::unix::fs::lchown(&link, Some(0), None).unwrap();
            let socket = ControlSocket::bind(&path).unwrap();
            ControlSocket::connect(&path).unwrap();
            std::os::unix::fs::lchown(&link, Some(65534), None).unwrap();
            assert!(refused(ControlSocket::connect(&path).unwrap_err()));
            drop(socket);
            fs::remove_dir_all(&own).unwrap();
        }
    }

    #[test]
    fn a_folder_that_other_users_can_write_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        fs::set_permissions(folder.path(), Permissions::from_mode(0o777)).unwrap();
        let path = SocketName::OwnFolder.path(folder.path());
        let error = ControlSocket::bind(&path).unwrap_err().to_string();
        assert!(error.contains("writable by no other user") && error.contains("mode 777"), "{error}");
        assert!(matches!(ControlSocket::connect(&path), Err(SocketError::FolderNotPrivate { .. })));
        let check = |folder: &Path| ControlSocket::check_folder(folder, SocketName::OwnFolder);
        assert!(matches!(check(folder.path()), Err(SocketError::FolderNotPrivate { .. })));
        fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).unwrap();
        check(folder.path()).unwrap();
        ControlSocket::bind(&path).unwrap();
        let no_folder = Path::new("/dev/null/x");
        assert!(matches!(ControlSocket::bind(&no_folder.join("y")), Err(SocketError::Folder { .. })));
        assert!(matches!(check(no_folder), Err(SocketError::Folder { .. })));
        assert!(matches!(check(&folder.path().join("x".repeat(100))), Err(SocketError::Listen { .. })));
    }
}
