//! A command to an event loop.

use std::{
    sync::{Arc, Mutex},
    time::Instant,
};

use tokio::sync::mpsc;

use crate::{
    codec::CloseReason,
    connection::unread::UnreadBuffers,
    connection_key::ConnectionKey,
    frozen_loop::{FrozenLoop, NumberedChannel},
    notice::ShutdownNotice,
    stats::Stats,
};

/// Channels of a loop, and the number to go on with; `None`: there are no more.
type ChannelPage = (Vec<NumberedChannel>, Option<u32>);

/// A connection with unread bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct UnreadConnection {
    pub(crate) size: usize,
    pub(crate) has_replays: bool,
    pub(crate) event_loop: usize,
    pub(crate) key: ConnectionKey,
}

/// Connections whose unread bytes are to fit into what is left of a budget.
#[derive(Debug)]
pub(crate) struct UnreadRound {
    pub(crate) connections: Vec<UnreadConnection>,
    pub(crate) buffers: Arc<Mutex<UnreadBuffers>>,
}

/// Something that a loop does with all of its connections. Commands and frames are handled in the order in
/// which they were sent.
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
    /// Ask the broker again what has become of the texts of a connection.
    ContinueTexts(ConnectionKey),
    /// Return the loop's statistics.
    CollectStats(mpsc::Sender<Stats>),
    /// Return the channels from this number on, for a new process.
    ListChannels(u32, mpsc::Sender<ChannelPage>),
    /// List no more channels: there is no new process.
    EndListing,
    /// Return the connections that have unread bytes, with about how many, and whether there are replays
    /// among them.
    MeasureUnread(mpsc::Sender<Vec<UnreadConnection>>),
    /// Close these connections, as far as their unread bytes do not fit.
    FitUnread(Arc<UnreadRound>, mpsc::Sender<()>),
    /// Subscribe to channels ahead, for connections that are about to come from another process.
    AddChannels(Arc<Vec<NumberedChannel>>, mpsc::Sender<()>),
    /// All connections have come.
    EndRestoring(mpsc::Sender<()>),
    /// Stop reading from clients and acknowledge. Once all loops have, no client's text is published any
    /// more.
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
