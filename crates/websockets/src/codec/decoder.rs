//! From bytes to messages: a client's frames, unmasked, joined and checked as they arrive.
//!
//! Every limit is enforced when a header is read, before its payload. A text that is not UTF-8 is refused at
//! its first wrong byte (RFC 6455 §8.1), even in the middle of a frame.

#[cfg(test)]
mod differential;
mod event;
mod pending;
#[cfg(test)]
mod tests;

use std::ops::ControlFlow;

use serde::{Deserialize, Serialize};

pub(crate) use self::event::{DecoderLimits, Event};
use self::{
    event::{check, event},
    pending::Pending,
};
use super::{
    close_code::CloseReason,
    frame::{Header, parse_header, unmask},
};

/// Decodes the frames of one client. It keeps input that is not a whole frame or message yet; between
/// messages it holds nothing and costs one pointer.
///
/// Plain data: it is serialized for the new process, which may be another build. The serialized names stay.
#[derive(Debug, Default, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Decoder {
    #[serde(skip_serializing_if = "Option::is_none")]
    pending: Option<Box<Pending>>,
}

impl Decoder {
    /// Returns the number of bytes that are kept.
    pub(crate) fn len(&self) -> usize {
        self.pending.as_ref().map_or(0, |pending| pending.len())
    }

    /// Returns how many bytes of the frame that is arriving are missing, or 0 if its header is not complete.
    pub(crate) fn rest_of_frame(&self) -> usize {
        self.pending.as_ref().map_or(0, |pending| pending.rest_of_frame())
    }

    /// Decodes all of `input`, which it unmasks in place, and calls `on_event` for each event. Stops early
    /// when `on_event` breaks.
    ///
    /// # Errors
    /// Returns the reason to close the connection with. Later input must not be decoded: it is out of sync.
    pub(crate) fn decode(
        &mut self,
        mut input: &mut [u8],
        limits: DecoderLimits,
        mut on_event: impl FnMut(Event<'_>) -> ControlFlow<()>,
    ) -> Result<(), CloseReason> {
        while !input.is_empty() {
            let step = match &mut self.pending {
                // Nearly every frame of a client arrives whole, and is decoded in place.
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

/// Returns the header of an unfragmented frame that `input` starts with, and the range of its payload; `None`
/// if the frame is not complete or not unfragmented.
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
