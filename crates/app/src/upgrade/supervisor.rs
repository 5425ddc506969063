//! The process that was started stays, with its PID, while the processes that took over from it serve: what
//! started it (a shell, an init of a container, supervisord) continues watching the same process.
//!
//! After its first handover it is a **supervisor**: it passes signals on to the process that serves, and ends
//! with the exit code of the last one. Each new process is started by the one before it; when that ends, the
//! supervisor becomes its parent (PR_SET_CHILD_SUBREAPER, prctl(2)). All of them inherit one end of a
//! [`link`] to the supervisor. Over it, each says that it serves, and gets the signals: a signal that comes
//! during a handover waits in the link for the new process. A link that ends means that the supervisor was
//! killed.

mod link;
mod orphans;
mod role;

use std::{collections::VecDeque, process::ExitCode};

use anyhow::Context;
use lastcall_lifecycle::{AllSignals, ServiceManager, Signal};
use rustix::process::{Pid, WaitId, WaitIdOptions, WaitStatus, kill_process, waitid};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    process::Child,
    signal::unix::{SignalKind, signal},
    time::{Instant, sleep_until, timeout},
};
use tracing::{debug, error, info, warn};

use self::{
    link::{REPORT_LEN, decode_report},
    orphans::reap,
};
pub(crate) use self::{
    orphans::Orphans,
    role::{LinkPair, Role},
};
use super::timeouts::{FORWARD_TIMEOUT, NEXT_PROCESS_TIMEOUT};

/// All that a handover leaves to be supervised.
#[derive(Debug)]
pub(crate) struct Supervised {
    /// `None` if the service manager was to follow the process that serves.
    pub(crate) links: Option<LinkPair>,
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
pub(crate) async fn supervise(
    supervised: Supervised,
    service_manager: &ServiceManager,
) -> anyhow::Result<ExitCode> {
    let Supervised { links, child, mut signals, pending } = supervised;
    let Some(links) = links else { return stand_by(child, signals, service_manager).await };
    let mut pending = VecDeque::from(pending);
    let first = child.id().and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw);
    let mut serving = first.context("the new process had ended before it was supervised")?;
    drop(links.serving);
    links.own.set_nonblocking(true)?;
    let (mut reports, mut forward) = tokio::net::UnixStream::from_std(links.own)?.into_split();
    let mut child_ended = signal(SignalKind::child()).context("cannot handle signals")?;
    info!(
        pid = std::process::id(),
        new_pid = serving.as_raw_pid(),
        "handed over to process {serving}: this process supervises it, and passes signals on to it"
    );
    let mut linked = true;
    // How the process that serves ended, or the last one that did.
    let (mut ended, mut last) = (None, 0);
    // By when the next process must report, or one must end.
    let mut give_up: Option<Instant> = None;
    let code = loop {
        // Children of the processes that took over become children of this one.
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
            match pending.pop_front() {
                Some(signal) => signal,
                None => signals.next().await,
            }
        };
        let deadline = async {
            match give_up {
                Some(give_up) => sleep_until(give_up).await,
                None => std::future::pending().await,
            }
        };
        let mut report = [0; REPORT_LEN];
        tokio::select! {
            biased;
            read = reports.read(&mut report), if linked => match read {
                // A report is written at once, and so it is read.
                Ok(REPORT_LEN) => if let Some(pid) = decode_report(report) {
                    debug!(new_pid = pid.as_raw_pid(), "another process serves");
                    (serving, ended, give_up) = (pid, None, None);
                }
                _ => {
                    linked = false;
                    give_up = Some(Instant::now() + NEXT_PROCESS_TIMEOUT);
                }
            },
            _ = child_ended.recv() => {}
            signal = next_signal => {
                // Bounded: a process that is stopped reads none.
                let signal_number = [signal.number()];
                let passed_on = timeout(FORWARD_TIMEOUT, forward.write_all(&signal_number)).await;
                if let Err(error) = passed_on.unwrap_or_else(|late| Err(late.into())) {
                    warn!(%error, signal = signal.name(), "a signal could not be passed on");
                }
            }
            () = deadline => {}
        }
    };
    // Not before: the runtime would wait for it, too.
    drop(child);
    let pid = std::process::id();
    if code == 0 {
        info!(pid, exit_code = code, "the process that served has ended: the supervisor ends, too");
    } else {
        // Its own log has no line about it if it was killed.
        error!(pid, exit_code = code, "the process that served has failed: the supervisor ends, too");
    }
    Ok(ExitCode::from(code))
}

/// Stays, as the parent of the process that serves, until the service manager follows that one: it was to,
/// and did not take the message. Returns the exit code.
async fn stand_by(
    mut child: Child,
    mut signals: AllSignals,
    service_manager: &ServiceManager,
) -> anyhow::Result<ExitCode> {
    let pid = child.id().context("the new process had ended before it was supervised")?;
    info!(
        new_pid = pid,
        "the service manager does not answer: this process stays until it follows process {pid}"
    );
    let followed = service_manager.hand_over_to(pid);
    tokio::pin!(followed);
    let status = loop {
        tokio::select! {
            biased;
            status = child.wait() => break status.context("the process that serves cannot be waited for")?,
            () = &mut followed => return Ok(ExitCode::SUCCESS),
            signal = signals.next() => forward_signals(&[signal], pid),
        }
    };
    let signal = || std::os::unix::process::ExitStatusExt::signal(&status).map(|signal| 128 + signal);
    let code = status.code().or_else(signal).and_then(|code| u8::try_from(code).ok());
    Ok(ExitCode::from(code.unwrap_or(u8::MAX)))
}

/// Returns true if this process has a child that runs, or that was not waited for.
fn has_children() -> bool {
    waitid(WaitId::All, WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT).is_ok()
}

fn exit_code(status: WaitStatus) -> u8 {
    let signal = || status.terminating_signal().map(|signal| 128 + signal);
    let code = status.exit_status().or_else(signal).and_then(|code| u8::try_from(code).ok());
    code.unwrap_or(u8::MAX)
}

/// Sends signals that this process has received to the new process.
pub(super) fn forward_signals(signals: &[Signal], pid: u32) {
    let Some(process) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { return };
    for signal in signals {
        info!(new_pid = pid, signal = signal.name(), "passing a signal on to the new process");
        if let Some(number) = rustix::process::Signal::from_named_raw(i32::from(signal.number()))
            && let Err(error) = kill_process(process, number)
        {
            warn!(%error, new_pid = pid, signal = signal.name(), "a signal could not be passed on");
        }
    }
}
