//! Connections that another process continues.

use super::*;
use crate::{connection::snapshot::ConnectionSnapshot, protocol::event_stream};

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
            let _ = old.send(first.bytes(), Round::default(), &CONFIG);
            let _ = old.send(second.bytes(), Round::default(), &CONFIG);
            let snapshot = ConnectionSnapshot { outbox: old.outbox.clone(), ..old.snapshot(None) };
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
        old.ping.sent();
        let snapshot = ConnectionSnapshot {
            outbox: old.outbox.clone(),
            ..old.snapshot(Some(Duration::from_millis(1500)))
        };
        assert_eq!(snapshot.close_timeout_in_ms, Some(1500));
        let new = Connection::restore(MemoryStream::default(), snapshot, permit());
        assert_eq!((new.state, new.close_reason()), (old.state, old.close_reason()));
        assert_eq!((new.queued(), new.has_early_input()), (old.queued(), true));
        assert_eq!(new.snapshot(None), old.snapshot(None));
        assert_eq!(new.disconnected(), old.disconnected());
    }
}

#[test]
fn a_client_whose_ping_another_process_has_sent_has_its_whole_time() {
    for form in [Form::WebSocket, Form::EventStream] {
        let stream = MemoryStream { capacity: usize::MAX, ..MemoryStream::default() };
        let mut old = Connection::new(stream, ClientId::generate(), form, permit());
        assert_eq!(old.send_ping(), Outcome::Unchanged);
        let stream = MemoryStream { written: old.stream.written.clone(), ..MemoryStream::default() };
        let mut new = Connection::restore(stream, old.snapshot(None), permit());
        assert!(!new.is_overdue(), "{form:?}: a check that was due soon");
        let is_overdue_later = form == Form::WebSocket;
        assert_eq!(
            new.ping.is_needed(),
            !is_overdue_later,
            "{form:?}: an event stream was acknowledged by then"
        );
        assert_eq!(new.is_overdue(), is_overdue_later, "{form:?}");
    }
}

/// Reads what a build that knew no chunks has written for a client of server-sent events. Its snapshots have
/// no field that says so.
fn snapshot_without_chunks() -> ConnectionSnapshot {
    #[derive(serde::Serialize)]
    struct Recorded {
        id: ClientId,
        form: &'static str,
    }
    let recorded = Recorded { id: ClientId::generate(), form: "event_stream" };
    rmp_serde::from_slice(&rmp_serde::to_vec_named(&recorded).unwrap()).unwrap()
}

#[test]
fn a_response_that_began_without_chunks_goes_on_and_ends_without() {
    let mut snapshot = snapshot_without_chunks();
    // However many builds that know chunks have continued it.
    for _ in 0..3 {
        let stream = MemoryStream { capacity: usize::MAX, ..MemoryStream::default() };
        let mut connection = Connection::restore(stream, snapshot, permit());
        assert_eq!(connection.send_ping(), Outcome::Unchanged);
        assert_eq!(connection.stream.written, b":\n");
        let written = rmp_serde::to_vec_named(&connection.snapshot(None)).unwrap();
        snapshot = rmp_serde::from_slice(&written).unwrap();
    }
    let stream = MemoryStream { capacity: usize::MAX, ..MemoryStream::default() };
    let mut connection = Connection::restore(stream, snapshot, permit());
    let notice = connection.form.of_chunk(event_stream::COMMENT);
    assert_eq!(connection.close(CloseReason::ServiceRestart, Some(notice)), Outcome::CloseStarted);
    assert_eq!(connection.stream.written, b":\n", "no chunk, and no last one");
    assert!(connection.stream.is_shut_down.get(), "the end of the connection is the end of the response");
}
