//! The contract of [`Broker`], for every implementation: threads publish, subscribe, leave and ask for the
//! history at once, and all that a receiver is told is compared.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex},
    task::{Context, Poll, Wake, Waker},
    thread::{self, Thread},
    time::Duration,
};

use lastcall_broker::{
    Broker, BrokerError, BrokerFuture, Config, Delivery, Faults, FaultyBroker, IdempotencyKey, MemoryBroker,
    PageLimit, ReceiverSet, Since, Subscribed,
};
use lastcall_core::{ChannelName, Epoch, Position, Publication, Publisher, Retention};
use rand::{Rng, RngExt, SeedableRng, rngs::StdRng};
use serde_json::value::RawValue;

const CHANNELS: usize = 3;
const PUBLISHERS: usize = 2;
const SUBSCRIBERS: usize = 3;
const PUBLICATIONS: usize = 300;
const SUBSCRIPTIONS: usize = 60;

/// What a receiver is told of a channel.
#[derive(Debug, Clone)]
enum Event {
    Delivered(Position, u64),
    Reset(Position),
    /// A subscription, with what was asked for.
    Answered(Since, Result<Subscribed, BrokerError>),
}

/// What the receiver is told of each channel, in order.
#[derive(Debug, Clone, Default)]
struct Log(Arc<Mutex<HashMap<String, Vec<Event>>>>);

impl Log {
    fn push(&self, channel: &ChannelName, event: Event) {
        self.0.lock().unwrap().entry(channel.to_string()).or_default().push(event);
    }
}

impl Delivery for Log {
    fn deliver(&self, channel: &ChannelName, epoch: Epoch, all: &[Arc<Publication>], receivers: ReceiverSet) {
        assert!(receivers.contains(0) && !receivers.contains(1), "{receivers:?}");
        for one in all {
            self.push(channel, Event::Delivered(Position { epoch, offset: one.offset }, number(one)));
        }
    }

    fn reset(&self, channel: &ChannelName, top: Position, _: ReceiverSet) {
        self.push(channel, Event::Reset(top));
    }
}

fn number(publication: &Publication) -> u64 {
    publication.data.get().parse().unwrap()
}

fn publication(number: u64) -> Publication {
    Publication::new(Publisher::Api, RawValue::from_string(number.to_string()).unwrap())
}

fn channel(number: usize) -> ChannelName {
    format!("c{number}").parse().unwrap()
}

/// Waits for an answer.
fn wait<T>(mut answer: BrokerFuture<T>) -> Result<T, BrokerError> {
    struct Unpark(Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    loop {
        match answer.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(result) => return result,
            Poll::Pending => thread::park(),
        }
    }
}

/// Subscribes, and waits for the answer.
fn subscribe(
    broker: &dyn Broker,
    log: &Log,
    channel: &ChannelName,
    since: Since,
) -> Result<Position, BrokerError> {
    let (log, name) = (log.clone(), channel.clone());
    let (answer, answered) = std::sync::mpsc::channel();
    let attach = move |result: Result<Subscribed, BrokerError>| {
        log.push(&name, Event::Answered(since, result.clone()));
        drop(answer.send(result.map(|subscribed| subscribed.top)));
    };
    broker.subscribe(channel, since, 0, Box::new(attach));
    answered.recv_timeout(Duration::from_secs(60)).expect("each subscription is answered, once")
}

/// Subscribes, until that succeeds.
fn subscribe_surely(broker: &dyn Broker, log: &Log, channel: &ChannelName) -> Position {
    loop {
        if let Ok(top) = subscribe(broker, log, channel, Since::Now) {
            return top;
        }
    }
}

/// What publishers were told: of each number, its channel and position; `None`: it was not published.
type Answers = HashMap<u64, Option<(String, Position)>>;

/// Publishes, and repeats what may not have been published.
fn publish(broker: &dyn Broker, random: &mut StdRng, publisher: usize) -> Answers {
    let mut answers = Answers::new();
    for number in 0..PUBLICATIONS {
        let number = (publisher * PUBLICATIONS + number) as u64;
        let channel = channel(random.random_range(0..CHANNELS));
        let key: IdempotencyKey = number.to_string().parse().unwrap();
        let mut may_be_made = false;
        let answer = loop {
            match wait(broker.publish(&channel, vec![publication(number)], Some(key.clone()))) {
                Ok(published) => break Some((channel.to_string(), published.position)),
                Err(BrokerError::Unavailable(_)) if !may_be_made && random.random_bool(0.5) => break None,
                Err(error) => may_be_made |= matches!(error, BrokerError::OutcomeUnknown(_)),
            }
        };
        if let Some((_, position)) = &answer
            && random.random_ratio(1, 10)
        {
            // Again: it is not published twice.
            if let Ok(again) = wait(broker.publish(&channel, vec![publication(number)], Some(key))) {
                assert_eq!(again.position, *position);
            }
        }
        answers.insert(number, answer);
    }
    answers
}

/// Comes with positions of before, and leaves.
fn come_and_go(broker: &dyn Broker, log: &Log, random: &mut StdRng) {
    let mut known: Vec<Vec<Position>> = vec![Vec::new(); CHANNELS];
    for _ in 0..SUBSCRIPTIONS {
        let number = random.random_range(0..CHANNELS);
        let (channel, known) = (channel(number), &mut known[number]);
        let since = match random.random_range(0..10) {
            0 => Since::Now,
            1 => Since::Invalid,
            2 => Since::Position(Position { epoch: Epoch(random.next_u64()), offset: 3 }),
            _ if known.is_empty() => Since::Now,
            _ => Since::Position(known[random.random_range(0..known.len())]),
        };
        if let Ok(top) = subscribe(broker, log, &channel, since) {
            known.push(top);
            broker.unsubscribe(&channel, 0, false);
        }
        let limit = PageLimit { publications: 1 + random.random_range(0..20), bytes: usize::MAX };
        let since = known.last().copied().filter(|_| random.random_bool(0.5));
        if let Ok(page) = wait(broker.history(&channel, since, limit)) {
            assert!(page.publications.len() <= limit.publications);
            assert!(page.recovered || page.publications.is_empty());
            assert!(page.publications.windows(2).all(|pair| pair[0].offset + 1 == pair[1].offset));
            if let (Some(since), true, Some(first)) = (since, page.recovered, page.publications.first()) {
                assert_eq!(first.offset, since.offset + 1);
            }
        }
    }
}

/// Compares what the receiver was told of a channel. Returns the number of each publication, by its position.
fn compare(events: &[Event]) -> HashMap<Position, u64> {
    let mut at: Option<Position> = None;
    let mut numbers = HashMap::new();
    let mut note = |position, number| {
        assert_eq!(*numbers.entry(position).or_insert(number), number, "one position, two publications");
    };
    for event in events {
        match event {
            Event::Delivered(position, number) => {
                let before = at.expect("nothing is delivered without a subscription");
                assert_eq!((position.epoch, position.offset), (before.epoch, before.offset + 1), "{event:?}");
                note(*position, *number);
                at = Some(*position);
            }
            Event::Reset(top) => {
                let before = at.expect("no subscriber, no loss");
                assert!(
                    top.epoch != before.epoch || top.offset > before.offset,
                    "{event:?} after {before:?}"
                );
                at = Some(*top);
            }
            Event::Answered(_, Err(_)) => {}
            Event::Answered(since, Ok(Subscribed { top, recovered, missed })) => {
                assert!(at.is_none_or(|at| at == *top), "{event:?} at {at:?}");
                at = Some(*top);
                match since {
                    Since::Position(since) if since.epoch == top.epoch => {
                        assert!(recovered, "all of the epoch is kept: {event:?}");
                        let offsets: Vec<_> = missed.iter().map(|one| one.offset).collect();
                        assert_eq!(offsets, (since.offset + 1..=top.offset).collect::<Vec<_>>());
                        missed.iter().for_each(|one| {
                            note(Position { offset: one.offset, ..*top }, self::number(one));
                        });
                    }
                    _ => assert!(!recovered && missed.is_empty(), "{event:?}"),
                }
            }
        }
    }
    let unique: HashSet<_> = numbers.values().collect();
    assert_eq!(unique.len(), numbers.len(), "nothing comes twice");
    numbers
}

/// Has threads use a broker, and compares what they are told.
#[expect(clippy::print_stdout, reason = "a failed test shows its output: the seed repeats it")]
fn check(make: impl FnOnce(Config, Box<dyn Delivery>, u64) -> Arc<dyn Broker>) {
    let seed = rand::rng().next_u64();
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let log = Log::default();
    let retention = Retention { size: 1_000_000, ttl: Duration::from_secs(100_000) };
    let config = Config { retention, ..Config::default() };
    let broker = make(config, Box::new(log.clone()), random.next_u64());
    let tops: Vec<_> = (0..CHANNELS).map(|one| subscribe_surely(&*broker, &log, &channel(one))).collect();
    assert!(tops.iter().all(|top| top.offset == 0));
    let mut seeds = (0..PUBLISHERS + SUBSCRIBERS).map(|_| StdRng::seed_from_u64(random.next_u64()));
    let mut answers = Answers::new();
    thread::scope(|scope| {
        let publishers: Vec<_> = (0..PUBLISHERS)
            .zip(&mut seeds)
            .map(|(number, mut random)| {
                let broker = &*broker;
                scope.spawn(move || publish(broker, &mut random, number))
            })
            .collect();
        for mut random in seeds {
            let (broker, log) = (&*broker, &log);
            scope.spawn(move || come_and_go(broker, log, &mut random));
        }
        for publisher in publishers {
            answers.extend(publisher.join().unwrap());
        }
    });
    // While it is paused, nothing is delivered.
    broker.set_paused(true);
    let told = log.0.lock().unwrap().clone();
    thread::sleep(Duration::from_millis(50));
    let count = |log: &HashMap<String, Vec<Event>>| log.values().map(Vec::len).sum::<usize>();
    assert_eq!(count(&log.0.lock().unwrap()), count(&told));
    broker.set_paused(false);
    let mut positions = HashMap::new();
    for (channel, events) in &told {
        for (position, number) in compare(events) {
            positions.insert(number, (channel.clone(), position));
        }
    }
    for (number, answer) in &answers {
        match (answer, positions.get(number)) {
            // It may have come only to those who were told of a loss.
            (Some(_) | None, None) => {}
            (answer, told) => assert_eq!(answer.as_ref(), told, "{number}"),
        }
    }
    assert!(positions.len() > answers.len() / 2, "it did not test much: {} were received", positions.len());
    // Once nobody is subscribed, nothing is delivered.
    for one in 0..CHANNELS {
        broker.unsubscribe(&channel(one), 0, true);
        while wait(broker.publish(&channel(one), vec![publication(u64::MAX)], None)).is_err() {}
        assert_eq!(broker.channel(&channel(one)).map(|info| info.subscribers), Some(0));
    }
    assert_eq!(count(&log.0.lock().unwrap()), count(&told));
}

#[test]
fn the_memory_broker_keeps_the_contract() {
    for _ in 0..5 {
        check(|config, delivery, _| Arc::new(MemoryBroker::new(config, delivery)));
    }
}

#[test]
fn a_broker_with_faults_keeps_the_contract() {
    check(|config, delivery, seed| Arc::new(FaultyBroker::new(config, delivery, Faults::seeded(seed)).0));
}
