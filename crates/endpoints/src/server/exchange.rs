//! How far the request and its answer are on one connection.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Follows the requests of one connection, one after the other: hyper reads the next one only after it has
/// written the answer to the last.
///
/// While hyper waits for a request and has nothing to write, the socket can be taken from it, together with what
/// it has read of that request.
#[derive(Debug, Clone, Default)]
pub(super) struct Exchange(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    progress: Progress,
    /// Requests that were answered.
    answered: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Progress {
    /// No request is being answered.
    #[default]
    Waiting,
    /// A request is being answered.
    Answering,
    /// hyper has the whole answer, and may not have written all of it.
    Writing,
    /// The answer is the last one: what follows the request's head is not known to be another request.
    Last,
}

impl Exchange {
    /// Notes that a request's head was read.
    pub(super) fn begin(&self) {
        self.lock().progress = Progress::Answering;
    }

    /// Notes that this connection must end with the answer to this request.
    pub(super) fn ends(&self) {
        self.lock().progress = Progress::Last;
    }

    /// Notes that hyper has the whole answer.
    pub(super) fn answer_is_whole(&self) {
        let mut state = self.lock();
        if state.progress == Progress::Answering {
            state.progress = Progress::Writing;
        }
    }

    /// Notes that hyper has written everything that it had.
    pub(super) fn flushed(&self) {
        let mut state = self.lock();
        if state.progress == Progress::Writing {
            state.progress = Progress::Waiting;
            state.answered += 1;
        }
    }

    /// Returns whether no request is being answered.
    pub(super) fn is_waiting(&self) -> bool {
        self.lock().progress == Progress::Waiting
    }

    /// Returns whether no request is being answered, and at least one was.
    pub(super) fn is_over(&self) -> bool {
        let state = self.lock();
        state.progress == Progress::Waiting && state.answered > 0
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing that holds it can panic.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
