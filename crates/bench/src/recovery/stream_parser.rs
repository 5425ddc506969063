//! What a server sends to a subscriber, as messages.

use anyhow::{Context, bail, ensure};

use crate::client::header;

/// How messages are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wire {
    Events,
    WebSocket,
}

/// A message, with the id that the client sends when it comes back.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Message<'a> {
    pub(super) id: Option<&'a str>,
    pub(super) text: &'a str,
}

/// Parses one response. It keeps what is not whole yet.
#[derive(Debug)]
pub(super) struct StreamParser {
    wire: Wire,
    is_open: bool,
    rest: Vec<u8>,
    /// The id of the event that is arriving.
    id: String,
}

impl StreamParser {
    pub(super) fn new(wire: Wire) -> Self {
        Self { wire, is_open: false, rest: Vec::new(), id: String::new() }
    }

    /// Returns true once the head of the response has come.
    pub(super) fn is_open(&self) -> bool {
        self.is_open
    }

    /// Parses what has come, and calls `on_message` for each message.
    ///
    /// # Errors
    /// If the server has refused the request, or has sent what is neither.
    pub(super) fn feed(
        &mut self,
        bytes: &[u8],
        mut on_message: impl FnMut(Message<'_>),
    ) -> anyhow::Result<()> {
        self.rest.extend_from_slice(bytes);
        let all = std::mem::take(&mut self.rest);
        let mut bytes = all.as_slice();
        if !self.is_open {
            let Some(end) = bytes.windows(4).position(|bytes| bytes == b"\r\n\r\n") else {
                self.rest = all;
                return Ok(());
            };
            let status = match self.wire {
                Wire::Events => "HTTP/1.1 200 ",
                Wire::WebSocket => "HTTP/1.1 101 ",
            };
            if !bytes.starts_with(status.as_bytes()) {
                bail!("the server has refused a client: {}", String::from_utf8_lossy(&bytes[..end]));
            }
            self.is_open = true;
            bytes = &bytes[end + 4..];
        }
        self.rest = match self.wire {
            Wire::Events => self.events(bytes, &mut on_message)?,
            Wire::WebSocket => frames(bytes, &mut on_message)?,
        }
        .to_vec();
        Ok(())
    }

    /// Parses lines of server-sent events (HTML Standard, section 9.2.6). Returns what is not a whole line.
    fn events<'a>(
        &mut self,
        mut bytes: &'a [u8],
        on_message: &mut impl FnMut(Message<'_>),
    ) -> anyhow::Result<&'a [u8]> {
        while let Some(end) = bytes.iter().position(|byte| *byte == b'\n') {
            let line = std::str::from_utf8(&bytes[..end]).context("an event is not UTF-8")?;
            bytes = &bytes[end + 1..];
            match line.split_once(": ") {
                Some(("id", id)) => id.clone_into(&mut self.id),
                Some(("data", text)) => {
                    let id = Some(self.id.as_str()).filter(|id| !id.is_empty());
                    on_message(Message { id, text });
                }
                _ => {}
            }
        }
        Ok(bytes)
    }
}

/// Parses WebSocket frames. Returns what is not a whole frame.
fn frames<'a>(mut bytes: &'a [u8], on_message: &mut impl FnMut(Message<'_>)) -> anyhow::Result<&'a [u8]> {
    while let Some((opcode, start, len)) = header(bytes) {
        let Some(payload) = bytes.get(start..start.saturating_add(len)) else { break };
        bytes = &bytes[start + len..];
        match opcode {
            0x1 => {
                let text = std::str::from_utf8(payload).context("a message is not UTF-8")?;
                on_message(Message { id: id_in(text), text });
            }
            0x9 | 0xA => {}
            _ => ensure!(opcode == 0x8, "a frame has the opcode {opcode}"),
        }
    }
    Ok(bytes)
}

/// Returns the id in a message: a field of JSON, or the first line of nchan's `ws+meta.nchan`.
fn id_in(text: &str) -> Option<&str> {
    if let Some(rest) = text.strip_prefix("id: ") {
        return rest.lines().next();
    }
    text.split_once(r#""id":""#).and_then(|(_, rest)| Some(rest.split_once('"')?.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(wire: Wire, stream: &[u8]) -> Vec<Vec<(Option<String>, String)>> {
        (0..=stream.len())
            .map(|cut| {
                let mut parser = StreamParser::new(wire);
                let mut messages = Vec::new();
                for part in [&stream[..cut], &stream[cut..]] {
                    let mut add =
                        |one: Message<'_>| messages.push((one.id.map(str::to_owned), one.text.to_owned()));
                    parser.feed(part, &mut add).unwrap();
                }
                assert!(parser.is_open());
                messages
            })
            .collect()
    }

    #[test]
    fn events_are_parsed_wherever_they_are_cut() {
        let stream =
            b"HTTP/1.1 200 OK\r\nA: b\r\n\r\n: hi\n\ndata: 0\n\nid: 5:1\nevent: x\ndata: {\"a\": 1}\n\n";
        for messages in parsed(Wire::Events, stream) {
            let expected = [(None, "0".to_owned()), (Some("5:1".to_owned()), "{\"a\": 1}".to_owned())];
            assert_eq!(messages, expected);
        }
    }

    #[test]
    fn frames_are_parsed_wherever_they_are_cut() {
        let texts = ["{\"id\":\"e-7\",\"data\":1}", "id: 5:1\ncontent-type: a\n\nx", "y"];
        let mut stream = b"HTTP/1.1 101 Switching Protocols\r\n\r\n\x89\x00".to_vec();
        for text in texts {
            stream.extend([0x81, text.len() as u8]);
            stream.extend(text.as_bytes());
        }
        for messages in parsed(Wire::WebSocket, &stream) {
            let ids: Vec<_> = messages.iter().map(|(id, _)| id.as_deref()).collect();
            assert_eq!(ids, [Some("e-7"), Some("5:1"), None]);
            assert!(messages.iter().map(|(_, text)| text).eq(texts));
        }
    }

    #[test]
    fn a_refusal_is_an_error() {
        let mut parser = StreamParser::new(Wire::Events);
        assert!(parser.feed(b"HTTP/1.1 503 Service Unavailable\r\n\r\n", |_| {}).is_err());
    }
}
