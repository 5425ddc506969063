//! The history of the channels outside of the broker.
//!
//! - `part` is a part of it as bytes, for a handover and for a file.
//! - `file` is the file to which a graceful shutdown writes it, `format` what is in that file, and `place` where it is.

mod file;
mod format;
mod part;
mod place;

pub(crate) use file::{HistoryFile, MayTake};
pub(crate) use part::decode;
pub(crate) use place::check;
