//! The new process's side.

use std::{
    os::fd::OwnedFd,
    path::PathBuf,
    time::{Duration, Instant},
};

use serde::de::DeserializeOwned;

use crate::{
    failpoint::{Step, hit},
    protocol::{FirstMessage, FromNew, FromOld, Hello, PROTOCOL},
    stream::{FramedStream, StreamError},
};

/// Why nothing was taken over.
#[derive(Debug, thiserror::Error)]
pub enum ReceiveError {
    /// It does not want to.
    #[error("the old process refused: {0}")]
    Refused(String),
    /// It does it differently.
    #[error(
        "the old process, version {version}, speaks version {theirs} of the handover, this one {PROTOCOL}"
    )]
    Protocol {
        /// Its version.
        version: String,
        /// Its protocol.
        theirs: u32,
    },
    /// It said something else than it should have.
    #[error("the old process said something unexpected")]
    Unexpected,
    /// The connection to it failed.
    #[error(transparent)]
    Stream(#[from] StreamError),
}

/// A handover that this process receives.
#[derive(Debug)]
pub struct HandoverReceiver {
    stream: FramedStream,
    old: Hello,
}

/// What was received. Nothing of it may be touched before [`Received::commit`].
#[derive(Debug)]
pub struct Received<S, C> {
    /// What there is once, with its descriptors.
    pub server: (S, Vec<OwnedFd>),
    /// The clients, each with its socket.
    pub clients: Vec<(OwnedFd, C)>,
    stream: FramedStream,
}

impl HandoverReceiver {
    /// Says hello to the old process, which is at the other end of `stream`. `files` are the settings files that
    /// this process has read.
    ///
    /// # Errors
    /// When the old process is gone, or refuses.
    pub fn begin(
        stream: FramedStream,
        version: &str,
        files: Vec<PathBuf>,
        timeout: Duration,
    ) -> Result<Self, ReceiveError> {
        let deadline = Instant::now() + timeout;
        hit(Step::Started);
        let protocol = if hit(Step::OtherProtocol) { PROTOCOL + 1 } else { PROTOCOL };
        let hello = Hello { protocol, version: version.to_owned(), pid: std::process::id(), files };
        stream.send(&FirstMessage::Hello(hello), deadline)?;
        hit(Step::SaidHello);
        match stream.receive::<FromOld<(), ()>>(deadline)? {
            FromOld::Welcome(old) if old.protocol == PROTOCOL => {
                hit(Step::Welcomed);
                Ok(Self { stream, old })
            }
            FromOld::Welcome(old) => {
                Err(ReceiveError::Protocol { version: old.version, theirs: old.protocol })
            }
            FromOld::Refused { reason } => Err(ReceiveError::Refused(reason)),
            _ => Err(ReceiveError::Unexpected),
        }
    }

    /// Who hands over.
    pub fn old(&self) -> &Hello {
        &self.old
    }

    /// Says that this process is ready to take at most `room` clients, and takes in what comes. The old
    /// process may finish requests first: `timeout` is for all of it.
    ///
    /// # Errors
    /// When the old process goes, or changes its mind.
    pub fn receive<S: DeserializeOwned, C: DeserializeOwned>(
        self,
        room: usize,
        timeout: Duration,
    ) -> Result<Received<S, C>, ReceiveError> {
        let deadline = Instant::now() + timeout;
        let stream = self.stream;
        stream.send(&FromNew::Ready { room }, deadline)?;
        hit(Step::SaidReady);
        let (message, descriptors) = stream.receive_with::<FromOld<S, ()>>(deadline)?;
        let FromOld::Server(state) = message else { return Err(ReceiveError::Unexpected) };
        let mut server = (state, descriptors);
        hit(Step::GotServer);
        let mut clients = Vec::new();
        loop {
            match stream.receive_with::<FromOld<(), C>>(deadline)? {
                (FromOld::Descriptors, more) => server.1.extend(more),
                (FromOld::Clients(states), descriptors) if states.len() == descriptors.len() => {
                    clients.extend(descriptors.into_iter().zip(states));
                    hit(Step::GotBatch);
                }
                (FromOld::End { clients: sent }, _) if sent == clients.len() => break,
                _ => return Err(ReceiveError::Unexpected),
            }
        }
        hit(Step::GotAll);
        Ok(Received { server, clients, stream })
    }
}

impl<S, C> Received<S, C> {
    /// Has the old process commit: from here on, the sockets are this process's.
    ///
    /// # Errors
    /// When the old process is gone, or went on by itself: then it serves, and this one must not.
    pub fn commit(self, timeout: Duration) -> Result<Committed<S, C>, ReceiveError> {
        hit(Step::BeforeComplete);
        let deadline = Instant::now() + timeout;
        self.stream.send(&FromNew::Complete { clients: self.clients.len() }, deadline)?;
        match self.stream.receive(deadline)? {
            FromOld::<(), ()>::Commit => {
                hit(Step::Committed);
                Ok(Committed {
                    server: self.server.0,
                    clients: self.clients,
                    serving: Serving { stream: self.stream },
                })
            }
            _ => Err(ReceiveError::Unexpected),
        }
    }
}

/// What this process serves from now on.
#[derive(Debug)]
pub struct Committed<S, C> {
    /// The state that there is once.
    pub server: S,
    /// The clients, each with its socket.
    pub clients: Vec<(OwnedFd, C)>,
    /// Tells the old process.
    pub serving: Serving,
}

/// The old process waits to hear that this one serves.
#[derive(Debug)]
pub struct Serving {
    stream: FramedStream,
}

impl Serving {
    /// Tells the old process that this one serves: that ends then.
    ///
    /// # Errors
    /// When the old process is gone. It makes no difference to this one.
    pub fn tell(self, timeout: Duration) -> Result<(), ReceiveError> {
        Ok(self.stream.send(&FromNew::Serving, Instant::now() + timeout)?)
    }
}
