//! Closes spread evenly over a while, in random order: everybody's last moment.

use std::{collections::VecDeque, time::Instant};

use crate::client_id::ClientId;

/// Who of a loop's clients is closed when.
#[derive(Debug)]
pub(crate) struct Pace {
    /// Ordered by time.
    queue: VecDeque<(Instant, usize, ClientId)>,
}

impl Pace {
    /// Spreads these clients, with their slots, over the time between the two moments.
    pub(crate) fn new(
        clients: impl Iterator<Item = (usize, ClientId)>,
        from: Instant,
        until: Instant,
    ) -> Self {
        let mut clients: Vec<_> = clients.collect();
        // By the random part of their ids: neither by the time nor by the order in which they came.
        clients.sort_by(|(_, a), (_, b)| a.share().total_cmp(&b.share()));
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

    /// How long it takes from one to the next.
    #[cfg(test)]
    fn longest_gap(&self) -> std::time::Duration {
        self.queue.iter().zip(self.queue.iter().skip(1)).map(|(a, b)| b.0 - a.0).max().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn everyone_has_a_moment_of_their_own_in_random_order() {
        let from = Instant::now();
        let until = from + Duration::from_secs(10);
        let mut pace = Pace::new((0..1000).map(|slot| (slot, ClientId::generate())), from, until);
        assert!(pace.longest_gap() <= Duration::from_millis(11));
        assert_eq!(pace.due(from), None);
        assert!(pace.next().unwrap() < from + Duration::from_millis(11));
        let order: Vec<_> = std::iter::from_fn(|| pace.due(until)).map(|(slot, _)| slot).collect();
        assert_eq!(order.len(), 1000);
        assert_eq!(pace.next(), None);
        let in_sequence = order.windows(2).filter(|two| two[0] < two[1]).count();
        // 500 are expected; the standard deviation is 9.
        assert!((400..600).contains(&in_sequence), "{in_sequence}");
    }

    #[test]
    fn nobody_and_no_time_are_fine() {
        let now = Instant::now();
        assert_eq!(Pace::new(std::iter::empty(), now, now).next(), None);
        let mut pace = Pace::new(std::iter::once((7, ClientId::generate())), now, now);
        assert_eq!(pace.due(now).unwrap().0, 7);
    }
}
