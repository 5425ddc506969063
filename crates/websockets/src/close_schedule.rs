//! Closes spread evenly over a while, in random order: everybody's last moment.

use std::{collections::VecDeque, time::Instant};

use crate::client_id::ClientId;

/// Who of a loop's clients is closed when.
#[derive(Debug)]
pub(crate) struct CloseSchedule {
    /// Ordered by time.
    queue: VecDeque<(Instant, usize, ClientId)>,
}

impl CloseSchedule {
    /// Spreads these clients, with their slots, over the time between the two moments.
    pub(crate) fn new(
        clients: impl Iterator<Item = (usize, ClientId)>,
        from: Instant,
        until: Instant,
    ) -> Self {
        let mut clients: Vec<_> = clients.collect();
        // By the random part of their ids: neither by the time nor by the order in which they came.
        clients.sort_by(|(_, a), (_, b)| a.jitter().total_cmp(&b.jitter()));
        let step = until.saturating_duration_since(from).div_f64(clients.len().max(1) as f64);
        let at = |n: usize| from + step.mul_f64(n as f64 + 0.5);
        Self { queue: clients.into_iter().enumerate().map(|(n, (slot, id))| (at(n), slot, id)).collect() }
    }

    /// When the next one is due.
    pub(crate) fn next(&self) -> Option<Instant> {
        self.queue.front().map(|(at, ..)| *at)
    }

    /// One who is due, if any. It may have left since.
    pub(crate) fn due(&mut self, now: Instant) -> Option<(usize, ClientId)> {
        if self.next()? > now {
            return None;
        }
        self.queue.pop_front().map(|(_, slot, id)| (slot, id))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn ten_thousand_are_due_one_by_one_in_even_steps() {
        let from = Instant::now();
        let until = from + Duration::from_secs(10);
        let mut schedule =
            CloseSchedule::new((0..10_000).map(|slot| (slot, ClientId::generate())), from, until);
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
    fn those_who_are_late_are_due_at_once_and_the_others_keep_their_moments() {
        let from = Instant::now();
        let until = from + Duration::from_secs(10);
        let mut schedule = CloseSchedule::new((0..10).map(|slot| (slot, ClientId::generate())), from, until);
        let now = from + Duration::from_millis(3700);
        assert_eq!(std::iter::from_fn(|| schedule.due(now)).count(), 4);
        assert_eq!(schedule.next(), Some(from + Duration::from_millis(4500)));
    }

    #[test]
    fn the_order_is_neither_that_of_the_slots_nor_that_of_coming() {
        let now = Instant::now();
        let mut schedule = CloseSchedule::new((0..1000).map(|slot| (slot, ClientId::generate())), now, now);
        let order: Vec<_> = std::iter::from_fn(|| schedule.due(now)).map(|(slot, _)| slot).collect();
        assert_eq!(order.len(), 1000);
        let in_sequence = order.windows(2).filter(|two| two[0] < two[1]).count();
        // 500 are expected; the standard deviation is 9.
        assert!((400..600).contains(&in_sequence), "{in_sequence}");
    }

    #[test]
    fn nobody_and_no_time_are_fine() {
        let now = Instant::now();
        assert_eq!(CloseSchedule::new(std::iter::empty(), now, now).next(), None);
        let mut schedule = CloseSchedule::new(std::iter::once((7, ClientId::generate())), now, now);
        assert_eq!(schedule.due(now).unwrap().0, 7);
    }
}
