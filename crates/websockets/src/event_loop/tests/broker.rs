//! Subscriptions and texts that the broker answers late, or not as they wish.

use std::{
    sync::Mutex,
    task::{Context, Poll, Waker},
};

use lastcall_broker::{
    Attach, Broker, BrokerError, BrokerFuture, ChannelInfo, Delivery, HistoryPage, IdempotencyKey, PageLimit,
    Published, Since, Usage,
};
use lastcall_core::{Epoch, Position, Publication};

use super::{subscriptions::name, *};
use crate::{codec::test_frames::client_text, mailbox::ChannelReset};

/// A broker that does nothing before the test has it answer.
#[derive(Debug)]
struct LateBroker {
    broker: Arc<MemoryBroker>,
    waiting: Mutex<Vec<Waiting>>,
}

struct Waiting(Box<dyn FnOnce(Option<BrokerError>) + Send>);

impl std::fmt::Debug for Waiting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Waiting")
    }
}

impl LateBroker {
    fn new(delivery: Box<dyn Delivery>) -> Self {
        let broker = Arc::new(MemoryBroker::new(lastcall_broker::Config::default(), delivery));
        Self { broker, waiting: Mutex::default() }
    }

    fn wait(&self, call: impl FnOnce(Option<BrokerError>) + Send + 'static) {
        self.waiting.lock().unwrap().push(Waiting(Box::new(call)));
    }

    /// Answers all calls, or has them fail.
    fn answer(&self, error: Option<BrokerError>) {
        let waiting = std::mem::take(&mut *self.waiting.lock().unwrap());
        waiting.into_iter().for_each(|Waiting(call)| call(error.clone()));
    }
}

/// Returns the answer of the memory broker, which never waits.
fn now<T>(mut answer: BrokerFuture<T>) -> Result<T, BrokerError> {
    match answer.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(result) => result,
        Poll::Pending => unreachable!("the memory broker answers at once"),
    }
}

impl Broker for LateBroker {
    fn publish(
        &self,
        channel: &ChannelName,
        publications: Vec<Publication>,
        key: Option<IdempotencyKey>,
    ) -> BrokerFuture<Published> {
        let (broker, channel) = (Arc::clone(&self.broker), channel.clone());
        let (answer, answered) = tokio::sync::oneshot::channel();
        self.wait(move |error| {
            let result = match error {
                Some(error) => Err(error),
                None => now(broker.publish(&channel, publications, key)),
            };
            drop(answer.send(result));
        });
        Box::pin(async { answered.await.unwrap() })
    }

    fn subscribe(&self, channel: &ChannelName, since: Since, receiver: usize, attach: Attach) {
        let (broker, channel) = (Arc::clone(&self.broker), channel.clone());
        self.wait(move |error| match error {
            Some(error) => attach(Err(error)),
            None => broker.subscribe(&channel, since, receiver, attach),
        });
    }

    fn resume(&self, channel: &ChannelName, receiver: usize, subscriptions: usize) {
        self.broker.resume(channel, receiver, subscriptions);
    }

    fn unsubscribe(&self, channel: &ChannelName, receiver: usize, is_last: bool) {
        self.broker.unsubscribe(channel, receiver, is_last);
    }

    fn history(
        &self,
        channel: &ChannelName,
        since: Option<Position>,
        limit: PageLimit,
    ) -> BrokerFuture<HistoryPage> {
        self.broker.history(channel, since, limit)
    }

    fn channel(&self, name: &ChannelName) -> Option<ChannelInfo> {
        self.broker.channel(name)
    }

    fn channels(&self, after: Option<&ChannelName>, limit: usize) -> Vec<ChannelInfo> {
        self.broker.channels(after, limit)
    }

    fn pins_too_much(&self) -> bool {
        self.broker.pins_too_much()
    }

    fn usage(&self) -> Usage {
        self.broker.usage()
    }
}

impl Harness {
    /// Returns a loop with a broker that answers when the test says so.
    fn with_late_broker() -> (Self, Arc<LateBroker>) {
        let mut harness = Self::new(Options::default());
        let delivery = Box::new(MailboxDelivery(Arc::clone(&harness.mailboxes)));
        let broker = Arc::new(LateBroker::new(delivery));
        harness.event_loop.clients.channels.broker = Arc::clone(&broker) as Arc<dyn Broker>;
        (harness, broker)
    }
}

fn unavailable() -> BrokerError {
    BrokerError::Unavailable("a test".to_owned())
}

fn unknown() -> BrokerError {
    BrokerError::OutcomeUnknown("a test".to_owned())
}

#[test]
fn a_subscription_begins_when_the_broker_answers_and_a_client_that_gets_none_comes_back_later() {
    let (mut harness, broker) = Harness::with_late_broker();
    let mut late = harness.connect_to(&[("a", Since::Now)]);
    harness.iterate();
    late.expect_welcome();
    late.expect_nothing();
    broker.answer(None);
    harness.settle();
    late.read_subscribed("a");
    let mut refused = harness.connect_to(&[("a", Since::Now), ("b", Since::Now)]);
    broker.answer(Some(unavailable()));
    harness.settle();
    refused.expect_welcome();
    refused.expect_close(CloseReason::Unavailable);
    assert!(harness.event_loop.clients.channels.subscriptions.find(&name("b")).is_none());
    harness.publish_numbers("a", [1]);
    broker.answer(None);
    harness.iterate_until(|event_loop| event_loop.clients.stats.messages_sent == 1);
    late.expect_numbers("a", [1]);
    drop((late, refused));
    harness.iterate_until(|event_loop| event_loop.clients.connections.is_empty());
    assert_eq!(broker.channel(&name("a")).map(|info| info.subscribers), Some(0), "each has ended");
}

#[test]
fn a_client_is_told_what_has_become_of_its_text_before_more_is_read_from_it() {
    let (mut harness, broker) = Harness::with_late_broker();
    let mut client = harness.connect_to(&[("a", Since::Now)]);
    broker.answer(None);
    harness.settle();
    client.expect_welcome();
    client.read_subscribed("a");
    for (error, code) in [(Some(unavailable()), "unavailable"), (Some(unknown()), "outcome_unknown")] {
        client.send(client_text("one"));
        harness.iterate_until(|event_loop| event_loop.clients.reader.unanswered.len() == 1);
        client.send(client_text("two"));
        (0..10).for_each(|_| harness.iterate());
        assert_eq!(broker.waiting.lock().unwrap().len(), 1, "the second one is not read");
        client.expect_nothing();
        broker.answer(error);
        harness.iterate_until(|_| !broker.waiting.lock().unwrap().is_empty());
        let message = client.read_json();
        assert_eq!((&message["type"], &message["code"]), (&"error".into(), &code.into()), "{message}");
        let sent = harness.event_loop.clients.stats.messages_sent;
        broker.answer(None);
        harness.iterate_until(|event_loop| event_loop.clients.stats.messages_sent > sent);
        assert_eq!(client.read_json()["data"], "two");
    }
}

#[test]
fn a_handover_does_not_wait_for_the_broker() {
    let (mut old, broker) = Harness::with_late_broker();
    let mut sender = old.connect_to(&[("a", Since::Now)]);
    broker.answer(None);
    old.settle();
    sender.send(client_text("hello"));
    old.iterate_until(|event_loop| event_loop.clients.reader.unanswered.len() == 1);
    // One that has asked for two channels, and has one of them.
    let mut client = old.connect_to(&[("b", Since::Now)]);
    broker.waiting.lock().unwrap().remove(0).0(Some(unknown()));
    let (mut early, mut refused) = (old.connect(), old.connect_to(&[("c", Since::Invalid)]));
    let slot = old.key(&refused).slot;
    old.event_loop.clients.close(slot, CloseReason::ServiceRestart);

    let mut new = freeze::hand_over(old);
    assert_eq!(new.event_loop.clients.connections.len(), 4);
    new.settle();
    new.publish_numbers("b", [1]);
    new.publish_numbers("broadcast", [2]);
    new.iterate_until(|event_loop| event_loop.clients.stats.messages_sent == 2);
    sender.expect_welcome();
    sender.read_subscribed("a");
    assert_eq!(sender.read_json()["code"], "outcome_unknown");
    client.expect_welcome();
    client.read_subscribed("b");
    client.expect_numbers("b", [1]);
    early.expect_welcome();
    early.expect_numbers("broadcast", [2]);
    refused.expect_welcome();
    refused.expect_close(CloseReason::ServiceRestart);
}

#[test]
fn the_members_of_a_channel_are_told_that_they_may_have_missed_something() {
    let mut harness = Harness::new(Options::default());
    let mut client = harness.connect_to(&[("a", Since::Now), ("b", Since::Now)]);
    let mut other = harness.connect_to(&[("b", Since::Now)]);
    let mut events = harness.connect_events(&["a", "b"]);
    harness.settle();
    harness.publish_numbers("a", [1]);
    let top = Position { epoch: Epoch(7), offset: 3 };
    let mut receivers = ReceiverSet::default();
    receivers.insert(0);
    harness.mailboxes.reset(&ChannelReset { channel: name("a"), top }, receivers);
    harness.publish_numbers("a", [2]);
    harness.iterate_until(|event_loop| event_loop.clients.stats.messages_sent == 4);
    client.expect_welcome();
    client.read_subscribed("a");
    client.read_subscribed("b");
    client.expect_numbers("a", [1]);
    let reset = client.read_json();
    assert_eq!((&reset["type"], &reset["id"]), (&"reset".into(), &top.to_string().into()), "{reset}");
    client.expect_numbers("a", [2]);
    other.expect_welcome();
    other.read_subscribed("b");
    other.expect_nothing();
    let events = events.read_events();
    let at = |text: &str| events.find(text).unwrap_or_else(|| panic!("{text} is not in {events}"));
    assert!(at("\"data\":1") < at("event: reset") && at("event: reset") < at("\"data\":2"), "{events}");
    assert!(events.contains(&format!("id: {top},")), "the id moves with it: {events}");
}
