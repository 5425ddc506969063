//! Admission: which connections may come in, and how many there are.
//!
//! A connection is admitted, and counted, before its handshake is answered. It holds a [`Permit`] from then
//! on.

use std::{sync::Arc, time::Instant};

use tokio::sync::watch;

use crate::phases::Phases;

/// Numbers of connections: those that there are, and those that there were.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ConnectionCounts {
    /// Permits in use: connections, and handshakes that are being answered.
    pub connections: usize,
    /// Connections since the start that the client ended.
    pub by_client: u64,
    /// Connections since the start that the server closed and whose client answered.
    pub by_server: u64,
    /// Connections since the start whose TCP socket was closed without the client's answer.
    pub forced: u64,
}

/// The end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Disconnect {
    /// The client closed it, or its TCP connection ended.
    ByClient,
    /// The server closed it and the client answered.
    ByServer,
    /// The server closed its TCP socket: the client had not answered in time, or could not be served.
    Forced,
}

/// The reason for which a connection is not admitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AdmitError {
    /// The server is shutting down.
    #[error("the server is shutting down")]
    Draining,
    /// All permits are in use: there are `max_connections` of them.
    #[error("the server is full")]
    Full,
}

/// Admits connections and counts them.
#[derive(Debug)]
pub(crate) struct Admission {
    phases: Phases,
    max_connections: usize,
    counts: watch::Sender<ConnectionCounts>,
}

impl Admission {
    pub(crate) fn new(max_connections: usize, phases: Phases) -> Arc<Self> {
        Arc::new(Self { phases, max_connections, counts: watch::Sender::default() })
    }

    /// Admits one connection.
    ///
    /// # Errors
    /// When the phase admits none, or no permit is left.
    pub(crate) fn admit(self: &Arc<Self>) -> Result<Permit, AdmitError> {
        // The phase is held until the connection is counted: a drain that begins meanwhile counts it.
        self.phases.hold(|phase| {
            if !phase.admits_connections() {
                return Err(AdmitError::Draining);
            }
            let is_admitted = self.counts.send_if_modified(|counts| {
                let is_free = counts.connections < self.max_connections;
                counts.connections += usize::from(is_free);
                is_free
            });
            if is_admitted { Ok(self.permit()) } else { Err(AdmitError::Full) }
        })
    }

    /// Adds the totals of another process, and returns a permit for each of its `connections`. They may be
    /// more than `max_connections`.
    pub(crate) fn restore(self: &Arc<Self>, totals: ConnectionCounts, connections: usize) -> Vec<Permit> {
        self.counts.send_modify(|counts| {
            counts.by_client = counts.by_client.saturating_add(totals.by_client);
            counts.by_server = counts.by_server.saturating_add(totals.by_server);
            counts.forced = counts.forced.saturating_add(totals.forced);
            counts.connections += connections;
        });
        (0..connections).map(|_| self.permit()).collect()
    }

    /// Enters the phase `Draining`, which ends at `deadline`, and returns the counts at that moment: no
    /// connection is admitted after it.
    pub(crate) fn begin_drain(&self, deadline: Instant) -> ConnectionCounts {
        let mut counts = self.counts();
        self.phases.enter_draining(deadline, || {
            counts = self.counts();
            counts.connections
        });
        counts
    }

    pub(crate) fn counts(&self) -> ConnectionCounts {
        *self.counts.borrow()
    }

    pub(crate) fn watch(&self) -> watch::Receiver<ConnectionCounts> {
        self.counts.subscribe()
    }

    fn permit(self: &Arc<Self>) -> Permit {
        Permit(Some(Arc::clone(self)))
    }
}

/// The right to have one connection, held from before its handshake is answered. Dropping it gives it back.
/// `None` once it has been given back.
#[derive(Debug)]
pub struct Permit(Option<Arc<Admission>>);

impl Permit {
    /// Gives the permit back and counts how its connection ended.
    pub(crate) fn release(mut self, disconnect: Disconnect) {
        self.give_back(Some(disconnect));
    }

    /// `None`: the handshake failed, so there was no connection.
    fn give_back(&mut self, disconnect: Option<Disconnect>) {
        let Some(admission) = self.0.take() else { return };
        admission.counts.send_modify(|counts| {
            counts.connections = counts.connections.saturating_sub(1);
            match disconnect {
                Some(Disconnect::ByClient) => counts.by_client += 1,
                Some(Disconnect::ByServer) => counts.by_server += 1,
                Some(Disconnect::Forced) => counts.forced += 1,
                None => {}
            }
        });
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.give_back(None);
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::Barrier,
        thread,
        time::{Duration, Instant},
    };

    use lastcall_core::phase::Phase;

    use super::*;

    #[test]
    fn permits_are_counted_and_given_back() {
        let admission = Admission::new(2, Phases::default());
        let first = admission.admit().unwrap();
        let second = admission.admit().unwrap();
        assert_eq!(admission.admit().unwrap_err(), AdmitError::Full);
        first.release(Disconnect::Forced);
        drop(second);
        admission.admit().unwrap().release(Disconnect::ByClient);
        admission.admit().unwrap().release(Disconnect::ByServer);
        let expected = ConnectionCounts { connections: 0, by_client: 1, by_server: 1, forced: 1 };
        assert_eq!(admission.counts(), expected);
    }

    #[test]
    fn each_phase_admits_or_refuses() {
        for phase in Phase::ALL {
            let phases = Phases::default();
            let admission = Admission::new(1, phases.clone());
            phases.enter(phase);
            match admission.admit() {
                Ok(_) => assert!(phase <= Phase::Withdrawing, "{phase:?}"),
                Err(error) => {
                    assert!(phase >= Phase::Draining, "{phase:?}");
                    assert_eq!(error, AdmitError::Draining);
                }
            }
        }
    }

    #[test]
    fn restored_connections_may_be_more_than_the_limit() {
        let admission = Admission::new(1, Phases::default());
        let totals = ConnectionCounts { connections: 9, by_client: 5, by_server: 6, forced: u64::MAX };
        let mut permits = admission.restore(totals, 3);
        assert_eq!(admission.counts(), ConnectionCounts { connections: 3, ..totals });
        permits.truncate(1);
        assert_eq!(admission.admit().unwrap_err(), AdmitError::Full);
        drop(permits);
        assert!(admission.admit().is_ok());
    }

    #[test]
    fn the_drain_counts_every_connection_that_was_admitted_before_it_and_none_comes_after() {
        for _ in 0..50 {
            let admission = Admission::new(usize::MAX, Phases::default());
            let start = Barrier::new(4);
            let (begun, admitted) = thread::scope(|scope| {
                let admitting: Vec<_> = (0..3)
                    .map(|_| {
                        scope.spawn(|| {
                            start.wait();
                            let permits: Vec<_> = std::iter::from_fn(|| admission.admit().ok()).collect();
                            assert_eq!(admission.admit().unwrap_err(), AdmitError::Draining);
                            permits
                        })
                    })
                    .collect();
                start.wait();
                let begun = admission.begin_drain(Instant::now() + Duration::from_secs(60));
                let admitted: Vec<_> = admitting.into_iter().flat_map(|one| one.join().unwrap()).collect();
                (begun, admitted)
            });
            assert_eq!(begun.connections, admitted.len());
            let state = admission.phases.state();
            assert_eq!((state.phase, state.drain_connections), (Phase::Draining, Some(admitted.len())));
        }
    }
}
