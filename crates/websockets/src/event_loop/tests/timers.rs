use super::{
    super::{
        clock::{ALLOWANCE, Clock},
        heartbeat::{BUCKETS, Heartbeat, HeartbeatEvent},
        timers::{Due, Timers},
    },
    *,
};
use crate::{close_schedule::CloseSchedule, codec::test_frames::client_frame};

const SECOND: Duration = Duration::from_secs(1);

fn key(slot: usize) -> ConnectionKey {
    ConnectionKey { slot, id: ClientId::generate() }
}

/// Timers without pings, and the moment of their start.
fn timers() -> (Timers, Instant) {
    let now = Instant::now();
    (Timers::new(Clock::start(now), None), now)
}

fn all_due(timers: &mut Timers, now: Instant) -> Vec<Due> {
    std::iter::from_fn(|| timers.due(now)).collect()
}

#[test]
fn without_timers_nothing_is_due() {
    let (mut timers, now) = timers();
    assert_eq!((timers.next(), timers.due(now + 1000 * SECOND)), (None, None));
}

#[test]
fn the_next_moment_is_the_earliest_of_all() {
    let (mut timers, now) = timers();
    let (a, b, c) = (key(1), key(2), key(3));
    timers.start_close_timeout(a, 30 * SECOND, now);
    assert_eq!(timers.next(), Some(30 * SECOND));
    timers.end_throttling_at(b, now + 20 * SECOND);
    assert_eq!(timers.next(), Some(20 * SECOND));
    let schedule = CloseSchedule::new(std::iter::once(c), now, now + 20 * SECOND);
    timers.schedule_closes(schedule, CloseReason::ServiceRestart);
    assert_eq!(timers.next(), Some(10 * SECOND));

    timers.clock().after_wait(now + 10 * SECOND, Some(10 * SECOND));
    let now = now + 10 * SECOND;
    assert_eq!(all_due(&mut timers, now), [Due::Close(c, CloseReason::ServiceRestart)]);
    assert_eq!(timers.next(), Some(10 * SECOND));
    timers.clock().after_wait(now + 10 * SECOND, Some(10 * SECOND));
    assert_eq!(all_due(&mut timers, now + 10 * SECOND), [Due::EndThrottling(b)]);
    timers.clock().after_wait(now + 20 * SECOND, Some(10 * SECOND));
    assert_eq!(all_due(&mut timers, now + 20 * SECOND), [Due::CloseTimeout(a)]);
    assert_eq!(timers.next(), None);
}

#[test]
fn close_timeouts_are_due_in_order_whatever_their_length() {
    let (mut timers, now) = timers();
    let keys: Vec<_> = (0..5).map(key).collect();
    for (key, seconds) in keys.iter().zip([3, 1, 5, 1, 4]) {
        timers.start_close_timeout(*key, seconds * SECOND, now);
    }
    let left: Vec<_> = timers.close_timeouts(now).map(|(_, left)| left.as_secs()).collect();
    assert_eq!(left, [1, 1, 3, 4, 5]);
    timers.clock().after_wait(now + 3 * SECOND, None);
    let due = all_due(&mut timers, now + 3 * SECOND);
    assert_eq!(due, [1, 3, 0].map(|index| Due::CloseTimeout(keys[index])));
}

#[test]
fn a_close_timeout_does_not_run_while_the_process_is_stopped_and_a_scheduled_close_does() {
    let (mut timers, now) = timers();
    let (closing, scheduled) = (key(1), key(2));
    timers.start_close_timeout(closing, 10 * SECOND, now);
    let schedule = CloseSchedule::new(std::iter::once(scheduled), now, now + 120 * SECOND);
    timers.schedule_closes(schedule, CloseReason::Idle);
    timers.clock().after_wait(now + 60 * SECOND, Some(SECOND));
    assert_eq!(all_due(&mut timers, now + 60 * SECOND), [Due::Close(scheduled, CloseReason::Idle)]);
    assert_eq!(timers.next(), Some(9 * SECOND - ALLOWANCE), "a second has passed for the client");
}

#[test]
fn pings_are_due_like_all_other_timers() {
    let now = Instant::now();
    let config = HeartbeatConfig { interval: BUCKETS as u32 * SECOND, timeout: 3 * SECOND };
    let mut timers = Timers::new(Clock::start(now), Some(Heartbeat::new(config, now)));
    assert_eq!(timers.next(), Some(SECOND));
    timers.clock().after_wait(now + SECOND, Some(SECOND));
    assert_eq!(all_due(&mut timers, now + SECOND), [Due::Heartbeat(HeartbeatEvent::Ping(0))]);
    timers.clock().after_wait(now + 4 * SECOND, Some(3 * SECOND));
    let due = all_due(&mut timers, now + 4 * SECOND);
    let events =
        [HeartbeatEvent::Check(0), HeartbeatEvent::Ping(1), HeartbeatEvent::Ping(2), HeartbeatEvent::Ping(3)];
    assert_eq!(due, events.map(Due::Heartbeat));
}

#[test]
fn a_loop_without_connections_sleeps_until_it_is_woken() {
    let heartbeat = Some(HeartbeatConfig { interval: SECOND, timeout: SECOND });
    let mut harness = Harness::new(Options { heartbeat, ..Options::default() });
    assert_eq!(harness.event_loop.poll_timeout(), None);
    let _client = harness.connect();
    assert!(harness.event_loop.poll_timeout().is_some_and(|timeout| timeout <= SECOND));
}

#[test]
fn a_client_that_does_not_answer_a_close_is_ended_at_the_close_timeout() {
    let mut harness = Harness::new(Options { close_timeout: Duration::ZERO, ..Options::default() });
    let mut client = harness.connect();
    let slot = harness.key(&client).slot;
    harness.event_loop.clients.close(slot, CloseReason::ServiceRestart);
    harness.iterate_until(|event_loop| event_loop.clients.connections.is_empty());
    client.expect_welcome();
    client.expect_close(CloseReason::ServiceRestart);
    client.expect_end();
    assert_eq!(harness.event_loop.clients.stats.forced_disconnects, 1);
    assert_eq!(harness.event_loop.clients.stats.disconnects.get("service_restart"), Some(&1));
}

#[test]
fn a_timer_of_a_connection_that_has_ended_does_not_concern_the_next_one_in_its_slot() {
    let mut harness = Harness::new(Options::default());
    let old = harness.connect();
    let key = harness.key(&old);
    let now = Instant::now();
    harness.event_loop.clients.timers.start_close_timeout(key, Duration::ZERO, now);
    harness.event_loop.clients.timers.end_throttling_at(key, now);
    let schedule = CloseSchedule::new(std::iter::once(key), now, now);
    harness.event_loop.clients.timers.schedule_closes(schedule, CloseReason::Idle);
    harness.event_loop.clients.reader.queue.push_back(key);
    harness.event_loop.clients.remove(key.slot, crate::admission::Disconnect::ByClient);

    let mut new = harness.connect();
    assert_eq!(harness.key(&new).slot, key.slot);
    harness.iterate_until(|event_loop| event_loop.clients.timers.next().is_none());
    new.expect_welcome();
    new.expect_nothing();
    assert_eq!(harness.event_loop.clients.connections.len(), 1);
}

#[test]
fn scheduled_closes_tell_each_client_when_to_reconnect() {
    let mut harness = Harness::new(Options::default());
    let mut clients: Vec<_> = (0..3).map(|_| harness.connect()).collect();
    let now = Instant::now();
    let notice = crate::notice::ShutdownNotice::new("service restart", now + TIMEOUT, Duration::ZERO);
    harness.send(LoopCommand::BeginDrain(notice));
    harness.send(LoopCommand::CloseGradually(CloseReason::ServiceRestart, now));
    harness.iterate_until(|event_loop| {
        event_loop.clients.connections.iter().all(|(_, entry)| !entry.connection.is_open())
    });
    for client in &mut clients {
        client.expect_welcome();
        assert!(client.read_text().contains(r#""type":"shutdown""#));
        assert!(client.read_text().contains(r#""reconnect""#), "again with the close");
        client.expect_close(CloseReason::ServiceRestart);
    }
}

#[test]
fn a_client_that_does_not_answer_a_ping_is_closed_as_idle() {
    let mut harness = Harness::new(Options::default());
    let (mut dead, mut alive) = (harness.connect(), harness.connect());
    let buckets = [harness.key(&dead).slot, harness.key(&alive).slot];
    for bucket in buckets {
        harness.event_loop.clients.ping(bucket);
    }
    alive.expect_welcome();
    alive.expect(b"\x89\0");
    alive.send(client_frame(0x8A, [1; 4], b""));
    harness.iterate_until(|event_loop| event_loop.clients.stats.bytes_received > 0);
    for bucket in buckets {
        harness.event_loop.clients.check_pings(bucket);
    }
    alive.expect_nothing();
    dead.expect_welcome();
    dead.expect(b"\x89\0");
    dead.expect_close(CloseReason::Idle);
}

#[test]
fn an_answer_that_has_arrived_and_is_not_read_yet_counts() {
    let mut harness = Harness::new(Options::default());
    let mut client = harness.connect();
    let slot = harness.key(&client).slot;
    harness.event_loop.clients.ping(slot);
    client.send(client_frame(0x8A, [1; 4], b""));
    // Loopback may take a moment.
    let started = Instant::now();
    while !harness.event_loop.clients.connections.get(slot).unwrap().connection.has_input() {
        assert!(started.elapsed() < TIMEOUT);
        std::thread::yield_now();
    }
    harness.event_loop.clients.check_pings(slot);
    assert!(harness.event_loop.clients.connections.get(slot).unwrap().connection.is_open());
    assert_eq!(harness.event_loop.clients.reader.queue, [harness.key(&client)]);
}
