//! Groups of channels whose names begin alike, with rules of their own.

use std::time::Duration;

/// The longest name, in characters.
const MAX_NAMESPACE_NAME: usize = 64;

/// The rule for names, as an error says it.
pub const NAMESPACE_NAME_RULE: &str = "1 to 64 printable ASCII characters, and none of space , * & \\ :";

/// The bounds of what is kept of a channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    /// Most publications; 0: none, so a client that has missed one cannot recover.
    pub size: usize,
    /// The time that a publication is kept, and the position of a channel without subscribers.
    pub ttl: Duration,
}

impl Default for Retention {
    fn default() -> Self {
        Self { size: 100, ttl: Duration::from_secs(300) }
    }
}

/// The rules for the channels whose names begin with [`name`](Self::name) and a colon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Namespace {
    /// The beginning of their names, up to the first colon.
    pub name: String,
    /// The bounds of what is kept of each.
    pub retention: Retention,
}

impl Namespace {
    /// Returns true if a namespace can have this name. What it must not have separates it from the rest of a
    /// channel's name, or stands for something in a pattern or a list of channels.
    pub fn is_name(text: &str) -> bool {
        let is_allowed = |byte: u8| byte.is_ascii_graphic() && !b",*&\\:".contains(&byte);
        (1..=MAX_NAMESPACE_NAME).contains(&text.len()) && text.bytes().all(is_allowed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_has_no_character_that_means_something_elsewhere() {
        for right in ["a", "chat", "Chat-2", "a.b/c_d", "'", "!#$%()+;<=>?@[]^{|}~", &"x".repeat(64)] {
            assert!(Namespace::is_name(right), "{right}");
        }
        for wrong in [
            "",
            " ",
            "a b",
            " a",
            "a:",
            ":",
            "a,b",
            "a*",
            "a&b",
            "a\\b",
            "ä",
            "a\n",
            "\u{7f}",
            &"x".repeat(65),
        ] {
            assert!(!Namespace::is_name(wrong), "{wrong:?}");
        }
    }
}
