use lastcall_broker::{ChannelInfo, Since};
use lastcall_core::{Position, Publication, Publisher};
use serde_json::{Value, value::to_raw_value};

use super::*;
use crate::{
    codec::test_frames::{client_close, client_text},
    handshake::ChannelRequest,
    protocol::Form,
};

pub(super) fn name(text: &str) -> ChannelName {
    text.parse().unwrap()
}

impl Harness {
    /// Publishes numbers in a channel by the broker.
    pub(super) fn publish_numbers(&self, channel: &str, numbers: impl IntoIterator<Item = u64>) {
        for number in numbers {
            let data = to_raw_value(&number).unwrap();
            drop(self.event_loop.clients.channels.broker.publish(
                &name(channel),
                vec![Publication::new(Publisher::Api, data)],
                None,
            ));
        }
    }

    fn info(&self, channel: &str) -> Option<ChannelInfo> {
        self.event_loop.clients.channels.broker.channel(&name(channel))
    }

    fn position(&self, channel: &str, offset: u64) -> Since {
        Since::Position(Position { offset, ..self.info(channel).unwrap().top })
    }

    /// Registers a client that names channels.
    pub(super) fn connect_to(&mut self, channels: &[(&str, Since)]) -> Client {
        let (client, mut new) = Client::new();
        let request =
            |(channel, since): &(&str, Since)| ChannelRequest { name: name(channel), since: *since };
        let channels = channels.iter().map(request).collect();
        new.source = ConnectionSource::Handshake(client.id, Handshake { channels, ..Handshake::default() });
        self.event_loop.clients.register(new);
        client
    }

    /// Registers a client of server-sent events.
    pub(super) fn connect_events(&mut self, channels: &[&str]) -> Client {
        let (client, mut new) = Client::new();
        let channels =
            channels.iter().map(|channel| ChannelRequest { name: name(channel), since: Since::Now });
        let handshake =
            Handshake { form: Form::EventStream, channels: channels.collect(), ..Handshake::default() };
        new.source = ConnectionSource::Handshake(client.id, handshake);
        self.event_loop.clients.register(new);
        client
    }

    pub(super) fn settle(&mut self) {
        self.iterate_until(|event_loop| event_loop.clients.channels.subscriptions.pending().next().is_none());
        self.iterate();
    }
}

impl Client {
    pub(super) fn read_json(&mut self) -> Value {
        serde_json::from_str(&self.read_text()).unwrap()
    }

    /// Reads the start of a subscription, and returns the offset of its id and whether it was recovered.
    pub(super) fn read_subscribed(&mut self, channel: &str) -> (u64, bool) {
        let message = self.read_json();
        assert_eq!(
            (&message["type"], &message["channel"]),
            (&"subscribed".into(), &channel.into()),
            "{message}"
        );
        let id: Position = message["id"].as_str().unwrap().parse().unwrap();
        (id.offset, message["recovered"].as_bool().unwrap())
    }

    /// Reads publications, which must be these numbers.
    pub(super) fn expect_numbers(&mut self, channel: &str, numbers: impl IntoIterator<Item = u64>) {
        for number in numbers {
            let message = self.read_json();
            assert_eq!(
                (&message["channel"], &message["data"]),
                (&channel.into(), &number.into()),
                "{message}"
            );
        }
    }
}

#[test]
fn a_client_that_comes_back_gets_what_it_missed_and_then_the_rest_whenever_it_is_published() {
    // The steps of a subscription, before each of which something is published, or not.
    for mask in 0_u32..8 {
        let mut harness = Harness::new(Options::default());
        let mut last = 0;
        let mut publish = |harness: &Harness, step: u32| {
            if mask & (1 << step) != 0 {
                harness.publish_numbers("a", last + 1..=last + 2);
                last += 2;
            }
        };
        harness.publish_numbers("a", [101, 102, 103]);
        publish(&harness, 0);
        let mut client = harness.connect_to(&[("a", harness.position("a", 1))]);
        publish(&harness, 1);
        harness.settle();
        publish(&harness, 2);
        harness.iterate_until(|event_loop| event_loop.clients.stats.messages_sent == 2 + last);
        client.expect_welcome();
        assert_eq!(client.read_subscribed("a"), (1, true));
        client.expect_numbers("a", [102, 103]);
        client.expect_numbers("a", 1..=last);
        client.expect_nothing();
    }
}

#[test]
fn a_client_that_cannot_recover_is_told_and_gets_what_is_published_then() {
    let mut harness = Harness::new(Options::default());
    harness.publish_numbers("a", [101, 102]);
    let future = harness.position("a", 9);
    for since in [Since::Now, Since::Invalid, future, Since::Position(Position::default())] {
        let mut client = harness.connect_to(&[("a", since)]);
        harness.settle();
        client.expect_welcome();
        assert!(!client.read_subscribed("a").1, "{since:?}");
        client.expect_nothing();
    }
    let mut quiet = harness.connect_to(&[("quiet", Since::Now)]);
    harness.settle();
    quiet.expect_welcome();
    assert_eq!(quiet.read_subscribed("quiet"), (0, false), "a position before the first publication");
}

#[test]
fn clients_get_the_publications_of_their_channels_alone() {
    let mut harness = Harness::new(Options::default());
    let mut both = harness.connect_to(&[("a", Since::Now), ("b", Since::Now)]);
    let mut one = harness.connect_to(&[("b", Since::Now)]);
    let mut unnamed = harness.connect();
    harness.settle();
    harness.publish_numbers("a", [1, 2]);
    harness.publish_numbers("b", [3]);
    harness.publish_numbers("broadcast", [4]);
    harness.publish_numbers("c", [5]);
    harness.iterate_until(|event_loop| event_loop.clients.stats.messages_sent == 5);
    for client in [&mut both, &mut one, &mut unnamed] {
        client.expect_welcome();
    }
    both.read_subscribed("a");
    both.read_subscribed("b");
    both.expect_numbers("a", [1, 2]);
    both.expect_numbers("b", [3]);
    one.read_subscribed("b");
    one.expect_numbers("b", [3]);
    unnamed.expect_numbers("broadcast", [4]);
    for client in [&mut both, &mut one, &mut unnamed] {
        client.expect_nothing();
    }
}

#[test]
fn a_text_goes_to_the_first_channel_of_its_sender() {
    let mut harness = Harness::new(Options::default());
    let mut sender = harness.connect_to(&[("a", Since::Now), ("b", Since::Now)]);
    let mut other = harness.connect_to(&[("b", Since::Now)]);
    harness.settle();
    sender.send(client_text("hello"));
    harness.iterate_until(|event_loop| event_loop.clients.stats.messages_sent == 1);
    sender.expect_welcome();
    sender.read_subscribed("a");
    sender.read_subscribed("b");
    let message = sender.read_json();
    assert_eq!((&message["channel"], &message["data"]), (&"a".into(), &"hello".into()));
    assert!(message["id"].as_str().unwrap().ends_with("-1"));
    other.expect_welcome();
    other.read_subscribed("b");
    other.expect_nothing();
}

#[test]
fn the_broker_counts_the_connections_that_are_there() {
    let mut harness = Harness::new(Options::default());
    let count = |harness: &Harness| harness.info("a").map_or(0, |info| info.subscribers);
    let mut clients: Vec<_> = (0..3).map(|_| harness.connect_to(&[("a", Since::Now)])).collect();
    assert_eq!(count(&harness), 3, "from the registration on");
    harness.settle();
    clients[0].send(client_close(1000));
    harness.iterate_until(|event_loop| event_loop.clients.connections.len() == 2);
    assert_eq!(count(&harness), 2);
    // One that ends before its subscription has begun.
    let early = harness.connect_to(&[("a", Since::Now)]);
    let key = harness.key(&early);
    harness.event_loop.clients.remove(key.slot, crate::admission::Disconnect::Forced);
    assert_eq!(count(&harness), 3, "its subscription ends when it begins");
    harness.settle();
    assert_eq!(count(&harness), 2);
    drop(clients);
    harness.iterate_until(|event_loop| event_loop.clients.connections.is_empty());
    assert_eq!(count(&harness), 0);
    assert_eq!(harness.event_loop.clients.channels.subscriptions.iter().count(), 0);
    harness.publish_numbers("a", [1]);
    assert!(harness.mailboxes.take(0).items.is_empty(), "the loop does not receive the channel any more");
}

/// Publishes numbers with so much beside them that a few fill what sockets hold, and returns them.
fn publish_large(harness: &Harness, count: usize) {
    for number in 0..count {
        let data = to_raw_value(&format!("{number}:{}", "x".repeat(50_000))).unwrap();
        drop(harness.event_loop.clients.channels.broker.publish(
            &name("a"),
            vec![Publication::new(Publisher::Api, data)],
            None,
        ));
    }
}

/// Reads large publications, which must have these numbers.
fn expect_large(client: &mut Client, numbers: std::ops::Range<usize>) {
    for number in numbers {
        let text = client.read_text();
        assert!(text.contains(&format!(r#""data":"{number}:xxx"#)), "{number}: {}", &text[..150]);
    }
}

#[test]
fn a_replay_larger_than_the_queue_reaches_a_client_that_reads_and_what_is_published_meanwhile_comes_after_it()
{
    let mut harness = Harness::new(Options::default());
    publish_large(&harness, 90);
    assert!(90 * 50_000 > 4 * harness.event_loop.clients.config.max_queue);
    let mut client = harness.connect_to(&[("a", harness.position("a", 0))]);
    harness.settle();
    let queued = |event_loop: &EventLoop| {
        event_loop.clients.connections.iter().map(|(_, entry)| entry.connection.queued()).sum::<usize>()
    };
    assert!(queued(&harness.event_loop) < 200_000, "a page at a time");
    harness.publish_numbers("a", [1, 2]);
    harness.iterate();
    let reader = std::thread::spawn(move || {
        client.expect_welcome();
        assert_eq!(client.read_subscribed("a"), (0, true));
        expect_large(&mut client, 0..90);
        client.expect_numbers("a", [1, 2]);
        client
    });
    harness.iterate_until(|event_loop| {
        event_loop.clients.connections.iter().all(|(_, entry)| !entry.connection.has_output())
    });
    let mut client = reader.join().unwrap();
    harness.publish_numbers("a", [3]);
    harness.iterate_until(|event_loop| event_loop.clients.stats.messages_sent == 93);
    client.expect_numbers("a", [3]);
}

#[test]
fn a_client_that_does_not_read_its_replay_is_closed_once_too_much_waits_behind_it() {
    let mut harness = Harness::new(Options::default());
    publish_large(&harness, 90);
    let _client = harness.connect_to(&[("a", harness.position("a", 0))]);
    harness.settle();
    let closed = |event_loop: &EventLoop| {
        event_loop.clients.connections.iter().any(|(_, entry)| !entry.connection.is_open())
    };
    assert!(!closed(&harness.event_loop));
    // More than the queue may have. What is published together is not held against the client, what comes
    // then is.
    publish_large(&harness, 25);
    harness.settle();
    assert!(!closed(&harness.event_loop));
    harness.publish_numbers("a", [1]);
    harness.iterate_until(|event_loop| event_loop.clients.connections.is_empty() || closed(event_loop));
    let reasons: Vec<_> = harness
        .event_loop
        .clients
        .connections
        .iter()
        .map(|(_, entry)| entry.connection.close_reason())
        .collect();
    assert_eq!(reasons, [Some(CloseReason::SlowConsumer)]);
}

#[test]
fn a_replay_that_moves_to_another_process_does_not_make_its_client_look_slow() {
    let mut old = Harness::new(Options::default());
    publish_large(&old, 90);
    let mut client = old.connect_to(&[("a", old.position("a", 0))]);
    old.settle();
    let mut new = freeze::hand_over(old);
    new.settle();
    let max_queue = new.event_loop.clients.config.max_queue;
    let (_, entry) = new.event_loop.clients.connections.iter().next().unwrap();
    assert!(entry.connection.has_output() && entry.connection.queued() < max_queue, "it is still a replay");
    new.publish_numbers("a", [1]);
    let reader = std::thread::spawn(move || {
        client.expect_welcome();
        client.read_subscribed("a");
        expect_large(&mut client, 0..90);
        client.expect_numbers("a", [1]);
    });
    new.iterate_until(|event_loop| {
        event_loop.clients.stats.messages_sent >= 1
            && event_loop.clients.connections.iter().all(|(_, entry)| !entry.connection.has_output())
    });
    reader.join().unwrap();
    assert!(new.event_loop.clients.connections.iter().all(|(_, entry)| entry.connection.is_open()));
}

#[test]
fn clients_with_long_replays_take_turns() {
    const MISSED: u64 = 100;
    let mut harness = Harness::new(Options::default());
    // One write in each iteration.
    harness.event_loop.slice = Duration::ZERO;
    let _keeps = harness.connect_to(&[("a", Since::Now)]);
    harness.settle();
    let text = "x".repeat(20_000);
    let publication =
        |_| Publication::new(Publisher::Api, to_raw_value(&text).expect("a text is valid JSON"));
    drop(harness.event_loop.clients.channels.broker.publish(
        &name("a"),
        (0..MISSED).map(publication).collect(),
        None,
    ));
    harness.settle();
    let since = harness.position("a", 0);
    let readers: Vec<_> = (0..3)
        .map(|_| {
            let mut client = harness.connect_to(&[("a", since)]);
            std::thread::spawn(move || {
                client.expect_welcome();
                assert!(client.read_subscribed("a").1);
                for offset in 1..=MISSED {
                    let message = client.read_json();
                    assert!(message["id"].as_str().unwrap().ends_with(&format!("-{offset}")), "{message}");
                }
            })
        })
        .collect();
    harness.iterate_until(|_| readers.iter().all(std::thread::JoinHandle::is_finished));
    readers.into_iter().for_each(|reader| reader.join().unwrap());
    assert!(harness.event_loop.clients.writer.is_empty());
}

#[test]
fn an_echo_server_sends_events_to_clients_who_can_send_nothing() {
    let mut harness = Harness::new(Options { websockets: Form::Echo, ..Options::default() });
    let (mut client, mut new) = Client::new();
    let handshake = Handshake { form: Form::EventStream, ..Handshake::default() };
    new.source = ConnectionSource::Handshake(client.id, handshake);
    harness.event_loop.clients.register(new);
    client.expect(&Form::EventStream.encode(&Outgoing::Welcome { client: client.id }));
    harness.settle();
    harness.publish_numbers("broadcast", [7]);
    harness.iterate();
    let (mut got, expected) = (String::new(), "\"data\":7}\n\n\r\n");
    while !got.ends_with(expected) {
        let mut bytes = [0; 1024];
        let n = client.stream.read(&mut bytes).unwrap();
        got.push_str(std::str::from_utf8(&bytes[..n]).unwrap());
        assert!(n > 0, "{got}");
    }
    assert_eq!(got.matches("event: ").count(), 1);
}
