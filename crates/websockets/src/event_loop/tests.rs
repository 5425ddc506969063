//! An event loop that the test runs iteration by iteration, with clients over loopback TCP.

mod broker;
mod freeze;
mod jobs;
mod reading;
mod subscriptions;
mod timers;

use std::{
    io::{Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    sync::Arc,
    time::{Duration, Instant},
};

use lastcall_broker::{MemoryBroker, ReceiverSet};
use lastcall_core::ChannelName;
use mio::Events;

use super::{Clients, EventLoop, HeartbeatConfig, LoopConfig, Sockets};
use crate::{
    admission::{Admission, Permit},
    budget::{Budget, Rates},
    client_id::ClientId,
    codec::{CloseReason, Frame},
    connection::ConnectionConfig,
    connection_key::ConnectionKey,
    encoded::EncodedPublication,
    handshake::Handshake,
    mailbox::{ConnectionSource, LoopCommand, NewConnection},
    mailboxes::{MailboxDelivery, Mailboxes, OwnMailbox},
    phases::Phases,
    protocol::{Form, Outgoing},
};

/// Far longer than anything takes that a test waits for.
const TIMEOUT: Duration = Duration::from_secs(30);

const NO_LIMITS: Rates = Rates { client: None, total: None, burst: 0 };

/// Settings that a test may want to be different.
struct Options {
    websockets: Form,
    rates: Rates,
    close_timeout: Duration,
    heartbeat: Option<HeartbeatConfig>,
}

impl Default for Options {
    fn default() -> Self {
        Self { websockets: Form::WebSocket, rates: NO_LIMITS, close_timeout: TIMEOUT, heartbeat: None }
    }
}

struct Harness {
    event_loop: EventLoop,
    mailboxes: Arc<Mailboxes>,
    events: Events,
}

impl Harness {
    fn new(options: Options) -> Self {
        let (sockets, waker) = Sockets::new().unwrap();
        let mailboxes = Arc::new(Mailboxes::new(vec![waker], 1));
        let config = LoopConfig {
            vital_tasks: crate::vital_tasks::VitalTasks::default(),
            connection: ConnectionConfig {
                websockets: options.websockets,
                publishes_texts: true,
                max_message_size: 1000,
                max_queue: 1 << 20,
                limits_texts: options.rates.are_bounded(),
            },
            budget: Arc::new(Budget::new(options.rates, Instant::now())),
            close_timeout: options.close_timeout,
            heartbeat: options.heartbeat,
            replay_timeout: TIMEOUT,
        };
        let delivery = Box::new(MailboxDelivery(Arc::clone(&mailboxes)));
        let broker = Arc::new(MemoryBroker::new(lastcall_broker::Config::default(), delivery));
        let event_loop = EventLoop::new(config, sockets, OwnMailbox::new(Arc::clone(&mailboxes), 0), broker);
        Self { event_loop, mailboxes, events: Events::with_capacity(64) }
    }

    /// Registers a new client.
    fn connect(&mut self) -> Client {
        let (client, new) = Client::new();
        self.event_loop.clients.register(new);
        client
    }

    /// Has a new client wait in the mailbox.
    fn connect_by_mailbox(&self) -> Client {
        let (client, new) = Client::new();
        drop(self.mailboxes.assign(new));
        client
    }

    /// Publishes in the channel `broadcast` what clients see as this text alone.
    fn publish(&self, text: &str) {
        publish(&self.mailboxes, text);
    }

    fn send(&self, command: LoopCommand) {
        self.mailboxes.send(&command);
    }

    /// Runs one iteration, which does not block.
    fn iterate(&mut self) {
        self.event_loop.jobs.queue_mailbox_job();
        self.event_loop.iterate(&mut self.events).unwrap();
    }

    /// Runs iterations until `is_done`.
    fn iterate_until(&mut self, mut is_done: impl FnMut(&mut EventLoop) -> bool) {
        let started = Instant::now();
        while !is_done(&mut self.event_loop) {
            assert!(started.elapsed() < TIMEOUT, "it never comes");
            self.iterate();
        }
    }

    fn key(&self, client: &Client) -> ConnectionKey {
        let mut all = self.event_loop.clients.connections.iter();
        let (slot, _) = all.find(|(_, entry)| entry.connection.id == client.id).unwrap();
        ConnectionKey { slot, id: client.id }
    }
}

fn publish(mailboxes: &Mailboxes, text: &str) {
    let mut receivers = ReceiverSet::default();
    receivers.insert(0);
    let publication = Arc::new(EncodedPublication::of_text(text));
    mailboxes.publish(&ChannelName::broadcast(), &[publication], receivers);
}

fn permit() -> Permit {
    Admission::new(1, Phases::default()).admit().unwrap()
}

/// The client's end of a connection.
struct Client {
    id: ClientId,
    stream: TcpStream,
}

impl Client {
    /// Returns a client, and what its event loop gets.
    fn new() -> (Self, NewConnection) {
        let (stream, server) = pair();
        let id = ClientId::generate();
        let source = ConnectionSource::Handshake(id, Handshake::default());
        (Self { id, stream }, NewConnection { stream: server, permit: permit(), source })
    }

    fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).unwrap();
    }

    /// Reads the bytes that are expected next, and asserts that they are these.
    fn expect(&mut self, expected: &[u8]) {
        let mut got = vec![0; expected.len()];
        self.stream.read_exact(&mut got).unwrap();
        assert_eq!(String::from_utf8_lossy(&got), String::from_utf8_lossy(expected));
    }

    fn expect_welcome(&mut self) {
        self.expect(&Form::WebSocket.encode(&Outgoing::Welcome { client: self.id }));
    }

    fn expect_text(&mut self, text: &str) {
        self.expect(Frame::text(text).bytes());
    }

    fn expect_close(&mut self, reason: CloseReason) {
        self.expect(Frame::close(Some((reason.code(), reason.reason()))).bytes());
    }

    /// Reads the text message that comes next, which is at most 64 KiB long.
    fn read_text(&mut self) -> String {
        let mut header = [0; 2];
        self.stream.read_exact(&mut header).unwrap();
        assert_eq!(header[0], 0x81);
        let len = match header[1] {
            126 => {
                let mut len = [0; 2];
                self.stream.read_exact(&mut len).unwrap();
                usize::from(u16::from_be_bytes(len))
            }
            len => usize::from(len),
        };
        let mut text = vec![0; len];
        self.stream.read_exact(&mut text).unwrap();
        String::from_utf8(text).unwrap()
    }

    /// Asserts that the server has closed the TCP connection and sent nothing more.
    fn expect_end(&mut self) {
        assert_eq!(self.stream.read(&mut [0]).unwrap(), 0);
    }

    /// Asserts that nothing has arrived.
    fn expect_nothing(&mut self) {
        self.stream.set_nonblocking(true).unwrap();
        let read = self.stream.peek(&mut [0]);
        assert_eq!(read.unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
        self.stream.set_nonblocking(false).unwrap();
    }

    /// Returns all that has arrived, as text.
    fn read_events(&mut self) -> String {
        self.stream.set_nonblocking(true).unwrap();
        let mut events = Vec::new();
        let end = self.stream.read_to_end(&mut events);
        assert_eq!(end.unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
        self.stream.set_nonblocking(false).unwrap();
        String::from_utf8(events).unwrap()
    }

    fn shut_down(&self) {
        self.stream.shutdown(Shutdown::Write).unwrap();
    }
}

/// Returns a TCP connection over loopback: the client's end, and the server's, which does not block.
fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    client.set_read_timeout(Some(TIMEOUT)).unwrap();
    let (server, _) = listener.accept().unwrap();
    server.set_nonblocking(true).unwrap();
    (client, server)
}
