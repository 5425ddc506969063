//! What a broker keeps, as plain data in parts: for a process that takes over, or for a file.
//!
//! Other builds read it too: unknown fields are ignored, missing ones have their defaults.

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
    /// When the last subscriber left, or the last publication came, in milliseconds since 1970.
    pub used_ms: i64,
    /// Whether it has subscribers, which move to the new process, too.
    #[serde(default)]
    pub in_use: bool,
    /// Its last publications, one after the other up to `top`. If the first one follows what an earlier part had, they
    /// are added to that, else they replace it.
    #[serde(default, with = "shared")]
    pub publications: Vec<Arc<Publication>>,
}

/// An idempotency key with its result.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyPart {
    /// The channel that it is for.
    pub channel: ChannelName,
    /// The key.
    pub key: IdempotencyKey,
    /// When it was used, in milliseconds since 1970.
    pub time_ms: i64,
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
        let first = self.first().ok_or_else(|| PartError::Offsets(self.name.clone()))?;
        let is_in_order = self.publications.iter().zip(first..).all(|(one, offset)| one.offset == offset);
        if is_in_order { Ok(()) } else { Err(PartError::Offsets(self.name.clone())) }
    }

    /// Returns the offset that the first publication must have; `None`: there are more than the position says.
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
            used_ms: 8,
            in_use: true,
            publications: offsets.iter().copied().map(publication).collect(),
        }
    }

    #[test]
    fn a_part_has_the_names_of_every_build_and_comes_back_as_it_was() {
        let key = KeyPart {
            channel: "a".parse().unwrap(),
            key: "k".parse().unwrap(),
            time_ms: 9,
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
                "name": "a", "epoch": 5, "top": 3, "used_ms": 8, "in_use": true, "publications": [publication],
            }],
            "keys": [{
                "channel": "a", "key": "k", "time_ms": 9, "epoch": 5, "offset": 3, "subscribers": 2,
            }],
        });
        assert_eq!(read, expected);
        assert_eq!(rmp_serde::from_slice::<BrokerPart>(&bytes).unwrap(), part);
        let nothing = rmp_serde::to_vec_named(&json!({ "a later field": 1 })).unwrap();
        assert_eq!(rmp_serde::from_slice::<BrokerPart>(&nothing).unwrap(), BrokerPart::default());
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
    }
}
