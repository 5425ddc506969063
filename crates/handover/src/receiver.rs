//! The new process's side of a handover.

use std::{
    os::fd::OwnedFd,
    time::{Duration, Instant},
};

use serde::de::DeserializeOwned;

use crate::{
    failpoint::{Step, hit},
    protocol::{FirstMessage, FromNew, FromOld, Hello, OLDEST_PROTOCOL, PROTOCOL},
    stream::{FramedStream, StreamError},
};

/// Why a part could not be taken over.
pub type PartError = Box<dyn std::error::Error + Send + Sync>;

/// Why nothing was taken over.
#[derive(Debug, thiserror::Error)]
pub enum ReceiveError {
    /// The old process refused the handover.
    #[error("the old process refused: {0}")]
    Refused(String),
    /// The old process has another version of the handover.
    #[error(
        "the old process, version {version}, speaks version {theirs} of the handover, this one {OLDEST_PROTOCOL} to \
         {PROTOCOL}"
    )]
    Protocol {
        /// The version of the old process's program.
        version: String,
        /// The version by which the old process hands over.
        theirs: u32,
    },
    /// The old process sent another message than the next one.
    #[error("the old process sent an unexpected message")]
    Unexpected,
    /// A part could not be taken over.
    #[error("a part of what the old process has cannot be taken over")]
    Part(#[source] PartError),
    /// The connection to the old process failed.
    #[error(transparent)]
    Stream(#[from] StreamError),
}

/// A handover from an old process to this one.
#[derive(Debug)]
pub struct HandoverReceiver {
    stream: FramedStream,
    old_process: Hello,
}

/// The state of the server, with its descriptors.
#[derive(Debug)]
pub struct ReceivedServer<S> {
    /// The state.
    pub state: S,
    /// Its descriptors, in the order in which they were sent.
    pub descriptors: Vec<OwnedFd>,
}

/// A client.
#[derive(Debug)]
pub struct ReceivedClient<C> {
    /// Its socket.
    pub socket: OwnedFd,
    /// Its state.
    pub state: C,
}

/// Everything that was received. Nothing of it may be touched before [`ReceivedHandover::commit`].
#[derive(Debug)]
pub struct ReceivedHandover<S, C> {
    /// The server.
    pub server: ReceivedServer<S>,
    /// The clients.
    pub clients: Vec<ReceivedClient<C>>,
    stream: FramedStream,
}

impl HandoverReceiver {
    /// Says hello to the old process, which is at the other end of `stream`. The numbers of the protocol and
    /// of this process are added to `hello`.
    ///
    /// # Errors
    /// When the old process is gone, or refuses.
    pub fn begin(stream: FramedStream, hello: Hello, timeout: Duration) -> Result<Self, ReceiveError> {
        let deadline = Instant::now() + timeout;
        hit(Step::Started);
        // With the failpoint: as builds of version 3 do.
        let newest = if hit(Step::OtherProtocol) { 0 } else { PROTOCOL };
        let hello = Hello { protocol: OLDEST_PROTOCOL, newest, pid: std::process::id(), ..hello };
        stream.send(&FirstMessage::Hello(hello), deadline)?;
        hit(Step::SentHello);
        match stream.receive::<FromOld<(), ()>>(deadline)? {
            FromOld::Accepted(old_process)
                if (OLDEST_PROTOCOL..=PROTOCOL).contains(&old_process.protocol) =>
            {
                hit(Step::Accepted);
                Ok(Self { stream, old_process })
            }
            FromOld::Accepted(Hello { version, protocol, .. }) => {
                Err(ReceiveError::Protocol { version, theirs: protocol })
            }
            FromOld::Refused { reason } => Err(ReceiveError::Refused(reason)),
            _ => Err(ReceiveError::Unexpected),
        }
    }

    /// Returns the hello of the old process.
    pub fn old_process(&self) -> &Hello {
        &self.old_process
    }

    /// Says that this process is ready to take at most `max_clients`, and receives everything. Calls
    /// `take_part` with each part when it is there: the old process serves meanwhile, and bounds the time of
    /// all parts. After them, it finishes requests before it sends the rest. `timeout` is for each part, and
    /// for all of the rest.
    ///
    /// # Errors
    /// When the old process ends, or sends what cannot be taken over.
    pub fn receive<S: DeserializeOwned, C: DeserializeOwned>(
        self,
        max_clients: usize,
        timeout: Duration,
        mut take_part: impl FnMut(Vec<u8>) -> Result<(), PartError>,
    ) -> Result<ReceivedHandover<S, C>, ReceiveError> {
        let mut deadline = Instant::now() + timeout;
        let stream = self.stream;
        stream.send(&FromNew::Ready { max_clients }, deadline)?;
        hit(Step::SentReady);
        let mut server = loop {
            match stream.receive_with::<FromOld<S, ()>>(deadline)? {
                (FromOld::Part(part), _) => {
                    take_part(part).map_err(ReceiveError::Part)?;
                    hit(Step::ReceivedPart);
                    deadline = Instant::now() + timeout;
                }
                (FromOld::Server(state), descriptors) => break ReceivedServer { state, descriptors },
                _ => return Err(ReceiveError::Unexpected),
            }
        };
        hit(Step::ReceivedServer);
        let mut clients = Vec::new();
        loop {
            match stream.receive_with::<FromOld<(), C>>(deadline)? {
                (FromOld::Descriptors, more) => server.descriptors.extend(more),
                (FromOld::Clients(states), sockets) if states.len() == sockets.len() => {
                    let batch = sockets.into_iter().zip(states);
                    clients.extend(batch.map(|(socket, state)| ReceivedClient { socket, state }));
                    hit(Step::ReceivedBatch);
                }
                (FromOld::End { clients: sent }, _) if sent == clients.len() => break,
                _ => return Err(ReceiveError::Unexpected),
            }
        }
        hit(Step::ReceivedAll);
        Ok(ReceivedHandover { server, clients, stream })
    }
}

impl<S, C> ReceivedHandover<S, C> {
    /// Has the old process commit: when this returns, the sockets are this process's.
    ///
    /// # Errors
    /// When the old process is gone, or did not commit: then it serves, and this one must not.
    pub fn commit(self, timeout: Duration) -> Result<Committed<S, C>, ReceiveError> {
        hit(Step::BeforeComplete);
        let deadline = Instant::now() + timeout;
        self.stream.send(&FromNew::Complete { clients: self.clients.len() }, deadline)?;
        match self.stream.receive(deadline)? {
            FromOld::<(), ()>::Commit => {
                hit(Step::Committed);
                let old_process = OldProcess { stream: self.stream };
                Ok(Committed { server: self.server, clients: self.clients, old_process })
            }
            _ => Err(ReceiveError::Unexpected),
        }
    }
}

/// All that this process serves from now on.
#[derive(Debug)]
pub struct Committed<S, C> {
    /// The server.
    pub server: ReceivedServer<S>,
    /// The clients.
    pub clients: Vec<ReceivedClient<C>>,
    /// Waits for the report that this process serves.
    pub old_process: OldProcess,
}

/// The old process after the commit: it ends once it receives the report that this process serves.
#[derive(Debug)]
pub struct OldProcess {
    stream: FramedStream,
}

impl OldProcess {
    /// Tells the old process that this one serves.
    ///
    /// # Errors
    /// When the old process is gone, which makes no difference to this one.
    pub fn report_serving(self, timeout: Duration) -> Result<(), ReceiveError> {
        Ok(self.stream.send(&FromNew::Serving, Instant::now() + timeout)?)
    }
}

#[cfg(test)]
mod tests;
