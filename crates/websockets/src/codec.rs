//! The WebSocket protocol (RFC 6455): frames, their decoding, and close codes. No sockets, no JSON.

mod close_code;
mod decoder;
mod frame;
#[cfg(test)]
pub(crate) mod test_frames;

pub(crate) use close_code::CloseReason;
pub(crate) use decoder::{Decoder, DecoderLimits, Event};
pub(crate) use frame::{Frame, next_boundary, write_text_frame};
#[cfg(test)]
pub(crate) use frame::{Header, Opcode};
