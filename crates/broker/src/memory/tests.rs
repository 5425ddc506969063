mod export;
mod model;
mod seam;

use std::collections::BTreeMap;

use lastcall_core::{Namespace, Publisher, Retention};
use proptest::prelude::*;
use serde_json::value::RawValue;

use super::*;
use crate::{BrokerError, ReceiverSet, Subscribed};

/// What was delivered, in order: to which receivers, and the positions.
#[derive(Debug, Clone, Default)]
struct Recorder(Arc<Mutex<Vec<(ReceiverSet, String, Position)>>>);

impl Delivery for Recorder {
    fn deliver(
        &self,
        channel: &ChannelName,
        epoch: Epoch,
        publications: &[Arc<Publication>],
        receivers: ReceiverSet,
    ) {
        let mut delivered = self.0.lock().unwrap();
        for publication in publications {
            let position = Position { epoch, offset: publication.offset };
            delivered.push((receivers, channel.to_string(), position));
        }
    }

    fn reset(&self, channel: &ChannelName, top: Position, receivers: ReceiverSet) {
        self.0.lock().unwrap().push((receivers, format!("reset {channel}"), top));
    }
}

fn broker(config: Config) -> (MemoryBroker, Recorder) {
    let recorder = Recorder::default();
    (MemoryBroker::new(config, Box::new(recorder.clone())), recorder)
}

fn retention(size: usize, ttl_ms: u64) -> Retention {
    Retention { size, ttl: Duration::from_millis(ttl_ms) }
}

fn keeping(size: usize, ttl_ms: u64) -> MemoryBroker {
    broker(Config { retention: retention(size, ttl_ms), ..Config::default() }).0
}

fn name(text: &str) -> ChannelName {
    text.parse().unwrap()
}

fn publication(now: i64, data: &str) -> Publication {
    let data = RawValue::from_string(data.to_owned()).unwrap();
    Publication { time_ms: now, ..Publication::new(Publisher::Api, data) }
}

fn publish(broker: &MemoryBroker, now: i64, channel: &str) -> Position {
    broker.publish_at(now, &name(channel), vec![publication(now, "1")], None).position
}

fn subscribe(broker: &MemoryBroker, now: i64, channel: &str, since: Since) -> Subscribed {
    let result = Arc::new(Mutex::new(None));
    let attached = Arc::clone(&result);
    let attach = move |subscribed: Result<_, _>| *attached.lock().unwrap() = Some(subscribed.unwrap());
    broker.subscribe_at(now, &name(channel), since, 0, Box::new(attach));
    result.lock().unwrap().take().expect("the memory broker attaches at once")
}

fn unsubscribe(broker: &MemoryBroker, now: i64, channel: &str) {
    broker.unsubscribe_at(now, &name(channel), 0, true);
}

fn page(publications: usize) -> PageLimit {
    PageLimit { publications, bytes: usize::MAX }
}

fn offsets(publications: &[Arc<Publication>]) -> Vec<u64> {
    publications.iter().map(|publication| publication.offset).collect()
}

#[test]
fn a_subscriber_gets_what_it_missed_or_is_told() {
    let broker = keeping(3, 1000);
    let first = subscribe(&broker, 0, "a", Since::Now);
    assert_eq!((first.top.offset, first.recovered), (0, false), "a position before the first publication");
    let positions: Vec<_> = (0..5).map(|now| publish(&broker, now, "a")).collect();
    assert_eq!(positions.iter().map(|position| position.offset).collect::<Vec<_>>(), [1, 2, 3, 4, 5]);
    assert!(positions.iter().all(|position| position.epoch == first.top.epoch));

    let since = |offset| Since::Position(Position { offset, ..first.top });
    for (offset, missed) in [(5, vec![]), (4, vec![5]), (2, vec![3, 4, 5])] {
        let subscribed = subscribe(&broker, 5, "a", since(offset));
        assert_eq!((subscribed.recovered, offsets(&subscribed.missed)), (true, missed), "since {offset}");
        assert_eq!(subscribed.top, positions[4]);
    }
    let other_epoch = Since::Position(Position { epoch: Epoch(!first.top.epoch.0), offset: 4 });
    for (what, since) in [
        ("trimmed", since(1)),
        ("from the future", since(6)),
        ("other epoch", other_epoch),
        ("malformed", Since::Invalid),
        ("not asked for", Since::Now),
    ] {
        let subscribed = subscribe(&broker, 5, "a", since);
        assert_eq!((subscribed.recovered, subscribed.missed.len()), (false, 0), "{what}");
        assert_eq!(subscribed.top, positions[4], "{what}");
    }
    // All but the position has expired.
    assert!(subscribe(&broker, 1003, "a", since(4)).recovered, "the last one is younger");
    assert!(!subscribe(&broker, 1004, "a", since(4)).recovered);
    assert!(subscribe(&broker, 1004, "a", since(5)).recovered, "nothing was missed");
}

#[test]
fn a_channel_is_gone_when_it_has_neither_subscribers_nor_history() {
    let broker = keeping(3, 1000);
    let top = subscribe(&broker, 0, "a", Since::Now).top;
    unsubscribe(&broker, 5, "a");
    // Its only subscriber comes back: nothing was published meanwhile.
    assert!(subscribe(&broker, 1000, "a", Since::Position(top)).recovered);
    assert_eq!(broker.usage().history_bytes, 0, "a channel with subscribers costs no history");
    unsubscribe(&broker, 1000, "a");
    assert!(broker.usage().history_bytes > 0);
    assert!(!broker.drop_expired(&mut broker.lock(), 1999, 10));
    assert_eq!(broker.lock().channels.len(), 1);
    assert!(!broker.drop_expired(&mut broker.lock(), 2000, 10));
    assert_eq!(broker.lock().channels.len(), 0);
    assert_eq!(broker.usage().history_bytes, 0);
    assert!(!subscribe(&broker, 2000, "a", Since::Position(top)).recovered);

    // Without history, at once.
    let broker = keeping(0, 1000);
    let top = publish(&broker, 0, "a");
    assert_eq!(top.offset, 1);
    assert_eq!(broker.lock().channels.len(), 0);
    subscribe(&broker, 0, "a", Since::Now);
    assert_eq!((publish(&broker, 0, "a").offset, publish(&broker, 0, "a").offset), (1, 2));
    unsubscribe(&broker, 0, "a");
    assert_eq!(broker.lock().channels.len(), 0);
    assert_eq!(broker.usage().history_bytes, 0);
}

#[test]
fn publications_are_delivered_in_order_to_the_receivers_of_their_channel_alone() {
    let (broker, recorder) = broker(Config::default());
    let ignore = || Box::new(drop::<Result<Subscribed, BrokerError>>);
    let (a, b) = (name("a"), name("b"));
    broker.subscribe(&a, Since::Now, 0, ignore());
    broker.subscribe(&a, Since::Now, 0, ignore());
    broker.subscribe(&a, Since::Now, 3, ignore());
    broker.subscribe(&b, Since::Now, 1, ignore());
    let now = clock::since_boot_ms();
    let batch = || vec![publication(now, "1"), publication(now, "2")];
    assert_eq!(broker.publish_at(now, &a, batch(), None).subscribers, 3);
    assert_eq!(broker.publish_at(now, &b, vec![publication(now, "3")], None).subscribers, 1);
    assert_eq!(broker.publish_at(now, &name("c"), batch(), None).subscribers, 0);
    broker.unsubscribe(&a, 0, false);
    broker.publish_at(now, &a, batch(), None);
    broker.unsubscribe(&a, 0, true);
    assert_eq!(broker.publish_at(now, &a, batch(), None).subscribers, 1);

    let delivered = recorder.0.lock().unwrap();
    let receivers = |set: ReceiverSet| (0..4).filter(|receiver| set.contains(*receiver)).collect::<Vec<_>>();
    let seen: Vec<_> = delivered
        .iter()
        .map(|(to, channel, position)| (receivers(*to), channel.as_str(), position.offset))
        .collect();
    let expected = [
        (vec![0, 3], "a", 1),
        (vec![0, 3], "a", 2),
        (vec![1], "b", 1),
        (vec![0, 3], "a", 3),
        (vec![0, 3], "a", 4),
        (vec![3], "a", 5),
        (vec![3], "a", 6),
    ];
    assert_eq!(seen, expected);
}

#[test]
fn a_publication_with_a_known_key_is_not_published_again() {
    let broker = keeping(10, 1_000_000);
    let key = || Some("k1".parse::<IdempotencyKey>().unwrap());
    let one = |now| vec![publication(now, "1")];
    let first = broker.publish_at(0, &name("a"), one(0), key());
    assert_eq!(broker.publish_at(299_999, &name("a"), one(299_999), key()), first);
    assert_eq!(
        broker.publish_at(299_999, &name("b"), one(299_999), key()).position.offset,
        1,
        "another channel"
    );
    assert_eq!(broker.publish_at(300_000, &name("a"), one(300_000), key()).position.offset, 2);
    assert_eq!(broker.lock().channels[&name("a")].log.top().offset, 2);
}

#[test]
fn a_page_of_the_history_begins_after_a_position() {
    let broker = keeping(3, 1000);
    let tops: Vec<_> = (0..5).map(|now| publish(&broker, now, "a")).collect();
    let page = |since, publications| {
        broker.history_at(5, &name("a"), since, PageLimit { publications, bytes: usize::MAX })
    };
    let read =
        |since, limit| page(since, limit).publications.iter().map(|one| one.offset).collect::<Vec<_>>();
    assert_eq!(read(None, 10), [3, 4, 5]);
    assert_eq!(read(None, 2), [3, 4]);
    assert_eq!(read(Some(tops[2]), 1), [4]);
    assert!(page(Some(tops[4]), 1).recovered);
    assert!(!page(Some(tops[0]), 1).recovered);
    assert!(page(None, 2).more && !page(None, 3).more && page(Some(tops[2]), 1).more);
    // Each has one byte.
    let short = |bytes| broker.history_at(5, &name("a"), None, PageLimit { publications: 10, bytes });
    assert_eq!((offsets(&short(0).publications), short(0).more), (vec![3], true), "one at least");
    assert_eq!((offsets(&short(2).publications), short(2).more), (vec![3, 4], true));
    assert_eq!((short(3).publications.len(), short(3).more), (3, false));
}

#[test]
fn a_channel_is_not_made_by_reading_its_history() {
    let broker = keeping(3, 1000);
    let page = |since| broker.history_at(5, &name("unknown"), since, page(10));
    let first = page(None);
    assert_eq!((first.top.offset, first.recovered, first.more), (0, true, false));
    assert!(!page(Some(first.top)).recovered, "it was no position of the channel");
    assert!(broker.channel(&name("unknown")).is_none());
    assert_eq!(broker.usage(), Usage::default());
}

#[test]
fn namespaces_have_their_own_rules() {
    let namespaces = vec![
        Namespace { name: "chat".to_owned(), retention: retention(1, 1000) },
        Namespace { name: "live".to_owned(), retention: retention(0, 1000) },
    ];
    let (broker, _) = broker(Config { retention: retention(2, 500), namespaces, ..Config::default() });
    for channel in ["chat:a", "live:a", "other"] {
        for now in 0..3 {
            publish(&broker, now, channel);
        }
    }
    let kept = |channel: &str, now| broker.history_at(now, &name(channel), None, page(10)).publications.len();
    assert_eq!((kept("chat:a", 3), kept("live:a", 3), kept("other", 3)), (1, 0, 2));
    assert_eq!((kept("chat:a", 600), kept("live:a", 600), kept("other", 600)), (1, 0, 0));
}

#[test]
fn expire_says_when_something_is_too_old() {
    let broker = keeping(10, 60_000);
    assert_eq!(broker.expire(), None);
    publish(&broker, clock::since_boot_ms(), "a");
    let next = broker.expire().expect("a publication is kept");
    assert!(next > Duration::from_secs(30) && next <= Duration::from_secs(60), "{next:?}");
    publish(&broker, clock::since_boot_ms() - 60_000, "b");
    broker.expire();
    let left: Vec<_> = broker.channels(None, 100).into_iter().map(|channel| channel.name).collect();
    assert_eq!(left, [name("a")]);
}

/// Returns a broker in which `max_bytes` may be kept of 50 channels with a publication each, of one whose
/// publication is too old, and of names that were subscribed to and left.
fn broker_with_names(names: usize, max_bytes: usize) -> (MemoryBroker, Vec<Position>, Position) {
    let short = Namespace { name: "short".to_owned(), retention: retention(5, 1000) };
    let (broker, _) = broker(Config { retention: retention(5, 10_000), namespaces: vec![short], max_bytes });
    let published = (0..50).map(|number| publish(&broker, 0, &format!("real:{number}"))).collect();
    let quiet = publish(&broker, 0, "short:quiet");
    subscribe(&broker, 0, "short:quiet", Since::Now);
    unsubscribe(&broker, 900, "short:quiet");
    for number in 0..names {
        // Also of the rule with the shorter time to live.
        let name = format!("{}:{number}", if number % 2 == 0 { "short" } else { "long" });
        subscribe(&broker, 1000, &name, Since::Now);
        unsubscribe(&broker, 1000, &name);
        assert!(broker.usage().history_bytes <= max_bytes, "{:?}", broker.usage());
    }
    (broker, published, quiet)
}

#[test]
fn names_without_publications_displace_neither_publications_nor_positions_after_them() {
    let (broker, published, quiet) = broker_with_names(10_000, 50_000);
    for (number, position) in published.iter().enumerate() {
        let before = Since::Position(Position { offset: position.offset - 1, ..*position });
        let subscribed = subscribe(&broker, 1001, &format!("real:{number}"), before);
        assert!(subscribed.recovered && subscribed.missed.len() == 1, "real:{number}");
    }
    assert!(subscribe(&broker, 1001, "short:quiet", Since::Position(quiet)).recovered, "it missed nothing");
    // Names have the rest of the room.
    let names = broker.channels_at(1001, None, 10_000).into_iter().filter(|info| info.top.offset == 0);
    assert!(names.count() > 50);
}

#[test]
fn memory_of_names_that_are_gone_is_given_back() {
    let broker = keeping(5, 1000);
    for number in 0..20_000 {
        broker.publish_at(0, &name(&number.to_string()), vec![publication(0, "1")], None);
    }
    assert!(broker.lock().channels.capacity() >= 20_000);
    // By the real clock, all of that was long ago.
    broker.expire();
    let state = broker.lock();
    assert_eq!((state.channels.len(), state.bytes), (0, 0));
    assert!(state.channels.capacity() < 100, "{}", state.channels.capacity());
}
