//! Closing a connection so that the last response arrives.

use std::{
    future::Future,
    io::{ErrorKind, Result},
    net::Shutdown,
    time::Duration,
};

use socket2::SockRef;
use tokio::{
    net::TcpStream,
    time::{sleep, timeout},
};

use super::stop::{Stop, StopLevel};

/// The time for which input is read and discarded at most.
const LINGER_TIMEOUT: Duration = Duration::from_secs(10);

/// The time for which the client may send nothing meanwhile, without closing its side.
const LINGER_IDLE_TIMEOUT: Duration = Duration::from_secs(5);

/// The time for which that continues once the server does not wait for connections that are being closed.
const LINGER_STOP_TIMEOUT: Duration = Duration::from_millis(100);

/// Closes in stages (RFC 9112 section 9.6): this side first, then all of it once the client has closed its
/// side, has had its time, or `must_leave` is ready. If the client still sends when a socket is closed, the
/// kernel answers with a reset, and that makes the client's kernel discard a response that was not read yet.
pub(super) async fn close_in_stages(stream: TcpStream, stop: &Stop, must_leave: impl Future<Output = ()>) {
    if SockRef::from(&stream).shutdown(Shutdown::Write).is_err() {
        // The client is gone.
        return;
    }
    let to_the_end =
        async { while let Ok(Ok(1..)) = timeout(LINGER_IDLE_TIMEOUT, discard(&stream)).await {} };
    tokio::select! {
        _ = timeout(LINGER_TIMEOUT, to_the_end) => {}
        () = must_leave => {}
        () = async {
            stop.reached(StopLevel::AbortClosing).await;
            sleep(LINGER_STOP_TIMEOUT).await;
        } => {}
    }
}

/// Waits for bytes and discards them. Returns how many there were; 0 at the end of the stream.
async fn discard(stream: &TcpStream) -> Result<usize> {
    loop {
        stream.readable().await?;
        match stream.try_read(&mut [0; 16 << 10]) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            read => return read,
        }
    }
}
