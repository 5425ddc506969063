//! Copies of what a memory broker keeps, in parts, while it is used.

use std::{collections::HashMap, sync::Arc};

use lastcall_core::{ChannelName, Position, clock};

use super::{MemoryBroker, State, journal::Journal, memory_channel::MemoryChannel};
use crate::snapshot::{BrokerPart, ChannelPart, age};

/// The size that a part may have, so that the broker is not locked for long.
#[derive(Debug, Clone, Copy)]
pub(super) struct PartLimits {
    /// Bytes of publications, beside the last of these.
    pub(super) bytes: usize,
    /// Channels or keys.
    pub(super) items: usize,
}

const LIMITS: PartLimits = PartLimits { bytes: 256 << 10, items: 256 };

/// Copies what a memory broker keeps, in several passes. The broker is used meanwhile: it is locked for one
/// part at a time, and once at the beginning of the first pass, for the names of all channels. It notes which
/// channels change as long as this lives.
#[derive(Debug)]
pub struct MemoryExport {
    broker: Arc<MemoryBroker>,
    limits: PartLimits,
    journal: Arc<Journal>,
    /// True if there was a pass.
    is_begun: bool,
    /// The content of the parts so far, by channel.
    exported: HashMap<ChannelName, Exported>,
    /// Channels that are to be exported.
    waiting: Vec<ChannelName>,
    /// Channels that were exported and are there no longer.
    gone: Vec<ChannelName>,
    /// The number of keys that were exported, with those that were removed before.
    keys: u64,
}

/// The part of a channel that was exported.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Exported {
    top: Position,
    /// The offset of the first publication that it kept, or of the next one.
    first: u64,
    /// `None`: it had subscribers.
    unused_since_ms: Option<i64>,
}

impl Exported {
    fn of(channel: &MemoryChannel) -> Self {
        let top = channel.log.top();
        let first = top.offset + 1 - channel.log.kept().len() as u64;
        Self { top, first, unused_since_ms: channel.is_idle().then_some(channel.last_used_ms) }
    }
}

impl MemoryExport {
    /// Begins an export. Nothing is copied yet.
    pub fn new(broker: Arc<MemoryBroker>) -> Self {
        Self::with_limits(broker, LIMITS)
    }

    pub(super) fn with_limits(broker: Arc<MemoryBroker>, limits: PartLimits) -> Self {
        let journal = broker.lock().journals.begin();
        let (exported, waiting, gone) = (HashMap::new(), Vec::new(), Vec::new());
        Self { broker, limits, journal, is_begun: false, exported, waiting, gone, keys: 0 }
    }

    /// Returns what has changed since the pass before; at first, everything. What changes during a pass may
    /// not be in it: the last one begins when nothing is published and no client subscribes any more.
    pub fn pass(&mut self) -> impl Iterator<Item = BrokerPart> {
        self.pass_at(clock::since_boot_ms)
    }

    /// The same by another clock.
    pub(super) fn pass_at(&mut self, now: impl Fn() -> i64) -> impl Iterator<Item = BrokerPart> {
        self.find_changes();
        std::iter::from_fn(move || self.next_part(now()))
    }

    /// Finds the channels that were added, changed or removed since they were exported.
    fn find_changes(&mut self) {
        let Self { broker, journal, is_begun, exported, waiting, gone, .. } = self;
        let state = broker.lock();
        let changed = journal.take();
        if !std::mem::replace(is_begun, true) {
            waiting.extend(state.channels.keys().cloned());
        }
        for name in changed {
            match state.channels.get(&name) {
                Some(channel) if exported.get(&name) != Some(&Exported::of(channel)) => waiting.push(name),
                Some(_) => {}
                None => gone.extend(exported.remove(&name).map(|_| name)),
            }
        }
        drop(state);
        // Not while the broker is locked.
        exported.reserve(waiting.len());
    }

    fn next_part(&mut self, now: i64) -> Option<BrokerPart> {
        let gone = self.gone.split_off(self.gone.len().saturating_sub(self.limits.items));
        let mut part = BrokerPart { gone, ..BrokerPart::default() };
        if part.is_empty() {
            let broker = Arc::clone(&self.broker);
            let state = broker.lock();
            part.channels = self.next_channels(&state, now);
            if part.channels.is_empty() {
                part.keys = state.idempotency.after(self.keys, now).take(self.limits.items).collect();
                self.keys = state.idempotency.removed().max(self.keys) + part.keys.len() as u64;
            }
        }
        (!part.is_empty()).then_some(part)
    }

    /// Copies some channels, or some publications of a large one.
    fn next_channels(&mut self, state: &State, now: i64) -> Vec<ChannelPart> {
        let PartLimits { bytes: most_bytes, items } = self.limits;
        let mut bytes = 0;
        let mut channels = Vec::new();
        while let Some(name) = self.waiting.last()
            && channels.len() < items
            && bytes < most_bytes
        {
            let Some(channel) = state.channels.get(name) else {
                // It is gone. If it had been exported, the next pass says so.
                self.waiting.pop();
                continue;
            };
            let before = self.exported.get(name).map(|exported| exported.top);
            let mut exported = Exported::of(channel);
            let (mut publications, mut ages_ms) = (Vec::new(), Vec::new());
            let mut waiting = channel.log.kept_after(before);
            while bytes < most_bytes
                && let Some((since_ms, publication)) = waiting.next()
            {
                bytes += publication.size();
                publications.push(Arc::clone(publication));
                ages_ms.push(age(now, *since_ms));
            }
            let is_complete = waiting.len() == 0;
            if let Some(last) = publications.last()
                && !is_complete
            {
                exported.top.offset = last.offset;
            }
            channels.push(ChannelPart {
                name: name.clone(),
                epoch: exported.top.epoch,
                top: exported.top.offset,
                kept: is_complete.then(|| channel.log.kept().len() as u64),
                used_age_ms: Some(age(now, channel.last_used_ms)),
                used_ms: None,
                in_use: exported.unused_since_ms.is_none(),
                publications,
                ages_ms,
            });
            self.exported.insert(name.clone(), exported);
            if is_complete {
                self.waiting.pop();
            }
        }
        channels
    }
}
