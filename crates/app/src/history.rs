//! The history of the channels outside of the broker.
//!
//! - `file` is the file to which a graceful shutdown writes it, `format` what is in that file, and `place`
//!   where it is.
//!
//! A part is MessagePack with named fields, there and in a handover, which other versions can read.

mod file;
mod format;
mod place;

pub(crate) use file::{HistoryFile, MayTake};
pub(crate) use place::check;
