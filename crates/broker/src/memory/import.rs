//! Taking over what another memory broker kept.

use std::collections::HashMap;

use lastcall_core::{ChannelName, Epoch, Position};

use super::{EXPIRED_AT_ONCE, MemoryBroker, State, now_ms};
use crate::{
    age_queue::AgeQueue,
    channel::Channel,
    idempotency::IdempotencyCache,
    snapshot::{BrokerPart, ChannelPart, PartError},
};

impl MemoryBroker {
    /// Takes over a part of what another broker kept. To be called before this one is used; then
    /// [`Self::finish_import`] is. Until that, `max_bytes` is not kept to: what goes first is known only when all is
    /// there.
    ///
    /// # Errors
    /// When the part contradicts itself. Nothing of it is taken over then.
    pub fn import(&self, part: BrokerPart) -> Result<(), PartError> {
        part.check()?;
        let BrokerPart { gone, channels, keys } = part;
        let mut state = self.lock();
        for name in gone {
            state.forget(&name);
        }
        for channel in channels {
            self.import_channel(&mut state, channel);
        }
        for key in keys {
            let published = key.published();
            // Known already, from an earlier pass, unless it was used again after its time: then this is the later use.
            if state.idempotency.get(&key.channel, &key.key) != Some(published) {
                state.idempotency.remove(&key.channel, &key.key);
                state.idempotency.insert(key.time_ms, &key.channel, key.key, published);
            }
        }
        Ok(())
    }

    /// Ends the import, once the subscribers of the other broker are subscribed here: this broker's own rules apply
    /// from now on.
    pub fn finish_import(&self) {
        self.finish_import_at(now_ms());
    }

    /// Begins a new epoch in every channel, and keeps nothing: another process may have published after this one had handed
    /// everything over, so that the next offsets may have been given already.
    pub fn begin_anew(&self) {
        let mut state = self.lock();
        let names: Vec<_> = state.channels.keys().cloned().collect();
        for name in names {
            state.forget(&name);
        }
    }

    /// Drops everything. Whatever is subscribed is not any more.
    pub fn clear(&self) {
        let mut state = self.lock();
        let State { channels, queues, bytes, idempotency, .. } = &mut *state;
        *channels = HashMap::new();
        for queue in queues {
            *queue = AgeQueue::default();
        }
        *bytes = 0;
        *idempotency = IdempotencyCache::default();
    }

    pub(super) fn finish_import_at(&self, now: i64) {
        let mut state = self.lock();
        let State { channels, queues, bytes, .. } = &mut *state;
        channels.retain(|name, channel| {
            if !std::mem::take(&mut channel.held) || !channel.is_idle() {
                return true;
            }
            // As if its last subscriber had left now.
            if self.rules.retention(channel.rule).size == 0 {
                return false;
            }
            channel.used_ms = now;
            *bytes += Channel::idle_cost(name.as_str());
            if !std::mem::replace(&mut channel.queued, true) {
                queues[channel.rule.index()].push(now, name.clone());
            }
            true
        });
        if state.bytes > self.max_bytes {
            // What the other broker has dropped since it was exported goes before anything that it kept: first what was
            // too old there, then what was the oldest.
            while self.drop_expired(&mut state, now, EXPIRED_AT_ONCE) {}
            self.drop_oldest(&mut state);
        }
    }

    fn import_channel(&self, state: &mut State, part: ChannelPart) {
        let ChannelPart { name, epoch, top, used_ms, in_use, publications } = part;
        let rule = self.rules.find(&name);
        let size = self.rules.retention(rule).size;
        if size == 0 && !in_use {
            // There is nothing to remember.
            state.forget(&name);
            return;
        }
        let State { channels, queues, bytes, .. } = state;
        let idle_cost = Channel::idle_cost(name.as_str());
        let channel = channels.entry(name.clone()).or_insert_with(|| {
            *bytes += idle_cost;
            Box::new(Channel::new(epoch, rule, used_ms))
        });
        let was_idle = channel.is_idle();
        let before = channel.top();
        let first = publications.first().map_or(top + 1, |first| first.offset);
        if (before.epoch, before.offset + 1) != (epoch, first) {
            while let Some(cost) = channel.drop_oldest() {
                *bytes -= cost;
            }
            channel.move_to(Position { epoch, offset: first - 1 });
        }
        if size == 0 {
            channel.move_to(Position { epoch, offset: top });
        } else {
            for publication in publications {
                *bytes += channel.append(publication);
            }
        }
        while channel.kept().len() > size {
            *bytes -= channel.drop_oldest().unwrap_or_default();
        }
        (channel.used_ms, channel.held) = (used_ms, in_use);
        match (was_idle, channel.is_idle()) {
            (true, false) => *bytes -= idle_cost,
            (false, true) => *bytes += idle_cost,
            _ => {}
        }
        if let Some(oldest) = channel.oldest_ms()
            && !std::mem::replace(&mut channel.queued, true)
        {
            queues[rule.index()].push(oldest, name);
        }
    }
}

impl State {
    /// Removes a channel, unless it has subscribers: then it begins a new numbering.
    fn forget(&mut self, name: &ChannelName) {
        let Some(channel) = self.channels.get_mut(name) else { return };
        self.journals.note(name);
        while let Some(cost) = channel.drop_oldest() {
            self.bytes -= cost;
        }
        let was_idle = channel.is_idle();
        channel.held = false;
        if channel.is_idle() && !channel.queued {
            self.channels.remove(name);
            if was_idle {
                self.bytes -= Channel::idle_cost(name.as_str());
            }
            return;
        }
        if channel.is_idle() && !was_idle {
            self.bytes += Channel::idle_cost(name.as_str());
        }
        // It stays in the queue, where a second entry would stay for good.
        channel.renew(Epoch(rand::random()));
    }
}
