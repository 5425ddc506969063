//! The servers that clients come back to, and how each is asked.

use std::{net::SocketAddr, path::Path, time::Duration};

use serde::Serialize;

use super::{delivery_log::text, nginx::Nginx, stream_parser::Wire};
use crate::{
    client::KEY,
    contestant::{Contestant, Mode, Running, Servers},
    process::Process,
};

/// Bytes of each publication.
const PAYLOAD: usize = 64;

/// A server, and how its subscribers are connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Subject {
    LastcallEvents,
    LastcallWebSocket,
    NchanEvents,
    NchanWebSocket,
}

impl Subject {
    pub(super) const ALL: [Self; 4] =
        [Self::LastcallEvents, Self::LastcallWebSocket, Self::NchanEvents, Self::NchanWebSocket];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::LastcallEvents => "lastcall, events",
            Self::LastcallWebSocket => "lastcall, WebSocket",
            Self::NchanEvents => "nchan, events",
            Self::NchanWebSocket => "nchan, WebSocket",
        }
    }

    pub(super) fn wire(self) -> Wire {
        match self {
            Self::LastcallEvents | Self::NchanEvents => Wire::Events,
            Self::LastcallWebSocket | Self::NchanWebSocket => Wire::WebSocket,
        }
    }

    fn is_lastcall(self) -> bool {
        matches!(self, Self::LastcallEvents | Self::LastcallWebSocket)
    }

    /// Starts the server.
    pub(super) fn start(self, servers: &Servers, out: &Path) -> anyhow::Result<Server> {
        if self.is_lastcall() {
            let variables = [("HISTORY_SIZE", "1000")];
            let running = servers.start_with(Contestant::Lastcall, Mode::Broadcast, 0, &variables)?;
            Ok(Server::Lastcall(running))
        } else {
            Ok(Server::Nchan(Nginx::start(out)?))
        }
    }

    /// Returns the request of a subscriber that has this id, if it comes back.
    pub(super) fn request(self, address: SocketAddr, channel: &str, id: Option<&str>) -> String {
        let (path, field) = match self {
            Self::LastcallEvents => (format!("/events?channel={channel}"), "Last-Event-ID"),
            Self::LastcallWebSocket => (format!("/ws?channel={channel}"), "since"),
            Self::NchanEvents => (format!("/sub/{channel}?"), "Last-Event-ID"),
            Self::NchanWebSocket => (format!("/sub/{channel}?"), "last_event_id"),
        };
        match self.wire() {
            Wire::Events => {
                let id = id.map(|id| format!("{field}: {id}\r\n")).unwrap_or_default();
                format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nAccept: text/event-stream\r\n{id}\r\n")
            }
            Wire::WebSocket => {
                let id = id.map(|id| format!("&{field}={id}")).unwrap_or_default();
                let subprotocol =
                    if self.is_lastcall() { "" } else { "Sec-WebSocket-Protocol: ws+meta.nchan\r\n" };
                format!(
                    "GET {path}{id} HTTP/1.1\r\nHost: {address}\r\nUpgrade: websocket\r\n\
                     Connection: Upgrade\r\nSec-WebSocket-Key: {KEY}\r\nSec-WebSocket-Version: 13\r\n\
                     {subprotocol}\r\n"
                )
            }
        }
    }

    /// Returns the requests that publish a text with this number into each of these channels.
    pub(super) fn publications(
        self,
        channels: &[String],
        sequence: u32,
        sent: Duration,
    ) -> Vec<(String, String)> {
        let text = text(sequence, sent.as_nanos() as u64, PAYLOAD);
        if !self.is_lastcall() {
            let body = format!("\"{text}\"");
            return channels.iter().map(|channel| (format!("/pub/{channel}"), body.clone())).collect();
        }
        let publications: Vec<_> =
            channels.iter().map(|channel| format!(r#"{{"channel":"{channel}","data":"{text}"}}"#)).collect();
        let body = format!(r#"{{"publications":[{}]}}"#, publications.join(","));
        vec![("/api/publish/batch".to_owned(), body)]
    }
}

/// A server that runs; it ends when this is dropped.
pub(super) enum Server {
    Lastcall(Running),
    Nchan(Nginx),
}

impl Server {
    pub(super) fn address(&self) -> SocketAddr {
        let port = match self {
            Self::Lastcall(running) => running.port,
            Self::Nchan(nginx) => nginx.port,
        };
        SocketAddr::from(([127, 0, 0, 1], port))
    }

    /// Returns its processes.
    pub(super) fn processes(&self) -> anyhow::Result<Processes> {
        Ok(Processes(match self {
            Self::Lastcall(running) => vec![running.process()],
            Self::Nchan(nginx) => nginx.processes()?,
        }))
    }
}

/// The processes of one server.
#[derive(Debug, Clone)]
pub(super) struct Processes(Vec<Process>);

impl Processes {
    /// Returns the CPU time of all.
    pub(super) fn cpu(&self) -> anyhow::Result<Duration> {
        self.0.iter().map(|process| process.cpu()).sum()
    }

    /// Returns the memory of all, in bytes. What they share counts once.
    pub(super) fn memory(&self) -> anyhow::Result<u64> {
        self.0.iter().map(|process| process.proportional_memory()).sum()
    }
}
