//! Hands the sockets of one process, and what it knows about them, to another: a transaction over a Unix
//! socket. What is handed over is data and descriptors: this crate knows neither WebSockets nor HTTP, and
//! uses no async runtime.
//!
//! - [`HandoverSender`] is the old process's side, [`HandoverReceiver`] the new one's. Their messages, and
//!   those of operators, are all in `protocol.rs`; a [`FramedStream`] carries them, with descriptors and
//!   deadlines.
//! - [`ControlSocket`] is where operators reach a running server. [`SocketName`] is its name in its folder,
//!   [`FileIdentity`] the file that it has, and [`find_socket`] finds that of a server.
//! - [`failpoint`] has a process fail at a step, in tests.
//!
//! ```text
//! new process                         old process
//!     Hello ───────────────────────────▶
//!        ◀─────────────────────────── Accepted, or Refused
//!     Ready ───────────────────────────▶    the new process has loaded and built everything
//!        ◀─────────────────────────── Part      channels and their history; any number of them
//!                                           … the old one stops touching its sockets
//!        ◀─────────────────────────── Part      what was added to them since
//!        ◀─────────────────────────── Server    the state of the server; Descriptors: more of its descriptors
//!        ◀─────────────────────────── Clients   batch by batch, with their sockets
//!        ◀─────────────────────────── End
//!     Complete ────────────────────────▶    the new process has everything
//!        ◀─────────────────────────── Commit    from here on the sockets are the new process's
//!     Serving ─────────────────────────▶    the old process ends
//! ```
//!
//! Until the new process has read `Commit` it touches no socket, and until the old one has sent it, the old
//! one keeps every descriptor and all of its state: if anything goes wrong before, it continues as if nothing
//! had happened.
//!
//! # Example
//!
//! A server with one client is handed over, here between two threads:
//!
//! ```
//! use std::{
//!     fs::File,
//!     os::fd::AsFd,
//!     thread,
//!     time::{Duration, Instant},
//! };
//!
//! use lastcall_handover::{
//!     FramedStream, HandoverReceiver, HandoverSender, Hello, OutgoingClient, OutgoingServer,
//! };
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let timeout = Duration::from_secs(5);
//! let (old, new) = FramedStream::pair()?;
//! let new_process = thread::spawn(move || {
//!     let stream = FramedStream::new(new.into()).unwrap();
//!     let receiver = HandoverReceiver::begin(stream, Hello::default(), timeout).unwrap();
//!     let received = receiver.receive::<String, String>(1, timeout, |_| Ok(())).unwrap();
//!     let committed = received.commit(timeout).unwrap();
//!     committed.old_process.report_serving(timeout).unwrap();
//!     (committed.server.state, committed.clients.len())
//! });
//!
//! let (listener, socket) = (File::open("/dev/null")?, File::open("/dev/null")?);
//! let deadline = Instant::now() + timeout;
//! let sender = HandoverSender::begin(old, "1.0.0", deadline)?;
//! let server = OutgoingServer { state: &"its state".to_owned(), descriptors: &[listener.as_fd()] };
//! let client = OutgoingClient { socket: socket.as_fd(), state: "its state".to_owned(), size: 10 };
//! sender.send_all(server, [client].into_iter(), deadline)?;
//! sender.wait_until_serving(deadline)?;
//! assert_eq!(new_process.join().unwrap(), ("its state".to_owned(), 1));
//! # Ok(())
//! # }
//! ```

mod control_socket;
pub mod failpoint;
mod path;
mod protocol;
mod receiver;
mod sender;
mod stream;

pub use control_socket::{ControlSocket, FileIdentity, SocketError, SocketName, bound_sockets, find_socket};
pub use protocol::{
    ControlCommand, FirstMessage, Hello, OLDEST_PROTOCOL, PROTOCOL, ServerAddress, UpgradeProgress,
};
pub use receiver::{
    Committed, HandoverReceiver, OldProcess, PartError, ReceiveError, ReceivedClient, ReceivedHandover,
    ReceivedServer,
};
pub use sender::{HandoverSender, OutgoingClient, OutgoingServer, SendError, refusal};
pub use stream::{FramedStream, HEADER_LEN, StreamError, body_len, decode, encode};
