//! The HTTP connections that there are, and which of them makes room for a new one.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::Notify,
    time::{Instant, timeout_at},
};
use tracing::warn;

use crate::line_rate::LineRate;

/// The time that a new connection waits for room while none is idle and nothing changes. Requests that are
/// answered in that time, such as the handshakes of many clients at once, make room.
const ROOM_TIMEOUT: Duration = Duration::from_millis(50);

/// The time that a connection may be idle before it must make room. Others wait for that in the queue of the
/// listening socket: when many clients come at once, the first must have the time to send their requests.
/// Once there has been no room for that long, a connection that has had a request may be idle for less: else
/// those whose next request always comes soon would keep all others out.
const LEAST_IDLE_TIME: Duration = Duration::from_millis(100);

/// The longest time that a new connection waits for room.
const MOST_WAIT: Duration = Duration::from_millis(250);

/// Descriptors that HTTP connections leave to the rest of the process, once there was none left: to a new
/// connection that waits for room, and to a command at the control socket.
const LEFT_DESCRIPTORS: usize = 3;

/// All HTTP connections of this process: each counts from accept(2) until it ends, or becomes one of the
/// connection manager's, which has a bound of its own. Clones are handles to the same ones.
#[derive(Debug, Clone)]
pub struct HttpConnections(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    max: usize,
    state: Mutex<State>,
    /// A connection has ended, has become idle, or is not idle any more.
    changed: Notify,
}

#[derive(Debug)]
struct State {
    count: usize,
    /// Idle connections that have had no request, and those that have, by the order in which they became
    /// idle.
    idle: [BTreeMap<u64, IdleSince>; 2],
    /// The bound since no descriptor was left, until few connections are left.
    max_by_descriptors: Option<usize>,
    /// The moment since which every new connection has found no room.
    full_since: Option<Instant>,
    /// The next number in that order.
    next: u64,
    /// Idle connections that were told to make room, and have not ended yet.
    leaving: usize,
    /// The moment at which a connection last came, ended, became idle, or was told to make room.
    last_change: Instant,
    /// Clients can bring connections to the bound as often as they like.
    lines: LineRate,
}

/// An idle connection: the moment since which it is idle, and the means to tell it that it must make room.
#[derive(Debug)]
struct IdleSince {
    time: Instant,
    told: Arc<Notify>,
}

/// The permit of one connection. Dropping it gives it back.
#[derive(Debug)]
pub(super) struct HttpPermit(Arc<Inner>);

/// All HTTP connections that there may be are there, and each has a request.
#[derive(Debug, thiserror::Error)]
#[error("there is no room for another HTTP connection")]
pub(super) struct NoRoom;

/// The time during which a connection is idle: no request is under way. Dropping it ends that.
#[derive(Debug)]
pub(super) struct Idle<'a> {
    connections: &'a Arc<Inner>,
    had_request: bool,
    number: u64,
    told: Arc<Notify>,
}

impl HttpConnections {
    /// Returns none yet, of which there may be `max` at once.
    pub fn new(max: usize) -> Self {
        let state = State {
            count: 0,
            idle: <[BTreeMap<_, _>; 2]>::default(),
            max_by_descriptors: None,
            full_since: None,
            next: 0,
            leaving: 0,
            last_change: Instant::now(),
            lines: LineRate::default(),
        };
        Self(Arc::new(Inner { max, state: Mutex::new(state), changed: Notify::new() }))
    }

    /// Returns how many there may be.
    pub(crate) fn max(&self) -> usize {
        self.0.max
    }

    /// Returns how many there are.
    pub(crate) fn count(&self) -> usize {
        self.0.lock().count
    }

    /// Returns a permit for a connection that another process had: such ones may be more than the bound. The
    /// next ones to come make the rest leave.
    pub(super) fn restore(&self) -> HttpPermit {
        self.0.lock().count += 1;
        HttpPermit(Arc::clone(&self.0))
    }

    /// Has the connections that are idle longest leave some descriptors to others, as there was none left for
    /// a new connection: the limit of descriptors is lower than the settings think. From now on, there are no
    /// more than are left then, until half of them have gone.
    pub(super) fn no_descriptor_left(&self) {
        let mut state = self.0.lock();
        state.max_by_descriptors = Some(state.count.saturating_sub(LEFT_DESCRIPTORS).max(1));
        while state.leaving < LEFT_DESCRIPTORS {
            let first = |map: usize| Some((state.idle[map].first_key_value()?.1.time, map));
            let Some((_, map)) = [first(HAD_NONE), first(HAD_REQUEST)].into_iter().flatten().min() else {
                break;
            };
            if let Some((_, IdleSince { told, .. })) = state.idle[map].pop_first() {
                told.notify_one();
                state.leaving += 1;
            }
        }
    }

    /// Returns a permit for a new connection. At the bound, the connection that has been idle longest is told
    /// to end.
    ///
    /// # Errors
    /// When there is no room: all are taken, and none has become free for a moment.
    pub(super) async fn admit(&self) -> Result<HttpPermit, NoRoom> {
        let (started, mut has_waited) = (Instant::now(), false);
        loop {
            let mut changed = std::pin::pin!(self.0.changed.notified());
            // Before the state is read: no change is missed.
            changed.as_mut().enable();
            let next = self.0.lock().next_step(self.0.max, started, has_waited);
            has_waited = true;
            match next {
                Step::Enter => return Ok(HttpPermit(Arc::clone(&self.0))),
                Step::WaitForIdle(until) => {
                    // At the timeout, that one is told.
                    let _ = timeout_at(until, changed).await;
                }
                Step::Wait(until) => timeout_at(until, changed).await.map_err(|_| NoRoom)?,
            }
        }
    }
}

/// The place of a connection in [`State::idle`].
const HAD_NONE: usize = 0;
const HAD_REQUEST: usize = 1;

/// The next step for a new connection.
enum Step {
    /// There is room.
    Enter,
    /// The connection that is idle longest must leave, but not before this moment.
    WaitForIdle(Instant),
    /// One has to end, or to become idle: until this moment.
    Wait(Instant),
}

impl State {
    /// Returns the next step for a connection that came when it `started`.
    fn next_step(&mut self, max: usize, started: Instant, has_waited: bool) -> Step {
        let now = Instant::now();
        self.max_by_descriptors = self.max_by_descriptors.filter(|max| self.count > max / 2);
        let max = self.max_by_descriptors.map_or(max, |by_descriptors| by_descriptors.min(max));
        if self.count < max {
            self.count += 1;
            self.last_change = now;
            if !has_waited {
                self.full_since = None;
            }
            return Step::Enter;
        }
        let full_since = *self.full_since.get_or_insert(now);
        let give_up_at = started + MOST_WAIT;
        if self.count.saturating_sub(self.leaving) >= max {
            let may_leave_at = |map: usize, one: &IdleSince| {
                let regular = one.time + LEAST_IDLE_TIME;
                if map == HAD_REQUEST { regular.min(full_since + LEAST_IDLE_TIME) } else { regular }
            };
            let first = |map: usize| {
                let (number, one) = self.idle[map].first_key_value()?;
                Some((may_leave_at(map, one), one.time, map, *number))
            };
            // The one that may leave first; of those that may now, the one that is idle longest.
            let first = [first(HAD_NONE), first(HAD_REQUEST)].into_iter().flatten();
            let Some((at, _, map, number)) = first.min_by_key(|(at, time, ..)| ((*at).max(now), *time))
            else {
                return Step::Wait((self.last_change + ROOM_TIMEOUT).min(give_up_at));
            };
            if now < at {
                return if at < give_up_at { Step::WaitForIdle(at) } else { Step::Wait(give_up_at) };
            }
            if let Some(IdleSince { told, .. }) = self.idle[map].remove(&number) {
                told.notify_one();
            }
            self.leaving += 1;
            self.last_change = now;
            if self.lines.try_acquire(now).is_ok() {
                warn!(
                    max_http_connections = max,
                    "all HTTP connections that there may be are open: for each new one, the one that has been idle \
                     longest is closed; raise `max_http_connections`, or lower `keep_alive_timeout`"
                );
            }
        }
        Step::Wait((self.last_change + ROOM_TIMEOUT).min(give_up_at))
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing that holds it can panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the state, and has a new connection that waits for room look at it.
    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let changed = change(&mut self.lock());
        self.changed.notify_one();
        changed
    }
}

impl HttpPermit {
    /// Notes that this connection is idle from now on, and whether it has had a request.
    pub(super) fn idle(&self, had_request: bool) -> Idle<'_> {
        let told = Arc::new(Notify::new());
        let number = self.0.change(|state| {
            let number = state.next;
            state.next += 1;
            state.last_change = Instant::now();
            let since = IdleSince { time: state.last_change, told: Arc::clone(&told) };
            state.idle[usize::from(had_request)].insert(number, since);
            number
        });
        Idle { connections: &self.0, had_request, number, told }
    }
}

impl Drop for HttpPermit {
    fn drop(&mut self) {
        self.0.change(|state| {
            state.count = state.count.saturating_sub(1);
            state.last_change = Instant::now();
        });
    }
}

impl Idle<'_> {
    /// Waits until this connection must make room for a new one. Cancel safe.
    pub(super) async fn must_leave(&self) {
        self.told.notified().await;
    }

    /// Returns where this connection is in the order in which connections became idle.
    pub(super) fn number(&self) -> u64 {
        self.number
    }
}

impl Drop for Idle<'_> {
    fn drop(&mut self) {
        self.connections.change(|state| {
            if state.idle[usize::from(self.had_request)].remove(&self.number).is_none() {
                state.leaving = state.leaving.saturating_sub(1);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use tokio::{task::yield_now, time::timeout};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_permit_is_free_again_when_its_connection_ends() {
        let connections = HttpConnections::new(2);
        let (first, _second) = (connections.admit().await.unwrap(), connections.admit().await.unwrap());
        assert!(connections.admit().await.is_err(), "no request is interrupted");
        assert_eq!(connections.count(), 2);
        drop(first);
        assert_eq!(connections.count(), 1);
        connections.admit().await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn the_connection_that_is_idle_longest_makes_room() {
        let connections = HttpConnections::new(3);
        let permits = [(); 3].map(|()| connections.restore());
        let [first, second, third] = &permits;
        let idle_since_long = second.idle(true);
        let (idle, busy) = (third.idle(true), first);
        tokio::time::sleep(LEAST_IDLE_TIME).await;
        let mut room = std::pin::pin!(connections.admit());
        assert!(timeout(Duration::ZERO, room.as_mut()).await.is_err(), "it has not left yet");
        idle_since_long.must_leave().await;
        assert!(timeout(Duration::ZERO, idle.must_leave()).await.is_err(), "one is enough");
        // A request has come at that moment: it is answered, and the next one is told.
        drop(idle_since_long);
        assert!(timeout(Duration::ZERO, room.as_mut()).await.is_err());
        idle.must_leave().await;
        drop(idle);
        drop(busy.idle(true));
        drop(permits);
        let _permit = room.await.unwrap();
        assert_eq!(connections.count(), 1);
        let state = connections.0.lock();
        assert!(state.idle.iter().all(BTreeMap::is_empty) && state.leaving == 0);
    }

    #[tokio::test(start_paused = true)]
    async fn connections_that_are_never_idle_for_long_make_room_too() {
        let connections = HttpConnections::new(4);
        for _ in 0..4 {
            let permit = connections.restore();
            tokio::spawn(async move {
                loop {
                    let idle = permit.idle(true);
                    if timeout(LEAST_IDLE_TIME / 5, idle.must_leave()).await.is_ok() {
                        return;
                    }
                }
            });
        }
        for number in 0..4 {
            let started = Instant::now();
            let permit = connections.admit().await.expect("there is room soon");
            let most = if number == 0 { LEAST_IDLE_TIME * 2 } else { LEAST_IDLE_TIME / 2 };
            assert!(started.elapsed() < most, "{:?}", started.elapsed());
            // It has had no request yet, and the time to send one.
            tokio::spawn(async move {
                let idle = permit.idle(false);
                tokio::select! {
                    () = idle.must_leave() => panic!("it came last"),
                    () = tokio::time::sleep(LEAST_IDLE_TIME * 3 / 4) => {}
                }
            });
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_new_connection_does_not_wait_for_ever_for_others_that_keep_coming_and_going() {
        let connections = HttpConnections::new(1);
        let permit = connections.restore();
        tokio::spawn(async move {
            loop {
                // It has a request whenever it is told.
                drop(permit.idle(false));
                tokio::time::sleep(ROOM_TIMEOUT / 2).await;
            }
        });
        let started = Instant::now();
        assert!(connections.admit().await.is_err());
        assert!(started.elapsed() <= MOST_WAIT, "{:?}", started.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn where_no_descriptor_is_left_idle_connections_leave_some_to_others() {
        let connections = HttpConnections::new(100);
        let mut idle: Vec<_> = (0..10)
            .map(|_| {
                let permit = connections.restore();
                tokio::spawn(async move { permit.idle(false).must_leave().await })
            })
            .collect();
        yield_now().await;
        connections.no_descriptor_left();
        // It may be seen again before they are gone.
        connections.no_descriptor_left();
        for left in idle.drain(..LEFT_DESCRIPTORS) {
            left.await.unwrap();
        }
        yield_now().await;
        assert_eq!(connections.count(), 10 - LEFT_DESCRIPTORS);
        let newcomer = connections.admit().await.unwrap();
        assert_eq!(connections.count(), 10 - LEFT_DESCRIPTORS, "in the place of another one");
        drop(newcomer);
        idle.drain(..4).for_each(|task| task.abort());
        yield_now().await;
        let mut permits = Vec::new();
        for _ in 0..20 {
            permits.push(connections.admit().await.expect("the bound is the old one again"));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn connections_of_another_process_may_be_more_and_leave_when_others_come() {
        let connections = HttpConnections::new(2);
        let mut leaving: Vec<_> = (0..5)
            .map(|_| {
                let permit = connections.restore();
                tokio::spawn(async move {
                    let idle = permit.idle(true);
                    idle.must_leave().await;
                })
            })
            .collect();
        yield_now().await;
        assert_eq!(connections.count(), 5);
        let _permit = connections.admit().await.unwrap();
        assert_eq!(connections.count(), 2);
        for task in leaving.drain(..4) {
            task.await.unwrap();
        }
        assert!(!leaving[0].is_finished(), "the one that became idle last stays");
    }

    #[tokio::test(start_paused = true)]
    async fn as_long_as_requests_are_answered_a_new_connection_waits_for_one() {
        let connections = HttpConnections::new(8);
        for _ in 0..8 {
            let permit = connections.restore();
            tokio::spawn(async move {
                loop {
                    // A request that takes a while.
                    tokio::time::sleep(ROOM_TIMEOUT * 3 / 4).await;
                    let idle = permit.idle(true);
                    if timeout(2 * LEAST_IDLE_TIME, idle.must_leave()).await.is_ok() {
                        return;
                    }
                }
            });
        }
        for _ in 0..8 {
            let permit = connections.admit().await.expect("there is room soon");
            tokio::spawn(async move {
                tokio::time::sleep(ROOM_TIMEOUT).await;
                drop(permit);
            });
        }
    }
}
