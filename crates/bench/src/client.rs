//! One client: a non-blocking socket, its handshake, and the frames that come.

use std::{
    io::{self, ErrorKind, Read, Write},
    net::SocketAddr,
};

use mio::net::TcpStream;

/// Payloads up to this size, in bytes, are passed on whole; of larger ones, the beginning.
const MAX_WHOLE_PAYLOAD: usize = 4096;

/// The key of RFC 6455 section 1.3. The floor knows its answer.
pub(crate) const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";

/// Where a client is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    /// The TCP connection is not there yet.
    Connecting,
    /// The handshake is sent, and not answered.
    Handshake,
    /// Frames come.
    Open,
    /// It ended.
    Gone,
}

#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) stream: TcpStream,
    pub(crate) state: State,
    /// Bytes still to come of the frame that was cut off at the end of a read.
    skip: u64,
    /// The beginning of the answer, or of a frame whose header was cut off.
    header: Vec<u8>,
}

/// What came with one read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Progress {
    /// Nothing more for now.
    Blocked,
    /// There may be more.
    More,
    /// It is open now.
    Opened,
    /// It ended.
    Gone,
}

impl Client {
    pub(crate) fn connect(address: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect(address)?;
        Ok(Self { stream, state: State::Connecting, skip: 0, header: Vec::new() })
    }

    /// Sends the handshake, once the socket is writable.
    pub(crate) fn send_handshake(&mut self, host: &str, path: &str) -> io::Result<()> {
        if let Some(error) = self.stream.take_error()? {
            return Err(error);
        }
        self.stream.set_nodelay(true)?;
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Key: {KEY}\r\nSec-WebSocket-Version: 13\r\n\r\n"
        );
        self.stream.write_all(request.as_bytes())?;
        self.state = State::Handshake;
        Ok(())
    }

    /// Reads once; `on_frame` gets the opcode and the payload of each frame: the whole of a
    /// small one, of a large one as much as this read has.
    pub(crate) fn read(&mut self, buffer: &mut [u8], on_frame: &mut impl FnMut(u8, &[u8])) -> Progress {
        let n = match self.stream.read(buffer) {
            Ok(0) => return self.gone(),
            Ok(n) => n,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Progress::Blocked,
            Err(error) if error.kind() == ErrorKind::Interrupted => return Progress::More,
            Err(_) => return self.gone(),
        };
        let full = n == buffer.len();
        let mut bytes = &buffer[..n];
        let mut opened = false;
        let mut head = Vec::new();
        if self.state == State::Handshake {
            head.append(&mut self.header);
            head.extend_from_slice(bytes);
            let Some(end) = head.windows(4).position(|bytes| bytes == b"\r\n\r\n") else {
                self.header = head;
                return Progress::More;
            };
            if !head.starts_with(b"HTTP/1.1 101 ") {
                return self.gone();
            }
            self.state = State::Open;
            opened = true;
            bytes = &head[end + 4..];
        }
        self.frames(bytes, on_frame);
        match (opened, full) {
            (true, _) => Progress::Opened,
            (_, true) => Progress::More,
            _ => Progress::Blocked,
        }
    }

    fn gone(&mut self) -> Progress {
        self.state = State::Gone;
        Progress::Gone
    }

    fn frames(&mut self, bytes: &[u8], on_frame: &mut impl FnMut(u8, &[u8])) {
        let skipped = usize::try_from(self.skip).unwrap_or(usize::MAX).min(bytes.len());
        self.skip -= skipped as u64;
        let mut bytes = &bytes[skipped..];
        let mut joined = std::mem::take(&mut self.header);
        if !joined.is_empty() {
            joined.extend_from_slice(bytes);
            bytes = &joined;
        }
        while let Some((opcode, start, len)) = header(bytes) {
            if len <= MAX_WHOLE_PAYLOAD && start + len > bytes.len() {
                break;
            }
            let end = start.saturating_add(len).min(bytes.len());
            on_frame(opcode, &bytes[start..end]);
            self.skip = (start + len - end) as u64;
            bytes = &bytes[end..];
        }
        self.header.extend_from_slice(bytes);
    }
}

/// Returns the opcode, where the payload starts, and its length; `None` while the header is not whole.
pub(crate) fn header(bytes: &[u8]) -> Option<(u8, usize, usize)> {
    let (first, second) = (*bytes.first()?, *bytes.get(1)?);
    let (start, len) = match second & 0x7F {
        126 => (4, usize::from(u16::from_be_bytes(bytes.get(2..4)?.try_into().ok()?))),
        127 => (10, u64::from_be_bytes(bytes.get(2..10)?.try_into().ok()?) as usize),
        short => (2, usize::from(short)),
    };
    Some((first & 0x0F, start, len))
}

/// Returns a text frame as a client sends it: masked, with a mask of zeros.
pub(crate) fn text_frame(payload: &[u8]) -> Vec<u8> {
    masked(0x81, payload)
}

/// Returns an answer to a ping.
pub(crate) fn pong_frame(payload: &[u8]) -> Vec<u8> {
    masked(0x8A, payload)
}

fn masked(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![first];
    match payload.len() {
        len @ 0..=125 => frame.push(0x80 | len as u8),
        len @ 126..=0xFFFF => {
            frame.push(0x80 | 126);
            frame.extend((len as u16).to_be_bytes());
        }
        len => {
            frame.push(0x80 | 127);
            frame.extend((len as u64).to_be_bytes());
        }
    }
    frame.extend([0; 4]);
    frame.extend(payload);
    frame
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_counted_once_wherever_they_are_cut() {
        let frame = |payload: &[u8]| {
            let mut frame = text_frame(payload);
            let header = frame.len() - payload.len() - 4;
            frame.drain(header..header + 4);
            frame[1] &= 0x7F;
            frame
        };
        let stream = [frame(b"Hello"), frame(&[b'x'; 300]), frame(b"")].concat();
        for cut in 0..=stream.len() {
            let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            let mut client = Client::connect(listener.local_addr().unwrap()).unwrap();
            let mut count = 0;
            let mut bytes = 0;
            client.frames(&stream[..cut], &mut |_, payload| {
                (count, bytes) = (count + 1, bytes + payload.len())
            });
            client.frames(&stream[cut..], &mut |_, payload| {
                (count, bytes) = (count + 1, bytes + payload.len())
            });
            assert_eq!((count, bytes), (3, 305), "cut at {cut}");
        }
    }
}
