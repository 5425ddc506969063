//! A connection over a stream in memory: each state, each way to end, and every number of bytes that a socket
//! takes.

mod closing;
mod input;
mod outbox;
mod output;
mod restoring;

use std::{
    io::{ErrorKind, Write},
    time::Duration,
};

use super::{memory_stream::MemoryStream, *};
use crate::{
    admission::Admission,
    codec::{
        Frame,
        test_frames::{client_close, client_frame, client_text},
    },
    phases::Phases,
    stats::Stats,
};

const CONFIG: ConnectionConfig = ConnectionConfig {
    websockets: Form::WebSocket,
    publishes_texts: true,
    max_message_size: 1000,
    max_queue: 100,
    limits_texts: false,
};

const BY_CLIENT: Outcome = Outcome::Ended(Disconnect::ByClient);
const BY_SERVER: Outcome = Outcome::Ended(Disconnect::ByServer);

const ALL_REASONS: [CloseReason; 7] = [
    CloseReason::ProtocolError("test"),
    CloseReason::UnsupportedData,
    CloseReason::InvalidUtf8,
    CloseReason::SlowConsumer,
    CloseReason::Idle,
    CloseReason::MessageTooBig,
    CloseReason::ServiceRestart,
];

/// Returns an open connection whose socket takes `capacity` bytes.
fn connection(capacity: usize) -> Connection<MemoryStream> {
    let stream = MemoryStream { capacity, ..MemoryStream::default() };
    Connection::new(stream, ClientId::generate(), Form::WebSocket, permit())
}

/// The same, but its client gets back what it sends.
fn echo_connection(capacity: usize) -> Connection<MemoryStream> {
    Connection { form: Form::Echo, ..connection(capacity) }
}

fn permit() -> Permit {
    Admission::new(1, Phases::default()).admit().unwrap()
}

/// Returns a connection in this state whose socket takes all. What it took so far is forgotten.
fn connection_in(state: State) -> Connection<MemoryStream> {
    let mut connection = connection(usize::MAX);
    match state {
        State::Open => {}
        State::CloseSent => assert_eq!(connection.close(CloseReason::Idle, None), Outcome::CloseStarted),
        State::CloseReceived => {
            // Otherwise its answer is written at once, which ends it.
            connection.stream.capacity = 0;
            assert_eq!(receive(&mut connection, client_close(1000), &CONFIG).0, Outcome::CloseStarted);
        }
        State::Lingering => {
            assert_eq!(connection.close(CloseReason::InvalidUtf8, None), Outcome::CloseStarted);
        }
    }
    assert_eq!(connection.state, state);
    connection.stream.written.clear();
    connection
}

/// Reads once, and returns the outcome, whether there may be more, and the published texts.
fn read(
    connection: &mut Connection<MemoryStream>,
    config: &ConnectionConfig,
) -> (Outcome, Readable, Vec<String>) {
    let mut texts = Vec::new();
    let (outcome, readable) =
        connection.read(&mut [0; 4096], config, &mut Stats::default(), |_, text| texts.push(text.into()));
    (outcome, readable, texts)
}

fn receive(
    connection: &mut Connection<MemoryStream>,
    bytes: impl Into<Vec<u8>>,
    config: &ConnectionConfig,
) -> (Outcome, Vec<String>) {
    connection.stream.receive(bytes);
    let (outcome, _, texts) = read(connection, config);
    (outcome, texts)
}

/// Lets the socket take `step` bytes at a time until nothing is queued.
fn drain(connection: &mut Connection<MemoryStream>, step: usize) -> Outcome {
    let mut outcome = Outcome::Unchanged;
    while connection.has_output() {
        connection.stream.capacity = step;
        outcome = connection.flush();
    }
    outcome
}

fn bytes(frame: &Frame) -> Vec<u8> {
    frame.bytes().to_vec()
}

fn close_frame(reason: CloseReason) -> Vec<u8> {
    bytes(&Frame::close(Some((reason.code(), reason.reason()))))
}
