//! One message in a channel.

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

/// One message in a channel.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Publication {
    /// Its offset in the channel; 0 until a broker has given it one.
    pub offset: u64,
    /// When it was published, in milliseconds since 1970, as clients are told. How old it is, the broker knows.
    pub time_ms: i64,
    /// Its source.
    pub publisher: Publisher,
    /// Any JSON, as it was written.
    #[serde(with = "json_text")]
    pub data: Box<RawValue>,
}

impl Publication {
    /// Returns a publication that is published now and has no offset yet.
    pub fn new(publisher: Publisher, data: Box<RawValue>) -> Self {
        Self { offset: 0, time_ms: clock::since_1970_ms(), publisher, data }
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
