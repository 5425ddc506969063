use super::{
    super::{
        delivery::{Content, Delivery},
        jobs::{Job, Jobs},
    },
    *,
};
use crate::{codec::test_frames::client_close, notice::ShutdownNotice};

fn notice() -> ShutdownNotice {
    ShutdownNotice::new("service restart", Instant::now() + Duration::from_secs(60), Duration::ZERO)
}

/// Returns a loop with so many clients, which have read their welcomes.
fn with_clients(count: usize) -> (Harness, Vec<Client>) {
    let mut harness = Harness::new(Options::default());
    let mut clients: Vec<_> = (0..count).map(|_| harness.connect()).collect();
    clients.iter_mut().for_each(Client::expect_welcome);
    harness.iterate_until(|event_loop| event_loop.clients.channels.subscriptions.pending().next().is_none());
    (harness, clients)
}

/// A loop of which each job is a slice, and the delivery of a publication to 70 clients that has reached 32 of
/// them.
fn in_a_delivery() -> (Harness, Vec<Client>) {
    let (mut harness, clients) = with_clients(70);
    harness.event_loop.slice = Duration::ZERO;
    harness.publish("one");
    harness.iterate(); // takes it
    harness.iterate(); // writes it to 32
    (harness, clients)
}

#[test]
fn the_mailbox_is_looked_at_once_and_after_all_other_jobs() {
    let mut jobs = Jobs::default();
    jobs.queue_mailbox_job();
    jobs.queue_mailbox_job();
    assert_eq!(format!("{jobs:?}"), "Jobs([TakeFromMailbox])");
    jobs.push_next(Delivery::new(Content::Close(CloseReason::Idle)));
    jobs.queue_mailbox_job();
    assert!(matches!(jobs.next(), Some(Job::Deliver(_))));
    assert_eq!(format!("{jobs:?}"), "Jobs([TakeFromMailbox])");
}

#[test]
fn publications_and_commands_keep_their_order() {
    let (mut harness, mut clients) = with_clients(3);
    harness.publish("one");
    harness.send(LoopCommand::BeginDrain(notice()));
    harness.publish("two");
    harness.publish("three");
    harness.send(LoopCommand::CloseAll(CloseReason::ServiceRestart));
    harness.publish("too late");
    harness.iterate_until(|event_loop| event_loop.clients.drain.closes_all());
    harness.iterate();
    for client in &mut clients {
        client.expect_text("one");
        assert!(client.read_text().contains(r#""type":"shutdown""#));
        client.expect_text("two");
        client.expect_text("three");
        assert!(client.read_text().contains(r#""type":"shutdown""#), "again with the close");
        client.expect_close(CloseReason::ServiceRestart);
        client.send(client_close(1012));
    }
    harness.iterate_until(|event_loop| event_loop.clients.connections.is_empty());
    clients.iter_mut().for_each(Client::expect_end);
}

#[test]
fn a_delivery_continues_in_the_next_iteration_when_its_slice_is_over() {
    let (mut harness, mut clients) = in_a_delivery();
    let (reached, others) = clients.split_at_mut(32);
    reached.iter_mut().for_each(|client| client.expect_text("one"));
    others.iter_mut().for_each(Client::expect_nothing);
    assert_eq!(harness.event_loop.poll_timeout(), Some(Duration::ZERO), "it must not wait");
    harness.iterate();
    harness.iterate();
    others.iter_mut().for_each(|client| client.expect_text("one"));
    assert_eq!(harness.event_loop.clients.stats.messages_sent, 70);
}

#[test]
fn what_comes_after_a_delivery_waits_for_its_end() {
    let (mut harness, mut clients) = in_a_delivery();
    harness.publish("two");
    harness.iterate_until(|event_loop| event_loop.clients.stats.messages_sent == 140);
    for client in &mut clients {
        client.expect_text("one");
        client.expect_text("two");
    }
}

#[test]
fn a_new_connection_is_welcomed_during_a_delivery_and_gets_what_is_published_after_it() {
    let (mut harness, _clients) = in_a_delivery();
    let mut client = harness.connect_by_mailbox();
    harness.iterate();
    client.expect_welcome();
    assert!(!harness.event_loop.jobs.is_empty());
    harness.publish("two");
    harness.iterate_until(|event_loop| event_loop.clients.stats.messages_sent == 70 + 71);
    client.expect_text("two");
}

#[test]
fn a_new_connection_gets_a_shutdown_notice_once() {
    let (mut harness, _clients) = with_clients(70);
    harness.event_loop.slice = Duration::ZERO;
    harness.send(LoopCommand::BeginDrain(notice()));
    harness.iterate(); // takes it
    harness.iterate(); // starts it
    harness.iterate(); // writes it to 32
    let mut client = harness.connect_by_mailbox();
    harness.iterate_until(|event_loop| event_loop.clients.connections.len() == 71);
    harness.publish("after");
    harness.iterate_until(|event_loop| event_loop.clients.stats.messages_sent == 71);
    client.expect_welcome();
    assert!(client.read_text().contains(r#""type":"shutdown""#));
    client.expect_text("after");
}

#[test]
fn a_new_connection_is_closed_after_its_welcome_once_all_are_closed() {
    let (mut harness, _) = with_clients(0);
    harness.send(LoopCommand::CloseAll(CloseReason::ServiceRestart));
    harness.iterate();
    let mut client = harness.connect();
    client.expect_welcome();
    client.expect_close(CloseReason::ServiceRestart);
}

#[test]
fn an_echo_server_sends_neither_publications_nor_notices() {
    let mut harness = Harness::new(Options { websockets: Form::Echo, ..Options::default() });
    let mut client = harness.connect();
    harness.publish("one");
    harness.send(LoopCommand::BeginDrain(notice()));
    harness.send(LoopCommand::CloseAll(CloseReason::ServiceRestart));
    harness.iterate_until(|event_loop| event_loop.clients.drain.closes_all());
    harness.iterate();
    client.expect_close(CloseReason::ServiceRestart);
}

#[test]
fn a_socket_that_takes_no_more_is_written_when_it_does() {
    let (mut harness, mut clients) = with_clients(1);
    let text = "x".repeat(100_000);
    // More than both sockets hold.
    let mut count = 0;
    while harness.event_loop.clients.connections.iter().all(|(_, entry)| !entry.connection.has_output()) {
        harness.publish(&text);
        harness.iterate();
        count += 1;
    }
    assert!(harness.event_loop.clients.connections.iter().all(|(_, entry)| entry.write_interest));
    let reader =
        std::thread::spawn(move || (0..count).for_each(|_| clients[0].expect_text(&"x".repeat(100_000))));
    harness.iterate_until(|event_loop| {
        event_loop.clients.connections.iter().all(|(_, entry)| !entry.connection.has_output())
    });
    reader.join().unwrap();
}

#[test]
fn the_stats_count_what_was_sent_received_and_closed() {
    let (mut harness, mut clients) = with_clients(2);
    harness.publish("one");
    clients[0].send(client_close(1000));
    harness.iterate_until(|event_loop| {
        event_loop.clients.connections.len() == 1 && event_loop.clients.stats.messages_sent > 0
    });
    let (reply, mut stats) = tokio::sync::mpsc::channel(1);
    harness.send(LoopCommand::CollectStats(reply));
    harness.iterate();
    let stats = stats.try_recv().unwrap();
    assert_eq!((stats.opened, stats.bytes_received), (2, 8));
    assert_eq!(stats.disconnects.get("left"), Some(&1));
    assert!(stats.loop_iterations.counts.iter().sum::<u64>() >= 1);
}
