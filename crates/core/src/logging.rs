//! The log: to stdout, and to daily files if the operator wants them.

use std::{
    io::{self, IsTerminal},
    path::{Path, PathBuf},
};

use tracing_appender::{
    non_blocking::{NonBlocking, NonBlockingBuilder, WorkerGuard},
    rolling::{InitError, RollingFileAppender, Rotation},
};
use tracing_subscriber::{
    EnvFilter, Layer, Registry,
    filter::ParseError,
    fmt::{self, MakeWriter},
    layer::SubscriberExt,
    util::{SubscriberInitExt, TryInitError},
};

use crate::settings::{LogFormat, Settings};

/// Lines that may wait for the disk. When it cannot keep up, whoever logs waits with it: a line lost is
/// worse than one that comes late.
const BUFFERED_LINES: usize = 16_384;

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
        source: InitError,
    },
    /// There is a log already.
    #[error(transparent)]
    Twice(#[from] TryInitError),
}

/// Writes what is still waiting when it is dropped: keep it until the very end.
#[must_use = "dropping it ends the log files"]
#[derive(Debug)]
pub struct LogGuard(#[allow(dead_code, reason = "held for its Drop")] Option<WorkerGuard>);

/// Starts the log.
///
/// # Errors
/// When `log_dir` cannot be written, or a log is running already.
pub fn init(settings: &Settings) -> Result<LogGuard, LoggingError> {
    let filter = EnvFilter::builder().parse(&settings.log_level)?;
    let terminal = io::stdout().is_terminal();
    let stdout = layer(settings.log_format, terminal, io::stdout);
    let (file, guard) = match &settings.log_dir {
        Some(dir) => {
            let (writer, guard) = file(dir)?;
            (Some(layer(settings.log_format, false, writer)), Some(guard))
        }
        None => (None, None),
    };
    let outputs: Vec<Output> = std::iter::once(stdout).chain(file).collect();
    tracing_subscriber::registry().with(outputs).with(filter).try_init()?;
    Ok(LogGuard(guard))
}

type Output = Box<dyn Layer<Registry> + Send + Sync>;

fn layer<W>(format: LogFormat, terminal: bool, writer: W) -> Output
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let layer = fmt::layer().with_writer(writer).with_ansi(terminal);
    match format {
        LogFormat::Json => layer.json().boxed(),
        LogFormat::Auto if !terminal => layer.json().boxed(),
        LogFormat::Auto | LogFormat::Pretty => layer.boxed(),
    }
}

fn file(dir: &Path) -> Result<(NonBlocking, WorkerGuard), LoggingError> {
    let appender = RollingFileAppender::builder()
        .rotation(Rotation::DAILY)
        .filename_prefix("lastcall")
        .filename_suffix("log")
        .build(dir)
        .map_err(|source| LoggingError::Dir { dir: dir.to_owned(), source })?;
    Ok(NonBlockingBuilder::default().lossy(false).buffered_lines_limit(BUFFERED_LINES).finish(appender))
}
