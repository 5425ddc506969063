//! One message in a channel.

use std::sync::{
    Arc, OnceLock,
    atomic::{AtomicBool, AtomicUsize, Ordering},
};

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use uuid::Uuid;

use crate::clock;

/// The source of a publication.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Publisher {
    /// The server itself: the periodic notification.
    Server,
    /// A request to the API.
    Api,
    /// A client, with the id of its connection. The data is a text.
    Client(Uuid),
}

/// The effect of a client's text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClientMessages {
    /// Every text goes to all clients, the sender included.
    Broadcast,
    /// Texts are read and dropped.
    Ignore,
    /// Everything goes back unchanged, text or binary, and nothing else is sent on that socket.
    Echo,
}

/// One message in a channel.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Publication {
    /// Its offset in the channel; 0 until a broker has given it one.
    pub offset: u64,
    /// The time of day at which it was published, in milliseconds since 1970, as clients are told. How old it
    /// is, the broker knows.
    pub time_ms: i64,
    /// Its source.
    pub publisher: Publisher,
    /// Any JSON, as it was written.
    #[serde(with = "json_text")]
    pub data: Box<RawValue>,
    /// Counts it once the history has dropped it.
    #[serde(skip)]
    pub pin: Pin,
}

/// The bytes of the publications that a history has dropped and that something else still holds, each counted
/// once.
#[derive(Debug, Default, Clone)]
pub struct PinnedBytes(Arc<AtomicUsize>);

impl PinnedBytes {
    /// Returns the bytes.
    pub fn get(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

/// Counts a publication as pinned from when the history drops it until it is freed.
#[derive(Debug, Default)]
pub struct Pin {
    /// The counter that it is in, and its bytes.
    counted: OnceLock<(PinnedBytes, usize)>,
    is_dropped: AtomicBool,
}

impl Clone for Pin {
    /// Returns one that counts nothing: a clone is another publication.
    fn clone(&self) -> Self {
        Self::default()
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        if let (Some((PinnedBytes(total), bytes)), true) = (self.counted.get(), *self.is_dropped.get_mut()) {
            total.fetch_sub(*bytes, Ordering::Relaxed);
        }
    }
}

impl Publication {
    /// Returns a publication that is published now and has no offset yet.
    pub fn new(publisher: Publisher, data: Box<RawValue>) -> Self {
        Self { offset: 0, time_ms: clock::since_1970_ms(), publisher, data, pin: Pin::default() }
    }

    /// Records that a history keeps it, where it costs so many bytes, and where they count once the history
    /// has dropped it.
    pub fn keep_in_history(&self, pinned: &PinnedBytes, bytes: usize) {
        self.pin.counted.get_or_init(|| (pinned.clone(), bytes));
    }

    /// Records that the history drops it.
    pub fn drop_from_history(&self) {
        if let Some((PinnedBytes(total), bytes)) = self.pin.counted.get()
            && !self.pin.is_dropped.swap(true, Ordering::Relaxed)
        {
            total.fetch_add(*bytes, Ordering::Relaxed);
        }
    }

    /// Returns true if the history has dropped it.
    pub fn is_pinned(&self) -> bool {
        self.pin.is_dropped.load(Ordering::Relaxed)
    }

    /// Returns the number of bytes of the data.
    pub fn size(&self) -> usize {
        self.data.get().len()
    }
}

impl PartialEq for Publication {
    fn eq(&self, other: &Self) -> bool {
        let fields = |one: &Self| (one.offset, one.time_ms, one.publisher);
        fields(self) == fields(other) && self.data.get() == other.data.get()
    }
}

/// JSON as a string, in formats other than JSON. Text that is not JSON is refused when it is read.
mod json_text {
    use serde::{Deserialize, Deserializer, Serializer, de::Error as _};
    use serde_json::value::RawValue;

    pub(super) fn serialize<S: Serializer>(data: &RawValue, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(data.get())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Box<RawValue>, D::Error> {
        RawValue::from_string(String::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}
