//! Each way in which a connection ends.

use super::*;

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
        let _ = connection.send(frame.bytes(), Round::default(), &CONFIG);
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
        assert_eq!(
            connection.close(CloseReason::ServiceRestart, Some(notice.bytes().clone())),
            Outcome::Unchanged
        );
        assert_eq!(connection.send(notice.bytes(), Round::default(), &CONFIG), Outcome::Unchanged);
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
    let mut connection2 = echo_connection(usize::MAX);
    assert_eq!(receive(&mut connection2, input, &CONFIG).0, Outcome::Unchanged);
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
fn a_close_follows_what_is_queued_and_the_notice_whatever_the_socket_takes_at_a_time() {
    let (frame, notice) = (Frame::text("queued"), Frame::text("notice"));
    for (reason, notice) in ALL_REASONS.iter().flat_map(|reason| [(*reason, None), (*reason, Some(&notice))])
    {
        for taken in 0..frame.bytes().len() {
            let mut connection = connection(taken);
            let _ = connection.send(frame.bytes(), Round::default(), &CONFIG);
            assert_eq!(
                connection.close(reason, notice.map(|notice: &Frame| notice.bytes().clone())),
                Outcome::CloseStarted
            );
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
fn the_end_of_a_connection_releases_its_permit() {
    let admission = Admission::new(1, Phases::default());
    let permit = admission.admit().unwrap();
    let connection = Connection::new(MemoryStream::default(), ClientId::generate(), Form::WebSocket, permit);
    assert!(admission.admit().is_err());
    connection.finish(Disconnect::ByClient);
    assert!(admission.admit().is_ok());
}

#[test]
fn of_two_outcomes_the_more_severe_counts() {
    let in_order = [Outcome::Unchanged, Outcome::TooSlow, Outcome::CloseStarted, BY_CLIENT, BY_SERVER];
    assert!(in_order.is_sorted());
}
