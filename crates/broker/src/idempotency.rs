//! Requests that were answered already.

use std::{
    collections::{HashMap, VecDeque},
    str::FromStr,
    sync::Arc,
    time::Duration,
};

use lastcall_core::ChannelName;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::{
    Published,
    snapshot::{KeyPart, age},
};

/// The time for which the result of a publication with a key is known.
pub const IDEMPOTENCY_TTL: Duration = Duration::from_secs(300);

/// Most keys that are known at once. The oldest go first.
const MAX_KEYS: usize = 100_000;

/// Most bytes of a key.
const MAX_KEY: usize = 255;

/// A key that a publisher chooses for a publication, so that it can be sent again without being published
/// twice.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct IdempotencyKey(Arc<str>);

/// A text is not a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an idempotency key has 1 to {MAX_KEY} printable ASCII characters")]
pub struct InvalidIdempotencyKey;

impl FromStr for IdempotencyKey {
    type Err = InvalidIdempotencyKey;

    fn from_str(text: &str) -> Result<Self, InvalidIdempotencyKey> {
        let is_valid =
            (1..=MAX_KEY).contains(&text.len()) && text.bytes().all(|byte| matches!(byte, b' '..=b'~'));
        if is_valid { Ok(Self(text.into())) } else { Err(InvalidIdempotencyKey) }
    }
}

impl Serialize for IdempotencyKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for IdempotencyKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

/// The results of the publications with a key. Keys of different channels are different ones.
#[derive(Debug, Default)]
pub(crate) struct IdempotencyCache {
    results: HashMap<(ChannelName, IdempotencyKey), Published>,
    /// In the order of their times, in milliseconds since the machine was started.
    by_time: VecDeque<(i64, ChannelName, IdempotencyKey)>,
    /// The number of keys that were removed so far.
    removed: u64,
}

impl IdempotencyCache {
    /// Returns the result of a publication with this key, if it is still known.
    pub(crate) fn get(&self, channel: &ChannelName, key: &IdempotencyKey) -> Option<Published> {
        self.results.get(&(channel.clone(), key.clone())).copied()
    }

    /// Adds the result of a publication.
    pub(crate) fn insert(
        &mut self,
        now_ms: i64,
        channel: &ChannelName,
        key: IdempotencyKey,
        result: Published,
    ) {
        if self.by_time.len() >= MAX_KEYS {
            self.remove_first();
        }
        // In their order, whichever thread has read the clock first.
        let now_ms = self.by_time.back().map_or(now_ms, |(before, ..)| now_ms.max(*before));
        self.by_time.push_back((now_ms, channel.clone(), key.clone()));
        self.results.insert((channel.clone(), key), result);
    }

    /// Removes a key, if it is known.
    pub(crate) fn remove(&mut self, channel: &ChannelName, key: &IdempotencyKey) {
        if self.results.remove(&(channel.clone(), key.clone())).is_some() {
            // Else the key would be removed when the time of this entry is over.
            self.by_time.retain(|(_, other, other_key)| (other, other_key) != (channel, key));
        }
    }

    /// Removes the keys that are older than [`IDEMPOTENCY_TTL`].
    pub(crate) fn expire(&mut self, now_ms: i64) {
        let oldest = now_ms.saturating_sub(IDEMPOTENCY_TTL.as_millis() as i64);
        while self.by_time.front().is_some_and(|(time_ms, ..)| *time_ms <= oldest) {
            self.remove_first();
        }
        if self.by_time.len() < self.by_time.capacity() / 4 {
            let few = self.by_time.len() * 2;
            self.by_time.shrink_to(few);
            self.results.shrink_to(few);
        }
    }

    /// Returns the time of the oldest key.
    pub(crate) fn first(&self) -> Option<i64> {
        self.by_time.front().map(|(time_ms, ..)| *time_ms)
    }

    /// Returns how many keys were removed so far.
    pub(crate) fn removed(&self) -> u64 {
        self.removed
    }

    /// Returns the keys that were added after the first `count`; of these, some may be removed by now.
    pub(crate) fn after(&self, count: u64, now_ms: i64) -> impl Iterator<Item = KeyPart> {
        let skip = usize::try_from(count.saturating_sub(self.removed)).unwrap_or(usize::MAX);
        let first = skip.min(self.by_time.len());
        self.by_time.range(first..).filter_map(move |(time_ms, channel, key)| {
            let Published { position, subscribers } = self.get(channel, key)?;
            let (channel, key) = (channel.clone(), key.clone());
            Some(KeyPart {
                channel,
                key,
                age_ms: Some(age(now_ms, *time_ms)),
                time_ms: None,
                epoch: position.epoch,
                offset: position.offset,
                subscribers,
            })
        })
    }

    fn remove_first(&mut self) {
        if let Some((_, channel, key)) = self.by_time.pop_front() {
            self.removed += 1;
            self.results.remove(&(channel, key));
        }
    }
}

#[cfg(test)]
mod tests {
    use lastcall_core::Position;

    use super::*;

    fn key(text: &str) -> IdempotencyKey {
        text.parse().unwrap()
    }

    fn result(offset: u64) -> Published {
        Published { position: Position { offset, ..Position::default() }, subscribers: 0 }
    }

    #[test]
    fn a_key_is_printable_and_not_too_long() {
        for text in ["a", "0190a5b2-7f3e", "with space", &"k".repeat(255)] {
            assert!(text.parse::<IdempotencyKey>().is_ok(), "{text}");
        }
        for text in ["", "\n", "é", &"k".repeat(256)] {
            assert!(text.parse::<IdempotencyKey>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_key_is_known_for_its_channel_until_its_time_is_over() {
        let mut cache = IdempotencyCache::default();
        let (a, b): (ChannelName, ChannelName) = ("a".parse().unwrap(), "b".parse().unwrap());
        cache.insert(1000, &a, key("1"), result(1));
        cache.insert(2000, &a, key("2"), result(2));
        assert_eq!(cache.get(&a, &key("1")), Some(result(1)));
        assert_eq!(cache.get(&b, &key("1")), None);
        cache.expire(1000 + 300_000 - 1);
        assert_eq!(cache.get(&a, &key("1")), Some(result(1)));
        cache.expire(1000 + 300_000);
        assert_eq!((cache.get(&a, &key("1")), cache.get(&a, &key("2"))), (None, Some(result(2))));
        assert_eq!(cache.first(), Some(2000));
    }

    #[test]
    fn the_oldest_key_goes_when_there_are_too_many() {
        let mut cache = IdempotencyCache::default();
        let channel = ChannelName::broadcast();
        for number in 0..=MAX_KEYS {
            cache.insert(0, &channel, key(&number.to_string()), result(number as u64));
        }
        assert_eq!(cache.get(&channel, &key("0")), None);
        assert_eq!(cache.get(&channel, &key("1")), Some(result(1)));
        assert_eq!(cache.results.len(), MAX_KEYS);
    }
}
