//! Input, and the pings that it answers.

use super::*;

#[test]
fn a_text_is_published_ignored_or_echoed_as_configured() {
    for (mut connection, publishes_texts, published, written) in [
        (connection(usize::MAX), true, vec!["hello"], vec![]),
        (connection(usize::MAX), false, vec![], vec![]),
        (echo_connection(usize::MAX), true, vec![], bytes(&Frame::text("hello"))),
    ] {
        let config = ConnectionConfig { publishes_texts, ..CONFIG };
        let (outcome, texts) = receive(&mut connection, client_text("hello"), &config);
        assert_eq!(outcome, Outcome::Unchanged);
        assert_eq!(texts, published);
        assert_eq!(connection.stream.written, written);
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
fn a_client_that_does_not_read_its_echoes_is_not_read_from() {
    let mut connection = echo_connection(0);
    assert_eq!(receive(&mut connection, client_text("one"), &CONFIG).0, Outcome::Unchanged);
    connection.stream.receive(client_text("two"));
    assert_eq!(read(&mut connection, &CONFIG).1, Readable::No);
    assert_eq!(connection.stream.input.len(), 1, "it is still in the socket");
    assert_eq!(drain(&mut connection, 100), Outcome::Unchanged);
    let _ = read(&mut connection, &CONFIG);
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
    assert_eq!(connection.send_ping(), Outcome::Unchanged);
    assert!(connection.ping.is_unread());
    connection.stream.capacity = 1;
    let _ = connection.flush();
    assert!(connection.ping.is_unread());
    let _ = drain(&mut connection, 1);
    assert_eq!(connection.ping, Ping::SentLate);
    let _ = receive(&mut connection, [0x8A], &CONFIG);
    assert_eq!(connection.ping, Ping::Answered);
}
