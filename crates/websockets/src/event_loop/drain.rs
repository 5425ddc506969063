//! A drain, as far as the clients of one event loop are told of it when they connect or are closed.

use std::time::Instant;

use crate::{
    codec::CloseReason,
    connection::{Connection, Outcome, Stream},
    notice::ShutdownNotice,
};

/// The state of a drain, as connections that come and go are concerned.
#[derive(Debug, Default)]
pub(super) struct Drain {
    /// The notice that new connections get once a drain has started.
    notice: Option<ShutdownNotice>,
    /// The reason for which new connections are closed once all are being closed.
    close_reason: Option<CloseReason>,
}

impl Drain {
    /// Begins: connections that come later are told, too.
    pub(super) fn begin(&mut self, notice: ShutdownNotice) {
        self.notice = Some(notice);
    }

    /// Returns what clients are told, if the drain has begun.
    pub(super) fn notice(&self) -> Option<ShutdownNotice> {
        self.notice
    }

    /// Has connections that come later closed.
    pub(super) fn close_all(&mut self, reason: CloseReason) {
        self.close_reason = Some(reason);
        if let Some(notice) = &mut self.notice {
            // The drain ends earlier than announced.
            notice.deadline = notice.deadline.min(Instant::now());
        }
    }

    #[cfg(test)]
    pub(super) fn closes_all(&self) -> bool {
        self.close_reason.is_some()
    }

    /// Tells a new client what all others were told, and closes its connection if all are being closed.
    pub(super) fn welcome<S: Stream>(&self, connection: &mut Connection<S>) -> Outcome {
        let mut outcome = Outcome::Unchanged;
        if let Some(notice) = &self.notice {
            let notice = connection.form.encode(&notice.message(connection.id, false));
            outcome = outcome.max(connection.send_unbounded(&notice));
        }
        if let Some(reason) = self.close_reason {
            outcome = outcome.max(connection.close(reason, None));
        }
        outcome
    }

    /// Closes a connection. During a drain, its client is told once more when to reconnect.
    pub(super) fn close<S: Stream>(&self, connection: &mut Connection<S>, reason: CloseReason) -> Outcome {
        let notice = self.notice.filter(|_| connection.is_open());
        let notice = notice.map(|notice| connection.form.encode(&notice.message(connection.id, true)));
        connection.close(reason, notice)
    }
}
