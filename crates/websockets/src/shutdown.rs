//! The graceful shutdown, whole: a delay for load balancers, notice to all clients, time to leave, reminders,
//! closes that are spread, and at the deadline a close for all that are left.
//!
//! [`GracefulShutdown::run`] enters the phases `Withdrawing`, `Draining` and `Closing`, one after the other.
//! What runs meanwhile follows these.

use std::{future::Future, pin::Pin, time::Duration};

use humantime::format_duration;
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep, sleep_until, timeout};
use tracing::{info, warn};

use crate::{
    admission::ConnectionCounts, codec::CloseReason, manager::ConnectionManager, notice::ShutdownNotice,
};

/// The time beyond `close_timeout` to wait until the event loops have closed all sockets. They do it in their
/// next iteration. The bound matters only when a loop is stuck, or when the process was suspended meanwhile
/// and the loops still have to read the clients' answers.
pub const CLOSE_GRACE: Duration = Duration::from_secs(1);

/// The longest time between two log lines about the progress of a drain.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(60);

/// The settings of the graceful shutdown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ShutdownConfig {
    /// The time for which new connections are still admitted, so that load balancers notice that the server
    /// is not ready. Zero: there is no load balancer.
    pub delay: Duration,
    /// The time that the drain waits for the clients to leave.
    pub timeout: Duration,
    /// The time before the end of the drain in which the server closes connections one by one. Zero: at its
    /// end, all at once.
    pub spread: Duration,
    /// The time that a client has to answer a close frame: the event loops' own setting.
    pub close_timeout: Duration,
    /// Time between two notices to the same client; `None`: one notice.
    pub reminder_interval: Option<Duration>,
}

impl Default for ShutdownConfig {
    fn default() -> Self {
        Self {
            delay: Duration::ZERO,
            timeout: Duration::from_secs(30 * 60),
            spread: Duration::from_secs(60),
            close_timeout: Duration::from_secs(5),
            reminder_interval: None,
        }
    }
}

impl ShutdownConfig {
    /// Returns how long a shutdown takes at most, also when an event loop is stuck.
    pub fn max_duration(&self) -> Duration {
        self.delay + self.timeout + self.close_timeout + CLOSE_GRACE
    }
}

/// The reason for the end of a drain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum DrainEnd {
    /// All clients have left.
    Empty,
    /// The timeout has passed.
    Deadline,
    /// The operator does not want to wait any longer.
    Interrupted,
}

/// The graceful shutdown of one server.
#[derive(Debug)]
pub struct GracefulShutdown {
    manager: ConnectionManager,
    config: ShutdownConfig,
}

impl GracefulShutdown {
    /// Makes a shutdown, which begins with [`GracefulShutdown::run`].
    pub fn new(manager: ConnectionManager, config: ShutdownConfig) -> Self {
        Self { manager, config }
    }

    /// Shuts down: returns once no connection is left, or once the event loops should have closed all of
    /// them.
    ///
    /// `signal` is the name of the signal that asked for it, for the log. When `second_signal` is ready, the
    /// delay and the drain end, and the connections that are left are closed.
    pub async fn run(&self, signal: &'static str, second_signal: impl Future) {
        let mut interrupt = Interrupt { is_ready: false, future: Box::pin(second_signal) };
        if !self.config.delay.is_zero() {
            self.withdraw(signal, &mut interrupt).await;
        }
        let deadline = Instant::now() + self.config.timeout;
        let before = self.begin_drain(signal, deadline);
        let end = self.drain(before.connections, deadline, &mut interrupt).await;
        if end != DrainEnd::Empty {
            self.close(end).await;
        }
        log_end(before, self.manager.counts());
    }

    /// Reports that the process is not ready, and still admits connections for the delay.
    async fn withdraw(&self, signal: &'static str, interrupt: &mut Interrupt<impl Future>) {
        let ShutdownConfig { delay, timeout, .. } = self.config;
        self.manager.phases().enter_withdrawing((Instant::now() + delay + timeout).into_std());
        info!(
            signal,
            "no longer ready; serving new clients for {} more, while load balancers notice",
            format_duration(delay)
        );
        tokio::select! {
            () = sleep(delay) => {}
            () = interrupt.wait() => {}
        }
    }

    /// Admits no more connections and gives notice to all clients.
    fn begin_drain(&self, signal: &'static str, deadline: Instant) -> ConnectionCounts {
        let ShutdownConfig { delay, timeout, spread, close_timeout, .. } = self.config;
        let mut notice =
            ShutdownNotice::new(CloseReason::ServiceRestart.reason(), deadline.into_std(), spread);
        // With a delay, there is a load balancer, which sends the clients to another server at once.
        if delay.is_zero() {
            notice = notice.without_other_server(close_timeout);
        }
        let before = self.manager.begin_drain(notice);
        info!(
            clients = before.connections,
            timeout_seconds = timeout.as_secs_f64(),
            "drain started: all clients have been told"
        );
        match before.connections {
            0 => info!(signal, "no client is connected: stopping"),
            clients => info!(
                signal,
                "waiting up to {} for {} to leave; press Ctrl+C again (or send SIGTERM) to close {} now",
                format_duration(timeout),
                count(clients),
                count(clients)
            ),
        }
        before
    }

    /// Waits until the clients have left, until the deadline, or until it is interrupted. Meanwhile it
    /// reminds the clients, logs the progress, and closes connections one by one over the last part.
    async fn drain(
        &self,
        total: usize,
        deadline: Instant,
        interrupt: &mut Interrupt<impl Future>,
    ) -> DrainEnd {
        let ShutdownConfig { spread, reminder_interval, .. } = self.config;
        let mut counts = self.manager.watch();
        let mut progress = DrainProgress::new(total);
        let now = Instant::now();
        let mut progress_ticks = interval_at(now + PROGRESS_INTERVAL, PROGRESS_INTERVAL);
        // Without reminders, this interval is never polled.
        let every = reminder_interval.unwrap_or(PROGRESS_INTERVAL);
        let mut reminders = interval_at(now + every, every);
        reminders.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (at_deadline, at_spread) = (sleep_until(deadline), sleep_until(deadline - spread));
        // Without a spread, all connections are closed at the deadline.
        let mut spread_started = spread.is_zero();
        tokio::pin!(at_deadline, at_spread);
        loop {
            let clients = counts.borrow_and_update().connections;
            progress.log_tenths(clients);
            if clients == 0 {
                return DrainEnd::Empty;
            }
            tokio::select! {
                biased;
                () = interrupt.wait() => return DrainEnd::Interrupted,
                () = &mut at_deadline => return DrainEnd::Deadline,
                () = &mut at_spread, if !spread_started => {
                    spread_started = true;
                    // A third of a drain seldom is a whole number of milliseconds.
                    let millis = u64::try_from(spread.as_millis()).unwrap_or(u64::MAX);
                    let over = format_duration(Duration::from_millis(millis));
                    info!(clients, "closing the remaining clients one by one: {clients} over {over}");
                    self.manager.close_gradually(CloseReason::ServiceRestart, deadline.into_std());
                }
                // An error means that the manager is gone, and `self` holds it.
                _ = counts.changed() => {}
                _ = progress_ticks.tick() => progress.log(clients),
                _ = reminders.tick(), if reminder_interval.is_some() => self.manager.remind(),
            }
        }
    }

    /// Closes all connections and waits until they have ended: at most `close_timeout` and [`CLOSE_GRACE`].
    async fn close(&self, end: DrainEnd) {
        let close_timeout = self.config.close_timeout;
        let clients = self.manager.count();
        self.manager.close_all(CloseReason::ServiceRestart);
        let is_interrupted = end == DrainEnd::Interrupted;
        if is_interrupted {
            info!("second signal: not waiting any longer");
        } else {
            info!("the shutdown timeout has passed");
        }
        info!(
            "closing {}, within {}; press Ctrl+C {} (or send SIGTERM) to exit at once",
            count(clients),
            format_duration(close_timeout),
            if is_interrupted { "again" } else { "twice" }
        );
        // Two waits: if the process was suspended during the first, the second one still gives the loops
        // their time.
        if timeout(close_timeout, self.manager.wait_until_empty()).await.is_err()
            && timeout(CLOSE_GRACE, self.manager.wait_until_empty()).await.is_err()
        {
            warn!(
                clients = self.manager.count(),
                "some clients are still connected after close_timeout: they end with the process"
            );
        }
    }
}

/// A future that may be awaited several times: once it is ready, it stays so.
struct Interrupt<F> {
    is_ready: bool,
    future: Pin<Box<F>>,
}

impl<F: Future> Interrupt<F> {
    async fn wait(&mut self) {
        if !self.is_ready {
            self.future.as_mut().await;
            self.is_ready = true;
        }
    }
}

/// Logs how the connections of a drain ended.
fn log_end(before: ConnectionCounts, now: ConnectionCounts) {
    let closed = now.by_server.saturating_sub(before.by_server);
    let cut = now.forced.saturating_sub(before.forced).saturating_add(now.connections as u64);
    // Failed handshakes, too: the three add up to the connections at the start.
    let left = (before.connections as u64).saturating_sub(closed + cut);
    info!(
        left,
        closed, cut, "drain ended: {left} left by themselves, {closed} were closed, {cut} had to be cut"
    );
}

/// Logs the progress of a drain.
#[derive(Debug)]
struct DrainProgress {
    total: usize,
    /// Tenths of the clients that have left, as last logged.
    tenths: usize,
}

impl DrainProgress {
    fn new(total: usize) -> Self {
        Self { total, tenths: 0 }
    }

    /// Logs if another tenth of the clients has left since the last time.
    fn log_tenths(&mut self, clients: usize) {
        let tenths = (self.gone(clients) * 10).checked_div(self.total).unwrap_or(0);
        if tenths > self.tenths {
            self.tenths = tenths;
            self.log(clients);
        }
    }

    fn log(&self, clients: usize) {
        let (total, gone) = (self.total, self.gone(clients));
        info!(total, gone, clients, "drain progress: {gone} of {total} gone, {clients} still connected");
    }

    fn gone(&self, clients: usize) -> usize {
        self.total.saturating_sub(clients)
    }
}

fn count(clients: usize) -> String {
    match clients {
        1 => "1 client".to_owned(),
        n => format!("{n} clients"),
    }
}

#[cfg(test)]
mod tests;
