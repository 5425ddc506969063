use std::{sync::Barrier, thread, time::Duration};

use mio::{Events, Poll, Token};
use tokio::time::timeout;

use super::*;
use crate::{admission::Admission, phases::Phases};

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

fn publish(mailboxes: &Mailboxes, frame: &Frame) {
    assert!(mailboxes.publish_if(frame.clone(), || true));
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
    let frame = Frame::text(&"x".repeat(100_000));
    for _ in 0..2 {
        publish(&mailboxes, &frame);
    }
    assert!(is_woken(&mut polls[0]));
    assert!(mailboxes.take(0).more);
    publish(&mailboxes, &frame);
    assert!(!is_woken(&mut polls[0]), "the loop knows that there is more");
    while mailboxes.take(0).more {}
    publish(&mailboxes, &frame);
    assert!(is_woken(&mut polls[0]));
}

#[test]
fn frames_are_taken_together_in_order_up_to_a_batch() {
    let (mailboxes, _polls) = mailboxes(1, 1);
    let frame = Frame::text(&"x".repeat(60_000));
    mailboxes.publish(&mut vec![frame.clone(), frame.clone(), frame.clone()]);
    mailboxes.send(&LoopCommand::Stop);
    let batch = mailboxes.take(0);
    assert_eq!((batch.frames.len(), batch.messages, batch.more), (2 * frame.bytes().len(), 2, true));
    assert!(batch.command.is_none());
    let batch = mailboxes.take(0);
    assert_eq!((batch.frames.len(), batch.messages, batch.more), (frame.bytes().len(), 1, false));
    assert!(matches!(batch.command, Some(LoopCommand::Stop)));
}

#[test]
fn a_frame_larger_than_a_batch_is_taken_alone() {
    let (mailboxes, _polls) = mailboxes(1, 1);
    let frame = Frame::text(&"x".repeat(2 * MAX_WRITE_BATCH));
    for _ in 0..2 {
        publish(&mailboxes, &frame);
    }
    for more in [true, false] {
        let batch = mailboxes.take(0);
        assert_eq!((&batch.frames, batch.more), (frame.bytes(), more));
    }
}

#[test]
fn a_frame_that_is_not_allowed_reaches_no_loop() {
    let (mailboxes, mut polls) = mailboxes(1, 1);
    assert!(!mailboxes.publish_if(Frame::text("x"), || false));
    assert!(mailboxes.take(0).frames.is_empty());
    assert!(!is_woken(&mut polls[0]));
}

#[tokio::test]
async fn publishers_wait_until_every_mailbox_is_below_the_low_water_mark() {
    let (mailboxes, mut polls) = mailboxes(2, 1);
    let frame = Frame::text(&"x".repeat(60_000));
    let mut published = 0;
    while mailboxes.has_capacity() {
        publish(&mailboxes, &frame);
        published += frame.bytes().len();
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
            let frame = Frame::text(&format!("{thread}:{number};"));
            // As the HTTP server does, and as an event loop does.
            if number.is_multiple_of(2) {
                publish(&mailboxes, &frame);
            } else {
                mailboxes.publish(&mut vec![frame]);
            }
        }
    };
    // Each loop takes at its own speed, while the threads publish.
    let take_all = |index: usize| {
        let (mut taken, mut bytes) = (0, Vec::new());
        while taken < THREADS * TEXTS {
            let batch = mailboxes.take(index);
            taken += batch.messages;
            bytes.extend_from_slice(&batch.frames);
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
