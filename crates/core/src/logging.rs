//! The log: to stdout, and to daily files if the operator wants them.
//!
//! Logging never blocks: what an output does not take waits in a bounded queue, and what does not fit is
//! dropped, counted, and reported when the output takes lines again.

mod daily_file;
mod queue;
mod streams;

use std::{
    io::{self, IsTerminal},
    path::PathBuf,
    time::{Duration, Instant},
};

use tracing_subscriber::{
    EnvFilter, Layer, Registry,
    filter::ParseError,
    fmt::{self, MakeWriter},
    layer::SubscriberExt,
    util::{SubscriberInitExt, TryInitError},
};

use crate::settings::{LogFormat, Settings};
use daily_file::DailyFile;
use queue::LineQueue;
use streams::{Stdout, stdout_takes_colors};

pub use streams::{stderr_line, stdout_takes_escapes};

/// The log cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum LoggingError {
    /// The level is not understood.
    #[error("log_level is not understood")]
    Level(#[from] ParseError),
    /// The folder for files cannot be used.
    #[error("cannot write log files to log_dir {}", dir.display())]
    Dir {
        /// The folder.
        dir: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The system gives no thread that could write.
    #[error("cannot start a thread for the log")]
    Thread(#[from] io::Error),
    /// There is a log already.
    #[error(transparent)]
    AlreadyInitialized(#[from] TryInitError),
}

/// The time that the last lines may take to reach slow outputs, all together.
pub const FLUSH_TIMEOUT: Duration = Duration::from_secs(10);

/// The same, for a process that is to end at once.
const FAST_FLUSH_TIMEOUT: Duration = Duration::from_millis(100);

/// The time that the last lines wait for the reader of stdout without any of them being taken: it may be gone
/// for good.
const STDOUT_STALL_TIMEOUT: Duration = Duration::from_secs(1);

/// The time that they wait for a disk without any of them being taken, such as one that another machine has.
const FILE_STALL_TIMEOUT: Duration = Duration::from_secs(5);

/// Waits, when it is dropped, until the last lines are written, for ten seconds at most: keep it until the
/// very end.
#[must_use = "dropping it waits for the lines so far only"]
#[derive(Debug)]
pub struct LogGuard {
    /// Each with the time for which it may stall.
    outputs: Vec<(LineQueue, Duration)>,
    flush_timeout: Duration,
}

impl LogGuard {
    /// Lets the last lines take a tenth of a second only.
    pub fn flush_fast(&mut self) {
        self.flush_timeout = FAST_FLUSH_TIMEOUT;
    }
}

impl Drop for LogGuard {
    fn drop(&mut self) {
        let deadline = Instant::now() + self.flush_timeout;
        for (queue, stall) in &self.outputs {
            let left = queue.finish(deadline, *stall);
            if left > 0 && self.flush_timeout > FAST_FLUSH_TIMEOUT {
                // Not to the log, which is what does not work.
                stderr_line(&format!(
                    "the last lines of the log, {left}, are lost: {} took no more",
                    queue.output()
                ));
            }
        }
    }
}

/// Starts the log.
///
/// # Errors
/// When `log_dir` cannot be written, there is no thread for the log, or a log is running already.
pub fn init(settings: &Settings) -> Result<LogGuard, LoggingError> {
    let filter = EnvFilter::builder().parse(&settings.log_level)?;
    let stdout = LineQueue::start("stdout", Stdout)?;
    let for_people = match settings.log_format {
        LogFormat::Auto => io::stdout().is_terminal(),
        format => format == LogFormat::Pretty,
    };
    let mut layers = vec![layer(for_people, stdout_takes_colors(), stdout.clone())];
    let mut outputs = vec![(stdout, STDOUT_STALL_TIMEOUT)];
    if let Some(dir) = &settings.log_dir {
        let file =
            DailyFile::open(dir).map_err(|source| LoggingError::Dir { dir: dir.to_owned(), source })?;
        let file = LineQueue::start("log_dir", file)?;
        layers.push(layer(settings.log_format == LogFormat::Pretty, false, file.clone()));
        // Before stdout, which has less time.
        outputs.insert(0, (file, FILE_STALL_TIMEOUT));
    }
    tracing_subscriber::registry().with(layers).with(filter).try_init()?;
    Ok(LogGuard { outputs, flush_timeout: FLUSH_TIMEOUT })
}

type Output = Box<dyn Layer<Registry> + Send + Sync>;

fn layer<W>(for_people: bool, colors: bool, writer: W) -> Output
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    // What goes wrong in there would go to stderr, which may be closed: that panics.
    let layer = fmt::layer().with_writer(writer).with_ansi(colors).log_internal_errors(false);
    if for_people { layer.boxed() } else { layer.json().boxed() }
}
