//! A command to an event loop.

use std::time::Instant;

use tokio::sync::mpsc;

use crate::{codec::CloseReason, notice::ShutdownNotice, snapshot::frozen_loop::FrozenLoop, stats::Stats};

/// What a loop does with all of its connections. Commands and frames are handled in the order in which they were sent.
#[derive(Debug, Clone)]
pub(crate) enum LoopCommand {
    /// Send the shutdown notice to all clients, also to clients that connect later.
    BeginDrain(ShutdownNotice),
    /// Send the notice again to all clients that have no output waiting.
    Remind,
    /// Close all connections, also connections that are registered later.
    CloseAll(CloseReason),
    /// Close the open connections one by one until this moment, each after one more notice.
    CloseGradually(CloseReason, Instant),
    /// Return the loop's statistics.
    CollectStats(mpsc::Sender<Stats>),
    /// Acknowledge.
    Acknowledge(mpsc::Sender<()>),
    /// Stop reading from clients and acknowledge. Once all loops have, no client's text is published any more.
    PauseReads(mpsc::Sender<()>),
    /// Read from clients again.
    ResumeReads,
    /// Hand over all connections and wait until they come back.
    Freeze(mpsc::Sender<FrozenLoop>),
    /// Drop all connections and end.
    Stop,
    /// Panic, as a bug does.
    #[cfg(test)]
    Panic,
}
