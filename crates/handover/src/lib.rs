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

mod channel;
mod control_socket;
pub mod fault;
mod give;
mod message;
mod take;

pub use channel::{Channel, ChannelError, HEADER, body_length, decode, encode};
pub use control_socket::{ControlSocket, Identity, Name, SocketError, find, others};
pub use give::{Give, GiveError, refusal};
pub use message::{Command, Hello, Opening, PROTOCOL, Progress};
pub use take::{Committed, Serving, Take, TakeError, Taken};
