//! Answering new connections 503 while the process has no file descriptors left, with a spare one.

use std::{io, mem, os::fd::OwnedFd, time::Duration};

use lastcall_core::SpareDescriptor;
use tokio::{
    net::TcpStream,
    time::{Instant, sleep, timeout},
};
use tracing::{debug, info, warn};

use super::listener::Listener;
use crate::{
    error::{ErrorCode, RETRY_AFTER_SECONDS},
    refusals::{LineRate, Refusals},
};

/// How long a rejected client has to send its request.
const REJECT_TIMEOUT: Duration = Duration::from_millis(50);

/// The time between two attempts to accept while there is not even the spare descriptor.
const ACCEPT_RETRY_INTERVAL: Duration = Duration::from_millis(50);

/// A shortage of file descriptors, which may begin and end again and again.
pub(super) struct DescriptorShortage {
    /// `None`: there were none left when the server started.
    spare: Option<SpareDescriptor>,
    refusals: Refusals,
    refused: u64,
    /// Clients can begin and end shortages as often as they like.
    rate: LineRate,
    /// Whether the shortage was logged, and its end is to be.
    is_logged: bool,
}

impl DescriptorShortage {
    pub(super) fn new(refusals: Refusals) -> Self {
        let spare = SpareDescriptor::reserve()
            .inspect_err(
                |error| warn!(%error, "no file descriptor can be kept for the time when there are no others"),
            )
            .ok();
        Self { spare, refusals, refused: 0, rate: LineRate::default(), is_logged: false }
    }

    /// Notes that a connection could be accepted.
    pub(super) fn accepted(&mut self) {
        if self.spare.as_mut().is_some_and(SpareDescriptor::note_success) && mem::take(&mut self.is_logged) {
            let refused = mem::take(&mut self.refused);
            info!(refused, "there are file descriptors again; {refused} connections got 503 meanwhile");
        }
    }

    /// Handles an error of accept(2).
    pub(super) async fn accept_failed(&mut self, listener: &Listener, error: &io::Error) {
        if !SpareDescriptor::is_shortage(error) {
            // The client disconnected while queued; the caller tries the next one.
            return debug!(%error, "a connection could not be accepted");
        }
        let Some(spare) = &mut self.spare else { return sleep(ACCEPT_RETRY_INTERVAL).await };
        if spare.note_shortage() && !self.is_logged && self.rate.take(Instant::now()).is_none() {
            self.is_logged = true;
            warn!(%error, "no file descriptors left: new connections get 503 until there are some");
        }
        spare.release();
        match timeout(REJECT_TIMEOUT, listener.accept()).await {
            Ok(Ok((stream, _))) => {
                self.refused += 1;
                self.refusals.count(ErrorCode::Full);
                write_503(&stream).await;
                match stream.into_std() {
                    Ok(stream) => spare.keep(OwnedFd::from(stream)),
                    Err(error) => debug!(%error, "a refused connection could not be closed in place"),
                }
            }
            // Another thread took the descriptor. There is no event for one becoming free.
            Ok(Err(_)) => sleep(ACCEPT_RETRY_INTERVAL).await,
            Err(_) => {}
        }
        spare.restore();
    }
}

async fn write_503(stream: &TcpStream) {
    const BODY: &str =
        r#"{"error":{"code":"full","message":"The server has no file descriptors left; try again later."}}"#;
    let response = format!(
        "HTTP/1.1 503 Service Unavailable\r\nretry-after: {RETRY_AFTER_SECONDS}\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{BODY}",
        BODY.len(),
    );
    // The request is read first, or the kernel answers the close with a reset that takes the response with it.
    let mut request = [0; 4096];
    let _ = timeout(REJECT_TIMEOUT, async {
        if stream.readable().await.is_ok() {
            let _ = stream.try_read(&mut request);
            let _ = stream.try_write(response.as_bytes());
        }
    })
    .await;
}
