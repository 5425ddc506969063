//! A client of either route, `/ws` or `/events`, that is just a TCP connection: it reads when a test has it
//! read.

use std::{
    fmt::Display,
    io::{self, BufRead},
    ops::ControlFlow,
};

use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::{
    chunks::Chunks,
    websocket::{HANDSHAKE, frame_length},
};

/// How a client gets its messages.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Wire {
    WebSocket,
    EventStream,
}

impl Wire {
    /// Returns a request with this query and these header lines.
    pub(crate) fn request(self, host: impl Display, query: &str, lines: &[&str]) -> String {
        let (path, own) = match self {
            Self::WebSocket => ("/ws", &HANDSHAKE[..]),
            Self::EventStream => ("/events", &[][..]),
        };
        let lines: String = [own, lines].concat().iter().map(|line| format!("{line}\r\n")).collect();
        format!("GET {path}?{query} HTTP/1.1\r\nHost: {host}\r\n{lines}\r\n")
    }
}

/// A message of the server.
#[derive(Debug, PartialEq)]
pub(crate) struct Received {
    /// Its JSON.
    pub(crate) text: String,
    /// The id of its event.
    pub(crate) event_id: Option<String>,
}

impl Received {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|_| panic!("not JSON: {self:?}"))
    }
}

/// What comes over a connection. Nothing here has a time limit: that is for the caller.
pub(crate) struct Input {
    pub(crate) stream: TcpStream,
    wire: Wire,
    /// What was read, of which the first `taken` bytes are understood.
    bytes: Vec<u8>,
    taken: usize,
    /// The chunks of the events, once the head is read.
    chunks: Option<Chunks>,
}

impl Input {
    /// Sends a request. The response is not read yet.
    ///
    /// # Errors
    /// When the connection has ended.
    pub(crate) async fn request(mut stream: TcpStream, wire: Wire, request: &str) -> io::Result<Self> {
        stream.write_all(request.as_bytes()).await?;
        Ok(Self { stream, wire, bytes: Vec::new(), taken: 0, chunks: None })
    }

    /// Returns its kind.
    pub(crate) fn wire(&self) -> Wire {
        self.wire
    }

    /// Reads the head of the response, and returns its status; `None`: the connection has ended.
    pub(crate) async fn status(&mut self) -> Option<u16> {
        loop {
            if let Some(end) = self.bytes.windows(4).position(|end| end == b"\r\n\r\n") {
                let status = std::str::from_utf8(&self.bytes[9..12]).unwrap().parse().unwrap();
                let rest = self.bytes.split_off(end + 4);
                let head = std::str::from_utf8(&self.bytes).unwrap();
                // A refusal has a length instead.
                self.chunks = head.contains("\r\ntransfer-encoding: chunked\r\n").then(Chunks::default);
                self.bytes.clear();
                self.add(&rest);
                return Some(status);
            }
            self.read().await?;
        }
    }

    /// Returns the next message; `None`: the connection has ended, or the server closes it.
    pub(crate) async fn next(&mut self) -> Option<Received> {
        loop {
            let next = match self.wire {
                Wire::WebSocket => self.next_frame(),
                Wire::EventStream => self.next_event(),
            };
            match next {
                ControlFlow::Break(message) => return message,
                ControlFlow::Continue(()) => self.read().await?,
            }
        }
    }

    /// Reads more; `None`: the connection has ended.
    async fn read(&mut self) -> Option<()> {
        let mut bytes = Vec::with_capacity(4096);
        let read = self.stream.read_buf(&mut bytes).await;
        self.add(&bytes);
        (read.unwrap_or(0) > 0).then_some(())
    }

    /// Adds what was read.
    fn add(&mut self, bytes: &[u8]) {
        self.bytes.drain(..self.taken);
        self.taken = 0;
        let Some(chunks) = &mut self.chunks else { return self.bytes.extend_from_slice(bytes) };
        for content in chunks.read(bytes) {
            assert!(content == b":\n" || content.ends_with(b"\n\n"), "a comment or whole events");
            self.bytes.extend_from_slice(&content);
        }
    }

    /// Returns true if the response has come to its end; false if it was cut off, or goes on.
    pub(crate) fn is_whole(&self) -> bool {
        self.chunks.as_ref().is_some_and(Chunks::has_ended)
    }

    /// Understands a frame, if all of it was read.
    fn next_frame(&mut self) -> ControlFlow<Option<Received>> {
        let bytes = &self.bytes[self.taken..];
        let Some((length, head)) = frame_length(bytes) else { return ControlFlow::Continue(()) };
        let Some(frame) = bytes.get(..length) else { return ControlFlow::Continue(()) };
        self.taken += length;
        match frame[0] {
            // A ping.
            0x89 => self.next_frame(),
            0x81 => {
                let text = String::from_utf8(frame[head..].to_vec()).unwrap();
                ControlFlow::Break(Some(Received { text, event_id: None }))
            }
            0x88 => ControlFlow::Break(None),
            other => panic!("frame {other:x}"),
        }
    }

    /// Understands an event, if all of it was read.
    fn next_event(&mut self) -> ControlFlow<Option<Received>> {
        let (mut text, mut event_id) = (None, None);
        let mut rest = &self.bytes[self.taken..];
        // The library's search of lines is as fast in a debug build.
        while let (line, Ok(length)) = (rest, rest.skip_until(b'\n'))
            && let Some(line) = line[..length].strip_suffix(b"\n")
        {
            let field = |name: &[u8]| {
                let value = line.strip_prefix(name)?;
                Some(String::from_utf8(value.to_vec()).unwrap())
            };
            if !line.is_empty() {
                text = text.or_else(|| field(b"data: "));
                event_id = event_id.or_else(|| field(b"id: "));
                continue;
            }
            self.taken = self.bytes.len() - rest.len();
            // A comment has no data.
            if let Some(text) = text {
                return ControlFlow::Break(Some(Received { text, event_id }));
            }
            event_id = None;
        }
        ControlFlow::Continue(())
    }
}
