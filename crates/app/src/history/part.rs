//! A part of the history as bytes: MessagePack with named fields, which other versions can read.

use lastcall_broker::BrokerPart;

/// Encodes a part.
///
/// # Errors
/// When it cannot be encoded, which is a bug.
pub(crate) fn encode(part: &BrokerPart) -> Result<Vec<u8>, rmp_serde::encode::Error> {
    rmp_serde::to_vec_named(part)
}

/// Decodes a part.
///
/// # Errors
/// When the bytes are none.
pub(crate) fn decode(bytes: &[u8]) -> Result<BrokerPart, rmp_serde::decode::Error> {
    rmp_serde::from_slice(bytes)
}
