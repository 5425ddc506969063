//! The file to which a graceful shutdown writes the history, and from which the next start reads it.
//!
//! A start marks the file as taken over before the server serves, and leaves it where it is until a shutdown
//! has written another one: after a `kill -9`, a file without the mark would give offsets a second time.

use std::{
    fmt,
    fs::{self, File, OpenOptions},
    io::{self, BufReader, BufWriter, Read, Seek, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::OnceLock,
    time::Duration,
};

use lastcall_broker::{BrokerPart, ChannelPart};
use lastcall_core::{ChannelName, clock};
use rustix::fs::{FlockOperation, OFlags, flock};
use thiserror::Error;
use tracing::{info, warn};

use super::{
    format::{self, FormatError, FormatWriter},
    place::{self, LONGEST_SUFFIX, Untrusted, beside},
};
use crate::broker::ServerBroker;

/// The room that a file may take on top of the data: the names of channels, positions and idempotency keys.
const MAX_OVERHEAD: u64 = 64 << 20;

/// A history file, which may not be there. What its path leads to is found out each time: where a symbolic
/// link is, or was, nothing is read or written.
#[derive(Debug, Clone)]
pub(crate) struct HistoryFile {
    path: PathBuf,
    /// Most bytes that are written or read.
    max_bytes: u64,
}

/// The decision if a file is taken over, or the start ends before that: whoever comes first decides.
#[derive(Debug, Default)]
pub(crate) struct MayTake(OnceLock<bool>);

impl MayTake {
    /// Returns true if the file may be taken over: the start does not end any more before it is.
    fn take(&self) -> bool {
        *self.0.get_or_init(|| true)
    }

    /// Returns true if the file is not taken over: it stays for the next start.
    pub(crate) fn forbid(&self) -> bool {
        !*self.0.get_or_init(|| false)
    }
}

/// Why the history was not written.
#[derive(Debug, Error)]
pub(crate) enum WriteError {
    #[error("cannot write {path}: {source}", path = path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("it cannot be encoded: {0}")]
    Encode(#[from] rmp_serde::encode::Error),
    #[error("it takes more than {0} bytes")]
    TooLarge(u64),
}

/// Why the history was not read.
#[derive(Debug, Error)]
enum ReadError {
    #[error("it cannot be opened: {0}")]
    Open(io::Error),
    #[error("it is not a regular file")]
    NotRegular,
    #[error("{0}")]
    Untrusted(#[from] Untrusted),
    #[error("another process reads it: {0}")]
    Locked(io::Error),
    #[error("it has {size} bytes, and at most {max} are read")]
    TooLarge { size: u64, max: u64 },
    #[error(transparent)]
    Format(#[from] FormatError),
    #[error("it cannot be marked as taken over, and must not be read a second time: {0}")]
    Mark(io::Error),
    #[error("it is older than what this server has, which an upgrade has brought")]
    Superseded,
}

/// The amount that was written or read.
#[derive(Debug, Default)]
struct Summary {
    channels: usize,
    publications: usize,
    bytes: u64,
    last_channel: Option<ChannelName>,
}

impl HistoryFile {
    /// Returns the file at this path, for a history of at most `history_bytes`.
    pub(crate) fn new(path: PathBuf, history_bytes: usize) -> Self {
        let history_bytes = u64::try_from(history_bytes).unwrap_or(u64::MAX);
        let max_bytes = history_bytes.saturating_mul(2).saturating_add(MAX_OVERHEAD);
        Self { path, max_bytes }
    }

    /// Writes what the broker keeps. Nothing is published meanwhile.
    ///
    /// # Errors
    /// When it could not be written: the file is then as it was before.
    pub(crate) fn write(&self, broker: &ServerBroker) -> Result<(), WriteError> {
        let Summary { channels, publications, bytes, .. } = self.try_write(broker)?;
        info!(
            path = %self.path.display(),
            channels,
            publications,
            bytes,
            "the history was written, for the next start"
        );
        Ok(())
    }

    /// Has the broker take over what the file has, marks the file if it `may` be taken, and logs how that
    /// went. The broker keeps nothing yet, and keeps nothing after this if the file cannot be used.
    pub(crate) fn read(&self, broker: &ServerBroker, may: &MayTake) {
        match self.try_read(broker, may) {
            Ok(None) => {}
            Ok(Some(Summary { channels, publications, bytes, .. })) => {
                broker.finish_import();
                info!(
                    path = %self.path.display(),
                    channels,
                    publications,
                    bytes,
                    "the history was read from its file"
                );
            }
            Err(error) => {
                broker.clear();
                let kept = self.set_aside(&error);
                let path = self.path.display();
                warn!("the history in {path} is not used, and all channels begin anew: {error}; {kept}");
            }
        }
    }

    /// Sets a file aside that was not taken over although the broker has its history from the old process,
    /// and logs that. The next start would give its offsets a second time.
    pub(crate) fn set_aside_superseded(&self) {
        let open = || self.open()?.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound));
        let mut first = [0; 8];
        match open().and_then(|mut file| file.read_exact(&mut first)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return,
            Ok(()) if format::is_taken(first) => return,
            _ => {}
        }
        let error = ReadError::Superseded;
        let kept = self.set_aside(&error);
        let path = self.path.display();
        warn!("the history in {path} is not used: {error}; {kept}");
    }

    fn try_write(&self, broker: &ServerBroker) -> Result<Summary, WriteError> {
        let failed = |path: &Path, source| WriteError::Io { path: path.to_owned(), source };
        let path = place::resolve(&self.path).map_err(|source| failed(&self.path, source))?;
        // In the same folder, so that it can take the place of the other one in one step.
        let new = beside(&path, ".new");
        let summary = self.write_new(&new, broker).inspect_err(|_| {
            // Of a file that is not complete, nothing is read.
            let _ = fs::remove_file(&new);
        })?;
        let renamed = fs::rename(&new, &path).inspect_err(|_| {
            // The next shutdown writes it anew.
            let _ = fs::remove_file(&new);
        });
        renamed.and_then(|()| sync_folder(&path)).map_err(|source| failed(&path, source))?;
        Ok(summary)
    }

    fn write_new(&self, new: &Path, broker: &ServerBroker) -> Result<Summary, WriteError> {
        let failed = |source| WriteError::Io { path: new.to_owned(), source };
        match fs::remove_file(new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
            // One that a shutdown left when it was killed is gone.
            _ => {}
        }
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(new).map_err(failed)?;
        let mut writer = FormatWriter::begin(BufWriter::new(file), clock::since_1970()).map_err(failed)?;
        let mut summary = Summary::default();
        for part in broker.export().pass() {
            summary.add(&part);
            writer.part(&rmp_serde::to_vec_named(&part)?).map_err(failed)?;
            if writer.bytes() > self.max_bytes {
                return Err(WriteError::TooLarge(self.max_bytes));
            }
        }
        let (mut output, bytes) = writer.end().map_err(failed)?;
        output.flush().map_err(failed)?;
        output.get_ref().sync_all().map_err(failed)?;
        Ok(Summary { bytes, ..summary })
    }

    fn try_read(&self, broker: &ServerBroker, may: &MayTake) -> Result<Option<Summary>, ReadError> {
        let Some(file) = self.open().map_err(ReadError::Open)? else { return Ok(None) };
        let metadata = file.metadata().map_err(ReadError::Open)?;
        if !metadata.is_file() {
            return Err(ReadError::NotRegular);
        }
        place::check_trust(&metadata)?;
        // Two servers that are started at once must not both take it over. The lock ends with the file.
        flock(&file, FlockOperation::NonBlockingLockExclusive)
            .map_err(|error| ReadError::Locked(error.into()))?;
        let size = metadata.len();
        if size > self.max_bytes {
            return Err(ReadError::TooLarge { size, max: self.max_bytes });
        }
        let mut reader = BufReader::new(&file);
        // Twice: whether the file is complete is known at its end only.
        format::read(&mut reader, size, |_, _| Ok(()))?;
        reader.rewind().map_err(FormatError::Io)?;
        let mut summary = Summary { bytes: size, ..Summary::default() };
        let now = clock::since_1970();
        format::read(&mut reader, size, |bytes, written_at| {
            let part: BrokerPart =
                rmp_serde::from_slice(bytes).map_err(|error| FormatError::Part(error.into()))?;
            summary.add(&part);
            // The machine may have been off meanwhile. None if its clock was set back.
            let age = written_at.map_or(Duration::ZERO, |written_at| now.saturating_sub(written_at));
            broker.import(part, age).map_err(|error| FormatError::Part(error.into()))
        })?;
        if !may.take() {
            return Ok(None);
        }
        format::mark_as_taken(&file).map_err(ReadError::Mark)?;
        Ok(Some(summary))
    }

    /// Opens the file, to read and mark it; `None`: there is none.
    fn open(&self) -> io::Result<Option<File>> {
        // A FIFO has no end, and opening one waits for the process that writes it.
        let not_blocking = i32::try_from(OFlags::NONBLOCK.bits()).unwrap_or_default();
        match OpenOptions::new().read(true).write(true).custom_flags(not_blocking).open(&self.path) {
            Ok(file) => Ok(Some(file)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Makes room for the file of the next shutdown. Returns what became of the one that cannot be used.
    fn set_aside(&self, error: &ReadError) -> impl fmt::Display + use<> {
        if let ReadError::Format(FormatError::Taken) | ReadError::Locked(_) = error {
            return "it is left as it is".to_owned();
        }
        let renamed = place::resolve(&self.path).and_then(|path| {
            let unusable = beside(&path, LONGEST_SUFFIX);
            fs::rename(&path, &unusable)?;
            sync_folder(&path)?;
            Ok(unusable)
        });
        match renamed {
            Ok(unusable) => format!("it is now {}", unusable.display()),
            Err(error) => format!("remove it before the next start: it cannot be renamed ({error})"),
        }
    }
}

/// Has what was renamed in the folder of a file stay so when the machine fails.
fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(place::folder_of(path))?.sync_all()
}

impl Summary {
    fn add(&mut self, part: &BrokerPart) {
        for ChannelPart { name, publications, .. } in &part.channels {
            // A large channel is in several pieces, one after the other.
            if self.last_channel.as_ref() != Some(name) {
                self.channels += 1;
                self.last_channel = Some(name.clone());
            }
            self.publications += publications.len();
        }
    }
}

#[cfg(test)]
mod tests {
    use lastcall_broker::Config;
    use lastcall_core::{Publication, Publisher};
    use serde_json::value::RawValue;

    use super::*;

    fn broker() -> ServerBroker {
        ServerBroker::for_test(Config::default())
    }

    /// Returns a broker with 20 publications of 60,000 bytes in one channel, and one in another.
    async fn full_broker() -> ServerBroker {
        let broker = broker();
        let data = RawValue::from_string(format!("\"{}\"", "x".repeat(60_000))).unwrap();
        let publications = vec![Publication::new(Publisher::Api, data); 20];
        broker.as_broker().publish(&"a".parse().unwrap(), publications.clone(), None).await.unwrap();
        broker.as_broker().publish(&"b".parse().unwrap(), publications[..1].to_vec(), None).await.unwrap();
        broker
    }

    #[tokio::test]
    async fn a_history_is_read_as_it_was_written() {
        let folder = tempfile::tempdir().unwrap();
        let file = HistoryFile::new(folder.path().join("history"), 0);
        // What a shutdown left that was killed is replaced.
        fs::write(folder.path().join("history.new"), "left").unwrap();
        let (old, new) = (full_broker().await, broker());
        let written = file.try_write(&old).unwrap();
        assert_eq!((written.channels, written.publications), (2, 21), "in several parts");
        let read = file.try_read(&new, &MayTake::default()).unwrap().unwrap();
        assert_eq!((read.channels, read.publications, read.bytes), (2, 21, written.bytes));
        new.finish_import();
        assert_eq!(new.as_broker().channels(None, 100), old.as_broker().channels(None, 100));
        assert_eq!(new.as_broker().usage().history_bytes, old.as_broker().usage().history_bytes);
        let again = file.try_read(&new, &MayTake::default()).unwrap_err().to_string();
        assert_eq!(
            again,
            "an earlier start has taken it over, and no shutdown has written another one since"
        );
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "the file stays");
    }

    #[tokio::test]
    async fn a_history_that_would_not_be_read_is_not_written() {
        let folder = tempfile::tempdir().unwrap();
        let file = HistoryFile { path: folder.path().join("history"), max_bytes: 1_000_000 };
        fs::write(&file.path, "before").unwrap();
        let error = file.try_write(&full_broker().await).unwrap_err().to_string();
        assert_eq!(error, "it takes more than 1000000 bytes");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        assert_eq!(fs::read(&file.path).unwrap(), b"before", "what was there stays");
    }

    #[tokio::test]
    async fn two_processes_do_not_take_one_file_over() {
        let folder = tempfile::tempdir().unwrap();
        let file = HistoryFile::new(folder.path().join("history"), 0);
        file.try_write(&full_broker().await).unwrap();
        let other = File::open(&file.path).unwrap();
        flock(&other, FlockOperation::NonBlockingLockExclusive).unwrap();
        assert!(matches!(file.try_read(&broker(), &MayTake::default()), Err(ReadError::Locked(_))));
        drop(other);
        assert!(file.try_read(&broker(), &MayTake::default()).is_ok());
    }

    #[tokio::test]
    async fn a_start_that_ends_before_it_has_taken_the_file_leaves_it_for_the_next_one() {
        let folder = tempfile::tempdir().unwrap();
        let file = HistoryFile::new(folder.path().join("history"), 64 << 20);
        file.try_write(&full_broker().await).unwrap();
        let stopped = MayTake::default();
        assert!(stopped.forbid());
        assert!(file.try_read(&broker(), &stopped).unwrap().is_none());
        let may_take = MayTake::default();
        assert!(file.try_read(&broker(), &may_take).unwrap().is_some());
        assert!(!may_take.forbid(), "it is too late");
    }
}
