//! The graceful shutdown: notice at once, patience until the deadline, then a proper close.

use std::{
    future::Future,
    time::{Duration, Instant},
};

use humantime::format_duration;
use lastcall_core::settings::Settings;
use tokio::time::{Instant as TokioInstant, MissedTickBehavior, interval_at, sleep_until, timeout};
use tracing::{info, warn};

use crate::{
    admission::ConnectionCounts, codec::CloseReason, manager::ConnectionManager, notice::ShutdownNotice,
};

/// How much longer than `close_timeout` to wait for the event loops to have cut everyone off. They do it
/// in their own turn; this bound only matters when one is stuck, or when the process was stopped meanwhile and
/// they still have to read the answers.
const GRACE: Duration = Duration::from_secs(1);

const MINUTE: Duration = Duration::from_secs(60);

/// Why a drain ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DrainEnd {
    /// Everyone left.
    Empty,
    /// `shutdown_timeout` passed.
    Deadline,
    /// It was cut short.
    CutShort,
}

/// How the clients of a drain went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Summary {
    /// Left by themselves, or did not finish their handshake.
    pub left: u64,
    /// Were closed, and answered.
    pub closed: u64,
    /// Had to be cut off.
    pub cut: u64,
}

/// One shutdown of one server.
#[derive(Debug)]
pub struct GracefulShutdown {
    manager: ConnectionManager,
    notice: ShutdownNotice,
    timeout: Duration,
    /// Time before the deadline over which the closes are spread.
    spread: Duration,
    close_timeout: Duration,
    remind_every: Option<Duration>,
    before: ConnectionCounts,
}

impl GracefulShutdown {
    /// Admits no new connections any more, and counts the clients. What follows is [`GracefulShutdown::give_notice`].
    pub fn begin(manager: ConnectionManager, settings: &Settings) -> Self {
        let reason = CloseReason::ServiceRestart.reason();
        let mut notice = ShutdownNotice::new(reason, settings.shutdown_timeout, settings.shutdown_spread);
        // With a delay, there is a load balancer: it sends clients to another server at once.
        if settings.shutdown_delay.is_zero() {
            notice = notice.without_other_server(settings.close_timeout);
        }
        // No client comes after this count, and none has left because of the notice.
        let before = manager.stop_admitting();
        Self {
            manager,
            notice,
            timeout: settings.shutdown_timeout,
            spread: settings.shutdown_spread,
            close_timeout: settings.close_timeout,
            remind_every: settings.notification_interval,
            before,
        }
    }

    /// Gives all clients their first notice, and logs how many there are.
    pub fn give_notice(&self) {
        self.manager.give_notice(self.notice);
        info!(
            clients = self.before.connections,
            timeout_seconds = self.timeout.as_secs_f64(),
            "drain started: all clients have been told"
        );
    }

    /// Clients there were when new connections were no longer admitted.
    pub fn clients_at_start(&self) -> usize {
        self.before.connections
    }

    /// When those who stay are closed.
    pub fn deadline(&self) -> Instant {
        self.notice.deadline
    }

    /// Clients still there.
    pub fn clients(&self) -> usize {
        self.manager.count()
    }

    /// Waits until everyone left, the deadline passed, or `cut_short` is ready; reminds the clients, and
    /// logs how it goes, meanwhile. Towards the deadline, it closes those who stay one by one.
    pub async fn drain(&self, cut_short: impl Future) -> DrainEnd {
        let mut counts = self.manager.watch();
        let mut progress = Progress::new(self.before.connections);
        let now = TokioInstant::now();
        let mut minutes = interval_at(now + MINUTE, MINUTE);
        // Off: an interval that is never asked.
        let every = self.remind_every.unwrap_or(MINUTE);
        let mut reminders = interval_at(now + every, every);
        reminders.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let deadline = sleep_until(self.notice.deadline.into());
        let closing = sleep_until((self.notice.deadline - self.spread).into());
        // At the deadline all are closed at once, if there was no time to spread it over.
        let mut closing_started = self.spread.is_zero();
        tokio::pin!(cut_short, deadline, closing);
        loop {
            let clients = counts.borrow_and_update().connections;
            progress.tenths(clients);
            if clients == 0 {
                return DrainEnd::Empty;
            }
            tokio::select! {
                biased;
                _ = &mut cut_short => return DrainEnd::CutShort,
                () = &mut deadline => return DrainEnd::Deadline,
                () = &mut closing, if !closing_started => {
                    closing_started = true;
                    let over = format_duration(self.spread);
                    info!(clients, "closing the remaining clients one by one: {clients} over {over}");
                    self.manager.close_gradually(CloseReason::ServiceRestart, self.notice.deadline);
                }
                // Fails only when the manager is gone, and this holds it.
                _ = counts.changed() => {}
                _ = minutes.tick() => progress.log(clients),
                _ = reminders.tick(), if self.remind_every.is_some() => {
                    self.manager.give_notice(self.notice);
                }
            }
        }
    }

    /// Closes everyone who is left and waits until they are gone: at most `close_timeout`, and one second
    /// for event loops that are behind.
    pub async fn close(&self) {
        self.manager.close_all(CloseReason::ServiceRestart);
        // One after the other: when the process was stopped, the second one still begins after that.
        if timeout(self.close_timeout, self.manager.wait_until_empty()).await.is_err()
            && timeout(GRACE, self.manager.wait_until_empty()).await.is_err()
        {
            warn!(
                clients = self.manager.count(),
                "some clients could not even be cut off; they go with the process"
            );
        }
    }

    /// How they went; logs it.
    pub fn finish(&self) -> Summary {
        let now = self.manager.counts();
        let closed = now.by_server - self.before.by_server;
        let cut = now.forced - self.before.forced + now.connections as u64;
        // Those who never finished their handshake, too: the three add up to the clients at the start.
        let left = (self.before.connections as u64).saturating_sub(closed + cut);
        let summary = Summary { left, closed, cut };
        info!(
            left = summary.left,
            closed = summary.closed,
            cut = summary.cut,
            "drain ended: {} left by themselves, {} were closed, {} had to be cut",
            summary.left,
            summary.closed,
            summary.cut
        );
        summary
    }
}

/// Logs each tenth of the clients that went.
#[derive(Debug)]
struct Progress {
    total: usize,
    tenths: usize,
}

impl Progress {
    fn new(total: usize) -> Self {
        Self { total, tenths: 0 }
    }

    /// Logs when another tenth has gone since the last time; whether it did.
    fn tenths(&mut self, left: usize) -> bool {
        let gone = self.total.saturating_sub(left);
        let tenths = (gone * 10).checked_div(self.total).unwrap_or(0);
        let news = tenths > self.tenths;
        if news {
            self.tenths = tenths;
            self.log(left);
        }
        news
    }

    fn log(&self, clients: usize) {
        let gone = self.total.saturating_sub(clients);
        info!(
            total = self.total,
            gone, clients, "drain progress: {gone} of {} gone, {clients} still connected", self.total
        );
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use lastcall_core::settings::Sources;

    use super::*;
    use crate::manager::ManagerConfig;

    #[test]
    fn progress_is_told_once_for_every_tenth() {
        let mut progress = Progress::new(50);
        let told: Vec<_> = (0..=50).rev().filter(|left| progress.tenths(*left)).collect();
        assert_eq!(told, [45, 40, 35, 30, 25, 20, 15, 10, 5, 0]);
        let mut few = Progress::new(3);
        assert_eq!((0..3).rev().filter(|left| few.tenths(*left)).count(), 3);
    }

    /// What is logged, line by line.
    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl std::io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[tokio::test(start_paused = true)]
    async fn progress_is_told_each_minute() {
        let sources = Sources {
            working_dir: env!("CARGO_MANIFEST_DIR").into(),
            command_line: vec![("shutdown_timeout", "150".into()), ("close_timeout", "0.05".into())],
            ..Sources::default()
        };
        let settings = Settings::load(&sources).unwrap().settings;
        let manager = ConnectionManager::start(ManagerConfig::from(&settings)).unwrap();
        let stays = manager.admit().unwrap();
        let lines = Lines::default();
        let writer = lines.clone();
        let subscriber = tracing_subscriber::fmt().with_writer(move || writer.clone()).finish();
        let _logging = tracing::subscriber::set_default(subscriber);
        let shutdown = GracefulShutdown::begin(manager.clone(), &settings);
        shutdown.give_notice();
        assert_eq!(shutdown.drain(std::future::pending::<()>()).await, DrainEnd::Deadline);
        let log = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
        assert_eq!(log.matches("drain progress: 0 of 1 gone, 1 still connected").count(), 2, "{log}");
        shutdown.close().await;
        assert_eq!(shutdown.finish(), Summary { left: 0, closed: 0, cut: 1 });
        drop(stays);
        manager.stop();
    }
}
