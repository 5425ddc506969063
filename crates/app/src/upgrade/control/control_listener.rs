//! The listening end of the control socket.

use std::{io, os::unix::net::UnixListener};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    net::sockopt::socket_acceptconn,
};
use tokio::{
    io::{Interest, unix::AsyncFd},
    net::UnixStream,
};

/// A listener that notices when it was shut down in another process that has it. accept(2) without blocking
/// then says for ever that nothing has come, while the socket is ready: tokio's own listener would do nothing
/// else any more.
pub(super) struct ControlListener(AsyncFd<UnixListener>);

impl ControlListener {
    /// # Errors
    /// When there is no descriptor left.
    pub(super) fn new(listener: &UnixListener) -> io::Result<Self> {
        let listener = listener.try_clone()?;
        #[expect(unsafe_code, reason = "it has to be promised that the descriptor stays open")]
        // SAFETY: the value owns the descriptor, and nothing else has it.
        let listener = unsafe { AsyncFd::register_with_interest(listener, Interest::READABLE) }?;
        Ok(Self(listener))
    }

    /// Returns the next connection. Cancel safe.
    ///
    /// # Errors
    /// When the system gives none; also when it never will, as [`can_accept`] says.
    pub(super) async fn accept(&self) -> io::Result<UnixStream> {
        loop {
            let mut ready = self.0.readable().await?;
            if let Ok(accepted) = ready.try_io(|listener| listener.get_ref().accept()) {
                let (stream, _) = accepted?;
                stream.set_nonblocking(true)?;
                return UnixStream::from_std(stream);
            }
            if !can_accept(self.0.get_ref()) {
                return Err(io::Error::new(io::ErrorKind::InvalidInput, "it was shut down"));
            }
        }
    }
}

/// Returns false if a socket does not listen, or was shut down.
pub(super) fn can_accept(listener: &UnixListener) -> bool {
    let mut polled = [PollFd::new(listener, PollFlags::RDHUP)];
    let is_shut_down = poll(&mut polled, Some(&Timespec::default())).is_ok()
        && polled[0].revents().intersects(PollFlags::RDHUP | PollFlags::HUP);
    !is_shut_down && socket_acceptconn(listener).unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use rustix::net::{Shutdown, shutdown};
    use tokio::{io::AsyncWriteExt, time::timeout};

    use super::*;

    #[tokio::test]
    async fn a_listener_that_is_shut_down_is_an_error_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let original = UnixListener::bind(&path).unwrap();
        original.set_nonblocking(true).unwrap();
        let listener = ControlListener::new(&original).unwrap();
        let (client, accepted) = tokio::join!(UnixStream::connect(&path), listener.accept());
        client.unwrap().write_all(b"x").await.unwrap();
        accepted.unwrap().readable().await.unwrap();
        assert!(can_accept(&original));
        let nothing = timeout(std::time::Duration::from_millis(10), listener.accept()).await;
        assert!(nothing.is_err(), "nothing has come");
        shutdown(&original, Shutdown::Both).unwrap();
        assert_eq!(listener.accept().await.unwrap_err().kind(), io::ErrorKind::InvalidInput);
        assert!(!can_accept(&original));
    }
}
