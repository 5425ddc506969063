//! All messages between the old and the new process, and between an operator's command and a server: the wire
//! format, as MessagePack with named fields. Both sides use these types.
//!
//! Unknown fields are ignored and missing ones have defaults, so that a newer and an older build understand
//! each other. A change that another build cannot understand, or must not ignore, raises [`PROTOCOL`]. Where
//! a name here differs from that on the wire, the type says so.

use std::{net::SocketAddr, ops::RangeInclusive, path::PathBuf};

use serde::{Deserialize, Serialize};

use crate::path;

/// The version of the handover by which this build hands over.
///
/// 1: the new process connected to the control socket. 2: it inherits a socket of its own, and says when it
/// serves. 3: channels and their history are handed over, too, in parts that come before the server. 4:
/// subscriptions are numbers, and what clients have not read comes in parts, each byte once; streams of
/// server-sent events may be chunked.
pub const PROTOCOL: u32 = 4;

/// The oldest version of the handover by which this build takes over.
pub const OLDEST_PROTOCOL: u32 = 3;

/// The first message on a connection: at the control socket, or from a new process.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FirstMessage {
    /// A new process that is to take over. At the control socket, only builds of protocol 1 send it.
    Hello(Hello),
    /// A command of an operator.
    Command(ControlCommand),
}

/// The message in which a process describes itself.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Hello {
    /// The oldest version of the handover that the process understands: builds up to version 3 want it to be
    /// their own. Of an old process, the version by which it hands over.
    pub protocol: u32,
    /// The newest version that it understands. Builds up to version 3 do not say it.
    #[serde(skip_serializing_if = "is_zero")]
    pub newest: u32,
    /// The version of the program.
    pub version: String,
    /// The number of the process.
    pub pid: u32,
    /// The settings files that it has read, by their absolute paths.
    #[serde(with = "path::list")]
    pub files: Vec<PathBuf>,
    /// Of these, the ones without any setting.
    #[serde(with = "path::list", skip_serializing_if = "Vec::is_empty")]
    pub empty_files: Vec<PathBuf>,
}

impl Hello {
    /// Returns the versions of the handover that the process understands.
    pub(crate) fn protocols(&self) -> RangeInclusive<u32> {
        self.protocol..=self.newest.max(self.protocol)
    }
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
fn is_zero(number: &u32) -> bool {
    *number == 0
}

/// A command of an operator to a running server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ControlCommand {
    /// Start a new process and hand everything over to it. Answered with [`UpgradeProgress`].
    Upgrade,
    /// Say where the server listens. Answered with [`ServerAddress`]; older builds close the connection.
    Address,
}

/// Where a server listens: the answer to [`ControlCommand::Address`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerAddress {
    /// The address of the listening socket.
    pub address: SocketAddr,
    /// True if a service manager chose it, and not the settings.
    pub activated: bool,
}

/// The progress of an upgrade: the answers to [`ControlCommand::Upgrade`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UpgradeProgress {
    /// A new process was started.
    Started {
        /// The number of the new process.
        pid: u32,
        /// The file that it runs.
        #[serde(with = "path")]
        program: PathBuf,
        /// The longest that the upgrade may take from here, in seconds.
        most_seconds: u64,
    },
    /// The new process has taken over, and serves.
    Done {
        /// The number of the new process.
        pid: u32,
        /// The file that it runs.
        #[serde(with = "path")]
        program: PathBuf,
        /// Its version.
        version: String,
        /// The version of the old process; older builds do not say it.
        #[serde(default)]
        old_version: Option<String>,
        /// The settings files that the new process has read, by their absolute paths.
        #[serde(with = "path::list")]
        files: Vec<PathBuf>,
        /// Clients that were handed over.
        clients: usize,
        /// The time for which the clients were not served, in milliseconds.
        paused_ms: f64,
    },
    /// The upgrade did not take place.
    Failed {
        /// The reason, for people.
        reason: String,
    },
}

/// Messages of the new process, after its [`FirstMessage::Hello`], in this order.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum FromNew {
    /// It has loaded and built everything, and could take over now.
    Ready {
        /// The most clients that it can take.
        #[serde(rename = "room")]
        max_clients: usize,
    },
    /// It has received everything, and touches nothing of it yet.
    Complete {
        /// Clients that it has received.
        clients: usize,
    },
    /// It serves. Sent after [`FromOld::Commit`].
    Serving,
}

/// Messages of the old process; `S` is the state of the server, `C` that of one client. In this order, with
/// [`FromOld::Refused`] in place of any of the first ones.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum FromOld<S, C> {
    /// The answer to the hello: the new process may get ready.
    #[serde(rename = "welcome")]
    Accepted(Hello),
    /// There will be no handover.
    Refused {
        /// The reason, for people.
        reason: String,
    },
    /// A part of what is handed over beside the server and its clients: channels and their history. Any
    /// number of them; the first ones come while the old process serves.
    Part(#[serde(with = "serde_bytes")] Vec<u8>),
    /// The state of the server, with its first descriptors: as many as fit into one message.
    Server(S),
    /// More descriptors of the server.
    Descriptors,
    /// Some clients, with one descriptor for each.
    Clients(Vec<C>),
    /// There are no more clients.
    End {
        /// Clients that were sent.
        clients: usize,
    },
    /// From here on the sockets are the new process's.
    Commit,
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// Returns what another build reads.
    fn on_the_wire(message: impl Serialize) -> Value {
        let bytes = rmp_serde::to_vec_named(&message).unwrap();
        rmp_serde::from_slice(&bytes).unwrap()
    }

    #[test]
    fn messages_have_the_names_of_every_build_of_this_protocol() {
        let files = vec!["/f".into()];
        let (protocol, newest) = (OLDEST_PROTOCOL, PROTOCOL);
        let hello = Hello { protocol, newest, version: "1".into(), pid: 2, files, ..Hello::default() };
        let described = json!({ "protocol": 3, "newest": 4, "version": "1", "pid": 2, "files": ["/f"] });
        assert_eq!(on_the_wire(FirstMessage::Hello(hello.clone())), json!({ "hello": described }));
        assert_eq!(
            on_the_wire(FirstMessage::Command(ControlCommand::Upgrade)),
            json!({ "command": "upgrade" })
        );
        assert_eq!(
            on_the_wire(FirstMessage::Command(ControlCommand::Address)),
            json!({ "command": "address" })
        );
        assert_eq!(on_the_wire(FromOld::<u8, u8>::Accepted(hello)), json!({ "welcome": described }));
        let refused = FromOld::<u8, u8>::Refused { reason: "r".into() };
        assert_eq!(on_the_wire(refused), json!({ "refused": { "reason": "r" } }));
        // JSON has no bytes.
        let part = rmp_serde::to_vec_named(&FromOld::<u8, u8>::Part(vec![7, 8])).unwrap();
        assert_eq!(part, b"\x81\xA4part\xC4\x02\x07\x08");
        assert_eq!(on_the_wire(FromOld::<u8, u8>::Server(1)), json!({ "server": 1 }));
        assert_eq!(on_the_wire(FromOld::<u8, u8>::Descriptors), json!("descriptors"));
        assert_eq!(on_the_wire(FromOld::<u8, u8>::Clients(vec![1, 2])), json!({ "clients": [1, 2] }));
        assert_eq!(on_the_wire(FromOld::<u8, u8>::End { clients: 2 }), json!({ "end": { "clients": 2 } }));
        assert_eq!(on_the_wire(FromOld::<u8, u8>::Commit), json!("commit"));
        assert_eq!(on_the_wire(FromNew::Ready { max_clients: 3 }), json!({ "ready": { "room": 3 } }));
        assert_eq!(on_the_wire(FromNew::Complete { clients: 2 }), json!({ "complete": { "clients": 2 } }));
        assert_eq!(on_the_wire(FromNew::Serving), json!("serving"));
    }
}
