//! All that the old process hands over beside its clients: a state, and descriptors in a fixed order. Both
//! sides use this file.

use anyhow::Context;
use bytes::Bytes;
use lastcall_endpoints::RefusalCounts;
use lastcall_handover::FileIdentity;
use lastcall_websockets::{ManagerSnapshot, NotifierState};
use serde::{Deserialize, Serialize};

/// The state of the server. Other builds read it too: unknown fields are ignored, missing ones have their
/// defaults. A field that another build must not ignore needs another handover protocol.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct ServerState {
    pub(super) manager: ManagerSnapshot,
    pub(super) notifier: NotifierState,
    /// The control socket, if its descriptor is sent.
    pub(super) control: Option<FileIdentity>,
    /// True if systemd has passed the listening socket, to the first of these processes.
    pub(super) activated: bool,
    /// Upgrades before this one.
    pub(super) upgrades_done: u64,
    pub(super) upgrades_failed: u64,
    /// Requests that were refused.
    pub(super) refused: RefusalCounts,
    /// Since when no client is served, in microseconds since the machine was started. A moment, as this is a
    /// time between two processes. 0 in builds before protocol 4.
    pub(super) frozen_at_boot_us: u64,
    /// The same in microseconds since 1970, in those builds.
    #[serde(skip_serializing)]
    pub(super) frozen_at_us: u64,
    /// The bytes that were read of the next request of each idle HTTP connection, in the order of their
    /// descriptors.
    pub(super) idle_read: Vec<Bytes>,
}

/// The descriptors that are sent with a [`ServerState`].
#[derive(Debug, PartialEq)]
pub(super) struct ServerDescriptors<T> {
    /// The listening socket.
    pub(super) listener: T,
    /// The listening socket for operators: there if the state has its file.
    pub(super) control: Option<T>,
    /// The idle HTTP connections.
    pub(super) idle: Vec<T>,
}

impl<T> ServerDescriptors<T> {
    /// Returns them in the order in which they are sent: the listening socket, the control socket, the idle
    /// connections.
    pub(super) fn into_order(self) -> Vec<T> {
        let Self { listener, control, idle } = self;
        [listener].into_iter().chain(control).chain(idle).collect()
    }

    /// Returns what each descriptor is that came with a state.
    ///
    /// # Errors
    /// When there are fewer than the state says.
    pub(super) fn from_order(state: &ServerState, descriptors: Vec<T>) -> anyhow::Result<Self> {
        let mut descriptors = descriptors.into_iter();
        let listener = descriptors.next().context("the listening socket is missing")?;
        let control = match &state.control {
            Some(_) => Some(descriptors.next().context("the control socket is missing")?),
            None => None,
        };
        Ok(Self { listener, control, idle: descriptors.collect() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_come_back_as_what_they_were() {
        for control in [None, Some(2)] {
            let state =
                ServerState { control: control.map(|_| FileIdentity::default()), ..ServerState::default() };
            for idle in [vec![], vec![3], vec![3, 4]] {
                let sent = || ServerDescriptors { listener: 1, control, idle: idle.clone() };
                let received = ServerDescriptors::from_order(&state, sent().into_order()).unwrap();
                assert_eq!(received, sent());
            }
        }
    }

    #[test]
    fn descriptors_that_are_missing_are_an_error() {
        let state = ServerState { control: Some(FileIdentity::default()), ..ServerState::default() };
        let error = |descriptors| ServerDescriptors::from_order(&state, descriptors).unwrap_err().to_string();
        assert_eq!(error(vec![]), "the listening socket is missing");
        assert_eq!(error(vec![1]), "the control socket is missing");
    }
}
