//! One connection as plain data: enough for another process to continue it to the byte.

use std::ops::Not;

use bytes::Bytes;
use lastcall_broker::Since;
use lastcall_core::ChannelName;
use serde::{Deserialize, Serialize};

use super::{State, outbox::Outbox, unread::QueueSnapshot};
use crate::{
    client_id::ClientId,
    codec::{CloseReason, Decoder},
    protocol::Form,
};

/// Everything that a new process needs to continue a connection. Other builds read it, too: fields that they
/// do not know are ignored, and missing ones have their defaults. The serialized names stay. A field that an
/// older build must not ignore requires a new number of the handover protocol.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ConnectionSnapshot {
    pub(crate) id: ClientId,
    pub(crate) form: Form,
    /// The time since it began, in seconds; `None` in builds before protocol 4.
    pub(crate) age_s: Option<u32>,
    #[serde(rename = "life")]
    pub(crate) state: State,
    /// The reason for which the server closed the connection, if it did.
    pub(crate) close_reason: Option<CloseReason>,
    /// The rest of `close_timeout`, in milliseconds, if the connection is closing.
    #[serde(rename = "cut_off_in_ms")]
    pub(crate) close_timeout_in_ms: Option<u64>,
    /// True if anything arrived since the last ping.
    #[serde(rename = "heard")]
    pub(crate) active_since_ping: bool,
    /// Bytes that arrived right after the handshake's request and are not decoded yet. They come before those
    /// of the socket.
    #[serde(skip_serializing_if = "Bytes::is_empty")]
    pub(crate) early_input: Bytes,
    /// Input that is not a whole message yet: part of a header, part of a frame, fragments.
    pub(crate) decoder: Decoder,
    /// Output that the socket has not taken yet, as numbers of buffers.
    #[serde(skip_serializing_if = "QueueSnapshot::is_empty")]
    pub(crate) queue: QueueSnapshot,
    /// The channels that it is subscribed to, in the order of its URL, as numbers. It has everything of them
    /// that was published.
    pub(crate) subscriptions: SubscriptionNumbers,
    /// Those of them that have not begun.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) pending: Vec<PendingSnapshot>,
    /// True if the broker has not answered what has become of texts of its client.
    #[serde(skip_serializing_if = "Not::not")]
    pub(crate) texts_unanswered: bool,
    /// The positions that the ids of its events have, if they are several.
    #[serde(with = "serde_bytes", skip_serializing_if = "Vec::is_empty")]
    pub(crate) stream_positions: Vec<u8>,
    /// Output as version 3 of the handover has it, and as it is restored from `queue`.
    #[serde(skip_serializing)]
    pub(crate) outbox: Outbox,
    /// True if the new process cannot continue the connection, as it does not have all of its output.
    #[serde(skip)]
    pub(crate) is_incomplete: bool,
    /// The channels as version 3 of the handover has them.
    #[serde(skip_serializing)]
    pub(crate) channels: Vec<ChannelName>,
    /// The positions as version 3 of the handover has them; an empty text if there is none.
    #[serde(skip_serializing)]
    pub(crate) positions: Vec<String>,
}

impl ConnectionSnapshot {
    /// Returns about how many bytes the serialized snapshot has.
    pub fn size(&self) -> usize {
        200 + 4 * self.subscriptions.len()
            + 60 * self.pending.len()
            + self.stream_positions.len()
            + self.queue.size()
            + self.decoder.len()
            + self.early_input.len()
    }
}

/// The channels of a connection: their numbers in its event loop.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct SubscriptionNumbers {
    pub(crate) event_loop: usize,
    /// Four bytes for each, the lowest one first.
    #[serde(with = "serde_bytes")]
    numbers: Vec<u8>,
}

/// A subscription that the broker of the old process had not answered, and that of the new one is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PendingSnapshot {
    /// Its index among the channels of the connection.
    pub(crate) index: u32,
    pub(crate) since: Since,
    /// True if the client is told: it named the channel.
    #[serde(rename = "announced")]
    pub(crate) announce: bool,
}

impl SubscriptionNumbers {
    pub(crate) fn new(event_loop: usize, numbers: impl ExactSizeIterator<Item = u32>) -> Self {
        let mut bytes = Vec::with_capacity(4 * numbers.len());
        numbers.for_each(|number| bytes.extend(number.to_le_bytes()));
        Self { event_loop, numbers: bytes }
    }

    pub(crate) fn len(&self) -> usize {
        self.numbers.len() / 4
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = u32> {
        let numbers = self.numbers.chunks_exact(4);
        numbers.map(|bytes| bytes.iter().rev().fold(0, |all, byte| all << 8 | u32::from(*byte)))
    }
}

#[cfg(test)]
mod tests {
    use std::ops::ControlFlow;

    use lastcall_broker::Since;
    use lastcall_core::{Epoch, Position};
    use serde::de::DeserializeOwned;

    use super::{super::outbox::Round, *};
    use crate::codec::{DecoderLimits, Event, Frame};

    /// A connection in the middle of everything: fragments, part of a frame, output that is written in part,
    /// a close.
    fn busy() -> ConnectionSnapshot {
        let mut decoder = Decoder::default();
        let limits = DecoderLimits { max_message_size: 1000, accept_binary: true };
        // The fragment "Hello, " (masked with zeros), and then 2 of 6 bytes of the next one.
        let mut input = b"\x01\x87\0\0\0\0Hello, \x80\x86\x01\x02\x03\x04v\x6d".to_vec();
        decoder.decode(&mut input, limits, |_| ControlFlow::Continue(())).unwrap();
        ConnectionSnapshot {
            id: serde_json::from_str("\"01a20897-adf5-76ce-9f22-e02aacce5ddd\"").unwrap(),
            age_s: None,
            state: State::CloseSent,
            close_reason: Some(CloseReason::ServiceRestart),
            close_timeout_in_ms: Some(1234),
            active_since_ping: true,
            decoder,
            subscriptions: SubscriptionNumbers::new(1, [7, 1 << 20].into_iter()),
            pending: vec![PendingSnapshot {
                index: 1,
                since: Since::Position(Position { epoch: Epoch(10), offset: 5 }),
                announce: true,
            }],
            texts_unanswered: true,
            stream_positions: vec![1; 32],
            ..ConnectionSnapshot::default()
        }
    }

    /// The same one, as builds up to version 3 of the handover have written it.
    fn busy_by_names() -> ConnectionSnapshot {
        let mut outbox = Outbox::default();
        outbox.push(Frame::text("half written").bytes().clone(), 5, Round::default());
        outbox.push(Frame::close(Some((1012, "service restart"))).bytes().clone(), 0, Round::default());
        ConnectionSnapshot {
            subscriptions: SubscriptionNumbers::default(),
            pending: Vec::new(),
            texts_unanswered: false,
            stream_positions: Vec::new(),
            outbox,
            channels: vec![ChannelName::broadcast(), "chat:1".parse().unwrap()],
            ..busy()
        }
    }

    const STATES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/states");

    fn read<T: DeserializeOwned>(bytes: &[u8]) -> T {
        rmp_serde::from_slice(bytes).unwrap()
    }

    #[test]
    fn a_snapshot_continues_where_the_connection_was() {
        let mut state: ConnectionSnapshot = read(&rmp_serde::to_vec_named(&busy()).unwrap());
        assert_eq!(state, busy());
        assert!(state.size() >= 200 + 8 + 32 + 9);
        assert_eq!(state.subscriptions.iter().collect::<Vec<_>>(), [7, 1 << 20]);
        let mut events = Vec::new();
        let limits = DecoderLimits { max_message_size: 1000, accept_binary: true };
        let mut rest = b"qhe#".to_vec();
        state
            .decoder
            .decode(&mut rest, limits, |event| {
                events.push(format!("{event:?}"));
                ControlFlow::Continue(())
            })
            .unwrap();
        assert_eq!(events, [format!("{:?}", Event::Text("Hello, world!"))]);
    }

    #[test]
    fn snapshots_that_earlier_builds_recorded_can_be_read() {
        let recorded = |name: &str| std::fs::read(format!("{STATES}/{name}.msgpack")).unwrap();
        // It knew no channels.
        let expected = ConnectionSnapshot { channels: Vec::new(), ..busy_by_names() };
        assert_eq!(read::<ConnectionSnapshot>(&recorded("connection-0.1.0")), expected);
        let expected = ConnectionSnapshot {
            form: Form::UnchunkedEventStream,
            positions: vec!["000000000000000a-5".into(), String::new()],
            ..busy_by_names()
        };
        let mut state = read::<ConnectionSnapshot>(&recorded("connection-protocol-3"));
        assert_eq!(state, expected);
        let mut written = Vec::new();
        state.outbox.flush(&mut written).unwrap();
        assert_eq!(written, b"f written\x88\x11\x03\xF4service restart");
        let expected = busy();
        assert_eq!(read::<ConnectionSnapshot>(&recorded("connection-protocol-4")), expected);
    }

    /// The version of the handover that the record is of.
    const PROTOCOL: u32 = 4;

    /// Run by hand, once for each version that changes the format: `cargo test -p lastcall-websockets record
    /// -- --ignored`.
    #[test]
    #[ignore = "writes the records that the test above reads"]
    fn record() {
        std::fs::create_dir_all(STATES).unwrap();
        let name = format!("{STATES}/connection-protocol-{PROTOCOL}.msgpack");
        std::fs::write(name, rmp_serde::to_vec_named(&busy()).unwrap()).unwrap();
    }

    #[test]
    fn unknown_fields_are_ignored_and_missing_ones_have_their_defaults() {
        #[derive(Serialize)]
        struct Newer {
            id: ClientId,
            heard: bool,
            compression: Option<Vec<u8>>,
        }
        let id = ClientId::generate();
        let newer = rmp_serde::to_vec_named(&Newer { id, heard: true, compression: Some(vec![1]) }).unwrap();
        let state: ConnectionSnapshot = read(&newer);
        assert_eq!(
            state,
            ConnectionSnapshot { id, active_since_ping: true, ..ConnectionSnapshot::default() }
        );
    }
}

#[cfg(test)]
mod fuzz;
