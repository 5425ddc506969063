//! The id of a connection.

use std::time::{Duration, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// The id of one connection: a UUID of version 7 (RFC 9562 §5.7), so ids sort by the time of connecting.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ClientId(Uuid);

impl ClientId {
    /// Generates an id that no other connection has.
    pub(crate) fn generate() -> Self {
        Self(Uuid::now_v7())
    }

    /// Returns the time since the id was generated, the moment that a UUID v7 begins with. 0 if the clock was set back.
    pub(crate) fn age(self) -> Duration {
        let made = self.0.get_timestamp().map(|timestamp| timestamp.to_unix());
        // An id from another process may be of another kind, and tell any time.
        let since_1970 = made.and_then(|(seconds, nanos)| {
            Duration::from_secs(seconds).checked_add(Duration::from_nanos(nanos.into()))
        });
        let made = since_1970.and_then(|time| UNIX_EPOCH.checked_add(time)).unwrap_or(UNIX_EPOCH);
        made.elapsed().unwrap_or_default()
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
    fn shares_are_spread_evenly() {
        let mut tenths = [0; 10];
        for _ in 0..10_000 {
            tenths[(ClientId::generate().jitter() * 10.0) as usize] += 1;
        }
        // 1,000 each are expected; the standard deviation is 30.
        assert!(tenths.iter().all(|n| (700..1300).contains(n)), "{tenths:?}");
    }
}
