//! What the two processes say to each other. Unknown fields are ignored and missing ones have defaults, so
//! that a newer and an older build understand each other; what cannot be understood at all raises
//! [`PROTOCOL`].

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// The version of the transaction. Both sides must have the same.
///
/// 1: the new process connected to the control socket. 2: it inherits a socket of its own, and says when it serves.
pub const PROTOCOL: u32 = 2;

/// The first message on a connection to the control socket, and of a new process.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FirstMessage {
    /// A new process that is to take over. On the control socket, only builds of protocol 1 send it.
    Hello(Hello),
    /// What an operator asks for.
    Command(ControlCommand),
}

/// What a process says of itself.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Hello {
    /// [`PROTOCOL`].
    pub protocol: u32,
    /// The version of the program.
    pub version: String,
    /// The number of its process.
    pub pid: u32,
    /// The settings files that it has read, by their absolute paths.
    pub files: Vec<PathBuf>,
}

/// What an operator can ask of a running process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ControlCommand {
    /// Start a new process and hand everything to it. Answered with [`UpgradeProgress`].
    Upgrade,
}

/// How an upgrade goes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UpgradeProgress {
    /// A new process was started.
    Started {
        /// The number of the new process.
        pid: u32,
        /// The file that it runs.
        program: PathBuf,
        /// The longest that the upgrade may take from here, in seconds.
        most_seconds: u64,
    },
    /// The new process has taken over, and serves.
    Done {
        /// The number of the new process.
        pid: u32,
        /// The file that it runs.
        program: PathBuf,
        /// Its version.
        version: String,
        /// The version of the process before it; older builds do not say it.
        #[serde(default)]
        old_version: Option<String>,
        /// The settings files that it has read, by their absolute paths.
        files: Vec<PathBuf>,
        /// Clients that were handed over.
        clients: usize,
        /// How long the clients were not served, in milliseconds.
        paused_ms: f64,
    },
    /// The upgrade did not take place.
    Failed {
        /// Why, for people.
        reason: String,
    },
}

/// What the new process says.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum FromNew {
    /// It could take over now.
    Ready {
        /// Most clients that it can take.
        room: usize,
    },
    /// It has everything, and touches nothing of it yet.
    Complete {
        /// Clients that it has.
        clients: usize,
    },
    /// It serves. Sent after [`FromOld::Commit`].
    Serving,
}

/// What the old process says; `S` is its own state, `C` that of a client.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum FromOld<S, C> {
    /// Who it is; the new process may get ready.
    Welcome(Hello),
    /// There will be no upgrade.
    Refused {
        /// Why, for people.
        reason: String,
    },
    /// What there is once. Carries its descriptors, as far as they fit.
    Server(S),
    /// Carries more of its descriptors.
    Descriptors,
    /// Some clients. Carries a descriptor for each.
    Clients(Vec<C>),
    /// That was all.
    End {
        /// How many clients there were.
        clients: usize,
    },
    /// From here on the sockets are the new process's.
    Commit,
}
