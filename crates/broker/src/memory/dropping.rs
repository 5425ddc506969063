//! Dropping what is too old, and what there is no room for.

use lastcall_core::{ChannelName, Epoch};

use super::{
    MemoryBroker, State,
    age_queue::{AgeQueues, Keeps, QueueKey},
    memory_channel::MemoryChannel,
    retention_rules::ttl_ms,
};

impl MemoryBroker {
    /// Drops what is too old of one channel, so that what is returned of it does not depend on when
    /// [`Self::expire`] was called.
    pub(super) fn drop_expired_of(&self, state: &mut State, name: &ChannelName, now: i64) {
        let State { channels, queues, bytes, journals, .. } = state;
        let Some(channel) = channels.get_mut(name) else { return };
        journals.note(name);
        let ttl = ttl_ms(self.rules.retention(channel.rule));
        let is_too_old = |since: i64| since.saturating_add(ttl) <= now;
        while channel.log.kept_since().next().is_some_and(|(since, _)| is_too_old(*since)) {
            *bytes = bytes.saturating_sub(channel.log.drop_oldest().unwrap_or_default());
        }
        if channel.queue_key().is_some_and(|key| is_too_old(key.since_ms)) {
            // As if it had been removed.
            channel.log.begin_epoch(Epoch(rand::random()));
        }
        requeue(queues, name, channel);
    }

    /// Drops at most `limit` publications, or channels without subscribers, that are too old. Returns true if
    /// there may be more.
    pub(super) fn drop_expired(&self, state: &mut State, now: i64, limit: usize) -> bool {
        let mut steps = 0..limit;
        for (rule, ttl) in self.rules.ttls_ms().enumerate() {
            let is_too_old = |since: i64| since.saturating_add(ttl) <= now;
            // A channel without its last publication is in the queue before.
            for keeps in Keeps::ALL.into_iter().rev() {
                while state.queues.of(rule, keeps).first().is_some_and(is_too_old) {
                    if steps.next().is_none() {
                        return true;
                    }
                    state.drop_one(rule, keeps, is_too_old);
                }
            }
        }
        false
    }

    /// Has a channel lose everything. One with subscribers begins a new epoch, of which its receivers are
    /// told.
    pub(super) fn begin_epoch_of(&self, state: &mut State, name: &ChannelName) {
        state.remove_or_renew(name);
        if let Some(channel) = state.channels.get(name) {
            self.delivery.reset(name, channel.log.top(), channel.receivers);
        }
    }

    /// Drops something until what is left costs at most `max_bytes`: first the channels that keep the least,
    /// and of those the oldest.
    pub(super) fn make_room(&self, state: &mut State) {
        while state.bytes > self.max_bytes {
            let Some((rule, QueueKey { keeps, since_ms })) = state.queues.first() else { break };
            // A channel whose oldest publication is younger than the queue says only gets its right place.
            state.drop_one(rule, keeps, |oldest| oldest <= since_ms);
        }
    }
}

impl State {
    /// Takes the first channel off a queue, drops what is oldest of it if it `may_go` by its time, and puts
    /// the rest back.
    fn drop_one(&mut self, rule: usize, keeps: Keeps, may_go: impl Fn(i64) -> bool) {
        let Some(name) = self.queues.of(rule, keeps).pop() else { return };
        let Some(channel) = self.channels.get_mut(&name) else { return };
        channel.in_age_queue = None;
        if channel.queue_key().is_some_and(|key| may_go(key.since_ms)) {
            self.journals.note(&name);
            match channel.log.drop_oldest() {
                Some(cost) => self.bytes = self.bytes.saturating_sub(cost),
                None => {
                    self.bytes = self.bytes.saturating_sub(MemoryChannel::idle_cost(name.as_str()));
                    self.channels.remove(&name);
                    return;
                }
            }
        }
        requeue(&mut self.queues, &name, channel);
    }

    /// Removes a channel, unless it has subscribers: then it begins a new numbering.
    pub(super) fn remove_or_renew(&mut self, name: &ChannelName) {
        let Some(channel) = self.channels.get_mut(name) else { return };
        self.journals.note(name);
        while let Some(cost) = channel.log.drop_oldest() {
            self.bytes = self.bytes.saturating_sub(cost);
        }
        if channel.is_idle() {
            self.bytes = self.bytes.saturating_sub(MemoryChannel::idle_cost(name.as_str()));
        }
        channel.awaits_subscribers = false;
        if channel.is_idle() {
            unqueue(&mut self.queues, name, channel);
            self.channels.remove(name);
            return;
        }
        channel.log.begin_epoch(Epoch(rand::random()));
        requeue(&mut self.queues, name, channel);
    }
}

/// Puts a channel where it belongs after a change. One that keeps the same as before, and nothing older,
/// stays where it is.
pub(super) fn requeue(queues: &mut AgeQueues, name: &ChannelName, channel: &mut MemoryChannel) {
    let key = channel.queue_key();
    let stays = match (channel.in_age_queue, key) {
        (Some(queued), Some(key)) => queued.keeps == key.keeps && queued.since_ms <= key.since_ms,
        (queued, key) => queued == key,
    };
    if stays {
        return;
    }
    unqueue(queues, name, channel);
    if let Some(QueueKey { keeps, since_ms }) = key {
        queues.of(channel.rule.index(), keeps).insert(since_ms, name.clone());
        channel.in_age_queue = key;
    }
}

/// Takes a channel off its queue.
pub(super) fn unqueue(queues: &mut AgeQueues, name: &ChannelName, channel: &mut MemoryChannel) {
    if let Some(QueueKey { keeps, since_ms }) = channel.in_age_queue.take() {
        queues.of(channel.rule.index(), keeps).remove(since_ms, name);
    }
}
