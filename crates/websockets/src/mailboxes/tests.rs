use std::{net::TcpStream, sync::Barrier, thread, time::Duration};

use lastcall_broker::Subscribed;
use lastcall_core::Position;
use mio::{Events, Poll, Token};
use tokio::time::timeout;

use super::*;
use crate::{
    admission::Admission,
    client_id::ClientId,
    connection_key::ConnectionKey,
    handshake::Handshake,
    mailbox::{
        ConnectionSource, MAX_NEW_CONNECTIONS, MAX_OPEN_RUNS, MAX_SUBSCRIPTION_STARTS, MAX_WRITE_BATCH,
        MailboxItem,
    },
    phases::Phases,
};

fn mailboxes(loops: usize, connections_per_loop: usize) -> (Arc<Mailboxes>, Vec<Poll>) {
    let polls: Vec<_> = (0..loops).map(|_| Poll::new().unwrap()).collect();
    let wakers = polls.iter().map(|poll| Waker::new(poll.registry(), Token(0)).unwrap());
    (Arc::new(Mailboxes::new(wakers.collect(), connections_per_loop)), polls)
}

fn new_connection() -> NewConnection {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let permit = Admission::new(1, Phases::default()).admit().unwrap();
    let source = ConnectionSource::Handshake(ClientId::generate(), Handshake::default());
    NewConnection { stream, permit, source }
}

/// Returns true if the loop has been woken since the last call.
fn is_woken(poll: &mut Poll) -> bool {
    let mut events = Events::with_capacity(8);
    poll.poll(&mut events, Some(Duration::ZERO)).unwrap();
    !events.is_empty()
}

fn channel(name: &str) -> ChannelName {
    name.parse().unwrap()
}

/// Returns a publication that is this text.
fn text(text: &str) -> Arc<EncodedPublication> {
    Arc::new(EncodedPublication::of_text(text))
}

fn all() -> ReceiverSet {
    let mut all = ReceiverSet::default();
    (0..8).for_each(|receiver| all.insert(receiver));
    all
}

fn publish(mailboxes: &Mailboxes, publication: &Arc<EncodedPublication>) {
    mailboxes.publish(&channel("a"), &[Arc::clone(publication)], all());
}

/// Returns what a batch is: for each run, its channel and the texts; a letter for anything else.
fn items(batch: &MailboxBatch) -> Vec<String> {
    let item = |item: &MailboxItem| match item {
        MailboxItem::Run(run) => {
            let frames = run.publications.iter().map(|one| one.frame(&run.channel).bytes()[2..].to_vec());
            let texts: Vec<_> = frames.map(|text| String::from_utf8(text).unwrap()).collect();
            format!("{}:{}", run.channel, texts.join(","))
        }
        MailboxItem::SubscriptionStart(_) => "A".to_owned(),
        MailboxItem::Reset(_) => "R".to_owned(),
        MailboxItem::Command(_) => "C".to_owned(),
    };
    batch.items.iter().map(item).collect()
}

/// Returns how many publications a batch has.
fn publications(batch: &MailboxBatch) -> usize {
    let runs = batch.items.iter().map(|item| match item {
        MailboxItem::Run(run) => run.publications.len(),
        _ => 0,
    });
    runs.sum()
}

fn attachment() -> SubscriptionStart {
    SubscriptionStart {
        connection: ConnectionKey { slot: 0, id: ClientId::generate() },
        channel: channel("a"),
        subscribed: Ok(Subscribed { top: Position::default(), recovered: false, missed: Vec::new() }),
    }
}

#[test]
fn the_loops_of_connections_that_come_together_are_woken_once_for_all() {
    let (mailboxes, mut polls) = mailboxes(2, 1);
    let wake = mailboxes.assign(new_connection()).unwrap();
    assert!(mailboxes.assign(new_connection()).is_none(), "the first one wakes its loop, too");
    assert_eq!(polls.iter_mut().map(is_woken).collect::<Vec<_>>(), [false, false]);
    drop(wake);
    assert_eq!(polls.iter_mut().map(is_woken).collect::<Vec<_>>(), [true, true]);
    // Neither loop has taken anything yet, but a wake-up for this one has to be promised again.
    let wake = mailboxes.assign(new_connection());
    assert!(wake.is_some());
    let taken = |index: usize| mailboxes.take(index).new_connections.len();
    assert_eq!(taken(0) + taken(1), 3);
}

#[test]
fn a_command_waits_for_the_connections_that_came_before_it_and_for_no_others() {
    let (mailboxes, _polls) = mailboxes(1, usize::MAX);
    let assign = |count| (0..count).for_each(|_| drop(mailboxes.assign(new_connection())));
    assign(MAX_NEW_CONNECTIONS + 1);
    publish(&mailboxes, &text("x"));
    mailboxes.send(&LoopCommand::Stop);
    assign(MAX_NEW_CONNECTIONS);
    let taken: Vec<_> = std::iter::repeat_with(|| mailboxes.take(0))
        .map(|batch| (batch.new_connections.len(), batch.items.len(), batch.more))
        .take(3)
        .collect();
    let most = MAX_NEW_CONNECTIONS;
    assert_eq!(taken, [(most, 1, true), (most, 1, true), (1, 0, false)]);
}

#[test]
fn new_connections_wait_while_many_subscriptions_do() {
    let (mailboxes, _polls) = mailboxes(1, usize::MAX);
    (0..=MAX_SUBSCRIPTION_STARTS).for_each(|_| mailboxes.start_subscription(0, attachment()));
    drop(mailboxes.assign(new_connection()));
    assert_eq!(mailboxes.take_new_connections(0).len(), 0);
    let taken = [mailboxes.take(0), mailboxes.take(0)]
        .map(|batch| (batch.new_connections.len(), batch.items.len(), batch.more));
    assert_eq!(taken, [(0, MAX_SUBSCRIPTION_STARTS, true), (1, 1, false)]);
}

#[test]
fn a_command_that_waits_for_connections_does_not_wait_for_the_subscriptions_behind_it() {
    let (mailboxes, _polls) = mailboxes(1, usize::MAX);
    drop(mailboxes.assign(new_connection()));
    mailboxes.send(&LoopCommand::Stop);
    (0..MAX_SUBSCRIPTION_STARTS).for_each(|_| mailboxes.start_subscription(0, attachment()));
    let batch = mailboxes.take(0);
    assert_eq!((batch.new_connections.len(), batch.items.len()), (1, 1));
    assert_eq!(mailboxes.take(0).items.len(), MAX_SUBSCRIPTION_STARTS);
}

#[test]
fn what_a_thread_publishes_while_it_defers_the_wake_wakes_no_loop_before() {
    let (mailboxes, mut polls) = mailboxes(2, 1);
    let wake = mailboxes.defer_wake();
    assert!(wake.is_some() && mailboxes.defer_wake().is_none());
    let mut one = ReceiverSet::default();
    one.insert(1);
    mailboxes.publish(&channel("a"), &[text("x")], one);
    assert_eq!(polls.iter_mut().map(is_woken).collect::<Vec<_>>(), [false, false]);
    // Another thread does not know how long this one takes.
    thread::scope(|scope| scope.spawn(|| publish(&mailboxes, &text("y"))).join().unwrap());
    assert_eq!(polls.iter_mut().map(is_woken).collect::<Vec<_>>(), [true, true]);
    assert_eq!((publications(&mailboxes.take(0)), publications(&mailboxes.take(1))), (1, 2));
    mailboxes.publish(&channel("a"), &[text("x")], one);
    drop(wake);
    assert_eq!(polls.iter_mut().map(is_woken).collect::<Vec<_>>(), [false, true]);
    mailboxes.take(1);
    mailboxes.publish(&channel("a"), &[text("x")], one);
    assert!(is_woken(&mut polls[1]), "nothing is deferred any more");
}

#[test]
fn a_loop_without_new_connections_sleeps_on() {
    let (mailboxes, mut polls) = mailboxes(2, 10);
    drop(mailboxes.assign(new_connection()));
    assert_eq!(polls.iter_mut().map(is_woken).collect::<Vec<_>>(), [true, false]);
    assert_eq!(mailboxes.take_new_connections(0).len(), 1);
    assert_eq!(mailboxes.take(0).new_connections.len(), 0);
}

#[test]
fn a_loop_is_woken_once_until_it_has_emptied_its_mailbox() {
    let (mailboxes, mut polls) = mailboxes(1, 1);
    let large = text(&"x".repeat(100_000));
    for _ in 0..2 {
        publish(&mailboxes, &large);
    }
    assert!(is_woken(&mut polls[0]));
    assert!(mailboxes.take(0).more);
    publish(&mailboxes, &large);
    assert!(!is_woken(&mut polls[0]), "the loop knows that there is more");
    while mailboxes.take(0).more {}
    publish(&mailboxes, &large);
    assert!(is_woken(&mut polls[0]));
}

#[test]
fn publications_are_taken_together_in_order_up_to_a_batch() {
    let (mailboxes, _polls) = mailboxes(1, 1);
    let large = text(&"x".repeat(60_000));
    mailboxes.publish(&channel("a"), &[Arc::clone(&large), Arc::clone(&large), large], all());
    mailboxes.send(&LoopCommand::Stop);
    let batch = mailboxes.take(0);
    assert_eq!((publications(&batch), batch.items.len(), batch.more), (2, 1, true));
    let batch = mailboxes.take(0);
    assert_eq!((publications(&batch), batch.items.len(), batch.more), (1, 2, false));
    assert!(matches!(batch.items[1], MailboxItem::Command(LoopCommand::Stop)));
}

#[test]
fn a_publication_larger_than_a_batch_is_taken_alone() {
    let (mailboxes, _polls) = mailboxes(1, 1);
    let large = text(&"x".repeat(2 * MAX_WRITE_BATCH));
    for _ in 0..2 {
        publish(&mailboxes, &large);
    }
    for more in [true, false] {
        let batch = mailboxes.take(0);
        assert_eq!((publications(&batch), batch.more), (1, more));
    }
}

#[test]
fn publications_of_a_channel_are_joined_up_to_a_subscription() {
    let (mailboxes, _polls) = mailboxes(1, 1);
    let publish = |name: &str, word: &str| mailboxes.publish(&channel(name), &[text(word)], all());
    for (name, word) in [("a", "1"), ("b", "2"), ("a", "3"), ("b", "4")] {
        publish(name, word);
    }
    mailboxes.start_subscription(0, attachment());
    publish("a", "5");
    publish("a", "6");
    mailboxes.send(&LoopCommand::ResumeReads);
    publish("a", "7");
    assert_eq!(items(&mailboxes.take(0)), ["a:1,3", "b:2,4", "A", "a:5,6", "C"]);
    assert_eq!(items(&mailboxes.take(0)), ["a:7"]);
}

#[test]
fn many_channels_keep_their_order() {
    let (mailboxes, _polls) = mailboxes(1, 1);
    for round in 0..3 {
        for number in 0..2 * MAX_OPEN_RUNS {
            mailboxes.publish(&channel(&format!("c{number}")), &[text(&round.to_string())], all());
        }
    }
    let items = items(&mailboxes.take(0));
    for number in 0..2 * MAX_OPEN_RUNS {
        let start = format!("c{number}:");
        let words: Vec<_> = items.iter().filter_map(|item| item.strip_prefix(&start)).collect();
        assert_eq!(words.join(","), "0,1,2", "channel {number}");
    }
}

#[test]
fn publications_reach_the_loops_that_receive_their_channel_alone() {
    let (mailboxes, mut polls) = mailboxes(3, 1);
    let mut receivers = ReceiverSet::default();
    receivers.insert(1);
    mailboxes.publish(&channel("a"), &[text("1")], receivers);
    assert_eq!(polls.iter_mut().map(is_woken).collect::<Vec<_>>(), [false, true, false]);
    let counts: Vec<_> = (0..3).map(|index| publications(&mailboxes.take(index))).collect();
    assert_eq!(counts, [0, 1, 0]);
}

#[tokio::test]
async fn publishers_wait_until_every_mailbox_is_below_the_low_water_mark() {
    let (mailboxes, mut polls) = mailboxes(2, 1);
    let large = text(&"x".repeat(60_000));
    let mut published = 0;
    while mailboxes.has_capacity() {
        publish(&mailboxes, &large);
        published += large.size(&channel("a"));
    }
    assert!(published >= HIGH_WATER_MARK);
    let mut waiting = Box::pin(mailboxes.wait_for_capacity());
    assert!(timeout(Duration::ZERO, &mut waiting).await.is_err());
    while mailboxes.take(0).more {}
    assert!(!mailboxes.has_capacity(), "the other loop is still behind");
    assert!(is_woken(&mut polls[0]));
    while !mailboxes.has_capacity() {
        assert!(mailboxes.take(1).more, "half of it is enough");
    }
    waiting.await;
    assert!(is_woken(&mut polls[0]), "a loop that waited to read is woken");
}

#[test]
fn all_mailboxes_have_what_four_threads_publish_in_the_same_order() {
    const THREADS: usize = 4;
    const LOOPS: usize = 3;
    const TEXTS: usize = 5000;
    let (mailboxes, _polls) = mailboxes(LOOPS, 1);
    let start = Barrier::new(THREADS);
    let publish_all = |thread: usize| {
        start.wait();
        for number in 0..TEXTS {
            publish(&mailboxes, &text(&format!("{thread}:{number};")));
        }
    };
    // Each loop takes at its own speed, while the threads publish.
    let take_all = |index: usize| {
        let (mut taken, mut bytes) = (0, Vec::new());
        while taken < THREADS * TEXTS {
            let batch = mailboxes.take(index);
            taken += publications(&batch);
            for item in batch.items {
                let MailboxItem::Run(run) = item else { panic!("nothing else was sent") };
                for publication in &run.publications {
                    bytes.extend_from_slice(publication.frame(&run.channel).bytes());
                }
            }
            thread::yield_now();
        }
        bytes
    };
    let orders = thread::scope(|scope| {
        let (publish_all, take_all) = (&publish_all, &take_all);
        (0..THREADS).for_each(|thread| drop(scope.spawn(move || publish_all(thread))));
        let loops: Vec<_> = (0..LOOPS).map(|index| scope.spawn(move || take_all(index))).collect();
        loops.into_iter().map(|one| one.join().unwrap()).collect::<Vec<_>>()
    });
    assert!(orders.iter().all(|order| *order == orders[0]), "the loops have different orders");
    let mut next = [0; THREADS];
    for frame in orders[0].split(|byte| *byte == b';').filter(|frame| !frame.is_empty()) {
        let (_header, text) = frame.split_at(2);
        let (thread, number) = std::str::from_utf8(text).unwrap().split_once(':').unwrap();
        let next = &mut next[thread.parse::<usize>().unwrap()];
        assert_eq!(number.parse(), Ok(*next), "thread {thread} is out of order");
        *next += 1;
    }
    assert_eq!(next, [TEXTS; THREADS]);
}
