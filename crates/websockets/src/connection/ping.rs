//! The last ping to one client, and its answer.

/// The state of a ping. Any bytes from the client count as the answer, but only bytes that arrive after the ping.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ping {
    /// Something arrived since the ping, or no ping was sent yet.
    #[default]
    Answered,
    /// The socket took the ping at once, and nothing arrived since.
    Sent,
    /// The ping is in the outbox: the client cannot answer yet.
    Queued {
        /// Whether the socket took output since the last check, which shows that the client reads, or bytes arrived.
        progress: bool,
    },
    /// The ping has left the outbox some time after the other clients of its bucket were pinged. It is checked one
    /// round later, so that the client has the full time to answer.
    SentLate,
}

impl Ping {
    /// Continues with the last ping of another process.
    pub(crate) fn restore(answered: bool, has_output: bool) -> Self {
        match (answered, has_output) {
            (true, _) => Self::Answered,
            (false, false) => Self::Sent,
            (false, true) => Self::Queued { progress: true },
        }
    }

    /// Returns true if the client is to be pinged now that its turn has come. Then call [`Ping::sent`].
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

    /// Records that a ping was sent, or queued if `is_queued`.
    pub(crate) fn sent(&mut self, is_queued: bool) {
        *self = if is_queued { Self::Queued { progress: true } } else { Self::Sent };
    }

    /// Records that bytes arrived from the client. While a ping is queued, no other one is needed.
    pub(crate) fn answered(&mut self) {
        match self {
            Self::Queued { progress } => *progress = true,
            _ => *self = Self::Answered,
        }
    }

    /// Records that the socket took queued output; `all`: nothing is queued any more.
    pub(crate) fn wrote(&mut self, all: bool) {
        if let Self::Queued { progress } = self {
            *progress = true;
            if all {
                *self = Self::SentLate;
            }
        }
    }

    /// Returns true if the answer is missing when the time for it is over.
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
    fn a_ping_is_overdue_unless_bytes_arrived_since() {
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
            assert!(!ping.is_needed(), "one is queued already");
        }
        ping.wrote(true);
        assert!(!ping.is_overdue(), "it has not had its time");
        assert!(!ping.is_needed());
        assert!(ping.is_overdue());
    }

    #[test]
    fn a_client_that_does_not_read_at_all_is_overdue_at_the_second_check() {
        let mut ping = pinged(true);
        assert!(!ping.is_overdue(), "the queue may have moved when the ping was queued");
        assert!(ping.is_overdue());
    }

    #[test]
    fn a_ping_of_another_process_can_still_be_answered() {
        assert_eq!(Ping::restore(true, true), Ping::Answered);
        let mut ping = Ping::restore(false, false);
        assert!(ping.is_needed());
        ping.sent(false);
        ping.answered();
        assert!(!ping.is_overdue());
        assert!(!Ping::restore(false, true).is_needed(), "it is in the outbox");
    }
}
