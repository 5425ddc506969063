//! The file to which a graceful shutdown writes the history, and from which the next start reads it.
//!
//! A start removes the file before the server serves: were it there after a `kill -9`, the next start would give offsets
//! a second time.

use std::{
    ffi::OsString,
    fmt,
    fs::{self, File, OpenOptions},
    io::{self, BufReader, BufWriter, Seek, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use lastcall_broker::{BrokerPart, ChannelPart, MemoryBroker, MemoryExport};
use lastcall_core::ChannelName;
use rustix::fs::{Access, OFlags, access};
use thiserror::Error;
use tracing::{info, warn};

use super::{
    format::{self, FormatError, FormatWriter},
    part,
};

/// What a file may have on top of the data: the names of channels, positions and idempotency keys.
const MAX_OVERHEAD: u64 = 64 << 20;

/// A history file, which may not be there.
#[derive(Debug, Clone)]
pub(crate) struct HistoryFile {
    path: PathBuf,
    /// Most bytes that are written or read.
    max_bytes: u64,
}

/// Why there can be no such file.
#[derive(Debug, Error)]
pub(crate) enum UnusablePath {
    #[error("its folder cannot be used: {0}")]
    Folder(io::Error),
    #[error("it is not a regular file")]
    NotRegular,
    #[error("cannot write there: {0}")]
    NotWritable(io::Error),
}

/// Why the history was not written.
#[derive(Debug, Error)]
enum WriteError {
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
    #[error("it has {size} bytes, and at most {most} are read")]
    TooLarge { size: u64, most: u64 },
    #[error(transparent)]
    Format(#[from] FormatError),
    #[error("it cannot be removed, and must not be read a second time: {0}")]
    Remove(io::Error),
    #[error("it is older than what this server has, which an upgrade has brought")]
    Superseded,
}

/// What was written or read.
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

    /// Checks that a file can be written at this path, without writing it: a shutdown would find out too late.
    ///
    /// # Errors
    /// When its folder does not exist or cannot be written, or something other than a regular file has that name.
    pub(crate) fn check(path: &Path) -> Result<(), UnusablePath> {
        let folder = path.parent().unwrap_or(Path::new("/"));
        let metadata = fs::metadata(folder).map_err(UnusablePath::Folder)?;
        if !metadata.is_dir() {
            return Err(UnusablePath::Folder(io::ErrorKind::NotADirectory.into()));
        }
        access(folder, Access::WRITE_OK | Access::EXEC_OK)
            .map_err(|error| UnusablePath::NotWritable(error.into()))?;
        match fs::metadata(path) {
            Ok(metadata) if !metadata.is_file() => Err(UnusablePath::NotRegular),
            // The one that reads it says why it cannot be read.
            _ => Ok(()),
        }
    }

    /// Writes what the broker keeps, and logs how that went. Nothing is published meanwhile.
    pub(crate) fn write(&self, broker: &Arc<MemoryBroker>) {
        match self.try_write(broker) {
            Ok(Summary { channels, publications, bytes, .. }) => info!(
                path = %self.path.display(),
                channels,
                publications,
                bytes,
                "the history was written, for the next start"
            ),
            Err(error) => warn!("the history could not be written, and the next start has none: {error}"),
        }
    }

    /// Has the broker take over what the file has, removes the file, and logs how that went. The broker keeps nothing
    /// yet, and keeps nothing after this if the file cannot be used.
    pub(crate) fn read(&self, broker: &MemoryBroker) {
        match self.try_read(broker) {
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

    /// Sets a file aside that is there although the broker has its history from the old process, and logs that. After a
    /// `kill -9`, the next start would give its offsets a second time.
    pub(crate) fn set_aside_superseded(&self) {
        let is_absent = |error: io::Error| error.kind() == io::ErrorKind::NotFound;
        if fs::symlink_metadata(&self.path).is_err_and(is_absent) {
            return;
        }
        let error = ReadError::Superseded;
        let kept = self.set_aside(&error);
        let path = self.path.display();
        warn!("the history in {path} is not used: {error}; {kept}");
    }

    fn try_write(&self, broker: &Arc<MemoryBroker>) -> Result<Summary, WriteError> {
        // In the same folder, so that it can take the place of the other one in one step.
        let new = self.beside(".new");
        let summary = self.write_new(&new, broker).inspect_err(|_| {
            // Of a file that is not complete, nothing is read.
            let _ = fs::remove_file(&new);
        })?;
        let renamed = fs::rename(&new, &self.path).and_then(|()| self.sync_folder());
        renamed.map_err(|source| WriteError::Io { path: self.path.clone(), source })?;
        Ok(summary)
    }

    fn write_new(&self, new: &Path, broker: &Arc<MemoryBroker>) -> Result<Summary, WriteError> {
        let failed = |source| WriteError::Io { path: new.to_owned(), source };
        match fs::remove_file(new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
            // One that a shutdown left when it was killed is gone.
            _ => {}
        }
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(new).map_err(failed)?;
        let mut writer = FormatWriter::begin(BufWriter::new(file)).map_err(failed)?;
        let mut summary = Summary::default();
        for part in MemoryExport::new(Arc::clone(broker)).pass() {
            summary.add(&part);
            writer.part(&part::encode(&part)?).map_err(failed)?;
            if writer.bytes() > self.max_bytes {
                return Err(WriteError::TooLarge(self.max_bytes));
            }
        }
        let (mut output, bytes) = writer.end().map_err(failed)?;
        output.flush().map_err(failed)?;
        output.get_ref().sync_all().map_err(failed)?;
        Ok(Summary { bytes, ..summary })
    }

    fn try_read(&self, broker: &MemoryBroker) -> Result<Option<Summary>, ReadError> {
        let mut options = OpenOptions::new();
        // A FIFO has no end, and opening one waits for the process that writes it.
        let not_blocking = i32::try_from(OFlags::NONBLOCK.bits()).unwrap_or_default();
        let file = match options.read(true).custom_flags(not_blocking).open(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(ReadError::Open(error)),
        };
        let metadata = file.metadata().map_err(ReadError::Open)?;
        if !metadata.is_file() {
            return Err(ReadError::NotRegular);
        }
        let size = metadata.len();
        if size > self.max_bytes {
            return Err(ReadError::TooLarge { size, most: self.max_bytes });
        }
        let mut file = BufReader::new(file);
        // Twice: whether the file is complete is known at its end only.
        format::read(&mut file, size, |_| Ok(()))?;
        file.rewind().map_err(FormatError::Io)?;
        let mut summary = Summary { bytes: size, ..Summary::default() };
        format::read(&mut file, size, |bytes| {
            let part = part::decode(bytes).map_err(|error| FormatError::Part(error.into()))?;
            summary.add(&part);
            broker.import(part).map_err(|error| FormatError::Part(error.into()))
        })?;
        fs::remove_file(&self.path).and_then(|()| self.sync_folder()).map_err(ReadError::Remove)?;
        Ok(Some(summary))
    }

    /// Makes room for the file of the next shutdown. Returns what became of the one that cannot be used.
    fn set_aside(&self, error: &ReadError) -> impl fmt::Display {
        if let ReadError::Remove(_) = error {
            return "remove it before the next start".to_owned();
        }
        let unusable = self.beside(".unusable");
        match fs::rename(&self.path, &unusable).and_then(|()| self.sync_folder()) {
            Ok(()) => format!("it is now {}", unusable.display()),
            Err(error) => format!("remove it before the next start: it cannot be renamed ({error})"),
        }
    }

    /// Returns the path of another file in the same folder.
    fn beside(&self, suffix: &str) -> PathBuf {
        let mut path = OsString::from(&self.path);
        path.push(suffix);
        path.into()
    }

    /// Has what was renamed or removed stay so when the machine fails.
    fn sync_folder(&self) -> io::Result<()> {
        File::open(self.path.parent().unwrap_or(Path::new("/")))?.sync_all()
    }
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
    use lastcall_broker::{Broker, Config};
    use lastcall_core::{Publication, Publisher};
    use serde_json::value::RawValue;

    use super::*;
    use crate::history::testing::NoDelivery;

    fn broker() -> Arc<MemoryBroker> {
        Arc::new(MemoryBroker::new(Config::default(), Box::new(NoDelivery)))
    }

    /// Returns a broker with 20 publications of 60,000 bytes in one channel, and one in another.
    async fn full_broker() -> Arc<MemoryBroker> {
        let broker = broker();
        let data = RawValue::from_string(format!("\"{}\"", "x".repeat(60_000))).unwrap();
        let publications = vec![Publication::new(Publisher::Api, data); 20];
        broker.publish(&"a".parse().unwrap(), publications.clone(), None).await.unwrap();
        broker.publish(&"b".parse().unwrap(), publications[..1].to_vec(), None).await.unwrap();
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
        let read = file.try_read(&new).unwrap().unwrap();
        assert_eq!((read.channels, read.publications, read.bytes), (2, 21, written.bytes));
        new.finish_import();
        assert_eq!(new.channels(None, 100), old.channels(None, 100));
        assert_eq!(new.usage().history_bytes, old.usage().history_bytes);
        assert!(file.try_read(&new).unwrap().is_none(), "it is used once");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[tokio::test]
    async fn a_history_that_would_not_be_read_is_not_written() {
        let folder = tempfile::tempdir().unwrap();
        let file = HistoryFile { path: folder.path().join("history"), max_bytes: 1_000_000 };
        let error = file.try_write(&full_broker().await).unwrap_err().to_string();
        assert_eq!(error, "it takes more than 1000000 bytes");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_history_file_needs_a_folder_and_may_not_be_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        fs::write(path("old"), "").unwrap();
        assert!(HistoryFile::check(&path("new")).is_ok() && HistoryFile::check(&path("old")).is_ok());
        assert!(!path("new").exists(), "nothing was written");
        for (name, reason) in [
            ("none/new", "its folder cannot be used: No such file"),
            ("old/new", "its folder cannot be used: not a directory"),
            (".", "it is not a regular file"),
        ] {
            let error = HistoryFile::check(&path(name)).unwrap_err().to_string();
            assert!(error.starts_with(reason), "{error}");
        }
    }
}
