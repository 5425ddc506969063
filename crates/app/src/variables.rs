//! Variables of the environment with the prefix of the settings that are no settings: by these, one process
//! of the server tells the next one something, or a test changes what nobody else should.

use std::{env, ffi::OsString};

/// Set for a new process that is to take over from the one that runs: the number of the descriptor by which
/// the two communicate.
pub(crate) const HANDOVER: &str = "LASTCALL_TAKE_OVER";

/// Set for a process that another one supervises: the number of the descriptor by which the two communicate.
pub(crate) const SUPERVISOR: &str = "LASTCALL_SUPERVISOR";

/// Set for a process that takes over: `1` if the first of these processes was started in the foreground of a
/// terminal, else `0`.
pub(crate) const FOREGROUND: &str = "LASTCALL_FOREGROUND";

/// The number of event loops, for tests and measurements.
pub(crate) const EVENT_LOOPS: &str = "LASTCALL_EVENT_LOOPS";

/// The connections that an event loop gets before the next one is used, for tests and measurements.
pub(crate) const CONNECTIONS_PER_LOOP: &str = "LASTCALL_CONNECTIONS_PER_LOOP";

const ALL: [&str; 5] = [HANDOVER, SUPERVISOR, FOREGROUND, EVENT_LOOPS, CONNECTIONS_PER_LOOP];

/// Returns the environment without these variables, as the settings are read from it.
pub(crate) fn other_variables() -> Vec<(OsString, OsString)> {
    env::vars_os().filter(|(name, _)| ALL.iter().all(|ours| name != ours)).collect()
}
