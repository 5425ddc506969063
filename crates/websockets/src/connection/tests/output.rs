//! Output, with every number of bytes that a socket takes.

use std::sync::Arc;

use lastcall_core::{ChannelName, Epoch, Publication, Publisher};

use super::*;
use crate::connection::{
    output::Prepared,
    replay::{Replay, ReplayForm},
    snapshot::ConnectionSnapshot,
};

#[test]
fn a_write_that_fails_ends_the_connection() {
    let frame = Frame::text("hello");
    let fails = || {
        let mut connection = connection(usize::MAX);
        connection.stream.write_error = Some(ErrorKind::BrokenPipe);
        connection
    };
    assert_eq!(fails().send(frame.bytes(), Round::default(), &CONFIG), BY_CLIENT);
    assert_eq!(fails().send_handshake(b"HTTP".to_vec(), frame.bytes()), BY_CLIENT);
    assert_eq!(fails().close(CloseReason::Idle, None), BY_SERVER);
    let mut queued = connection(0);
    assert_eq!(queued.send(frame.bytes(), Round::default(), &CONFIG), Outcome::Unchanged);
    queued.stream.write_error = Some(ErrorKind::BrokenPipe);
    assert_eq!(queued.flush(), BY_CLIENT);
}

#[test]
fn writes_to_many_sockets_can_be_made_together() {
    let message = Frame::text("x".repeat(100)).bytes().clone();
    let mut queued = connection(0);
    let _ = queued.send_unbounded(&message);
    let mut connections =
        [connection(usize::MAX), connection(50), connection(0), queued, connection_in(State::CloseSent)];
    let config = ConnectionConfig { max_queue: 1000, ..CONFIG };
    let prepared = connections
        .each_mut()
        .map(|connection| connection.prepare(&message, Round::default().next(), &config));
    let mut outcomes = Vec::new();
    for (connection, prepared) in connections.iter_mut().zip(prepared) {
        outcomes.push(match prepared {
            Prepared::Write(write) => {
                let result = connection.stream.write(write.messages);
                connection.complete(write, result)
            }
            Prepared::Done(outcome) => outcome,
        });
    }
    assert_eq!(outcomes, [Outcome::Unchanged; 5]);
    let queued = connections.each_ref().map(Connection::queued);
    let whole = message.len();
    assert_eq!(queued, [0, whole - 50, whole, 2 * whole, 0]);
    for mut connection in connections.into_iter().take(4) {
        let sent = connection.take_sent().bytes as usize + connection.queued();
        connection.stream.capacity = usize::MAX;
        assert_eq!(connection.flush(), Outcome::Unchanged);
        assert_eq!(connection.stream.written, message.repeat(sent / whole));
    }
    let mut failed = connection(usize::MAX);
    let Prepared::Write(write) = failed.prepare(&message, Round::default(), &CONFIG) else { panic!() };
    assert_eq!(failed.complete(write, Err(ErrorKind::BrokenPipe.into())), BY_CLIENT);
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
    assert_eq!(sends.send(frame.bytes(), Round::default(), &CONFIG), Outcome::Unchanged);
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
        assert_eq!(connection.send(first.bytes(), Round::default(), &CONFIG), Outcome::Unchanged);
        assert_eq!(connection.send(second.bytes(), Round::default(), &CONFIG), Outcome::Unchanged);
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

/// Has the connection send this frame in one round after the other until it is too slow. Returns how many it
/// has queued.
fn rounds_until_too_slow(
    connection: &mut Connection<MemoryStream>,
    frame: &Bytes,
    max_queue: usize,
) -> usize {
    let config = ConnectionConfig { max_queue, ..CONFIG };
    let mut round = Round::default();
    for sent in 0..10_000 {
        round = round.next();
        if connection.send(frame, round, &config) == Outcome::TooSlow {
            return sent;
        }
    }
    panic!("it is never too slow");
}

#[test]
fn a_client_for_which_more_than_the_limit_was_queued_is_too_slow_when_more_is_added() {
    let frame = Frame::text("x".repeat(996)).bytes().clone();
    let mut taking_nothing = connection(0);
    let sent = rounds_until_too_slow(&mut taking_nothing, &frame, 100_000);
    assert!((85..=100).contains(&sent), "{sent} messages of 1,000 bytes");
    assert_eq!(taking_nothing.queued(), sent * 1000, "nothing is queued beyond it");
    assert_eq!(taking_nothing.send_unbounded(&frame), Outcome::Unchanged, "but for what all must get");
}

#[test]
fn small_messages_count_with_what_they_cost() {
    for size in [0, 1, 10, 90, 120] {
        let frame = Frame::text("x".repeat(size)).bytes().clone();
        let mut taking_nothing = connection(0);
        let sent = rounds_until_too_slow(&mut taking_nothing, &frame, 10_000);
        assert!(sent * frame.len() <= 10_000 + frame.len(), "{sent} messages of {size} bytes");
    }
}

#[test]
fn what_one_round_adds_makes_no_client_too_slow_that_had_taken_what_came_before() {
    let frame = Frame::text("x".repeat(100)).bytes().clone();
    let (one, two) = (Round::default().next(), Round::default().next().next());
    let mut connection = connection(10);
    for _ in 0..100 {
        assert_eq!(connection.send(&frame, one, &CONFIG), Outcome::Unchanged);
    }
    assert_eq!(connection.send(&frame, two, &CONFIG), Outcome::TooSlow, "it has taken nothing of it");
    connection.stream.capacity = usize::MAX;
    assert_eq!(connection.flush(), Outcome::Unchanged);
    connection.stream.capacity = 10;
    for _ in 0..100 {
        assert_eq!(connection.send(&frame, two, &CONFIG), Outcome::Unchanged);
    }
}

#[test]
fn what_the_socket_takes_of_the_rounds_before_counts_no_longer() {
    let frame = Frame::text("x".repeat(196)).bytes().clone();
    let config = ConnectionConfig { max_queue: 1000, ..CONFIG };
    let mut connection = connection(0);
    let mut round = Round::default();
    for _ in 0..100 {
        round = round.next();
        for _ in 0..10 {
            assert_eq!(connection.send(&frame, round, &config), Outcome::Unchanged);
        }
        connection.stream.capacity = 10 * 200;
        assert_eq!(connection.flush(), Outcome::Unchanged);
        connection.stream.capacity = 0;
    }
}

#[test]
fn of_the_pongs_that_a_socket_has_not_taken_the_last_one_stands_for_all() {
    let pong = |n: usize| bytes(&Frame::pong(n.to_string().as_bytes()));
    let frame = Frame::text("x".repeat(300)).bytes().clone();
    // Whatever is taken when the pings come: nothing, a part of the message, a part of a pong.
    for taken in 0..320 {
        let mut connection = connection(taken);
        assert_eq!(connection.send(&frame, Round::default(), &CONFIG), Outcome::Unchanged);
        for n in 0..1000 {
            let ping = client_frame(0x89, [1; 4], n.to_string().as_bytes());
            assert_eq!(receive(&mut connection, ping, &CONFIG).0, Outcome::Unchanged);
        }
        assert!(connection.queued() < frame.len() + 20, "{} bytes", connection.queued());
        connection.stream.capacity = usize::MAX;
        assert_eq!(connection.flush(), Outcome::Unchanged);
        let mut expected = [pong(999), frame.to_vec()];
        if taken > 0 {
            expected.reverse();
        }
        let mut expected = expected.concat();
        if taken > frame.len() {
            expected = frame.to_vec();
            let mut n = 0;
            while expected.len() < taken {
                expected.extend(pong(n));
                n += 1;
            }
            expected.extend(pong(999));
        } else if taken == frame.len() {
            expected = [frame.to_vec(), pong(999)].concat();
        }
        assert_eq!(connection.stream.written, expected, "{taken} bytes were taken");
        // While the socket takes them, each gets its own.
        connection.stream.written.clear();
        for n in 0..10 {
            let ping = client_frame(0x89, [1; 4], n.to_string().as_bytes());
            assert_eq!(receive(&mut connection, ping, &CONFIG).0, Outcome::Unchanged);
        }
        assert_eq!(connection.stream.written, (0..10).flat_map(pong).collect::<Vec<_>>());
    }
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
        (Form::WebSocket, ReplayForm::WebSocket),
        (
            Form::EventStream,
            ReplayForm::EventStream { form: Form::EventStream, before: String::new(), after: String::new() },
        ),
    ] {
        for upgrades in [false, true] {
            let mut connection = connection(0);
            connection.form = form;
            assert_eq!(connection.replay(replay(100, replay_form.clone())), Outcome::Unchanged);
            assert!(connection.ping.is_needed());
            assert_eq!(connection.send_ping(), Outcome::Unchanged);
            assert!(!connection.is_overdue(), "it was just sent");
            if upgrades {
                let snapshot = rmp_serde::to_vec_named(&connection.snapshot(None)).unwrap();
                let snapshot: ConnectionSnapshot = rmp_serde::from_slice(&snapshot).unwrap();
                let snapshot = ConnectionSnapshot { outbox: connection.outbox.clone(), ..snapshot };
                connection = Connection::restore(MemoryStream::default(), snapshot, permit());
                assert!(!connection.is_overdue(), "it has its time again");
            }
            while connection.has_output() {
                // A little more than a page, so that what is queued often grows.
                connection.stream.capacity = 17_000;
                assert_eq!(connection.flush(), Outcome::Unchanged);
                assert!(!connection.is_overdue(), "{form:?}, upgrade: {upgrades}");
            }
            assert!(!connection.is_overdue());
            let expected = if form == Form::EventStream { Ping::Answered } else { Ping::SentLate };
            assert_eq!(connection.ping, expected);
        }
    }
}
