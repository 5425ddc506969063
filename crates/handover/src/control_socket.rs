//! The control socket: a Unix socket at which operators reach a running process. Only its own user, and root,
//! can use it.
//!
//! It is bound under its final name and never renamed: systemd-tmpfiles(8) spares a socket only while the kernel
//! lists it under the name that it has. An upgrade hands the listening descriptor on, so the name always leads to
//! a process that answers. A lock on the folder keeps two processes from removing each other's socket.

use std::{
    fs::{self, DirBuilder, File, Permissions},
    io::{self, ErrorKind},
    net::{IpAddr, SocketAddr},
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::{
            fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt},
            net::{SocketAddr as UnixAddress, UnixListener, UnixStream},
        },
    },
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use rustix::{
    fs::{Access, FlockOperation, access, flock},
    io::Errno,
    net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with},
    process::geteuid,
};
use serde::{Deserialize, Serialize};

use crate::stream::FramedStream;

/// The name in a folder that belongs to one server alone, as a service manager makes it.
const ONLY: &str = "lastcall.sock";

/// The name of the file in the folder that is locked. Other users, who may read the folder, cannot open it.
const LOCK: &str = "lastcall.lock";

/// How long another process may hold the lock: it is held for a few system calls.
const LOCK_TIMEOUT: Duration = Duration::from_millis(100);

/// How often a lock that another process holds is tried again: flock(2) has no timeout.
const LOCK_RETRY: Duration = Duration::from_millis(5);

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

/// Where a control socket is: its name in the folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SocketName {
    /// The folder is the server's own.
    Only,
    /// Several servers may have the folder: the name tells on which address its server listens.
    Address(SocketAddr),
}

impl SocketName {
    /// The path of the socket with this name.
    pub fn path(self, folder: &Path) -> PathBuf {
        match self {
            Self::Only => folder.join(ONLY),
            Self::Address(address) => folder.join(format!("lastcall-{address}.sock")),
        }
    }
}

/// Finds the control socket of the server that is reached at one of `addresses`: the one that listens on that
/// address, or on all addresses of this machine.
///
/// Returns its path, or `None` when the folder has no such socket.
pub fn find_socket(folder: &Path, addresses: &[SocketAddr]) -> Option<PathBuf> {
    let unspecified = |address: &SocketAddr| {
        let v4: IpAddr = [0; 4].into();
        let v6: IpAddr = [0; 16].into();
        // A socket on :: takes IPv4 connections, too.
        let hosts = if address.is_ipv4() { vec![v4, v6] } else { vec![v6] };
        hosts.into_iter().map(|host| SocketAddr::new(host, address.port())).collect::<Vec<_>>()
    };
    let exact = addresses.iter().copied();
    let names = exact.chain(addresses.iter().flat_map(unspecified)).map(SocketName::Address);
    let bound = bound_sockets();
    // A file without a process is left over from one that was killed. Without /proc, all of them count.
    let is_used = |path: &PathBuf| {
        let listed = fs::canonicalize(path).is_ok_and(|path| bound.contains(&path)) || bound.contains(path);
        fs::symlink_metadata(path).is_ok() && (bound.is_empty() || listed)
    };
    names.chain([SocketName::Only]).map(|name| name.path(folder)).find(is_used)
}

/// The control sockets that are bound on this machine, whatever their folder: unix(7) lists them in
/// /proc/net/unix. Without /proc, there are none.
pub fn bound_sockets() -> Vec<PathBuf> {
    let text = fs::read_to_string("/proc/net/unix").unwrap_or_default();
    let mut paths: Vec<_> = text
        .lines()
        .filter_map(|line| line.split_once('/').map(|(_, path)| PathBuf::from(format!("/{path}"))))
        .filter(|path| {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or("");
            name == ONLY || name.starts_with("lastcall-") && name.ends_with(".sock")
        })
        .collect();
    paths.sort();
    // A connection that is open has a line of its own.
    paths.dedup();
    paths
}

/// The file of a socket in its file system. A new file at the same path has another identity.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct FileIdentity {
    /// The path of the socket.
    pub path: PathBuf,
    device: u64,
    inode: u64,
}

impl FileIdentity {
    fn of(path: &Path) -> io::Result<Self> {
        let file = fs::symlink_metadata(path)?;
        Ok(Self { path: path.into(), device: file.dev(), inode: file.ino() })
    }

    /// Whether the file is still there.
    pub fn is_there(&self) -> bool {
        Self::of(&self.path).is_ok_and(|now| now == *self)
    }
}

/// A control socket that listens. Its file is removed when this is dropped, unless [`ControlSocket::keep_file`] was
/// called.
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
    pub fn check_directory(folder: &Path, name: SocketName) -> Result<(), SocketError> {
        let path = name.path(folder);
        make_folder(folder)?;
        access(folder, Access::WRITE_OK | Access::EXEC_OK)
            .map_err(io::Error::from)
            // Its name may be too long: sun_path of unix(7) has room for 107 bytes.
            .and_then(|()| UnixAddress::from_pathname(&path).map(drop))
            .map_err(|source| SocketError::Listen { path, source })
    }

    /// Listens at `path`, in a folder that only this user can write; makes the folder if it is not there. A socket
    /// at which no process listens any more is replaced.
    ///
    /// # Errors
    /// When the folder cannot be made or trusted, when another process listens there, or when the socket cannot
    /// be made.
    pub fn bind(path: &Path) -> Result<Self, SocketError> {
        let folder = path.parent().unwrap_or(Path::new("."));
        make_folder(folder)?;
        let _lock = lock(folder)?;
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

    /// Goes on with the socket of an old process.
    ///
    /// # Errors
    /// When the descriptor cannot be used.
    pub fn from_listener(listener: OwnedFd, identity: FileIdentity) -> io::Result<Self> {
        let listener = UnixListener::from(listener);
        listener.set_nonblocking(true)?;
        Ok(Self { listener, identity, remove: true })
    }

    /// The file of the socket.
    pub fn identity(&self) -> &FileIdentity {
        &self.identity
    }

    /// The path of the socket.
    pub fn path(&self) -> &Path {
        &self.identity.path
    }

    /// The listener, to wait on: it does not block.
    pub fn listener(&self) -> &UnixListener {
        &self.listener
    }

    /// Leaves the file to the new process, which has the listener: it is not removed when this is dropped.
    pub fn keep_file(&mut self) {
        self.remove = false;
    }

    /// Connects to the process that listens at `path`, if it is this user's. Root may connect to every user's.
    ///
    /// # Errors
    /// When no process listens there, or when another user could have put the socket there.
    pub fn connect(path: &Path) -> Result<FramedStream, SocketError> {
        let folder = path.parent().unwrap_or(Path::new("."));
        let error = |source| SocketError::Connect { path: path.into(), source };
        let file = fs::metadata(folder).map_err(error)?;
        let uid = geteuid();
        if file.mode() & 0o022 != 0 || !(uid.is_root() || file.uid() == uid.as_raw()) {
            return Err(not_private(folder, &file));
        }
        let stream = connect_now(path).map_err(error)?;
        check_peer(&stream, path, file.uid())?;
        FramedStream::new(stream).map_err(error)
    }

    /// Checks that a connection that was accepted comes from this user, or from root.
    ///
    /// # Errors
    /// When it comes from another user.
    pub fn check_peer(&self, stream: &impl AsRawFd) -> Result<(), SocketError> {
        check_peer(stream, self.path(), geteuid().as_raw())
    }
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        if !self.remove {
            return;
        }
        let folder = self.identity.path.parent().unwrap_or(Path::new("."));
        // Without the lock, or the file: it stays behind, and the next process that needs its name replaces it.
        if let Ok(_lock) = lock(folder)
            && self.identity.is_there()
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

/// Root may do anything anyway.
fn check_peer(stream: &impl AsRawFd, path: &Path, expected: u32) -> Result<(), SocketError> {
    let peer = peer_uid(stream).map_err(|source| SocketError::Connect { path: path.into(), source })?;
    if peer == expected || peer == 0 {
        return Ok(());
    }
    Err(SocketError::OtherUser { path: path.into(), peer, expected })
}

/// The user of the process at the other end (SO_PEERCRED, unix(7)). Not by rustix: that refuses the answer if the
/// other process has no PID here, as it is outside of this PID namespace.
fn peer_uid(stream: &impl AsRawFd) -> io::Result<u32> {
    let mut credentials = libc::ucred { pid: 0, uid: u32::MAX, gid: u32::MAX };
    let mut size = size_of::<libc::ucred>() as libc::socklen_t;
    #[expect(unsafe_code, reason = "the system call has no safe form that suits")]
    // SAFETY: both pointers lead to values that live until the call returns, and the size is that of the first.
    let result = unsafe {
        libc::getsockopt(
            stream.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut credentials).cast(),
            &raw mut size,
        )
    };
    if result == 0 { Ok(credentials.uid) } else { Err(io::Error::last_os_error()) }
}

/// Locks the folder against other processes that make or remove sockets, until the file is dropped.
fn lock(folder: &Path) -> Result<File, SocketError> {
    let error = |source| SocketError::Folder { folder: folder.into(), source };
    let mut options = File::options();
    options.create(true).truncate(false).write(true).mode(0o600);
    let file = options.open(folder.join(LOCK)).map_err(error)?;
    let deadline = Instant::now() + LOCK_TIMEOUT;
    loop {
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(file),
            Err(Errno::WOULDBLOCK | Errno::INTR) if Instant::now() < deadline => thread::sleep(LOCK_RETRY),
            Err(errno) => return Err(error(errno.into())),
        }
    }
}

fn make_folder(folder: &Path) -> Result<(), SocketError> {
    let error = |source| SocketError::Folder { folder: folder.into(), source };
    DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(error)?;
    let file = fs::metadata(folder).map_err(error)?;
    // systemd makes a RuntimeDirectory for the service's user, with mode 0755: other users may look, not write.
    if file.uid() == geteuid().as_raw() && file.mode() & 0o022 == 0 {
        return Ok(());
    }
    Err(not_private(folder, &file))
}

fn not_private(folder: &Path, file: &fs::Metadata) -> SocketError {
    SocketError::FolderNotPrivate {
        folder: folder.into(),
        uid: geteuid().as_raw(),
        owner: file.uid(),
        mode: file.mode() & 0o7777,
    }
}

#[cfg(test)]
mod tests {
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
        let path = SocketName::Only.path(&folder.path().join("new"));
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
    fn the_kernel_lists_the_socket_under_the_name_that_it_has() {
        let folder = tempfile::tempdir().unwrap();
        let path = SocketName::Address("127.0.0.1:8000".parse().unwrap()).path(folder.path());
        let _socket = ControlSocket::bind(&path).unwrap();
        assert!(bound_sockets().contains(&path), "{:?}", bound_sockets());
    }

    #[test]
    fn a_name_that_a_process_uses_is_refused_and_one_that_is_left_over_is_taken() {
        let folder = tempfile::tempdir().unwrap();
        let path = SocketName::Only.path(folder.path());
        let mut socket = ControlSocket::bind(&path).unwrap();
        assert!(matches!(ControlSocket::bind(&path), Err(SocketError::InUse { .. })));
        ControlSocket::connect(&path).unwrap();
        // As after kill -9: the file is there, and no process listens.
        socket.keep_file();
        drop(socket);
        let next = ControlSocket::bind(&path).unwrap();
        ControlSocket::connect(&path).unwrap();
        assert!(next.identity().is_there());
    }

    #[test]
    fn a_process_removes_only_its_own_socket() {
        let folder = tempfile::tempdir().unwrap();
        let path = SocketName::Only.path(folder.path());
        let first = ControlSocket::bind(&path).unwrap();
        fs::remove_file(&path).unwrap();
        assert!(!first.identity().is_there());
        let second = ControlSocket::bind(&path).unwrap();
        drop(first);
        assert!(second.identity().is_there());
        ControlSocket::connect(&path).unwrap();
    }

    #[test]
    fn a_socket_goes_on_in_another_process() {
        let folder = tempfile::tempdir().unwrap();
        let path = SocketName::Only.path(folder.path());
        let mut old = ControlSocket::bind(&path).unwrap();
        let descriptor = OwnedFd::from(old.listener().try_clone().unwrap());
        let new = ControlSocket::from_listener(descriptor, old.identity().clone()).unwrap();
        // Connected while both have it, and accepted by the new one.
        let _client = ControlSocket::connect(&path).unwrap();
        old.keep_file();
        drop(old);
        new.listener().accept().unwrap();
        drop(new);
        assert!(!path.exists());
    }

    #[test]
    fn a_folder_that_other_users_can_write_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        fs::set_permissions(folder.path(), Permissions::from_mode(0o777)).unwrap();
        let path = SocketName::Only.path(folder.path());
        let error = ControlSocket::bind(&path).unwrap_err().to_string();
        assert!(error.contains("writable by no other user") && error.contains("mode 777"), "{error}");
        assert!(matches!(ControlSocket::connect(&path), Err(SocketError::FolderNotPrivate { .. })));
        let check = |folder: &Path| ControlSocket::check_directory(folder, SocketName::Only);
        assert!(matches!(check(folder.path()), Err(SocketError::FolderNotPrivate { .. })));
        fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).unwrap();
        check(folder.path()).unwrap();
        ControlSocket::bind(&path).unwrap();
        let no_folder = Path::new("/dev/null/x");
        assert!(matches!(ControlSocket::bind(&no_folder.join("y")), Err(SocketError::Folder { .. })));
        assert!(matches!(check(no_folder), Err(SocketError::Folder { .. })));
        assert!(matches!(check(&folder.path().join("x".repeat(100))), Err(SocketError::Listen { .. })));
    }

    #[test]
    fn a_server_is_found_by_an_address_at_which_it_is_reached() {
        let folder = tempfile::tempdir().unwrap();
        let found = |address: &str| {
            let path = find_socket(folder.path(), &[address.parse().unwrap()])?;
            Some(path.file_name().unwrap().to_str().unwrap().to_owned())
        };
        let listen = |address: &str| {
            ControlSocket::bind(&SocketName::Address(address.parse().unwrap()).path(folder.path())).unwrap()
        };
        let _other = listen("127.0.0.2:8000");
        assert_eq!(found("127.0.0.1:8000"), None, "the server at another address is another server");
        let _all = listen("[::]:8000");
        assert_eq!(found("127.0.0.1:8000").unwrap(), "lastcall-[::]:8000.sock");
        let _v4 = listen("0.0.0.0:8000");
        assert_eq!(found("127.0.0.1:8000").unwrap(), "lastcall-0.0.0.0:8000.sock");
        assert_eq!(found("[::1]:8000").unwrap(), "lastcall-[::]:8000.sock");
        let _exact = listen("127.0.0.1:8000");
        assert_eq!(found("127.0.0.1:8000").unwrap(), "lastcall-127.0.0.1:8000.sock");
        assert_eq!(found("127.0.0.1:8001"), None);
    }
}
