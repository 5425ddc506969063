//! What a subscriber has received, compared with what was published.

/// What a text begins with.
const MARK: &str = "@lc:";

/// Digits of the time and of the sequence number, which are hexadecimal.
const TIME: usize = 16;
const SEQUENCE: usize = 8;

/// Returns a text of `size` bytes with a sequence number, sent at this time in nanoseconds.
pub(super) fn text(sequence: u32, sent: u64, size: usize) -> String {
    format!("{:.<size$}", format!("{MARK}{sent:016x}{sequence:08x}"))
}

/// Returns the sequence number and the time in a message, if it has one of these texts.
pub(super) fn parse(message: &str) -> Option<(u32, u64)> {
    let (_, rest) = message.split_once(MARK)?;
    let sent = u64::from_str_radix(rest.get(..TIME)?, 16).ok()?;
    let sequence = u32::from_str_radix(rest.get(TIME..TIME + SEQUENCE)?, 16).ok()?;
    Some((sequence, sent))
}

/// What one subscriber has received. Sequence numbers start at 1 and grow by 1 in each channel.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct DeliveryLog {
    /// The last number that has come.
    pub(super) last: u32,
    pub(super) lost: u64,
    /// Numbers that came again, or after a later one.
    pub(super) repeated: u64,
}

impl DeliveryLog {
    pub(super) fn add(&mut self, sequence: u32) {
        if sequence <= self.last {
            self.repeated += 1;
            return;
        }
        self.lost += u64::from(sequence - self.last - 1);
        self.last = sequence;
    }

    /// Returns how many are lost if `last` was the last one.
    pub(super) fn lost_up_to(&self, last: u32) -> u64 {
        self.lost + u64::from(last.saturating_sub(self.last))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_found_in_a_message() {
        let text = text(7, 300, 64);
        assert_eq!(text.len(), 64);
        assert_eq!(parse(&format!(r#"{{"data":"{text}"}}"#)), Some((7, 300)));
        assert_eq!((parse("@lc:00"), parse("{}")), (None, None));
    }

    #[test]
    fn a_log_counts_what_is_lost_and_repeated() {
        let mut log = DeliveryLog::default();
        [1, 2, 2, 5, 3].into_iter().for_each(|sequence| log.add(sequence));
        assert_eq!((log.last, log.lost, log.repeated), (5, 2, 2));
        assert_eq!(log.lost_up_to(7), 4);
    }
}
