//! Server-sent events (HTML Standard, section 9.2): the messages of the plain protocol for `EventSource` and curl.

use std::{fmt::Display, io::Write, time::Duration};

use bytes::Bytes;

use super::{ServerMessage, chunk::ChunkWriter, plain::USUAL_SIZE};

/// The beginning of a line of data.
const DATA: &[u8] = b"data: ";

/// The beginning of a line with an id.
const ID: &[u8] = b"id: ";

/// A comment, which clients ignore, as a chunk. No empty line follows: some libraries take that for the end of an empty event.
pub(crate) const COMMENT: Bytes = Bytes::from_static(b"2\r\n:\n\r\n");

/// Encodes a message as an event without an id, in a chunk. `retry`: after which time the client comes back.
pub(crate) fn encode(message: &ServerMessage<'_>, retry: Option<Duration>) -> Bytes {
    let mut chunk = ChunkWriter::with_capacity(USUAL_SIZE);
    if let Some(retry) = retry {
        write_field(chunk.content(), "retry", &retry.as_millis());
    }
    write_body(chunk.content(), message);
    chunk.finish()
}

/// Encodes messages as events in one chunk, of which the last has an id that consists of these parts.
pub(crate) fn encode_with_id(messages: &[ServerMessage<'_>], id: [&[u8]; 3]) -> Bytes {
    let size = USUAL_SIZE * messages.len() + id.iter().map(|part| part.len()).sum::<usize>();
    let mut chunk = ChunkWriter::with_capacity(size);
    for (index, message) in messages.iter().enumerate() {
        if index + 1 == messages.len() {
            write_id(chunk.content(), id);
        }
        write_body(chunk.content(), message);
    }
    chunk.finish()
}

/// Appends the line with an id, which consists of these parts: what the client sends as `Last-Event-ID` when it comes back. The
/// rest of the event follows.
pub(crate) fn write_id(bytes: &mut Vec<u8>, parts: [&[u8]; 3]) {
    bytes.extend_from_slice(ID);
    parts.iter().for_each(|part| bytes.extend_from_slice(part));
    bytes.push(b'\n');
}

/// Appends an event without its id.
pub(crate) fn write_body(bytes: &mut Vec<u8>, message: &ServerMessage<'_>) {
    write_field(bytes, "event", &message.name());
    bytes.extend_from_slice(DATA);
    let json_at = bytes.len();
    message.write_json(bytes);
    if bytes[json_at..].iter().any(|byte| matches!(byte, b'\n' | b'\r')) {
        split_lines(bytes, json_at);
    }
    bytes.extend_from_slice(b"\n\n");
}

fn write_field(bytes: &mut Vec<u8>, name: &str, value: &dyn Display) {
    // Writing to memory does not fail, and what is displayed here does not either.
    let _ = writeln!(bytes, "{name}: {value}");
}

/// Makes each line of the JSON at the end a line of data. JSON that was published may have line breaks, which are white space
/// there.
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
        let message = ServerMessage::publication(&channel, Epoch(1), &publication);
        let mut event = Vec::new();
        write_id(&mut event, [b"a,", b"ID", b",b"]);
        write_body(&mut event, &message);
        String::from_utf8(event).unwrap()
    }

    #[test]
    fn an_event_has_the_id_the_type_and_the_json() {
        assert_eq!(
            published("[1]"),
            "id: a,ID,b\nevent: notification\ndata: {\"type\":\"notification\",\"channel\":\"a\",\
             \"id\":\"0000000000000001-3\",\"source\":\"api\",\"time\":\"1970-01-01T00:00:00.000Z\",\"data\":[1]}\n\n"
        );
        let error = ServerMessage::Error { code: "a", message: "b" };
        let event = encode(&error, Some(Duration::from_millis(1500)));
        assert_eq!(
            event,
            "4a\r\nretry: 1500\nevent: error\ndata: {\"type\":\"error\",\"code\":\"a\",\"message\":\"b\"}\n\n\r\n"
        );
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
