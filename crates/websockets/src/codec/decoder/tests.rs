//! Streams cut anywhere, and what the decoder refuses.

use super::*;
use crate::codec::test_frames::client_frame;

const LIMITS: DecoderLimits = DecoderLimits { max_message_size: 1000, accept_binary: true };

fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    client_frame(first, [0xA1, 0xB2, 0xC3, 0xD4], payload)
}

/// Decodes `pieces` one after the other. Returns the events as text, the result, and the decoder.
fn feed<'a>(
    pieces: impl IntoIterator<Item = &'a [u8]>,
    limits: DecoderLimits,
) -> (Vec<String>, Result<(), CloseReason>, Decoder) {
    let mut decoder = Decoder::default();
    let mut events = Vec::new();
    for piece in pieces {
        let result = decoder.decode(&mut piece.to_vec(), limits, |event| {
            events.push(format!("{event:?}"));
            ControlFlow::Continue(())
        });
        if result.is_err() {
            return (events, result, decoder);
        }
    }
    (events, Ok(()), decoder)
}

/// Every kind of frame a client may send, in one stream.
fn stream() -> Vec<u8> {
    [
        frame(0x81, "Hello".as_bytes()),
        frame(0x01, "Käse und ".as_bytes()),
        frame(0x89, b"are you there?"),
        frame(0x00, b""),
        frame(0x80, "\u{1F9C0}".as_bytes()),
        frame(0x82, &[0xFF; 200]),
        frame(0x8A, b""),
        frame(0x81, b""),
        frame(0x88, b"\x03\xE8bye"),
    ]
    .concat()
}

#[test]
fn the_events_are_the_same_wherever_the_bytes_are_cut() {
    let stream = stream();
    let (whole, result, decoder) = feed([&stream[..]], LIMITS);
    assert_eq!(result, Ok(()));
    assert_eq!(whole[0], r#"Text("Hello")"#);
    assert_eq!(whole[2], "Text(\"Käse und \u{1F9C0}\")");
    assert_eq!(whole.len(), 7);
    assert!(decoder.pending.is_none(), "nothing is kept between messages");
    for cut in 0..=stream.len() {
        assert_eq!(feed([&stream[..cut], &stream[cut..]], LIMITS).0, whole, "cut at {cut}");
    }
    assert_eq!(feed(stream.chunks(1), LIMITS).0, whole, "byte by byte");
}

#[test]
fn frames_that_must_not_come_are_refused() {
    use CloseReason::*;
    for (name, bytes, expected) in [
        ("continuation of nothing", frame(0x80, b"x"), ProtocolError("a continuation of nothing")),
        (
            "text in a text",
            [frame(0x01, b"x"), frame(0x81, b"y")].concat(),
            ProtocolError("a new message inside a fragmented one"),
        ),
        ("half a code", frame(0x88, b"x"), ProtocolError("a close frame with half a code")),
        (
            "code 1005",
            frame(0x88, &1005u16.to_be_bytes()),
            ProtocolError("a close code that must not be sent"),
        ),
        ("reason", frame(0x88, b"\x03\xE8\xFF"), InvalidUtf8),
        ("text", frame(0x81, b"\xC0\xAF"), InvalidUtf8),
        ("cut off character", frame(0x81, b"\xE2\x82"), InvalidUtf8),
        ("too big at once", frame(0x81, &[b'x'; 1001]), MessageTooBig),
        ("too big together", [frame(0x01, &[b'x'; 600]), frame(0x80, &[b'x'; 600])].concat(), MessageTooBig),
    ] {
        assert_eq!(feed([&bytes[..]], LIMITS).1, Err(expected), "{name}");
        assert_eq!(feed(bytes.chunks(1), LIMITS).1, Err(expected), "{name}, byte by byte");
    }
}

#[test]
fn binary_is_refused_at_its_header_where_text_is_expected() {
    let header = &frame(0x82, &[0; 200])[..8];
    let limits = DecoderLimits { accept_binary: false, ..LIMITS };
    assert_eq!(feed([header], limits).1, Err(CloseReason::UnsupportedData));
}

#[test]
fn a_message_too_big_is_refused_before_its_payload_comes() {
    let header = [0x81, 0xFF, 0, 0, 0, 1, 0, 0, 0, 0, 1, 2, 3, 4];
    assert_eq!(feed([&header[..]], LIMITS).1, Err(CloseReason::MessageTooBig));
}

#[test]
fn a_wrong_byte_is_refused_at_once_in_the_middle_of_a_frame() {
    let bytes = frame(0x81, b"abc\xFFdefgh");
    let (events, result, _) = feed([&bytes[..6], &bytes[6..10]], LIMITS);
    assert_eq!((events.len(), result), (0, Err(CloseReason::InvalidUtf8)));
}
