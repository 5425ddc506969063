//! The old process's side.

use std::{
    os::fd::BorrowedFd,
    time::{Duration, Instant},
};

use serde::Serialize;

use crate::{
    failpoint::{Step, hit},
    protocol::{FirstMessage, FromNew, FromOld, Hello, PROTOCOL},
    stream::{FramedStream, MAX_DESCRIPTORS, StreamError},
};

/// Why nothing was handed over.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// The new process does it differently.
    #[error(
        "the new process, version {version}, speaks version {theirs} of the handover, this one {PROTOCOL}"
    )]
    Protocol {
        /// Its version.
        version: String,
        /// Its protocol.
        theirs: u32,
    },
    /// It cannot take all clients.
    #[error("the new process has room for {room} clients, but {clients} are here")]
    TooManyClients {
        /// Most that it can take.
        room: usize,
        /// Those who are here.
        clients: usize,
    },
    /// It said something else than it should have.
    #[error("the new process said something unexpected")]
    Unexpected,
    /// The connection to it failed.
    #[error(transparent)]
    Stream(#[from] StreamError),
}

/// A handover that this process makes.
#[derive(Debug)]
pub struct HandoverSender {
    stream: FramedStream,
    new: Hello,
    room: usize,
}

/// No state of this side's own is in its messages.
type Said = FromOld<(), ()>;

impl HandoverSender {
    /// Waits for the new process to say hello, answers, and waits until it is ready.
    ///
    /// # Errors
    /// When it speaks another protocol, goes, or is not ready until `deadline`.
    pub fn begin(stream: FramedStream, version: &str, deadline: Instant) -> Result<Self, SendError> {
        let FirstMessage::Hello(new) = stream.receive(deadline)? else { return Err(SendError::Unexpected) };
        if new.protocol != PROTOCOL {
            let error = SendError::Protocol { version: new.version, theirs: new.protocol };
            // It is told why, if it still listens; it makes no difference here.
            let _ = stream.send(&refusal(&error), deadline);
            return Err(error);
        }
        let welcome = Hello {
            protocol: PROTOCOL,
            version: version.to_owned(),
            pid: std::process::id(),
            ..Hello::default()
        };
        stream.send(&Said::Welcome(welcome), deadline)?;
        match stream.receive(deadline)? {
            FromNew::Ready { room } => Ok(Self { stream, new, room }),
            FromNew::Complete { .. } | FromNew::Serving => Err(SendError::Unexpected),
        }
    }

    /// What the new process said of itself.
    pub fn new_process(&self) -> &Hello {
        &self.new
    }

    /// Checks whether the new process can take so many clients.
    ///
    /// # Errors
    /// When it cannot.
    pub fn check_capacity(&self, clients: usize) -> Result<(), SendError> {
        if clients > self.room {
            return Err(SendError::TooManyClients { room: self.room, clients });
        }
        Ok(())
    }

    /// Sends everything, waits until the new process has it, and commits: when this returns, the sockets are
    /// the new process's. Each client comes with about how many bytes its state takes up.
    ///
    /// # Errors
    /// When it goes, or is not done within `timeout`. Then nothing has been handed over.
    pub fn send_all<'a, S: Serialize, C: Serialize>(
        &self,
        server: (&S, &[BorrowedFd<'a>]),
        clients: impl Iterator<Item = (BorrowedFd<'a>, C, usize)>,
        timeout: Duration,
    ) -> Result<usize, SendError> {
        /// Large enough to make few messages, small enough to keep both sides busy.
        const BATCH: usize = 1 << 20;
        let deadline = Instant::now() + timeout;
        let (state, descriptors) = server;
        let (first, more) = descriptors.split_at(descriptors.len().min(MAX_DESCRIPTORS));
        self.stream.send_with(&FromOld::<&S, ()>::Server(state), first, deadline)?;
        for more in more.chunks(MAX_DESCRIPTORS) {
            self.stream.send_with(&Said::Descriptors, more, deadline)?;
        }
        let (mut states, mut descriptors, mut bytes, mut sent) = (Vec::new(), Vec::new(), 0, 0);
        let send = |states: &mut Vec<C>, descriptors: &mut Vec<BorrowedFd<'a>>| {
            let batch = FromOld::<(), C>::Clients(std::mem::take(states));
            self.stream.send_with(&batch, &std::mem::take(descriptors), deadline)
        };
        for (descriptor, state, size) in clients {
            states.push(state);
            descriptors.push(descriptor);
            bytes += size;
            sent += 1;
            if states.len() == MAX_DESCRIPTORS || bytes >= BATCH {
                send(&mut states, &mut descriptors)?;
                bytes = 0;
            }
        }
        if !states.is_empty() {
            send(&mut states, &mut descriptors)?;
        }
        self.stream.send(&Said::End { clients: sent }, deadline)?;
        match self.stream.receive(deadline)? {
            FromNew::Complete { clients } if clients == sent => {}
            _ => return Err(SendError::Unexpected),
        }
        if hit(Step::CommitTooLate) {
            // The deadline passes, and nothing comes meanwhile.
            let _ = self.wait_until_serving(deadline);
        }
        // It fits into the socket's buffer, as nothing else is in there: it is sent, or the other side is gone.
        self.stream.send(&Said::Commit, deadline)?;
        Ok(sent)
    }

    /// Waits until the new process says that it serves.
    ///
    /// # Errors
    /// When it is gone, or says nothing until `deadline`. The sockets are its own all the same.
    pub fn wait_until_serving(&self, deadline: Instant) -> Result<(), SendError> {
        match self.stream.receive(deadline)? {
            FromNew::Serving => Ok(()),
            _ => Err(SendError::Unexpected),
        }
    }
}

/// The answer to a process that may not take over, for the reason given.
pub fn refusal(reason: &impl std::fmt::Display) -> impl Serialize {
    Said::Refused { reason: reason.to_string() }
}
