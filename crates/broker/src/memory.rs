//! The broker that keeps everything in this process.

mod age_queue;
mod dropping;
mod export;
mod import;
mod journal;
mod memory_channel;
mod retention_rules;

use std::{
    collections::{BinaryHeap, HashMap},
    future::ready,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

pub use export::MemoryExport;
use lastcall_core::{ChannelName, Epoch, PinnedBytes, Position, Publication, clock};

use crate::{
    Attach, Broker, BrokerFuture, ChannelInfo, Config, Delivery, HistoryPage, IDEMPOTENCY_TTL,
    IdempotencyKey, PageLimit, Published, Since, Usage, idempotency::IdempotencyCache,
};
use age_queue::AgeQueues;
use dropping::{requeue, unqueue};
use journal::Journals;
use memory_channel::MemoryChannel;
use retention_rules::{RetentionRules, ttl_ms};

/// Most publications or channels that are dropped before the lock is released, so that other calls need not
/// wait for long.
const MAX_EXPIRY_BATCH: usize = 1000;

/// Most publications that a subscriber takes in slices. Else it might never end, if they were published as
/// fast.
const MAX_IN_SLICES: usize = 4_000_000;

/// Most publications or channels that are dropped for their age by one call of `publish`, so that its time is
/// bounded. [`MemoryBroker::expire`] drops the rest.
const MAX_EXPIRY_PER_PUBLISH: usize = 8;

/// Keeps all channels in memory. What is kept is lost with the process.
///
/// What is old is told by [`clock::since_boot_ms`]. There is one lock for all channels: everything that is
/// published by the API comes from one thread, and the mailboxes that it is delivered to have one lock, too.
#[derive(Debug)]
pub struct MemoryBroker {
    delivery: Box<dyn Delivery>,
    max_bytes: usize,
    rules: RetentionRules,
    /// The cost of publications that only replays still hold.
    pinned: PinnedBytes,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    channels: HashMap<ChannelName, Box<MemoryChannel>>,
    queues: AgeQueues,
    /// The cost of all publications, and of the channels without subscribers.
    bytes: usize,
    idempotency: IdempotencyCache,
    /// Every change of a channel is noted there: whatever looks at a channel may change it.
    journals: Journals,
}

impl MemoryBroker {
    /// Returns a broker without channels.
    pub fn new(config: Config, delivery: Box<dyn Delivery>) -> Self {
        let Config { retention, namespaces, max_bytes } = config;
        let rules = RetentionRules::new(retention, namespaces);
        let (channels, queues) = (HashMap::new(), AgeQueues::new(rules.len()));
        let (idempotency, journals) = (IdempotencyCache::default(), Journals::default());
        let state = State { channels, queues, bytes: 0, idempotency, journals };
        Self { delivery, max_bytes, rules, pinned: PinnedBytes::default(), state: Mutex::new(state) }
    }

    /// Begins a new epoch in a channel, keeps nothing of it, and tells its receivers.
    #[cfg(feature = "faults")]
    pub(crate) fn begin_epoch(&self, name: &ChannelName) {
        self.begin_epoch_of(&mut self.lock(), name);
    }

    /// Drops what is too old, and returns how long it takes until something else may be; `None`: nothing is
    /// kept.
    ///
    /// To be called when that time is over: otherwise, what is too old is not recovered any more, but costs
    /// memory until something is published.
    pub fn expire(&self) -> Option<Duration> {
        let now = clock::since_boot_ms();
        // The lock is released now and then: many channels may expire at once.
        while self.drop_expired(&mut self.lock(), now, MAX_EXPIRY_BATCH) {}
        let mut state = self.lock();
        state.idempotency.expire(now);
        state.release_excess_capacity();
        let queues = self.rules.ttls_ms().enumerate();
        let expiries = queues.filter_map(|(rule, ttl)| Some(state.queues.oldest(rule)?.saturating_add(ttl)));
        let keys =
            state.idempotency.first().map(|time| time.saturating_add(IDEMPOTENCY_TTL.as_millis() as i64));
        let next = expiries.chain(keys).min()?;
        Some(Duration::from_millis(u64::try_from(next.saturating_sub(now)).unwrap_or_default()))
    }

    fn publish_at(
        &self,
        now: i64,
        name: &ChannelName,
        publications: Vec<Publication>,
        key: Option<IdempotencyKey>,
    ) -> Published {
        let mut state = self.lock();
        if let Some(key) = &key {
            state.idempotency.expire(now);
            if let Some(published) = state.idempotency.get(name, key) {
                return published;
            }
        }
        self.drop_expired_of(&mut state, name, now);
        let State { channels, queues, bytes, journals, .. } = &mut *state;
        journals.note(name);
        let mut unkept;
        let channel = match channels.get_mut(name) {
            Some(channel) => channel,
            None => {
                let new = Box::new(self.new_channel(name, now));
                if self.rules.retention(new.rule).size == 0 {
                    // There is nothing to remember.
                    unkept = new;
                    &mut unkept
                } else {
                    *bytes += MemoryChannel::idle_cost(name.as_str());
                    channels.entry(name.clone()).or_insert(new)
                }
            }
        };
        let size = self.rules.retention(channel.rule).size;
        channel.last_used_ms = channel.last_used_ms.max(now);
        let mut numbered = Vec::with_capacity(publications.len());
        for publication in publications {
            let publication = channel.log.assign_offset(publication);
            if size > 0 {
                *bytes += channel.log.retain(now, Arc::clone(&publication), &self.pinned);
            }
            numbered.push(publication);
        }
        while channel.log.kept().len() > size {
            *bytes = bytes.saturating_sub(channel.log.drop_oldest().unwrap_or_default());
        }
        if !channel.receivers.is_empty() && !numbered.is_empty() {
            self.delivery.deliver(name, channel.log.top().epoch, &numbered, channel.receivers);
        }
        let published = Published { position: channel.log.top(), subscribers: channel.subscribers as usize };
        if size > 0 {
            requeue(queues, name, channel);
        }
        if let Some(key) = key {
            state.idempotency.insert(now, name, key, published);
        }
        self.drop_expired(&mut state, now, MAX_EXPIRY_PER_PUBLISH);
        self.make_room(&mut state);
        published
    }

    fn subscribe_at(&self, now: i64, name: &ChannelName, since: Since, receiver: usize, attach: Attach) {
        let (mut state, mut taken) = (self.lock(), Vec::new());
        self.drop_expired_of(&mut state, name, now);
        // A subscriber may have missed a million of them: the lock is released now and then. The rest, and
        // what was published meanwhile, is taken in one step with the beginning.
        while taken.len() < MAX_IN_SLICES
            && state.channels.get(name).is_some_and(|channel| channel.log.take_slice(since, &mut taken))
        {
            drop(state);
            thread::yield_now();
            state = self.lock();
        }
        let channel = self.add_subscriptions(&mut state, now, name, receiver, 1);
        attach(Ok(channel.log.begin_subscription(since, taken)));
    }

    /// Adds subscriptions to a channel, and returns it.
    fn add_subscriptions<'a>(
        &self,
        state: &'a mut State,
        now: i64,
        name: &ChannelName,
        receiver: usize,
        subscriptions: u32,
    ) -> &'a mut MemoryChannel {
        let State { channels, queues, bytes, journals, .. } = state;
        journals.note(name);
        if channels.get(name).is_some_and(|channel| channel.is_idle()) {
            *bytes = bytes.saturating_sub(MemoryChannel::idle_cost(name.as_str()));
        }
        let channel = channels.entry(name.clone());
        let channel = channel.or_insert_with(|| Box::new(self.new_channel(name, now)));
        channel.subscribers = channel.subscribers.saturating_add(subscriptions);
        channel.receivers.insert(receiver);
        requeue(queues, name, channel);
        channel
    }

    fn unsubscribe_at(&self, now: i64, name: &ChannelName, receiver: usize, is_last: bool) {
        let mut state = self.lock();
        let State { channels, bytes, queues, journals, .. } = &mut *state;
        let Some(channel) = channels.get_mut(name) else { return };
        journals.note(name);
        channel.subscribers = channel.subscribers.saturating_sub(1);
        if is_last {
            channel.receivers.remove(receiver);
        }
        if !channel.is_idle() {
            return;
        }
        if self.rules.retention(channel.rule).size == 0 {
            unqueue(queues, name, channel);
            channels.remove(name);
            return;
        }
        channel.last_used_ms = channel.last_used_ms.max(now);
        *bytes += MemoryChannel::idle_cost(name.as_str());
        requeue(queues, name, channel);
        self.make_room(&mut state);
    }

    fn history_at(
        &self,
        now: i64,
        name: &ChannelName,
        since: Option<Position>,
        limit: PageLimit,
    ) -> HistoryPage {
        let mut state = self.lock();
        self.drop_expired_of(&mut state, name, now);
        match state.channels.get(name) {
            Some(channel) => channel.log.history_page(since, limit),
            // To look at a channel does not make it.
            None => self.new_channel(name, now).log.history_page(since, limit),
        }
    }

    fn channels_at(&self, now: i64, after: Option<&ChannelName>, limit: usize) -> Vec<ChannelInfo> {
        let mut state = self.lock();
        // The last of the first ones is on top: with many channels, most are compared with that one alone.
        let mut first = BinaryHeap::new();
        for (name, channel) in &state.channels {
            let is_gone = channel.is_idle()
                && channel.last_used_ms.saturating_add(ttl_ms(self.rules.retention(channel.rule))) <= now;
            if is_gone || after.is_some_and(|after| name <= after) {
                continue;
            }
            if first.len() < limit {
                first.push(name);
            } else if let Some(mut last) = first.peek_mut()
                && name < *last
            {
                *last = name;
            }
        }
        let names: Vec<_> = first.into_sorted_vec().into_iter().cloned().collect();
        names
            .iter()
            .filter_map(|name| {
                self.drop_expired_of(&mut state, name, now);
                state.channels.get(name).map(|channel| info(name, channel))
            })
            .collect()
    }

    fn new_channel(&self, name: &ChannelName, now: i64) -> MemoryChannel {
        MemoryChannel::new(Epoch(rand::random()), self.rules.find(name), now)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing that holds the lock panics half-way through a change.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Gives memory back that many channels have needed which are gone.
    fn release_excess_capacity(&mut self) {
        if self.channels.len() < self.channels.capacity() / 4 {
            self.channels.shrink_to(self.channels.len() * 2);
        }
    }
}

impl Broker for MemoryBroker {
    fn publish(
        &self,
        channel: &ChannelName,
        publications: Vec<Publication>,
        key: Option<IdempotencyKey>,
    ) -> BrokerFuture<Published> {
        Box::pin(ready(Ok(self.publish_at(clock::since_boot_ms(), channel, publications, key))))
    }

    fn subscribe(&self, channel: &ChannelName, since: Since, receiver: usize, attach: Attach) {
        self.subscribe_at(clock::since_boot_ms(), channel, since, receiver, attach);
    }

    fn resume(&self, channel: &ChannelName, receiver: usize, subscriptions: usize) {
        let subscriptions = u32::try_from(subscriptions).unwrap_or(u32::MAX);
        if subscriptions > 0 {
            let now = clock::since_boot_ms();
            let mut state = self.lock();
            self.drop_expired_of(&mut state, channel, now);
            self.add_subscriptions(&mut state, now, channel, receiver, subscriptions);
        }
    }

    fn unsubscribe(&self, channel: &ChannelName, receiver: usize, is_last: bool) {
        self.unsubscribe_at(clock::since_boot_ms(), channel, receiver, is_last);
    }

    fn history(
        &self,
        channel: &ChannelName,
        since: Option<Position>,
        limit: PageLimit,
    ) -> BrokerFuture<HistoryPage> {
        Box::pin(ready(Ok(self.history_at(clock::since_boot_ms(), channel, since, limit))))
    }

    fn channel(&self, name: &ChannelName) -> Option<ChannelInfo> {
        let mut state = self.lock();
        self.drop_expired_of(&mut state, name, clock::since_boot_ms());
        state.channels.get(name).map(|channel| info(name, channel))
    }

    fn channels(&self, after: Option<&ChannelName>, limit: usize) -> Vec<ChannelInfo> {
        self.channels_at(clock::since_boot_ms(), after, limit)
    }

    fn pins_too_much(&self) -> bool {
        self.pinned.get() > self.max_bytes
    }

    fn usage(&self) -> Usage {
        let state = self.lock();
        Usage { channels: state.channels.len(), history_bytes: state.bytes, pinned_bytes: self.pinned.get() }
    }
}

fn info(name: &ChannelName, channel: &MemoryChannel) -> ChannelInfo {
    ChannelInfo {
        name: name.clone(),
        subscribers: channel.subscribers as usize,
        top: channel.log.top(),
        kept: channel.log.kept().len(),
    }
}

#[cfg(test)]
mod tests;
