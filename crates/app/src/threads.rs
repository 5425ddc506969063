//! The runtime, and the threads for work that blocks.

use std::{
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use anyhow::Context;
use tokio::runtime::{self, Runtime};

/// Threads for work that blocks: one step of an upgrade, and one that is left over from an upgrade that was
/// given up; looking up a host, trimming the heap, or writing the history; dropping history that is too old.
const BLOCKING_THREADS: usize = 4;

/// Returns a runtime in which `spawn_blocking` never panics.
///
/// tokio panics in `spawn_blocking` when it has no thread for the work and the system gives none, as at the
/// limit of tasks (`pids.max`, `RLIMIT_NPROC`). So all of its threads are started now, and kept; more work
/// than threads waits for one of them.
///
/// HTTP has one thread: it is little work beside that of the event loops, and a handshake that never changes
/// threads costs less.
///
/// # Errors
/// When the system does not give the threads.
pub(crate) fn runtime() -> anyhow::Result<Runtime> {
    // tokio panics where it cannot start a thread: try that beforehand.
    try_threads().with_context(|| {
        format!("cannot start {BLOCKING_THREADS} threads; raise the limit of processes (ulimit -u, pids.max)")
    })?;
    let runtime = runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(BLOCKING_THREADS)
        .thread_keep_alive(Duration::MAX)
        .build()
        .context("cannot start the runtime")?;
    let latch = Latch::default();
    let closed = latch.close();
    for _ in 0..BLOCKING_THREADS {
        let latch = latch.clone();
        // No thread is idle while the latch is closed, so each task gets a thread of its own.
        drop(runtime.spawn_blocking(move || latch.wait()));
    }
    drop(closed);
    Ok(runtime)
}

/// Starts as many threads as are needed, and ends them.
///
/// # Errors
/// When the system does not give them.
fn try_threads() -> io::Result<()> {
    let latch = Latch::default();
    let closed = latch.close();
    let start = |_| {
        let latch = latch.clone();
        thread::Builder::new().spawn(move || latch.wait())
    };
    let threads: io::Result<Vec<_>> = (0..BLOCKING_THREADS).map(start).collect();
    drop(closed);
    for thread in threads? {
        // The thread does nothing that could panic.
        let _ = thread.join();
    }
    Ok(())
}

/// Blocks threads while it is closed.
#[derive(Clone, Default)]
struct Latch(Arc<Mutex<()>>);

impl Latch {
    /// Closes the latch until the guard is dropped.
    fn close(&self) -> MutexGuard<'_, ()> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait(&self) {
        drop(self.close());
    }
}
