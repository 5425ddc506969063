//! How many clients there are, and whether more may come: one value, changed atomically, watched by
//! whoever waits for it.

use std::sync::Arc;

use tokio::sync::watch;

/// Whether newcomers are let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Gate {
    /// All are welcome.
    #[default]
    Open,
    /// Nobody new; those inside are served.
    Draining,
    /// Nobody new; those inside are being closed.
    Closing,
}

/// The state of the house.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Occupancy {
    /// Whether newcomers are let in.
    pub gate: Gate,
    /// Clients inside, counted from before their handshake is answered.
    pub clients: usize,
    /// Clients that left by themselves since the start.
    pub left: u64,
    /// Clients that the server closed and that answered, since the start.
    pub closed: u64,
    /// Clients whose TCP socket had to be cut, since the start.
    pub cut: u64,
}

/// How a client went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Departure {
    /// It said goodbye, or its TCP connection ended.
    Left,
    /// The server closed it and it answered.
    Closed,
    /// The server closed it and it did not answer in time.
    Cut,
}

/// Why a newcomer is not let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The server is shutting down.
    #[error("the server is shutting down")]
    Draining,
    /// There are `max_connections` clients.
    #[error("the server is full")]
    Full,
}

/// The door: counts who comes and who goes.
#[derive(Debug)]
pub(crate) struct Door {
    occupancy: watch::Sender<Occupancy>,
    max_connections: usize,
}

impl Door {
    pub(crate) fn new(max_connections: usize) -> Arc<Self> {
        Arc::new(Self { occupancy: watch::Sender::default(), max_connections })
    }

    /// A place for one newcomer. The check and the count are one step, so nobody slips in between the
    /// gate's closing and the count that the drain waits for.
    pub(crate) fn admit(self: &Arc<Self>) -> Result<Place, Refusal> {
        let mut refusal = None;
        self.occupancy.send_if_modified(|now| {
            if now.gate != Gate::Open {
                refusal = Some(Refusal::Draining);
            } else if now.clients >= self.max_connections {
                refusal = Some(Refusal::Full);
            } else {
                now.clients += 1;
            }
            refusal.is_none()
        });
        match refusal {
            Some(refusal) => Err(refusal),
            None => Ok(Place { door: Arc::clone(self), departure: None }),
        }
    }

    /// Goes on from where another process was: its totals, and a place for each of its clients.
    pub(crate) fn reopen(self: &Arc<Self>, totals: Occupancy, clients: usize) -> Vec<Place> {
        self.occupancy.send_modify(|now| {
            now.left = now.left.saturating_add(totals.left);
            now.closed = now.closed.saturating_add(totals.closed);
            now.cut = now.cut.saturating_add(totals.cut);
            now.clients += clients;
        });
        (0..clients).map(|_| Place { door: Arc::clone(self), departure: None }).collect()
    }

    /// Shuts the gate further; it never opens again. Who is inside at that moment.
    pub(crate) fn shut(&self, gate: Gate) -> Occupancy {
        let mut at_that_moment = Occupancy::default();
        self.occupancy.send_if_modified(|now| {
            let changes = gate > now.gate;
            now.gate = now.gate.max(gate);
            at_that_moment = *now;
            changes
        });
        at_that_moment
    }

    pub(crate) fn occupancy(&self) -> Occupancy {
        *self.occupancy.borrow()
    }

    pub(crate) fn watch(&self) -> watch::Receiver<Occupancy> {
        self.occupancy.subscribe()
    }
}

/// A place inside, held from before the handshake is answered. Dropping it gives it back.
#[derive(Debug)]
pub struct Place {
    door: Arc<Door>,
    departure: Option<Departure>,
}

impl Place {
    /// Gives the place back, and says how its client went.
    pub(crate) fn leave(mut self, departure: Departure) {
        self.departure = Some(departure);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.door.occupancy.send_modify(|now| {
            now.clients -= 1;
            match self.departure {
                Some(Departure::Left) => now.left += 1,
                Some(Departure::Closed) => now.closed += 1,
                Some(Departure::Cut) => now.cut += 1,
                // Its handshake came to nothing: it was never a client.
                None => {}
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_counted_and_given_back() {
        let door = Door::new(2);
        let first = door.admit().unwrap();
        let second = door.admit().unwrap();
        assert_eq!(door.admit().unwrap_err(), Refusal::Full);
        first.leave(Departure::Cut);
        drop(second);
        let occupancy = door.occupancy();
        assert_eq!((occupancy.clients, occupancy.left, occupancy.cut), (0, 0, 1));
    }

    #[test]
    fn nobody_comes_in_once_the_gate_is_shut_and_it_stays_shut() {
        let door = Door::new(2);
        door.shut(Gate::Closing);
        door.shut(Gate::Draining);
        assert_eq!(door.occupancy().gate, Gate::Closing);
        assert_eq!(door.admit().unwrap_err(), Refusal::Draining);
    }
}
