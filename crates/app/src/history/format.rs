//! What is in a history file: bytes that say so, the version of the format, the parts, each after its length, an end
//! with their number, and a CRC-32 of all that. Numbers have their highest byte first.

use std::io::{self, Read, Write};

use crc32fast::Hasher;
use thiserror::Error;

/// The first bytes of each file.
const MAGIC: [u8; 8] = *b"lastcall";

/// The version of the format. A build reads its own version alone.
const VERSION: u32 = 1;

/// The length that stands where there is no other part.
const END: u32 = 0;

/// Why what was read is not used.
#[derive(Debug, Error)]
pub(super) enum FormatError {
    #[error("it is not a history file")]
    Other,
    #[error("it has version {0} of the format, and this program reads version {VERSION}")]
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
    /// Writes the beginning.
    pub(super) fn begin(output: W) -> io::Result<Self> {
        let mut writer = Self { output, crc: Hasher::new(), parts: 0, bytes: 0 };
        writer.write(&MAGIC)?;
        writer.write(&VERSION.to_be_bytes())?;
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

/// Reads a history file of `size` bytes, and calls `take_part` with each part. Whether the file is complete is known at
/// the end only.
pub(super) fn read(
    input: impl Read,
    size: u64,
    mut take_part: impl FnMut(&[u8]) -> Result<(), FormatError>,
) -> Result<(), FormatError> {
    let mut reader = FormatReader { input, crc: Hasher::new(), left: size };
    if reader.array().map_err(|error| error.or_if_torn(FormatError::Other))? != MAGIC {
        return Err(FormatError::Other);
    }
    let version = u32::from_be_bytes(reader.array()?);
    if version != VERSION {
        return Err(FormatError::Version(version));
    }
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
        take_part(&part)?;
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

    fn file() -> Vec<u8> {
        let mut writer = FormatWriter::begin(Vec::new()).unwrap();
        writer.part(b"one").unwrap();
        writer.part(&[7; 300]).unwrap();
        assert!(writer.part(b"").is_err());
        let (file, bytes) = writer.end().unwrap();
        assert_eq!(bytes, file.len() as u64);
        file
    }

    fn parts(file: &[u8]) -> Result<Vec<Vec<u8>>, FormatError> {
        let mut parts = Vec::new();
        read(file, file.len() as u64, |part| {
            parts.push(part.to_vec());
            Ok(())
        })?;
        Ok(parts)
    }

    #[test]
    fn a_file_has_the_form_of_its_version() {
        let mut writer = FormatWriter::begin(Vec::new()).unwrap();
        writer.part(b"one").unwrap();
        let (file, _) = writer.end().unwrap();
        let expected = b"lastcall\0\0\0\x01\0\0\0\x03one\0\0\0\0\0\0\0\0\0\0\0\x01\xEA\x61\x84\xAD";
        assert_eq!(file, expected, "another form needs another version");
        assert_eq!(parts(&self::file()).unwrap(), [b"one".to_vec(), vec![7; 300]]);
    }

    #[test]
    fn a_file_that_is_cut_or_changed_anywhere_is_refused() {
        let whole = file();
        for length in 0..whole.len() {
            assert!(parts(&whole[..length]).is_err(), "{length} bytes");
            // The size that the system tells may be that of a moment ago.
            assert!(read(&whole[..length], whole.len() as u64, |_| Ok(())).is_err(), "{length} bytes");
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
        file[11] = 2;
        let error = parts(&file).unwrap_err().to_string();
        assert_eq!(error, "it has version 2 of the format, and this program reads version 1");
        assert_eq!(parts(b"").unwrap_err().to_string(), "it is not a history file");
        assert_eq!(parts(b"#!/bin/sh\nexit").unwrap_err().to_string(), "it is not a history file");
        assert_eq!(parts(&file[..10]).unwrap_err().to_string(), "it is not complete, or was changed");
    }
}
