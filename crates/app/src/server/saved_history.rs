//! The history that is kept in a file over a restart, while signals are heard.

use std::{sync::Arc, time::Duration};

use anyhow::Context as _;
use lastcall_handover::failpoint::{self, Step};
use lastcall_lifecycle::{Signal, Signals};
use tokio::{task::spawn_blocking, time::timeout};

use crate::{
    broker::ServerBroker,
    history::{HistoryFile, MayTake},
};

/// The time that the history may take to be written, when the server ends.
pub(super) const WRITE_HISTORY_TIMEOUT: Duration = Duration::from_secs(30);

/// Reads the history into `broker`, unless a signal comes first: then the file stays for the next start.
/// Returns that signal.
///
/// # Errors
/// When the runtime ends.
pub(super) async fn read(
    file: HistoryFile,
    broker: ServerBroker,
    signals: &Signals,
) -> anyhow::Result<Option<Signal>> {
    let may_take = Arc::new(MayTake::default());
    let may_reader_take = Arc::clone(&may_take);
    let stopped = async {
        let signal = signals.nth(1).await;
        // It is being marked already: that is over soon, and a drain writes it anew.
        if may_take.forbid() { signal } else { signals.nth(3).await }
    };
    tokio::select! {
        biased;
        signal = stopped => Ok(Some(signal)),
        read = spawn_blocking(move || file.read(&broker, &may_reader_take)) => Ok(read.map(|()| None)?),
    }
}

/// Why the history is not there for the next start.
pub(super) enum NotWritten {
    Failed(anyhow::Error),
    /// The third signal has come meanwhile: nothing is waited for.
    Signal(Signal),
}

/// Writes the history, for the next start.
pub(super) async fn write(
    file: HistoryFile,
    broker: ServerBroker,
    signals: &Signals,
) -> Result<(), NotWritten> {
    let writing = spawn_blocking(move || {
        failpoint::hit(Step::WritingHistory);
        file.write(&broker)
    });
    tokio::select! {
        biased;
        written = timeout(WRITE_HISTORY_TIMEOUT, writing) => {
            let written = written.with_context(|| format!("it took more than {WRITE_HISTORY_TIMEOUT:?}"));
            // The log says why it panicked.
            let written = written.and_then(|written| written.context("that panicked"));
            written.and_then(|written| Ok(written?)).map_err(NotWritten::Failed)
        }
        signal = signals.nth(3) => Err(NotWritten::Signal(signal)),
    }
}
