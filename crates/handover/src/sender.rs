//! The old process's side of a handover.

use std::{ops::RangeInclusive, os::fd::BorrowedFd, time::Instant};

use serde::Serialize;

use crate::{
    failpoint::{Step, hit},
    protocol::{FirstMessage, FromNew, FromOld, Hello, PROTOCOL},
    stream::{FramedStream, MAX_DESCRIPTORS, StreamError},
};

/// A batch of clients ends at about this many bytes: large enough to make few messages, small enough to keep
/// both sides busy.
const MAX_BATCH: usize = 1 << 20;

/// Why nothing was handed over.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// The new process has another version of the handover.
    #[error(
        "the new process, version {version}, understands version {} to {} of the handover, and this one, which serves now, \
         hands over by version {PROTOCOL}: its clients have what that build does not know. Restart the server to change \
         to it",
        theirs.start(),
        theirs.end()
    )]
    Protocol {
        /// The version of the new process's program.
        version: String,
        /// The versions that the new process understands.
        theirs: RangeInclusive<u32>,
    },
    /// The new process cannot take all clients.
    #[error("it takes at most {max_clients}, but {clients} are here")]
    TooManyClients {
        /// The most clients that it can take.
        max_clients: usize,
        /// Clients of this process.
        clients: usize,
    },
    /// The new process sent another message than the next one.
    #[error("the new process sent an unexpected message")]
    Unexpected,
    /// The connection to the new process failed.
    #[error(transparent)]
    Stream(#[from] StreamError),
}

/// A handover from this process to a new one, which is ready.
#[derive(Debug)]
pub struct HandoverSender {
    stream: FramedStream,
    new_process: Hello,
    max_clients: usize,
}

/// The state of the server, with its descriptors.
#[derive(Debug)]
pub struct OutgoingServer<'a, S> {
    /// The state.
    pub state: &'a S,
    /// Its descriptors, in the order in which they arrive.
    pub descriptors: &'a [BorrowedFd<'a>],
}

/// A client.
#[derive(Debug)]
pub struct OutgoingClient<'a, C> {
    /// Its socket.
    pub socket: BorrowedFd<'a>,
    /// Its state.
    pub state: C,
    /// About how many bytes its state takes up when it is encoded.
    pub size: usize,
}

/// The old process's messages, where they carry no state.
type Message = FromOld<(), ()>;

impl HandoverSender {
    /// Waits for the hello of the new process, answers it, and waits until the new process is ready.
    ///
    /// # Errors
    /// When the new process speaks another protocol, ends, or is not ready by `deadline`.
    pub fn begin(stream: FramedStream, version: &str, deadline: Instant) -> Result<Self, SendError> {
        let FirstMessage::Hello(new_process) = stream.receive(deadline)? else {
            return Err(SendError::Unexpected);
        };
        let theirs = new_process.protocols();
        if !theirs.contains(&PROTOCOL) {
            let error = SendError::Protocol { version: new_process.version, theirs };
            // For its log. If it does not read it, nothing changes here.
            let _ = stream.send(&refusal(&error), deadline);
            return Err(error);
        }
        let hello = Hello {
            protocol: PROTOCOL,
            newest: PROTOCOL,
            version: version.to_owned(),
            pid: std::process::id(),
            ..Hello::default()
        };
        stream.send(&Message::Accepted(hello), deadline)?;
        match stream.receive(deadline)? {
            FromNew::Ready { max_clients } => Ok(Self { stream, new_process, max_clients }),
            FromNew::Complete { .. } | FromNew::Serving => Err(SendError::Unexpected),
        }
    }

    /// Returns the hello of the new process.
    pub fn new_process(&self) -> &Hello {
        &self.new_process
    }

    /// Checks that the new process can take this many clients.
    ///
    /// # Errors
    /// When it cannot.
    pub fn check_capacity(&self, clients: usize) -> Result<(), SendError> {
        if clients > self.max_clients {
            return Err(SendError::TooManyClients { max_clients: self.max_clients, clients });
        }
        Ok(())
    }

    /// Sends a part of what is handed over beside the server and its clients. To be called before
    /// [`Self::send_all`], as often as needed.
    ///
    /// # Errors
    /// When the new process is gone, or does not read it by `deadline`.
    pub fn send_part(&self, part: Vec<u8>, deadline: Instant) -> Result<(), SendError> {
        Ok(self.stream.send(&Message::Part(part), deadline)?)
    }

    /// Sends everything else, waits until the new process has it, and commits: when this returns, the sockets
    /// are the new process's. Returns the number of clients.
    ///
    /// # Errors
    /// When the new process ends, or is not done by `deadline`. Then nothing has been handed over.
    pub fn send_all<'a, S: Serialize, C: Serialize>(
        &self,
        server: OutgoingServer<'_, S>,
        clients: impl Iterator<Item = OutgoingClient<'a, C>>,
        deadline: Instant,
    ) -> Result<usize, SendError> {
        self.send_server(server, deadline)?;
        let sent = self.send_clients(clients, deadline)?;
        self.stream.send(&Message::End { clients: sent }, deadline)?;
        match self.stream.receive(deadline)? {
            FromNew::Complete { clients } if clients == sent => {}
            _ => return Err(SendError::Unexpected),
        }
        if hit(Step::CommitTooLate) {
            // The deadline passes, and nothing comes meanwhile.
            let _ = self.wait_until_serving(deadline);
        }
        // The socket's buffer is empty, so this does not block: it is sent, or the new process is gone.
        self.stream.send(&Message::Commit, deadline)?;
        Ok(sent)
    }

    fn send_server<S: Serialize>(
        &self,
        server: OutgoingServer<'_, S>,
        deadline: Instant,
    ) -> Result<(), StreamError> {
        let OutgoingServer { state, descriptors } = server;
        let (first, more) = descriptors.split_at(descriptors.len().min(MAX_DESCRIPTORS));
        self.stream.send_with(&FromOld::<&S, ()>::Server(state), first, deadline)?;
        for more in more.chunks(MAX_DESCRIPTORS) {
            self.stream.send_with(&Message::Descriptors, more, deadline)?;
        }
        Ok(())
    }

    fn send_clients<'a, C: Serialize>(
        &self,
        clients: impl Iterator<Item = OutgoingClient<'a, C>>,
        deadline: Instant,
    ) -> Result<usize, StreamError> {
        let (mut states, mut sockets, mut bytes, mut sent) = (Vec::new(), Vec::new(), 0, 0);
        let mut clients = clients.peekable();
        while let Some(OutgoingClient { socket, state, size }) = clients.next() {
            states.push(state);
            sockets.push(socket);
            bytes += size;
            sent += 1;
            if states.len() == MAX_DESCRIPTORS || bytes >= MAX_BATCH || clients.peek().is_none() {
                let batch = FromOld::<(), C>::Clients(std::mem::take(&mut states));
                self.stream.send_with(&batch, &std::mem::take(&mut sockets), deadline)?;
                bytes = 0;
            }
        }
        Ok(sent)
    }

    /// Waits until the new process says that it serves.
    ///
    /// # Errors
    /// When it ends, or says nothing by `deadline`. The sockets are its own all the same.
    pub fn wait_until_serving(&self, deadline: Instant) -> Result<(), SendError> {
        match self.stream.receive(deadline)? {
            FromNew::Serving => Ok(()),
            _ => Err(SendError::Unexpected),
        }
    }
}

/// Returns the answer to a process that must not take over, with the reason.
pub fn refusal(reason: &impl std::fmt::Display) -> impl Serialize {
    Message::Refused { reason: reason.to_string() }
}

#[cfg(test)]
mod tests {
    use std::{fs::File, os::fd::AsFd, thread, time::Duration};

    use super::*;
    use crate::stream::tests::{pair, soon};

    /// Bytes of a part that no socket buffer takes.
    const LARGE: usize = 8 << 20;

    /// The last message that a new process of a test sends.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
    enum Until {
        Connected,
        Hello,
        Ready,
        Part,
        Complete,
        Serving,
    }

    /// Does what a new process does, in a thread. Once it is done, it closes the stream, or keeps it open
    /// until the sender that is returned is dropped.
    fn new_process(
        stream: FramedStream,
        until: Until,
        stays: bool,
    ) -> (std::sync::mpsc::Sender<()>, thread::JoinHandle<()>) {
        let (stay, leave) = std::sync::mpsc::channel::<()>();
        let thread = thread::spawn(move || {
            if until >= Until::Hello {
                let hello = Hello { protocol: PROTOCOL, version: "2.0.0".into(), ..Hello::default() };
                stream.send(&FirstMessage::Hello(hello), soon()).unwrap();
                assert!(matches!(stream.receive(soon()), Ok(FromOld::<(), ()>::Accepted(_))));
            }
            if until >= Until::Ready {
                stream.send(&FromNew::Ready { max_clients: 2 }, soon()).unwrap();
            }
            if until >= Until::Part {
                let part = stream.receive::<FromOld<(), ()>>(soon()).unwrap();
                assert_eq!(part, FromOld::Part(vec![0; LARGE]));
            }
            if until >= Until::Complete {
                assert!(matches!(stream.receive(soon()), Ok(FromOld::<String, ()>::Server(_))));
                assert!(matches!(stream.receive(soon()), Ok(FromOld::<(), u32>::Clients(_))));
                assert!(matches!(stream.receive(soon()), Ok(FromOld::<(), ()>::End { clients: 2 })));
                stream.send(&FromNew::Complete { clients: 2 }, soon()).unwrap();
                assert!(matches!(stream.receive(soon()), Ok(FromOld::<(), ()>::Commit)));
            }
            if until >= Until::Serving {
                stream.send(&FromNew::Serving, soon()).unwrap();
            }
            if stays {
                // An error: the test is done.
                let _ = leave.recv();
            }
        });
        (stay, thread)
    }

    /// The steps that the old process takes with a new one, and the error that stops it. `hangs` is the step
    /// at which it is to give up soon.
    fn hand_over(stream: FramedStream, hangs: Option<Until>) -> (Until, Option<SendError>) {
        let deadline =
            |step| Instant::now() + Duration::from_millis(if hangs == Some(step) { 50 } else { 10_000 });
        let sender = match HandoverSender::begin(stream, "1.0.0", deadline(Until::Hello)) {
            Ok(sender) => sender,
            Err(error) => return (Until::Hello, Some(error)),
        };
        if let Err(error) = sender.send_part(vec![0; LARGE], deadline(Until::Ready)) {
            return (Until::Ready, Some(error));
        }
        let file = File::open("/dev/null").unwrap();
        let server = OutgoingServer { state: &"state".to_owned(), descriptors: &[file.as_fd()] };
        let clients = (0..2_u32).map(|state| OutgoingClient { socket: file.as_fd(), state, size: 5 });
        if let Err(error) = sender.send_all(server, clients, deadline(Until::Part)) {
            return (Until::Part, Some(error));
        }
        match sender.wait_until_serving(deadline(Until::Complete)) {
            Ok(()) => (Until::Serving, None),
            Err(error) => (Until::Complete, Some(error)),
        }
    }

    /// The last step of the new process, and the step at which the old one notices.
    const STEPS: [(Until, Until); 5] = [
        (Until::Connected, Until::Hello),
        (Until::Hello, Until::Hello),
        (Until::Ready, Until::Ready),
        (Until::Part, Until::Part),
        (Until::Complete, Until::Complete),
    ];

    #[test]
    fn a_new_process_that_ends_at_any_step_is_noticed_at_that_step() {
        for (until, reached) in STEPS {
            let (old, new) = pair();
            let (_stay, thread) = new_process(new, until, false);
            let (at, error) = hand_over(old, None);
            assert!(matches!(error, Some(SendError::Stream(StreamError::Gone))), "{until:?}: {error:?}");
            assert_eq!(at, reached, "{until:?}");
            thread.join().unwrap();
        }
    }

    #[test]
    fn a_new_process_that_hangs_at_any_step_is_given_up() {
        for (until, reached) in STEPS {
            let (old, new) = pair();
            let (stay, thread) = new_process(new, until, true);
            let (at, error) = hand_over(old, Some(reached));
            assert!(matches!(error, Some(SendError::Stream(StreamError::TimedOut))), "{until:?}: {error:?}");
            assert_eq!(at, reached, "{until:?}");
            drop(stay);
            thread.join().unwrap();
        }
    }

    #[test]
    fn a_new_process_that_does_everything_serves() {
        let (old, new) = pair();
        let (_stay, thread) = new_process(new, Until::Serving, false);
        let (at, error) = hand_over(old, None);
        assert!(error.is_none() && at == Until::Serving, "{error:?}");
        thread.join().unwrap();
    }

    #[test]
    fn a_message_out_of_order_or_a_wrong_number_of_clients_is_an_error() {
        for (sent, reached) in [
            (vec![FromNew::Serving], Until::Hello),
            (vec![FromNew::Complete { clients: 2 }], Until::Hello),
            (vec![FromNew::Ready { max_clients: 2 }, FromNew::Serving], Until::Part),
            (vec![FromNew::Ready { max_clients: 2 }, FromNew::Complete { clients: 1 }], Until::Part),
        ] {
            let (old, new) = pair();
            new.send(&FirstMessage::Hello(Hello { protocol: PROTOCOL, ..Hello::default() }), soon()).unwrap();
            for message in &sent {
                new.send(message, soon()).unwrap();
            }
            let thread = thread::spawn(|| hand_over(old, None));
            // An error: there is no part.
            let _ = (new.receive::<FromOld<(), ()>>(soon()), new.receive::<FromOld<(), ()>>(soon()));
            let (at, error) = thread.join().unwrap();
            assert!(matches!(error, Some(SendError::Unexpected)), "{sent:?}: {error:?}");
            assert_eq!(at, reached, "{sent:?}");
        }
        let (old, new) = pair();
        new.send(&FirstMessage::Command(crate::ControlCommand::Upgrade), soon()).unwrap();
        assert!(matches!(HandoverSender::begin(old, "1", soon()), Err(SendError::Unexpected)));
    }

    #[test]
    fn another_protocol_is_refused_and_the_new_process_is_told_why() {
        let ranges = [(3, 0, 3..=3), (1, 2, 1..=2), (5, 0, 5..=5), (5, 7, 5..=7)];
        for (protocol, newest, theirs) in ranges {
            let (old, new) = pair();
            let hello = Hello { protocol, newest, version: "9.0.0".into(), ..Hello::default() };
            new.send(&FirstMessage::Hello(hello), soon()).unwrap();
            let error = HandoverSender::begin(old, "1.0.0", soon()).unwrap_err();
            let (from, to) = theirs.into_inner();
            let expected = format!(
                "the new process, version 9.0.0, understands version {from} to {to} of the handover, and this one, which serves \
                 now, hands over by version 4: its clients have what that build does not know. Restart the server to change \
                 to it"
            );
            assert_eq!(error.to_string(), expected);
            let told = new.receive::<FromOld<(), ()>>(soon()).unwrap();
            assert_eq!(told, FromOld::Refused { reason: expected });
        }
    }

    #[test]
    fn more_clients_than_the_new_process_can_take_are_an_error() {
        let (old, new) = pair();
        let (stay, thread) = new_process(new, Until::Ready, true);
        let sender = HandoverSender::begin(old, "1.0.0", soon()).unwrap();
        sender.check_capacity(2).unwrap();
        let error = sender.check_capacity(3).unwrap_err().to_string();
        assert_eq!(error, "it takes at most 2, but 3 are here");
        drop(stay);
        thread.join().unwrap();
    }
}
