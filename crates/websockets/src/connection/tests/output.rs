//! Output, with every number of bytes that a socket takes.

use std::sync::Arc;

use lastcall_core::{ChannelName, Epoch, Publication, Publisher};

use super::*;
use crate::connection::replay::{Replay, ReplayForm};

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
    let (first, second) = (Frame::text("x".repeat(70)), Frame::text("second"));
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
    let frame = Frame::text("x".repeat(48));
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
    let large = Frame::text("x".repeat(500));
    let mut connection = connection(10);
    assert_eq!(connection.send(large.bytes(), &CONFIG), Outcome::Unchanged);
    assert_eq!(connection.queued(), large.bytes().len() - 10);
    assert_eq!(connection.send(large.bytes(), &CONFIG), Outcome::TooSlow);
}

/// Returns a replay of so many publications of 1,000 bytes.
fn replay(publications: u64, form: ReplayForm) -> Replay {
    let publication = |offset| {
        let data = serde_json::value::to_raw_value(&format!("{:1000}", "")).unwrap();
        Arc::new(Publication { offset, ..Publication::new(Publisher::Api, data) })
    };
    let missed = (1..=publications).map(publication).collect();
    Replay::new(ChannelName::broadcast(), Epoch::default(), missed, form)
}

#[test]
fn a_client_that_reads_fast_has_turns() {
    let mut connection = connection(usize::MAX);
    assert_eq!(connection.replay(replay(1000, ReplayForm::WebSocket)), Outcome::Unchanged);
    let mut turns = 1;
    while connection.awaits_turn() {
        let before = connection.stream.written.len();
        assert_eq!(connection.flush(), Outcome::Unchanged);
        let written = connection.stream.written.len() - before;
        assert!(written < 150_000, "{written} bytes in one turn");
        turns += 1;
    }
    assert!(!connection.has_output() && turns >= 8, "{turns} turns for a million bytes");
    // Where the socket takes no more, an event tells when to go on.
    connection.stream.capacity = 1000;
    assert_eq!(connection.replay(replay(1000, ReplayForm::WebSocket)), Outcome::Unchanged);
    assert!(connection.has_output() && !connection.awaits_turn());
}

#[test]
fn a_client_that_reads_its_replay_is_not_overdue_also_in_another_process() {
    for (form, replay_form) in [
        (WireForm::WebSocket, ReplayForm::WebSocket),
        (WireForm::EventStream, ReplayForm::EventStream { before: String::new(), after: String::new() }),
    ] {
        for upgrades in [false, true] {
            let mut connection = connection(0);
            connection.form = form;
            assert_eq!(connection.replay(replay(100, replay_form.clone())), Outcome::Unchanged);
            assert!(connection.ping.is_needed());
            assert_eq!(
                connection.send_ping(&ConnectionConfig { max_queue: 1 << 20, ..CONFIG }),
                Outcome::Unchanged
            );
            assert!(!connection.ping.is_overdue(), "it was just sent");
            if upgrades {
                let snapshot = rmp_serde::to_vec_named(&connection.snapshot(None)).unwrap();
                let snapshot = rmp_serde::from_slice(&snapshot).unwrap();
                connection = Connection::restore(MemoryStream::default(), snapshot, permit());
                assert!(!connection.ping.is_overdue(), "it has its time again");
            }
            while connection.has_output() {
                // A little more than a page, so that what is queued often grows.
                connection.stream.capacity = 17_000;
                assert_eq!(connection.flush(), Outcome::Unchanged);
                assert!(!connection.ping.is_overdue(), "{form:?}, upgrade: {upgrades}");
            }
            let expected = if form == WireForm::EventStream { Ping::Answered } else { Ping::SentLate };
            assert_eq!(connection.ping, expected);
        }
    }
}
