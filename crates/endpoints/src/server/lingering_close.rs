//! Closing a connection so that the last answer arrives.

use std::{
    io::{ErrorKind, Result},
    net::Shutdown,
    time::Duration,
};

use socket2::SockRef;
use tokio::{
    net::TcpStream,
    time::{sleep, timeout},
};

use super::Stopping;

/// How long what a client still sends is read and discarded.
const LINGER: Duration = Duration::from_secs(10);

/// How long a client may send nothing meanwhile, without closing its side.
const SILENCE: Duration = Duration::from_secs(5);

/// How long that goes on when connections that are being closed are not waited for any more.
const AT_A_STOP: Duration = Duration::from_millis(100);

/// Closes in stages (RFC 9112 section 9.6): this side first, then all of it once the client has closed its side
/// or has had its time. If the client still sends when a socket is closed, the kernel answers with a reset, and
/// that makes the client's kernel discard an answer that was not read yet.
pub(super) async fn close_in_stages(stream: TcpStream, stopping: &Stopping) {
    if SockRef::from(&stream).shutdown(Shutdown::Write).is_err() {
        // The client is gone.
        return;
    }
    let to_the_end = async { while let Ok(Ok(1..)) = timeout(SILENCE, discard(&stream)).await {} };
    tokio::select! {
        _ = timeout(LINGER, to_the_end) => {}
        () = async {
            stopping.soon.cancelled().await;
            sleep(AT_A_STOP).await;
        } => {}
    }
}

/// Waits for bytes and discards them; how many there were, 0 at the end.
async fn discard(stream: &TcpStream) -> Result<usize> {
    loop {
        stream.readable().await?;
        match stream.try_read(&mut [0; 16 << 10]) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            read => return read,
        }
    }
}
