//! Placement: which event loop gets a new connection.

use std::sync::atomic::{AtomicUsize, Ordering};

/// A loop gets this many connections before the next loop is used. Below it, waking a second loop for each
/// message costs more than it saves, as writing to all of these takes about a millisecond.
pub(crate) const CONNECTIONS_PER_LOOP: usize = 256;

/// Chooses event loops by how many connections they have.
#[derive(Debug)]
pub(crate) struct Placement {
    connections_per_loop: usize,
    /// Connections of each loop, as it last reported.
    loads: Vec<AtomicUsize>,
}

impl Placement {
    pub(crate) fn new(loops: usize, connections_per_loop: usize) -> Self {
        Self { connections_per_loop, loads: (0..loops).map(|_| AtomicUsize::new(0)).collect() }
    }

    /// Notes how many connections a loop has.
    pub(crate) fn report_load(&self, index: usize, connections: usize) {
        if let Some(load) = self.loads.get(index) {
            load.store(connections, Ordering::Relaxed);
        }
    }

    /// Returns the loop for one more connection: the first that has fewer than `connections_per_loop`, or
    /// else the one that has the fewest. `waiting` returns how many connections wait for a loop, which has
    /// not counted them yet; a loop for which that is `usize::MAX` is the last to be chosen.
    pub(crate) fn choose(&self, waiting: impl Fn(usize) -> usize) -> usize {
        let loads = self.loads.iter().enumerate();
        let loads =
            loads.map(|(index, load)| (index, load.load(Ordering::Relaxed).saturating_add(waiting(index))));
        let first = loads.clone().find(|(_, load)| *load < self.connections_per_loop);
        first.or_else(|| loads.min_by_key(|(_, load)| *load)).map_or(0, |(index, _)| index)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_connections_share_a_loop_and_many_are_spread() {
        let placement = Placement::new(3, 10);
        let mut counts = [0; 3];
        let mut place = |connections: usize| {
            for _ in 0..connections {
                let index = placement.choose(|_| 0);
                counts[index] += 1;
                placement.report_load(index, counts[index]);
            }
            counts
        };
        assert_eq!(place(10), [10, 0, 0]);
        assert_eq!(place(15), [10, 10, 5]);
        assert_eq!(place(8), [11, 11, 11]);
    }

    #[test]
    fn connections_that_wait_for_their_loop_count() {
        let placement = Placement::new(2, 10);
        placement.report_load(0, 4);
        assert_eq!(placement.choose(|index| [5, 0][index]), 0);
        assert_eq!(placement.choose(|index| [6, 0][index]), 1);
        assert_eq!(placement.choose(|index| [20, 30][index]), 0, "the fewest once all have enough");
    }

    #[test]
    fn connections_that_end_make_room() {
        let placement = Placement::new(2, 10);
        placement.report_load(0, 10);
        placement.report_load(1, 12);
        assert_eq!(placement.choose(|_| 0), 0);
        placement.report_load(1, 9);
        assert_eq!(placement.choose(|_| 0), 1);
    }

    #[test]
    fn no_connections_per_loop_means_that_all_loops_have_the_same_load() {
        let placement = Placement::new(2, 0);
        placement.report_load(0, 1);
        assert_eq!(placement.choose(|_| 0), 1);
    }
}
