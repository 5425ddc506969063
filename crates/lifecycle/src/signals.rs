//! SIGTERM and SIGINT: both ask for the same; each further one asks more urgently.

use std::io;

use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
};

/// A signal that asks the process to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// SIGINT, as Ctrl+C sends it.
    Interrupt,
    /// SIGTERM, as service managers send it.
    Terminate,
}

impl Signal {
    /// Its name, as signal(7) has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Interrupt => "SIGINT",
            Self::Terminate => "SIGTERM",
        }
    }

    /// Its number on Linux.
    pub fn number(self) -> u8 {
        match self {
            Self::Interrupt => 2,
            Self::Terminate => 15,
        }
    }
}

/// Counts the signals that came. Clones count the same ones.
#[derive(Debug, Clone)]
pub struct Signals(watch::Receiver<Vec<Signal>>);

/// SIGUSR2: asks for an upgrade. Without this, the signal ends the process.
///
/// # Errors
/// When the system refuses to hand the signal over.
pub fn upgrade_signal() -> io::Result<tokio::signal::unix::Signal> {
    signal(SignalKind::user_defined2())
}

impl Signals {
    /// From now on these signals no longer end the process by themselves.
    ///
    /// # Errors
    /// When the system does not let them be handled.
    pub fn listen() -> io::Result<Self> {
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let (came, signals) = watch::channel(Vec::new());
        tokio::spawn(async move {
            loop {
                let signal = tokio::select! {
                    Some(()) = interrupt.recv() => Signal::Interrupt,
                    Some(()) = terminate.recv() => Signal::Terminate,
                    () = came.closed() => return,
                };
                // Only the first three count.
                came.send_if_modified(|signals| {
                    let counts = signals.len() < 3;
                    if counts {
                        signals.push(signal);
                    }
                    counts
                });
            }
        });
        Ok(Self(signals))
    }

    /// Waits until `count` signals have come; the last of these.
    pub async fn nth(&self, count: usize) -> Signal {
        let mut signals = self.0.clone();
        let last = match signals.wait_for(|signals| signals.len() >= count).await {
            Ok(signals) => signals.get(count - 1).copied(),
            Err(_) => None,
        };
        match last {
            Some(signal) => signal,
            // The task that counts them is gone, with the runtime: none will come.
            None => std::future::pending().await,
        }
    }
}
