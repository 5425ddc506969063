//! The positions of a client with several channels, as the id of its events.

use lastcall_core::{Epoch, Position};

/// The position of each channel of a client, in the order of its URL. Server-sent events have one id for all
/// of them.
///
/// It is kept as text, as each event needs all of it, and a publication changes one position.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct StreamPositions {
    /// The positions, with commas between them.
    id: String,
    /// The end of each position in `id`.
    ends: Vec<u32>,
}

impl StreamPositions {
    /// Returns these positions. `None`: the client has none in this channel yet.
    pub(crate) fn new(positions: impl IntoIterator<Item = Option<Position>>) -> Self {
        let text = |position: Option<Position>| position.map(|one| one.to_string()).unwrap_or_default();
        Self::of_texts(positions.into_iter().map(text))
    }

    /// Reads positions as builds up to version 3 of the handover have written them.
    pub(crate) fn restore(positions: &[String]) -> Self {
        Self::new(positions.iter().map(|position| position.parse().ok()))
    }

    fn of_texts(positions: impl Iterator<Item = String>) -> Self {
        let (mut id, mut ends) = (String::new(), Vec::new());
        for position in positions {
            if !ends.is_empty() {
                id.push(',');
            }
            id.push_str(&position);
            ends.push(id.len() as u32);
        }
        Self { id, ends }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// Returns the positions as bytes, for another process: two numbers for each, the epoch and the offset,
    /// one higher than it is, with their lowest bytes first. 0: there is none.
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(16 * self.ends.len());
        for channel in 0..self.ends.len() {
            let position = self.id[self.range(channel)].parse::<Position>().ok();
            let (epoch, offset) =
                position.map_or((0, 0), |position| (position.epoch.0, position.offset.saturating_add(1)));
            bytes.extend(epoch.to_le_bytes());
            bytes.extend(offset.to_le_bytes());
        }
        bytes
    }

    /// Reads what [`Self::to_bytes`] of another process has written.
    pub(crate) fn from_bytes(bytes: &[u8]) -> Self {
        let number = |bytes: &[u8]| bytes.iter().rev().fold(0, |all, byte| all << 8 | u64::from(*byte));
        Self::new(bytes.chunks_exact(16).map(|bytes| {
            let (epoch, offset) = bytes.split_at(8);
            let offset = number(offset).checked_sub(1)?;
            Some(Position { epoch: Epoch(number(epoch)), offset })
        }))
    }

    /// Returns each position as text.
    #[cfg(test)]
    pub(crate) fn to_texts(&self) -> Vec<String> {
        (0..self.ends.len()).map(|channel| self.id[self.range(channel)].to_owned()).collect()
    }

    /// Sets the position in a channel, as text: the client has, or will be sent first, everything up to it.
    pub(crate) fn set(&mut self, channel: usize, position: &str) {
        if channel >= self.ends.len() {
            return;
        }
        let range = self.range(channel);
        let grows_by = position.len() as i64 - range.len() as i64;
        self.id.replace_range(range, position);
        if grows_by != 0 {
            for end in &mut self.ends[channel..] {
                *end = (i64::from(*end) + grows_by) as u32;
            }
        }
    }

    /// Returns the id in two parts, before and after the position in a channel.
    pub(crate) fn around(&self, channel: usize) -> (&str, &str) {
        let range = self.range(channel.min(self.ends.len().saturating_sub(1)));
        (&self.id[..range.start], &self.id[range.end..])
    }

    /// Returns where the position in a channel is.
    fn range(&self, channel: usize) -> std::ops::Range<usize> {
        let start = if channel == 0 { 0 } else { self.ends[channel - 1] as usize + 1 };
        start..self.ends.get(channel).map_or(start, |end| *end as usize)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_id_has_the_position_of_each_channel() {
        let at = |offset| Position { epoch: Epoch(1), offset };
        let mut positions = StreamPositions::new([Some(at(1)), None, Some(at(3))]);
        assert_eq!(positions.id, "0000000000000001-1,,0000000000000001-3");
        positions.set(1, &at(2).to_string());
        positions.set(3, &at(9).to_string());
        assert_eq!(positions.id, "0000000000000001-1,0000000000000001-2,0000000000000001-3");
        let around = |channel| positions.around(channel);
        assert_eq!(around(0), ("", ",0000000000000001-2,0000000000000001-3"));
        assert_eq!(around(2), ("0000000000000001-1,0000000000000001-2,", ""));
        assert_eq!(StreamPositions::restore(&positions.to_texts()), positions);
        assert_eq!(StreamPositions::from_bytes(&positions.to_bytes()), positions);
        let none = StreamPositions::new([None, None]);
        assert_eq!(StreamPositions::restore(&none.to_texts()), none);
        assert_eq!(StreamPositions::from_bytes(&none.to_bytes()), none);
    }

    proptest! {
        #[test]
        fn a_position_changes_in_its_place(
            mut texts in prop::collection::vec("[a-f]{0,4}", 1..6),
            changes in prop::collection::vec((0..6_usize, "[a-f]{0,4}"), 0..20),
        ) {
            let mut positions = StreamPositions::of_texts(texts.iter().cloned());
            for (channel, text) in changes {
                positions.set(channel, &text);
                if let Some(entry) = texts.get_mut(channel) {
                    entry.clone_from(&text);
                }
                prop_assert_eq!(&positions, &StreamPositions::of_texts(texts.iter().cloned()));
                prop_assert_eq!(positions.to_texts(), texts.clone());
                for (channel, text) in texts.iter().enumerate() {
                    let (before, after) = positions.around(channel);
                    prop_assert_eq!([before, text.as_str(), after].concat(), texts.join(","));
                }
            }
        }
    }
}
