//! The budget for clients' texts: how fast they are published. A text goes to all clients: without a limit,
//! one client that sends as fast as it can fills the queues of all clients that read more slowly.
//!
//! There are two token buckets, kept as the time at which they are full again (the generic cell rate
//! algorithm, ITU-T I.371): one for each client, and one for all clients together. A client that exceeds its
//! own is throttled: it is not read from for a while, and TCP slows it down. Nothing is dropped, and no
//! client is closed.

use std::{
    sync::atomic::{AtomicU64, AtomicUsize, Ordering},
    time::{Duration, Instant},
};

/// A client that has sent nothing for this long may send at once what its rate allows in this time.
const CLIENT_BURST: Duration = Duration::from_secs(2);

/// The part of the total rate that throttled clients share. The rest is for the others, so that they need not
/// wait.
const THROTTLED_SHARE: f64 = 0.75;

/// The limits, in bytes of frames as every client receives them.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rates {
    /// Bytes a second from one client; `None`: no limit.
    pub(crate) client: Option<u64>,
    /// Bytes a second from all clients; `None`: no limit.
    pub(crate) total: Option<u64>,
    /// Bytes at once from all clients.
    pub(crate) burst: usize,
}

impl Rates {
    /// Returns true if there is any limit.
    pub(crate) fn are_bounded(&self) -> bool {
        self.client.is_some() || self.total.is_some()
    }
}

/// The budget of all clients; the event loops share it.
#[derive(Debug)]
pub(crate) struct Budget {
    /// Bytes a second for one client.
    client: Option<f64>,
    total: Option<Total>,
    /// Clients that are throttled now.
    throttled: AtomicUsize,
    start: Instant,
}

#[derive(Debug)]
struct Total {
    /// Bytes a second.
    rate: f64,
    /// The burst, as the nanoseconds that it takes at this rate.
    burst: u64,
    /// The moment at which the bucket is full again, in nanoseconds since the budget's start.
    full_at: AtomicU64,
}

/// The budget of one client: the moment at which its bucket is full again, in nanoseconds since the budget's
/// start.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct ClientBudget(u64);

impl Budget {
    pub(crate) fn new(rates: Rates, start: Instant) -> Self {
        let total = rates.total.map(|rate| {
            let rate = rate as f64;
            Total { rate, burst: nanos(rates.burst, rate), full_at: AtomicU64::new(0) }
        });
        Self { client: rates.client.map(|rate| rate as f64), total, throttled: AtomicUsize::new(0), start }
    }

    /// Charges a client, and all clients together, for the bytes that it has sent. Returns how long not to
    /// read from it, if it has exceeded its budget.
    pub(crate) fn charge(&self, client: &mut ClientBudget, now: Instant, bytes: usize) -> Option<Duration> {
        let now = self.since_start(now);
        let is_strained = self.total.as_ref().is_some_and(|total| total.charge(now, bytes));
        client.0 = client.0.max(now).saturating_add(nanos(bytes, self.fair_rate()?));
        // If the total is nearly used up, only the clients that send wait; otherwise all would have to.
        over(client.0, now, if is_strained { 0 } else { CLIENT_BURST.as_nanos() as u64 })
    }

    /// Returns how long not to read from any client, if all clients together have exceeded the budget.
    pub(crate) fn wait(&self, now: Instant) -> Option<Duration> {
        let Total { burst, full_at, .. } = self.total.as_ref()?;
        over(full_at.load(Ordering::Relaxed), self.since_start(now), *burst)
    }

    /// Counts a client as throttled from now on.
    pub(crate) fn add_throttled(&self) {
        self.throttled.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a client as throttled no longer.
    pub(crate) fn remove_throttled(&self) {
        // Never an error: it always gives a number.
        let _ =
            self.throttled.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| Some(n.saturating_sub(1)));
    }

    /// Returns how many clients are throttled.
    #[cfg(test)]
    pub(crate) fn throttled(&self) -> usize {
        self.throttled.load(Ordering::Relaxed)
    }

    /// Returns the bytes a second for one client, given how many others are throttled.
    fn fair_rate(&self) -> Option<f64> {
        let clients = self.throttled.load(Ordering::Relaxed) + 1;
        let share = self.total.as_ref().map(|total| total.rate * THROTTLED_SHARE / clients as f64);
        [self.client, share].into_iter().flatten().reduce(f64::min)
    }

    fn since_start(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.start).as_nanos()).unwrap_or(u64::MAX)
    }
}

impl Total {
    /// Charges the total. Returns true if more than half of the burst is used up.
    fn charge(&self, now: u64, bytes: usize) -> bool {
        let cost = nanos(bytes, self.rate);
        let charged = |full_at: u64| full_at.max(now).saturating_add(cost);
        let update = |full_at: u64| Some(charged(full_at));
        // `update` always returns a value, so both variants hold the one before.
        let (Ok(before) | Err(before)) =
            self.full_at.fetch_update(Ordering::Relaxed, Ordering::Relaxed, update);
        charged(before).saturating_sub(now) > self.burst / 2
    }
}

/// Returns how many nanoseconds these bytes take at this rate.
fn nanos(bytes: usize, rate: f64) -> u64 {
    // The conversion saturates.
    (bytes as f64 * 1e9 / rate) as u64
}

/// Returns how long until a bucket that is full at `full_at` may be used again, if it may not be now.
fn over(full_at: u64, now: u64, burst: u64) -> Option<Duration> {
    let over = full_at.saturating_sub(now).saturating_sub(burst);
    (over > 0).then(|| Duration::from_nanos(over))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const KIB: u64 = 1024;
    const RATES: Rates =
        Rates { client: Some(64 * KIB), total: Some(512 * KIB), burst: (256 * KIB) as usize };

    /// Has clients send `size` bytes at a time as fast as the budget allows. Returns how many bytes each has
    /// sent.
    fn flood(rates: Rates, clients: usize, size: usize, time: Duration) -> Vec<u64> {
        let start = Instant::now();
        let budget = Budget::new(rates, start);
        let mut all = vec![(ClientBudget::default(), Duration::ZERO, false, 0_u64); clients];
        let mut now = Duration::ZERO;
        while now < time {
            for (used, until, throttled, sent) in &mut all {
                if *until > now || budget.wait(start + now).is_some() {
                    continue;
                }
                if std::mem::take(throttled) {
                    budget.remove_throttled();
                }
                *sent += size as u64;
                if let Some(wait) = budget.charge(used, start + now, size) {
                    *until = now + wait;
                    *throttled = true;
                    budget.add_throttled();
                }
            }
            now += Duration::from_millis(1);
        }
        all.into_iter().map(|(.., sent)| sent).collect()
    }

    #[test]
    fn a_gauge_never_falls_below_none() {
        let budget = Budget::new(RATES, Instant::now());
        budget.remove_throttled();
        assert_eq!(budget.throttled(), 0);
        budget.add_throttled();
        assert_eq!(budget.throttled(), 1);
    }

    #[test]
    fn one_client_gets_its_rate_and_a_burst() {
        let sent = flood(RATES, 1, 1000, Duration::from_secs(60));
        let expected = 64 * KIB * (60 + 2);
        assert!(sent[0].abs_diff(expected) <= 2000, "{sent:?}");
    }

    #[test]
    fn many_clients_share_the_rate_evenly() {
        for clients in [3, 10, 100] {
            let [before, after] =
                [60, 120].map(|secs| flood(RATES, clients, 1000, Duration::from_secs(secs)));
            // The second minute: all have used up their bursts.
            let sent: Vec<_> = after.iter().zip(&before).map(|(after, before)| after - before).collect();
            let all: u64 = sent.iter().sum();
            let share = 64 * KIB * clients as u64;
            let (least, most) = (share.min(384 * KIB) * 57, share.min(512 * KIB) * 60 + 256 * KIB);
            assert!((least..=most).contains(&all), "{all} of {least} to {most}");
            let (least, greatest) = (sent.iter().min().unwrap(), sent.iter().max().unwrap());
            assert!(greatest - least <= all / clients as u64 / 4, "{sent:?}");
        }
    }

    #[test]
    fn without_bounds_no_client_waits() {
        let rates = Rates { client: None, total: None, burst: 0 };
        assert!(!rates.are_bounded());
        assert_eq!(flood(rates, 1, 1 << 20, Duration::from_millis(100)), [100 << 20]);
    }

    #[test]
    fn a_client_that_sends_little_is_not_throttled_by_a_flood() {
        let start = Instant::now();
        let budget = Budget::new(RATES, start);
        for _ in 0..100 {
            budget.add_throttled();
        }
        let mut client = ClientBudget::default();
        for second in 0..60 {
            let now = start + Duration::from_secs(second);
            assert_eq!(budget.charge(&mut client, now, 200), None);
        }
    }

    proptest! {
        #[test]
        fn all_clients_together_never_exceed_the_total_rate_and_its_burst(
            clients in 1..40_usize,
            size in 1..200_000_usize,
            client in prop::option::of(KIB..10_000 * KIB),
            total in KIB..2_000 * KIB,
        ) {
            let rates = Rates { client, total: Some(total), ..RATES };
            let seconds = 10;
            let sent: u64 = flood(rates, clients, size, Duration::from_secs(seconds)).iter().sum();
            let most = total * seconds + rates.burst as u64 + size as u64;
            prop_assert!(sent <= most, "{} of {}", sent, most);
        }
    }
}
