//! How many clients there are, and whether more may come: one value, changed atomically, watched by
//! whoever waits for it.

use std::sync::Arc;

use tokio::sync::watch;

/// Whether new connections are let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum AdmissionState {
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
pub struct ConnectionCounts {
    /// Whether new connections are let in.
    pub state: AdmissionState,
    /// Clients inside, counted from before their handshake is answered.
    pub connections: usize,
    /// Clients that left by themselves since the start.
    pub by_client: u64,
    /// Clients that the server closed and that answered, since the start.
    pub by_server: u64,
    /// Clients whose TCP socket had to be cut, since the start.
    pub forced: u64,
}

/// How a client went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Disconnect {
    /// It said goodbye, or its TCP connection ended.
    ByClient,
    /// The server closed it and it answered.
    ByServer,
    /// The server closed it and it did not answer in time.
    Forced,
}

/// Why a connection is not let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AdmitError {
    /// The server is shutting down.
    #[error("the server is shutting down")]
    Draining,
    /// There are `max_connections` clients.
    #[error("the server is full")]
    Full,
}

/// The admission: counts who comes and who goes.
#[derive(Debug)]
pub(crate) struct Admission {
    counts: watch::Sender<ConnectionCounts>,
    max_connections: usize,
}

impl Admission {
    pub(crate) fn new(max_connections: usize) -> Arc<Self> {
        Arc::new(Self { counts: watch::Sender::default(), max_connections })
    }

    /// A place for one connection. The check and the count are one step, so nobody slips in between the
    /// state's closing and the count that the drain waits for.
    pub(crate) fn admit(self: &Arc<Self>) -> Result<Permit, AdmitError> {
        let mut error = None;
        self.counts.send_if_modified(|now| {
            if now.state != AdmissionState::Open {
                error = Some(AdmitError::Draining);
            } else if now.connections >= self.max_connections {
                error = Some(AdmitError::Full);
            } else {
                now.connections += 1;
            }
            error.is_none()
        });
        match error {
            Some(error) => Err(error),
            None => Ok(Permit { admission: Arc::clone(self), disconnect: None }),
        }
    }

    /// Goes on from where another process was: its totals, and a place for each of its clients.
    pub(crate) fn restore(self: &Arc<Self>, totals: ConnectionCounts, clients: usize) -> Vec<Permit> {
        self.counts.send_modify(|now| {
            now.by_client = now.by_client.saturating_add(totals.by_client);
            now.by_server = now.by_server.saturating_add(totals.by_server);
            now.forced = now.forced.saturating_add(totals.forced);
            now.connections += clients;
        });
        (0..clients).map(|_| Permit { admission: Arc::clone(self), disconnect: None }).collect()
    }

    /// Shuts the state further; it never opens again. Who is inside at that moment.
    pub(crate) fn shut(&self, state: AdmissionState) -> ConnectionCounts {
        let mut at_that_moment = ConnectionCounts::default();
        self.counts.send_if_modified(|now| {
            let changes = state > now.state;
            now.state = now.state.max(state);
            at_that_moment = *now;
            changes
        });
        at_that_moment
    }

    pub(crate) fn counts(&self) -> ConnectionCounts {
        *self.counts.borrow()
    }

    pub(crate) fn watch(&self) -> watch::Receiver<ConnectionCounts> {
        self.counts.subscribe()
    }
}

/// A place inside, held from before the handshake is answered. Dropping it gives it back.
#[derive(Debug)]
pub struct Permit {
    admission: Arc<Admission>,
    disconnect: Option<Disconnect>,
}

impl Permit {
    /// Gives the place back, and says how its client went.
    pub(crate) fn release(mut self, disconnect: Disconnect) {
        self.disconnect = Some(disconnect);
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.admission.counts.send_modify(|now| {
            now.connections -= 1;
            match self.disconnect {
                Some(Disconnect::ByClient) => now.by_client += 1,
                Some(Disconnect::ByServer) => now.by_server += 1,
                Some(Disconnect::Forced) => now.forced += 1,
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
        let admission = Admission::new(2);
        let first = admission.admit().unwrap();
        let second = admission.admit().unwrap();
        assert_eq!(admission.admit().unwrap_err(), AdmitError::Full);
        first.release(Disconnect::Forced);
        drop(second);
        let counts = admission.counts();
        assert_eq!((counts.connections, counts.by_client, counts.forced), (0, 0, 1));
    }

    #[test]
    fn nobody_comes_in_once_the_gate_is_shut_and_it_stays_shut() {
        let admission = Admission::new(2);
        admission.shut(AdmissionState::Closing);
        admission.shut(AdmissionState::Draining);
        assert_eq!(admission.counts().state, AdmissionState::Closing);
        assert_eq!(admission.admit().unwrap_err(), AdmitError::Draining);
    }
}
