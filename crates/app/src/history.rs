//! The history of the channels outside of the broker.
//!
//! - [`part`] is a part of it as bytes, for a handover and for a file.
//! - [`file`] is the file to which a graceful shutdown writes it, and [`format`] what is in that file.
//! - [`expiry`] has the broker drop what is too old.

mod expiry;
mod file;
mod format;
mod part;

pub(crate) use expiry::expire;
pub(crate) use file::HistoryFile;
pub(crate) use part::{decode, encode};
