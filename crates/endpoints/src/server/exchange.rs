//! The request that is under way on a connection, and its response.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
};

use axum::body::Body;
use bytes::Bytes;
use hyper::body::{Body as HttpBody, Frame, SizeHint};

use super::in_flight::InFlight;

/// Follows the requests of one connection, one after the other: hyper reads the next one only after it has
/// written the response to the last.
///
/// While hyper waits for a request and has nothing to write, the socket can be taken from it, together with
/// what it has read of that request.
#[derive(Debug, Clone, Default)]
pub(super) struct Exchange(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    request: RequestState,
    /// Requests that were answered.
    responses: u64,
    in_flight: Option<InFlight>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum RequestState {
    /// No request is being answered.
    #[default]
    Waiting,
    /// A request is being answered.
    Handling,
    /// hyper has the whole response, and may not have written all of it.
    Writing,
    /// The response is the last one: what follows the request's head is not known to be another request.
    LastResponse,
}

impl Exchange {
    /// Notes that a request's head was read.
    pub(super) fn on_request(&self, in_flight: InFlight) {
        let mut state = self.lock();
        state.request = RequestState::Handling;
        state.in_flight = Some(in_flight);
    }

    /// Notes that this connection must end with the response to this request.
    pub(super) fn mark_last(&self) {
        self.lock().request = RequestState::LastResponse;
    }

    /// Notes that hyper has the whole response.
    pub(super) fn on_response_taken(&self) {
        let mut state = self.lock();
        if state.request == RequestState::Handling {
            state.request = RequestState::Writing;
        }
    }

    /// Notes that hyper has written everything that it had.
    pub(super) fn on_flush(&self) {
        let mut state = self.lock();
        if state.request == RequestState::Writing {
            state.request = RequestState::Waiting;
            state.responses += 1;
            state.in_flight = None;
        }
    }

    /// Returns true if no request is being answered.
    pub(super) fn is_waiting(&self) -> bool {
        self.lock().request == RequestState::Waiting
    }

    /// Returns true if no request is being answered, and at least one was.
    pub(super) fn has_ended(&self) -> bool {
        let state = self.lock();
        state.request == RequestState::Waiting && state.responses > 0
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing that holds it can panic.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The body of a response. hyper drops it when it has taken all of it.
pub(super) struct ResponseBody {
    body: Body,
    exchange: Exchange,
}

impl ResponseBody {
    pub(super) fn new(body: Body, exchange: Exchange) -> Self {
        Self { body, exchange }
    }
}

impl Drop for ResponseBody {
    fn drop(&mut self) {
        self.exchange.on_response_taken();
    }
}

impl HttpBody for ResponseBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
