//! The output that clients have not read yet, as a new process gets it: each byte once, however many clients
//! wait for it, within one budget for all of them.

use std::{collections::HashMap, ops::Not, sync::Arc};

use bytes::Bytes;
use lastcall_broker::{Broker, PageLimit};
use lastcall_core::{ChannelName, Epoch, Publication};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{
    outbox::{Chunk, Outbox},
    replay::{Replay, ReplayForm},
};
use crate::encoded::EncodedPublication;

/// Most bytes that go to a new process of what clients have sent in part, or have not read: so many are
/// copied in less than a tenth of a second.
pub(crate) const UNREAD_BUDGET: usize = 64 << 20;

/// The cost of an entry of a queue, beside its bytes: the entries of both processes.
const CHUNK: usize = 48;

/// The cost of a buffer, beside its bytes: an allocation, its number, and the reference to it.
const BUFFER: usize = 100;

/// Most bytes of a serialized range.
const RANGE: usize = 11;

/// The cost of a replay, beside its texts.
const REPLAY: usize = 500;

/// The cost of each publication of a replay that is still in the history: a reference to it.
const MISSED: usize = 32;

/// The cost of a publication that only replays have, beside its data.
const PUBLICATION: usize = 250;

/// In place of the number of a buffer: the next one of the replays.
const IS_REPLAY: u32 = u32::MAX;

/// Buffers with consecutive numbers: the first one, and how many there are. For a replay, [`IS_REPLAY`] and 1.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
struct BufferRange(u32, u32);

/// The output that a client has not read yet: ranges of buffers, and replays. A buffer gets its number when it is
/// first seen, so clients that are behind by the same publications have a few ranges, however many these are.
#[derive(Debug, Default, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct QueueSnapshot {
    ranges: Vec<BufferRange>,
    replays: Vec<ReplaySnapshot>,
    /// Bytes of the first buffer that are written.
    written: usize,
    /// Bytes that do not count towards `max_queue`.
    replayed: usize,
}

/// The rest of a replay, by position: the new process has the publications.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct ReplaySnapshot {
    channel: ChannelName,
    epoch: Epoch,
    /// The offset of the next publication.
    next: u64,
    /// The number of publications, one after the other.
    count: usize,
    /// True if the client had subscribed before they were published.
    #[serde(default, rename = "live", skip_serializing_if = "Not::not")]
    is_live: bool,
    form: ReplayForm,
}

/// A publication that is in no history any more: replays alone have it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PinnedPublication {
    channel: ChannelName,
    epoch: Epoch,
    #[serde(serialize_with = "serialize", deserialize_with = "deserialize")]
    publication: Arc<Publication>,
}

impl PinnedPublication {
    pub(crate) fn size(&self) -> usize {
        PUBLICATION + self.publication.size()
    }
}

fn serialize<S: Serializer>(publication: &Publication, serializer: S) -> Result<S::Ok, S::Error> {
    publication.serialize(serializer)
}

fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Arc<Publication>, D::Error> {
    Publication::deserialize(deserializer).map(Arc::new)
}

/// An error: what a client has not read is more than what is left of the budget.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("what a client has not read does not fit into a handover")]
pub(crate) struct OverBudget;

/// A publication that a client waits for is not kept any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct NotKept;

/// A contradiction in a queue from another process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum InvalidQueue {
    #[error("a client waits for {1} buffers from number {0} on, which did not come")]
    Buffers(u32, u32),
    #[error("a client waits for {replays} replays, of which {there} came")]
    Replays { replays: usize, there: usize },
    #[error("of the first bytes that wait for a client, more are written than there are")]
    Written,
}

/// The buffers and publications that clients wait for, each once, as far as the budget goes.
#[derive(Debug)]
pub(crate) struct UnreadBuffers {
    left: usize,
    /// The number of each buffer, by where it is.
    numbers: HashMap<(usize, usize), u32>,
    /// They are kept, so no other one comes to be where one of them is.
    buffers: Vec<Bytes>,
    /// The number after the last one that was asked for: clients of a channel wait for the same buffers in
    /// the same order.
    next: usize,
    /// The places of the publications in memory.
    pinned: HashMap<usize, ()>,
    publications: Vec<PinnedPublication>,
}

impl UnreadBuffers {
    pub(crate) fn new(budget: usize) -> Self {
        let (buffers, publications) = (Vec::new(), Vec::new());
        Self { left: budget, numbers: HashMap::new(), buffers, next: 0, pinned: HashMap::new(), publications }
    }

    /// Adds what a client has not read, with so many bytes of `input` that it has sent in part.
    ///
    /// # Errors
    /// When it does not fit: then nothing is added.
    pub(crate) fn add(
        &mut self,
        outbox: &Outbox,
        input: usize,
        broker: &dyn Broker,
    ) -> Result<QueueSnapshot, OverBudget> {
        let (left, buffers, publications) = (self.left, self.buffers.len(), self.publications.len());
        let added = self.try_add(outbox, input, broker);
        if added.is_err() {
            self.left = left;
            for buffer in self.buffers.drain(buffers..) {
                self.numbers.remove(&location(&buffer));
            }
            for pinned in self.publications.drain(publications..) {
                self.pinned.remove(&(Arc::as_ptr(&pinned.publication) as usize));
            }
        }
        added
    }

    /// Returns the buffers, in the order of their numbers, and the publications.
    pub(crate) fn into_parts(self) -> (Vec<Bytes>, Vec<PinnedPublication>) {
        (self.buffers, self.publications)
    }

    fn try_add(
        &mut self,
        outbox: &Outbox,
        input: usize,
        broker: &dyn Broker,
    ) -> Result<QueueSnapshot, OverBudget> {
        self.spend(input)?;
        let (written, replayed) = outbox.progress();
        let mut queue = QueueSnapshot { written, replayed, ..QueueSnapshot::default() };
        for chunk in outbox.chunks() {
            self.spend(CHUNK)?;
            let number = match chunk {
                Chunk::Shared(bytes) => self.number(bytes)?,
                Chunk::Page(bytes) => {
                    queue.replayed += bytes.len();
                    self.number(bytes)?
                }
                Chunk::Copied(bytes) => self.number(&Bytes::copy_from_slice(bytes))?,
                Chunk::Replay(replay) => match self.replay(replay, broker)? {
                    Some(replay) => {
                        queue.replays.push(replay);
                        IS_REPLAY
                    }
                    None => continue,
                },
            };
            queue.push(number);
        }
        Ok(queue)
    }

    fn number(&mut self, bytes: &Bytes) -> Result<u32, OverBudget> {
        let is_next = self.buffers.get(self.next).is_some_and(|next| location(next) == location(bytes));
        let known =
            if is_next { u32::try_from(self.next).ok() } else { self.numbers.get(&location(bytes)).copied() };
        if let Some(number) = known {
            self.next = number as usize + 1;
            return Ok(number);
        }
        self.spend(bytes.len() + BUFFER)?;
        let number = u32::try_from(self.buffers.len()).map_err(|_| OverBudget)?;
        self.numbers.insert(location(bytes), number);
        self.buffers.push(bytes.clone());
        Ok(number)
    }

    /// Adds the publications of a replay that are in no history any more. Returns what else there is of it;
    /// `None`: nothing.
    fn replay(&mut self, replay: &Replay, broker: &dyn Broker) -> Result<Option<ReplaySnapshot>, OverBudget> {
        let Replay { channel, epoch, form, .. } = replay;
        let Some(first) = replay.publications().next() else { return Ok(None) };
        let (count, is_live) = (replay.len(), !replay.is_missed());
        self.spend(REPLAY + channel.as_str().len() + form.size() + count.saturating_mul(MISSED))?;
        // The new process has the same history.
        let oldest = match broker.channel(channel) {
            Some(info) if info.top.epoch == *epoch => info.top.offset + 1 - info.kept as u64,
            _ => u64::MAX,
        };
        for publication in replay.publications().take_while(|publication| publication.offset < oldest) {
            let location = Arc::as_ptr(publication) as usize;
            if self.pinned.contains_key(&location) {
                continue;
            }
            self.spend(publication.size() + PUBLICATION)?;
            self.pinned.insert(location, ());
            let publication = Arc::clone(publication);
            self.publications.push(PinnedPublication {
                channel: channel.clone(),
                epoch: *epoch,
                publication,
            });
        }
        let (channel, form) = (channel.clone(), form.clone());
        Ok(Some(ReplaySnapshot { channel, epoch: *epoch, next: first.offset, count, is_live, form }))
    }

    fn spend(&mut self, bytes: usize) -> Result<(), OverBudget> {
        self.left = self.left.checked_sub(bytes).ok_or(OverBudget)?;
        Ok(())
    }
}

/// Returns where a buffer is, which no other one shares.
fn location(bytes: &Bytes) -> (usize, usize) {
    (bytes.as_ptr() as usize, bytes.len())
}

/// Returns about what it costs to hand this over, if no other client waits for the same bytes, and whether
/// there are replays: what they cost shows when they are added.
pub(crate) fn estimate(outbox: &Outbox, input: usize) -> (usize, bool) {
    let (mut bytes, mut has_replays) = (input, false);
    for chunk in outbox.chunks() {
        bytes += CHUNK;
        match chunk {
            Chunk::Shared(chunk) | Chunk::Page(chunk) => bytes += chunk.len() + BUFFER,
            Chunk::Copied(chunk) => bytes += chunk.len() + BUFFER,
            Chunk::Replay(replay) => {
                bytes += REPLAY + replay.form.size() + replay.len() * MISSED;
                has_replays = true;
            }
        }
    }
    (bytes, has_replays)
}

/// The output from the old process that its clients have not read.
#[derive(Debug, Default)]
pub(crate) struct ReceivedUnread {
    pub(crate) buffers: Vec<Bytes>,
    /// By channel, epoch and offset.
    publications: HashMap<(ChannelName, Epoch), HashMap<u64, Arc<Publication>>>,
}

impl ReceivedUnread {
    pub(crate) fn add_publications(&mut self, publications: Vec<PinnedPublication>) {
        for PinnedPublication { channel, epoch, publication } in publications {
            let channel = self.publications.entry((channel, epoch)).or_default();
            channel.insert(publication.offset, publication);
        }
    }

    /// Checks that everything is there that a queue refers to.
    ///
    /// # Errors
    /// When it is not.
    pub(crate) fn check(&self, queue: &QueueSnapshot) -> Result<(), InvalidQueue> {
        let mut replays = 0;
        let mut first = None;
        for range in &queue.ranges {
            let len = if range.is_replay() {
                replays += 1;
                0
            } else {
                let buffers = self.of(*range).ok_or(InvalidQueue::Buffers(range.0, range.1))?;
                buffers.first().map_or(0, Bytes::len)
            };
            first.get_or_insert(len);
        }
        if replays != queue.replays.len() {
            return Err(InvalidQueue::Replays { replays, there: queue.replays.len() });
        }
        if queue.written > 0 && queue.written >= first.unwrap_or(0) {
            return Err(InvalidQueue::Written);
        }
        Ok(())
    }

    /// Returns the queue, and whether it is complete: publications may be gone that this process does not
    /// keep as long as the old one. Then the queue ends there.
    pub(crate) async fn restore(&self, queue: QueueSnapshot, history: &mut Histories<'_>) -> (Outbox, bool) {
        // It was checked that they are there.
        let buffers = |range| self.of(range).unwrap_or_default();
        let len = |range: &BufferRange| if range.is_replay() { 1 } else { buffers(*range).len() };
        let mut chunks = Vec::with_capacity(queue.ranges.iter().map(len).sum());
        let (written, replayed) = (queue.written, queue.replayed);
        let mut replays = queue.replays.into_iter();
        for range in queue.ranges {
            if !range.is_replay() {
                chunks.extend(buffers(range).iter().cloned().map(Chunk::Shared));
                continue;
            }
            let Some(replay) = replays.next() else { break };
            match self.replay(replay, history).await {
                Ok(replay) => chunks.push(Chunk::Replay(Box::new(replay))),
                Err(NotKept) => return (Outbox::restore(chunks, written, replayed), false),
            }
        }
        (Outbox::restore(chunks, written, replayed), true)
    }

    /// Returns the buffers of a range; `None`: one of them did not come.
    fn of(&self, range: BufferRange) -> Option<&[Bytes]> {
        let BufferRange(first, count) = range;
        self.buffers.get(first as usize..(first as usize).checked_add(count as usize)?)
    }

    async fn replay(&self, replay: ReplaySnapshot, history: &mut Histories<'_>) -> Result<Replay, NotKept> {
        let ReplaySnapshot { channel, epoch, next, count, is_live, form } = replay;
        let pinned = self.publications.get(&(channel.clone(), epoch));
        let kept = history.of(&channel, epoch).await;
        let end = u64::try_from(count).ok().and_then(|count| next.checked_add(count)).ok_or(NotKept)?;
        let mut missed = Vec::with_capacity(count.min(kept.len() + pinned.map_or(0, HashMap::len)));
        for offset in next..end {
            let first = kept.first().map_or(u64::MAX, |publication| publication.offset);
            let index = offset.checked_sub(first).and_then(|index| usize::try_from(index).ok());
            let publication = match index.and_then(|index| kept.get(index)) {
                Some(publication) => publication,
                None => pinned.and_then(|pinned| pinned.get(&offset)).ok_or(NotKept)?,
            };
            missed.push(Arc::clone(publication));
        }
        if is_live {
            let encoded = |publication| Arc::new(EncodedPublication::new(epoch, publication));
            let publications = missed.into_iter().map(encoded).collect();
            return Ok(Replay::live(channel, epoch, publications, form));
        }
        Ok(Replay::new(channel, epoch, missed, form))
    }
}

/// The histories of channels, each asked for once.
#[derive(Debug)]
pub(crate) struct Histories<'a> {
    broker: &'a dyn Broker,
    known: HashMap<ChannelName, (Epoch, Vec<Arc<Publication>>)>,
}

impl<'a> Histories<'a> {
    pub(crate) fn new(broker: &'a dyn Broker) -> Self {
        Self { broker, known: HashMap::new() }
    }

    /// Returns the publications of this epoch that are kept, in their order.
    async fn of(&mut self, channel: &ChannelName, epoch: Epoch) -> &[Arc<Publication>] {
        if !self.known.contains_key(channel) {
            let page = self
                .broker
                .history(channel, None, PageLimit { publications: usize::MAX, bytes: usize::MAX })
                .await;
            // Without an answer, its publications are not there.
            let page = page.map(|page| (page.top.epoch, page.publications)).unwrap_or_default();
            self.known.insert(channel.clone(), page);
        }
        match self.known.get(channel) {
            Some((known, publications)) if *known == epoch => publications,
            _ => &[],
        }
    }
}

impl QueueSnapshot {
    pub(crate) fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    pub(crate) fn size(&self) -> usize {
        let replays = self.replays.iter().map(|replay| REPLAY + replay.form.size());
        self.ranges.len() * RANGE + replays.sum::<usize>()
    }

    /// Adds a number at the end.
    fn push(&mut self, number: u32) {
        if let Some(last) = self.ranges.last_mut()
            && !last.is_replay()
            && last.0.checked_add(last.1) == Some(number)
        {
            last.1 += 1;
        } else {
            self.ranges.push(BufferRange(number, 1));
        }
    }
}

impl BufferRange {
    fn is_replay(self) -> bool {
        self.0 == IS_REPLAY
    }
}

#[cfg(test)]
mod tests;
