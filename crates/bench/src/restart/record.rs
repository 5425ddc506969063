//! What the clients of a restarted server have got, text by text.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use serde::Serialize;

use crate::fleet::Event;

/// What a text starts with; its number follows, in hexadecimal.
const MARK: &[u8] = b"@lc:";
const DIGITS: usize = 16;

/// Bytes of each text.
const PAYLOAD: usize = 64;

/// How long clients that were cut off wait before they connect again. Real ones should wait longer, and each
/// another time; this is the best case for a server that cuts them.
const RECONNECT_DELAY: Duration = Duration::from_millis(50);

/// One text and what became of it.
#[derive(Debug, Default, Clone, Copy, Serialize)]
pub(crate) struct Message {
    /// When it was sent, in seconds from the start.
    pub(crate) sent: f64,
    /// Clients that have it.
    pub(crate) got: usize,
    /// The longest and the mean time from sending to receiving it, in milliseconds.
    pub(crate) longest_ms: f64,
    pub(crate) mean_ms: f64,
    /// The longest silence of a client that ended with it, in milliseconds.
    pub(crate) silence_ms: f64,
}

/// What all clients have seen so far.
pub(super) struct Record {
    pub(super) epoch: Instant,
    pub(super) messages: Vec<Message>,
    pub(super) clients: Vec<Listener>,
    /// Clients that connect again, and when.
    pub(super) reconnects: VecDeque<(Instant, usize)>,
    pub(super) down: usize,
    pub(super) cut: usize,
    pub(super) first_cut: Option<f64>,
    pub(super) all_back: Option<f64>,
    pub(super) lost: u64,
    pub(super) disordered: u64,
}

/// What one client has seen.
#[derive(Debug, Clone, Copy)]
pub(super) struct Listener {
    connected: bool,
    /// The number that it should receive next.
    pub(super) next: usize,
    /// When it last received one.
    received_at: f64,
}

impl Record {
    pub(super) fn new(epoch: Instant, clients: usize) -> Self {
        Self {
            epoch,
            messages: Vec::new(),
            clients: vec![Listener { connected: true, next: 0, received_at: 0.0 }; clients],
            reconnects: VecDeque::new(),
            down: 0,
            cut: 0,
            first_cut: None,
            all_back: None,
            lost: 0,
            disordered: 0,
        }
    }

    /// Returns the next text, which is sent now.
    pub(super) fn next_text(&mut self) -> Vec<u8> {
        let mut text = [MARK, format!("{:0DIGITS$x}", self.messages.len()).as_bytes()].concat();
        text.resize(PAYLOAD, b'.');
        self.messages.push(Message { sent: self.epoch.elapsed().as_secs_f64(), ..Message::default() });
        text
    }

    pub(super) fn note(&mut self, index: usize, what: Event<'_>) {
        let now = self.epoch.elapsed().as_secs_f64();
        let client = &mut self.clients[index];
        match what {
            Event::Text(text) => {
                // Greetings have no number.
                let Some(number) = number(text).filter(|number| *number < self.messages.len()) else {
                    return;
                };
                if number < client.next {
                    self.disordered += 1;
                    return;
                }
                self.lost += (number - client.next) as u64;
                let message = &mut self.messages[number];
                if number > 0 {
                    message.silence_ms = message.silence_ms.max((now - client.received_at) * 1e3);
                }
                (client.next, client.received_at) = (number + 1, now);
                let ms = (now - message.sent) * 1e3;
                message.got += 1;
                message.longest_ms = message.longest_ms.max(ms);
                message.mean_ms += (ms - message.mean_ms) / message.got as f64;
            }
            Event::Gone => {
                if std::mem::replace(&mut client.connected, false) {
                    self.cut += 1;
                    self.down += 1;
                    self.first_cut.get_or_insert(now);
                }
                self.reconnects.push_back((Instant::now() + RECONNECT_DELAY, index));
            }
            Event::Open => {
                if !std::mem::replace(&mut client.connected, true) {
                    self.down -= 1;
                    self.all_back = Some(now);
                }
            }
        }
    }
}

/// Returns the number of a text, if it is one of ours.
fn number(text: &[u8]) -> Option<usize> {
    let at = text.windows(MARK.len()).position(|bytes| bytes == MARK)? + MARK.len();
    usize::from_str_radix(std::str::from_utf8(text.get(at..at + DIGITS)?).ok()?, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_lost_doubled_or_late_is_counted() {
        let text = |number: usize| [MARK, format!("{number:016x}..").as_bytes()].concat();
        let mut record = Record::new(Instant::now(), 2);
        record.messages = vec![Message::default(); 5];
        for number in [0, 1, 4, 4] {
            record.note(0, Event::Text(&text(number)));
        }
        assert_eq!((record.lost, record.disordered), (2, 1));
        record.note(1, Event::Gone);
        record.note(1, Event::Gone);
        assert_eq!((record.cut, record.down, record.reconnects.len()), (1, 1, 2));
        record.note(1, Event::Open);
        assert_eq!((record.down, record.all_back.is_some()), (0, true));
        assert_eq!(number(b"{\"type\":\"welcome\"}"), None);
    }
}
