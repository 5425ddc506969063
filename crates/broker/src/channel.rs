//! One channel of the memory broker: its position, the publications that are kept, and its receivers.

use std::{collections::VecDeque, sync::Arc};

use lastcall_core::{Epoch, Position, Publication};

use crate::{HistoryPage, ReceiverSet, Since, Subscribed, retention_rules::RuleId};

/// What a kept publication costs beside its data.
const PUBLICATION_OVERHEAD: usize = 100;

/// What a channel without subscribers costs beside its name and its publications.
const CHANNEL_OVERHEAD: usize = 200;

/// Publications in order.
#[derive(Debug, Default)]
struct Kept(VecDeque<Arc<Publication>>);

/// A channel.
#[derive(Debug)]
pub(crate) struct Channel {
    epoch: Epoch,
    /// The offset of the last publication.
    top: u64,
    /// The last publications, up to `top`. `None` costs one pointer: most channels may have no history.
    kept: Option<Box<Kept>>,
    pub(crate) rule: RuleId,
    pub(crate) receivers: ReceiverSet,
    pub(crate) subscribers: u32,
    /// Whether it had subscribers in another process, who are about to come: until then, it is not dropped.
    pub(crate) held: bool,
    /// Whether the channel is in the queue of its rule.
    pub(crate) queued: bool,
    /// When the last subscriber left, or the last publication came, in milliseconds since 1970.
    pub(crate) used_ms: i64,
}

impl Channel {
    pub(crate) fn new(epoch: Epoch, rule: RuleId, now_ms: i64) -> Self {
        let receivers = ReceiverSet::default();
        Self {
            epoch,
            top: 0,
            kept: None,
            rule,
            receivers,
            subscribers: 0,
            held: false,
            queued: false,
            used_ms: now_ms,
        }
    }

    /// Returns true if the channel has no subscribers, and none that are about to come from another process.
    pub(crate) fn is_idle(&self) -> bool {
        self.subscribers == 0 && !self.held
    }

    /// Returns the position of the last publication.
    pub(crate) fn top(&self) -> Position {
        Position { epoch: self.epoch, offset: self.top }
    }

    /// Returns the kept publications.
    pub(crate) fn kept(&self) -> impl ExactSizeIterator<Item = &Arc<Publication>> + Clone {
        self.kept.as_deref().map(|kept| kept.0.iter()).unwrap_or_default()
    }

    /// Returns the kept publications after a position; all, if it is not one of this epoch.
    pub(crate) fn kept_after(
        &self,
        position: Option<Position>,
    ) -> impl ExactSizeIterator<Item = &Arc<Publication>> {
        let kept = self.kept();
        let position = position.filter(|position| position.epoch == self.epoch);
        let after = position.map_or(u64::MAX, |position| self.top.saturating_sub(position.offset));
        let skip = kept.len().saturating_sub(usize::try_from(after).unwrap_or(usize::MAX));
        kept.skip(skip)
    }

    /// Gives a publication its offset. It is not kept before [`Channel::keep`].
    pub(crate) fn number(&mut self, mut publication: Publication) -> Arc<Publication> {
        self.top += 1;
        publication.offset = self.top;
        Arc::new(publication)
    }

    /// Keeps a publication, which has been numbered last. Returns what it costs.
    pub(crate) fn keep(&mut self, publication: Arc<Publication>) -> usize {
        let cost = cost(&publication);
        self.kept.get_or_insert_default().0.push_back(publication);
        cost
    }

    /// Adds a publication of another process, which has the next offset. Returns what it costs.
    pub(crate) fn append(&mut self, publication: Arc<Publication>) -> usize {
        self.top = publication.offset;
        self.keep(publication)
    }

    /// Drops the oldest publication. Returns what it cost; `None`: none is kept.
    pub(crate) fn drop_oldest(&mut self) -> Option<usize> {
        let Kept(kept) = self.kept.as_deref_mut()?;
        let publication = kept.pop_front();
        if kept.is_empty() {
            self.kept = None;
        }
        publication.map(|publication| cost(&publication))
    }

    /// Begins a new epoch. Nothing may be kept.
    pub(crate) fn renew(&mut self, epoch: Epoch) {
        self.move_to(Position { epoch, offset: 0 });
    }

    /// Continues from this position. Nothing is kept.
    pub(crate) fn move_to(&mut self, top: Position) {
        debug_assert!(self.kept.is_none());
        (self.epoch, self.top) = (top.epoch, top.offset);
    }

    /// Returns what a channel with a name of this length costs by being kept without subscribers.
    pub(crate) fn idle_cost(name: &str) -> usize {
        CHANNEL_OVERHEAD + name.len()
    }

    /// Returns the time of what is oldest and may go: a publication, or the channel itself. `None`: nothing may go.
    pub(crate) fn oldest_ms(&self) -> Option<i64> {
        match self.kept().next() {
            Some(publication) => Some(publication.time_ms),
            None => self.is_idle().then_some(self.used_ms),
        }
    }

    /// Returns the beginning of a subscription.
    pub(crate) fn subscribed(&self, since: Since) -> Subscribed {
        let top = self.top();
        let missed = match since {
            Since::Position(position) => self.after(position),
            Since::Now | Since::Invalid => None,
        };
        match missed {
            Some(missed) => Subscribed { top, recovered: true, missed: missed.cloned().collect() },
            None => Subscribed { top, recovered: false, missed: Vec::new() },
        }
    }

    /// Returns a part of the history.
    pub(crate) fn page(&self, since: Option<Position>, limit: usize) -> HistoryPage {
        let top = self.top();
        let publications = match since {
            Some(position) => self.after(position).map(|missed| missed.take(limit).cloned().collect()),
            None => Some(self.kept().take(limit).cloned().collect()),
        };
        match publications {
            Some(publications) => HistoryPage { top, recovered: true, publications },
            None => HistoryPage { top, recovered: false, publications: Vec::new() },
        }
    }

    /// Returns all publications after a position; `None` if one of them is not kept, or the position is none of this
    /// channel.
    fn after(&self, position: Position) -> Option<impl Iterator<Item = &Arc<Publication>>> {
        if position.epoch != self.epoch {
            return None;
        }
        let missed = usize::try_from(self.top.checked_sub(position.offset)?).ok()?;
        let kept = self.kept();
        let skip = kept.len().checked_sub(missed)?;
        Some(kept.skip(skip))
    }
}

/// Returns what a kept publication costs.
fn cost(publication: &Publication) -> usize {
    publication.size() + PUBLICATION_OVERHEAD
}
