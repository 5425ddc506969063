//! Snapshots from another process with any content: they are refused, or can be continued.

use std::{collections::VecDeque, ops::ControlFlow};

use bytes::Bytes;
use proptest::prelude::*;
use serde::Serialize;

use super::*;
use crate::{
    codec::{DecoderLimits, Frame, Header, Opcode},
    connection::memory_stream::MemoryStream,
};

#[derive(Debug, Serialize)]
struct State {
    id: [u8; 16],
    heard: bool,
    cut_off_in_ms: Option<u64>,
    decoder: Input,
    outbox: Output,
}

#[derive(Debug, Serialize)]
struct Input {
    pending: Option<Pending>,
}

#[derive(Debug, Serialize)]
struct Pending {
    header: serde_bytes::ByteBuf,
    frame: Option<(Header, u64)>,
    control: serde_bytes::ByteBuf,
    message: Option<Message>,
}

#[derive(Debug, Serialize)]
struct Message {
    text: bool,
    payload: serde_bytes::ByteBuf,
    checked: usize,
}

#[derive(Debug, Serialize)]
struct Output {
    queue: Option<Queue>,
}

#[derive(Debug, Serialize)]
struct Queue {
    chunks: VecDeque<Bytes>,
    written: usize,
    waiting: usize,
}

fn bytes(most: usize) -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(any::<u8>(), 0..most)
}

fn number() -> impl Strategy<Value = u64> {
    prop_oneof![0..20_u64, any::<u64>()]
}

fn opcode() -> impl Strategy<Value = Opcode> {
    use Opcode::*;
    prop::sample::select(vec![Continuation, Text, Binary, Close, Ping, Pong])
}

fn input() -> impl Strategy<Value = Input> {
    let header = (any::<bool>(), opcode(), any::<[u8; 4]>(), number())
        .prop_map(|(fin, opcode, mask, len)| Header { fin, opcode, mask, len });
    let message = (any::<bool>(), bytes(20), number()).prop_map(|(text, payload, checked)| Message {
        text,
        payload: payload.into(),
        checked: checked as usize,
    });
    let pending = (bytes(20), prop::option::of((header, number())), bytes(130), prop::option::of(message))
        .prop_map(|(header, frame, control, message)| Pending {
            header: header.into(),
            frame,
            control: control.into(),
            message,
        });
    prop::option::of(pending).prop_map(|pending| Input { pending })
}

fn output() -> impl Strategy<Value = Output> {
    // Frames, and anything else.
    let frame = bytes(300).prop_map(|payload| Frame::binary(&payload).bytes().clone());
    let chunk = prop_oneof![frame, bytes(40).prop_map(Bytes::from)];
    let queue =
        (prop::collection::vec(chunk, 0..5), number(), number()).prop_map(|(chunks, written, waiting)| {
            Queue { chunks: chunks.into(), written: written as usize, waiting: waiting as usize }
        });
    prop::option::of(queue).prop_map(|queue| Output { queue })
}

proptest! {
    #[test]
    fn a_snapshot_with_any_content_is_refused_or_can_be_continued(
        id in any::<[u8; 16]>(),
        cut_off_in_ms in prop::option::of(number()),
        decoder in input(),
        outbox in output(),
        room in 0..400_usize,
        received in bytes(40),
    ) {
        let state = State { id, heard: false, cut_off_in_ms, decoder, outbox };
        let written = rmp_serde::to_vec_named(&state).unwrap();
        let read: Result<ConnectionSnapshot, _> = rmp_serde::from_slice(&written);
        if let Ok(mut state) = read {
            let _ = (state.id.age_by_time_of_day(), state.size());
            let limits = DecoderLimits { max_message_size: 1000, accept_binary: true };
            let _ = state.decoder.rest_of_frame();
            let _ = state.decoder.decode(&mut received.clone(), limits, |_| ControlFlow::Continue(()));
            let _ = state.outbox.flush(&mut MemoryStream { capacity: room, ..MemoryStream::default() });
            state.outbox.truncate_to_partial_message(Form::WebSocket);
            let _ = state.outbox.flush(&mut MemoryStream { capacity: 1000, ..MemoryStream::default() });
        }
    }
}
