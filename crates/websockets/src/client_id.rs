//! The id of a connection.

use std::{sync::Mutex, time::Duration};

use lastcall_core::clock;
use serde::{Deserialize, Serialize};
use uuid::{ContextV7, Timestamp, Uuid};

/// The id of one connection: a UUID of version 7 (RFC 9562 §5.7), so ids sort by the time of connecting.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ClientId(Uuid);

impl ClientId {
    /// Generates an id that no other connection has.
    pub(crate) fn generate() -> Self {
        // In the order in which they are made, also within a millisecond.
        static CONTEXT: Mutex<ContextV7> = Mutex::new(ContextV7::new());
        let now = clock::since_1970();
        Self(Uuid::new_v7(Timestamp::from_unix(&CONTEXT, now.as_secs(), now.subsec_nanos())))
    }

    /// Returns the time since the id was generated, by the time of day, with which a UUID v7 begins. For
    /// connections of a build that told no age: the clock may have been set meanwhile. 0 if it was set back.
    pub(crate) fn age_by_time_of_day(self) -> Duration {
        let made = self.0.get_timestamp().map(|timestamp| timestamp.to_unix());
        // An id from another process may be of another kind, and tell any time.
        let made = made.and_then(|(seconds, nanos)| {
            Duration::from_secs(seconds).checked_add(Duration::from_nanos(nanos.into()))
        });
        clock::since_1970().saturating_sub(made.unwrap_or_default())
    }

    /// Returns a number from 0 up to 1 that is the same each time, and spread evenly over all clients.
    pub(crate) fn jitter(self) -> f64 {
        // The last 32 bits of a UUID v7 are random; 32 bits fit a f64 exactly.
        let random = self.0.as_u128() as u32;
        f64::from(random) / (f64::from(u32::MAX) + 1.0)
    }
}

impl From<Uuid> for ClientId {
    fn from(id: Uuid) -> Self {
        Self(id)
    }
}

impl From<ClientId> for Uuid {
    fn from(id: ClientId) -> Self {
        id.0
    }
}

impl std::fmt::Display for ClientId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_sort_by_the_time_of_connecting_and_tell_it() {
        let ids: Vec<_> = (0..1000).map(|_| ClientId::generate()).collect();
        assert!(ids.is_sorted());
        assert!(ids[0].age_by_time_of_day() < Duration::from_secs(600));
        // An id of another kind, and one from the future.
        for text in ["ffffffff-ffff-4fff-bfff-ffffffffffff", "ffffffff-ffff-7fff-bfff-ffffffffffff"] {
            let _ = ClientId(text.parse().unwrap()).age_by_time_of_day();
        }
        assert_eq!(
            ClientId("ffffffff-ffff-7fff-bfff-ffffffffffff".parse().unwrap()).age_by_time_of_day(),
            Duration::ZERO
        );
    }

    #[test]
    fn shares_are_spread_evenly() {
        let mut tenths = [0; 10];
        for _ in 0..10_000 {
            tenths[(ClientId::generate().jitter() * 10.0) as usize] += 1;
        }
        // 1,000 each are expected; the standard deviation is 30.
        assert!(tenths.iter().all(|n| (700..1300).contains(n)), "{tenths:?}");
    }
}
