//! The close schedule: closes spread evenly over a time, in random order.

use std::{collections::VecDeque, time::Instant};

use crate::connection_key::ConnectionKey;

/// The moments at which a loop's connections are closed.
#[derive(Debug)]
pub(crate) struct CloseSchedule {
    /// Ordered by time.
    queue: VecDeque<ScheduledClose>,
}

/// One close of a [`CloseSchedule`].
#[derive(Debug)]
struct ScheduledClose {
    at: Instant,
    connection: ConnectionKey,
}

impl CloseSchedule {
    /// Spreads the closes of these connections over the time between the two moments.
    pub(crate) fn new(
        connections: impl Iterator<Item = ConnectionKey>,
        from: Instant,
        until: Instant,
    ) -> Self {
        let mut connections: Vec<_> = connections.collect();
        // By the random part of their ids, so the order is neither that of the slots nor that of connecting.
        connections.sort_by(|a, b| a.id.jitter().total_cmp(&b.id.jitter()));
        let step = until.saturating_duration_since(from).div_f64(connections.len().max(1) as f64);
        let close = |(number, connection)| {
            let at = from + step.mul_f64(number as f64 + 0.5);
            ScheduledClose { at, connection }
        };
        Self { queue: connections.into_iter().enumerate().map(close).collect() }
    }

    /// Returns when the next close is due.
    pub(crate) fn next(&self) -> Option<Instant> {
        self.queue.front().map(|close| close.at)
    }

    /// Returns a connection whose close is due, if one is. It may have ended meanwhile.
    pub(crate) fn due(&mut self, now: Instant) -> Option<ConnectionKey> {
        if self.next()? > now {
            return None;
        }
        self.queue.pop_front().map(|close| close.connection)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::client_id::ClientId;

    fn key(slot: usize) -> ConnectionKey {
        ConnectionKey { slot, id: ClientId::generate() }
    }

    #[test]
    fn ten_thousand_are_due_one_by_one_in_even_steps() {
        let from = Instant::now();
        let until = from + Duration::from_secs(10);
        let mut schedule = CloseSchedule::new((0..10_000).map(key), from, until);
        for n in 0..10_000 {
            // Each in the middle of a millisecond of its own: 1 % of them in any tenth of a second.
            let moment = from + Duration::from_micros(1000 * n + 500);
            assert_eq!(schedule.next(), Some(moment));
            assert_eq!(schedule.due(moment - Duration::from_nanos(1)), None);
            assert!(schedule.due(moment).is_some());
        }
        assert_eq!((schedule.next(), schedule.due(until)), (None, None));
    }

    #[test]
    fn closes_that_are_late_are_due_at_once_and_the_others_keep_their_moments() {
        let from = Instant::now();
        let until = from + Duration::from_secs(10);
        let mut schedule = CloseSchedule::new((0..10).map(key), from, until);
        let now = from + Duration::from_millis(3700);
        assert_eq!(std::iter::from_fn(|| schedule.due(now)).count(), 4);
        assert_eq!(schedule.next(), Some(from + Duration::from_millis(4500)));
    }

    #[test]
    fn the_order_is_not_that_of_the_slots() {
        let now = Instant::now();
        let mut schedule = CloseSchedule::new((0..1000).map(key), now, now);
        let order: Vec<_> = std::iter::from_fn(|| schedule.due(now)).map(|key| key.slot).collect();
        assert_eq!(order.len(), 1000);
        let in_sequence = order.windows(2).filter(|two| two[0] < two[1]).count();
        // 500 are expected; the standard deviation is 9.
        assert!((400..600).contains(&in_sequence), "{in_sequence}");
    }

    #[test]
    fn no_connections_and_no_time_are_allowed() {
        let now = Instant::now();
        assert_eq!(CloseSchedule::new(std::iter::empty(), now, now).next(), None);
        let mut schedule = CloseSchedule::new(std::iter::once(key(7)), now, now);
        assert_eq!(schedule.due(now).unwrap().slot, 7);
    }
}
