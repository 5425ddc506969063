//! The positions of a client with several channels, as the id of its events.

use std::fmt;

use lastcall_core::Position;

/// The position of each channel of a client, in the order of its URL. Server-sent events have one id for all of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct StreamPositions(Vec<Option<Position>>);

impl StreamPositions {
    /// Returns these positions. `None`: the client has none in this channel yet.
    pub(crate) fn new(positions: impl IntoIterator<Item = Option<Position>>) -> Self {
        Self(positions.into_iter().collect())
    }

    /// Reads positions that another process has written.
    pub(crate) fn restore(positions: &[String]) -> Self {
        Self::new(positions.iter().map(|position| position.parse().ok()))
    }

    /// Returns each position as text, for another process.
    pub(crate) fn to_texts(&self) -> Vec<String> {
        self.0.iter().map(|position| position.map(|one| one.to_string()).unwrap_or_default()).collect()
    }

    /// Sets the position in a channel: the client has, or will be sent first, everything up to it.
    pub(crate) fn set(&mut self, channel: usize, position: Position) {
        if let Some(entry) = self.0.get_mut(channel) {
            *entry = Some(position);
        }
    }

    /// Returns the id in two parts, before and after the position in a channel.
    pub(crate) fn around(&self, channel: usize) -> (String, String) {
        let texts = self.to_texts();
        let channel = channel.min(texts.len());
        let before: String = texts[..channel].iter().map(|text| format!("{text},")).collect();
        let after: String = texts.iter().skip(channel + 1).map(|text| format!(",{text}")).collect();
        (before, after)
    }
}

impl fmt::Display for StreamPositions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.to_texts().join(","))
    }
}

#[cfg(test)]
mod tests {
    use lastcall_core::Epoch;

    use super::*;

    #[test]
    fn the_id_has_the_position_of_each_channel() {
        let at = |offset| Position { epoch: Epoch(1), offset };
        let mut positions = StreamPositions::new([Some(at(1)), None, Some(at(3))]);
        assert_eq!(positions.to_string(), "0000000000000001-1,,0000000000000001-3");
        positions.set(1, at(2));
        positions.set(3, at(9));
        assert_eq!(positions.to_string(), "0000000000000001-1,0000000000000001-2,0000000000000001-3");
        let around = |channel| positions.around(channel);
        assert_eq!(around(0), (String::new(), ",0000000000000001-2,0000000000000001-3".to_owned()));
        assert_eq!(around(2), ("0000000000000001-1,0000000000000001-2,".to_owned(), String::new()));
        assert_eq!(StreamPositions::restore(&positions.to_texts()), positions);
        let none = StreamPositions::new([None, None]);
        assert_eq!(StreamPositions::restore(&none.to_texts()), none);
    }
}
