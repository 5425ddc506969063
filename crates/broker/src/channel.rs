//! The position and the history of one channel, for whichever broker has it.

use std::{collections::VecDeque, sync::Arc};

use lastcall_core::{Epoch, PinnedBytes, Position, Publication};

use crate::{HistoryPage, PageLimit, Since, Subscribed};

/// The cost of a kept publication beside its data.
const PUBLICATION_OVERHEAD: usize = 100;

/// Most publications that a subscriber takes while no other call can be served.
pub(crate) const MISSED_AT_ONCE: usize = 1024;

/// Publications in order, each with the time from when on it is kept.
#[derive(Debug, Default)]
struct Kept(VecDeque<(i64, Arc<Publication>)>);

/// The position of a channel, and the publications that are kept of it. Times are in milliseconds since the
/// machine was started, and below 0 before that.
#[derive(Debug)]
pub(crate) struct Channel {
    epoch: Epoch,
    /// The offset of the last publication.
    top: u64,
    /// The last publications, up to `top`. `None` costs one pointer: most channels may have no history.
    kept: Option<Box<Kept>>,
}

impl Channel {
    /// Returns a channel without publications.
    pub(crate) fn new(epoch: Epoch) -> Self {
        Self { epoch, top: 0, kept: None }
    }

    /// Returns the position of the last publication.
    pub(crate) fn top(&self) -> Position {
        Position { epoch: self.epoch, offset: self.top }
    }

    /// Returns the kept publications.
    pub(crate) fn kept(&self) -> impl ExactSizeIterator<Item = &Arc<Publication>> + Clone {
        self.kept_since().map(|(_, publication)| publication)
    }

    /// Returns the kept publications, each with its time.
    pub(crate) fn kept_since(&self) -> impl ExactSizeIterator<Item = &(i64, Arc<Publication>)> + Clone {
        self.kept.as_deref().map(|kept| kept.0.iter()).unwrap_or_default()
    }

    /// Returns the kept publications after a position, each with its time; all, if it is not one of this
    /// epoch.
    pub(crate) fn kept_after(
        &self,
        position: Option<Position>,
    ) -> impl ExactSizeIterator<Item = &(i64, Arc<Publication>)> {
        let kept = self.kept_since();
        let position = position.filter(|position| position.epoch == self.epoch);
        let after = position.map_or(u64::MAX, |position| self.top.saturating_sub(position.offset));
        let skip = kept.len().saturating_sub(usize::try_from(after).unwrap_or(usize::MAX));
        kept.skip(skip)
    }

    /// Gives a publication its offset. It is not kept before [`Channel::retain`].
    pub(crate) fn assign_offset(&mut self, mut publication: Publication) -> Arc<Publication> {
        self.top += 1;
        publication.offset = self.top;
        Arc::new(publication)
    }

    /// Keeps a publication, which has been numbered last. Returns what it costs, which counts as `pinned`
    /// once it is dropped and something else still holds it.
    pub(crate) fn retain(
        &mut self,
        since_ms: i64,
        publication: Arc<Publication>,
        pinned: &PinnedBytes,
    ) -> usize {
        let cost = cost(&publication);
        publication.keep_in_history(pinned, cost);
        let kept = &mut self.kept.get_or_insert_default().0;
        // None is older than the one before it: a thread may have read the clock before another one.
        let since_ms = kept.back().map_or(since_ms, |(before, _)| since_ms.max(*before));
        kept.push_back((since_ms, publication));
        cost
    }

    /// Adds a publication of another process, which has the next offset. Returns what it costs.
    pub(crate) fn restore(
        &mut self,
        since_ms: i64,
        publication: Arc<Publication>,
        pinned: &PinnedBytes,
    ) -> usize {
        self.top = publication.offset;
        self.retain(since_ms, publication, pinned)
    }

    /// Drops the oldest publication. Returns what it cost; `None`: none is kept.
    pub(crate) fn drop_oldest(&mut self) -> Option<usize> {
        let Kept(kept) = self.kept.as_deref_mut()?;
        let first = kept.pop_front();
        if kept.is_empty() {
            self.kept = None;
        } else if kept.len() < kept.capacity() / 4 {
            // Many of them may have expired.
            kept.shrink_to(kept.len() * 2);
        }
        first.map(|(_, publication)| {
            publication.drop_from_history();
            cost(&publication)
        })
    }

    /// Begins a new epoch. Nothing may be kept.
    pub(crate) fn begin_epoch(&mut self, epoch: Epoch) {
        self.reset_to(Position { epoch, offset: 0 });
    }

    /// Continues from this position. Nothing is kept.
    pub(crate) fn reset_to(&mut self, top: Position) {
        debug_assert!(self.kept.is_none());
        (self.epoch, self.top) = (top.epoch, top.offset);
    }

    /// Takes some of what a subscriber has missed after what it was `taken` before, if that is much. Returns
    /// true if it was, and more may be left.
    pub(crate) fn take_slice(&self, since: Since, taken: &mut Vec<Arc<Publication>>) -> bool {
        let Some(missed) = self.missed(since, taken.len()) else { return false };
        if missed.len() <= MISSED_AT_ONCE {
            return false;
        }
        taken.extend(missed.take(MISSED_AT_ONCE).cloned());
        true
    }

    /// Returns the beginning of a subscription, of which this was `taken` before.
    pub(crate) fn begin_subscription(&self, since: Since, mut taken: Vec<Arc<Publication>>) -> Subscribed {
        let top = self.top();
        match self.missed(since, taken.len()) {
            Some(missed) => {
                taken.extend(missed.cloned());
                Subscribed { top, recovered: true, missed: taken }
            }
            None => Subscribed { top, recovered: false, missed: Vec::new() },
        }
    }

    /// Returns what a subscriber has missed beside the first ones, of which there were so many; `None`: not
    /// all of it is kept.
    fn missed(&self, since: Since, taken: usize) -> Option<impl ExactSizeIterator<Item = &Arc<Publication>>> {
        match since {
            Since::Position(Position { epoch, offset }) => {
                self.after(Position { epoch, offset: offset.checked_add(taken as u64)? })
            }
            Since::Now | Since::Invalid => None,
        }
    }

    /// Returns a part of the history.
    pub(crate) fn history_page(&self, since: Option<Position>, limit: PageLimit) -> HistoryPage {
        let top = self.top();
        let page = match since {
            Some(position) => self.after(position).map(|missed| page_of(missed, limit)),
            None => Some(page_of(self.kept(), limit)),
        };
        let recovered = page.is_some();
        let (publications, more) = page.unwrap_or_default();
        HistoryPage { top, recovered, publications, more }
    }

    /// Returns all publications after a position; `None` if one of them is not kept, or the position is none
    /// of this channel.
    fn after(&self, position: Position) -> Option<impl ExactSizeIterator<Item = &Arc<Publication>>> {
        if position.epoch != self.epoch {
            return None;
        }
        let missed = usize::try_from(self.top.checked_sub(position.offset)?).ok()?;
        let kept = self.kept();
        let skip = kept.len().checked_sub(missed)?;
        Some(kept.skip(skip))
    }
}

/// Returns the first of these publications, and whether there are others.
fn page_of<'a>(
    mut publications: impl ExactSizeIterator<Item = &'a Arc<Publication>>,
    limit: PageLimit,
) -> (Vec<Arc<Publication>>, bool) {
    let (mut page, mut bytes) = (Vec::new(), 0);
    while page.len() < limit.publications
        && (page.is_empty() || bytes < limit.bytes)
        && let Some(publication) = publications.next()
    {
        bytes += publication.size();
        page.push(Arc::clone(publication));
    }
    (page, publications.len() > 0)
}

/// Returns what a kept publication costs.
fn cost(publication: &Publication) -> usize {
    publication.size() + PUBLICATION_OVERHEAD
}
