//! A connection over a stream in memory: each state, each way to end, and every number of bytes that a socket takes.

use std::time::Duration;

use lastcall_core::settings::ClientMessages;

use super::{memory_stream::MemoryStream, *};
use crate::{
    admission::Admission,
    codec::test_frames::{client_close, client_frame, client_text},
    stats::Stats,
};

const CONFIG: ConnectionConfig = ConnectionConfig {
    client_messages: ClientMessages::Broadcast,
    max_message_size: 1000,
    max_queue: 100,
    limits_texts: false,
};
const ECHO: ConnectionConfig = ConnectionConfig { client_messages: ClientMessages::Echo, ..CONFIG };

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

/// An open connection whose socket takes `capacity` bytes.
fn connection(capacity: usize) -> Connection<MemoryStream> {
    let stream = MemoryStream { capacity, ..MemoryStream::default() };
    Connection::new(stream, ClientId::generate(), permit())
}

fn permit() -> Permit {
    Admission::new(1).admit().unwrap()
}

/// A connection in this state whose socket takes all. What it took so far is forgotten.
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

#[test]
fn a_text_is_published_ignored_or_echoed_as_configured() {
    for (client_messages, published, written) in [
        (ClientMessages::Broadcast, vec!["hello"], vec![]),
        (ClientMessages::Ignore, vec![], vec![]),
        (ClientMessages::Echo, vec![], bytes(&Frame::text("hello"))),
    ] {
        let config = ConnectionConfig { client_messages, ..CONFIG };
        let mut connection = connection(usize::MAX);
        let (outcome, texts) = receive(&mut connection, client_text("hello"), &config);
        assert_eq!(outcome, Outcome::Unchanged);
        assert_eq!(texts, published, "{client_messages:?}");
        assert_eq!(connection.stream.written, written, "{client_messages:?}");
    }
}

#[test]
fn a_text_has_its_sender_and_is_counted() {
    let mut connection = connection(usize::MAX);
    let input = [client_text("one"), client_text("two")].concat();
    let (mut senders, mut stats) = (Vec::new(), Stats::default());
    connection.stream.receive(input.clone());
    let _ = connection.read(&mut [0; 4096], &CONFIG, &mut stats, |from, _| senders.push(from));
    assert_eq!(senders, [connection.id; 2]);
    assert_eq!((stats.messages_received, stats.bytes_received), (2, input.len() as u64));
}

#[test]
fn a_ping_is_answered_with_its_payload() {
    let mut connection = connection(usize::MAX);
    let (outcome, _) = receive(&mut connection, client_frame(0x89, [9; 4], b"payload"), &CONFIG);
    assert_eq!(outcome, Outcome::Unchanged);
    assert_eq!(connection.stream.written, b"\x8A\x07payload");
}

#[test]
fn input_in_pieces_of_any_size_means_the_same() {
    let input = [client_text("first"), client_frame(0x89, [9; 4], b"?"), client_text("second")].concat();
    for size in 1..=input.len() {
        let mut connection = connection(usize::MAX);
        let mut published = Vec::new();
        for piece in input.chunks(size) {
            published.extend(receive(&mut connection, piece, &CONFIG).1);
        }
        assert_eq!(published, ["first", "second"], "{size} bytes at a time");
        assert_eq!(connection.stream.written, b"\x8A\x01?", "{size} bytes at a time");
    }
}

#[test]
fn a_close_is_answered_with_its_code_and_ends_the_connection() {
    for (frame, answer) in [
        (client_close(1001), bytes(&Frame::close(Some((1001, ""))))),
        (client_frame(0x88, [1; 4], b""), bytes(&Frame::close(None))),
    ] {
        let mut connection = connection(usize::MAX);
        assert_eq!(receive(&mut connection, frame, &CONFIG).0, BY_CLIENT);
        assert_eq!(connection.stream.written, answer);
        assert_eq!(connection.close_reason(), None, "the server did not close it");
    }
}

#[test]
fn the_answer_to_a_close_is_written_behind_what_is_queued_before_the_connection_ends() {
    let frame = Frame::text("queued");
    let expected = [bytes(&frame), bytes(&Frame::close(Some((1000, ""))))].concat();
    for taken in 0..frame.bytes().len() {
        let mut connection = connection(taken);
        let _ = connection.send(frame.bytes(), &CONFIG);
        assert_eq!(receive(&mut connection, client_close(1000), &CONFIG).0, Outcome::CloseStarted);
        assert_eq!(connection.state, State::CloseReceived);
        assert_eq!(drain(&mut connection, 3), BY_CLIENT);
        assert_eq!(connection.stream.written, expected, "after {taken} bytes");
    }
}

#[test]
fn nothing_after_a_close_of_the_client_counts() {
    let input = [client_text("before"), client_close(1000), client_text("after")].concat();
    let mut connection = connection(0);
    assert_eq!(receive(&mut connection, input, &CONFIG), (Outcome::CloseStarted, vec!["before".into()]));
    let (outcome, texts) = receive(&mut connection, client_text("later"), &CONFIG);
    assert_eq!((outcome, texts.len()), (Outcome::Unchanged, 0));
}

#[test]
fn each_reason_closes_with_its_code_and_text() {
    for reason in ALL_REASONS {
        let mut connection = connection(usize::MAX);
        assert_eq!(connection.close(reason, None), Outcome::CloseStarted);
        assert_eq!(connection.stream.written, close_frame(reason));
        assert_eq!(connection.close_reason(), Some(reason));
        let lingers = reason.discards_input();
        assert_eq!(connection.state, if lingers { State::Lingering } else { State::CloseSent }, "{reason:?}");
        assert_eq!(connection.stream.is_shut_down.get(), lingers, "{reason:?}");
    }
}

#[test]
fn the_codes_that_break_the_stream_linger_and_the_others_wait_for_the_answer() {
    let lingers: Vec<_> = ALL_REASONS.iter().filter(|reason| reason.discards_input()).collect();
    let codes: Vec<_> = lingers.iter().map(|reason| reason.code()).collect();
    assert_eq!(codes, [1002, 1003, 1007, 1009]);
}

#[test]
fn only_an_open_connection_can_be_closed_or_written_to() {
    let notice = Frame::text("notice");
    for state in [State::CloseSent, State::CloseReceived, State::Lingering] {
        let mut connection = connection_in(state);
        let queued = connection.queued();
        assert!(!connection.is_open());
        assert_eq!(connection.close(CloseReason::ServiceRestart, Some(&notice)), Outcome::Unchanged);
        assert_eq!(connection.send(notice.bytes(), &CONFIG), Outcome::Unchanged);
        assert_eq!(connection.send_unbounded(notice.bytes()), Outcome::Unchanged);
        assert_eq!((connection.queued(), connection.state), (queued, state));
        assert!(connection.stream.written.is_empty());
    }
}

#[test]
fn a_close_of_the_server_ends_with_the_answer_of_the_client() {
    let mut connection = connection_in(State::CloseSent);
    let input = [client_text("too late"), client_frame(0x89, [9; 4], b"?")].concat();
    let (outcome, texts) = receive(&mut connection, input, &CONFIG);
    assert_eq!((outcome, texts.len()), (Outcome::Unchanged, 0), "what crosses the close is dropped");
    assert_eq!(receive(&mut connection, client_close(1012), &CONFIG).0, BY_SERVER);
    assert!(connection.stream.written.is_empty(), "nothing is sent after a close frame");
}

#[test]
fn input_that_cannot_be_decoded_ends_a_closing_connection() {
    let mut connection = connection_in(State::CloseSent);
    assert_eq!(receive(&mut connection, client_frame(0x81, [0; 4], b"\xFF"), &CONFIG).0, BY_SERVER);
    assert!(connection.stream.written.is_empty());
}

#[test]
fn a_lingering_connection_discards_input_until_the_client_hangs_up() {
    let mut connection = connection_in(State::Lingering);
    assert!(connection.stream.is_shut_down.get());
    for input in [client_text("text"), client_close(1000), vec![0xFF; 50]] {
        let (outcome, texts) = receive(&mut connection, input, &CONFIG);
        assert_eq!((outcome, texts.len()), (Outcome::Unchanged, 0));
    }
    connection.stream.is_ended = true;
    assert_eq!(read(&mut connection, &CONFIG).0, BY_SERVER);
}

#[test]
fn a_lingering_connection_is_shut_down_when_its_close_frame_is_written() {
    let mut connection = connection(1);
    assert_eq!(connection.close(CloseReason::InvalidUtf8, None), Outcome::CloseStarted);
    assert!(!connection.stream.is_shut_down.get());
    assert_eq!(drain(&mut connection, 1), Outcome::Unchanged);
    assert!(connection.stream.is_shut_down.get());
    assert_eq!(connection.stream.written, close_frame(CloseReason::InvalidUtf8));
}

#[test]
fn input_that_is_not_acceptable_closes_with_its_reason() {
    for (input, reason) in [
        (client_frame(0x81, [0; 4], b"\xFF"), CloseReason::InvalidUtf8),
        (client_text(&"x".repeat(1001)), CloseReason::MessageTooBig),
        (vec![0xFF], CloseReason::ProtocolError("a reserved bit is set, but no extension was agreed on")),
    ] {
        let mut connection = connection(usize::MAX);
        let (outcome, texts) = receive(&mut connection, [client_text("before"), input].concat(), &CONFIG);
        assert_eq!((outcome, texts), (Outcome::CloseStarted, vec!["before".into()]));
        assert_eq!(connection.stream.written, close_frame(reason));
    }
}

#[test]
fn a_binary_message_is_explained_before_the_close_unless_it_is_echoed() {
    let input = client_frame(0x82, [0; 4], b"\x00\xFF");
    let mut connection1 = connection(usize::MAX);
    assert_eq!(receive(&mut connection1, input.clone(), &CONFIG).0, Outcome::CloseStarted);
    let error = String::from_utf8_lossy(&connection1.stream.written).into_owned();
    assert!(error.contains(r#"{"type":"error","code":"unsupported_data""#), "{error}");
    assert!(connection1.stream.written.ends_with(&close_frame(CloseReason::UnsupportedData)));
    let mut connection2 = connection(usize::MAX);
    assert_eq!(receive(&mut connection2, input, &ECHO).0, Outcome::Unchanged);
    assert_eq!(connection2.stream.written, b"\x82\x02\x00\xFF");
}

#[test]
fn the_end_of_the_stream_and_its_errors_end_the_connection_in_each_state() {
    for (state, expected) in [
        (State::Open, BY_CLIENT),
        (State::CloseSent, BY_SERVER),
        (State::CloseReceived, BY_CLIENT),
        (State::Lingering, BY_SERVER),
    ] {
        let mut ended = connection_in(state);
        ended.stream.is_ended = true;
        assert_eq!(read(&mut ended, &CONFIG).0, expected, "{state:?}");
        let mut reset = connection_in(state);
        reset.stream.input.push_back(Err(ErrorKind::ConnectionReset));
        assert_eq!(read(&mut reset, &CONFIG).0, expected, "{state:?}");
    }
}

#[test]
fn a_write_that_fails_ends_the_connection() {
    let frame = Frame::text("hello");
    let fails = || {
        let mut connection = connection(usize::MAX);
        connection.stream.write_error = Some(ErrorKind::BrokenPipe);
        connection
    };
    assert_eq!(fails().send(frame.bytes(), &CONFIG), BY_CLIENT);
    assert_eq!(fails().send_handshake(b"HTTP".to_vec(), frame.bytes()), BY_CLIENT);
    assert_eq!(fails().close(CloseReason::Idle, None), BY_SERVER);
    let mut queued = connection(0);
    assert_eq!(queued.send(frame.bytes(), &CONFIG), Outcome::Unchanged);
    queued.stream.write_error = Some(ErrorKind::BrokenPipe);
    assert_eq!(queued.flush(), BY_CLIENT);
}

#[test]
fn a_system_call_that_is_interrupted_is_made_again() {
    let frame = Frame::text("hello");
    let interrupted = || {
        let mut connection = connection(usize::MAX);
        connection.stream.write_error = Some(ErrorKind::Interrupted);
        connection
    };
    let mut sends = interrupted();
    assert_eq!(sends.send(frame.bytes(), &CONFIG), Outcome::Unchanged);
    assert_eq!(sends.stream.written, bytes(&frame));
    let mut starts = interrupted();
    assert_eq!(starts.send_handshake(b"HTTP".to_vec(), &Bytes::new()), Outcome::Unchanged);
    assert_eq!(starts.stream.written, b"HTTP");
    let mut closes = interrupted();
    assert_eq!(closes.close(CloseReason::Idle, None), Outcome::CloseStarted);
    assert_eq!(closes.stream.written, close_frame(CloseReason::Idle));
    let mut reads = connection(usize::MAX);
    reads.stream.input.push_back(Err(ErrorKind::Interrupted));
    assert_eq!(read(&mut reads, &CONFIG), (Outcome::Unchanged, Readable::Maybe, vec![]));
}

#[test]
fn a_frame_is_written_whole_whatever_the_socket_takes_at_a_time() {
    let (first, second) = (Frame::text(&"x".repeat(70)), Frame::text("second"));
    let expected = [bytes(&first), bytes(&second)].concat();
    for taken in 0..=expected.len() {
        let mut connection = connection(taken);
        assert_eq!(connection.send(first.bytes(), &CONFIG), Outcome::Unchanged);
        assert_eq!(connection.send(second.bytes(), &CONFIG), Outcome::Unchanged);
        assert_eq!(connection.queued(), expected.len() - taken);
        assert_eq!(drain(&mut connection, 1), Outcome::Unchanged);
        assert_eq!(connection.stream.written, expected, "after {taken} bytes");
    }
}

#[test]
fn a_close_follows_what_is_queued_and_the_notice_whatever_the_socket_takes_at_a_time() {
    let (frame, notice) = (Frame::text("queued"), Frame::text("notice"));
    for (reason, notice) in ALL_REASONS.iter().flat_map(|reason| [(*reason, None), (*reason, Some(&notice))])
    {
        for taken in 0..frame.bytes().len() {
            let mut connection = connection(taken);
            let _ = connection.send(frame.bytes(), &CONFIG);
            assert_eq!(connection.close(reason, notice), Outcome::CloseStarted);
            assert_eq!(drain(&mut connection, 1), Outcome::Unchanged);
            // A slow consumer gets the rest of a frame only if it has got a part of it.
            let is_dropped = reason == CloseReason::SlowConsumer && taken == 0;
            let queued = if is_dropped { vec![] } else { bytes(&frame) };
            let expected = [queued, notice.map(bytes).unwrap_or_default(), close_frame(reason)].concat();
            assert_eq!(connection.stream.written, expected, "{reason:?} after {taken} bytes");
        }
    }
}

#[test]
fn the_response_to_a_handshake_and_the_first_frames_are_one_write() {
    let (response, frame) = (b"HTTP/1.1 101\r\n\r\n".to_vec(), Frame::text("welcome"));
    let expected = [response.clone(), bytes(&frame)].concat();
    let mut whole = connection(usize::MAX);
    assert_eq!(whole.send_handshake(response.clone(), frame.bytes()), Outcome::Unchanged);
    assert_eq!((whole.stream.written, whole.stream.writes), (expected.clone(), 1));
    for taken in 0..expected.len() {
        let mut connection = connection(taken);
        let outcome = connection.send_handshake(response.clone(), frame.bytes());
        if taken < response.len() {
            assert_eq!(outcome, BY_CLIENT, "not even the response fits: {taken} bytes");
        } else {
            assert_eq!(outcome, Outcome::Unchanged);
            assert_eq!(drain(&mut connection, 1), Outcome::Unchanged);
            assert_eq!(connection.stream.written, expected, "after {taken} bytes");
        }
    }
}

#[test]
fn a_client_whose_queue_would_exceed_the_limit_is_too_slow() {
    let frame = Frame::text(&"x".repeat(48));
    let mut connection = connection(0);
    assert_eq!(connection.send(frame.bytes(), &CONFIG), Outcome::Unchanged);
    assert_eq!(connection.send(frame.bytes(), &CONFIG), Outcome::Unchanged);
    assert_eq!(connection.queued(), CONFIG.max_queue, "exactly the limit");
    assert_eq!(connection.send(Frame::text("").bytes(), &CONFIG), Outcome::TooSlow);
    assert_eq!(connection.queued(), CONFIG.max_queue, "nothing is queued beyond it");
    assert_eq!(connection.send_unbounded(frame.bytes()), Outcome::Unchanged, "but for what all must get");
    assert_eq!(connection.queued(), CONFIG.max_queue + 50);
}

#[test]
fn one_run_of_frames_may_exceed_the_limit_if_nothing_is_queued() {
    let large = Frame::text(&"x".repeat(500));
    let mut connection = connection(10);
    assert_eq!(connection.send(large.bytes(), &CONFIG), Outcome::Unchanged);
    assert_eq!(connection.queued(), large.bytes().len() - 10);
    assert_eq!(connection.send(large.bytes(), &CONFIG), Outcome::TooSlow);
}

#[test]
fn a_client_that_does_not_read_its_echoes_is_not_read_from() {
    let mut connection = connection(0);
    assert_eq!(receive(&mut connection, client_text("one"), &ECHO).0, Outcome::Unchanged);
    connection.stream.receive(client_text("two"));
    assert_eq!(read(&mut connection, &ECHO).1, Readable::No);
    assert_eq!(connection.stream.input.len(), 1, "it is still in the socket");
    assert_eq!(drain(&mut connection, 100), Outcome::Unchanged);
    let _ = read(&mut connection, &ECHO);
    assert!(connection.stream.input.is_empty());
}

#[test]
fn a_short_read_has_emptied_the_socket_unless_its_end_follows() {
    let mut connection = connection(usize::MAX);
    assert_eq!(read(&mut connection, &CONFIG).1, Readable::No, "nothing has arrived");
    connection.stream.receive(client_text("short"));
    assert_eq!(read(&mut connection, &CONFIG).1, Readable::No);
    connection.stream.receive([0x8A, 0x80, 0, 0, 0, 0].repeat(1000));
    assert_eq!(read(&mut connection, &CONFIG).1, Readable::Maybe, "the buffer was full");
    connection.stream.input.clear();
    connection.stream.receive(client_text("last"));
    connection.peer_closed = true;
    assert_eq!(read(&mut connection, &CONFIG).1, Readable::Maybe);
}

#[test]
fn reads_are_short_while_the_rate_of_texts_is_limited_but_for_the_rest_of_a_frame() {
    let limited = ConnectionConfig { limits_texts: true, max_message_size: 4000, ..CONFIG };
    let mut connection = connection(usize::MAX);
    let message = client_text(&"x".repeat(3000));
    connection.stream.receive([client_text("").repeat(100), message].concat());
    let (_, readable, texts) = read(&mut connection, &limited);
    assert_eq!((readable, texts.len()), (Readable::Maybe, 512 / 6));
    let (_, _, texts) = read(&mut connection, &limited);
    assert_eq!(texts.len(), 100 - 512 / 6, "and the start of the long one");
    let (_, _, texts) = read(&mut connection, &limited);
    assert_eq!(texts.iter().map(String::len).collect::<Vec<_>>(), [3000]);
}

#[test]
fn early_input_comes_before_that_of_the_stream() {
    let limited = ConnectionConfig { limits_texts: true, ..CONFIG };
    for config in [CONFIG, limited] {
        let mut connection = connection(usize::MAX);
        let early: Vec<u8> = (0..200).flat_map(|n| client_text(&n.to_string())).collect();
        connection.set_early_input(early.into());
        connection.stream.receive(client_text("last"));
        assert!(connection.has_early_input() && connection.has_input());
        let mut published = Vec::new();
        while connection.has_input() {
            published.extend(read(&mut connection, &config).2);
        }
        let expected: Vec<String> = (0..200).map(|n| n.to_string()).chain(["last".to_owned()]).collect();
        assert_eq!(published, expected);
    }
}

#[test]
fn input_is_seen_without_being_read_and_so_is_the_end() {
    let mut connection = connection(usize::MAX);
    assert!(!connection.has_input());
    connection.stream.is_ended = true;
    assert!(connection.has_input());
    connection.stream.receive(client_text("hello"));
    assert!(connection.has_input());
    assert_eq!(read(&mut connection, &CONFIG).2, ["hello"]);
}

#[test]
fn any_input_answers_a_ping_and_a_queued_ping_is_checked_when_it_is_written() {
    let mut connection = connection(0);
    let _ = connection.send(Frame::ping().bytes(), &CONFIG);
    connection.ping.sent(connection.has_output());
    assert_eq!(connection.ping, Ping::Queued { progress: true });
    connection.stream.capacity = 1;
    let _ = connection.flush();
    assert_eq!(connection.ping, Ping::Queued { progress: true });
    let _ = drain(&mut connection, 1);
    assert_eq!(connection.ping, Ping::SentLate);
    let _ = receive(&mut connection, [0x8A], &CONFIG);
    assert_eq!(connection.ping, Ping::Answered);
}

#[test]
fn a_restored_connection_continues_to_the_byte() {
    let (first, second) = (Frame::text("first"), Frame::text("second"));
    let expected = [bytes(&first), bytes(&second), close_frame(CloseReason::ServiceRestart)].concat();
    let input = [client_text("text"), client_close(1012)].concat();
    for cut in 0..input.len() {
        for taken in 0..first.bytes().len() {
            let mut old = connection(taken);
            let (outcome, mut texts) = receive(&mut old, &input[..cut], &CONFIG);
            assert_eq!(outcome, Outcome::Unchanged);
            let _ = old.send(first.bytes(), &CONFIG);
            let _ = old.send(second.bytes(), &CONFIG);
            let snapshot = old.snapshot(None);
            assert_eq!((snapshot.id, snapshot.close_timeout_in_ms), (old.id, None));

            let stream = MemoryStream { written: old.stream.written, ..MemoryStream::default() };
            let mut new = Connection::restore(stream, snapshot, permit());
            assert_eq!(new.id, old.id);
            assert_eq!(new.close(CloseReason::ServiceRestart, None), Outcome::CloseStarted);
            let (outcome, more) = receive(&mut new, &input[cut..], &CONFIG);
            texts.extend(more);
            assert_eq!(outcome, BY_SERVER);
            // After its own close frame, the server publishes nothing more of the client.
            assert_eq!(texts.len(), usize::from(cut >= client_text("text").len()));
            let _ = drain(&mut new, 1);
            assert_eq!(new.stream.written, expected, "input cut at {cut}, output at {taken}");
        }
    }
}

#[test]
fn a_restored_connection_is_in_the_same_state() {
    for state in [State::Open, State::CloseSent, State::CloseReceived, State::Lingering] {
        let mut old = connection_in(state);
        old.set_early_input(Bytes::from_static(b"early"));
        old.ping.sent(false);
        let snapshot = old.snapshot(Some(Duration::from_millis(1500)));
        assert_eq!(snapshot.close_timeout_in_ms, Some(1500));
        let new = Connection::restore(MemoryStream::default(), snapshot, permit());
        assert_eq!((new.state, new.close_reason()), (old.state, old.close_reason()));
        assert_eq!((new.queued(), new.has_early_input()), (old.queued(), true));
        assert_eq!(new.snapshot(None), old.snapshot(None));
        assert_eq!(new.disconnected(), old.disconnected());
    }
}

#[test]
fn the_end_of_a_connection_releases_its_permit() {
    let admission = Admission::new(1);
    let permit = admission.admit().unwrap();
    let connection = Connection::new(MemoryStream::default(), ClientId::generate(), permit);
    assert!(admission.admit().is_err());
    connection.finish(Disconnect::ByClient);
    assert!(admission.admit().is_ok());
}

#[test]
fn of_two_outcomes_the_more_severe_counts() {
    let in_order = [Outcome::Unchanged, Outcome::TooSlow, Outcome::CloseStarted, BY_CLIENT, BY_SERVER];
    assert!(in_order.is_sorted());
}
