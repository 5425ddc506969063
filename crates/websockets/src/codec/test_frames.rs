//! Frames as clients send them, for tests.

use super::frame::unmask;

/// Returns a frame with this first byte (FIN, reserved bits, opcode), masked (RFC 6455 §5.3).
pub(crate) fn client_frame(first: u8, mask: [u8; 4], payload: &[u8]) -> Vec<u8> {
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
    frame.extend(mask);
    let start = frame.len();
    frame.extend(payload);
    unmask(&mut frame[start..], mask, 0);
    frame
}

/// Returns a whole text message.
pub(crate) fn client_text(text: &str) -> Vec<u8> {
    client_frame(0x81, [0xA1, 0xB2, 0xC3, 0xD4], text.as_bytes())
}

/// Returns a close frame.
pub(crate) fn client_close(code: u16) -> Vec<u8> {
    client_frame(0x88, [1, 2, 3, 4], &code.to_be_bytes())
}
