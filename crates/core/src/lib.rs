//! The words that all crates of the server share, and what each of them may use. Knows no network and no
//! async runtime.
//!
//! * [`settings`]: the table of all settings ([`settings::SPECS`]), the sources that values are read from,
//!   the checked result ([`settings::Settings`]), and every error in them with the place where it is.
//! * [`logging`]: the log, which never blocks: to stdout, and to daily files.
//! * [`clock`]: the time that passes, and the time of day.
//! * [`phase`]: the life of the process, as data.
//! * [`process`]: the limit of open files and what it is divided into, the kernel's descriptor table, and
//!   trimming of the heap.
//! * [`ChannelName`], [`Publication`] and [`Position`]: what is published, where, and its place there.
//! * [`Namespace`]: the rules for the channels whose names begin alike.
//! * [`Host`], [`Authority`] and [`WebOrigin`]: where a request goes to, and the page that it comes from.
//!   [`AllowedOrigins`] and [`ApiKey`] are those that may.

mod api_key;
mod authority;
mod channel;
pub mod clock;
pub mod logging;
mod namespace;
pub mod phase;
mod position;
pub mod process;
mod publication;
pub mod settings;
mod web_origin;

pub use api_key::ApiKey;
pub use authority::{Authority, Host, InvalidAuthority, ListenHost};
pub use channel::{CHANNEL_NAME_RULE, ChannelName, InvalidChannelName, MAX_CHANNEL_NAME};
pub use namespace::{NAMESPACE_NAME_RULE, Namespace, Retention};
pub use position::{Epoch, InvalidPosition, Position};
pub use publication::{ClientMessages, Pin, PinnedBytes, Publication, Publisher};
pub use web_origin::{AllowedOrigins, InvalidWebOrigin, WebOrigin};
