//! Connections for which there is no room, and their 503.

use std::{
    future::{Future, pending},
    io,
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};

use lastcall_core::AllowedOrigins;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::Semaphore,
    time::timeout,
};

use super::{connection::Shared, lingering_close::close_in_stages};
use crate::{
    auth::cors::lines_for_events,
    error::{ApiError, ErrorCode, RETRY_AFTER_SECONDS},
    refusals::{Refusal, RequestSummary},
};

/// Connections that are answered at once. Each has a file descriptor, which is in the reserve.
const MAX_AT_ONCE: usize = 16;

/// The time that a client has to send its request, to take the answer, and to close its side.
const TIMEOUT: Duration = Duration::from_millis(250);

/// Most bytes of a request that are read.
const MAX_REQUEST: usize = 24 << 10;

/// The text that is logged, and that the client is told.
const MESSAGE: &str = "The server has all the HTTP connections that it may have (max_http_connections), and each has a \
                       request; try again later.";

/// Connections that are being refused.
pub(super) struct RefusedConnections(Arc<Semaphore>);

impl Default for RefusedConnections {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(MAX_AT_ONCE)))
    }
}

impl RefusedConnections {
    /// Counts a connection as refused. Returns what answers it; if many are being answered already, `None`,
    /// and the connection has its answer now, without the time to read its request first: the answer may be
    /// lost with it.
    pub(super) fn refuse(
        &self,
        mut stream: TcpStream,
        peer: SocketAddr,
        shared: Arc<Shared>,
    ) -> Option<impl Future<Output = ()> + use<>> {
        let request = RequestSummary::of_peer(peer);
        shared.refusals.note(Refusal { code: ErrorCode::Full.name(), message: MESSAGE.into(), request });
        let Ok(permit) = Arc::clone(&self.0).try_acquire_owned() else {
            let _ = stream.try_write(response(&[], &shared.allowed_origins).as_bytes());
            return None;
        };
        Some(async move {
            let _permit = permit;
            // Too slow a client is cut off.
            let _ = timeout(TIMEOUT, async {
                // The request is read first, or the kernel answers the close with a reset that takes the
                // response with it.
                let mut request = Vec::with_capacity(MAX_REQUEST);
                stream.read_buf(&mut request).await?;
                stream.write_all(response(&request, &shared.allowed_origins).as_bytes()).await?;
                close_in_stages(stream, &shared.stop, pending()).await;
                io::Result::Ok(())
            })
            .await;
        })
    }
}

/// Returns the response to a request, of which this is the beginning.
fn response(request: &[u8], allowed_origins: &AllowedOrigins) -> String {
    let request = String::from_utf8_lossy(request);
    let fields = request.lines().skip(1).filter_map(|line| line.split_once(':'));
    let field = |name: &str| {
        let mut values = fields.clone().filter(|(other, _)| other.eq_ignore_ascii_case(name));
        values.next().map(|(_, value)| value.trim()).unwrap_or_default()
    };
    let wants_events = field("accept").to_ascii_lowercase().starts_with("text/event-stream");
    let cors = if wants_events { lines_for_events(allowed_origins, field("origin")) } else { String::new() };
    let error = ApiError::new(ErrorCode::Full, MESSAGE);
    let (status, kind, body) = if wants_events {
        ("200 OK", "text/event-stream", error.event())
    } else {
        ("503 Service Unavailable", "application/json", error.json_body())
    };
    format!(
        "HTTP/1.1 {status}\r\nretry-after: {RETRY_AFTER_SECONDS}\r\ncontent-type: {kind}\r\ncontent-length: {}\r\n\
         {cors}connection: close\r\n\r\n{body}",
        body.len(),
    )
}
