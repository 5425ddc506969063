//! The TCP stream of a connection, and the point to which the kernel has got with what was written to it.

use std::{
    io::{self, Read, Write},
    os::fd::AsRawFd,
};

/// The actions that a connection needs of its TCP stream, which does not block.
pub(crate) trait Stream: Read + Write {
    /// Reads without taking the bytes from the stream (recv(2), `MSG_PEEK`).
    ///
    /// # Errors
    /// Those of the system; `WouldBlock` when nothing has arrived.
    fn peek(&self, buffer: &mut [u8]) -> io::Result<usize>;

    /// Returns how far the kernel has got with what was written.
    ///
    /// # Errors
    /// Those of the system.
    fn tcp_progress(&self) -> io::Result<TcpProgress>;

    /// Ends the direction to the client (shutdown(2), `SHUT_WR`).
    ///
    /// # Errors
    /// Those of the system.
    fn shutdown_write(&self) -> io::Result<()>;
}

impl Stream for mio::net::TcpStream {
    fn peek(&self, buffer: &mut [u8]) -> io::Result<usize> {
        Self::peek(self, buffer)
    }

    fn tcp_progress(&self) -> io::Result<TcpProgress> {
        TcpProgress::of(self)
    }

    fn shutdown_write(&self) -> io::Result<()> {
        self.shutdown(std::net::Shutdown::Write)
    }
}

/// The point to which the kernel has got with what was written to a socket (TCP_INFO, tcp(7)). What a client
/// has acknowledged shows that it reads, or that its kernel does; that a socket takes more may only show that
/// its buffer has grown.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TcpProgress {
    /// Bytes that the client has acknowledged. Wraps around: only differences count.
    pub(crate) acknowledged: u32,
    /// True if something was sent that the client has not acknowledged.
    pub(crate) in_flight: bool,
    /// True if something is not sent yet: the client has no room for it, or the network none.
    pub(crate) unsent: bool,
}

impl TcpProgress {
    /// Returns that of a TCP socket.
    ///
    /// # Errors
    /// Those of the system.
    pub(crate) fn of(socket: &impl AsRawFd) -> io::Result<Self> {
        // An older kernel fills less of it.
        let mut info: std::mem::MaybeUninit<libc::tcp_info> = std::mem::MaybeUninit::zeroed();
        let mut size = size_of::<libc::tcp_info>() as libc::socklen_t;
        let (level, name) = (libc::IPPROTO_TCP, libc::TCP_INFO);
        #[expect(unsafe_code, reason = "the system call has no safe form")]
        // SAFETY: the kernel writes at most `size` bytes to `info`, which has as many; it is plain data, all
        // zeros of which is valid.
        let info = unsafe {
            if libc::getsockopt(socket.as_raw_fd(), level, name, info.as_mut_ptr().cast(), &mut size) != 0 {
                return Err(io::Error::last_os_error());
            }
            info.assume_init()
        };
        Ok(Self {
            acknowledged: info.tcpi_bytes_acked as u32,
            in_flight: info.tcpi_unacked > 0,
            unsent: info.tcpi_notsent_bytes > 0,
        })
    }
}
