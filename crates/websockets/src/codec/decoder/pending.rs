//! Input that is not complete yet: part of a header, part of a frame, the fragments of a message.

use std::ops::ControlFlow;

use serde::{Deserialize, Serialize};

use super::event::{DecoderLimits, Event, check, event};
use crate::codec::{
    close_code::CloseReason,
    frame::{Header, MAX_HEADER, Opcode, parse_header, unmask},
};

/// Input that is not complete yet. Its serialized names are part of the handover and stay.
#[derive(Debug, Default, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "UncheckedPending")]
pub(super) struct Pending {
    /// The part of a header that has arrived, if it is not complete.
    #[serde(with = "serde_bytes")]
    header: Vec<u8>,
    /// The frame whose payload is arriving, and how much of it has.
    frame: Option<(Header, u64)>,
    /// The payload of the control frame that is arriving. One may come between the fragments of a message.
    #[serde(with = "serde_bytes")]
    control: Vec<u8>,
    /// The message that is arriving, if its first frame has begun.
    message: Option<PartialMessage>,
}

#[derive(Debug, Default, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct PartialMessage {
    text: bool,
    #[serde(with = "serde_bytes")]
    payload: Vec<u8>,
    /// Number of bytes of a text that are known to be whole UTF-8 characters.
    checked: usize,
}

/// Input from another process. If it contradicts itself, the handover fails and the old process continues.
#[derive(Default, Deserialize)]
#[serde(default)]
struct UncheckedPending {
    #[serde(with = "serde_bytes")]
    header: Vec<u8>,
    frame: Option<(Header, u64)>,
    #[serde(with = "serde_bytes")]
    control: Vec<u8>,
    message: Option<PartialMessage>,
}

/// The reason why pending input from another process is refused.
#[derive(Debug, thiserror::Error)]
enum InvalidPending {
    #[error("invalid pending input: more bytes of a frame have arrived than it has")]
    Frame,
    #[error("invalid pending input: an incomplete header of {0} bytes")]
    Header(usize),
    #[error("invalid pending input: more bytes of a text are checked than have arrived")]
    Checked,
}

impl TryFrom<UncheckedPending> for Pending {
    type Error = InvalidPending;

    fn try_from(written: UncheckedPending) -> Result<Self, InvalidPending> {
        let UncheckedPending { header, frame, control, message } = written;
        if frame.is_some_and(|(header, arrived)| arrived > header.len) {
            return Err(InvalidPending::Frame);
        }
        if header.len() >= MAX_HEADER {
            return Err(InvalidPending::Header(header.len()));
        }
        if message.as_ref().is_some_and(|message| message.checked > message.payload.len()) {
            return Err(InvalidPending::Checked);
        }
        Ok(Self { header, frame, control, message })
    }
}

impl Pending {
    /// Returns the number of bytes that are kept.
    pub(super) fn len(&self) -> usize {
        self.header.len() + self.control.len() + self.message.as_ref().map_or(0, PartialMessage::len)
    }

    /// Returns how many bytes of the frame that is arriving are missing.
    pub(super) fn rest_of_frame(&self) -> usize {
        let rest = self.frame.map_or(0, |(header, arrived)| header.len.saturating_sub(arrived));
        usize::try_from(rest).unwrap_or(usize::MAX)
    }

    /// Returns true if nothing is kept.
    pub(super) fn is_done(&self) -> bool {
        self.header.is_empty() && self.frame.is_none() && self.message.is_none()
    }

    /// Takes bytes of one header or one payload from `input`, and calls `on_event` for what is complete.
    pub(super) fn take(
        &mut self,
        input: &mut &mut [u8],
        limits: DecoderLimits,
        on_event: &mut impl FnMut(Event<'_>) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>, CloseReason> {
        let (header, arrived) = match self.frame {
            Some(frame) => frame,
            None => match self.take_header(input, limits)? {
                Some(header) => (header, 0),
                None => return Ok(ControlFlow::Continue(())),
            },
        };

        let wanted = usize::try_from(header.len - arrived).unwrap_or(usize::MAX);
        let wanted = wanted.min(input.len());
        let (payload, rest) = std::mem::take(input).split_at_mut(wanted);
        *input = rest;
        unmask(payload, header.mask, arrived);
        let arrived = arrived + payload.len() as u64;
        let whole = arrived == header.len;
        self.frame = if whole { None } else { Some((header, arrived)) };

        if header.opcode.is_control() {
            self.control.extend_from_slice(payload);
            if !whole {
                return Ok(ControlFlow::Continue(()));
            }
            let control = std::mem::take(&mut self.control);
            return Ok(on_event(event(header.opcode, &control)?));
        }

        let message = self.message.get_or_insert_with(|| PartialMessage {
            text: header.opcode == Opcode::Text,
            payload: Vec::new(),
            checked: 0,
        });
        message.payload.extend_from_slice(payload);
        message.check_utf8()?;
        if !(whole && header.fin) {
            return Ok(ControlFlow::Continue(()));
        }
        let message = self.message.take();
        let opcode = match &message {
            Some(message) if message.text => Opcode::Text,
            _ => Opcode::Binary,
        };
        let payload = message.map(|message| message.payload).unwrap_or_default();
        Ok(on_event(event(opcode, &payload)?))
    }

    /// Takes the bytes of a header one by one. It has 14 at most, and arrived in pieces. Returns it once it
    /// is complete.
    fn take_header(
        &mut self,
        input: &mut &mut [u8],
        limits: DecoderLimits,
    ) -> Result<Option<Header>, CloseReason> {
        while let Some((byte, rest)) = std::mem::take(input).split_first_mut() {
            *input = rest;
            self.header.push(*byte);
            debug_assert!(self.header.len() <= MAX_HEADER);
            if let Some((header, _)) = parse_header(&self.header)? {
                self.header.clear();
                check(&header, self.message.as_ref().map(PartialMessage::len), limits)?;
                self.frame = Some((header, 0));
                return Ok(Some(header));
            }
        }
        Ok(None)
    }
}

impl PartialMessage {
    /// Returns the number of bytes of the payload that have arrived.
    pub(super) fn len(&self) -> usize {
        self.payload.len()
    }

    /// Checks the bytes that are new. The last character may be incomplete.
    fn check_utf8(&mut self) -> Result<(), CloseReason> {
        if !self.text {
            return Ok(());
        }
        match std::str::from_utf8(&self.payload[self.checked..]) {
            Ok(_) => self.checked = self.payload.len(),
            Err(error) if error.error_len().is_some() => return Err(CloseReason::InvalidUtf8),
            Err(error) => self.checked += error.valid_up_to(),
        }
        Ok(())
    }
}
