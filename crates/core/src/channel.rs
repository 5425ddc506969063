//! The name of a channel.

use std::{borrow::Borrow, fmt, str::FromStr, sync::Arc};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Most bytes of a name.
pub const MAX_CHANNEL_NAME: usize = 255;

/// The rule for names, as an error says it.
pub const CHANNEL_NAME_RULE: &str =
    "a channel's name has 1 to 255 printable ASCII characters except space, comma, `*`, `&` and `\\`";

/// A text is not the name of a channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{CHANNEL_NAME_RULE}")]
pub struct InvalidChannelName;

/// The name of a channel: a named stream of publications. Clones share the text.
///
/// Names are used in URLs, in lists and, later, in patterns: what has a meaning there is not allowed in them.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ChannelName(Arc<str>);

impl ChannelName {
    /// Returns the channel of clients that do not name one: `broadcast`.
    pub fn broadcast() -> Self {
        Self(Arc::from("broadcast"))
    }

    /// Returns the name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns the name in memory of its own, which the calling thread has allocated. What is kept for long
    /// is so kept apart from what a request needs for a moment, and the memory of requests can be returned to
    /// the system.
    #[must_use]
    pub fn unshared(&self) -> Self {
        Self(Arc::from(&*self.0))
    }

    /// Returns what stands before the first colon: the namespace, whose rules the channel follows.
    pub fn namespace(&self) -> Option<&str> {
        self.0.split_once(':').map(|(namespace, _)| namespace)
    }
}

impl FromStr for ChannelName {
    type Err = InvalidChannelName;

    fn from_str(text: &str) -> Result<Self, InvalidChannelName> {
        let is_allowed = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b',' | b'*' | b'&' | b'\\');
        if text.is_empty() || text.len() > MAX_CHANNEL_NAME || !text.bytes().all(is_allowed) {
            return Err(InvalidChannelName);
        }
        Ok(Self(Arc::from(text)))
    }
}

impl fmt::Display for ChannelName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Borrow<str> for ChannelName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl Serialize for ChannelName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for ChannelName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_valid(text: &str) -> bool {
        text.parse::<ChannelName>().is_ok()
    }

    #[test]
    fn a_name_has_printable_ascii_characters_without_those_of_lists_and_patterns() {
        for name in ["a", "orders", "chat:room-1", "user#42", "a/b?c=d", "$x", "!~", &"n".repeat(255)] {
            assert!(is_valid(name), "{name}");
        }
        for name in
            ["", " ", "a b", "a,b", "a*", "a&b", "a\\b", "é", "a\n", "a\0", "\u{7f}", &"n".repeat(256)]
        {
            assert!(!is_valid(name), "{name:?}");
        }
    }

    #[test]
    fn the_namespace_stands_before_the_first_colon() {
        let namespace = |name: &str| name.parse::<ChannelName>().unwrap().namespace().map(str::to_owned);
        assert_eq!(namespace("chat:a:b").as_deref(), Some("chat"));
        assert_eq!(namespace("chat:").as_deref(), Some("chat"));
        assert_eq!(namespace(":a").as_deref(), Some(""));
        assert_eq!(namespace("chat"), None);
    }
}
