//! Subscribers that stay connected, and how long publications take to them.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle, sleep},
    time::{Duration, Instant},
};

use anyhow::ensure;
use hdrhistogram::Histogram;

use super::{subject::Subject, subscribers::Subscribers};
use crate::publisher::Publisher;

/// How many there are, and publications a second to all of them.
const WATCHERS: usize = 100;
const RATE: u32 = 50;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Subscribers with threads of their own.
pub(super) struct Watchers {
    done: Arc<AtomicBool>,
    reading: JoinHandle<anyhow::Result<Vec<Delivery>>>,
    publishing: JoinHandle<anyhow::Result<()>>,
}

/// When a publication was sent, and how long it took, in nanoseconds.
struct Delivery {
    sent: u64,
    took: u64,
}

/// The deliveries of all watchers.
pub(super) struct Deliveries(Vec<Delivery>);

impl Watchers {
    /// Connects them, and publishes to them until they are stopped.
    pub(super) fn start(subject: Subject, address: SocketAddr, start: Instant) -> anyhow::Result<Self> {
        let channels = vec!["others".to_owned()];
        let mut watchers =
            Subscribers::new(subject, address, channels.iter().cloned().cycle().take(WATCHERS))?;
        (0..watchers.len()).try_for_each(|index| watchers.dial(index))?;
        let deadline = Instant::now() + CONNECT_TIMEOUT;
        ensure!(
            watchers.run_until(deadline, |all| all.counts.open == WATCHERS)?,
            "the watchers cannot connect"
        );
        let done = Arc::new(AtomicBool::new(false));
        let reading = thread::spawn({
            let done = Arc::clone(&done);
            move || {
                let mut deliveries = Vec::new();
                while !done.load(Ordering::Relaxed) {
                    watchers.turn(Duration::from_millis(20), |arrival| {
                        let now = start.elapsed().as_nanos() as u64;
                        deliveries
                            .push(Delivery { sent: arrival.sent, took: now.saturating_sub(arrival.sent) });
                    })?;
                }
                ensure!(watchers.counts.cut == 0, "{} watchers were cut off", watchers.counts.cut);
                Ok(deliveries)
            }
        });
        let publishing = thread::spawn({
            let done = Arc::clone(&done);
            let mut publisher = Publisher::connect(address, 1)?;
            move || {
                let mut sequence = 0;
                while !done.load(Ordering::Relaxed) {
                    sequence += 1;
                    publisher.post_each(subject.publications(&channels, sequence, start.elapsed()))?;
                    sleep(Duration::from_secs(1) / RATE);
                }
                Ok(())
            }
        });
        Ok(Self { done, reading, publishing })
    }

    /// Stops, and returns what has come.
    pub(super) fn stop(self) -> anyhow::Result<Deliveries> {
        self.done.store(true, Ordering::Relaxed);
        let panicked = |_| anyhow::anyhow!("a thread of the watchers has panicked");
        self.publishing.join().map_err(panicked)??;
        Ok(Deliveries(self.reading.join().map_err(panicked)??))
    }
}

impl Deliveries {
    /// Returns the 99th percentile of what was sent in this time since the start, in milliseconds.
    pub(super) fn p99(&self, from: Duration, to: Duration) -> anyhow::Result<f64> {
        let mut times = Histogram::<u64>::new(3)?;
        for delivery in &self.0 {
            if (from..to).contains(&Duration::from_nanos(delivery.sent)) {
                times.record(delivery.took)?;
            }
        }
        ensure!(!times.is_empty(), "nothing came to the watchers between {from:?} and {to:?}");
        Ok(times.value_at_quantile(0.99) as f64 / 1e6)
    }
}
