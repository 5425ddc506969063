//! Thousands of subscribers in one poll loop.

use std::{
    io::{ErrorKind, Read, Write},
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::Context;
use mio::{Events, Interest, Poll, Token, net::TcpStream};

use super::{
    delivery_log::{DeliveryLog, parse},
    stream_parser::StreamParser,
    subject::Subject,
};

/// A subscriber of one channel.
struct Subscriber {
    /// `None` while it is away.
    connection: Option<Connection>,
    channel: String,
    /// The id of the last message.
    id: Option<String>,
    log: DeliveryLog,
}

struct Connection {
    stream: TcpStream,
    parser: StreamParser,
    request_sent: bool,
}

/// What has come of the connections since the last reset.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Counts {
    /// Subscribers whose response has begun.
    pub(super) open: usize,
    /// Connections that the server ended or refused.
    pub(super) cut: usize,
    /// Subscribers that were told that they do not get everything.
    pub(super) not_recovered: usize,
}

pub(super) struct Subscribers {
    poll: Poll,
    events: Events,
    all: Vec<Subscriber>,
    buffer: Vec<u8>,
    subject: Subject,
    address: SocketAddr,
    pub(super) counts: Counts,
}

/// A publication that has come to a subscriber.
pub(super) struct Arrival {
    pub(super) sequence: u32,
    /// When it was sent, in nanoseconds since the start.
    pub(super) sent: u64,
}

impl Subscribers {
    /// Returns subscribers, one for each of these channels, which are not connected yet.
    pub(super) fn new(
        subject: Subject,
        address: SocketAddr,
        channels: impl Iterator<Item = String>,
    ) -> anyhow::Result<Self> {
        let subscriber =
            |channel| Subscriber { connection: None, channel, id: None, log: DeliveryLog::default() };
        Ok(Self {
            poll: Poll::new()?,
            events: Events::with_capacity(4096),
            all: channels.map(subscriber).collect(),
            buffer: vec![0; 64 << 10],
            subject,
            address,
            counts: Counts::default(),
        })
    }

    pub(super) fn len(&self) -> usize {
        self.all.len()
    }

    /// Begins to connect a subscriber.
    pub(super) fn dial(&mut self, index: usize) -> anyhow::Result<()> {
        let mut stream = TcpStream::connect(self.address).context("cannot connect")?;
        let interest = Interest::READABLE | Interest::WRITABLE;
        self.poll.registry().register(&mut stream, Token(index), interest)?;
        let parser = StreamParser::new(self.subject.wire());
        self.all[index].connection = Some(Connection { stream, parser, request_sent: false });
        Ok(())
    }

    /// Disconnects all.
    pub(super) fn leave(&mut self) {
        for subscriber in &mut self.all {
            subscriber.connection = None;
        }
        self.counts = Counts::default();
    }

    /// Reads what there is, waiting for at most `timeout`. Calls `on_arrival` for each publication.
    pub(super) fn turn(
        &mut self,
        timeout: Duration,
        mut on_arrival: impl FnMut(&Arrival),
    ) -> anyhow::Result<()> {
        match self.poll.poll(&mut self.events, Some(timeout)) {
            Err(error) if error.kind() != ErrorKind::Interrupted => return Err(error).context("cannot poll"),
            _ => {}
        }
        for event in &self.events {
            let subscriber = &mut self.all[event.token().0];
            let came_back = subscriber.id.is_some();
            let Some(connection) = &mut subscriber.connection else { continue };
            if event.is_writable() && !connection.request_sent {
                let request =
                    self.subject.request(self.address, &subscriber.channel, subscriber.id.as_deref());
                connection.stream.set_nodelay(true)?;
                // A new socket takes a request at once; if it fails, the connection has failed.
                connection.request_sent = connection.stream.write_all(request.as_bytes()).is_ok();
            }
            let Subscriber { id, log, .. } = subscriber;
            let counts = &mut self.counts;
            let was_open = connection.parser.is_open();
            let ended = loop {
                let read = match connection.stream.read(&mut self.buffer) {
                    Ok(0) => break true,
                    Ok(read) => read,
                    Err(error) if error.kind() == ErrorKind::WouldBlock => break false,
                    Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                    Err(_) => break true,
                };
                connection.parser.feed(&self.buffer[..read], |message| {
                    if let Some(new) = message.id {
                        new.clone_into(id.get_or_insert_default());
                    }
                    if let Some((sequence, sent)) = parse(message.text) {
                        log.add(sequence);
                        on_arrival(&Arrival { sequence, sent });
                    } else if came_back && message.text.contains(r#""recovered":false"#) {
                        counts.not_recovered += 1;
                    }
                })?;
            };
            counts.open += usize::from(!was_open && connection.parser.is_open());
            if ended {
                counts.cut += 1;
                subscriber.connection = None;
            }
        }
        Ok(())
    }

    /// Takes turns until this is true, or the time is over. Returns whether it is true.
    pub(super) fn run_until(
        &mut self,
        deadline: Instant,
        mut is_done: impl FnMut(&Self) -> bool,
    ) -> anyhow::Result<bool> {
        while !is_done(self) {
            if Instant::now() >= deadline {
                return Ok(false);
            }
            self.turn(Duration::from_millis(20), |_| {})?;
        }
        Ok(true)
    }

    /// Returns how many subscribers have the publication with this number.
    pub(super) fn served(&self, last: u32) -> usize {
        self.all.iter().filter(|subscriber| subscriber.log.last >= last).count()
    }

    /// Returns how many publications up to this number are lost, and how many came again.
    pub(super) fn lost_and_repeated(&self, last: u32) -> (u64, u64) {
        let logs = self.all.iter().map(|subscriber| subscriber.log);
        logs.fold((0, 0), |(lost, repeated), log| (lost + log.lost_up_to(last), repeated + log.repeated))
    }
}
