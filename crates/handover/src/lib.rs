//! How one process hands its sockets, and what it knows about them, to another: a transaction over a Unix
//! socket. Knows neither WebSockets nor HTTP: what is handed over is data and descriptors.
//!
//! ```text
//! new process                         old process
//!     Hello ───────────────────────────▶
//!        ◀─────────────────────────── Welcome, or Refused
//!     Ready ───────────────────────────▶    it has loaded and built everything
//!                                           … the old one stops touching its sockets
//!        ◀─────────────────────────── Server    what there is once, with its descriptors; Descriptors: more of them
//!        ◀─────────────────────────── Clients   batch by batch, with theirs
//!        ◀─────────────────────────── End
//!     Complete ────────────────────────▶    it has everything
//!        ◀─────────────────────────── Commit    from here on the sockets are the new one's
//!     Serving ─────────────────────────▶    the old one ends
//! ```
//!
//! Until the new process has read `Commit` it touches no socket, and until the old one has sent it, that keeps
//! every descriptor and all of its state: if anything goes wrong before, it goes on as if nothing had happened.

mod control_socket;
pub mod failpoint;
mod protocol;
mod receiver;
mod sender;
mod stream;

pub use control_socket::{ControlSocket, FileIdentity, SocketError, SocketName, bound_sockets, find_socket};
pub use protocol::{ControlCommand, FirstMessage, Hello, PROTOCOL, UpgradeProgress};
pub use receiver::{Committed, HandoverReceiver, ReceiveError, Received, Serving};
pub use sender::{HandoverSender, SendError, refusal};
pub use stream::{FramedStream, HEADER_LEN, StreamError, body_len, decode, encode};
