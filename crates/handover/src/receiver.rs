//! The new process's side of a handover.

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
    /// The old process refused the handover.
    #[error("the old process refused: {0}")]
    Refused(String),
    /// The old process has another version of the handover.
    #[error(
        "the old process, version {version}, speaks version {theirs} of the handover, this one {PROTOCOL}"
    )]
    Protocol {
        /// The version of the old process's program.
        version: String,
        /// The old process's [`PROTOCOL`].
        theirs: u32,
    },
    /// The old process sent another message than the next one.
    #[error("the old process sent an unexpected message")]
    Unexpected,
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
        hit(Step::SentHello);
        match stream.receive::<FromOld<(), ()>>(deadline)? {
            FromOld::Accepted(old_process) if old_process.protocol == PROTOCOL => {
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

    /// Says that this process is ready to take at most `max_clients`, and receives everything. The old process
    /// finishes requests before it sends anything: `timeout` is for all of it.
    ///
    /// # Errors
    /// When the old process ends, or sends what cannot be taken over.
    pub fn receive<S: DeserializeOwned, C: DeserializeOwned>(
        self,
        max_clients: usize,
        timeout: Duration,
    ) -> Result<ReceivedHandover<S, C>, ReceiveError> {
        let deadline = Instant::now() + timeout;
        let stream = self.stream;
        stream.send(&FromNew::Ready { max_clients }, deadline)?;
        hit(Step::SentReady);
        let (message, descriptors) = stream.receive_with::<FromOld<S, ()>>(deadline)?;
        let FromOld::Server(state) = message else { return Err(ReceiveError::Unexpected) };
        let mut server = ReceivedServer { state, descriptors };
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

/// What this process serves from now on.
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
mod tests {
    use std::{
        fs::File,
        os::fd::{AsFd, BorrowedFd},
        thread,
    };

    use super::*;
    use crate::stream::tests::{end, pair, soon};

    const TIMEOUT: Duration = Duration::from_secs(10);

    /// The step of the new process at which a handover stopped.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    enum At {
        Begin,
        Receive,
        Commit,
        Serving,
    }

    /// A message of an old process, with this many descriptors.
    type Sent = (FromOld<String, u32>, usize);

    fn hello() -> Hello {
        Hello { protocol: PROTOCOL, version: "1.0.0".into(), ..Hello::default() }
    }

    /// Returns all messages of an old process that hands over two clients.
    fn all() -> Vec<Sent> {
        vec![
            (FromOld::Accepted(hello()), 0),
            (FromOld::Server("state".into()), 1),
            (FromOld::Descriptors, 2),
            (FromOld::Clients(vec![7, 8]), 2),
            (FromOld::End { clients: 2 }, 0),
            (FromOld::Commit, 0),
        ]
    }

    fn send(stream: &FramedStream, messages: &[Sent]) {
        let file = File::open("/dev/null").unwrap();
        for (message, descriptors) in messages {
            let descriptors: Vec<BorrowedFd<'_>> = (0..*descriptors).map(|_| file.as_fd()).collect();
            stream.send_with(message, &descriptors, soon()).unwrap();
        }
    }

    /// How far the new process comes, and the error that stops it. `hangs` is the step at which it is to give up
    /// soon.
    fn take_over(stream: FramedStream, hangs: Option<At>) -> (At, Option<ReceiveError>) {
        let timeout = |step| if hangs == Some(step) { Duration::from_millis(50) } else { TIMEOUT };
        let receiver = match HandoverReceiver::begin(stream, "2.0.0", Vec::new(), timeout(At::Begin)) {
            Ok(receiver) => receiver,
            Err(error) => return (At::Begin, Some(error)),
        };
        assert_eq!(receiver.old_process(), &hello());
        let received = match receiver.receive::<String, u32>(5, timeout(At::Receive)) {
            Ok(received) => received,
            Err(error) => return (At::Receive, Some(error)),
        };
        assert_eq!((received.server.state.as_str(), received.server.descriptors.len()), ("state", 3));
        let clients: Vec<_> = received.clients.iter().map(|client| client.state).collect();
        assert_eq!(clients, [7, 8]);
        match received.commit(timeout(At::Commit)) {
            Ok(committed) => (At::Serving, committed.old_process.report_serving(TIMEOUT).err()),
            Err(error) => (At::Commit, Some(error)),
        }
    }

    /// Returns the step at which the new process is after this many messages.
    fn step(messages: usize) -> At {
        match messages {
            0 => At::Begin,
            1..5 => At::Receive,
            _ => At::Commit,
        }
    }

    #[test]
    fn an_old_process_that_sends_everything_hears_each_step() {
        let (old, new) = pair();
        send(&old, &all());
        let thread = thread::spawn(|| take_over(new, None));
        let Ok(FirstMessage::Hello(new)) = old.receive(soon()) else { panic!("the hello comes first") };
        assert_eq!((new.protocol, new.version.as_str()), (PROTOCOL, "2.0.0"));
        assert_eq!(old.receive::<FromNew>(soon()).unwrap(), FromNew::Ready { max_clients: 5 });
        assert_eq!(old.receive::<FromNew>(soon()).unwrap(), FromNew::Complete { clients: 2 });
        assert_eq!(old.receive::<FromNew>(soon()).unwrap(), FromNew::Serving);
        let (at, error) = thread.join().unwrap();
        assert!(error.is_none() && at == At::Serving, "{error:?}");
    }

    #[test]
    fn an_old_process_that_ends_after_any_message_is_noticed_and_nothing_is_taken_over() {
        for messages in 0..all().len() {
            let (old, new) = pair();
            send(&old, &all()[..messages]);
            end(&old);
            let (at, error) = take_over(new, None);
            assert!(matches!(error, Some(ReceiveError::Stream(StreamError::Gone))), "{messages}: {error:?}");
            assert_eq!(at, step(messages), "{messages}");
        }
    }

    #[test]
    fn an_old_process_that_hangs_after_any_message_is_given_up_and_nothing_is_taken_over() {
        for messages in 0..all().len() {
            let (old, new) = pair();
            send(&old, &all()[..messages]);
            let (at, error) = take_over(new, Some(step(messages)));
            assert!(
                matches!(error, Some(ReceiveError::Stream(StreamError::TimedOut))),
                "{messages}: {error:?}"
            );
            assert_eq!(at, step(messages), "{messages}");
            drop(old);
        }
    }

    #[test]
    fn a_message_that_is_left_out_or_has_wrong_descriptors_is_an_error() {
        let last = all().len() - 1;
        // Without the descriptors, there are fewer of them, which only the binary can tell.
        for left_out in (0..last).filter(|index| *index != 2) {
            let mut messages = all();
            messages.remove(left_out);
            let (old, new) = pair();
            send(&old, &messages);
            let (at, error) = take_over(new, None);
            let refused = matches!(error, Some(ReceiveError::Unexpected | ReceiveError::Stream(_)));
            assert!(refused && at != At::Serving, "{left_out}: {at:?}, {error:?}");
        }
        let (old, new) = pair();
        let mut messages = all();
        messages[3].1 = 1;
        send(&old, &messages);
        assert!(matches!(take_over(new, None), (At::Receive, Some(ReceiveError::Unexpected))));
    }

    #[test]
    fn a_state_that_is_not_understood_is_an_error() {
        let (old, new) = pair();
        old.send(&FromOld::<(), ()>::Accepted(hello()), soon()).unwrap();
        old.send(&FromOld::<u32, ()>::Server(1), soon()).unwrap();
        let (at, error) = take_over(new, None);
        assert!(matches!(error, Some(ReceiveError::Stream(StreamError::NotUnderstood(_)))), "{error:?}");
        assert_eq!(at, At::Receive);
    }

    #[test]
    fn a_refusal_is_reported_with_its_reason_and_another_protocol_with_its_version() {
        let (old, new) = pair();
        old.send(&crate::refusal(&"not now"), soon()).unwrap();
        let (_, error) = take_over(new, None);
        assert_eq!(error.unwrap().to_string(), "the old process refused: not now");
        let (old, new) = pair();
        let other = Hello { protocol: PROTOCOL + 1, ..hello() };
        old.send(&FromOld::<(), ()>::Accepted(other), soon()).unwrap();
        let (_, error) = take_over(new, None);
        let expected = "the old process, version 1.0.0, speaks version 3 of the handover, this one 2";
        assert_eq!(error.unwrap().to_string(), expected);
    }
}
