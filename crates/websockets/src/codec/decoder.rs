//! From bytes to messages: a client's frames, unmasked, joined and checked as they arrive.
//!
//! Every limit is enforced when a header is read, before its payload is; a text that is not UTF-8 is
//! refused at its first wrong byte (RFC 6455 §8.1), even in the middle of a frame.

mod pending;

use std::ops::ControlFlow;

use pending::{PartialMessage, Pending};
use serde::{Deserialize, Serialize};

use super::{
    close_code::{CloseReason, is_valid_code},
    frame::{Header, Opcode, parse_header, unmask},
};

/// What a client sent, whole.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Event<'a> {
    Text(&'a str),
    Binary(&'a [u8]),
    Ping(&'a [u8]),
    Pong,
    /// The code and the reason, if it gave any.
    Close(Option<(u16, &'a str)>),
}

/// What a client may send.
#[derive(Debug, Clone, Copy)]
pub(crate) struct DecoderLimits {
    /// Most bytes in one message, its fragments together.
    pub(crate) max_message_size: usize,
    /// Whether binary messages are welcome.
    pub(crate) accept_binary: bool,
}

/// What of a client's bytes could not be handled yet. Between messages it holds nothing and costs one
/// pointer.
///
/// Plain data: it can be written down and read by another process, of another version too.
#[derive(Debug, Default, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Decoder {
    #[serde(skip_serializing_if = "Option::is_none")]
    pending: Option<Box<Pending>>,
}

impl Decoder {
    /// Bytes that it holds.
    pub(crate) fn len(&self) -> usize {
        self.pending.as_ref().map_or(0, |pending| pending.len())
    }

    /// Bytes that are still to come of the frame that is arriving, if its header is here.
    pub(crate) fn rest_of_frame(&self) -> usize {
        self.pending.as_ref().map_or(0, |pending| pending.rest_of_frame())
    }

    /// Takes all of `input` (and unmasks it in place), and tells `on_event` each thing that is whole.
    ///
    /// Stops early when `on_event` breaks. After an error the decoder must not be used again: what
    /// follows cannot be understood.
    pub(crate) fn decode(
        &mut self,
        mut input: &mut [u8],
        limits: DecoderLimits,
        mut on_event: impl FnMut(Event<'_>) -> ControlFlow<()>,
    ) -> Result<(), CloseReason> {
        while !input.is_empty() {
            let step = match &mut self.pending {
                // Nearly every frame of a client arrives whole, and is handled where it lies.
                None => match whole_frame(input, limits)? {
                    Some((header, payload)) => {
                        let (frame, rest) = std::mem::take(&mut input).split_at_mut(payload.end);
                        input = rest;
                        let payload = &mut frame[payload];
                        unmask(payload, header.mask, 0);
                        on_event(event(header.opcode, payload)?)
                    }
                    None => {
                        self.pending = Some(Box::default());
                        continue;
                    }
                },
                Some(pending) => {
                    let step = pending.take(&mut input, limits, &mut on_event)?;
                    if pending.is_done() {
                        self.pending = None;
                    }
                    step
                }
            };
            if step.is_break() {
                break;
            }
        }
        Ok(())
    }
}

/// An unfragmented frame that lies whole at the start of `input`, and where its payload does.
fn whole_frame(
    input: &[u8],
    limits: DecoderLimits,
) -> Result<Option<(Header, std::ops::Range<usize>)>, CloseReason> {
    let Some((header, start)) = parse_header(input)? else { return Ok(None) };
    check(&header, None, limits)?;
    match usize::try_from(header.len) {
        Ok(len) if header.fin && len <= input.len() - start => Ok(Some((header, start..start + len))),
        _ => Ok(None),
    }
}

/// Whether this frame may come now: `message` is the one that is arriving.
fn check(
    header: &Header,
    message: Option<&PartialMessage>,
    limits: DecoderLimits,
) -> Result<(), CloseReason> {
    match (header.opcode, message) {
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
    let arrived = message.map_or(0, PartialMessage::len) as u64;
    if arrived.saturating_add(header.len) > limits.max_message_size as u64 {
        return Err(CloseReason::MessageTooBig);
    }
    Ok(())
}

/// A whole message or control frame, its content checked.
fn event(opcode: Opcode, payload: &[u8]) -> Result<Event<'_>, CloseReason> {
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

#[cfg(test)]
mod differential;
#[cfg(test)]
mod tests;
