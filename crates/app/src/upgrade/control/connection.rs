//! A connection to the control socket.

use std::io;

use tokio::net::UnixStream;

use super::spare::Spare;

/// A connection. When it is closed, its descriptor becomes the spare one if that was used, in one step: the HTTP
/// server would take it otherwise.
pub(super) struct ControlConnection {
    /// Received only when it is closed.
    stream: Option<UnixStream>,
    spare: Spare,
}

impl ControlConnection {
    pub(super) fn new(stream: UnixStream, spare: Spare) -> Self {
        Self { stream: Some(stream), spare }
    }

    /// Returns the stream.
    ///
    /// # Errors
    /// Never before the connection is dropped.
    pub(super) fn stream(&mut self) -> io::Result<&mut UnixStream> {
        self.stream.as_mut().ok_or_else(|| io::ErrorKind::NotConnected.into())
    }
}

impl Drop for ControlConnection {
    fn drop(&mut self) {
        drop(self.stream.take());
        self.spare.restore();
    }
}
