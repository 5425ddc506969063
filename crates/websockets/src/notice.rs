//! The shutdown notice: what every client is told when a drain begins.

use std::time::{Duration, Instant};

use jiff::Timestamp;
use lastcall_core::clock;

use crate::{client_id::ClientId, protocol::Outgoing};

/// Earliest reconnect delay, and the shortest window over which the delays are spread, so that clients do not
/// reconnect all at once.
const MIN_RECONNECT_DELAY: Duration = Duration::from_secs(1);

/// Tells clients that the server is going to close their connections, when, and when to reconnect.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ShutdownNotice {
    reason: &'static str,
    /// The moment at which the remaining connections are closed.
    pub(crate) deadline: Instant,
    /// The time before the deadline in which the server closes connections one by one.
    spread: Duration,
    /// The time that the process may run after the deadline, where no other server admits the clients
    /// meanwhile.
    close_timeout: Option<Duration>,
}

impl ShutdownNotice {
    /// Makes the notice of a drain that ends at `deadline`; the server closes the remaining connections over
    /// the last `spread` before it. `reason` is for people.
    pub(crate) fn new(reason: &'static str, deadline: Instant, spread: Duration) -> Self {
        Self { reason, deadline, spread, close_timeout: None }
    }

    /// The same where there is no other server: the one that replaces this process admits clients only after
    /// this process has ended, at the latest `close_timeout` after the deadline.
    pub(crate) fn without_other_server(self, close_timeout: Duration) -> Self {
        Self { close_timeout: Some(close_timeout), ..self }
    }

    /// Returns how long this client should wait before it reconnects, counted from its close, which is `now`.
    /// Each client has a fixed moment within a window as long as the spread.
    ///
    /// Over the last `spread` before the deadline, the window begins when this process will have ended.
    /// Before that, this moment is not known: the process ends with its last client, perhaps long before the
    /// deadline.
    pub(crate) fn reconnect_after(&self, client: ClientId, now: Instant) -> Duration {
        let left = self.deadline.saturating_duration_since(now);
        let until_ended = match self.close_timeout {
            Some(close_timeout) if left <= self.spread => left + close_timeout,
            _ => Duration::ZERO,
        };
        until_ended + MIN_RECONNECT_DELAY + self.spread.max(MIN_RECONNECT_DELAY).mul_f64(client.jitter())
    }

    /// Returns the notice for this client, as it is now. `is_last`: its close follows.
    pub(crate) fn message(&self, client: ClientId, is_last: bool) -> Outgoing<'static> {
        let now = Instant::now();
        let left = self.deadline.saturating_duration_since(now);
        let time = clock::timestamp();
        Outgoing::Shutdown {
            time,
            reason: self.reason,
            // The clock may be set to the end of the year 9999, where timestamps end.
            deadline: time.saturating_add(left).unwrap_or(Timestamp::MAX),
            left,
            reconnect_after: self.reconnect_after(client, now),
            is_last,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPREAD: Duration = Duration::from_secs(10);
    const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

    fn notice() -> ShutdownNotice {
        ShutdownNotice::new("service restart", Instant::now() + Duration::from_secs(30), SPREAD)
    }

    /// Asserts that these moments are spread evenly over `SPREAD`, from `from` on.
    fn assert_spread(mut moments: Vec<Duration>, from: Duration) {
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
    fn each_client_has_a_moment_of_its_own_within_the_window() {
        for notice in [notice(), notice().without_other_server(CLOSE_TIMEOUT)] {
            let clients: Vec<_> = (0..1000).map(|_| ClientId::generate()).collect();
            let start = Instant::now();
            let moments = clients.iter().map(|id| notice.reconnect_after(*id, start));
            assert_spread(moments.collect(), MIN_RECONNECT_DELAY);
            let before_closes = notice.deadline - SPREAD - Duration::from_millis(1);
            for client in clients {
                let first = notice.reconnect_after(client, start);
                assert_eq!(notice.reconnect_after(client, before_closes), first, "the same each time");
            }
        }
    }

    #[test]
    fn closed_clients_reconnect_spread_out_once_the_process_has_ended() {
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
        assert_spread(back(Duration::ZERO), ended);
        // Closes that are late move no client to before the end.
        assert!(back(Duration::from_millis(50)).iter().all(|moment| *moment >= ended));
    }

    #[test]
    fn clients_of_a_drain_that_was_cut_short_wait_for_the_close_timeout() {
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
