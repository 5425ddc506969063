//! The new process's side.

use std::{
    os::fd::OwnedFd,
    path::PathBuf,
    time::{Duration, Instant},
};

use serde::de::DeserializeOwned;

use crate::{
    channel::{Channel, ChannelError},
    fault::{Step, point},
    message::{FromNew, FromOld, Hello, Opening, PROTOCOL},
};

/// Why nothing was taken over.
#[derive(Debug, thiserror::Error)]
pub enum TakeError {
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
    Channel(#[from] ChannelError),
}

/// A handover that this process receives.
#[derive(Debug)]
pub struct Take {
    channel: Channel,
    old: Hello,
}

/// What was received. Nothing of it may be touched before [`Taken::commit`].
#[derive(Debug)]
pub struct Taken<S, C> {
    /// What there is once, with its descriptors.
    pub server: (S, Vec<OwnedFd>),
    /// The clients, each with its socket.
    pub clients: Vec<(OwnedFd, C)>,
    channel: Channel,
}

impl Take {
    /// Says hello to the old process, which is at the other end of `channel`. `files` are the settings files that
    /// this process has read.
    ///
    /// # Errors
    /// When the old process is gone, or refuses.
    pub fn begin(
        channel: Channel,
        version: &str,
        files: Vec<PathBuf>,
        timeout: Duration,
    ) -> Result<Self, TakeError> {
        let deadline = Instant::now() + timeout;
        point(Step::Started);
        let protocol = if point(Step::OtherProtocol) { PROTOCOL + 1 } else { PROTOCOL };
        let hello = Hello { protocol, version: version.to_owned(), pid: std::process::id(), files };
        channel.send(&Opening::Hello(hello), deadline)?;
        point(Step::SaidHello);
        match channel.receive::<FromOld<(), ()>>(deadline)? {
            FromOld::Welcome(old) if old.protocol == PROTOCOL => {
                point(Step::Welcomed);
                Ok(Self { channel, old })
            }
            FromOld::Welcome(old) => Err(TakeError::Protocol { version: old.version, theirs: old.protocol }),
            FromOld::Refused { reason } => Err(TakeError::Refused(reason)),
            _ => Err(TakeError::Unexpected),
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
    ) -> Result<Taken<S, C>, TakeError> {
        let deadline = Instant::now() + timeout;
        let channel = self.channel;
        channel.send(&FromNew::Ready { room }, deadline)?;
        point(Step::SaidReady);
        let (message, descriptors) = channel.receive_with::<FromOld<S, ()>>(deadline)?;
        let FromOld::Server(state) = message else { return Err(TakeError::Unexpected) };
        let mut server = (state, descriptors);
        point(Step::GotServer);
        let mut clients = Vec::new();
        loop {
            match channel.receive_with::<FromOld<(), C>>(deadline)? {
                (FromOld::Descriptors, more) => server.1.extend(more),
                (FromOld::Clients(states), descriptors) if states.len() == descriptors.len() => {
                    clients.extend(descriptors.into_iter().zip(states));
                    point(Step::GotBatch);
                }
                (FromOld::End { clients: sent }, _) if sent == clients.len() => break,
                _ => return Err(TakeError::Unexpected),
            }
        }
        point(Step::GotAll);
        Ok(Taken { server, clients, channel })
    }
}

impl<S, C> Taken<S, C> {
    /// Has the old process commit: from here on, the sockets are this process's.
    ///
    /// # Errors
    /// When the old process is gone, or went on by itself: then it serves, and this one must not.
    pub fn commit(self, timeout: Duration) -> Result<Committed<S, C>, TakeError> {
        point(Step::BeforeComplete);
        let deadline = Instant::now() + timeout;
        self.channel.send(&FromNew::Complete { clients: self.clients.len() }, deadline)?;
        match self.channel.receive(deadline)? {
            FromOld::<(), ()>::Commit => {
                point(Step::Committed);
                Ok(Committed {
                    server: self.server.0,
                    clients: self.clients,
                    serving: Serving { channel: self.channel },
                })
            }
            _ => Err(TakeError::Unexpected),
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
    channel: Channel,
}

impl Serving {
    /// Tells the old process that this one serves: that ends then.
    ///
    /// # Errors
    /// When the old process is gone. It makes no difference to this one.
    pub fn tell(self, timeout: Duration) -> Result<(), TakeError> {
        Ok(self.channel.send(&FromNew::Serving, Instant::now() + timeout)?)
    }
}
