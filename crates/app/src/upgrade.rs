//! Handing everything over to a new process: the old process's side of an upgrade.
//!
//! Until the new process has committed, nothing is lost here: whatever fails, the new process is ended, and
//! this one goes on as if nothing had happened.

use std::{
    env,
    ffi::OsString,
    fmt,
    future::Future,
    io,
    os::fd::AsFd,
    path::{self, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, bail};
use humantime::format_duration;
use lastcall_core::settings::TAKE_OVER;
use lastcall_endpoints::{Handovers, Patience};
use lastcall_handover::{Channel, Command, Give, GiveError, Opening, Progress};
use lastcall_lifecycle::Upgrade;
use lastcall_websockets::{ConnectionManager, Frozen};
use rustix::process::{Pid, Signal, kill_process};
use tokio::{
    process::{self, Child},
    task::spawn_blocking,
    time::timeout,
};
use tracing::{debug, info, warn};

use crate::{
    desk::Desk,
    front::{Front, Paused},
    inherit::ServerState,
};

/// How long requests have to be finished before their clients, or what they ask for, can move. Everybody who
/// has a WebSocket is served meanwhile.
const PATIENCE: Patience = Patience { closing: Duration::from_secs(1), in_flight: Duration::from_secs(2) };

/// How long the event loops have to come to a stop: each writes what was published before.
const FREEZE: Duration = Duration::from_secs(2);

/// How long handing over may take, while nobody is served. 10,000 clients take a tenth of a second.
const TRANSFER: Duration = Duration::from_secs(5);

/// How long this process waits for the new one to serve, before it ends.
const FAREWELL: Duration = Duration::from_millis(500);

/// How long an operator's terminal has to take a line.
const OPERATOR: Duration = Duration::from_secs(1);

/// How this process was started, so that another one can be: the same program, by its path, with the same
/// arguments.
#[derive(Debug, Clone)]
pub(crate) struct Program {
    path: PathBuf,
    arguments: Vec<OsString>,
}

impl Program {
    /// To be asked early: once the file is replaced, the system knows its path no more.
    pub(crate) fn this() -> io::Result<Self> {
        let (program, mut arguments) = (env::current_exe()?, env::args_os());
        // The name that it was started by may have symbolic links in it, which lead to another version next time.
        let called = arguments.next().map(path::absolute).transpose()?;
        let same = |path: &PathBuf| path.canonicalize().is_ok_and(|path| path == program);
        let path = called.filter(same).unwrap_or(program);
        Ok(Self { path, arguments: arguments.collect() })
    }
}

/// Carries out upgrades.
pub(crate) struct Upgrader {
    pub(crate) program: Program,
    pub(crate) signal: tokio::signal::unix::Signal,
    /// `None`: there is no socket, so there are no upgrades.
    pub(crate) desk: Option<Desk>,
    pub(crate) front: Arc<Front>,
    pub(crate) manager: ConnectionManager,
    pub(crate) timeout: Duration,
    pub(crate) handovers: Arc<Mutex<Handovers>>,
}

/// Who asked for an upgrade.
pub(crate) enum Request {
    Signal,
    /// Somebody who waits to hear how it goes.
    Operator(Operator),
}

/// Somebody who ran `lastcall upgrade`.
#[derive(Clone)]
pub(crate) struct Operator(Arc<Channel>);

impl Operator {
    /// Tells it how it goes; it may have gone.
    async fn tell(&self, progress: Progress) {
        let channel = Arc::clone(&self.0);
        let told = spawn_blocking(move || channel.send(&progress, Instant::now() + OPERATOR)).await;
        if !matches!(told, Ok(Ok(()))) {
            debug!("whoever asked for the upgrade could not be told how it went: {told:?}");
        }
    }
}

/// A handover that was carried out.
struct Done {
    pid: u32,
    clients: usize,
    paused: Duration,
}

impl Upgrade for Upgrader {
    type Request = Request;

    async fn requested(&mut self) -> Request {
        loop {
            let opening = match &mut self.desk {
                Some(desk) => tokio::select! {
                    _ = self.signal.recv() => return Request::Signal,
                    opening = desk.next() => opening,
                },
                None => {
                    self.signal.recv().await;
                    return Request::Signal;
                }
            };
            match opening {
                (channel, Opening::Command(Command::Upgrade)) => {
                    return Request::Operator(Operator(Arc::new(channel)));
                }
                (_, Opening::Hello(hello)) => {
                    warn!(pid = hello.pid, "a process wanted to take over, but was not asked to");
                }
            }
        }
    }

    async fn carry_out(&mut self, request: Request, interrupted: impl Future) -> Option<u32> {
        let operator = match &request {
            Request::Signal => None,
            Request::Operator(operator) => Some(operator),
        };
        match self.hand_over(operator, interrupted).await {
            Ok(Done { pid, clients, paused }) => {
                let ms = paused.as_secs_f64() * 1e3;
                info!(pid, clients, paused_ms = ms, "handed over to process {pid}: ending");
                if let Some(operator) = operator {
                    operator.tell(Progress::Done { pid, clients, paused_ms: ms }).await;
                }
                Some(pid)
            }
            Err(error) => {
                let reason = format!("{error:#}");
                warn!("the upgrade failed, this process goes on: {reason}");
                self.handovers.lock().unwrap_or_else(PoisonError::into_inner).failed += 1;
                if let Some(operator) = operator {
                    operator.tell(Progress::Failed { reason }).await;
                }
                None
            }
        }
    }
}

impl Upgrader {
    async fn hand_over(
        &mut self,
        operator: Option<&Operator>,
        interrupted: impl Future,
    ) -> anyhow::Result<Done> {
        tokio::pin!(interrupted);
        let desk = self.desk.as_mut().context("there is no socket for upgrades; the log says why")?;
        if std::process::id() == 1 {
            bail!("this is process 1 of its container, which ends with it: drain it instead");
        }
        let mut child = start(&self.program, desk)?;
        let pid = child.id().context("the new process ended at once")?;
        info!(pid, program = %self.program.path.display(), "upgrade: process {pid} gets ready to take over");
        if let Some(operator) = operator {
            operator.tell(Progress::Started { pid }).await;
        }
        let prepared = tokio::select! {
            prepared = timeout(self.timeout, prepare(desk, pid, self.timeout)) => match prepared {
                Ok(prepared) => prepared,
                Err(_) => Err(anyhow::anyhow!("it was not ready within {}", format_duration(self.timeout))),
            },
            _ = child.wait() => Err(anyhow::anyhow!("it never said that it was ready")),
            _ = &mut interrupted => Err(anyhow::anyhow!("this process was asked to end meanwhile")),
        };
        let handed_over = match prepared {
            Ok(give) => self.transfer(give, &mut child).await,
            Err(error) => Err(end(&mut child, error).await),
        };
        let done = handed_over.with_context(|| format!("process {pid} did not take over"))?;
        // Who asked this process to end meanwhile means the service.
        if timeout(Duration::ZERO, interrupted).await.is_ok() {
            info!(pid, "passing the signal to end on to the new process");
            if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
                kill_process(pid, Signal::TERM).context("cannot pass the signal on")?;
            }
        }
        Ok(done)
    }

    /// From here on it is not interrupted: every step has its bound.
    async fn transfer(&self, give: Give, child: &mut Child) -> anyhow::Result<Done> {
        let pid = child.id().context("the new process ended")?;
        if let Err(error) = give.check_room(self.manager.count()) {
            return Err(end(child, error.into()).await);
        }
        let paused = match self.front.pause(PATIENCE).await {
            Ok(Some(paused)) => paused,
            Ok(None) => return Err(end(child, anyhow::anyhow!("this process does not serve")).await),
            Err(error) => return Err(end(child, error).await),
        };
        let frozen_at = Instant::now();
        let frozen = match timeout(FREEZE, self.manager.freeze()).await {
            Ok(Some(frozen)) => frozen,
            _ => {
                let error = anyhow::anyhow!("the event loops did not stop within {FREEZE:?}");
                let error = end(child, error).await;
                self.front.start(paused);
                return Err(error);
            }
        };
        let state = ServerState {
            manager: frozen.manager_state(),
            notifier: paused.notifier,
            upgrades_done: self.handovers().done,
            upgrades_failed: self.handovers().failed,
            frozen_at_us: micros_since_1970(),
            idle_read: paused.entrance.idle.iter().map(|connection| connection.read.clone()).collect(),
        };
        let most = TRANSFER.min(self.timeout);
        let sent = spawn_blocking(move || {
            let sent = send(&give, &state, &paused, &frozen, most);
            (sent, give, paused, frozen)
        });
        // Only a panic would end it without a result, and that ends a release build.
        let (sent, give, paused, frozen) = sent.await.context("handing over failed")?;
        match sent {
            Ok(clients) => {
                let serves = spawn_blocking(move || give.finish(Instant::now() + FAREWELL));
                serves.await.context("waiting for the new process failed")?;
                let nobody_served = frozen_at.elapsed();
                // Closing thousands of descriptors takes a while, which the new process can use better.
                frozen.give_away();
                drop(paused);
                Ok(Done { pid, clients, paused: nobody_served })
            }
            Err(error) => {
                // It must be gone before anybody is served here again.
                let error = end(child, error.into()).await;
                drop(frozen);
                self.front.start(paused);
                Err(error)
            }
        }
    }

    fn handovers(&self) -> Handovers {
        *self.handovers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Starts the new process. It has the same standard streams, so its log goes on where this one's ends.
fn start(program: &Program, desk: &Desk) -> anyhow::Result<Child> {
    process::Command::new(&program.path)
        .args(&program.arguments)
        .env(TAKE_OVER, desk.path())
        .spawn()
        .with_context(|| format!("cannot start {}", program.path.display()))
}

/// Waits until the new process says that it is ready.
async fn prepare(desk: &mut Desk, pid: u32, most: Duration) -> anyhow::Result<Give> {
    let deadline = Instant::now() + most;
    let (channel, hello) = loop {
        match desk.next().await {
            (channel, Opening::Hello(hello)) if hello.pid == pid => break (channel, hello),
            (_, Opening::Hello(hello)) => {
                warn!(pid = hello.pid, "a process that was not asked to wanted to take over")
            }
            (channel, Opening::Command(Command::Upgrade)) => {
                let reason = "an upgrade is under way".to_owned();
                Operator(Arc::new(channel)).tell(Progress::Failed { reason }).await;
            }
        }
    };
    let give =
        spawn_blocking(move || Give::begin(channel, &hello, env!("CARGO_PKG_VERSION"), deadline)).await?;
    Ok(give?)
}

fn send(
    give: &Give,
    state: &ServerState,
    paused: &Paused,
    frozen: &Frozen,
    most: Duration,
) -> Result<usize, GiveError> {
    let mut descriptors = vec![paused.entrance.listener.as_fd()];
    descriptors.extend(paused.entrance.idle.iter().map(|connection| connection.stream.as_fd()));
    let clients = frozen.states().map(|(socket, state)| {
        let size = state.size();
        (socket, state, size)
    });
    give.hand_over((state, &descriptors), clients, most)
}

/// Ends the new process; if it ended by itself, that is why nothing came of it.
async fn end(child: &mut Child, error: anyhow::Error) -> anyhow::Error {
    if let Ok(Some(status)) = child.try_wait() {
        return error.context(format!("it ended by itself ({status}), and its log says why"));
    }
    // Killed, and waited for: whatever it has of ours is closed then.
    match child.kill().await {
        Ok(()) => error,
        Err(failed) => error.context(format!("and it could not be ended: {failed}")),
    }
}

fn micros_since_1970() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_micros()).unwrap_or(u64::MAX)
}

impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Signal => "SIGUSR2",
            Self::Operator(_) => "lastcall upgrade",
        })
    }
}
