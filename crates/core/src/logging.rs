//! The log: to stdout, and to daily files if the operator wants them.

use std::{
    io::{self, IsTerminal, Write},
    path::{Path, PathBuf},
    sync::mpsc::{self, Receiver, RecvTimeoutError, Sender},
    time::Duration,
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

/// How long the last lines may take to reach a slow disk. The `WorkerGuard` alone gives up after a second.
const LAST_LINES: Duration = Duration::from_secs(10);

/// Writes what is still waiting when it is dropped: keep it until the very end. Waits at most ten seconds.
#[must_use = "dropping it ends the log files"]
#[derive(Debug)]
pub struct LogGuard(Option<FileGuard>);

/// Of a writer in the background.
#[derive(Debug)]
struct FileGuard {
    worker: WorkerGuard,
    /// Disconnected when the writer has written everything and is dropped.
    written: Receiver<()>,
}

impl Drop for LogGuard {
    fn drop(&mut self) {
        let Some(FileGuard { worker, written }) = self.0.take() else { return };
        drop(worker);
        if written.recv_timeout(LAST_LINES) == Err(RecvTimeoutError::Timeout) {
            // Not to the log, which is what does not work.
            let _ = writeln!(io::stderr(), "the last lines of the log are lost: log_dir takes no more");
        }
    }
}

/// A writer, and a channel that is disconnected when it is dropped.
struct Announced<W> {
    writer: W,
    #[allow(dead_code, reason = "held for its Drop, which comes after the writer's")]
    written: Sender<()>,
}

impl<W: Write> Write for Announced<W> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.writer.write(line)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.writer.flush()
    }
}

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
            (Some(layer(settings.log_format, false, writer)), guard)
        }
        None => (None, LogGuard(None)),
    };
    let outputs: Vec<Output> = std::iter::once(stdout).chain(file).collect();
    tracing_subscriber::registry().with(outputs).with(filter).try_init()?;
    Ok(guard)
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

fn file(dir: &Path) -> Result<(NonBlocking, LogGuard), LoggingError> {
    let appender = RollingFileAppender::builder()
        .rotation(Rotation::DAILY)
        .filename_prefix("lastcall")
        .filename_suffix("log")
        .build(dir)
        .map_err(|source| LoggingError::Dir { dir: dir.to_owned(), source })?;
    Ok(in_background(appender))
}

fn in_background(writer: impl Write + Send + 'static) -> (NonBlocking, LogGuard) {
    let (sender, written) = mpsc::channel();
    let (writer, worker) = NonBlockingBuilder::default()
        .lossy(false)
        .buffered_lines_limit(BUFFERED_LINES)
        .finish(Announced { writer, written: sender });
    (writer, LogGuard(Some(FileGuard { worker, written })))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A disk that takes nothing until it is told to.
    struct StalledDisk {
        go: Receiver<()>,
        lines: Sender<String>,
    }

    impl Write for StalledDisk {
        fn write(&mut self, line: &[u8]) -> io::Result<usize> {
            // An error: told once and for all.
            let _ = self.go.recv();
            self.lines.send(String::from_utf8_lossy(line).into_owned()).map_err(io::Error::other)?;
            Ok(line.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_disk_that_stalls_gets_the_last_lines_all_the_same() {
        let (go, gate) = mpsc::channel();
        let (lines, written) = mpsc::channel();
        let (mut log, guard) = in_background(StalledDisk { go: gate, lines });
        for line in 0..100 {
            log.write_all(format!("{line}\n").as_bytes()).unwrap();
        }
        let disk = std::thread::spawn(move || {
            // Longer than the second for which the guard of tracing-appender waits.
            std::thread::sleep(Duration::from_millis(1500));
            drop(go);
        });
        drop(guard);
        let written: Vec<String> = written.try_iter().collect();
        assert_eq!((written.len(), written.last().map(String::as_str)), (100, Some("99\n")));
        disk.join().unwrap();
    }
}
