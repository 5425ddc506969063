//! The body of a request, and what the handler leaves of it.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::{Body as HttpBody, Frame, Incoming, SizeHint};
use tokio::time::timeout;

/// Most bytes of a body that are read and discarded so that the connection can continue after an early
/// response.
const MAX_DISCARDED: u64 = 64 << 10;

/// The time that an early response waits until they have arrived.
const DISCARD_TIMEOUT: Duration = Duration::from_millis(250);

/// The body of a request, for its handler. What the handler does not read stays in the [`UnreadBody`].
pub(super) struct RequestBody(Arc<Mutex<PartialBody>>);

/// The rest of a body when its handler has answered.
pub(super) struct UnreadBody(Arc<Mutex<PartialBody>>);

struct PartialBody {
    body: Incoming,
    /// True once any of it was asked for: if the client waits for that (`Expect`), it has been told to
    /// continue.
    asked_for: bool,
    ended: bool,
}

impl RequestBody {
    pub(super) fn new(body: Incoming) -> (Self, UnreadBody) {
        let received = Arc::new(Mutex::new(PartialBody { body, asked_for: false, ended: false }));
        (Self(Arc::clone(&received)), UnreadBody(received))
    }
}

fn lock(received: &Mutex<PartialBody>) -> MutexGuard<'_, PartialBody> {
    // It is only held while hyper's channel is looked into, which does not panic.
    received.lock().unwrap_or_else(PoisonError::into_inner)
}

impl HttpBody for RequestBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let mut received = lock(&self.0);
        received.asked_for = true;
        let frame = Pin::new(&mut received.body).poll_frame(context);
        received.ended |= matches!(frame, Poll::Ready(None));
        frame
    }

    fn is_end_stream(&self) -> bool {
        lock(&self.0).body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        lock(&self.0).body.size_hint()
    }
}

impl UnreadBody {
    /// Reads on to the end of the body, if that is near. Returns true if it was reached: if not, the
    /// connection cannot be used for another request.
    ///
    /// Most bodies that are refused are small and only come a moment after their head. `expects_continue`:
    /// the client may wait for the response before it sends the body (RFC 9110 section 10.1.1).
    pub(super) async fn drain(self, expects_continue: bool) -> bool {
        {
            let received = lock(&self.0);
            if received.ended || received.body.is_end_stream() {
                return true;
            }
            let waits_for_us = expects_continue && !received.asked_for;
            if waits_for_us || received.body.size_hint().lower() > MAX_DISCARDED {
                return false;
            }
        }
        let mut body = RequestBody(self.0);
        let discard = async {
            let mut discarded = 0;
            while let Some(frame) = body.frame().await {
                let Ok(frame) = frame else { return false };
                discarded += frame.data_ref().map_or(0, |data| data.len() as u64);
                if discarded > MAX_DISCARDED {
                    return false;
                }
            }
            true
        };
        timeout(DISCARD_TIMEOUT, discard).await.unwrap_or(false)
    }
}
