//! Subscriptions that begin while other threads publish.

use std::{
    sync::{
        Barrier,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use super::*;
use crate::channel::MISSED_AT_ONCE;

const PUBLISHERS: usize = 2;
const SUBSCRIBERS: usize = 2;
const PUBLICATIONS: usize = 5000;

/// What a receiver gets.
#[derive(Debug)]
enum Event {
    /// A publication, by its offset.
    Delivered(u64),
    /// A subscription begins: the offset that it asked for, and what it got.
    Attached(u64, Subscribed),
}

/// What the receiver has got, in the order of the calls.
#[derive(Debug, Clone, Default)]
struct Log(Arc<Mutex<Vec<Event>>>);

impl Delivery for Log {
    fn deliver(&self, _: &ChannelName, _: Epoch, publications: &[Arc<Publication>], _: ReceiverSet) {
        self.0.lock().unwrap().extend(publications.iter().map(|one| Event::Delivered(one.offset)));
    }

    fn reset(&self, _: &ChannelName, _: Position, _: ReceiverSet) {
        unreachable!("the memory broker loses nothing that it has delivered");
    }
}

/// Subscribes after this position. Returns the position at which the subscription begins.
fn attach(broker: &MemoryBroker, log: &Log, since: Position) -> Position {
    let top = Arc::new(Mutex::new(since));
    let (log, begun) = (log.clone(), Arc::clone(&top));
    let attach = move |subscribed: Result<Subscribed, _>| {
        let subscribed = subscribed.unwrap();
        *begun.lock().unwrap() = subscribed.top;
        log.0.lock().unwrap().push(Event::Attached(since.offset, subscribed));
    };
    broker.subscribe_at(0, &name("a"), Since::Position(since), 0, Box::new(attach));
    *top.lock().unwrap()
}

#[test]
fn a_subscription_that_begins_while_other_threads_publish_misses_and_doubles_none() {
    let log = Log::default();
    let config = Config { retention: retention(1_000_000, 1_000_000), ..Config::default() };
    let broker = MemoryBroker::new(config, Box::new(log.clone()));
    // It stays, so that everything is delivered.
    let start = attach(&broker, &log, publish(&broker, 0, "a"));
    let (barrier, publishing) = (Barrier::new(PUBLISHERS + SUBSCRIBERS), AtomicUsize::new(PUBLISHERS));
    thread::scope(|scope| {
        for _ in 0..PUBLISHERS {
            scope.spawn(|| {
                barrier.wait();
                for number in 0..PUBLICATIONS {
                    // One at a time, and several at once.
                    let publications = (0..=number % 3).map(|_| publication(0, "1")).collect();
                    broker.publish_at(0, &name("a"), publications, None);
                }
                publishing.fetch_sub(1, Ordering::Relaxed);
            });
        }
        for _ in 0..SUBSCRIBERS {
            scope.spawn(|| {
                barrier.wait();
                let mut since = start;
                loop {
                    let is_last = publishing.load(Ordering::Relaxed) == 0;
                    since = attach(&broker, &log, since);
                    broker.unsubscribe_at(0, &name("a"), 0, false);
                    if is_last {
                        break;
                    }
                }
            });
        }
    });
    let events = log.0.lock().unwrap();
    let mut delivered = 1;
    for event in events.iter() {
        match event {
            Event::Delivered(offset) => {
                assert_eq!(*offset, delivered + 1);
                delivered = *offset;
            }
            Event::Attached(since, subscribed) => {
                let missed: Vec<_> = (since + 1..=delivered).collect();
                assert_eq!(
                    (subscribed.top.offset, subscribed.recovered, offsets(&subscribed.missed)),
                    (delivered, true, missed)
                );
            }
        }
    }
    // 5,000 publications of each publisher are 1, 2, 3, 1, 2, … at once.
    let each: u64 = (0..PUBLICATIONS as u64).map(|number| 1 + number % 3).sum();
    assert_eq!(delivered, 1 + PUBLISHERS as u64 * each);
}

#[test]
fn a_subscriber_that_has_missed_many_does_not_keep_the_lock_and_gets_all_or_is_told() {
    const KEPT: usize = 5 * MISSED_AT_ONCE;
    let broker = keeping(KEPT, 1_000_000);
    let start = subscribe(&broker, 0, "a", Since::Now).top;
    for _ in 0..KEPT {
        publish(&broker, 0, "a");
    }
    let state = broker.lock();
    let (channel, mut taken) = (&state.channels[&name("a")], Vec::new());
    for slices in 1..=4 {
        assert!(channel.log.take_slice(Since::Position(start), &mut taken));
        assert_eq!(taken.len(), slices * MISSED_AT_ONCE);
    }
    assert!(!channel.log.take_slice(Since::Position(start), &mut taken), "the rest goes with the beginning");
    drop(state);

    let is_over = AtomicUsize::new(0);
    thread::scope(|scope| {
        scope.spawn(|| {
            while is_over.load(Ordering::Relaxed) == 0 {
                for _ in 0..20 {
                    publish(&broker, 0, "a");
                }
                // Else the other thread might never get the lock.
                thread::sleep(Duration::from_micros(100));
            }
        });
        let (mut recovered, mut told) = (0, 0);
        // From the oldest that is kept, which may go meanwhile, and from some way after it.
        for number in 0..400 {
            let top = broker.lock().channels[&name("a")].log.top();
            let behind = (KEPT - (number % 40) * MISSED_AT_ONCE / 10) as u64;
            let since = Position { offset: top.offset - behind, ..top };
            let Subscribed { top, recovered: is_recovered, missed } =
                subscribe(&broker, 0, "a", Since::Position(since));
            if is_recovered {
                recovered += 1;
                let expected = since.offset + 1..=top.offset;
                assert!(missed.iter().map(|one| one.offset).eq(expected), "since {since}, top {top}");
            } else {
                told += 1;
                assert!(missed.is_empty());
            }
        }
        is_over.store(1, Ordering::Relaxed);
        assert!(recovered > 0, "{recovered} recovered, {told} told");
    });
}
