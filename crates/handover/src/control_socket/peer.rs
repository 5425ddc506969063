//! The user of the process at the other end of a connection.

use std::{io, os::fd::AsRawFd, path::Path};

use super::error::SocketError;

/// Checks that the process at the other end belongs to this user, or to root, which may do anything anyway.
///
/// # Errors
/// When it belongs to another user.
pub(super) fn check(stream: &impl AsRawFd, path: &Path, expected: u32) -> Result<(), SocketError> {
    let peer = uid(stream).map_err(|source| SocketError::Connect { path: path.into(), source })?;
    if peer == expected || peer == 0 {
        return Ok(());
    }
    Err(SocketError::OtherUser { path: path.into(), peer, expected })
}

/// Returns the user of the process at the other end (SO_PEERCRED, unix(7)). Not by rustix: that refuses the
/// answer if the other process has no PID here, as it is outside of this PID namespace.
fn uid(stream: &impl AsRawFd) -> io::Result<u32> {
    let mut credentials = libc::ucred { pid: 0, uid: u32::MAX, gid: u32::MAX };
    let mut size = size_of::<libc::ucred>() as libc::socklen_t;
    #[expect(unsafe_code, reason = "the system call has no safe form that suits")]
    // SAFETY: both pointers lead to values that live until the call returns, and the size is that of the
    // first.
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

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use rustix::process::geteuid;

    use super::*;

    #[test]
    fn a_process_of_another_user_is_refused() {
        let (stream, _peer) = UnixStream::pair().unwrap();
        let own = geteuid().as_raw();
        check(&stream, Path::new("x"), own).unwrap();
        let result = check(&stream, Path::new("x"), own + 1);
        // As root, the peer is root, which may connect to any server.
        let refused = matches!(&result, Err(SocketError::OtherUser { peer, .. }) if *peer == own);
        assert_eq!(refused, own != 0, "{result:?}");
    }
}
