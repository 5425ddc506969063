//! The content of a history file: bytes that say so, the version of the format, the time of day, the parts,
//! each after its length, an end with their number, and a CRC-32 of all that. Numbers have their highest byte
//! first.
//!
//! A start that takes the file over writes other bytes over the first ones: its ids must not be given a
//! second time.

use std::{
    fs::File,
    io::{self, Read, Write},
    os::unix::fs::FileExt,
    time::Duration,
};

use crc32fast::Hasher;
use thiserror::Error;

/// The first bytes of a file that was not taken over yet.
const MAGIC: [u8; 8] = *b"lastcall";

/// The first bytes of a file that a start has taken over. As many as the others, and in one sector of a disk:
/// there is no state in between.
const TAKEN: [u8; 8] = *b"lastused";

/// The version of the format.
const VERSION: u32 = 2;

/// The version before it, which is read, too: it had moments in place of ages, and no time of day.
const VERSION_WITH_MOMENTS: u32 = 1;

/// The length that stands where there is no other part.
const END: u32 = 0;

/// Why what was read is not used.
#[derive(Debug, Error)]
pub(super) enum FormatError {
    #[error("it is not a history file")]
    Other,
    #[error("an earlier start has taken it over, and no shutdown has written another one since")]
    Taken,
    #[error(
        "it has version {0} of the format, and this program reads versions {VERSION_WITH_MOMENTS} and {VERSION}"
    )]
    Version(u32),
    #[error("it is not complete, or was changed")]
    Torn,
    #[error("it cannot be read: {0}")]
    Io(io::Error),
    #[error("a part of it cannot be used: {0}")]
    Part(Box<dyn std::error::Error + Send + Sync>),
}

/// Writes a history file.
pub(super) struct FormatWriter<W> {
    output: W,
    crc: Hasher,
    parts: u64,
    /// Bytes so far.
    bytes: u64,
}

impl<W: Write> FormatWriter<W> {
    /// Writes the beginning. `since_1970`: the time of day.
    pub(super) fn begin(output: W, since_1970: Duration) -> io::Result<Self> {
        let mut writer = Self { output, crc: Hasher::new(), parts: 0, bytes: 0 };
        writer.write(&MAGIC)?;
        writer.write(&VERSION.to_be_bytes())?;
        writer.write(&u64::try_from(since_1970.as_millis()).unwrap_or(u64::MAX).to_be_bytes())?;
        Ok(writer)
    }

    /// Writes a part, which is not empty.
    pub(super) fn part(&mut self, part: &[u8]) -> io::Result<()> {
        let length = u32::try_from(part.len()).ok().filter(|length| *length != END);
        let length = length.ok_or_else(|| io::Error::other("a part has an impossible length"))?;
        self.write(&length.to_be_bytes())?;
        self.write(part)?;
        self.parts += 1;
        Ok(())
    }

    /// Writes the end. Returns the output, and the number of bytes.
    pub(super) fn end(mut self) -> io::Result<(W, u64)> {
        self.write(&END.to_be_bytes())?;
        self.write(&self.parts.to_be_bytes())?;
        let crc = self.crc.clone().finalize();
        self.write(&crc.to_be_bytes())?;
        Ok((self.output, self.bytes))
    }

    /// Returns how many bytes there are so far.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.crc.update(bytes);
        self.bytes += bytes.len() as u64;
        self.output.write_all(bytes)
    }
}

/// Returns true if these are the first bytes of a file that was taken over.
pub(super) fn is_taken(first: [u8; 8]) -> bool {
    first == TAKEN
}

/// Marks a file as taken over: it is not read any more.
pub(super) fn mark_as_taken(file: &File) -> io::Result<()> {
    file.write_all_at(&TAKEN, 0)?;
    file.sync_all()
}

/// Reads a history file of `size` bytes, and calls `take_part` with each part, and with the time of day at
/// which it was written, if that is known. Whether the file is complete is known at the end only.
pub(super) fn read(
    input: impl Read,
    size: u64,
    mut take_part: impl FnMut(&[u8], Option<Duration>) -> Result<(), FormatError>,
) -> Result<(), FormatError> {
    let mut reader = FormatReader { input, crc: Hasher::new(), left: size };
    match reader.array().map_err(|error| error.or_if_torn(FormatError::Other))? {
        MAGIC => {}
        TAKEN => return Err(FormatError::Taken),
        _ => return Err(FormatError::Other),
    }
    let written_at = match u32::from_be_bytes(reader.array()?) {
        VERSION => Some(Duration::from_millis(u64::from_be_bytes(reader.array()?))),
        VERSION_WITH_MOMENTS => None,
        version => return Err(FormatError::Version(version)),
    };
    let mut parts = 0_u64;
    let mut part = Vec::new();
    loop {
        let length = u32::from_be_bytes(reader.array()?);
        if length == END {
            break;
        }
        if u64::from(length) > reader.left {
            return Err(FormatError::Torn);
        }
        part.resize(length as usize, 0);
        reader.fill(&mut part)?;
        take_part(&part, written_at)?;
        parts += 1;
    }
    let written = u64::from_be_bytes(reader.array()?);
    let crc = reader.crc.clone().finalize();
    let is_whole = crc == u32::from_be_bytes(reader.array()?) && written == parts && reader.left == 0;
    if is_whole { Ok(()) } else { Err(FormatError::Torn) }
}

struct FormatReader<R> {
    input: R,
    crc: Hasher,
    /// Bytes of the file that were not read yet.
    left: u64,
}

impl<R: Read> FormatReader<R> {
    fn array<const N: usize>(&mut self) -> Result<[u8; N], FormatError> {
        let mut bytes = [0; N];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    fn fill(&mut self, bytes: &mut [u8]) -> Result<(), FormatError> {
        self.left = self.left.checked_sub(bytes.len() as u64).ok_or(FormatError::Torn)?;
        self.input.read_exact(bytes).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => FormatError::Torn,
            _ => FormatError::Io(error),
        })?;
        self.crc.update(bytes);
        Ok(())
    }
}

impl FormatError {
    /// Returns another error in place of [`FormatError::Torn`].
    fn or_if_torn(self, other: Self) -> Self {
        if matches!(self, Self::Torn) { other } else { self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIME: Duration = Duration::from_millis(0x0102_0304);

    fn file() -> Vec<u8> {
        let mut writer = FormatWriter::begin(Vec::new(), TIME).unwrap();
        writer.part(b"one").unwrap();
        writer.part(&[7; 300]).unwrap();
        assert!(writer.part(b"").is_err());
        let (file, bytes) = writer.end().unwrap();
        assert_eq!(bytes, file.len() as u64);
        file
    }

    fn parts(file: &[u8]) -> Result<Vec<Vec<u8>>, FormatError> {
        let mut parts = Vec::new();
        read(file, file.len() as u64, |part, _| {
            parts.push(part.to_vec());
            Ok(())
        })?;
        Ok(parts)
    }

    #[test]
    fn a_file_has_the_form_of_its_version() {
        let mut writer = FormatWriter::begin(Vec::new(), TIME).unwrap();
        writer.part(b"one").unwrap();
        let (file, _) = writer.end().unwrap();
        let head = b"lastcall\0\0\0\x02\0\0\0\0\x01\x02\x03\x04\0\0\0\x03one\0\0\0\0\0\0\0\0\0\0\0\x01";
        let expected = [&head[..], &crc32fast::hash(head).to_be_bytes()].concat();
        assert_eq!(file, expected, "another form needs another version");
        let with_time = read(&file[..], file.len() as u64, |_, written_at| {
            assert_eq!(written_at, Some(TIME));
            Ok(())
        });
        with_time.unwrap();
        assert_eq!(parts(&self::file()).unwrap(), [b"one".to_vec(), vec![7; 300]]);
    }

    #[test]
    fn a_file_of_the_version_before_is_read_without_a_time() {
        let file = b"lastcall\0\0\0\x01\0\0\0\x03one\0\0\0\0\0\0\0\0\0\0\0\x01\xEA\x61\x84\xAD";
        let mut parts = Vec::new();
        let take_part = |part: &[u8], written_at: Option<Duration>| {
            parts.push((part.to_vec(), written_at));
            Ok(())
        };
        read(&file[..], file.len() as u64, take_part).unwrap();
        assert_eq!(parts, [(b"one".to_vec(), None)]);
    }

    #[test]
    fn a_file_that_was_taken_over_is_not_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("history");
        std::fs::write(&path, file()).unwrap();
        mark_as_taken(&File::options().write(true).open(&path).unwrap()).unwrap();
        let taken = std::fs::read(&path).unwrap();
        assert!(matches!(parts(&taken), Err(FormatError::Taken)));
        assert_eq!((taken.len(), &taken[8..]), (file().len(), &file()[8..]), "the rest is as it was");
    }

    #[test]
    fn a_file_that_is_cut_or_changed_anywhere_is_refused() {
        let whole = file();
        for length in 0..whole.len() {
            assert!(parts(&whole[..length]).is_err(), "{length} bytes");
            // The size that the system tells may be that of a moment ago.
            assert!(read(&whole[..length], whole.len() as u64, |_, _| Ok(())).is_err(), "{length} bytes");
        }
        assert!(parts(&[&whole[..], b"\0"].concat()).is_err());
        for changed in 0..whole.len() {
            for bit in 0..8 {
                let mut file = whole.clone();
                file[changed] ^= 1 << bit;
                assert!(parts(&file).is_err(), "bit {bit} of byte {changed}");
            }
        }
    }

    #[test]
    fn a_file_of_another_version_or_program_is_told_from_one_that_is_torn() {
        let mut file = file();
        file[11] = 3;
        let error = parts(&file).unwrap_err().to_string();
        assert_eq!(error, "it has version 3 of the format, and this program reads versions 1 and 2");
        assert_eq!(parts(b"").unwrap_err().to_string(), "it is not a history file");
        assert_eq!(parts(b"#!/bin/sh\nexit").unwrap_err().to_string(), "it is not a history file");
        assert_eq!(parts(&file[..10]).unwrap_err().to_string(), "it is not complete, or was changed");
    }
}
