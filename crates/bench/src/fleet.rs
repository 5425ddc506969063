//! Thousands of clients in one poll loop.

use std::{
    io::{ErrorKind, Write},
    net::{SocketAddr, ToSocketAddrs},
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use indicatif::{ProgressBar, ProgressStyle};
use mio::{Events, Interest, Poll, Token};
use rustix::process::{Resource, getrlimit, setrlimit};
use url::{Position, Url};

use crate::client::{Client, Progress, State, pong_frame};

/// The longest that connecting all clients may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(60);

/// The longest that sending as one client may take.
const SEND_TIMEOUT: Duration = Duration::from_secs(60);

/// File descriptors that are not for clients.
const RESERVED_DESCRIPTORS: u64 = 32;

/// What happens to a client.
pub(crate) enum Event<'a> {
    /// A text came; of a large one, its beginning.
    Text(&'a [u8]),
    /// It is connected, again.
    Open,
    /// It was cut off, or could not connect.
    Gone,
}

pub(crate) struct Fleet {
    poll: Poll,
    events: Events,
    pub(crate) clients: Vec<Client>,
    buffer: Vec<u8>,
    address: SocketAddr,
    /// Clients whose connection the server ended during their handshake; they connected again.
    pub(crate) refused: usize,
}

impl Fleet {
    /// Connects `count` clients, all at once or `at_once` at a time.
    pub(crate) fn connect(url: &Url, count: usize, at_once: usize, progress: bool) -> anyhow::Result<Self> {
        Self::connect_each(url, count, at_once, progress, |_| {
            url[Position::BeforePath..Position::AfterQuery].to_owned()
        })
    }

    /// Connects `count` clients, each to a path of its own, with a query if need be.
    pub(crate) fn connect_each(
        url: &Url,
        count: usize,
        at_once: usize,
        progress: bool,
        path: impl Fn(usize) -> String,
    ) -> anyhow::Result<Self> {
        raise_open_file_limit(count)?;
        let address = address(url)?;
        let host = format!("{}:{}", url.host_str().unwrap_or_default(), address.port());
        let bar = if progress { ProgressBar::new(count as u64) } else { ProgressBar::hidden() };
        bar.set_style(ProgressStyle::with_template("connecting {bar:40} {pos}/{len} {per_sec}")?);
        let mut fleet = Self {
            poll: Poll::new()?,
            events: Events::with_capacity(4096),
            clients: Vec::with_capacity(count),
            buffer: vec![0; 64 << 10],
            address,
            refused: 0,
        };
        let started = Instant::now();
        let mut open = 0;
        while open < count {
            ensure!(
                started.elapsed() < CONNECT_TIMEOUT,
                "only {open} of {count} clients are connected after {CONNECT_TIMEOUT:?}"
            );
            while fleet.clients.len() < count && fleet.clients.len() - open < at_once {
                let mut client = Client::connect(address).context("cannot connect")?;
                let token = Token(fleet.clients.len());
                let interest = Interest::READABLE | Interest::WRITABLE;
                fleet.poll.registry().register(&mut client.stream, token, interest)?;
                fleet.clients.push(client);
            }
            open += fleet.continue_handshakes(&host, &path)?;
            bar.set_position(open as u64);
        }
        bar.finish_and_clear();
        Ok(fleet)
    }

    /// Continues the handshakes that are ready. Returns how many were completed.
    fn continue_handshakes(&mut self, host: &str, path: &impl Fn(usize) -> String) -> anyhow::Result<usize> {
        let (mut open, mut again) = (0, Vec::new());
        self.wait(Some(Duration::from_millis(100)))?;
        for event in &self.events {
            let index = event.token().0;
            let client = &mut self.clients[index];
            let mut refused = false;
            if client.state == State::Connecting && event.is_writable() {
                refused = client.send_handshake(host, &path(index)).is_err();
            }
            while !refused && event.is_readable() && client.state != State::Connecting {
                match client.read(&mut self.buffer, &mut |_, _| {}) {
                    Progress::Blocked => break,
                    Progress::More => {}
                    Progress::Opened => open += 1,
                    Progress::Gone => refused = true,
                }
            }
            if refused {
                self.refused += 1;
                ensure!(self.refused < self.clients.len(), "the server refuses its clients");
                again.push(index);
            }
        }
        for index in again {
            self.reconnect(index)?;
        }
        Ok(open)
    }

    /// Connects a client again that is gone.
    pub(crate) fn reconnect(&mut self, index: usize) -> anyhow::Result<()> {
        let mut client = Client::connect(self.address).context("cannot connect")?;
        let interest = Interest::READABLE | Interest::WRITABLE;
        self.poll.registry().register(&mut client.stream, Token(index), interest)?;
        self.clients[index] = client;
        Ok(())
    }

    /// Serves all clients until `until`, also those that are still connecting. Calls `on` for each event, and
    /// answers pings.
    pub(crate) fn run(
        &mut self,
        (host, path): (&str, &str),
        until: Instant,
        mut on: impl FnMut(usize, Event<'_>),
    ) -> anyhow::Result<()> {
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            self.wait(Some(left))?;
            for event in &self.events {
                let index = event.token().0;
                let client = &mut self.clients[index];
                if client.state == State::Connecting
                    && event.is_writable()
                    && client.send_handshake(host, path).is_err()
                {
                    client.state = State::Gone;
                    on(index, Event::Gone);
                }
                if !event.is_readable() || matches!(client.state, State::Connecting | State::Gone) {
                    continue;
                }
                let mut pings = Vec::new();
                loop {
                    let progress = client.read(&mut self.buffer, &mut |opcode, payload| match opcode {
                        0x1 => on(index, Event::Text(payload)),
                        0x9 => pings.push(pong_frame(payload)),
                        _ => {}
                    });
                    match progress {
                        Progress::Blocked => break,
                        Progress::More => {}
                        Progress::Opened => on(index, Event::Open),
                        Progress::Gone => {
                            on(index, Event::Gone);
                            break;
                        }
                    }
                }
                for pong in pings {
                    // A pong that does not fit is not worth waiting for.
                    let _ = client.stream.write(&pong);
                }
            }
        }
    }

    fn wait(&mut self, timeout: Option<Duration>) -> anyhow::Result<()> {
        match self.poll.poll(&mut self.events, timeout) {
            Err(error) if error.kind() != ErrorKind::Interrupted => Err(error).context("cannot poll"),
            _ => Ok(()),
        }
    }

    /// Reads from all clients until `until`, or until `on_text`, which gets the client and the beginning of
    /// each text, returns true. Answers pings. Returns how many connections ended.
    pub(crate) fn receive(
        &mut self,
        until: Instant,
        mut on_text: impl FnMut(usize, &[u8]) -> bool,
    ) -> anyhow::Result<usize> {
        let (mut gone, mut enough) = (0, false);
        while !enough {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            self.wait(Some(left))?;
            for event in &self.events {
                let index = event.token().0;
                let client = &mut self.clients[index];
                if client.state != State::Open || !event.is_readable() {
                    continue;
                }
                let mut ping: Option<Vec<u8>> = None;
                loop {
                    let progress = client.read(&mut self.buffer, &mut |opcode, payload| match opcode {
                        0x1 => enough |= on_text(index, payload),
                        0x9 => ping = Some(payload.to_vec()),
                        _ => {}
                    });
                    match progress {
                        Progress::More => {}
                        Progress::Gone => {
                            gone += 1;
                            break;
                        }
                        Progress::Blocked | Progress::Opened => break,
                    }
                }
                if let Some(payload) = ping {
                    // A pong that does not fit now is left out: the next ping asks for it again.
                    let _ = client.stream.write(&pong_frame(&payload));
                }
            }
        }
        Ok(gone)
    }

    /// Sends bytes as client `index`.
    pub(crate) fn send(&mut self, index: usize, mut bytes: &[u8]) -> anyhow::Result<()> {
        let started = Instant::now();
        while !bytes.is_empty() {
            ensure!(started.elapsed() < SEND_TIMEOUT, "the server does not take what is sent");
            match self.clients[index].stream.write(bytes) {
                Ok(n) => bytes = &bytes[n..],
                Err(error) if error.kind() == ErrorKind::WouldBlock => std::thread::yield_now(),
                Err(error) => return Err(error).context("cannot send"),
            }
        }
        Ok(())
    }
}

fn address(url: &Url) -> anyhow::Result<SocketAddr> {
    ensure!(url.scheme() == "ws", "only ws:// is spoken, not {}://", url.scheme());
    let host = url.host_str().context("the URL has no host")?;
    let port = url.port_or_known_default().context("the URL has no port")?;
    let mut addresses = (host, port).to_socket_addrs().with_context(|| format!("cannot find {host}"))?;
    addresses.next().with_context(|| format!("{host} has no address"))
}

fn raise_open_file_limit(clients: usize) -> anyhow::Result<()> {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit).context("cannot raise the limit of open files")?;
    let max = limit.maximum.map_or(u64::MAX, |maximum| maximum.saturating_sub(RESERVED_DESCRIPTORS));
    ensure!(clients as u64 <= max, "a process may have {max} clients here (ulimit -n), not {clients}");
    Ok(())
}
