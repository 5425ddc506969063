//! The position of a publication in its channel.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

/// A period within which the offsets of a channel are unique: a random number, chosen anew whenever offsets
/// could be given twice.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Epoch(pub u64);

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// The position of a publication in its channel. Offset 0 is before the first publication of the epoch.
///
/// As text, `EPOCH-OFFSET`, it is the `id` of a publication. Clients must not read anything into it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Position {
    /// The epoch that the offset belongs to.
    pub epoch: Epoch,
    /// Starts at 1 and grows by 1.
    pub offset: u64,
}

/// A text is not a position: it does not come from this kind of server, or was changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not an id that a server has given out")]
pub struct InvalidPosition;

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.epoch, self.offset)
    }
}

impl FromStr for Position {
    type Err = InvalidPosition;

    fn from_str(text: &str) -> Result<Self, InvalidPosition> {
        let parse = || {
            let (epoch, offset) = text.split_once('-')?;
            let position =
                Self { epoch: Epoch(u64::from_str_radix(epoch, 16).ok()?), offset: offset.parse().ok()? };
            Some(position)
        };
        // The standard library also reads signs, capitals and leading zeros.
        parse().filter(|position| position.to_string() == text).ok_or(InvalidPosition)
    }
}

impl Serialize for Position {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Position {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_is_read_as_it_is_written_and_in_no_other_way() {
        let position = Position { epoch: Epoch(0xabc), offset: 42 };
        assert_eq!(position.to_string(), "0000000000000abc-42");
        assert_eq!("0000000000000abc-42".parse(), Ok(position));
        let most = Position { epoch: Epoch(u64::MAX), offset: u64::MAX };
        assert_eq!(most.to_string().parse(), Ok(most));
        for text in [
            "",
            "-",
            "42",
            "0000000000000abc",
            "0000000000000abc-",
            "0000000000000abc--1",
            "0000000000000abc-+1",
            "0000000000000abc-01",
            "0000000000000ABC-1",
            "+000000000000abc-1",
            "abc-1",
            "00000000000000abc-1",
            "0000000000000abc-1-1",
            "0000000000000abc-18446744073709551616",
            " 0000000000000abc-1",
        ] {
            assert_eq!(text.parse::<Position>(), Err(InvalidPosition), "{text:?}");
        }
    }
}
