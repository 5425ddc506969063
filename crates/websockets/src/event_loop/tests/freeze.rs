use std::thread::{self, JoinHandle};

use tokio::sync::mpsc;

use super::*;
use crate::{
    admission::ConnectionCounts,
    codec::test_frames::{client_close, client_text},
    connection::{
        snapshot::ConnectionSnapshot,
        unread::{Histories, ReceivedUnread, UNREAD_BUDGET, UnreadBuffers},
    },
    frozen_loop::FrozenLoop,
    handover::{BrokerPaused, Frozen, ReadsPaused},
    stats::Stats,
};

/// A loop that runs on a thread of its own.
struct Running {
    mailboxes: Arc<Mailboxes>,
    thread: JoinHandle<()>,
}

impl Running {
    fn start(harness: Harness) -> Self {
        let Harness { event_loop, mailboxes, .. } = harness;
        Self { mailboxes, thread: thread::spawn(|| event_loop.run().unwrap()) }
    }

    fn freeze(&self) -> FrozenLoop {
        let (reply, mut frozen) = mpsc::channel(1);
        self.mailboxes.send(&LoopCommand::Freeze(reply));
        frozen.blocking_recv().unwrap()
    }

    fn stop(self) {
        self.mailboxes.send(&LoopCommand::Stop);
        self.thread.join().unwrap();
    }
}

/// Registers the connections of a frozen loop with another one, as a new process does.
fn restore(frozen: &mut FrozenLoop, harness: &mut Harness) {
    let broker = Arc::clone(&harness.event_loop.clients.channels.broker);
    let mut buffers = UnreadBuffers::new(UNREAD_BUDGET);
    for (_, slot) in frozen.unread().collect::<Vec<_>>() {
        frozen.add_unread(slot, &mut buffers, &*broker);
    }
    let (buffers, publications) = buffers.into_parts();
    let mut unread = ReceivedUnread::default();
    unread.buffers = buffers;
    unread.add_publications(publications);
    harness.event_loop.clients.channels.add_ahead(&frozen.channels);
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    for (socket, snapshot) in frozen.snapshots() {
        let stream = TcpStream::from(socket.try_clone_to_owned().unwrap());
        // A handover is serialized.
        let mut snapshot: ConnectionSnapshot =
            rmp_serde::from_slice(&rmp_serde::to_vec_named(&snapshot).unwrap()).unwrap();
        unread.check(&snapshot.queue).unwrap();
        let queue = std::mem::take(&mut snapshot.queue);
        let mut histories = Histories::new(&*broker);
        (snapshot.outbox, snapshot.is_incomplete) = runtime.block_on(unread.restore(queue, &mut histories));
        snapshot.is_incomplete = !snapshot.is_incomplete;
        let source = ConnectionSource::Handover(Box::new(snapshot));
        harness.event_loop.clients.register(NewConnection { stream, permit: permit(), source });
    }
    harness.event_loop.clients.channels.end_restoring();
}

/// Moves the connections of a loop to another one. The first one ends.
pub(super) fn hand_over(old: Harness) -> Harness {
    let running = Running::start(old);
    let mut frozen = running.freeze();
    let mut new = Harness::new(Options::default());
    restore(&mut frozen, &mut new);
    frozen.release();
    drop(frozen);
    running.thread.join().unwrap();
    new
}

#[test]
fn a_frozen_loop_continues_when_it_is_dropped() {
    let mut harness = Harness::new(Options::default());
    let mut client = harness.connect();
    let running = Running::start(harness);
    let frozen = running.freeze();
    client.expect_welcome();
    client.send(client_text("hello"));
    assert_eq!(frozen.snapshots().count(), 1);
    client.expect_nothing();
    drop(frozen);
    assert!(client.read_text().contains(r#""data":"hello""#));
    running.stop();
    client.expect_end();
}

#[test]
fn what_was_published_before_a_freeze_is_written_before_it() {
    let mut harness = Harness::new(Options::default());
    let mut clients = [harness.connect(), harness.connect()];
    let running = Running::start(harness);
    for n in 0..100 {
        publish(&running.mailboxes, &n.to_string());
    }
    let frozen = running.freeze();
    for client in &mut clients {
        client.expect_welcome();
        (0..100).for_each(|n| client.expect_text(&n.to_string()));
    }
    drop(frozen);
    running.stop();
}

#[test]
fn a_loop_whose_connections_are_released_ends_and_another_one_continues_them() {
    let mut old = Harness::new(Options::default());
    let (mut client, mut closing) = (old.connect(), old.connect());
    let text = client_text("hello");
    client.send(&text[..7]);
    old.iterate_until(|event_loop| event_loop.clients.stats.bytes_received == 7);
    let slot = old.key(&closing).slot;
    old.event_loop.clients.close(slot, CloseReason::ServiceRestart);

    let mut new = hand_over(old);

    client.send(&text[7..]);
    closing.send(client_close(1012));
    new.iterate_until(|event_loop| {
        event_loop.clients.stats.messages_sent == 1 && event_loop.clients.connections.len() == 1
    });
    client.expect_welcome();
    assert!(client.read_text().contains(r#""data":"hello""#));
    closing.expect_welcome();
    closing.expect_close(CloseReason::ServiceRestart);
    closing.expect_end();
    assert_eq!(new.event_loop.clients.stats.disconnects.get("service_restart"), Some(&1));
    assert_eq!(new.event_loop.clients.stats.opened, 0, "the old process has counted them");
}

#[test]
fn a_closing_connection_keeps_the_rest_of_its_close_timeout_or_gets_that_of_the_new_process() {
    let mut old = Harness::new(Options { close_timeout: Duration::from_secs(20), ..Options::default() });
    let client = old.connect();
    let slot = old.key(&client).slot;
    old.event_loop.clients.close(slot, CloseReason::ServiceRestart);
    let running = Running::start(old);
    let mut frozen = running.freeze();
    for (new_timeout, most) in [(60, 20), (10, 10)] {
        let close_timeout = Duration::from_secs(new_timeout);
        let mut new = Harness::new(Options { close_timeout, ..Options::default() });
        restore(&mut frozen, &mut new);
        let left: Vec<_> =
            new.event_loop.clients.timers.close_timeouts(Instant::now()).map(|(_, left)| left).collect();
        assert!(left.len() == 1 && left[0] <= Duration::from_secs(most), "{left:?}");
        assert!(left[0] > Duration::from_secs(most / 2), "the machine is not that slow: {left:?}");
    }
    drop(frozen);
    running.stop();
}

#[test]
fn output_that_is_queued_is_written_by_the_new_loop() {
    let mut old = Harness::new(Options::default());
    let mut client = old.connect();
    let text = "x".repeat(100_000);
    let mut count = 0;
    while old.event_loop.clients.connections.iter().all(|(_, entry)| !entry.connection.has_output()) {
        old.publish(&text);
        old.iterate();
        count += 1;
    }
    let mut new = hand_over(old);
    let reader = thread::spawn(move || {
        client.expect_welcome();
        (0..count).for_each(|_| client.expect_text(&"x".repeat(100_000)));
    });
    new.iterate_until(|event_loop| {
        event_loop.clients.connections.iter().all(|(_, entry)| !entry.connection.has_output())
    });
    reader.join().unwrap();
}

#[test]
fn a_freeze_whose_caller_is_gone_is_undone_at_once() {
    let mut harness = Harness::new(Options::default());
    let mut client = harness.connect();
    let running = Running::start(harness);
    let (reply, frozen) = mpsc::channel(1);
    drop(frozen);
    running.mailboxes.send(&LoopCommand::Freeze(reply));
    publish(&running.mailboxes, "after");
    client.expect_welcome();
    client.expect_text("after");
    running.stop();
}

#[test]
fn clients_that_are_disconnected_during_a_freeze_are_counted_and_no_longer_throttled() {
    let (harness, _client) = reading::throttled();
    let budget = Arc::clone(&harness.event_loop.clients.reader.budget);
    let broker = Arc::clone(&harness.event_loop.clients.channels.broker);
    assert_eq!(budget.throttled(), 1);
    let running = Running::start(harness);
    let frozen = Frozen {
        loops: vec![running.freeze()],
        unread: (Vec::new(), Vec::new()),
        previous_stats: Stats::default(),
        counts: ConnectionCounts::default(),
        _broker_paused: BrokerPaused::new(broker),
        _reads_paused: ReadsPaused(Arc::clone(&running.mailboxes)),
    };
    frozen.disconnect();
    let (reply, mut stats) = mpsc::channel(1);
    running.mailboxes.send(&LoopCommand::CollectStats(reply));
    let stats = stats.blocking_recv().unwrap();
    assert_eq!((stats.disconnects.get("failed"), stats.forced_disconnects), (Some(&1), 1));
    assert_eq!(budget.throttled(), 0);
    running.stop();
}
