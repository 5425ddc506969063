//! What came of the last ping to one client.

/// A ping and its answer. Whatever a client sends counts as an answer, but only what comes after the ping.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ping {
    /// Something came since, or there was no ping yet.
    #[default]
    Answered,
    /// The socket took it at once, and nothing came since.
    Sent,
    /// It waits in the outbox: the client cannot answer yet.
    Queued {
        /// Whether the socket took output since the last check: then the client reads.
        progress: bool,
    },
    /// It has left the outbox, some time after the clients of its bucket were pinged. It is checked a round later,
    /// so that its client has the whole time.
    SentLate,
}

impl Ping {
    /// A ping that another process sent.
    pub(crate) fn restore(answered: bool, is_queued: bool) -> Self {
        match (answered, is_queued) {
            (true, _) => Self::Answered,
            (false, false) => Self::Sent,
            (false, true) => Self::Queued { progress: true },
        }
    }

    /// The client is to be pinged now: whether a new ping is needed. If so, tell [`Ping::sent`].
    pub(crate) fn is_needed(&mut self) -> bool {
        match self {
            Self::Answered | Self::Sent => true,
            Self::Queued { .. } => false,
            Self::SentLate => {
                *self = Self::Sent;
                false
            }
        }
    }

    /// A ping was sent; `is_queued`: the socket did not take it.
    pub(crate) fn sent(&mut self, is_queued: bool) {
        *self = if is_queued { Self::Queued { progress: true } } else { Self::Sent };
    }

    /// The client sent something.
    pub(crate) fn answered(&mut self) {
        *self = Self::Answered;
    }

    /// The socket took output that waited; `all`: nothing waits any more.
    pub(crate) fn wrote(&mut self, all: bool) {
        if let Self::Queued { progress } = self {
            *progress = true;
            if all {
                *self = Self::SentLate;
            }
        }
    }

    /// The time for the answer is over: whether it is missing.
    pub(crate) fn is_overdue(&mut self) -> bool {
        match self {
            Self::Answered | Self::SentLate => false,
            Self::Sent => true,
            Self::Queued { progress } => !std::mem::take(progress),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pinged(is_queued: bool) -> Ping {
        let mut ping = Ping::default();
        assert!(ping.is_needed());
        ping.sent(is_queued);
        ping
    }

    #[test]
    fn a_ping_is_overdue_unless_something_came_since() {
        let mut ping = pinged(false);
        assert!(ping.is_overdue());
        ping.answered();
        assert!(!ping.is_overdue());
        assert!(ping.is_needed());
        ping.sent(false);
        assert!(ping.is_overdue(), "an answer to an earlier ping does not count");
    }

    #[test]
    fn a_client_that_reads_slowly_is_not_asked_for_what_it_cannot_have_read() {
        let mut ping = pinged(true);
        for _ in 0..5 {
            ping.wrote(false);
            assert!(!ping.is_overdue());
            assert!(!ping.is_needed(), "one waits already");
        }
        ping.wrote(true);
        assert!(!ping.is_overdue(), "it has not had its time");
        assert!(!ping.is_needed());
        assert!(ping.is_overdue());
    }

    #[test]
    fn a_client_that_does_not_read_at_all_is_overdue_at_the_second_check() {
        let mut ping = pinged(true);
        assert!(!ping.is_overdue(), "the queue may have moved when the ping came into it");
        assert!(ping.is_overdue());
    }

    #[test]
    fn a_ping_that_another_process_sent_can_still_be_answered() {
        assert_eq!(Ping::restore(true, true), Ping::Answered);
        let mut ping = Ping::restore(false, false);
        assert!(ping.is_needed());
        ping.sent(false);
        ping.answered();
        assert!(!ping.is_overdue());
        assert!(!Ping::restore(false, true).is_needed(), "it is in the outbox");
    }
}
