use std::{
    fmt,
    future::{pending, ready},
    io::Read,
    sync::{Arc, Mutex},
};

use lastcall_core::phase::Phase;
use tokio::net::{TcpListener, TcpStream};
use tracing::{
    Event, Subscriber,
    field::{Field, Visit},
};
use tracing_subscriber::{Layer, layer::Context, prelude::*};

use lastcall_core::{ChannelName, Publication, Publisher};

use super::*;
use crate::{
    admission::{AdmitError, Permit},
    handshake::Handshake,
    manager::tests::memory_broker,
    manager::{ManagerConfig, PublishError, PublishRequest},
    phases::Phases,
    vital_tasks::VitalTasks,
};

/// The log lines, each with the second at which it was written, by the paused clock.
#[derive(Clone)]
struct Log {
    start: Instant,
    lines: Arc<Mutex<Vec<(u64, String)>>>,
}

impl Log {
    /// Records the lines of this thread until the guard is dropped.
    fn record() -> (Self, tracing::subscriber::DefaultGuard) {
        let log = Self { start: Instant::now(), lines: Arc::default() };
        let guard = tracing_subscriber::registry().with(log.clone()).set_default();
        (log, guard)
    }

    fn lines(&self) -> Vec<(u64, String)> {
        self.lines.lock().unwrap().clone()
    }

    #[track_caller]
    fn assert_lines(&self, expected: &[(u64, &str)]) {
        let lines = self.lines();
        let lines: Vec<_> = lines.iter().map(|(second, line)| (*second, line.as_str())).collect();
        assert_eq!(lines, expected);
    }
}

impl<S: Subscriber> Layer<S> for Log {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        struct Message(String);
        impl Visit for Message {
            fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
                if field.name() == "message" {
                    self.0 = format!("{value:?}");
                }
            }
        }
        let mut message = Message(String::new());
        event.record(&mut message);
        self.lines.lock().unwrap().push((self.start.elapsed().as_secs(), message.0));
    }
}

const CONFIG: ShutdownConfig = ShutdownConfig {
    delay: Duration::ZERO,
    timeout: Duration::from_secs(30),
    spread: Duration::from_secs(10),
    close_timeout: Duration::from_secs(5),
    reminder_interval: None,
};

/// Returns a manager that serves.
fn manager() -> ConnectionManager {
    let phases = Phases::default();
    phases.enter(Phase::Serving);
    let config = ManagerConfig { event_loops: 1, ..ManagerConfig::default() };
    ConnectionManager::start(config, phases, VitalTasks::default(), memory_broker).unwrap().0
}

fn permits(manager: &ConnectionManager, count: usize) -> Vec<Permit> {
    (0..count).map(|_| manager.admit().unwrap()).collect()
}

#[tokio::test(start_paused = true)]
async fn a_server_without_clients_stops_at_once() {
    let manager = manager();
    let (log, _recording) = Log::record();
    GracefulShutdown::new(manager.clone(), CONFIG).run("SIGTERM", pending::<()>()).await;
    log.assert_lines(&[
        (0, "phase changed from serving to draining"),
        (0, "drain started: all clients have been told"),
        (0, "no client is connected: stopping"),
        (0, "drain ended: 0 left by themselves, 0 were closed, 0 had to be cut"),
    ]);
    assert_eq!(manager.phases().now(), Phase::Draining);
    manager.stop();
}

#[tokio::test(start_paused = true)]
async fn clients_that_leave_end_the_drain_and_each_tenth_is_logged_once() {
    let manager = manager();
    let mut clients = permits(&manager, 20);
    let (log, _recording) = Log::record();
    let shutdown = GracefulShutdown::new(manager.clone(), CONFIG);
    let leave = async {
        while clients.pop().is_some() {
            sleep(Duration::from_millis(500)).await;
        }
        pending::<()>().await;
    };
    tokio::select! {
        biased;
        () = shutdown.run("SIGTERM", pending::<()>()) => {}
        () = leave => {}
    }
    let lines = log.lines();
    let progress: Vec<_> = lines.iter().filter(|(_, line)| line.starts_with("drain progress")).collect();
    assert_eq!(progress.len(), 10, "{lines:?}");
    assert_eq!(progress[0].1, "drain progress: 2 of 20 gone, 18 still connected");
    let (second, last) = lines.last().unwrap();
    assert_eq!(
        (*second, last.as_str()),
        (9, "drain ended: 20 left by themselves, 0 were closed, 0 had to be cut")
    );
    assert_eq!(manager.phases().now(), Phase::Draining);
    manager.stop();
}

#[tokio::test(start_paused = true)]
async fn clients_that_stay_are_closed_one_by_one_and_then_all_at_the_deadline() {
    let manager = manager();
    let clients = permits(&manager, 2);
    let (log, _recording) = Log::record();
    GracefulShutdown::new(manager.clone(), CONFIG).run("SIGINT", pending::<()>()).await;
    // The permits belong to no connection, so the event loops close none of them.
    log.assert_lines(&[
        (0, "phase changed from serving to draining"),
        (0, "drain started: all clients have been told"),
        (0, "waiting up to 30s for 2 clients to leave; press Ctrl+C again (or send SIGTERM) to close 2 clients now"),
        (20, "closing the remaining clients one by one: 2 over 10s"),
        (30, "phase changed from draining to closing"),
        (30, "the shutdown timeout has passed"),
        (30, "closing 2 clients, within 5s; press Ctrl+C twice (or send SIGTERM) to exit at once"),
        (36, "some clients are still connected after close_timeout: they end with the process"),
        (36, "drain ended: 0 left by themselves, 0 were closed, 2 had to be cut"),
    ]);
    assert_eq!(manager.phases().now(), Phase::Closing);
    drop(clients);
    manager.stop();
}

#[tokio::test(start_paused = true)]
async fn without_a_spread_all_clients_are_closed_at_the_deadline() {
    let manager = manager();
    let clients = permits(&manager, 1);
    let (log, _recording) = Log::record();
    let config = ShutdownConfig { spread: Duration::ZERO, ..CONFIG };
    GracefulShutdown::new(manager.clone(), config).run("SIGTERM", pending::<()>()).await;
    let lines = log.lines();
    assert!(lines.iter().all(|(_, line)| !line.contains("one by one")), "{lines:?}");
    assert!(lines.contains(&(30, "the shutdown timeout has passed".into())), "{lines:?}");
    drop(clients);
    manager.stop();
}

#[tokio::test(start_paused = true)]
async fn a_second_signal_ends_the_drain() {
    let manager = manager();
    let clients = permits(&manager, 1);
    let (log, _recording) = Log::record();
    let second_signal = sleep(Duration::from_secs(3));
    GracefulShutdown::new(manager.clone(), CONFIG).run("SIGTERM", second_signal).await;
    let lines = log.lines();
    let after: Vec<_> = lines.iter().map(|(at, line)| (*at, line.as_str())).skip(3).take(3).collect();
    let expected = [
        (3, "phase changed from draining to closing"),
        (3, "second signal: not waiting any longer"),
        (3, "closing 1 client, within 5s; press Ctrl+C again (or send SIGTERM) to exit at once"),
    ];
    assert_eq!(after, expected);
    assert_eq!(manager.phases().state().time_left(), Some(Duration::ZERO));
    drop(clients);
    manager.stop();
}

#[tokio::test(start_paused = true)]
async fn a_second_signal_during_the_delay_ends_the_drain_too() {
    let manager = manager();
    let clients = permits(&manager, 1);
    let (log, _recording) = Log::record();
    let config = ShutdownConfig { delay: Duration::from_secs(15), ..CONFIG };
    GracefulShutdown::new(manager.clone(), config).run("SIGTERM", ready(())).await;
    let lines = log.lines();
    assert!(lines.contains(&(0, "second signal: not waiting any longer".into())), "{lines:?}");
    drop(clients);
    manager.stop();
}

#[tokio::test(start_paused = true)]
async fn connections_are_admitted_during_the_delay_and_refused_after_it() {
    let manager = manager();
    let (log, _recording) = Log::record();
    let config = ShutdownConfig { delay: Duration::from_secs(15), ..CONFIG };
    let shutdown = GracefulShutdown::new(manager.clone(), config);
    let client = async {
        let phases = manager.phases();
        let withdrawing = phases.reached(Phase::Withdrawing).await;
        assert_eq!(withdrawing.phase, Phase::Withdrawing);
        assert!(withdrawing.time_left().unwrap() > Duration::from_secs(40), "delay and timeout");
        let permit = manager.admit().unwrap();
        let draining = phases.reached(Phase::Draining).await;
        assert_eq!(draining.drain_connections, Some(1));
        assert_eq!(manager.admit().unwrap_err(), AdmitError::Draining);
        drop(permit);
        pending::<()>().await;
    };
    tokio::select! {
        () = shutdown.run("SIGTERM", pending::<()>()) => {}
        () = client => {}
    }
    let lines = log.lines();
    assert_eq!(
        lines[..2],
        [
            (0, "phase changed from serving to withdrawing".into()),
            (0, "no longer ready; serving new clients for 15s more, while load balancers notice".into()),
        ]
    );
    assert_eq!(lines[2], (15, "phase changed from withdrawing to draining".into()));
    manager.stop();
}

#[tokio::test(start_paused = true)]
async fn progress_is_logged_each_minute() {
    let manager = manager();
    let clients = permits(&manager, 1);
    let (log, _recording) = Log::record();
    let config = ShutdownConfig { timeout: Duration::from_secs(150), ..CONFIG };
    GracefulShutdown::new(manager.clone(), config).run("SIGTERM", pending::<()>()).await;
    let lines = log.lines();
    let progress = lines.iter().filter(|(_, line)| line == "drain progress: 0 of 1 gone, 1 still connected");
    assert_eq!(progress.map(|(at, _)| *at).collect::<Vec<_>>(), [60, 120], "{lines:?}");
    drop(clients);
    manager.stop();
}

#[tokio::test(start_paused = true)]
async fn a_client_gets_the_notice_its_reminders_and_a_close() {
    let manager = manager();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (client, accepted) =
        tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
    let server = accepted.unwrap().0;
    manager.connect(manager.admit().unwrap(), server, Handshake::default()).unwrap();
    // Reminders after 8, 16 and 24 seconds. The clock of the event loops is not paused: none of the spread
    // closes is due.
    let config = ShutdownConfig { reminder_interval: Some(Duration::from_secs(8)), ..CONFIG };
    GracefulShutdown::new(manager.clone(), config).run("SIGTERM", pending::<()>()).await;
    manager.stop();
    let mut client = client.unwrap().into_std().unwrap();
    client.set_nonblocking(false).unwrap();
    client.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let mut received = Vec::new();
    client.read_to_end(&mut received).unwrap();
    let text = String::from_utf8_lossy(&received);
    // The first one, three reminders, and one before the close.
    let notices = text.matches(r#""type":"shutdown""#).count();
    assert_eq!(notices, 5, "{text}");
    assert!(received.ends_with(b"\x03\xF4service restart"), "{text}");
}

#[tokio::test(start_paused = true)]
async fn notifications_are_published_during_the_drain_and_refused_once_it_closes() {
    let manager = manager();
    let clients = permits(&manager, 1);
    let data = serde_json::value::to_raw_value(&1).unwrap();
    let publish = || async {
        let publications = vec![Publication::new(Publisher::Api, data.clone())];
        let request = PublishRequest { channel: ChannelName::broadcast(), publications, key: None };
        manager.publish_all(vec![request], Duration::from_secs(10)).await
    };
    let shutdown = GracefulShutdown::new(manager.clone(), CONFIG);
    let check = async {
        manager.phases().reached(Phase::Draining).await;
        assert!(publish().await.is_ok());
        manager.phases().reached(Phase::Closing).await;
        assert_eq!(publish().await, Err(PublishError::Closing));
        drop(clients);
        pending::<()>().await;
    };
    tokio::select! {
        () = shutdown.run("SIGTERM", pending::<()>()) => {}
        () = check => {}
    }
    manager.stop();
}
