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
//!
//! Every value of a setting has a source, and all that is wrong is found at once:
//!
//! ```
//! use lastcall_core::settings::{Settings, Sources};
//!
//! let mut sources = Sources {
//!     environment: vec![("PORT".into(), "9000".into())],
//!     command_line: vec![("allowed_origins", "https://example.org".into())],
//!     ..Sources::default()
//! };
//! let loaded = Settings::load(&sources)?;
//! assert_eq!(loaded.settings.port, 9000);
//! assert_eq!(loaded.source("port").unwrap().to_string(), "environment variable PORT");
//! assert!(loaded.settings.allowed_origins.include("https://example.org:443", None));
//!
//! sources.environment.push(("LASTCALL_PROT".into(), "9001".into()));
//! sources.command_line.push(("max_queue", "64K".into()));
//! let errors = Settings::load(&sources).unwrap_err().to_string();
//! assert!(errors.starts_with("2 settings are wrong"));
//! assert!(errors.contains("prot (environment variable LASTCALL_PROT): unknown setting; did you mean port?"));
//! assert!(errors.contains("max_queue = \"64K\" (command line --max-queue): expected "));
//! # Ok::<(), lastcall_core::settings::SettingsErrors>(())
//! ```

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
