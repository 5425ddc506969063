//! The plain protocol, `docs/protocol.md`: the JSON objects that the server sends.

use std::io;

use jiff::Timestamp;
use lastcall_core::{ChannelName, Epoch, Position, Publication, Publisher};
use serde::{Serialize, Serializer, ser::SerializeStruct};
use serde_json::value::RawValue;

use super::Outgoing;
use crate::{client_id::ClientId, codec::Frame};

/// Room for a message whose data is small, in bytes.
pub(crate) const USUAL_SIZE: usize = 256;

/// Encodes a message as one frame.
pub(crate) fn frame(message: &Outgoing<'_>) -> Frame {
    let mut json = Vec::with_capacity(USUAL_SIZE);
    write_json(&mut json, message);
    Frame::text(&json)
}

/// Appends a message as JSON, in UTF-8.
pub(crate) fn write_json(bytes: &mut Vec<u8>, message: &Outgoing<'_>) {
    // Only maps with keys that are not strings and fallible implementations can fail: these types have
    // neither.
    serde_json::to_writer(bytes, &ServerMessage::from(message))
        .expect("a server message is always valid JSON");
}

/// Returns how many bytes a message has as JSON.
pub(crate) fn json_size(message: &Outgoing<'_>) -> usize {
    let mut counter = Counter(0);
    // As in `write_json`.
    serde_json::to_writer(&mut counter, &ServerMessage::from(message))
        .expect("a server message is always valid JSON");
    counter.0
}

/// Returns the `type` of a message.
pub(crate) fn name(message: &Outgoing<'_>) -> &'static str {
    match message {
        Outgoing::Welcome { .. } => "welcome",
        Outgoing::Subscribed { .. } => "subscribed",
        Outgoing::Reset { .. } => "reset",
        Outgoing::Publication { publication, .. } => match publication.publisher {
            Publisher::Client(_) => "message",
            Publisher::Server | Publisher::Api => "notification",
        },
        Outgoing::Shutdown { .. } => "shutdown",
        Outgoing::Error { .. } => "error",
    }
}

/// A message as a JSON object.
#[derive(Debug, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum ServerMessage<'a> {
    /// The first message on every connection.
    Welcome {
        /// The id of this connection.
        client: ClientId,
        /// The server that serves it.
        server: ServerInfo,
    },
    /// The start of a subscription that the client named.
    Subscribed {
        /// The channel.
        channel: &'a ChannelName,
        /// The position from which on the client gets everything.
        id: Position,
        /// True if that is the position that the client asked for.
        recovered: bool,
    },
    /// The client's position in a channel is worth nothing any more.
    Reset {
        /// The channel.
        channel: &'a ChannelName,
        /// Its position now.
        id: Position,
    },
    /// A notification from the server or its API.
    Notification {
        /// The channel that it was published in.
        channel: &'a ChannelName,
        /// Its position there.
        id: Position,
        /// Its source.
        source: NotificationSource,
        /// The time at which it was published.
        #[serde(serialize_with = "rfc3339")]
        time: Timestamp,
        /// Any JSON.
        data: &'a RawValue,
    },
    /// A text that a client sent.
    Message {
        /// The channel that it was published in.
        channel: &'a ChannelName,
        /// Its position there.
        id: Position,
        /// The time at which it arrived.
        #[serde(serialize_with = "rfc3339")]
        time: Timestamp,
        /// The client that sent it.
        from: ClientId,
        /// The text, as a JSON string.
        data: &'a RawValue,
    },
    /// The server is going to close this connection.
    Shutdown {
        /// The time at which this message was sent.
        #[serde(serialize_with = "rfc3339")]
        time: Timestamp,
        /// The reason, for people.
        reason: &'a str,
        /// The time at which the connections that are still open are closed.
        #[serde(serialize_with = "rfc3339")]
        deadline: Timestamp,
        /// Seconds from `time` to `deadline`.
        seconds_left: f64,
        /// Advice on how to reconnect.
        reconnect: Reconnect,
    },
    /// The client's last frame was not accepted.
    Error {
        /// For programs: snake_case, stable.
        code: &'a str,
        /// For people.
        message: &'a str,
    },
}

/// The source of a notification. `data` from the API is any JSON, and so could look like the server's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum NotificationSource {
    /// The server itself: the periodic notification.
    Server,
    /// A request to `POST /api/publish`.
    Api,
}

/// The server's name and version.
#[derive(Debug, Clone, Copy)]
struct ServerInfo;

impl Serialize for ServerInfo {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut server = serializer.serialize_struct("ServerInfo", 2)?;
        server.serialize_field("name", "lastcall")?;
        server.serialize_field("version", env!("CARGO_PKG_VERSION"))?;
        server.end()
    }
}

/// The time at which a client should reconnect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
struct Reconnect {
    /// Milliseconds after its close.
    after_ms: u64,
}

impl<'a> From<&Outgoing<'a>> for ServerMessage<'a> {
    fn from(message: &Outgoing<'a>) -> Self {
        match *message {
            Outgoing::Welcome { client } => Self::Welcome { client, server: ServerInfo },
            Outgoing::Subscribed { channel, start, recovered, .. } => {
                Self::Subscribed { channel, id: start, recovered }
            }
            Outgoing::Publication { channel, epoch, publication } => {
                Self::publication(channel, epoch, publication)
            }
            Outgoing::Reset { channel, position } => Self::Reset { channel, id: position },
            Outgoing::Shutdown { time, reason, deadline, left, reconnect_after, .. } => Self::Shutdown {
                time,
                reason,
                deadline,
                seconds_left: (left.as_secs_f64() * 1000.0).round() / 1000.0,
                reconnect: Reconnect { after_ms: reconnect_after.as_millis() as u64 },
            },
            Outgoing::Error { code, message } => Self::Error { code, message },
        }
    }
}

impl<'a> ServerMessage<'a> {
    fn publication(channel: &'a ChannelName, epoch: Epoch, publication: &'a Publication) -> Self {
        let id = Position { epoch, offset: publication.offset };
        // A time that no clock shows comes from a broken file or process.
        let time = Timestamp::from_millisecond(publication.time_ms).unwrap_or(Timestamp::UNIX_EPOCH);
        let data = &*publication.data;
        match publication.publisher {
            Publisher::Client(from) => Self::Message { channel, id, time, from: ClientId::from(from), data },
            Publisher::Server => {
                Self::Notification { channel, id, source: NotificationSource::Server, time, data }
            }
            Publisher::Api => Self::Notification { channel, id, source: NotificationSource::Api, time, data },
        }
    }
}

/// Counts the bytes that are written to it.
struct Counter(usize);

impl io::Write for Counter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 += bytes.len();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Serializes a time as RFC 3339, in UTC, with milliseconds.
fn rfc3339<S: Serializer>(time: &Timestamp, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&format_args!("{time:.3}"))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn json(message: &Outgoing<'_>) -> String {
        let mut json = Vec::new();
        write_json(&mut json, message);
        let json = String::from_utf8(json).unwrap();
        assert_eq!(json_size(message), json.len());
        assert!(json.starts_with(&format!("{{\"type\":\"{}\"", name(message))), "{json}");
        json
    }

    #[test]
    fn messages_are_as_the_protocol_documents_them() {
        let time: Timestamp = "2026-01-02T03:04:05Z".parse().unwrap();
        let client = ClientId::generate();
        let data = RawValue::from_string("{\"a\":[1,null]}".into()).unwrap();
        let channel: ChannelName = "chat:1".parse().unwrap();
        let epoch = Epoch(0xabc);
        let publication = |publisher, data: &str| Publication {
            offset: 7,
            time_ms: time.as_millisecond(),
            publisher,
            data: RawValue::from_string(data.into()).unwrap(),
            pin: lastcall_core::Pin::default(),
        };
        let version = env!("CARGO_PKG_VERSION");
        assert_eq!(
            json(&Outgoing::Welcome { client }),
            format!(
                r#"{{"type":"welcome","client":"{client}","server":{{"name":"lastcall","version":"{version}"}}}}"#
            )
        );
        let subscribed = Outgoing::Subscribed {
            channel: &channel,
            start: Position { epoch, offset: 0 },
            recovered: true,
            wants_recovery: true,
        };
        assert_eq!(
            json(&subscribed),
            r#"{"type":"subscribed","channel":"chat:1","id":"0000000000000abc-0","recovered":true}"#
        );
        assert_eq!(
            json(&Outgoing::Reset { channel: &channel, position: Position { epoch, offset: 7 } }),
            r#"{"type":"reset","channel":"chat:1","id":"0000000000000abc-7"}"#
        );
        for (publisher, name) in [(Publisher::Server, "server"), (Publisher::Api, "api")] {
            assert_eq!(
                json(&Outgoing::Publication {
                    channel: &channel,
                    epoch,
                    publication: &publication(publisher, data.get())
                }),
                format!(
                    r#"{{"type":"notification","channel":"chat:1","id":"0000000000000abc-7","source":"{name}","time":"2026-01-02T03:04:05.000Z","data":{{"a":[1,null]}}}}"#
                )
            );
        }
        let text = publication(Publisher::Client(client.into()), r#""a \"b\"\n""#);
        assert_eq!(
            json(&Outgoing::Publication { channel: &channel, epoch, publication: &text }),
            format!(
                r#"{{"type":"message","channel":"chat:1","id":"0000000000000abc-7","time":"2026-01-02T03:04:05.000Z","from":"{client}","data":"a \"b\"\n"}}"#
            )
        );
        let shutdown = Outgoing::Shutdown {
            time,
            reason: "service restart",
            deadline: time,
            left: Duration::from_micros(1_500_400),
            reconnect_after: Duration::from_millis(250),
            is_last: false,
        };
        assert_eq!(
            json(&shutdown),
            r#"{"type":"shutdown","time":"2026-01-02T03:04:05.000Z","reason":"service restart","deadline":"2026-01-02T03:04:05.000Z","seconds_left":1.5,"reconnect":{"after_ms":250}}"#
        );
        assert_eq!(
            json(&Outgoing::Error { code: "unsupported_data", message: "no" }),
            r#"{"type":"error","code":"unsupported_data","message":"no"}"#
        );
    }
}
