//! A stream in memory, for tests.

use std::{
    cell::Cell,
    collections::VecDeque,
    io::{self, ErrorKind, Read, Write},
};

use super::stream::{Stream, TcpProgress};

/// The server's end of a stream whose client is the test.
#[derive(Debug, Default)]
pub(crate) struct MemoryStream {
    /// The results of reads, one after the other: bytes, or an error. Then they would block.
    pub(crate) input: VecDeque<Result<Vec<u8>, ErrorKind>>,
    /// True if the client ends the stream after `input`.
    pub(crate) is_ended: bool,
    /// Bytes that were written.
    pub(crate) written: Vec<u8>,
    /// Bytes that can still be written before a write would block.
    pub(crate) capacity: usize,
    /// The error of the next write.
    pub(crate) write_error: Option<ErrorKind>,
    /// The number of writes that were tried.
    pub(crate) writes: usize,
    /// True if the server has shut down its direction.
    pub(crate) is_shut_down: Cell<bool>,
}

impl MemoryStream {
    pub(crate) fn receive(&mut self, bytes: impl Into<Vec<u8>>) {
        let bytes = bytes.into();
        if !bytes.is_empty() {
            self.input.push_back(Ok(bytes));
        }
    }
}

impl Read for MemoryStream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.input.pop_front() {
            Some(Ok(mut bytes)) => {
                let n = bytes.len().min(buffer.len());
                buffer[..n].copy_from_slice(&bytes[..n]);
                if n < bytes.len() {
                    self.input.push_front(Ok(bytes.split_off(n)));
                }
                Ok(n)
            }
            Some(Err(error)) => Err(error.into()),
            None if self.is_ended => Ok(0),
            None => Err(ErrorKind::WouldBlock.into()),
        }
    }
}

impl Write for MemoryStream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.writes += 1;
        if let Some(error) = self.write_error.take() {
            return Err(error.into());
        }
        let n = bytes.len().min(self.capacity);
        if n == 0 {
            return Err(ErrorKind::WouldBlock.into());
        }
        self.capacity -= n;
        self.written.extend(&bytes[..n]);
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Stream for MemoryStream {
    fn peek(&self, _buffer: &mut [u8]) -> io::Result<usize> {
        match self.input.front() {
            Some(Ok(_)) => Ok(1),
            Some(Err(error)) => Err((*error).into()),
            None if self.is_ended => Ok(0),
            None => Err(ErrorKind::WouldBlock.into()),
        }
    }

    fn tcp_progress(&self) -> io::Result<TcpProgress> {
        Ok(TcpProgress { acknowledged: self.written.len() as u32, ..TcpProgress::default() })
    }

    fn shutdown_write(&self) -> io::Result<()> {
        self.is_shut_down.set(true);
        Ok(())
    }
}
