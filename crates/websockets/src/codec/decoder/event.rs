//! The events that the decoder returns, and the limits of what it accepts.

use crate::codec::{
    close_code::{CloseReason, is_valid_code},
    frame::{Header, Opcode},
};

/// A whole message or control frame.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Event<'a> {
    Text(&'a str),
    Binary(&'a [u8]),
    Ping(&'a [u8]),
    Pong,
    /// The code and the reason, if there are any.
    Close(Option<(u16, &'a str)>),
}

/// Limits of what a client may send.
#[derive(Debug, Clone, Copy)]
pub(crate) struct DecoderLimits {
    /// Most bytes in one message, its fragments together.
    pub(crate) max_message_size: usize,
    /// True if binary messages are allowed.
    pub(crate) accept_binary: bool,
}

/// Checks whether a frame with this header may come now. `arrived` is the number of bytes that have arrived
/// of a fragmented message, if one is under way.
pub(super) fn check(
    header: &Header,
    arrived: Option<usize>,
    limits: DecoderLimits,
) -> Result<(), CloseReason> {
    match (header.opcode, arrived) {
        (Opcode::Close | Opcode::Ping | Opcode::Pong, _) => return Ok(()),
        (Opcode::Continuation, None) => {
            return Err(CloseReason::ProtocolError("a continuation of nothing"));
        }
        (Opcode::Text | Opcode::Binary, Some(_)) => {
            return Err(CloseReason::ProtocolError("a new message inside a fragmented one"));
        }
        (Opcode::Binary, None) if !limits.accept_binary => return Err(CloseReason::UnsupportedData),
        (Opcode::Continuation | Opcode::Text | Opcode::Binary, _) => {}
    }
    let arrived = arrived.unwrap_or(0) as u64;
    if arrived.saturating_add(header.len) > limits.max_message_size as u64 {
        return Err(CloseReason::MessageTooBig);
    }
    Ok(())
}

/// Returns a whole message or control frame as an event, and checks its content.
pub(super) fn event(opcode: Opcode, payload: &[u8]) -> Result<Event<'_>, CloseReason> {
    let utf8 = |bytes| std::str::from_utf8(bytes).map_err(|_| CloseReason::InvalidUtf8);
    Ok(match opcode {
        Opcode::Text => Event::Text(utf8(payload)?),
        Opcode::Binary | Opcode::Continuation => Event::Binary(payload),
        Opcode::Ping => Event::Ping(payload),
        Opcode::Pong => Event::Pong,
        Opcode::Close => match payload {
            [] => Event::Close(None),
            [_] => return Err(CloseReason::ProtocolError("a close frame with half a code")),
            [high, low, reason @ ..] => {
                let code = u16::from_be_bytes([*high, *low]);
                if !is_valid_code(code) {
                    return Err(CloseReason::ProtocolError("a close code that must not be sent"));
                }
                Event::Close(Some((code, utf8(reason)?)))
            }
        },
    })
}
