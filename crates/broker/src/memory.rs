//! The broker that keeps everything in this process.

mod export;
mod import;
mod journal;

use std::{
    collections::{BinaryHeap, HashMap},
    future::ready,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

pub use export::MemoryExport;
use lastcall_core::{ChannelName, Epoch, Position, Publication};

use crate::{
    Attach, Broker, BrokerFuture, ChannelInfo, Config, Delivery, HistoryPage, IDEMPOTENCY_TTL,
    IdempotencyKey, Published, Since, Usage,
    age_queue::AgeQueue,
    channel::Channel,
    idempotency::IdempotencyCache,
    retention_rules::{RetentionRules, ttl_ms},
};
use journal::Journals;

/// Most publications or channels that are dropped before the lock is released, so that other calls need not wait for long.
const EXPIRED_AT_ONCE: usize = 1000;

/// Most publications or channels that are dropped for their age by one call of `publish`, so that its time is bounded.
/// [`MemoryBroker::expire`] drops the rest.
const EXPIRED_WITH_PUBLICATION: usize = 8;

/// Keeps all channels in memory. What is kept is lost with the process.
///
/// There is one lock for all channels: everything that is published by the API comes from one thread, and the mailboxes
/// that it is delivered to have one lock, too.
#[derive(Debug)]
pub struct MemoryBroker {
    delivery: Box<dyn Delivery>,
    max_bytes: usize,
    rules: RetentionRules,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    channels: HashMap<ChannelName, Box<Channel>>,
    /// One for each rule: within one, what is older expires earlier.
    queues: Vec<AgeQueue>,
    /// What all publications, and the channels without subscribers, cost.
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
        let queues = (0..rules.len()).map(|_| AgeQueue::default()).collect();
        let channels = HashMap::new();
        let (idempotency, journals) = (IdempotencyCache::default(), Journals::default());
        let state = State { channels, queues, bytes: 0, idempotency, journals };
        Self { delivery, max_bytes, rules, state: Mutex::new(state) }
    }

    /// Drops what is too old, and returns how long it takes until something else may be; `None`: nothing is kept.
    ///
    /// To be called when that time is over: otherwise, what is too old is not recovered any more, but costs memory until
    /// something is published.
    pub fn expire(&self) -> Option<Duration> {
        let now = now_ms();
        // The lock is released now and then: many channels may expire at once.
        while self.drop_expired(&mut self.lock(), now, EXPIRED_AT_ONCE) {}
        let mut state = self.lock();
        state.idempotency.expire(now);
        let queued = state.queues.iter().zip(self.rules.ttls_ms());
        let expiries = queued.filter_map(|(queue, ttl)| Some(queue.first()?.saturating_add(ttl)));
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
        let mut new = None;
        let channel = match self.find_or_keep(&mut state, name, now) {
            Some(channel) => channel,
            None => new.insert(self.new_channel(name, now)),
        };
        let size = self.rules.retention(channel.rule).size;
        channel.used_ms = now;
        let (mut added, mut dropped) = (0, 0);
        let mut numbered = Vec::with_capacity(publications.len());
        for publication in publications {
            let publication = channel.number(publication);
            if size > 0 {
                added += channel.keep(Arc::clone(&publication));
            }
            numbered.push(publication);
        }
        while channel.kept().len() > size {
            dropped += channel.drop_oldest().unwrap_or_default();
        }
        if !channel.receivers.is_empty() && !numbered.is_empty() {
            self.delivery.deliver(name, channel.top().epoch, &numbered, channel.receivers);
        }
        let published = Published { position: channel.top(), subscribers: channel.subscribers as usize };
        let unqueued =
            channel.oldest_ms().filter(|_| size > 0 && !std::mem::replace(&mut channel.queued, true));
        let rule = channel.rule.index();
        if let Some(oldest) = unqueued {
            state.queues[rule].push(oldest, name.clone());
        }
        state.bytes = state.bytes + added - dropped;
        if let Some(key) = key {
            state.idempotency.insert(now, name, key, published);
        }
        self.drop_expired(&mut state, now, EXPIRED_WITH_PUBLICATION);
        self.drop_oldest(&mut state);
        published
    }

    fn subscribe_at(&self, now: i64, name: &ChannelName, since: Since, receiver: usize, attach: Attach) {
        let mut state = self.lock();
        let state = &mut *state;
        self.drop_expired_of(state, name, now);
        let channel = match state.channels.get_mut(name) {
            Some(channel) => {
                if channel.is_idle() {
                    state.bytes -= Channel::idle_cost(name.as_str());
                }
                channel
            }
            None => {
                state.channels.entry(name.clone()).or_insert_with(|| Box::new(self.new_channel(name, now)))
            }
        };
        channel.subscribers += 1;
        channel.receivers.insert(receiver);
        attach(channel.subscribed(since));
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
            channels.remove(name);
            return;
        }
        channel.used_ms = now;
        *bytes += Channel::idle_cost(name.as_str());
        if !channel.queued {
            channel.queued = true;
            queues[channel.rule.index()].push(now, name.clone());
        }
        self.drop_oldest(&mut state);
    }

    fn history_at(&self, now: i64, name: &ChannelName, since: Option<Position>, limit: usize) -> HistoryPage {
        let mut state = self.lock();
        self.drop_expired_of(&mut state, name, now);
        let mut new = None;
        let channel = match self.find_or_keep(&mut state, name, now) {
            Some(channel) => channel,
            None => new.insert(self.new_channel(name, now)),
        };
        let page = channel.page(since, limit);
        self.drop_oldest(&mut state);
        page
    }

    fn channels_at(&self, now: i64, after: Option<&ChannelName>, limit: usize) -> Vec<ChannelInfo> {
        let mut state = self.lock();
        // The last of the first ones is on top: with many channels, most are compared with that one alone.
        let mut first = BinaryHeap::new();
        for (name, channel) in &state.channels {
            let is_gone = channel.is_idle()
                && channel.used_ms.saturating_add(ttl_ms(self.rules.retention(channel.rule))) <= now;
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

    /// Returns a channel that may have no subscribers. Adds it, unless it keeps nothing: then there is nothing to
    /// remember, and `None` is returned.
    fn find_or_keep<'a>(
        &self,
        state: &'a mut State,
        name: &ChannelName,
        now: i64,
    ) -> Option<&'a mut Channel> {
        let State { channels, bytes, queues, .. } = state;
        if !channels.contains_key(name) {
            let mut channel = self.new_channel(name, now);
            if self.rules.retention(channel.rule).size == 0 {
                return None;
            }
            *bytes += Channel::idle_cost(name.as_str());
            channel.queued = true;
            queues[channel.rule.index()].push(now, name.clone());
            channels.insert(name.clone(), Box::new(channel));
        }
        channels.get_mut(name).map(|channel| &mut **channel)
    }

    fn new_channel(&self, name: &ChannelName, now: i64) -> Channel {
        Channel::new(Epoch(rand::random()), self.rules.find(name), now)
    }

    /// Drops what is too old of one channel, so that what is returned of it does not depend on when [`Self::expire`] was
    /// called.
    fn drop_expired_of(&self, state: &mut State, name: &ChannelName, now: i64) {
        state.journals.note(name);
        let Some(channel) = state.channels.get_mut(name) else { return };
        let ttl = ttl_ms(self.rules.retention(channel.rule));
        while channel.kept().next().is_some_and(|oldest| oldest.time_ms.saturating_add(ttl) <= now) {
            state.bytes -= channel.drop_oldest().unwrap_or_default();
        }
        if channel.oldest_ms().is_some_and(|used| used.saturating_add(ttl) <= now) {
            // As if it had been removed. It stays in the queue, where a second entry would stay for good.
            channel.renew(Epoch(rand::random()));
        }
    }

    /// Drops at most `limit` publications, or channels without subscribers, that are too old. Returns true if there may be
    /// more.
    fn drop_expired(&self, state: &mut State, now: i64, limit: usize) -> bool {
        let mut steps = 0..limit;
        for (rule, ttl) in self.rules.ttls_ms().enumerate() {
            while state.queues[rule].first().is_some_and(|since| since.saturating_add(ttl) <= now) {
                if steps.next().is_none() {
                    return true;
                }
                state.drop_one(rule, |oldest| oldest.saturating_add(ttl) <= now);
            }
        }
        false
    }

    /// Drops the oldest of all until what is left costs at most `max_bytes`.
    fn drop_oldest(&self, state: &mut State) {
        while state.bytes > self.max_bytes {
            let firsts = state.queues.iter().enumerate();
            let firsts = firsts.filter_map(|(rule, queue)| Some((queue.first()?, rule)));
            let Some((since, rule)) = firsts.min() else { break };
            // A channel whose oldest publication is younger than the queue says only gets its right place.
            state.drop_one(rule, |oldest| oldest <= since);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing that holds the lock panics half-way through a change.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Takes the first channel off the queue of a rule, drops what is oldest of it if it `may_go` by its time, and puts
    /// the rest back.
    fn drop_one(&mut self, rule: usize, may_go: impl Fn(i64) -> bool) {
        let Some(name) = self.queues[rule].pop() else { return };
        let Some(channel) = self.channels.get_mut(&name) else { return };
        channel.queued = false;
        if channel.oldest_ms().is_some_and(may_go) {
            match channel.drop_oldest() {
                Some(cost) => self.bytes -= cost,
                None => {
                    self.bytes -= Channel::idle_cost(name.as_str());
                    self.channels.remove(&name);
                    self.journals.note(&name);
                    return;
                }
            }
        }
        if let Some(oldest) = channel.oldest_ms() {
            channel.queued = true;
            self.queues[rule].push(oldest, name);
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
        Box::pin(ready(Ok(self.publish_at(now_ms(), channel, publications, key))))
    }

    fn subscribe(&self, channel: &ChannelName, since: Since, receiver: usize, attach: Attach) {
        self.subscribe_at(now_ms(), channel, since, receiver, attach);
    }

    fn unsubscribe(&self, channel: &ChannelName, receiver: usize, is_last: bool) {
        self.unsubscribe_at(now_ms(), channel, receiver, is_last);
    }

    fn history(
        &self,
        channel: &ChannelName,
        since: Option<Position>,
        limit: usize,
    ) -> BrokerFuture<HistoryPage> {
        Box::pin(ready(Ok(self.history_at(now_ms(), channel, since, limit))))
    }

    fn channel(&self, name: &ChannelName) -> Option<ChannelInfo> {
        let mut state = self.lock();
        self.drop_expired_of(&mut state, name, now_ms());
        state.channels.get(name).map(|channel| info(name, channel))
    }

    fn channels(&self, after: Option<&ChannelName>, limit: usize) -> Vec<ChannelInfo> {
        self.channels_at(now_ms(), after, limit)
    }

    fn usage(&self) -> Usage {
        let state = self.lock();
        Usage { channels: state.channels.len(), history_bytes: state.bytes }
    }
}

fn info(name: &ChannelName, channel: &Channel) -> ChannelInfo {
    ChannelInfo {
        name: name.clone(),
        subscribers: channel.subscribers as usize,
        top: channel.top(),
        kept: channel.kept().len(),
    }
}

/// Returns the time in milliseconds since 1970; 0 if the clock is set to a time before that.
fn now_ms() -> i64 {
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since_1970.as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests;
