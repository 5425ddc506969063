use std::{
    future::Future,
    sync::{Arc, Mutex},
};

use lastcall_broker::memory_broker;
use lastcall_websockets::ManagerConfig;
use tokio::{sync::mpsc, task::JoinHandle};

use tokio::time::{Duration, sleep};

use super::*;
use crate::UpgradeFailed;
use crate::hooks::BoxError;

/// What happened, in order.
#[derive(Debug, Clone, Default)]
struct Events(Arc<Mutex<Vec<String>>>);

impl Events {
    fn push(&self, event: impl Into<String>) {
        self.0.lock().unwrap().push(event.into());
    }

    fn all(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }
}

/// What an upgrade is to do.
#[derive(Debug, Clone, Copy)]
enum Request {
    Fail,
    Succeed,
    /// Fail once a signal interrupts it.
    FailWhenInterrupted,
    /// Succeed although a signal interrupts it.
    SucceedWhenInterrupted,
}

struct FakeUpgrade {
    requests: mpsc::Receiver<Request>,
    events: Events,
}

const NEW_PROCESS: NewProcess = NewProcess { pid: 4242, is_main: true };

/// No service manager was told that it is the main process.
const NOT_FOLLOWED: NewProcess = NewProcess { is_main: false, ..NEW_PROCESS };

impl Upgrade for FakeUpgrade {
    type Request = Request;

    async fn next_request(&mut self) -> Request {
        match self.requests.recv().await {
            Some(request) => request,
            None => std::future::pending().await,
        }
    }

    async fn upgrade(
        &mut self,
        request: Request,
        interrupted: impl Future,
    ) -> Result<NewProcess, UpgradeFailed> {
        self.events.push(format!("upgrade: {request:?}"));
        if matches!(request, Request::FailWhenInterrupted | Request::SucceedWhenInterrupted) {
            interrupted.await;
        }
        matches!(request, Request::Succeed | Request::SucceedWhenInterrupted)
            .then_some(NEW_PROCESS)
            .ok_or(UpgradeFailed)
    }

    async fn refuse(&mut self, request: Request, reason: &str) {
        self.events.push(format!("refused: {request:?}: {reason}"));
    }
}

/// A process that serves.
struct Process {
    manager: ConnectionManager,
    phases: Phases,
    signals: Signals,
    requests: mpsc::Sender<Request>,
    events: Events,
    life: JoinHandle<ExitReason>,
}

fn hooks(events: &Events, stops: Result<(), &'static str>) -> Hooks {
    let part = |hooks: Hooks, name: &'static str| {
        let events = events.clone();
        hooks.add(name, Duration::from_secs(5), async move {
            events.push(format!("+{name}"));
            Ok(async move {
                events.push(format!("-{name}"));
                stops.map_err(BoxError::from)
            })
        })
    };
    part(part(Hooks::default(), "loops"), "http")
}

impl Process {
    /// Starts a process whose shutdown hooks return `stops`.
    async fn start(stops: Result<(), &'static str>) -> Self {
        let (phases, signals, events) = (Phases::default(), Signals::new(false), Events::default());
        let config = ManagerConfig { event_loops: 1, ..ManagerConfig::default() };
        let (manager, _) =
            ConnectionManager::start(config, phases.clone(), VitalTasks::default(), |delivery| {
                memory_broker(lastcall_broker::Config::default(), delivery, None).1
            })
            .unwrap();
        let hooks = hooks(&events, stops);
        let lifecycle =
            Lifecycle::start(hooks, phases.clone(), signals.clone(), ServiceManager::default(), false)
                .await
                .unwrap();
        assert_eq!(phases.now(), Phase::Serving);
        let (requests, receiver) = mpsc::channel(1);
        let mut upgrade = FakeUpgrade { requests: receiver, events: events.clone() };
        let life = tokio::spawn({
            let manager = manager.clone();
            async move { lifecycle.run(manager, ShutdownConfig::default(), &mut upgrade).await }
        });
        Self { manager, phases, signals, requests, events, life }
    }

    /// Waits until the process has ended, and returns why and what has happened.
    async fn ended(self) -> (ExitReason, Vec<String>) {
        let reason = self.life.await.unwrap();
        self.manager.stop();
        (reason, self.events.all())
    }
}

#[tokio::test(start_paused = true)]
async fn a_signal_drains_and_stops_the_parts_in_reverse_order() {
    let process = Process::start(Ok(())).await;
    let client = process.manager.admit().unwrap();
    process.signals.forwarded(Signal::Terminate);
    process.phases.reached(Phase::Draining).await;
    assert_eq!(process.events.all(), ["+loops", "+http"], "the parts run during the drain");
    drop(client);
    let phases = process.phases.clone();
    let (reason, events) = process.ended().await;
    assert_eq!(reason, ExitReason::Graceful);
    assert_eq!(events, ["+loops", "+http", "-http", "-loops"]);
    assert_eq!(phases.now(), Phase::Stopped);
}

#[tokio::test(start_paused = true)]
async fn a_signal_that_asks_for_nothing_does_not_end_the_process() {
    let process = Process::start(Ok(())).await;
    process.signals.forwarded(Signal::User1);
    sleep(Duration::from_secs(3600)).await;
    assert_eq!(process.phases.now(), Phase::Serving);
    process.signals.forwarded(Signal::Interrupt);
    assert_eq!(process.ended().await.0, ExitReason::Graceful);
}

#[tokio::test(start_paused = true)]
async fn the_second_signal_closes_the_connections_and_the_third_ends_the_process() {
    let process = Process::start(Ok(())).await;
    let _client = process.manager.admit().unwrap();
    process.signals.forwarded(Signal::Terminate);
    process.phases.reached(Phase::Draining).await;
    process.signals.forwarded(Signal::Terminate);
    process.phases.reached(Phase::Closing).await;
    process.signals.forwarded(Signal::Interrupt);
    let (reason, events) = process.ended().await;
    assert_eq!(reason, ExitReason::Immediate(Signal::Interrupt));
    assert_eq!(events, ["+loops", "+http"], "nothing is stopped in order");
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_hook_that_fails_is_reported() {
    let process = Process::start(Err("no")).await;
    process.signals.forwarded(Signal::Terminate);
    assert_eq!(process.ended().await.0, ExitReason::Failed);
}

#[tokio::test(start_paused = true)]
async fn a_vital_task_that_fails_closes_the_connections_and_ends_the_process() {
    let process = Process::start(Ok(())).await;
    let client = process.manager.admit().unwrap();
    process.manager.vital_tasks().fail("a task");
    process.phases.reached(Phase::Closing).await;
    drop(client);
    let (reason, events) = process.ended().await;
    assert_eq!(reason, ExitReason::Failed);
    assert_eq!(events, ["+loops", "+http", "-http", "-loops"]);
}

#[tokio::test(start_paused = true)]
async fn a_startup_hook_that_fails_leaves_the_process_starting() {
    let (phases, events) = (Phases::default(), Events::default());
    let hooks = hooks(&events, Ok(())).add("last", Duration::from_secs(5), async {
        Err::<std::future::Pending<Result<(), BoxError>>, _>("no".into())
    });
    let started =
        Lifecycle::start(hooks, phases.clone(), Signals::new(false), ServiceManager::default(), false).await;
    assert_eq!(started.err().unwrap().to_string(), "cannot start last");
    assert_eq!(phases.now(), Phase::Starting);
    assert_eq!(events.all(), ["+loops", "+http", "-http", "-loops"]);
}

#[tokio::test(start_paused = true)]
async fn a_successful_upgrade_ends_the_process_without_a_drain() {
    let process = Process::start(Ok(())).await;
    let _client = process.manager.admit().unwrap();
    process.requests.send(Request::Fail).await.unwrap();
    process.requests.send(Request::Succeed).await.unwrap();
    let phases = process.phases.clone();
    let (reason, events) = process.ended().await;
    assert_eq!(reason, ExitReason::HandedOver(NOT_FOLLOWED));
    assert_eq!(events, ["+loops", "+http", "upgrade: Fail", "upgrade: Succeed", "-http", "-loops"]);
    assert_eq!((phases.now(), phases.state().drain_connections), (Phase::Stopped, None));
}

#[tokio::test(start_paused = true)]
async fn a_signal_interrupts_an_upgrade_and_ends_the_process() {
    for (request, expected) in [
        (Request::FailWhenInterrupted, ExitReason::Graceful),
        (Request::SucceedWhenInterrupted, ExitReason::HandedOver(NOT_FOLLOWED)),
    ] {
        let process = Process::start(Ok(())).await;
        process.requests.send(request).await.unwrap();
        while process.events.all().len() < 3 {
            tokio::task::yield_now().await;
        }
        process.signals.forwarded(Signal::Terminate);
        assert_eq!(process.ended().await.0, expected, "{request:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_upgrade_that_is_requested_during_the_drain_is_refused() {
    let process = Process::start(Ok(())).await;
    let client = process.manager.admit().unwrap();
    process.signals.forwarded(Signal::Terminate);
    process.phases.reached(Phase::Draining).await;
    process.requests.send(Request::Succeed).await.unwrap();
    let refused = "refused: Succeed: the server is shutting down: start it again instead";
    while process.events.all().last().is_none_or(|last| last != refused) {
        tokio::task::yield_now().await;
    }
    drop(client);
    assert_eq!(process.ended().await.0, ExitReason::Graceful);
}
