//! The content of a broker, as plain data in parts: for a process that takes over, or for a file.
//!
//! Times go as ages: the reader may have been started with another clock. Other builds read it too: unknown
//! fields are ignored, missing ones have their defaults. Builds before protocol 4 wrote moments of the clock
//! on the wall instead.

use std::sync::Arc;

use lastcall_core::{ChannelName, Epoch, Position, Publication};
use serde::{Deserialize, Serialize};

use crate::{IdempotencyKey, Published};

/// No channel comes so far: a position that is higher is an error, and must not overflow.
const MAX_TOP: u64 = u64::MAX >> 1;

/// A part of what a broker keeps. The parts are imported in the order in which they were exported.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct BrokerPart {
    /// Channels of earlier parts that are there no longer.
    pub gone: Vec<ChannelName>,
    /// Channels.
    pub channels: Vec<ChannelPart>,
    /// Idempotency keys, in the order of their times.
    pub keys: Vec<KeyPart>,
}

/// A channel, or what was added to it since an earlier part.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ChannelPart {
    /// Its name.
    pub name: ChannelName,
    /// Its epoch.
    pub epoch: Epoch,
    /// The offset of its last publication, as far as this part goes.
    pub top: u64,
    /// The number of publications that it keeps, if this part goes up to its last one: what it had before
    /// these is dropped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kept: Option<u64>,
    /// The time since the last subscriber left, or the last publication came, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub used_age_ms: Option<u64>,
    /// The same as a moment in milliseconds since 1970, if an earlier build wrote this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub used_ms: Option<i64>,
    /// True if it has subscribers, which move to the new process, too.
    #[serde(default)]
    pub in_use: bool,
    /// Its last publications, one after the other up to `top`. If the first one follows what an earlier part
    /// had, they are added to that, else they replace it.
    #[serde(default, with = "shared")]
    pub publications: Vec<Arc<Publication>>,
    /// The time since each of them was published, in milliseconds. None if an earlier build wrote this: then
    /// they are as old as the clock on the wall says.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ages_ms: Vec<u64>,
}

/// An idempotency key with its result.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyPart {
    /// The channel that it is for.
    pub channel: ChannelName,
    /// The key.
    pub key: IdempotencyKey,
    /// The time since it was used, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub age_ms: Option<u64>,
    /// The same as a moment in milliseconds since 1970, if an earlier build wrote this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time_ms: Option<i64>,
    /// The epoch of the publication.
    pub epoch: Epoch,
    /// The offset of the publication.
    pub offset: u64,
    /// The subscribers that it had.
    pub subscribers: usize,
}

/// A part contradicts itself.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PartError {
    /// The publications of a channel are not those that its position says.
    #[error("the publications of channel {0} are not numbered one after the other up to its position")]
    Offsets(ChannelName),
    /// No channel has that many publications.
    #[error("the position of channel {0} is too high")]
    Position(ChannelName),
    /// Not every publication of a channel has its age.
    #[error("channel {0} has not as many ages as publications")]
    Ages(ChannelName),
}

impl BrokerPart {
    /// Returns true if there is nothing in the part.
    pub fn is_empty(&self) -> bool {
        self.gone.is_empty() && self.channels.is_empty() && self.keys.is_empty()
    }

    /// Checks that no channel contradicts itself.
    ///
    /// # Errors
    /// When one does.
    pub fn check(&self) -> Result<(), PartError> {
        self.channels.iter().try_for_each(ChannelPart::check)
    }
}

impl ChannelPart {
    fn check(&self) -> Result<(), PartError> {
        if self.top > MAX_TOP {
            return Err(PartError::Position(self.name.clone()));
        }
        if !self.ages_ms.is_empty() && self.ages_ms.len() != self.publications.len() {
            return Err(PartError::Ages(self.name.clone()));
        }
        let first = self.first().ok_or_else(|| PartError::Offsets(self.name.clone()))?;
        let is_in_order = self.publications.iter().zip(first..).all(|(one, offset)| one.offset == offset);
        if is_in_order { Ok(()) } else { Err(PartError::Offsets(self.name.clone())) }
    }

    /// Returns the offset that the first publication must have; `None`: there are more than the position
    /// says.
    fn first(&self) -> Option<u64> {
        let count = u64::try_from(self.publications.len()).ok()?;
        Some(self.top.checked_sub(count)? + 1)
    }
}

impl KeyPart {
    pub(crate) fn published(&self) -> Published {
        let position = Position { epoch: self.epoch, offset: self.offset };
        Published { position, subscribers: self.subscribers }
    }
}

/// The clocks of the reader at the moment of the import, which turn what was written into moments of its own.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ImportTime {
    /// Milliseconds since the machine was started.
    pub(crate) now_ms: i64,
    /// Milliseconds since 1970.
    pub(crate) wall_ms: i64,
    /// The time since the part was written, in milliseconds: as much older is everything in it.
    pub(crate) part_age_ms: u64,
}

impl ImportTime {
    /// Returns the moment of something of this age; of an earlier build, the moment on the wall is known
    /// instead.
    pub(crate) fn since(self, age_ms: Option<u64>, wall_ms: Option<i64>) -> i64 {
        let age_ms = match age_ms {
            Some(age_ms) => age_ms.saturating_add(self.part_age_ms),
            None => wall_ms.map(|wall_ms| age(self.wall_ms, wall_ms)).unwrap_or_default(),
        };
        self.now_ms.saturating_sub(i64::try_from(age_ms).unwrap_or(i64::MAX))
    }
}

/// Returns how old something is; nothing if it is from the future.
pub(crate) fn age(now_ms: i64, since_ms: i64) -> u64 {
    u64::try_from(now_ms.saturating_sub(since_ms)).unwrap_or_default()
}

/// Publications that are shared, as if they were not.
mod shared {
    use std::sync::Arc;

    use lastcall_core::Publication;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(
        publications: &[Arc<Publication>],
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(publications.iter().map(|one| &**one))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Vec<Arc<Publication>>, D::Error> {
        Ok(Vec::<Publication>::deserialize(deserializer)?.into_iter().map(Arc::new).collect())
    }
}

#[cfg(test)]
mod tests {
    use lastcall_core::Publisher;
    use serde_json::{json, value::RawValue};

    use super::*;

    fn publication(offset: u64) -> Arc<Publication> {
        let data = RawValue::from_string("{\"a\": 1}".to_owned()).unwrap();
        Arc::new(Publication { offset, time_ms: 7, ..Publication::new(Publisher::Api, data) })
    }

    fn channel(top: u64, offsets: &[u64]) -> ChannelPart {
        ChannelPart {
            name: "a".parse().unwrap(),
            epoch: Epoch(5),
            top,
            kept: Some(2),
            used_age_ms: Some(8),
            used_ms: None,
            in_use: true,
            publications: offsets.iter().copied().map(publication).collect(),
            ages_ms: vec![10; offsets.len()],
        }
    }

    #[test]
    fn a_part_has_the_names_of_every_build_and_comes_back_as_it_was() {
        let key = KeyPart {
            channel: "a".parse().unwrap(),
            key: "k".parse().unwrap(),
            age_ms: Some(9),
            time_ms: None,
            epoch: Epoch(5),
            offset: 3,
            subscribers: 2,
        };
        let gone = vec!["b".parse().unwrap()];
        let part = BrokerPart { gone, channels: vec![channel(3, &[3])], keys: vec![key] };
        let bytes = rmp_serde::to_vec_named(&part).unwrap();
        let read: serde_json::Value = rmp_serde::from_slice(&bytes).unwrap();
        let publication = json!({ "offset": 3, "time_ms": 7, "publisher": "api", "data": "{\"a\": 1}" });
        let expected = json!({
            "gone": ["b"],
            "channels": [{
                "name": "a", "epoch": 5, "top": 3, "kept": 2, "used_age_ms": 8, "in_use": true,
                "publications": [publication], "ages_ms": [10],
            }],
            "keys": [{
                "channel": "a", "key": "k", "age_ms": 9, "epoch": 5, "offset": 3, "subscribers": 2,
            }],
        });
        assert_eq!(read, expected);
        assert_eq!(rmp_serde::from_slice::<BrokerPart>(&bytes).unwrap(), part);
        let nothing = rmp_serde::to_vec_named(&json!({ "a later field": 1 })).unwrap();
        assert_eq!(rmp_serde::from_slice::<BrokerPart>(&nothing).unwrap(), BrokerPart::default());
    }

    #[test]
    fn what_a_build_before_protocol_4_wrote_has_moments_in_place_of_ages() {
        let publication = json!({ "offset": 3, "time_ms": 7, "publisher": "api", "data": "1" });
        let written = json!({
            "channels": [{
                "name": "a", "epoch": 5, "top": 3, "used_ms": 8, "in_use": true, "publications": [publication],
            }],
            "keys": [{
                "channel": "a", "key": "k", "time_ms": 9, "epoch": 5, "offset": 3, "subscribers": 2,
            }],
        });
        let bytes = rmp_serde::to_vec_named(&written).unwrap();
        let part: BrokerPart = rmp_serde::from_slice(&bytes).unwrap();
        assert_eq!(part.check(), Ok(()));
        let (channel, key) = (&part.channels[0], &part.keys[0]);
        assert_eq!(
            (channel.used_ms, channel.used_age_ms, key.time_ms, key.age_ms),
            (Some(8), None, Some(9), None)
        );
        let time = ImportTime { now_ms: 1000, wall_ms: 30, part_age_ms: 5 };
        assert_eq!(time.since(key.age_ms, key.time_ms), 1000 - 21, "its age by the clock on the wall");
        assert_eq!(time.since(None, Some(31)), 1000, "nothing is from the future");
        assert_eq!(time.since(Some(10), Some(9)), 1000 - 15, "an age, and that of the part");
        assert_eq!(time.since(Some(u64::MAX), None), 1000 - i64::MAX);
        assert_eq!(time.since(None, Some(i64::MIN)), 1000 - i64::MAX);
    }

    #[test]
    fn publications_that_do_not_lead_up_to_the_position_are_an_error() {
        for (top, offsets) in [(0, &[][..]), (3, &[]), (3, &[3]), (3, &[1, 2, 3]), (MAX_TOP, &[MAX_TOP])] {
            assert_eq!(channel(top, offsets).check(), Ok(()), "{top}, {offsets:?}");
        }
        for (top, offsets) in [(0, &[0][..]), (3, &[4]), (3, &[2]), (3, &[1, 3]), (3, &[3, 2]), (1, &[0, 1])]
        {
            assert!(
                matches!(channel(top, offsets).check(), Err(PartError::Offsets(_))),
                "{top}, {offsets:?}"
            );
        }
        assert!(matches!(channel(MAX_TOP + 1, &[]).check(), Err(PartError::Position(_))));
        let part = ChannelPart { ages_ms: vec![1], ..channel(3, &[2, 3]) };
        assert!(matches!(part.check(), Err(PartError::Ages(_))));
    }
}
