//! Server-sent events (HTML Standard, section 9.2): the messages of the plain protocol for `EventSource` and
//! curl.

use std::{fmt::Display, io::Write, time::Duration};

use bytes::Bytes;
use lastcall_core::Position;

use super::{
    Outgoing,
    chunk::ChunkWriter,
    plain::{self, USUAL_SIZE},
};
use crate::client_id::ClientId;

/// The shortest time after which an `EventSource` comes back.
const MIN_RETRY: Duration = Duration::from_secs(1);

/// The beginning of a line of data.
const DATA: &[u8] = b"data: ";

/// The beginning of a line with an id.
const ID: &[u8] = b"id: ";

/// A comment, which clients ignore, as a chunk. No empty line follows: some libraries take that for the end
/// of an empty event.
pub(crate) const COMMENT: Bytes = Bytes::from_static(b"2\r\n:\n\r\n");

/// Encodes a message in a chunk. The id of an event with a position is this position, between these others.
pub(crate) fn encode(message: &Outgoing<'_>, positions: [&str; 2]) -> Bytes {
    let size = 2 * USUAL_SIZE + positions[0].len() + positions[1].len();
    let mut chunk = ChunkWriter::with_capacity(size);
    write(chunk.content(), message, positions);
    chunk.finish()
}

/// Appends a message as an event, or two.
pub(crate) fn write(bytes: &mut Vec<u8>, message: &Outgoing<'_>, [before, after]: [&str; 2]) {
    let write_position = |bytes: &mut Vec<u8>, position: Position| {
        write_id(bytes, [before.as_bytes(), position.to_string().as_bytes(), after.as_bytes()]);
    };
    match *message {
        // It replaces the time that the last drain has given the client.
        Outgoing::Welcome { client } => write_field(bytes, "retry", &retry_after(client).as_millis()),
        // An `EventSource` comes back by itself, when the event says.
        Outgoing::Shutdown { reconnect_after, is_last: true, .. } => {
            write_field(bytes, "retry", &reconnect_after.as_millis());
        }
        Outgoing::Subscribed { channel, start, recovered: false, wants_recovery: true } => {
            write_body(bytes, message);
            // The position moves with the last one: a client that does not get the `reset` comes back with
            // its old position, and is told then.
            return write(bytes, &Outgoing::Reset { channel, position: start }, [before, after]);
        }
        Outgoing::Subscribed { start: position, .. } | Outgoing::Reset { position, .. } => {
            write_position(bytes, position);
        }
        Outgoing::Publication { epoch, publication, .. } => {
            write_position(bytes, Position { epoch, offset: publication.offset });
        }
        Outgoing::Shutdown { .. } | Outgoing::Error { .. } => {}
    }
    write_body(bytes, message);
}

/// Appends the line with an id, which consists of these parts: what the client sends as `Last-Event-ID` when
/// it comes back. The rest of the event follows.
pub(crate) fn write_id(bytes: &mut Vec<u8>, parts: [&[u8]; 3]) {
    bytes.extend_from_slice(ID);
    parts.iter().for_each(|part| bytes.extend_from_slice(part));
    bytes.push(b'\n');
}

/// Appends an event without its id.
pub(crate) fn write_body(bytes: &mut Vec<u8>, message: &Outgoing<'_>) {
    write_field(bytes, "event", &plain::name(message));
    bytes.extend_from_slice(DATA);
    let json_at = bytes.len();
    plain::write_json(bytes, message);
    if bytes[json_at..].iter().any(|byte| matches!(byte, b'\n' | b'\r')) {
        split_lines(bytes, json_at);
    }
    bytes.extend_from_slice(b"\n\n");
}

fn write_field(bytes: &mut Vec<u8>, name: &str, value: &dyn Display) {
    // Writing to memory does not fail, and what is displayed here does not either.
    let _ = writeln!(bytes, "{name}: {value}");
}

/// Returns after which time an `EventSource` comes back whose connection is lost. Each client has its own, so
/// that not all come at once.
fn retry_after(client: ClientId) -> Duration {
    MIN_RETRY + MIN_RETRY.mul_f64(client.jitter())
}

/// Makes each line of the JSON at the end a line of data. JSON that was published may have line breaks, which
/// are white space there.
fn split_lines(bytes: &mut Vec<u8>, json_at: usize) {
    let json = bytes.split_off(json_at);
    let mut rest = json.as_slice();
    while let Some(end) = rest.iter().position(|byte| matches!(byte, b'\n' | b'\r')) {
        bytes.extend_from_slice(&rest[..end]);
        bytes.push(b'\n');
        bytes.extend_from_slice(DATA);
        let line_break = if rest[end..].starts_with(b"\r\n") { 2 } else { 1 };
        rest = &rest[end + line_break..];
    }
    bytes.extend_from_slice(rest);
}

/// Returns the start of the first event at or after byte `at` of events; their end if there is none.
pub(crate) fn next_boundary(events: &[u8], at: usize) -> usize {
    if at == 0 {
        return 0;
    }
    // An event ends with two line feeds, one of which may be before `at`.
    let from = at.saturating_sub(2);
    let end = events.get(from..).unwrap_or_default().windows(2).position(|pair| pair == b"\n\n");
    end.map_or(events.len(), |end| from + end + 2)
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use lastcall_core::{Epoch, Publication, Publisher};
    use serde_json::value::RawValue;

    use super::*;

    fn published(data: &str) -> String {
        let data = RawValue::from_string(data.to_owned()).unwrap();
        let publication = Publication {
            offset: 3,
            time_ms: 0,
            publisher: Publisher::Api,
            data,
            pin: lastcall_core::Pin::default(),
        };
        let channel = "a".parse().unwrap();
        let message = Outgoing::Publication { channel: &channel, epoch: Epoch(1), publication: &publication };
        let mut event = Vec::new();
        write(&mut event, &message, ["a,", ",b"]);
        String::from_utf8(event).unwrap()
    }

    #[test]
    fn an_event_has_the_id_the_type_and_the_json() {
        assert_eq!(
            published("[1]"),
            "id: a,0000000000000001-3,b\nevent: notification\ndata: {\"type\":\"notification\",\"channel\":\"a\",\
             \"id\":\"0000000000000001-3\",\"source\":\"api\",\"time\":\"1970-01-01T00:00:00.000Z\",\"data\":[1]}\n\n"
        );
        let error = Outgoing::Error { code: "a", message: "b" };
        assert_eq!(
            encode(&error, ["a,", ",b"]),
            "3e\r\nevent: error\ndata: {\"type\":\"error\",\"code\":\"a\",\"message\":\"b\"}\n\n\r\n"
        );
    }

    #[test]
    fn the_last_notice_says_when_to_come_back_and_what_is_lost_moves_the_id_with_the_reset() {
        let event = |message: &Outgoing<'_>| {
            let mut event = Vec::new();
            write(&mut event, message, ["a,", ",b"]);
            String::from_utf8(event).unwrap()
        };
        let notice = |is_last| Outgoing::Shutdown {
            time: Timestamp::UNIX_EPOCH,
            reason: "service restart",
            deadline: Timestamp::UNIX_EPOCH,
            left: Duration::ZERO,
            reconnect_after: Duration::from_millis(1500),
            is_last,
        };
        assert!(event(&notice(true)).starts_with("retry: 1500\nevent: shutdown\n"));
        assert!(event(&notice(false)).starts_with("event: shutdown\n"));
        let channel = "a".parse().unwrap();
        let start = Position { epoch: Epoch(1), offset: 7 };
        let subscribed = |recovered, wants_recovery| {
            event(&Outgoing::Subscribed { channel: &channel, start, recovered, wants_recovery })
        };
        for (recovered, wants_recovery) in [(true, true), (false, false)] {
            let event = subscribed(recovered, wants_recovery);
            assert!(event.starts_with("id: a,0000000000000001-7,b\nevent: subscribed\n"), "{event}");
            assert_eq!(event.matches("event: ").count(), 1);
        }
        let lost = subscribed(false, true);
        let (first, second) = lost.split_once("\n\n").unwrap();
        assert!(first.starts_with("event: subscribed\n"), "{first}");
        assert!(second.starts_with("id: a,0000000000000001-7,b\nevent: reset\n"), "{second}");
    }

    #[test]
    fn line_breaks_between_the_tokens_of_json_become_lines_of_data() {
        let event = published("[1,\n2,\r\n3,\r4]");
        let lines: Vec<_> = event.trim_end().lines().skip(2).collect();
        assert!(lines.iter().all(|line| line.starts_with("data: ")), "{lines:?}");
        let json: String = lines.iter().map(|line| line.trim_start_matches("data: ")).collect();
        assert_eq!(
            serde_json::from_str::<serde_json::Value>(&json).unwrap()["data"],
            serde_json::json!([1, 2, 3, 4])
        );
        assert!(!event.contains('\r'));
    }

    #[test]
    fn the_next_event_begins_after_an_empty_line() {
        let events = b"a\n\nbc\n\n";
        let starts: Vec<_> = (0..=events.len()).map(|at| next_boundary(events, at)).collect();
        assert_eq!(starts, [0, 3, 3, 3, 7, 7, 7, 7]);
        assert_eq!(next_boundary(b"abc", 1), 3);
    }
}
