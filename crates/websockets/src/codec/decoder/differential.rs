//! The decoder against that of tungstenite: the same bytes, cut anywhere, mean the same to both.

use std::io::{ErrorKind, Read, Write};

use proptest::prelude::*;
use tungstenite::{
    Error, Message, WebSocket,
    protocol::{Role, WebSocketConfig},
};

use super::*;
use crate::codec::test_frames::client_frame;

const LIMIT: usize = 1000;
const LIMITS: DecoderLimits = DecoderLimits { max_message_size: LIMIT, accept_binary: true };

/// The events that a decoder returns for a stream: its messages, up to the first close or error, and whether
/// there was an error.
#[derive(Debug, PartialEq)]
struct Decoded {
    messages: Vec<Message>,
    error: bool,
}

/// Returns what our decoder returns for these pieces.
fn ours<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Decoded {
    let mut decoder = Decoder::default();
    let mut messages = Vec::new();
    for piece in pieces {
        let (mut closed, mut unknown) = (false, false);
        let result = decoder.decode(&mut piece.to_vec(), LIMITS, |event| {
            messages.push(match event {
                Event::Text(text) => Message::text(text),
                Event::Binary(bytes) => Message::binary(bytes.to_vec()),
                Event::Ping(bytes) => Message::Ping(bytes.to_vec().into()),
                Event::Pong => Message::Pong("".into()),
                // tungstenite does not know this code (Bad Gateway), which was registered later than RFC
                // 6455.
                Event::Close(Some((1014, _))) => {
                    unknown = true;
                    return ControlFlow::Break(());
                }
                Event::Close(status) => {
                    closed = true;
                    Message::Close(status.map(|(code, reason)| tungstenite::protocol::CloseFrame {
                        code: code.into(),
                        reason: reason.into(),
                    }))
                }
            });
            if closed { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        let error = unknown || result.is_err();
        if closed || error {
            return Decoded { messages, error };
        }
    }
    Decoded { messages, error: false }
}

/// Bytes to be read. What is written is dropped.
struct MemoryStream<'a>(&'a [u8]);

impl Read for MemoryStream<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        match self.0.read(buffer) {
            Ok(0) => Err(ErrorKind::WouldBlock.into()),
            read => read,
        }
    }
}

impl Write for MemoryStream<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Returns what tungstenite returns for these bytes.
fn theirs(bytes: &[u8]) -> Decoded {
    let config = WebSocketConfig::default().max_message_size(Some(LIMIT)).max_frame_size(Some(LIMIT));
    let mut socket = WebSocket::from_raw_socket(MemoryStream(bytes), Role::Server, Some(config));
    let mut messages = Vec::new();
    loop {
        match socket.read() {
            // What it returns for a close code that must not be sent.
            Ok(Message::Close(Some(frame))) if frame.reason == "Protocol violation" => {
                return Decoded { messages, error: true };
            }
            Ok(message @ Message::Close(_)) => {
                messages.push(message);
                return Decoded { messages, error: false };
            }
            // The payload of a pong does not matter.
            Ok(Message::Pong(_)) => messages.push(Message::Pong("".into())),
            Ok(message) => messages.push(message),
            Err(Error::Io(error)) if error.kind() == ErrorKind::WouldBlock => {
                return Decoded { messages, error: false };
            }
            Err(_) => return Decoded { messages, error: true },
        }
    }
}

/// Returns a payload: often text, often cut in the middle of a character, sometimes a close code, sometimes
/// too long.
fn payload() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        4 => "\\PC{0,40}".prop_map(String::into_bytes),
        2 => ("\\PC{0,40}", any::<prop::sample::Index>()).prop_map(|(text, cut)| {
            let cut = cut.index(text.len() + 1);
            text.as_bytes()[..cut].to_vec()
        }),
        2 => prop::collection::vec(any::<u8>(), 0..130),
        1 => (900u16..5100, "\\PC{0,10}").prop_map(|(code, reason)| [&code.to_be_bytes(), reason.as_bytes()].concat()),
        1 => prop::collection::vec(Just(b'x'), 400..1200),
    ]
}

/// Returns a frame, mostly a valid one.
fn frame() -> impl Strategy<Value = Vec<u8>> {
    let opcode = prop_oneof![4 => Just(1u8), 3 => Just(0), 2 => Just(2), 2 => Just(9), 1 => Just(10), 1 => Just(8), 1 => 0u8..16];
    let reserved = prop_oneof![30 => Just(0u8), 1 => 0u8..8];
    (any::<bool>(), reserved, opcode, any::<[u8; 4]>(), payload()).prop_map(
        |(fin, reserved, opcode, mask, payload)| {
            client_frame(u8::from(fin) << 7 | reserved << 4 | opcode, mask, &payload)
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn whole_frames_mean_the_same_to_both(frames in prop::collection::vec(frame(), 1..12)) {
        let bytes = frames.concat();
        prop_assert_eq!(ours([&bytes[..]]), theirs(&bytes));
    }

    #[test]
    fn frames_mean_the_same_wherever_they_are_cut(frames in prop::collection::vec(frame(), 1..6)) {
        let bytes = frames.concat();
        let whole = ours([&bytes[..]]);
        for cut in 0..=bytes.len() {
            prop_assert_eq!(&ours([&bytes[..cut], &bytes[cut..]]), &whole, "cut at {}", cut);
        }
        prop_assert_eq!(&ours(bytes.chunks(1)), &whole, "byte by byte");
    }

    /// Ours may return an error sooner, in the middle of a frame, but never later, and nothing else differs.
    #[test]
    fn any_bytes_mean_the_same_to_both(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let (ours, theirs) = (ours([&bytes[..]]), theirs(&bytes));
        prop_assert_eq!(ours.messages, theirs.messages);
        prop_assert!(ours.error || !theirs.error);
    }
}
