//! A broker with faults, to see that nothing is lost without a word: it answers late and in another order,
//! fails, drops what it should deliver, and begins new epochs under live subscribers. It keeps the contract
//! of [`Broker`].
//!
//! Only builds with the feature `faults` have it: those of `cargo test`.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, VecDeque},
    fmt,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak},
    task::{Context, Poll, Waker},
    thread,
    time::{Duration, Instant},
};

use lastcall_core::{ChannelName, Epoch, Position, Publication};
use rand::{Rng, RngExt, SeedableRng, rngs::StdRng};
use tokio::sync::oneshot;

use crate::{
    Attach, Broker, BrokerError, BrokerFuture, ChannelInfo, Config, Delivery, HistoryPage, IdempotencyKey,
    MemoryBroker, PageLimit, Published, ReceiverSet, Since, Usage,
};

/// The faults of a broker: one of so many calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Faults {
    /// What happens is the same for the same seed, as far as the calls come in the same order.
    pub seed: u64,
    /// The longest time that a call waits before it begins, and again before it is answered.
    pub delay: Duration,
    /// Calls that do nothing and say so: one of so many.
    pub refuse: u32,
    /// Publications of which nobody says whether they were made: one of so many. Half of them are.
    pub forget: u32,
    /// Deliveries that are dropped, with a `reset` in their place: one of so many.
    pub drop: u32,
    /// Publications after which their channel begins a new epoch: one of so many.
    pub begin_epoch: u32,
}

impl Faults {
    /// Returns faults of all kinds that a server lives with.
    pub fn seeded(seed: u64) -> Self {
        let delay = Duration::from_millis(20);
        Self { seed, delay, refuse: 50, forget: 50, drop: 300, begin_epoch: 400 }
    }
}

/// Returns the memory broker, and what stands in front of it: with a seed, a broker with faults.
pub fn memory_broker(
    config: Config,
    delivery: Box<dyn Delivery>,
    seed: Option<u64>,
) -> (Arc<MemoryBroker>, Arc<dyn Broker>) {
    match seed {
        Some(seed) => {
            let (broker, memory) = FaultyBroker::new(config, delivery, Faults::seeded(seed));
            (memory, Arc::new(broker))
        }
        None => {
            let memory = Arc::new(MemoryBroker::new(config, delivery));
            (Arc::clone(&memory), memory)
        }
    }
}

/// The memory broker behind faults.
#[derive(Debug)]
pub struct FaultyBroker {
    memory: Arc<MemoryBroker>,
    faults: Faults,
    random: Mutex<StdRng>,
    queue: Arc<Queue>,
}

impl FaultyBroker {
    /// Returns a broker without channels, and the memory broker behind it.
    pub fn new(config: Config, delivery: Box<dyn Delivery>, faults: Faults) -> (Self, Arc<MemoryBroker>) {
        let mut random = StdRng::seed_from_u64(faults.seed);
        let of_delivery = Mutex::new(StdRng::seed_from_u64(random.next_u64()));
        let delivery = FaultyDelivery { delivery, drop: faults.drop, random: of_delivery };
        let memory = Arc::new(MemoryBroker::new(config, Box::new(delivery)));
        let queue = Arc::new(Queue::default());
        let weak = Arc::downgrade(&queue);
        thread::spawn(move || Queue::run(&weak));
        (Self { memory: Arc::clone(&memory), faults, random: Mutex::new(random), queue }, memory)
    }

    /// Returns true for one of so many calls.
    fn is_hit(&self, one_of: u32) -> bool {
        is_hit(&self.random, one_of)
    }

    fn delay(&self) -> Duration {
        // Most calls wait little, as they would for a server in the same rack.
        let mut random = lock(&self.random);
        let longest = self.faults.delay / if random.random_ratio(1, 10) { 1 } else { 10 };
        longest.mul_f64(random.random_range(0.0..=1.0))
    }

    /// Begins a call after those before it.
    fn begin(&self, call: impl FnOnce() + Send + 'static) {
        self.queue.push_call(self.delay(), Box::new(call));
    }

    /// Returns the answer to a call when it has come.
    fn answer<T: Send + 'static>(
        &self,
        call: impl FnOnce() -> Result<T, BrokerError> + Send + 'static,
    ) -> BrokerFuture<T> {
        let (queue, delay) = (Arc::clone(&self.queue), self.delay());
        let (answer, answered) = oneshot::channel();
        self.begin(move || {
            let result = call();
            // Answers come in another order than the calls.
            queue.push_answer(Instant::now() + delay, Box::new(move || drop(answer.send(result))));
        });
        // Each call is answered, unless the broker is dropped.
        Box::pin(async { answered.await.unwrap_or_else(|_| Err(unavailable())) })
    }
}

impl Broker for FaultyBroker {
    fn publish(
        &self,
        channel: &ChannelName,
        publications: Vec<Publication>,
        key: Option<IdempotencyKey>,
    ) -> BrokerFuture<Published> {
        let (memory, channel) = (Arc::clone(&self.memory), channel.clone());
        let is_refused = self.is_hit(self.faults.refuse);
        let is_forgotten = self.is_hit(self.faults.forget);
        let is_made = !is_forgotten || self.is_hit(2);
        let begins_epoch = self.is_hit(self.faults.begin_epoch);
        self.answer(move || {
            if is_refused {
                return Err(unavailable());
            }
            let made = is_made.then(|| now(memory.publish(&channel, publications, key)));
            if begins_epoch {
                memory.begin_epoch(&channel);
            }
            match made {
                Some(published) if !is_forgotten => published,
                _ => Err(BrokerError::OutcomeUnknown("a test has it say nothing".to_owned())),
            }
        })
    }

    fn subscribe(&self, channel: &ChannelName, since: Since, receiver: usize, attach: Attach) {
        let (memory, channel) = (Arc::clone(&self.memory), channel.clone());
        let is_refused = self.is_hit(self.faults.refuse);
        self.begin(move || match is_refused {
            true => attach(Err(unavailable())),
            false => memory.subscribe(&channel, since, receiver, attach),
        });
    }

    fn resume(&self, channel: &ChannelName, receiver: usize, subscriptions: usize) {
        self.memory.resume(channel, receiver, subscriptions);
    }

    fn unsubscribe(&self, channel: &ChannelName, receiver: usize, is_last: bool) {
        self.memory.unsubscribe(channel, receiver, is_last);
    }

    fn history(
        &self,
        channel: &ChannelName,
        since: Option<Position>,
        limit: PageLimit,
    ) -> BrokerFuture<HistoryPage> {
        let (memory, channel) = (Arc::clone(&self.memory), channel.clone());
        let is_refused = self.is_hit(self.faults.refuse);
        self.answer(move || match is_refused {
            true => Err(unavailable()),
            false => now(memory.history(&channel, since, limit)),
        })
    }

    fn channel(&self, name: &ChannelName) -> Option<ChannelInfo> {
        self.memory.channel(name)
    }

    fn channels(&self, after: Option<&ChannelName>, limit: usize) -> Vec<ChannelInfo> {
        self.memory.channels(after, limit)
    }

    fn set_paused(&self, paused: bool) {
        self.queue.set_paused(paused);
    }

    fn pins_too_much(&self) -> bool {
        self.memory.pins_too_much()
    }

    fn usage(&self) -> Usage {
        self.memory.usage()
    }
}

/// Drops a delivery now and then, and says so.
#[derive(Debug)]
struct FaultyDelivery {
    delivery: Box<dyn Delivery>,
    drop: u32,
    random: Mutex<StdRng>,
}

impl Delivery for FaultyDelivery {
    fn deliver(
        &self,
        channel: &ChannelName,
        epoch: Epoch,
        publications: &[Arc<Publication>],
        receivers: ReceiverSet,
    ) {
        if let Some(last) = publications.last().filter(|_| is_hit(&self.random, self.drop)) {
            self.delivery.reset(channel, Position { epoch, offset: last.offset }, receivers);
        } else {
            self.delivery.deliver(channel, epoch, publications, receivers);
        }
    }

    fn reset(&self, channel: &ChannelName, top: Position, receivers: ReceiverSet) {
        self.delivery.reset(channel, top, receivers);
    }
}

type Job = Box<dyn FnOnce() + Send>;

/// Calls and answers, which a thread begins when their time has come.
#[derive(Default)]
struct Queue {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// Calls begin in the order in which they came.
    calls: VecDeque<(Instant, Job)>,
    answers: BinaryHeap<Reverse<Answer>>,
    number: u64,
    paused: bool,
    /// True while a call or an answer runs.
    running: bool,
}

struct Answer {
    due: Instant,
    number: u64,
    job: Job,
}

impl Queue {
    fn push_call(&self, delay: Duration, job: Job) {
        lock(&self.state).calls.push_back((Instant::now() + delay, job));
        self.changed.notify_all();
    }

    fn push_answer(&self, due: Instant, job: Job) {
        let mut state = lock(&self.state);
        state.number += 1;
        let number = state.number;
        state.answers.push(Reverse(Answer { due, number, job }));
        self.changed.notify_all();
    }

    /// Begins no call while it is paused. Returns when none runs.
    fn set_paused(&self, paused: bool) {
        let mut state = lock(&self.state);
        state.paused = paused;
        self.changed.notify_all();
        while paused && state.running {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Runs what is due, until the broker is dropped.
    fn run(queue: &Weak<Self>) {
        /// The time for which the queue is held at once, so that it can be dropped.
        const HOLD: Duration = Duration::from_millis(50);
        while let Some(queue) = queue.upgrade() {
            let now = Instant::now();
            let mut state = lock(&queue.state);
            let job = state.take_due(now);
            state.running = job.is_some();
            queue.changed.notify_all();
            match job {
                Some(job) => {
                    drop(state);
                    job();
                }
                None => {
                    let wait =
                        state.next().map_or(HOLD, |next| next.saturating_duration_since(now).min(HOLD));
                    drop(queue.changed.wait_timeout(state, wait));
                }
            }
        }
    }
}

impl State {
    fn take_due(&mut self, now: Instant) -> Option<Job> {
        if self.answers.peek().is_some_and(|Reverse(answer)| answer.due <= now) {
            return self.answers.pop().map(|Reverse(answer)| answer.job);
        }
        let is_due = !self.paused && self.calls.front().is_some_and(|(due, _)| *due <= now);
        if is_due { self.calls.pop_front().map(|(_, job)| job) } else { None }
    }

    fn next(&self) -> Option<Instant> {
        let call = self.calls.front().filter(|_| !self.paused).map(|(due, _)| *due);
        call.into_iter().chain(self.answers.peek().map(|Reverse(answer)| answer.due)).min()
    }
}

impl fmt::Debug for Queue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Queue")
    }
}

impl Answer {
    fn key(&self) -> (Instant, u64) {
        (self.due, self.number)
    }
}

impl PartialEq for Answer {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}

impl Eq for Answer {}

impl PartialOrd for Answer {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Answer {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.key().cmp(&other.key())
    }
}

/// Returns the answer of the memory broker, which never waits.
fn now<T>(mut answer: BrokerFuture<T>) -> Result<T, BrokerError> {
    match answer.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(result) => result,
        Poll::Pending => unreachable!("the memory broker answers at once"),
    }
}

fn unavailable() -> BrokerError {
    BrokerError::Unavailable("a test has it fail".to_owned())
}

fn is_hit(random: &Mutex<StdRng>, one_of: u32) -> bool {
    one_of > 0 && lock(random).random_ratio(1, one_of)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
