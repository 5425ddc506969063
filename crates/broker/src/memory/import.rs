//! Taking over what another memory broker kept.

use std::{collections::HashMap, time::Duration};

use lastcall_core::{Position, clock};

use super::{
    MAX_EXPIRY_BATCH, MemoryBroker, State,
    age_queue::AgeQueues,
    dropping::{requeue, unqueue},
    memory_channel::MemoryChannel,
};
use crate::{
    idempotency::IdempotencyCache,
    snapshot::{BrokerPart, ChannelPart, ImportTime, PartError},
};

impl MemoryBroker {
    /// Takes over a part of what another broker kept, which was written so long ago. To be called before this
    /// one is used; then [`Self::finish_import`] is. Until that, `max_bytes` is not kept to: what goes first
    /// is known only when all is there.
    ///
    /// # Errors
    /// When the part contradicts itself. Nothing of it is taken over then.
    pub fn import(&self, part: BrokerPart, age: Duration) -> Result<(), PartError> {
        let part_age_ms = u64::try_from(age.as_millis()).unwrap_or(u64::MAX);
        let (now_ms, wall_ms) = (clock::since_boot_ms(), clock::since_1970_ms());
        self.import_at(ImportTime { now_ms, wall_ms, part_age_ms }, part)
    }

    pub(super) fn import_at(&self, time: ImportTime, part: BrokerPart) -> Result<(), PartError> {
        part.check()?;
        let BrokerPart { gone, channels, keys } = part;
        let mut state = self.lock();
        for name in gone {
            state.remove_or_renew(&name);
        }
        for channel in channels {
            self.import_channel(&mut state, time, channel);
        }
        for key in keys {
            let published = key.published();
            // Known already, from an earlier pass, unless it was used again after its time: then this is the
            // later use.
            if state.idempotency.get(&key.channel, &key.key) != Some(published) {
                state.idempotency.remove(&key.channel, &key.key);
                let since_ms = time.since(key.age_ms, key.time_ms);
                state.idempotency.insert(since_ms, &key.channel, key.key, published);
            }
        }
        Ok(())
    }

    /// Ends the import, once the subscribers of the other broker are subscribed here: this broker's own rules
    /// apply from now on.
    pub fn finish_import(&self) {
        self.finish_import_at(clock::since_boot_ms());
    }

    /// Begins a new epoch in every channel, keeps nothing, and tells the receivers: another process may have
    /// published after this one had handed everything over, so that the next offsets may have been given
    /// already.
    pub fn renew_all_epochs(&self) {
        let mut state = self.lock();
        let names: Vec<_> = state.channels.keys().cloned().collect();
        for name in names {
            self.begin_epoch_of(&mut state, &name);
        }
    }

    /// Drops everything. Whatever is subscribed is not any more.
    pub fn clear(&self) {
        let mut state = self.lock();
        let State { channels, queues, bytes, idempotency, .. } = &mut *state;
        (*channels, *queues) = (HashMap::new(), AgeQueues::new(self.rules.len()));
        *bytes = 0;
        *idempotency = IdempotencyCache::default();
    }

    pub(super) fn finish_import_at(&self, now: i64) {
        let mut state = self.lock();
        let State { channels, queues, bytes, .. } = &mut *state;
        channels.retain(|name, channel| {
            if !std::mem::take(&mut channel.awaits_subscribers) || !channel.is_idle() {
                return true;
            }
            // As if its last subscriber had left now.
            if self.rules.retention(channel.rule).size == 0 {
                unqueue(queues, name, channel);
                return false;
            }
            channel.last_used_ms = now;
            *bytes += MemoryChannel::idle_cost(name.as_str());
            requeue(queues, name, channel);
            true
        });
        if state.bytes > self.max_bytes {
            // What the other broker has dropped since it was exported goes before anything that it kept:
            // first what was too old there, then what was the oldest.
            while self.drop_expired(&mut state, now, MAX_EXPIRY_BATCH) {}
            self.make_room(&mut state);
        }
    }

    fn import_channel(&self, state: &mut State, time: ImportTime, part: ChannelPart) {
        let ChannelPart { name, epoch, top, kept, used_age_ms, used_ms, in_use, publications, ages_ms } =
            part;
        let used_ms = time.since(used_age_ms, used_ms);
        let rule = self.rules.find(&name);
        let size = self.rules.retention(rule).size;
        if size == 0 && !in_use {
            // There is nothing to remember.
            state.remove_or_renew(&name);
            return;
        }
        let State { channels, queues, bytes, .. } = state;
        let idle_cost = MemoryChannel::idle_cost(name.as_str());
        let channel = channels.entry(name.clone()).or_insert_with(|| {
            *bytes += idle_cost;
            Box::new(MemoryChannel::new(epoch, rule, used_ms))
        });
        let was_idle = channel.is_idle();
        let before = channel.log.top();
        let first = publications.first().map_or(top + 1, |first| first.offset);
        if (before.epoch, before.offset + 1) != (epoch, first) {
            while let Some(cost) = channel.log.drop_oldest() {
                *bytes = bytes.saturating_sub(cost);
            }
            channel.log.reset_to(Position { epoch, offset: first - 1 });
        }
        if size == 0 {
            channel.log.reset_to(Position { epoch, offset: top });
        } else {
            let mut ages_ms = ages_ms.into_iter();
            for publication in publications {
                let since_ms = time.since(ages_ms.next(), Some(publication.time_ms));
                *bytes += channel.log.restore(since_ms, publication, &self.pinned);
            }
        }
        let kept = kept.map_or(size, |kept| usize::try_from(kept).map_or(size, |kept| kept.min(size)));
        while channel.log.kept().len() > kept {
            *bytes = bytes.saturating_sub(channel.log.drop_oldest().unwrap_or_default());
        }
        (channel.last_used_ms, channel.awaits_subscribers) = (used_ms, in_use);
        match (was_idle, channel.is_idle()) {
            (true, false) => *bytes = bytes.saturating_sub(idle_cost),
            (false, true) => *bytes += idle_cost,
            _ => {}
        }
        requeue(queues, &name, channel);
    }
}
