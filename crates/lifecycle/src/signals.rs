//! The signals that the server understands: those that ask it to end, each one more urgently than the last, and
//! those that ask for an upgrade.

use std::{
    collections::VecDeque,
    future::pending,
    io,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use tokio::{
    signal::unix::{SignalKind, signal},
    sync::{broadcast, watch},
};
use tracing::info;

/// Signals that may wait to be handled. Of more, the oldest are dropped: they ask for the same.
const MAX_WAITING: usize = 16;

/// A signal that comes to a supervised process both directly and from its supervisor within this time was sent
/// once, to both of them: a terminal and `killall` do that.
const SAME_SIGNAL: Duration = Duration::from_secs(5);

/// A signal that the server understands.
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

/// Signals that end a process which does not handle them, that mean nothing to the server, and that a mistake or a
/// limit may send: SIGALRM, SIGSTKFLT, SIGXFSZ (a log file at the limit of a file's size), SIGVTALRM, SIGPROF, SIGIO
/// and SIGPWR (signal(7)).
const MEANINGLESS: [i32; 7] = [14, 16, 25, 26, 27, 29, 30];

impl Signal {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Hangup, Self::Interrupt, Self::Quit, Self::User1, Self::User2, Self::Terminate];

    /// Its name, as signal(7) has it.
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

    /// Its number on Linux.
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

    /// The signal that has this number on Linux, if the server understands it.
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|signal| signal.number() == number)
    }

    /// Whether the process that started this one had it ignored, as nohup(1) does with SIGHUP.
    fn is_ignored(self) -> bool {
        // SAFETY: a null action asks for the one in force, which is written to a value that lives until the call
        // returns; all of its bytes may be zero.
        #[expect(unsafe_code, reason = "the system call has no safe form")]
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            libc::sigaction(self.number().into(), std::ptr::null(), &raw mut action) == 0
                && action.sa_sigaction == libc::SIG_IGN
        }
    }
}

/// Whether this process is in the foreground of a terminal: a shell waits for it.
pub fn is_in_foreground() -> bool {
    std::fs::File::open("/dev/tty")
        .ok()
        .and_then(|terminal| rustix::termios::tcgetpgrp(terminal).ok())
        .is_some_and(|group| group == rustix::process::getpgrp())
}

/// How a signal came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Direct,
    /// From the process that supervises this one.
    Forwarded,
}

/// The signals that came. Clones have the same ones.
#[derive(Debug, Clone)]
pub struct Signals(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    /// Those that ask the process to end, in order; at most three, as further ones ask for the same.
    ending: watch::Sender<Vec<Signal>>,
    all: broadcast::Sender<Signal>,
    unpaired: Mutex<Unpaired>,
    /// Whether SIGHUP asks the process to end.
    hangup_ends: bool,
}

impl Signals {
    /// From now on these signals no longer end the process by themselves. A signal that is ignored stays so.
    ///
    /// SIGHUP asks a process that was started in the foreground of a terminal to end, as the terminal is gone then;
    /// it asks any other for an upgrade, as a service manager means it.
    /// `in_foreground` is for the process that was started first, if this one has taken over from it.
    ///
    /// # Errors
    /// When the system does not let them be handled.
    pub fn listen(in_foreground: bool) -> io::Result<Self> {
        let shared = Shared {
            ending: watch::Sender::default(),
            all: broadcast::Sender::new(MAX_WAITING),
            unpaired: Mutex::default(),
            hangup_ends: in_foreground,
        };
        let signals = Self(Arc::new(shared));
        for number in MEANINGLESS {
            // The handler alone keeps it from ending the process.
            drop(signal(SignalKind::from_raw(number))?);
        }
        for kind in Signal::ALL.into_iter().filter(|signal| !signal.is_ignored()) {
            let mut stream = signal(SignalKind::from_raw(kind.number().into()))?;
            let signals = signals.clone();
            tokio::spawn(async move {
                while stream.recv().await.is_some() {
                    signals.came(kind, Way::Direct);
                }
            });
        }
        Ok(signals)
    }

    fn came(&self, signal: Signal, way: Way) {
        // Nothing that holds it can panic.
        let mut unpaired = self.0.unpaired.lock().unwrap_or_else(PoisonError::into_inner);
        if unpaired.is_the_same(signal, way, Instant::now()) {
            return;
        }
        drop(unpaired);
        // Fails when there is no receiver, which is fine.
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

    /// Whether the process was started in the foreground of a terminal.
    pub fn are_of_a_foreground(&self) -> bool {
        self.0.hangup_ends
    }

    /// The signals so far that ask the process to end; three at most.
    pub fn asked_to_end(&self) -> Vec<Signal> {
        self.0.ending.borrow().clone()
    }

    /// Whether this signal asks for an upgrade.
    pub fn asks_for_upgrade(&self, signal: Signal) -> bool {
        signal == Signal::User2 || signal == Signal::Hangup && !self.0.hangup_ends
    }

    /// Takes in a signal that came to the process which supervises this one.
    pub fn forwarded(&self, signal: Signal) {
        self.came(signal, Way::Forwarded);
    }

    /// Has all connections closed now, as the second signal that asks the process to end does.
    pub fn close_now(&self) {
        self.0.ending.send_modify(|signals| signals.resize(signals.len().max(2), Signal::Terminate));
    }

    /// Every signal that comes from now on.
    pub fn all(&self) -> AllSignals {
        AllSignals(self.0.all.subscribe())
    }

    /// Waits until `count` signals have come that ask the process to end; the last of these.
    pub async fn nth(&self, count: usize) -> Signal {
        let mut signals = self.0.ending.subscribe();
        let last = match signals.wait_for(|signals| signals.len() >= count).await {
            Ok(signals) => signals.get(count - 1).copied(),
            Err(_) => None,
        };
        match last {
            Some(signal) => signal,
            // Never: this holds the sender.
            None => pending().await,
        }
    }
}

/// Every signal, one after the other.
#[derive(Debug)]
pub struct AllSignals(broadcast::Receiver<Signal>);

impl AllSignals {
    /// Waits for the next signal. May be dropped at any time without losing one.
    pub async fn next(&mut self) -> Signal {
        loop {
            match self.0.recv().await {
                Ok(signal) => return signal,
                // Older ones were dropped: they asked for the same as those that are left.
                Err(broadcast::error::RecvError::Lagged(_)) => {}
                // The runtime ends.
                Err(broadcast::error::RecvError::Closed) => return pending().await,
            }
        }
    }
}

/// Signals that came one way, and not yet the other.
#[derive(Debug, Default)]
struct Unpaired(VecDeque<(Signal, Way, Instant)>);

impl Unpaired {
    /// Whether this signal is one that has come the other way already.
    fn is_the_same(&mut self, signal: Signal, way: Way, now: Instant) -> bool {
        self.0.retain(|(_, _, at)| now.saturating_duration_since(*at) < SAME_SIGNAL);
        let pair = self.0.iter().position(|(other, other_way, _)| *other == signal && *other_way != way);
        match pair {
            Some(index) => drop(self.0.remove(index)),
            None => {
                self.0.truncate(MAX_WAITING - 1);
                self.0.push_back((signal, way, now));
            }
        }
        pair.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_that_comes_both_ways_counts_once() {
        let mut unpaired = Unpaired::default();
        let start = Instant::now();
        let mut counts =
            |signal, way, ms| !unpaired.is_the_same(signal, way, start + Duration::from_millis(ms));
        // Ctrl+C once, then twice more before the supervisor passes them on.
        assert!(counts(Signal::Interrupt, Way::Direct, 0));
        assert!(!counts(Signal::Interrupt, Way::Forwarded, 900));
        assert!(counts(Signal::Interrupt, Way::Direct, 1000));
        assert!(counts(Signal::Interrupt, Way::Direct, 1100));
        assert!(!counts(Signal::Interrupt, Way::Forwarded, 1200));
        assert!(!counts(Signal::Interrupt, Way::Forwarded, 1300));
        // Only the supervisor gets it, twice; other signals have nothing to do with it.
        assert!(counts(Signal::Terminate, Way::Forwarded, 2000));
        assert!(counts(Signal::Terminate, Way::Forwarded, 2100));
        assert!(counts(Signal::Interrupt, Way::Direct, 2200));
        // Much later, it is another one.
        assert!(counts(Signal::User2, Way::Forwarded, 3000));
        assert!(counts(Signal::User2, Way::Direct, 3000 + 5000));
    }
}
