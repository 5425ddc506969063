//! The process that was started stays, with its PID, while the processes that took over from it serve: what started
//! it (a shell, an init of a container, supervisord) goes on watching the same process.
//!
//! After its first handover it is a **supervisor**: it passes signals on to the process that serves, and ends with
//! the exit code of the last one. Each new process is started by the one before it; when that ends, the supervisor
//! becomes its parent (PR_SET_CHILD_SUBREAPER, prctl(2)). All of them inherit one end of a **link** to the
//! supervisor. Over it, each says that it serves, and gets the signals: a signal that comes during a handover waits
//! in the link for the new process. A link that ends means that the supervisor was killed.

use std::{
    collections::VecDeque,
    env,
    future::pending,
    io,
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd},
        unix::net::UnixStream,
    },
    process::ExitCode,
    time::Duration,
};

use anyhow::Context;
use lastcall_core::settings::SUPERVISOR_VARIABLE;
use lastcall_lifecycle::{AllSignals, Signal, Signals};
use rustix::process::{
    Pid, WaitId, WaitIdOptions, WaitOptions, WaitStatus, getpid, set_child_subreaper, wait, waitid,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    process::Child,
    signal::unix::{SignalKind, signal},
    task::JoinHandle,
    time::{Instant, sleep_until},
};
use tracing::{debug, error, info, warn};

/// How long the supervisor waits, after the process that serves has ended, to hear from the next one: that may have
/// taken over at that very moment.
const NEXT_PROCESS_TIMEOUT: Duration = Duration::from_secs(15);

/// The descriptor whose number is in this environment variable.
///
/// # Errors
/// When it is no number, or no open descriptor.
pub(crate) fn inherited_descriptor(variable: &str) -> anyhow::Result<Option<OwnedFd>> {
    let Some(number) = env::var_os(variable) else { return Ok(None) };
    let number = number.to_str().and_then(|number| number.parse().ok()).filter(|number| *number > 2);
    let number: i32 = number
        .with_context(|| format!("{variable} is not for people to set: a process that upgrades sets it"))?;
    #[expect(unsafe_code, reason = "an inherited descriptor has nothing but its number")]
    // SAFETY: the process that started this one left it open for this purpose, and this is called once.
    let descriptor = unsafe { OwnedFd::from_raw_fd(number) };
    // No program that this one starts inherits it by chance. Fails where there is no such descriptor.
    if let Err(errno) = rustix::io::fcntl_setfd(&descriptor, rustix::io::FdFlags::CLOEXEC) {
        // There is nothing to close.
        std::mem::forget(descriptor);
        return Err(errno).with_context(|| format!("{variable}: descriptor {number} is not open"));
    }
    Ok(Some(descriptor))
}

/// Leaves this descriptor open in the programs that are started while the value lives.
pub(crate) struct Inheritable<'a>(&'a OwnedFd);

impl<'a> Inheritable<'a> {
    pub(crate) fn new(descriptor: &'a OwnedFd) -> io::Result<Self> {
        rustix::io::fcntl_setfd(descriptor, rustix::io::FdFlags::empty())?;
        Ok(Self(descriptor))
    }

    /// Its number, for the environment of the program.
    pub(crate) fn number(&self) -> String {
        self.0.as_raw_fd().to_string()
    }
}

impl Drop for Inheritable<'_> {
    fn drop(&mut self) {
        // It was set a moment ago, so it can be set.
        let _ = rustix::io::fcntl_setfd(self.0, rustix::io::FdFlags::CLOEXEC);
    }
}

/// The supervised process's end of the link.
#[derive(Debug)]
pub(crate) struct Link {
    /// For the next process.
    descriptor: OwnedFd,
    reading: Option<JoinHandle<()>>,
}

impl Link {
    pub(crate) fn new(descriptor: OwnedFd) -> Self {
        Self { descriptor, reading: None }
    }

    /// Tells the supervisor that this process serves, and takes signals from it from now on.
    ///
    /// # Errors
    /// When the descriptor cannot be used.
    pub(crate) fn serve(&mut self, signals: Signals) -> io::Result<()> {
        let stream = UnixStream::from(self.descriptor.try_clone()?);
        stream.set_nonblocking(true)?;
        self.report();
        let mut stream = tokio::net::UnixStream::from_std(stream)?;
        self.reading = Some(tokio::spawn(async move {
            loop {
                match stream.read_u8().await {
                    Ok(number) => match Signal::from_number(number) {
                        Some(signal) => signals.forwarded(signal),
                        None => debug!(
                            signal_number = number,
                            "the supervisor passed on a signal that is not known here"
                        ),
                    },
                    Err(error) => {
                        error!(%error, "the process that was started is gone: closing all connections now");
                        return signals.close_now();
                    }
                }
            }
        }));
        Ok(())
    }

    fn report(&self) {
        // It fits: a few numbers at most are in the buffer.
        if let Err(error) = rustix::io::write(&self.descriptor, &std::process::id().to_le_bytes()) {
            debug!(%error, "the supervisor could not be told that this process serves");
        }
    }

    /// Takes no more signals: those that come are for the new process.
    async fn stop(&mut self) {
        if let Some(reading) = self.reading.take() {
            reading.abort();
            // It was cancelled, or had ended.
            let _ = reading.await;
        }
    }
}

/// What becomes of the processes at a handover.
#[derive(Debug)]
pub(crate) enum Role {
    /// This process was started by something that may only know its PID: it stays, and supervises.
    Started(Option<Supervision>),
    /// This process was started by a service manager that follows a new PID when it hears of it (sd_notify(3),
    /// MAINPID=). It ends.
    Followed,
    /// Another process supervises this one, which ends.
    Supervised(Link),
}

impl Role {
    /// The role of this process. To be called once, before there are threads.
    ///
    /// # Errors
    /// When the environment has something in place of the number of a descriptor.
    pub(crate) fn detect() -> anyhow::Result<Self> {
        if let Some(descriptor) = inherited_descriptor(SUPERVISOR_VARIABLE)? {
            return Ok(Self::Supervised(Link::new(descriptor)));
        }
        // A container ends with its process 1, whatever its manager hears.
        let followed = env::var_os("NOTIFY_SOCKET").is_some() && getpid() != Pid::INIT;
        Ok(if followed { Self::Followed } else { Self::Started(None) })
    }

    /// The end of the link that a new process is to inherit, if there is to be a supervisor.
    ///
    /// # Errors
    /// When the system gives no sockets, or does not let this process become the parent of orphans.
    pub(crate) fn link(&mut self) -> io::Result<Option<&OwnedFd>> {
        match self {
            Self::Started(supervision) => {
                if supervision.is_none() {
                    *supervision = Some(Supervision::prepare()?);
                }
                Ok(supervision.as_ref().map(|supervision| &supervision.link))
            }
            Self::Followed => Ok(None),
            Self::Supervised(link) => Ok(Some(&link.descriptor)),
        }
    }

    /// Tells the supervisor once more that this process serves: another one may have said so meanwhile.
    pub(crate) fn report(&self) {
        if let Self::Supervised(link) = self {
            link.report();
        }
    }

    /// Gives up what was made for a new process that did not take over.
    pub(crate) fn reset(&mut self) {
        if let Self::Started(supervision) = self {
            *supervision = None;
        }
    }

    /// Takes no more signals from the supervisor: the new process serves.
    pub(crate) async fn stop_receiving_signals(&mut self) {
        if let Self::Supervised(link) = self {
            link.stop().await;
        }
    }
}

/// The two ends of the link.
#[derive(Debug)]
pub(crate) struct Supervision {
    own: UnixStream,
    link: OwnedFd,
}

impl Supervision {
    fn prepare() -> io::Result<Self> {
        let (own, link) = UnixStream::pair()?;
        set_child_subreaper(Some(getpid()))?;
        Ok(Self { own, link: link.into() })
    }
}

/// What a handover leaves to be supervised.
#[derive(Debug)]
pub(crate) struct Supervised {
    pub(crate) supervision: Supervision,
    /// The process that serves.
    pub(crate) child: Child,
    /// The signals that came since that process was handed everything.
    pub(crate) signals: AllSignals,
    /// The signals that came during the handover.
    pub(crate) pending: Vec<Signal>,
}

/// Passes signals on to the process that serves, until the last one has ended. Returns that one's exit code;
/// 128 and the signal's number if a signal ended it.
///
/// # Errors
/// When signals cannot be handled.
pub(crate) async fn supervise(supervised: Supervised) -> anyhow::Result<ExitCode> {
    let Supervised { supervision: Supervision { own, link }, child, mut signals, pending: waiting } =
        supervised;
    let mut waiting = VecDeque::from(waiting);
    let first = child.id().and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw);
    let mut serving = first.context("the new process had ended before it was supervised")?;
    drop(link);
    own.set_nonblocking(true)?;
    let (mut reports, mut forward) = tokio::net::UnixStream::from_std(own)?.into_split();
    let mut child_ended = signal(SignalKind::child()).context("cannot handle signals")?;
    info!(
        pid = std::process::id(),
        new_pid = serving.as_raw_pid(),
        "handed over to process {serving}: this process supervises it, and passes signals on to it"
    );
    let mut linked = true;
    // How the process that serves ended, or the last one that did.
    let (mut ended, mut last) = (None, 0);
    // When the next process has to be heard of, or the end of one.
    let mut give_up: Option<Instant> = None;
    let code = loop {
        for (pid, status) in reap() {
            last = exit_code(status);
            if pid == serving {
                ended = Some(last);
                give_up = Some(Instant::now() + NEXT_PROCESS_TIMEOUT);
            }
        }
        match ended {
            // No process has the link any more, so none can have taken over.
            Some(code) if !linked => break code,
            // The one that said that it serves may have been another one's child, and have ended before that.
            None if !linked && !has_children() => break last,
            ended if give_up.is_some_and(|give_up| give_up <= Instant::now()) => break ended.unwrap_or(last),
            _ => {}
        }
        let next_signal = async {
            match waiting.pop_front() {
                Some(signal) => signal,
                None => signals.next().await,
            }
        };
        let deadline = async {
            match give_up {
                Some(give_up) => sleep_until(give_up).await,
                None => pending().await,
            }
        };
        let mut pid = [0; 4];
        tokio::select! {
            biased;
            report = reports.read(&mut pid), if linked => match report {
                // Four bytes are written at once, and so they are read.
                Ok(4) => if let Some(pid) = Pid::from_raw(i32::from_le_bytes(pid)) {
                    debug!(new_pid = pid.as_raw_pid(), "another process serves");
                    (serving, ended, give_up) = (pid, None, None);
                }
                _ => {
                    linked = false;
                    give_up = Some(Instant::now() + NEXT_PROCESS_TIMEOUT);
                }
            },
            _ = child_ended.recv() => {}
            signal = next_signal => if let Err(error) = forward.write_all(&[signal.number()]).await {
                warn!(%error, signal = signal.name(), "a signal could not be passed on");
            },
            () = deadline => {}
        }
    };
    // Not before: the runtime would wait for it, too.
    drop(child);
    info!(
        pid = std::process::id(),
        exit_code = code,
        "the process that served has ended with code {code}: the supervisor ends, too"
    );
    Ok(ExitCode::from(code))
}

/// Whether any process is a child of this one, that has not ended or was not waited for.
fn has_children() -> bool {
    waitid(WaitId::All, WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT).is_ok()
}

/// Takes note of all children that have ended: those of the processes that took over are this one's, too.
fn reap() -> Vec<(Pid, WaitStatus)> {
    std::iter::from_fn(|| wait(WaitOptions::NOHANG).ok().flatten()).collect()
}

fn exit_code(status: WaitStatus) -> u8 {
    let signal = || status.terminating_signal().map(|signal| 128 + signal);
    let code = status.exit_status().or_else(signal).and_then(|code| u8::try_from(code).ok());
    code.unwrap_or(u8::MAX)
}
