use super::*;
use crate::codec::test_frames::{client_frame, client_text};

#[test]
fn a_text_is_published_to_all_clients_and_the_sender() {
    let mut harness = Harness::new(Options::default());
    let mut clients = [harness.connect(), harness.connect()];
    clients[0].send(client_text("hello"));
    harness.iterate_until(|event_loop| event_loop.clients.stats.messages_sent == 2);
    let from = format!(r#""from":"{}","data":"hello""#, clients[0].id);
    for client in &mut clients {
        client.expect_welcome();
        assert!(client.read_text().contains(&from));
    }
}

#[test]
fn input_that_came_with_the_handshake_is_read_without_an_event() {
    let mut harness = Harness::new(Options::default());
    let (mut client, mut new) = Client::new();
    let handshake = Handshake {
        response: b"HTTP/1.1 101 Switching Protocols\r\n\r\n".to_vec(),
        early_input: client_text("early").into(),
        ..Handshake::default()
    };
    new.source = ConnectionSource::Handshake(client.id, handshake);
    harness.event_loop.clients.register(new);
    assert_eq!(harness.event_loop.poll_timeout(), Some(Duration::ZERO));
    harness.iterate_until(|event_loop| event_loop.clients.stats.messages_sent == 1);
    client.expect(b"HTTP/1.1 101 Switching Protocols\r\n\r\n");
    client.expect_welcome();
    assert!(client.read_text().contains(r#""data":"early""#));
}

#[test]
fn clients_take_turns_one_read_each() {
    let mut harness = Harness::new(Options::default());
    let mut clients = [harness.connect(), harness.connect()];
    // A read takes 64 KiB at most.
    let many = client_frame(0x8A, [1; 4], &[0; 125]).repeat(1000);
    clients.iter_mut().for_each(|client| client.send(&many));
    let keys = clients.each_ref().map(|client| harness.key(client));
    harness.iterate_until(|event_loop| event_loop.clients.stats.bytes_received == 2 * many.len() as u64);
    // After a short read, none is queued for nothing.
    assert!(harness.event_loop.clients.reader.queue.is_empty());
    let Clients { connections, reader, .. } = &mut harness.event_loop.clients;
    for key in keys {
        let entry = connections.get_by_key(key).unwrap();
        reader.queue(key, entry);
        reader.queue(key, entry);
    }
    assert_eq!(harness.event_loop.clients.reader.queue, keys, "each once");
}

#[test]
fn nothing_is_read_while_reads_are_paused() {
    let mut harness = Harness::new(Options::default());
    let mut client = harness.connect();
    let (reply, mut paused) = tokio::sync::mpsc::channel(1);
    harness.send(LoopCommand::PauseReads(reply));
    harness.iterate();
    paused.try_recv().unwrap();
    client.send(client_text("hello"));
    harness.iterate_until(|event_loop| !event_loop.clients.reader.queue.is_empty());
    assert_eq!(harness.event_loop.clients.stats.bytes_received, 0);
    assert_ne!(harness.event_loop.poll_timeout(), Some(Duration::ZERO), "it must not spin");
    harness.send(LoopCommand::ResumeReads);
    harness.iterate_until(|event_loop| event_loop.clients.stats.messages_sent == 1);
}

/// Returns a loop that allows one text in many seconds, and a client that has sent two.
pub(super) fn throttled() -> (Harness, Client) {
    let rates = Rates { client: Some(1), total: None, burst: 0 };
    let mut harness = Harness::new(Options { rates, ..Options::default() });
    let mut client = harness.connect();
    client.send(client_text("first"));
    harness.iterate_until(|event_loop| event_loop.clients.stats.messages_received == 1);
    client.send(client_text("second"));
    (harness, client)
}

#[test]
fn a_client_over_its_rate_is_not_read_from() {
    let (mut harness, client) = throttled();
    let key = harness.key(&client);
    let Clients { connections, reader, timers, .. } = &mut harness.event_loop.clients;
    let entry = connections.get_by_key(key).unwrap();
    assert!(entry.throttled);
    assert!(timers.next().is_some_and(|wait| wait > TIMEOUT));
    reader.queue(key, entry);
    assert!(reader.queue.is_empty(), "not even when more arrives");
    reader.end_throttling(key, entry);
    harness.iterate_until(|event_loop| event_loop.clients.stats.messages_received == 2);
}

#[test]
fn a_throttled_client_that_is_closed_is_read_from_again() {
    let (mut harness, client) = throttled();
    let slot = harness.key(&client).slot;
    harness.event_loop.clients.close(slot, CloseReason::ServiceRestart);
    assert!(!harness.event_loop.clients.connections.get(slot).unwrap().throttled);
    assert_eq!(harness.event_loop.clients.reader.queue.len(), 1);
    client.stream.shutdown(Shutdown::Both).unwrap();
    drop(client);
    harness.iterate_until(|event_loop| event_loop.clients.connections.is_empty());
}

#[test]
fn the_end_of_the_stream_is_read_after_the_last_text() {
    let mut harness = Harness::new(Options::default());
    let (mut client, mut other) = (harness.connect(), harness.connect());
    client.send(client_text("last"));
    client.shut_down();
    harness.iterate_until(|event_loop| event_loop.clients.connections.len() == 1);
    harness.iterate_until(|event_loop| event_loop.clients.stats.messages_sent > 0);
    other.expect_welcome();
    assert!(other.read_text().contains(r#""data":"last""#));
    assert_eq!(harness.event_loop.clients.stats.disconnects.get("left"), Some(&1));
}
