//! The history of the channels outside of the broker.
//!
//! - `part` is a part of it as bytes, for a handover and for a file.
//! - `file` is the file to which a graceful shutdown writes it, `format` what is in that file, and `place` where it is.
//! - `expiry` has the broker drop what is too old.

mod expiry;
mod file;
mod format;
mod part;
mod place;

pub(crate) use expiry::expire;
pub(crate) use file::HistoryFile;
pub(crate) use part::decode;
pub(crate) use place::check;

#[cfg(test)]
mod testing {
    use std::sync::Arc;

    use lastcall_broker::{Delivery, ReceiverSet};
    use lastcall_core::{ChannelName, Epoch, Position, Publication};

    /// Delivers to no client.
    #[derive(Debug)]
    pub(super) struct NoDelivery;

    impl Delivery for NoDelivery {
        fn deliver(&self, _: &ChannelName, _: Epoch, _: &[Arc<Publication>], _: ReceiverSet) {}

        fn reset(&self, _: &ChannelName, _: Position, _: ReceiverSet) {}
    }
}
