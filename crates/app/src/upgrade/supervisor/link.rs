//! The link: a pair of sockets between the supervisor and the process that serves. Each new process inherits
//! the serving side from the process before it.
//!
//! The process that serves writes its PID as four bytes, the lowest first; the supervisor writes each signal
//! as one byte, its number. Other builds do the same.

use std::{
    io,
    os::{fd::OwnedFd, unix::net::UnixStream},
};

use lastcall_lifecycle::{Signal, Signals};
use lastcall_websockets::VitalTasks;
use rustix::process::Pid;
use tokio::{io::AsyncReadExt, task::JoinHandle};
use tracing::{debug, error};

/// The length of a report: a process identifies itself by its PID.
pub(super) const REPORT_LEN: usize = 4;

fn encode_report(pid: u32) -> [u8; REPORT_LEN] {
    pid.to_le_bytes()
}

/// Returns the process that a report names.
pub(super) fn decode_report(report: [u8; REPORT_LEN]) -> Option<Pid> {
    Pid::from_raw(i32::from_le_bytes(report))
}

/// The serving side of the link.
#[derive(Debug)]
pub(crate) struct Link {
    /// For the next process.
    descriptor: OwnedFd,
    receiving: Option<JoinHandle<()>>,
}

impl Link {
    pub(super) fn new(descriptor: OwnedFd) -> Self {
        Self { descriptor, receiving: None }
    }

    /// Returns the end that a new process inherits.
    pub(super) fn descriptor(&self) -> &OwnedFd {
        &self.descriptor
    }

    /// Tells the supervisor that this process serves, and takes signals from it from now on. The task that
    /// does is among the `vital_tasks`.
    ///
    /// # Errors
    /// When the descriptor cannot be used.
    pub(crate) fn serve(&mut self, signals: Signals, vital_tasks: &VitalTasks) -> io::Result<()> {
        let stream = UnixStream::from(self.descriptor.try_clone()?);
        stream.set_nonblocking(true)?;
        self.report();
        let stream = tokio::net::UnixStream::from_std(stream)?;
        self.receiving =
            Some(vital_tasks.spawn("the link to the supervisor", receive_signals(stream, signals)));
        Ok(())
    }

    /// Tells the supervisor that this process serves.
    pub(super) fn report(&self) {
        // It does not block: a few reports at most are in the buffer.
        if let Err(error) = rustix::io::write(&self.descriptor, &encode_report(std::process::id())) {
            debug!(%error, "the supervisor could not be told that this process serves");
        }
    }

    /// Takes no more signals: the next ones are for the new process.
    pub(super) async fn stop(&mut self) {
        if let Some(receiving) = self.receiving.take() {
            receiving.abort();
            // It was cancelled, or had ended.
            let _ = receiving.await;
        }
    }
}

async fn receive_signals(mut stream: tokio::net::UnixStream, signals: Signals) {
    loop {
        match stream.read_u8().await {
            Ok(number) => match Signal::from_number(number) {
                Some(signal) => signals.forwarded(signal),
                None => {
                    debug!(signal_number = number, "the supervisor passed on a signal that is not known here")
                }
            },
            Err(error) => {
                error!(%error, "the process that was started is gone: closing all connections now");
                return signals.close_now();
            }
        }
    }
}
