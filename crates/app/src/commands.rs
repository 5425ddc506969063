//! The commands of an operator to a server that runs: `lastcall upgrade` and `lastcall status`.

mod output;
mod server_address;
mod status;
mod upgrade;

pub(crate) use status::status;
pub(crate) use upgrade::upgrade;
