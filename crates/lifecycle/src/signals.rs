//! Signals. Some ask the process to end, each more urgently than the one before; others ask for an upgrade.

use std::{
    collections::VecDeque,
    future::pending,
    io,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use lastcall_websockets::VitalTasks;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::{broadcast, watch},
};
use tracing::info;

/// Most signals that wait to be handled. Of more, the oldest are dropped: they ask for the same.
const MAX_QUEUED_SIGNALS: usize = 16;

/// A signal that a supervised process receives both directly and from its supervisor within this time was
/// sent once, to both of them, as a terminal and `killall` do.
const DUPLICATE_SIGNAL_WINDOW: Duration = Duration::from_secs(5);

/// A signal that the server handles.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// SIGHUP: the terminal is gone, or an operator asks for an upgrade; see [`Signals::listen`].
    Hangup,
    /// SIGINT, as Ctrl+C sends it: asks the process to end.
    Interrupt,
    /// SIGQUIT, as Ctrl+\\ sends it: asks the process to end.
    Quit,
    /// SIGUSR1: asks for nothing.
    User1,
    /// SIGUSR2: asks for an upgrade.
    User2,
    /// SIGTERM, as service managers send it: asks the process to end.
    Terminate,
}

/// Signals that mean nothing to the server, that a mistake or a limit may send, and that end a process which
/// does not handle them: SIGALRM, SIGSTKFLT, SIGXFSZ (a log file at the limit of a file's size), SIGVTALRM,
/// SIGPROF, SIGIO and SIGPWR (signal(7)).
const MEANINGLESS: [i32; 7] = [14, 16, 25, 26, 27, 29, 30];

impl Signal {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Hangup, Self::Interrupt, Self::Quit, Self::User1, Self::User2, Self::Terminate];

    /// Returns its name, as in signal(7).
    pub fn name(self) -> &'static str {
        match self {
            Self::Hangup => "SIGHUP",
            Self::Interrupt => "SIGINT",
            Self::Quit => "SIGQUIT",
            Self::User1 => "SIGUSR1",
            Self::User2 => "SIGUSR2",
            Self::Terminate => "SIGTERM",
        }
    }

    /// Returns its number on Linux.
    pub fn number(self) -> u8 {
        match self {
            Self::Hangup => 1,
            Self::Interrupt => 2,
            Self::Quit => 3,
            Self::User1 => 10,
            Self::User2 => 12,
            Self::Terminate => 15,
        }
    }

    /// Returns the signal with this number on Linux, if the server handles it.
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|signal| signal.number() == number)
    }

    /// Returns true if this process was started with the signal ignored, as nohup(1) does with SIGHUP.
    fn is_ignored(self) -> bool {
        // SAFETY: a null action asks for the current one, which is written to a value that lives until the
        // call returns; all of its bytes may be zero.
        #[expect(unsafe_code, reason = "the system call has no safe form")]
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            libc::sigaction(self.number().into(), std::ptr::null(), &raw mut action) == 0
                && action.sa_sigaction == libc::SIG_IGN
        }
    }
}

/// Has all signals reach this process, whatever started it: a mask of blocked signals, and that SIGCHLD is
/// ignored, are inherited, and then this process would not hear who asks it to end, nor that its children
/// have. To be called first: the threads and the programs that a process starts inherit the mask.
///
/// A blocked signal that is waiting already has its default effect, as nothing handles it yet. A signal that
/// is ignored stays ignored, as nohup(1) means it; nobody means that of SIGCHLD.
pub fn reset_inherited() {
    #[expect(unsafe_code, reason = "the system calls have no safe form")]
    // SAFETY: the set is initialized by the first call, and lives until the second one returns; the default
    // action needs no handler. None of them can fail with these arguments.
    unsafe {
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
        libc::signal(libc::SIGCHLD, libc::SIG_DFL);
    }
}

/// Returns true if this process is in the foreground of a terminal, which means that a shell waits for it.
pub fn is_in_foreground() -> bool {
    std::fs::File::open("/dev/tty")
        .ok()
        .and_then(|terminal| rustix::termios::tcgetpgrp(terminal).ok())
        .is_some_and(|group| group == rustix::process::getpgrp())
}

/// The way in which a signal was received.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Via {
    Direct,
    /// The supervisor received and forwarded it.
    Supervisor,
}

/// The signals that this process has received. Clones share them.
#[derive(Debug, Clone)]
pub struct Signals(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    /// The signals that ask the process to end, in order. At most three, as further ones ask for the same.
    ending: watch::Sender<Vec<Signal>>,
    all: broadcast::Sender<Signal>,
    unpaired: Mutex<Unpaired>,
    /// True if SIGHUP asks the process to end.
    hangup_ends: bool,
}

impl Signals {
    /// Handles the signals from now on, so that they no longer end the process by themselves. A signal that
    /// is ignored stays ignored.
    ///
    /// SIGHUP asks a process that was started in the foreground of a terminal to end, as its terminal is
    /// gone. It asks any other process for an upgrade, as a service manager means it. `in_foreground` is
    /// about the process that was started first, if this one takes over from it. The tasks that receive
    /// signals are among the `vital_tasks`.
    ///
    /// # Errors
    /// When the system does not allow a handler.
    pub fn listen(in_foreground: bool, vital_tasks: &VitalTasks) -> io::Result<Self> {
        let signals = Self::new(in_foreground);
        for number in MEANINGLESS {
            // A handler is enough to keep the signal from ending the process.
            drop(signal(SignalKind::from_raw(number))?);
        }
        for kind in Signal::ALL.into_iter().filter(|signal| !signal.is_ignored()) {
            let mut stream = signal(SignalKind::from_raw(kind.number().into()))?;
            let signals = signals.clone();
            vital_tasks.spawn("the handling of signals", async move {
                while stream.recv().await.is_some() {
                    signals.receive(kind, Via::Direct);
                }
            });
        }
        Ok(signals)
    }

    /// Signals that are only received from the supervisor.
    pub(crate) fn new(in_foreground: bool) -> Self {
        Self(Arc::new(Shared {
            ending: watch::Sender::default(),
            all: broadcast::Sender::new(MAX_QUEUED_SIGNALS),
            unpaired: Mutex::default(),
            hangup_ends: in_foreground,
        }))
    }

    fn receive(&self, signal: Signal, via: Via) {
        // Nothing that holds the lock can panic.
        let mut unpaired = self.0.unpaired.lock().unwrap_or_else(PoisonError::into_inner);
        if unpaired.is_duplicate(signal, via, Instant::now()) {
            return;
        }
        drop(unpaired);
        // An error means that there is no receiver.
        let _ = self.0.all.send(signal);
        if signal == Signal::User1 {
            info!("SIGUSR1 means nothing to this server: ignored; SIGUSR2 upgrades it");
        }
        if self.asks_to_end(signal) {
            self.0.ending.send_if_modified(|signals| {
                // Only the first three count.
                let counts = signals.len() < 3;
                if counts {
                    signals.push(signal);
                }
                counts
            });
        }
    }

    fn asks_to_end(&self, signal: Signal) -> bool {
        match signal {
            Signal::Interrupt | Signal::Quit | Signal::Terminate => true,
            Signal::Hangup => self.0.hangup_ends,
            Signal::User1 | Signal::User2 => false,
        }
    }

    /// Returns true if the process was started in the foreground of a terminal.
    pub fn started_in_foreground(&self) -> bool {
        self.0.hangup_ends
    }

    /// Returns the signals so far that ask the process to end; three at most.
    pub fn ending_signals(&self) -> Vec<Signal> {
        self.0.ending.borrow().clone()
    }

    /// Returns true if this signal asks for an upgrade.
    pub fn asks_for_upgrade(&self, signal: Signal) -> bool {
        signal == Signal::User2 || signal == Signal::Hangup && !self.0.hangup_ends
    }

    /// Handles a signal that the supervisor of this process has received.
    pub fn forwarded(&self, signal: Signal) {
        self.receive(signal, Via::Supervisor);
    }

    /// Has the same effect as the second signal that asks the process to end: all connections are closed now.
    pub fn close_now(&self) {
        self.0.ending.send_modify(|signals| signals.resize(signals.len().max(2), Signal::Terminate));
    }

    /// Returns every signal that is received from now on.
    pub fn all(&self) -> AllSignals {
        AllSignals(self.0.all.subscribe())
    }

    /// Waits until `count` signals have asked the process to end, and returns the last of these. `count` is
    /// at most 3.
    pub async fn nth(&self, count: usize) -> Signal {
        let mut signals = self.0.ending.subscribe();
        let last = match signals.wait_for(|signals| signals.len() >= count).await {
            Ok(signals) => signals.get(count - 1).copied(),
            Err(_) => None,
        };
        match last {
            Some(signal) => signal,
            // Never happens: `self` holds the sender.
            None => pending().await,
        }
    }
}

/// Every signal, one after the other. Returned by [`Signals::all`].
#[derive(Debug)]
pub struct AllSignals(broadcast::Receiver<Signal>);

impl AllSignals {
    /// Waits for the next signal. May be dropped at any time without losing one.
    pub async fn next(&mut self) -> Signal {
        loop {
            match self.0.recv().await {
                Ok(signal) => return signal,
                // The oldest were dropped: they asked for the same as the others.
                Err(broadcast::error::RecvError::Lagged(_)) => {}
                // The runtime is shutting down.
                Err(broadcast::error::RecvError::Closed) => return pending().await,
            }
        }
    }
}

/// Signals that have been received directly and not from the supervisor, or the other way round.
#[derive(Debug, Default)]
struct Unpaired(VecDeque<ReceivedSignal>);

#[derive(Debug)]
struct ReceivedSignal {
    signal: Signal,
    via: Via,
    at: Instant,
}

impl Unpaired {
    /// Returns true if this signal has been received the other way already.
    fn is_duplicate(&mut self, signal: Signal, via: Via, now: Instant) -> bool {
        self.0.retain(|received| now.saturating_duration_since(received.at) < DUPLICATE_SIGNAL_WINDOW);
        let is_other = |received: &ReceivedSignal| received.signal == signal && received.via != via;
        let pair = self.0.iter().position(is_other);
        match pair {
            Some(index) => drop(self.0.remove(index)),
            None => {
                self.0.truncate(MAX_QUEUED_SIGNALS - 1);
                self.0.push_back(ReceivedSignal { signal, via, at: now });
            }
        }
        pair.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_that_is_received_both_ways_counts_once() {
        let mut unpaired = Unpaired::default();
        let start = Instant::now();
        let mut counts =
            |signal, via, ms| !unpaired.is_duplicate(signal, via, start + Duration::from_millis(ms));
        // Ctrl+C once, then twice more before the supervisor forwards them.
        assert!(counts(Signal::Interrupt, Via::Direct, 0));
        assert!(!counts(Signal::Interrupt, Via::Supervisor, 900));
        assert!(counts(Signal::Interrupt, Via::Direct, 1000));
        assert!(counts(Signal::Interrupt, Via::Direct, 1100));
        assert!(!counts(Signal::Interrupt, Via::Supervisor, 1200));
        assert!(!counts(Signal::Interrupt, Via::Supervisor, 1300));
        // Only the supervisor receives it, twice, and another signal comes between.
        assert!(counts(Signal::Terminate, Via::Supervisor, 2000));
        assert!(counts(Signal::Terminate, Via::Supervisor, 2100));
        assert!(counts(Signal::Interrupt, Via::Direct, 2200));
        // Much later, it is another signal.
        assert!(counts(Signal::User2, Via::Supervisor, 3000));
        assert!(counts(Signal::User2, Via::Direct, 3000 + 5000));
    }
}
