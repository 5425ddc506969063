//! The channels that may have changed while they are exported.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use lastcall_core::ChannelName;

/// The channels that may have changed since an export has taken them last.
#[derive(Debug, Default)]
pub(super) struct Journal(Mutex<HashSet<ChannelName>>);

/// The journals of all exports that are under way.
#[derive(Debug, Default)]
pub(super) struct Journals(Vec<Weak<Journal>>);

impl Journal {
    /// Returns the channels so far, and begins anew.
    pub(super) fn take(&self) -> HashSet<ChannelName> {
        std::mem::take(&mut *self.lock())
    }

    fn lock(&self) -> MutexGuard<'_, HashSet<ChannelName>> {
        // Nothing that holds it panics half-way through a change.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Journals {
    /// Begins a journal. It ends when it is dropped.
    pub(super) fn begin(&mut self) -> Arc<Journal> {
        let journal = Arc::default();
        self.0.push(Arc::downgrade(&journal));
        journal
    }

    /// Notes that a channel may have changed.
    pub(super) fn note(&mut self, channel: &ChannelName) {
        self.0.retain(|journal| match journal.upgrade() {
            Some(journal) => {
                let mut channels = journal.lock();
                if !channels.contains(channel) {
                    channels.insert(channel.clone());
                }
                true
            }
            None => false,
        });
    }
}
