//! Which clients have which channels.

use std::{
    ops::Range,
    thread::sleep,
    time::{Duration, Instant},
};

use url::Url;

use crate::fleet::Fleet;

/// Clients that connect at once: enough for the server to notice a burst, and to free what it needed for it.
const AT_ONCE: usize = 2048;

/// How long messages to new clients are read before the wait begins.
const READ_TIME: Duration = Duration::from_millis(500);

/// How long the server has to release the memory of a burst of connections.
const RELEASE_TIME: Duration = Duration::from_millis(1500);

/// Clients and their channels.
#[derive(Debug, Clone, Copy)]
pub(super) struct Layout {
    pub(super) clients: usize,
    pub(super) channels_per_client: usize,
    /// Whether all clients have the same channels. Otherwise each channel has one client.
    pub(super) shared: bool,
}

impl Layout {
    /// Returns how many channels there are.
    pub(super) fn channels(self) -> usize {
        if self.shared { self.channels_per_client } else { self.clients * self.channels_per_client }
    }

    /// Connects all clients, and waits until the server has settled.
    pub(super) fn connect(self, url: &Url) -> anyhow::Result<Fleet> {
        self.connect_part(url, 0..self.clients)
    }

    /// Connects some of the clients, and waits until the server has settled.
    pub(super) fn connect_part(self, url: &Url, clients: Range<usize>) -> anyhow::Result<Fleet> {
        let path = |client| self.path(url, clients.start + client);
        let mut fleet = Fleet::connect_each(url, clients.len(), AT_ONCE, false, path)?;
        fleet.receive(Instant::now() + READ_TIME, |_, _| false)?;
        sleep(RELEASE_TIME);
        Ok(fleet)
    }

    fn path(self, url: &Url, client: usize) -> String {
        let first = if self.shared { 0 } else { client * self.channels_per_client };
        let channels = first..first + self.channels_per_client;
        let query: Vec<_> = channels.map(|channel| format!("channel={}", name(channel))).collect();
        format!("{}?{}", url.path(), query.join("&"))
    }
}

/// Returns the name of a channel.
pub(super) fn name(channel: usize) -> String {
    format!("channel-{channel:06}")
}
