//! WebSocket frames (RFC 6455 §5.2): the headers that arrive, and whole frames to send.

use bytes::{BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize};

use super::close_code::CloseReason;

/// Most payload a control frame may carry (RFC 6455 §5.5).
pub(crate) const MAX_CONTROL_PAYLOAD: usize = 125;

/// Longest header a client can send: two bytes, an eight-byte length and the mask.
pub(crate) const MAX_HEADER: usize = 14;

/// The opcode of a frame (RFC 6455 §11.8).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Opcode {
    Continuation,
    Text,
    Binary,
    Close,
    Ping,
    Pong,
}

impl Opcode {
    pub(crate) fn is_control(self) -> bool {
        matches!(self, Self::Close | Self::Ping | Self::Pong)
    }

    fn from_bits(bits: u8) -> Option<Self> {
        Some(match bits {
            0x0 => Self::Continuation,
            0x1 => Self::Text,
            0x2 => Self::Binary,
            0x8 => Self::Close,
            0x9 => Self::Ping,
            0xA => Self::Pong,
            _ => return None,
        })
    }

    fn bits(self) -> u8 {
        match self {
            Self::Continuation => 0x0,
            Self::Text => 0x1,
            Self::Binary => 0x2,
            Self::Close => 0x8,
            Self::Ping => 0x9,
            Self::Pong => 0xA,
        }
    }
}

/// The header of a frame that a client sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Header {
    pub(crate) fin: bool,
    pub(crate) opcode: Opcode,
    pub(crate) mask: [u8; 4],
    /// Bytes of payload that follow.
    pub(crate) len: u64,
}

/// Parses the frame header that `bytes`, which a client sent, start with. Returns the header and its length
/// in bytes, or `None` if it is not complete.
///
/// # Errors
/// Returns a protocol error at the first byte that shows it.
pub(crate) fn parse_header(bytes: &[u8]) -> Result<Option<(Header, usize)>, CloseReason> {
    let Some(&first) = bytes.first() else { return Ok(None) };
    if first & 0x70 != 0 {
        return Err(CloseReason::ProtocolError("a reserved bit is set, but no extension was agreed on"));
    }
    let Some(opcode) = Opcode::from_bits(first & 0x0F) else {
        return Err(CloseReason::ProtocolError("a reserved opcode"));
    };
    let fin = first & 0x80 != 0;
    if opcode.is_control() && !fin {
        return Err(CloseReason::ProtocolError("a fragmented control frame"));
    }

    let Some(&second) = bytes.get(1) else { return Ok(None) };
    if second & 0x80 == 0 {
        return Err(CloseReason::ProtocolError("a client must mask its frames"));
    }
    let short = usize::from(second & 0x7F);
    if opcode.is_control() && short > MAX_CONTROL_PAYLOAD {
        return Err(CloseReason::ProtocolError("a control frame over 125 bytes"));
    }
    let (len, mask_at) = match short {
        126 => match bytes.get(2..4) {
            Some(&[a, b]) => (u64::from(u16::from_be_bytes([a, b])), 4),
            _ => return Ok(None),
        },
        127 => match bytes.get(2..10).and_then(|b| <[u8; 8]>::try_from(b).ok()) {
            Some(b) => (u64::from_be_bytes(b), 10),
            None => return Ok(None),
        },
        n => (n as u64, 2),
    };
    if len > i64::MAX as u64 {
        return Err(CloseReason::ProtocolError("a length with its highest bit set"));
    }
    match bytes.get(mask_at..mask_at + 4) {
        Some(&[a, b, c, d]) => {
            let header = Header { fin, opcode, mask: [a, b, c, d], len };
            Ok(Some((header, mask_at + 4)))
        }
        _ => Ok(None),
    }
}

/// Unmasks `payload`, whose first byte is byte `offset` of the frame's payload (RFC 6455 §5.3).
pub(crate) fn unmask(payload: &mut [u8], mask: [u8; 4], offset: u64) {
    let mut mask = mask;
    mask.rotate_left((offset % 4) as usize);
    let word = u64::from_ne_bytes([mask[0], mask[1], mask[2], mask[3], mask[0], mask[1], mask[2], mask[3]]);
    let (words, rest) = payload.as_chunks_mut::<8>();
    for bytes in words {
        *bytes = (u64::from_ne_bytes(*bytes) ^ word).to_ne_bytes();
    }
    for (byte, key) in rest.iter_mut().zip(mask.iter().cycle()) {
        *byte ^= key;
    }
}

/// A whole frame from the server, encoded once and shared by all clients that get it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Frame(Bytes);

impl Frame {
    /// Encodes a text message in one frame. The text must be UTF-8.
    pub(crate) fn text(text: impl AsRef<[u8]>) -> Self {
        Self::encode(Opcode::Text, text.as_ref())
    }

    pub(crate) fn binary(payload: &[u8]) -> Self {
        Self::encode(Opcode::Binary, payload)
    }

    pub(crate) fn ping() -> Self {
        Self::encode(Opcode::Ping, b"")
    }

    pub(crate) fn pong(payload: &[u8]) -> Self {
        Self::encode(Opcode::Pong, payload)
    }

    /// Encodes a close frame with a code and a reason; `None`: without, as the answer to a close frame
    /// without a code.
    pub(crate) fn close(status: Option<(u16, &str)>) -> Self {
        let mut payload = Vec::with_capacity(MAX_CONTROL_PAYLOAD);
        if let Some((code, reason)) = status {
            payload.put_u16(code);
            payload.put_slice(reason.as_bytes());
        }
        Self::encode(Opcode::Close, &payload)
    }

    /// Returns the bytes of the frame.
    pub(crate) fn bytes(&self) -> &Bytes {
        &self.0
    }

    fn encode(opcode: Opcode, payload: &[u8]) -> Self {
        let mut frame = BytesMut::with_capacity(10 + payload.len());
        write_frame(&mut frame, opcode, payload);
        Self(frame.freeze())
    }
}

/// Appends a text frame. The text is UTF-8.
pub(crate) fn write_text_frame(bytes: &mut Vec<u8>, text: &[u8]) {
    write_frame(bytes, Opcode::Text, text);
}

fn write_frame(bytes: &mut impl BufMut, opcode: Opcode, payload: &[u8]) {
    bytes.put_u8(0x80 | opcode.bits());
    match payload.len() {
        len @ 0..=125 => bytes.put_u8(len as u8),
        len @ 126..=0xFFFF => {
            bytes.put_u8(126);
            bytes.put_u16(len as u16);
        }
        len => {
            bytes.put_u8(127);
            bytes.put_u64(len as u64);
        }
    }
    bytes.put_slice(payload);
}

/// Returns the start of the first frame at or after byte `at` of `frames`, which are whole frames from the
/// server. If there is none, or the bytes are no such frames, returns their end.
pub(crate) fn next_boundary(frames: &[u8], at: usize) -> usize {
    let mut start = 0;
    while start < at {
        match frames.get(start..).and_then(frame_len) {
            Some(len) => start = start.saturating_add(len),
            None => return frames.len(),
        }
    }
    start.min(frames.len())
}

/// Returns the length of the frame that `bytes` start with, which is one from the server; `None` if its
/// header is not complete.
fn frame_len(bytes: &[u8]) -> Option<usize> {
    Some(match bytes.get(1)? & 0x7F {
        126 => {
            let len = bytes.get(2..4)?.try_into().ok()?;
            4 + usize::from(u16::from_be_bytes(len))
        }
        127 => {
            let len = bytes.get(2..10)?.try_into().ok()?;
            usize::try_from(u64::from_be_bytes(len)).ok()?.saturating_add(10)
        }
        short => 2 + usize::from(short),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_is_parsed_only_when_it_is_complete() {
        let bytes = [0x81, 0xFE, 0x01, 0x00, 1, 2, 3, 4];
        for end in 0..bytes.len() {
            assert_eq!(parse_header(&bytes[..end]), Ok(None), "{end} bytes");
        }
        let header = Header { fin: true, opcode: Opcode::Text, mask: [1, 2, 3, 4], len: 256 };
        assert_eq!(parse_header(&bytes), Ok(Some((header, 8))));
    }

    #[test]
    fn a_protocol_error_shows_at_its_first_byte() {
        for bytes in [
            &[0xC1][..],                              // reserved bit
            &[0x83],                                  // reserved opcode
            &[0x09],                                  // fragmented ping
            &[0x81, 0x05],                            // no mask
            &[0x89, 0xFE],                            // ping over 125 bytes
            &[0x82, 0xFF, 0x80, 0, 0, 0, 0, 0, 0, 0], // highest bit of the length
        ] {
            assert!(matches!(parse_header(bytes), Err(CloseReason::ProtocolError(_))), "{bytes:02x?}");
        }
    }

    #[test]
    fn unmasking_in_pieces_is_unmasking_at_once() {
        let mask = [0x12, 0x34, 0x56, 0x78];
        let masked: Vec<u8> = (0..100).collect();
        let mut whole = masked.clone();
        unmask(&mut whole, mask, 0);
        assert_eq!(whole[5], masked[5] ^ mask[1]);
        for cut in 0..masked.len() {
            let mut pieces = masked.clone();
            unmask(&mut pieces[..cut], mask, 0);
            unmask(&mut pieces[cut..], mask, cut as u64);
            assert_eq!(pieces, whole, "cut at {cut}");
        }
    }

    #[test]
    fn frames_take_the_shortest_length_that_fits() {
        assert_eq!(&Frame::text("Hi").bytes()[..], b"\x81\x02Hi");
        assert_eq!(&Frame::text("x".repeat(126)).bytes()[..4], [0x81, 126, 0, 126]);
        assert_eq!(&Frame::text("x".repeat(65536)).bytes()[..10], [0x81, 127, 0, 0, 0, 0, 0, 1, 0, 0]);
        assert_eq!(&Frame::close(Some((1012, "bye"))).bytes()[..], b"\x88\x05\x03\xf4bye");
        assert_eq!(&Frame::close(None).bytes()[..], b"\x88\x00");
    }

    #[test]
    fn boundaries_are_found_over_every_kind_of_length() {
        let frames =
            [Frame::text("Hi"), Frame::text("x".repeat(300)), Frame::text("y".repeat(70_000)), Frame::ping()];
        let joined: Vec<u8> = frames.iter().flat_map(|frame| frame.bytes().to_vec()).collect();
        let mut end = 0;
        assert_eq!(next_boundary(&joined, 0), 0);
        for frame in &frames {
            let start = end;
            end += frame.bytes().len();
            assert_eq!(next_boundary(&joined, start + 1), end);
            assert_eq!(next_boundary(&joined, end), end);
        }
    }
}
