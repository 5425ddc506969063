//! Input that is not whole yet: half a header, half a frame, the fragments of a message.

use std::ops::ControlFlow;

use serde::{Deserialize, Serialize};

use super::{
    super::{
        close_code::CloseReason,
        frame::{Header, MAX_HEADER, Opcode, parse_header, unmask},
    },
    DecoderLimits, Event, check, event,
};

#[derive(Debug, Default, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Unchecked")]
pub(super) struct Pending {
    /// A header that has not all arrived.
    #[serde(with = "serde_bytes")]
    header: Vec<u8>,
    /// The frame whose payload is arriving, and how much of it has.
    frame: Option<(Header, u64)>,
    /// Payload of the control frame that is arriving: these may come between the fragments of a message.
    #[serde(with = "serde_bytes")]
    control: Vec<u8>,
    /// The message that is arriving.
    message: Option<PartialMessage>,
}

#[derive(Debug, Default, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct PartialMessage {
    text: bool,
    #[serde(with = "serde_bytes")]
    payload: Vec<u8>,
    /// How many bytes of a text are known to be whole UTF-8 characters.
    checked: usize,
}

/// What another process wrote down. What contradicts itself is refused: then nothing is handed over, and that
/// process goes on.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Unchecked {
    #[serde(with = "serde_bytes")]
    header: Vec<u8>,
    frame: Option<(Header, u64)>,
    #[serde(with = "serde_bytes")]
    control: Vec<u8>,
    message: Option<PartialMessage>,
}

/// Input that cannot have been read so.
#[derive(Debug, thiserror::Error)]
enum Contradiction {
    #[error("more has arrived of a frame than it has")]
    Frame,
    #[error("a header of {0} bytes that is not whole")]
    Header(usize),
    #[error("more of a text is checked than has arrived")]
    Checked,
}

impl TryFrom<Unchecked> for Pending {
    type Error = Contradiction;

    fn try_from(written: Unchecked) -> Result<Self, Contradiction> {
        let Unchecked { header, frame, control, message } = written;
        if frame.is_some_and(|(header, arrived)| arrived > header.len) {
            return Err(Contradiction::Frame);
        }
        if header.len() >= MAX_HEADER {
            return Err(Contradiction::Header(header.len()));
        }
        if message.as_ref().is_some_and(|message| message.checked > message.payload.len()) {
            return Err(Contradiction::Checked);
        }
        Ok(Self { header, frame, control, message })
    }
}

impl Pending {
    /// Bytes that it holds.
    pub(super) fn len(&self) -> usize {
        self.header.len() + self.control.len() + self.message.as_ref().map_or(0, PartialMessage::len)
    }

    /// Bytes that are still to come of the frame that is arriving.
    pub(super) fn rest_of_frame(&self) -> usize {
        let rest = self.frame.map_or(0, |(header, arrived)| header.len.saturating_sub(arrived));
        usize::try_from(rest).unwrap_or(usize::MAX)
    }

    pub(super) fn is_done(&self) -> bool {
        self.header.is_empty() && self.frame.is_none() && self.message.is_none()
    }

    /// Takes bytes of one header or one payload from `input`; tells what became whole.
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

    /// Takes header bytes one by one: at most 14, and only of a header that arrived in pieces.
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
                check(&header, self.message.as_ref(), limits)?;
                self.frame = Some((header, 0));
                return Ok(Some(header));
            }
        }
        Ok(None)
    }
}

impl PartialMessage {
    /// Bytes of its payload that have arrived.
    pub(super) fn len(&self) -> usize {
        self.payload.len()
    }

    /// Checks the bytes that are new; a character may still be cut off at the end.
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
