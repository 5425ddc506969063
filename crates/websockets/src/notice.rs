//! The last call: what every client is told when a drain starts.

use std::time::{Duration, Instant};

use jiff::Timestamp;

use crate::{
    client_id::ClientId,
    codec::Frame,
    protocol::{Reconnect, ServerMessage},
};

/// Soonest that clients are asked to come back, and the shortest window over which they are: they must not
/// all knock in the same moment.
const MIN_RECONNECT_DELAY: Duration = Duration::from_secs(1);

/// That the server is going to close, and when.
#[derive(Debug, Clone, Copy)]
pub struct ShutdownNotice {
    /// Why, for people.
    pub reason: &'static str,
    /// When those who stay are closed.
    pub deadline: Instant,
    /// How long before the deadline the closes begin.
    spread: Duration,
    /// How long the process may go on after the deadline, where no other server admits its clients meanwhile.
    close_timeout: Option<Duration>,
}

impl ShutdownNotice {
    /// A notice of a drain that takes `shutdown_timeout` from now on, the last `spread` of which is for closing
    /// those who stay. Clients are to come back spread over as long.
    pub fn new(reason: &'static str, shutdown_timeout: Duration, spread: Duration) -> Self {
        Self { reason, deadline: Instant::now() + shutdown_timeout, spread, close_timeout: None }
    }

    /// The same, where there is no other server: whatever replaces this process admits clients only once this one
    /// has ended, which is `close_timeout` after the deadline at the latest.
    pub fn without_other_server(self, close_timeout: Duration) -> Self {
        Self { close_timeout: Some(close_timeout), ..self }
    }

    /// When this client should come back, counted from its close, which happens now. Each client has a moment
    /// of its own within a window as long as the spread.
    ///
    /// While clients are being closed, the window begins when this process has ended. Before, that moment
    /// is not known: the process ends with its last client, maybe long before the deadline.
    pub(crate) fn reconnect_after(&self, client: ClientId, now: Instant) -> Duration {
        let left = self.deadline.saturating_duration_since(now);
        let until_ended = match self.close_timeout {
            Some(close_timeout) if left <= self.spread => left + close_timeout,
            _ => Duration::ZERO,
        };
        until_ended + MIN_RECONNECT_DELAY + self.spread.max(MIN_RECONNECT_DELAY).mul_f64(client.jitter())
    }

    /// The notice as this client gets it, now.
    pub(crate) fn frame(&self, client: ClientId) -> Frame {
        let now = Instant::now();
        let left = self.deadline.saturating_duration_since(now);
        let time = Timestamp::now();
        ServerMessage::Shutdown {
            time,
            reason: self.reason,
            // A deadline past the year 9999 is not to be had: settings end at 365 days.
            deadline: time.saturating_add(left).unwrap_or(Timestamp::MAX),
            seconds_left: (left.as_secs_f64() * 1000.0).round() / 1000.0,
            reconnect: Reconnect { after_ms: self.reconnect_after(client, now).as_millis() as u64 },
        }
        .frame()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPREAD: Duration = Duration::from_secs(10);
    const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

    fn notice() -> ShutdownNotice {
        ShutdownNotice::new("service restart", Duration::from_secs(30), SPREAD)
    }

    /// Asserts that these moments are spread over the spread, from this one on.
    fn are_spread(mut moments: Vec<Duration>, from: Duration) {
        moments.sort();
        assert!(moments[0] >= from && *moments.last().unwrap() <= from + SPREAD);
        for tenth in 0..10 {
            let start = from + SPREAD * tenth / 10;
            let count = moments.iter().filter(|at| (start..start + SPREAD / 10).contains(*at)).count();
            // 100 are expected; the standard deviation is 9.
            assert!((50..150).contains(&count), "{count} in tenth {tenth}");
        }
    }

    #[test]
    fn each_client_has_its_own_moment_within_the_window() {
        for notice in [notice(), notice().without_other_server(CLOSE_TIMEOUT)] {
            let clients: Vec<_> = (0..1000).map(|_| ClientId::generate()).collect();
            let start = Instant::now();
            let moments = clients.iter().map(|id| notice.reconnect_after(*id, start));
            are_spread(moments.collect(), MIN_RECONNECT_DELAY);
            let before_closes = notice.deadline - SPREAD - Duration::from_millis(1);
            for client in clients {
                let first = notice.reconnect_after(client, start);
                assert_eq!(notice.reconnect_after(client, before_closes), first, "the same each time");
            }
        }
    }

    #[test]
    fn clients_that_are_closed_come_back_spread_out_once_the_process_has_ended() {
        let notice = notice().without_other_server(CLOSE_TIMEOUT);
        let began = notice.deadline - SPREAD;
        // In the order and at the times of `CloseSchedule`.
        let mut clients: Vec<_> = (0..1000).map(|_| ClientId::generate()).collect();
        clients.sort_by(|a, b| a.jitter().total_cmp(&b.jitter()));
        let back = |late: Duration| -> Vec<_> {
            let moments = clients.iter().enumerate().map(|(number, client)| {
                let closed = began + SPREAD.mul_f64((number as f64 + 0.5) / 1000.0) + late;
                closed + notice.reconnect_after(*client, closed) - notice.deadline
            });
            moments.collect()
        };
        let ended = CLOSE_TIMEOUT + MIN_RECONNECT_DELAY;
        are_spread(back(Duration::ZERO), ended);
        // Closes that are late move no client to before the end.
        assert!(back(Duration::from_millis(50)).iter().all(|moment| *moment >= ended));
    }

    #[test]
    fn after_a_drain_that_was_cut_short_the_process_has_its_close_timeout() {
        let mut notice = notice().without_other_server(CLOSE_TIMEOUT);
        notice.deadline = Instant::now();
        let client = ClientId::generate();
        let after = notice.reconnect_after(client, notice.deadline + Duration::from_millis(1));
        assert_eq!(after, CLOSE_TIMEOUT + MIN_RECONNECT_DELAY + SPREAD.mul_f64(client.jitter()));
    }

    #[test]
    fn clients_with_another_server_do_not_wait_for_the_end_of_this_one() {
        let notice = notice();
        let client = ClientId::generate();
        let early = notice.reconnect_after(client, Instant::now());
        assert_eq!(notice.reconnect_after(client, notice.deadline - SPREAD / 2), early);
        assert!(early <= MIN_RECONNECT_DELAY + SPREAD);
    }
}
