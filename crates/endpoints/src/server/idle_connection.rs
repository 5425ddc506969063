//! A connection on which no request is being answered.

use bytes::Bytes;
use tokio::net::TcpStream;

/// A connection on which no request is being answered: the client has not sent any yet, or all of them were
/// answered.
#[derive(Debug)]
pub struct IdleConnection {
    /// Its socket.
    pub stream: TcpStream,
    /// The beginning of a request, if one was read.
    pub read: Bytes,
}

impl From<TcpStream> for IdleConnection {
    fn from(stream: TcpStream) -> Self {
        Self { stream, read: Bytes::new() }
    }
}
