//! The operator's decisions: every setting, its default, its value and the source of the value.
//!
//! A value goes through these files: `settings_file`, `dot_env` and `environment` read a source each into a
//! `layer`, `loader` merges the layers with figment and collects the errors, `parse` makes a value of what
//! was written, and `load` makes [`Settings`] of them all. `namespace` does the same for the tables of the
//! settings file. `spec` is the list of all settings, which the others go by.

mod dot_env;
mod environment;
mod error;
mod layer;
mod load;
mod loader;
mod namespace;
mod parse;
mod settings_file;
mod sources;
mod spec;
mod text_file;

#[cfg(test)]
mod tests;

use std::{env, ffi::OsStr, path::PathBuf, time::Duration};

use crate::{AllowedOrigins, ApiKey, ClientMessages, ListenHost, Namespace, Retention};

pub use error::{Problem, SettingError, SettingsErrors};
pub use load::{EffectiveSetting, Loaded};
pub use sources::{SettingsFile, Source, Sources};
pub use spec::{Group, SPECS, Spec};

/// The look of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// `pretty` on a terminal, `json` elsewhere.
    Auto,
    /// For people.
    Pretty,
    /// One JSON object a line.
    Json,
}

/// The settings in force, checked.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Host name or address to listen on.
    pub host: ListenHost,
    /// Port to listen on; 0 picks a free one.
    pub port: u16,
    /// The time that an HTTP connection may wait for a request.
    pub keep_alive_timeout: Duration,
    /// Time between periodic notifications; `None`: off.
    pub notification_interval: Option<Duration>,
    /// The bounds of what is kept of each channel: `history_size` and `history_ttl`.
    pub retention: Retention,
    /// Most bytes of history over all channels.
    pub history_bytes: usize,
    /// The file to which a graceful shutdown writes the history, and the next start reads it; absolute if the
    /// working directory is known. `None`: a restart starts without history.
    pub history_file: Option<PathBuf>,
    /// The rules for the channels of each namespace, in the order of the settings file.
    pub namespaces: Vec<Namespace>,
    /// The time that a drain waits for clients before it closes them.
    pub shutdown_timeout: Duration,
    /// The time that new clients are still admitted after the process was asked to end.
    pub shutdown_delay: Duration,
    /// Time before the deadline over which the closes are spread; 0: all at the deadline.
    pub shutdown_spread: Duration,
    /// The time that a new process may take to get ready for a handover.
    pub upgrade_timeout: Duration,
    /// Folder of the control socket.
    pub runtime_dir: RuntimeDir,
    /// The time that a client has to answer a close frame before its TCP socket is closed.
    pub close_timeout: Duration,
    /// The effect of a client's text.
    pub client_messages: ClientMessages,
    /// The highest number of clients at a time.
    pub max_connections: usize,
    /// The highest number of HTTP connections at a time, besides.
    pub max_http_connections: usize,
    /// Largest message a client may send, in bytes.
    pub max_message_size: usize,
    /// Bytes that may wait for one slow client.
    pub max_queue: usize,
    /// Bytes a second that one client's texts may become for each client that gets them; `None`: no bound.
    pub max_client_rate: Option<u64>,
    /// The same for the texts of all clients together.
    pub max_total_rate: Option<u64>,
    /// Time between pings; `None`: off.
    pub ping_interval: Option<Duration>,
    /// The time that a client has to answer a ping.
    pub pong_timeout: Duration,
    /// The web pages that may open a WebSocket.
    pub allowed_origins: AllowedOrigins,
    /// Keys that `/api/…` accepts; empty: only loopback may call.
    pub api_keys: Vec<ApiKey>,
    /// Filter directives for the log.
    pub log_level: String,
    /// The look of log lines.
    pub log_format: LogFormat,
    /// Folder of the daily rolling log files; `None`: no files.
    pub log_dir: Option<PathBuf>,
    /// Folder of templates that replace the built-in ones.
    pub templates_dir: Option<PathBuf>,
}

/// The folder of the control socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RuntimeDir {
    /// A service manager made it for this service alone (systemd.exec(5), `RuntimeDirectory=`). That it
    /// cannot be used is an error.
    Service(PathBuf),
    /// It was set. That it cannot be used is an error.
    Chosen(PathBuf),
    /// It was not set. Without it, there is no control socket.
    Default(PathBuf),
}

impl RuntimeDir {
    /// Returns the folder.
    pub fn path(&self) -> &PathBuf {
        match self {
            Self::Service(path) | Self::Chosen(path) | Self::Default(path) => path,
        }
    }

    /// XDG_RUNTIME_DIR (XDG Base Directory Specification) is the user's own and goes with the session; where
    /// there is none, as for most services, a folder that carries the user's number stands in.
    fn default(xdg_runtime_dir: Option<&OsStr>) -> Self {
        Self::Default(match xdg_runtime_dir.map(PathBuf::from).filter(|path| path.is_absolute()) {
            Some(path) => path.join("lastcall"),
            None => env::temp_dir().join(format!("lastcall-{}", rustix::process::geteuid().as_raw())),
        })
    }
}
