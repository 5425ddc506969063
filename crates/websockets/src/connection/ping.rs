//! The last ping to one client, and its answer.

use super::stream::TcpProgress;

/// The state of a ping. Any bytes from the client count as the answer, but only bytes that arrive after the
/// ping.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ping {
    /// Something arrived since the ping, or no ping was sent yet.
    #[default]
    Answered,
    /// The socket took the ping at once, and nothing arrived since.
    Sent,
    /// The ping is in the outbox, or it is one that a client answers by reading it (server-sent events).
    Unread {
        /// The bytes that the client had acknowledged at the last check.
        acknowledged: u32,
        /// True if bytes arrived since the last check.
        heard: bool,
        /// True if the client took nothing between the last two checks.
        stalled: bool,
    },
    /// The ping has left the outbox, or another process, at another time than the pings to the other clients
    /// of its bucket. It is checked one round later, so that the client has the full time to answer.
    SentLate,
}

impl Ping {
    /// Continues with the last ping of another process. It may have been sent just before, so a check that is
    /// due soon does not count. `is_read`: the ping is in the outbox, or one that a client answers by reading
    /// it.
    pub(crate) fn restore(answered: bool, is_read: bool) -> Self {
        match (answered, is_read) {
            (true, _) => Self::Answered,
            (false, false) => Self::SentLate,
            (false, true) => Self::Unread { acknowledged: 0, heard: true, stalled: false },
        }
    }

    /// Returns true if the client is to be pinged now that its turn has come. Then call [`Ping::sent`], or
    /// [`Ping::sent_unread`].
    pub(crate) fn is_needed(&mut self) -> bool {
        match self {
            Self::Answered | Self::Sent => true,
            Self::Unread { .. } => false,
            Self::SentLate => {
                *self = Self::Sent;
                false
            }
        }
    }

    /// Records that a ping was sent.
    pub(crate) fn sent(&mut self) {
        *self = Self::Sent;
    }

    /// Records that a ping was queued, or sent to a client that answers by reading.
    pub(crate) fn sent_unread(&mut self, progress: TcpProgress) {
        *self = Self::Unread { acknowledged: progress.acknowledged, heard: false, stalled: false };
    }

    /// Records that bytes arrived from the client. While a ping is queued (`has_output`), no other one is
    /// needed.
    pub(crate) fn answered(&mut self, has_output: bool) {
        match self {
            Self::Unread { heard, .. } if has_output => *heard = true,
            _ => *self = Self::Answered,
        }
    }

    /// Records that a queued ping has left the outbox.
    pub(crate) fn left(&mut self) {
        if let Self::Unread { .. } = self {
            *self = Self::SentLate;
        }
    }

    /// Returns true if the socket took the ping, and there is no answer when the time for it is over.
    pub(crate) fn is_overdue(&self) -> bool {
        *self == Self::Sent
    }

    /// Checks a ping that waits to be read, when the time for the answer is over. Returns true if the client
    /// is gone or does not read. `has_output`: something is queued; `is_answer`: reading is the answer.
    pub(crate) fn check_unread(&mut self, progress: TcpProgress, has_output: bool, is_answer: bool) -> bool {
        let Self::Unread { acknowledged, heard, stalled } = self else { return false };
        if !has_output && !progress.in_flight && !progress.unsent {
            *self = if is_answer { Self::Answered } else { Self::SentLate };
            return false;
        }
        let has_read = std::mem::replace(acknowledged, progress.acknowledged) != progress.acknowledged;
        if has_read | std::mem::take(heard) {
            *stalled = false;
            return false;
        }
        // Nothing came back for what was sent: nobody is there. A client that is there and has no room gets a
        // second round, as it makes room in large steps.
        progress.in_flight || std::mem::replace(stalled, true)
    }

    /// Returns true if [`Ping::check_unread`] is to be called.
    pub(crate) fn is_unread(&self) -> bool {
        matches!(self, Self::Unread { .. })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn acknowledged(acknowledged: u32) -> TcpProgress {
        TcpProgress { acknowledged, in_flight: false, unsent: true }
    }

    #[test]
    fn a_ping_is_overdue_unless_bytes_arrived_since() {
        let mut ping = Ping::default();
        assert!(ping.is_needed());
        ping.sent();
        assert!(ping.is_overdue());
        ping.answered(false);
        assert!(!ping.is_overdue());
        assert!(ping.is_needed());
        ping.sent();
        assert!(ping.is_overdue(), "an answer to an earlier ping does not count");
    }

    #[test]
    fn a_client_that_reads_slowly_is_not_asked_for_what_it_cannot_have_read() {
        let mut ping = Ping::default();
        ping.sent_unread(acknowledged(0));
        for read in 1..5 {
            assert!(!ping.check_unread(acknowledged(read), true, false));
            assert!(!ping.is_needed(), "one is queued already");
        }
        ping.left();
        assert!(!ping.is_overdue(), "it has not had its time");
        assert!(!ping.is_needed());
        assert!(ping.is_overdue());
    }

    #[test]
    fn a_client_that_does_not_read_at_all_is_overdue_at_the_second_check() {
        let mut ping = Ping::default();
        ping.sent_unread(acknowledged(7));
        assert!(!ping.check_unread(acknowledged(7), true, false), "it may make room in large steps");
        assert!(ping.check_unread(acknowledged(7), true, false));
    }

    #[test]
    fn a_client_whose_network_is_gone_is_overdue_at_the_first_check() {
        let mut ping = Ping::default();
        ping.sent_unread(acknowledged(7));
        assert!(ping.check_unread(TcpProgress { in_flight: true, ..acknowledged(7) }, false, true));
    }

    #[test]
    fn a_client_that_answers_by_reading_has_answered_once_all_is_acknowledged() {
        let mut ping = Ping::default();
        ping.sent_unread(acknowledged(7));
        assert!(!ping.check_unread(TcpProgress { in_flight: true, ..acknowledged(8) }, false, true));
        assert!(ping.is_unread());
        assert!(!ping.check_unread(TcpProgress { unsent: false, ..acknowledged(8) }, false, true));
        assert_eq!(ping, Ping::Answered);
    }

    #[test]
    fn bytes_from_the_client_show_that_it_is_there_and_no_second_ping_is_queued() {
        let mut ping = Ping::default();
        ping.sent_unread(acknowledged(0));
        for _ in 0..5 {
            ping.answered(true);
            assert!(!ping.is_needed());
            assert!(!ping.check_unread(acknowledged(0), true, false));
        }
    }

    #[test]
    fn a_ping_of_another_process_can_still_be_answered() {
        assert!(!Ping::restore(true, true).is_unread());
        let mut ping = Ping::restore(false, false);
        assert!(!ping.is_overdue(), "it may have been sent just before");
        assert!(!ping.is_needed());
        assert!(ping.is_overdue(), "it has had its time");
        ping.answered(false);
        assert!(!ping.is_overdue());
        assert!(!Ping::restore(false, true).is_needed(), "it is in the outbox");
    }
}
