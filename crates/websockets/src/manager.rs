//! The manager of all connections: lets clients in, speaks to all of them, closes them, counts them.

use std::{
    io,
    os::fd::OwnedFd,
    panic::{self, AssertUnwindSafe},
    sync::{Arc, Mutex, OnceLock, PoisonError},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use lastcall_core::settings::{ClientMessages, Settings};
use tokio::{
    net::TcpStream,
    sync::{mpsc, watch},
};

use crate::{
    admission::{Admission, AdmissionState, AdmitError, ConnectionCounts, Permit},
    budget::{Budget, Rates},
    client_id::ClientId,
    codec::CloseReason,
    connection::ConnectionConfig,
    event_loop::{EventLoop, HeartbeatConfig, LoopConfig},
    handshake::Handshake,
    mailbox::{ConnectionSource, LoopCommand, Mailboxes, NewConnection},
    notice::ShutdownNotice,
    protocol::ServerMessage,
    snapshot::{ConnectionSnapshot, Frozen, ManagerSnapshot, ReadsPaused},
    stats::Stats,
};

/// What the manager needs to know. Its meaning and units are those of the settings of the same names.
#[derive(Debug, Clone, Copy)]
pub struct ManagerConfig {
    /// Event loops, each a thread: as many as there are cores.
    pub event_loops: usize,
    /// Most clients at once.
    pub max_connections: usize,
    /// How long a closed client has to answer.
    pub close_timeout: Duration,
    /// Time between pings and time to answer one; `None`: no pings.
    pub heartbeat: Option<(Duration, Duration)>,
    pub(crate) rules: ConnectionConfig,
    pub(crate) rates: Rates,
}

impl From<&Settings> for ManagerConfig {
    fn from(settings: &Settings) -> Self {
        let rates = Rates {
            client: settings.max_client_rate,
            total: settings.max_total_rate,
            // What comes at once must leave room in a queue for what comes after it.
            burst: settings.max_queue / 4,
        };
        let is_broadcast = settings.client_messages == ClientMessages::Broadcast;
        Self {
            event_loops: thread::available_parallelism().map_or(1, usize::from),
            max_connections: settings.max_connections,
            close_timeout: settings.close_timeout,
            heartbeat: settings.ping_interval.map(|interval| (interval, settings.pong_timeout)),
            rules: ConnectionConfig {
                client_messages: settings.client_messages,
                max_message_size: settings.max_message_size,
                max_queue: settings.max_queue,
                limits_texts: is_broadcast && rates.are_bounded(),
            },
            rates,
        }
    }
}

/// All connections. Clones are handles to the same ones.
#[derive(Debug, Clone)]
pub struct ConnectionManager {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    admission: Arc<Admission>,
    mailboxes: Arc<Mailboxes>,
    /// What the processes before this one counted.
    previous_stats: OnceLock<Stats>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    /// Whether an event loop has panicked.
    failed: watch::Sender<bool>,
}

impl ConnectionManager {
    /// Starts the event loops.
    ///
    /// # Errors
    /// When the system gives no epoll instance or no thread.
    pub fn start(config: ManagerConfig) -> io::Result<Self> {
        let mut polls = Vec::new();
        let mut wakers = Vec::new();
        for _ in 0..config.event_loops.max(1) {
            let (poll, waker) = EventLoop::poll()?;
            polls.push(poll);
            wakers.push(waker);
        }
        let mailboxes = Arc::new(Mailboxes::new(wakers));
        let budget = Arc::new(Budget::new(config.rates, Instant::now()));
        let manager = Self {
            inner: Arc::new(Inner {
                admission: Admission::new(config.max_connections),
                mailboxes: Arc::clone(&mailboxes),
                previous_stats: OnceLock::new(),
                threads: Mutex::default(),
                failed: watch::Sender::new(false),
            }),
        };
        for (index, poll) in polls.into_iter().enumerate() {
            let setup = LoopConfig {
                index,
                poll,
                connection: config.rules,
                budget: Arc::clone(&budget),
                close_timeout: config.close_timeout,
                heartbeat: config.heartbeat.map(|(interval, timeout)| HeartbeatConfig { interval, timeout }),
            };
            let event_loop = EventLoop::new(setup, Arc::clone(&mailboxes));
            let failed = manager.inner.failed.clone();
            let run = move || {
                // Its clients are disconnected: what a panic left of them cannot be trusted.
                if panic::catch_unwind(AssertUnwindSafe(|| event_loop.run())).is_err() {
                    failed.send_replace(true);
                }
            };
            let spawned = thread::Builder::new().name(format!("event-loop-{index}")).spawn(run);
            match spawned {
                Ok(thread) => manager.threads().push(thread),
                Err(error) => {
                    manager.stop();
                    return Err(error);
                }
            }
        }
        Ok(manager)
    }

    /// Lets one connection in, before its handshake is answered: from here on it counts, and a drain
    /// waits for it. Give the [`Permit`] to [`ConnectionManager::connect`], or drop it.
    ///
    /// # Errors
    /// When the server is draining or full.
    pub fn admit(&self) -> Result<Permit, AdmitError> {
        self.inner.admission.admit()
    }

    /// Takes over the socket of a client that made its handshake. To be
    /// called on a tokio runtime: clients that come together are handed to the event loops together, once
    /// the runtime's other tasks have had their turn; waking a loop costs more than taking a client in.
    ///
    /// # Errors
    /// When the socket cannot be taken off the runtime.
    pub fn connect(&self, permit: Permit, stream: TcpStream, handshake: Handshake) -> io::Result<ClientId> {
        let stream = stream.into_std()?;
        let id = ClientId::generate();
        let source = ConnectionSource::Handshake(id, handshake);
        if self.inner.mailboxes.assign(NewConnection { stream, permit, source }) {
            let mailboxes = Arc::clone(&self.inner.mailboxes);
            tokio::spawn(async move {
                tokio::task::yield_now().await;
                mailboxes.wake();
            });
        }
        Ok(id)
    }

    /// Goes on with clients of another process, whose sockets this one has from now on.
    pub fn restore(&self, state: ManagerSnapshot, clients: Vec<(OwnedFd, ConnectionSnapshot)>) {
        let ManagerSnapshot { stats, by_client, by_server, forced } = state;
        // Set once: a process takes over once, at its start.
        let _ = self.inner.previous_stats.set(stats);
        let permits = self.inner.admission.restore(
            ConnectionCounts { by_client, by_server, forced, ..ConnectionCounts::default() },
            clients.len(),
        );
        for ((socket, state), permit) in clients.into_iter().zip(permits) {
            let source = ConnectionSource::Handover(Box::new(state));
            // All are woken for together, below.
            let _ = self.inner.mailboxes.assign(NewConnection { stream: socket.into(), permit, source });
        }
        self.inner.mailboxes.wake();
    }

    /// Has all event loops stand still, once they have written, or queued, all that was published. Whoever
    /// publishes must have stopped before. Dropping this future, or what it gives, lets them go on.
    ///
    /// Ends only when every loop answers: bound it.
    pub async fn freeze(&self) -> Option<Frozen> {
        let loops = self.inner.mailboxes.loops();
        // First nobody reads: what one loop reads, another one still has to write.
        let (acks, mut replies) = mpsc::channel(loops);
        let quiet = ReadsPaused(Arc::clone(&self.inner.mailboxes));
        self.inner.mailboxes.send(&LoopCommand::PauseReads(acks));
        for _ in 0..loops {
            replies.recv().await?;
        }
        let (frozen, mut replies) = mpsc::channel(loops);
        self.inner.mailboxes.send(&LoopCommand::Freeze(frozen));
        let mut frozen = Vec::new();
        for _ in 0..loops {
            frozen.push(replies.recv().await?);
        }
        Some(Frozen {
            loops: frozen,
            previous_stats: self.inner.previous_stats.get().cloned().unwrap_or_default(),
            counts: self.counts(),
            _reads_paused: quiet,
        })
    }

    /// What the loops, and those of the processes before this one, counted. Ends only when every loop
    /// answers: bound it.
    pub async fn stats(&self) -> Option<Stats> {
        let loops = self.inner.mailboxes.loops();
        let (reply, mut replies) = mpsc::channel(loops);
        self.inner.mailboxes.send(&LoopCommand::CollectStats(reply));
        let mut stats = self.inner.previous_stats.get().cloned().unwrap_or_default();
        for _ in 0..loops {
            stats.add(&replies.recv().await?);
        }
        Some(stats)
    }

    /// Closes one client, if it is there.
    pub fn disconnect(&self, client: ClientId, reason: CloseReason) {
        self.inner.mailboxes.send(&LoopCommand::Disconnect(client, reason));
    }

    /// Sends a message to everyone, encoded once; waits while the event loops are behind. How many
    /// clients there are.
    pub async fn broadcast(&self, message: &ServerMessage<'_>) -> usize {
        let frame = message.frame();
        self.inner.mailboxes.wait_for_capacity().await;
        self.inner.mailboxes.send(&LoopCommand::Publish(frame));
        self.count()
    }

    /// Admits no new connections any more. The counts at that moment: no client comes after it.
    pub fn stop_admitting(&self) -> ConnectionCounts {
        self.inner.admission.shut(AdmissionState::Draining)
    }

    /// Tells all clients that the server is going to close; to be called again to remind them. Newcomers are not
    /// admitted any more; one that was admitted before gets the notice with its greeting.
    pub fn give_notice(&self, notice: ShutdownNotice) {
        self.inner.admission.shut(AdmissionState::Draining);
        self.inner.mailboxes.send(&LoopCommand::BeginDrain(notice));
    }

    /// Starts closing those inside one by one, in random order, spread evenly from now until `until`.
    pub fn close_gradually(&self, reason: CloseReason, until: Instant) {
        self.inner.admission.shut(AdmissionState::Draining);
        self.inner.mailboxes.send(&LoopCommand::CloseGradually(reason, until));
    }

    /// Starts closing everyone: what is queued for a client is flushed first; a client that does not
    /// answer within `close_timeout` is cut off.
    pub fn close_all(&self, reason: CloseReason) {
        self.inner.admission.shut(AdmissionState::Closing);
        self.inner.mailboxes.send(&LoopCommand::CloseAll(reason));
    }

    /// Clients there are, counted from before their handshake is answered.
    pub fn count(&self) -> usize {
        self.counts().connections
    }

    /// How many there are, and how many went, and how.
    pub fn counts(&self) -> ConnectionCounts {
        self.inner.admission.counts()
    }

    /// Every change of the counts.
    pub fn watch(&self) -> watch::Receiver<ConnectionCounts> {
        self.inner.admission.watch()
    }

    /// Waits until nobody is left.
    pub async fn wait_until_empty(&self) {
        // Fails only when the admission is gone, and this holds it.
        let _ = self.watch().wait_for(|now| now.connections == 0).await;
    }

    /// Waits until an event loop has panicked, which is a bug. Its clients are disconnected then, and no other loop
    /// takes its place: the process is to end.
    pub async fn failed(&self) {
        // Fails only when the sender is gone, and this holds it.
        let _ = self.inner.failed.subscribe().wait_for(|failed| *failed).await;
    }

    /// Whether an event loop has panicked.
    pub fn has_failed(&self) -> bool {
        *self.inner.failed.borrow()
    }

    /// Ends the event loops; who is still there is cut off. Blocks until the threads have ended, which
    /// takes a turn.
    pub fn stop(&self) {
        self.inner.mailboxes.send(&LoopCommand::Stop);
        for thread in std::mem::take(&mut *self.threads()) {
            if thread.join().is_err() {
                tracing::error!("an event loop had panicked");
            }
        }
    }

    fn threads(&self) -> std::sync::MutexGuard<'_, Vec<JoinHandle<()>>> {
        self.inner.threads.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::{io::Read, net};

    use lastcall_core::settings::Sources;
    use tokio::net::TcpListener;

    use super::*;
    use crate::codec::Frame;

    /// A manager, and the two ends of a connection to be.
    async fn manager() -> (ConnectionManager, net::TcpStream, TcpStream) {
        // A folder without settings files: only the defaults are left.
        let sources = Sources { working_dir: env!("CARGO_MANIFEST_DIR").into(), ..Sources::default() };
        let settings = Settings::load(&sources).unwrap().settings;
        let manager = ConnectionManager::start(ManagerConfig::from(&settings)).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        client.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        let (server, _) = listener.accept().await.unwrap();
        (manager, client, server)
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_client_can_be_disconnected_by_its_id() {
        let (manager, mut client, server) = manager().await;
        let id = manager.connect(manager.admit().unwrap(), server, Handshake::default()).unwrap();
        manager.disconnect(ClientId::generate(), CloseReason::Idle);
        manager.disconnect(id, CloseReason::ServiceRestart);
        let expected = [
            ServerMessage::Welcome { client: id, server: crate::protocol::ServerInfo }
                .frame()
                .bytes()
                .to_vec(),
            Frame::close(Some((1012, "service restart"))).bytes().to_vec(),
        ]
        .concat();
        let mut got = vec![0; expected.len()];
        client.read_exact(&mut got).unwrap();
        assert_eq!(got, expected);
        assert_eq!(manager.count(), 1, "it has not answered yet");
        drop(client);
        manager.wait_until_empty().await;
        assert_eq!(manager.counts().by_server, 1);
        manager.stop();
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn an_event_loop_that_panics_is_told_of_and_its_clients_are_disconnected() {
        let (manager, mut client, server) = manager().await;
        manager.connect(manager.admit().unwrap(), server, Handshake::default()).unwrap();
        let mut welcome = [0; 2];
        client.read_exact(&mut welcome).unwrap();
        assert!(!manager.has_failed());
        manager.inner.mailboxes.send(&LoopCommand::Panic);
        manager.failed().await;
        assert!(manager.has_failed());
        // The end comes after the rest of the welcome.
        client.read_to_end(&mut Vec::new()).unwrap();
        manager.wait_until_empty().await;
        manager.stop();
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn who_comes_after_the_notice_hears_it_and_who_comes_after_the_close_is_closed() {
        let (manager, mut client, server) = manager().await;
        let permit = manager.admit().unwrap();
        manager.give_notice(ShutdownNotice::new("service restart", Duration::from_secs(60), Duration::ZERO));
        assert_eq!(manager.admit().unwrap_err(), AdmitError::Draining);
        manager.close_all(CloseReason::ServiceRestart);
        manager.connect(permit, server, Handshake::default()).unwrap();
        let mut got = Vec::new();
        while !got.ends_with(b"\x03\xF4service restart") {
            let mut byte = [0];
            client.read_exact(&mut byte).unwrap();
            got.push(byte[0]);
        }
        assert!(
            String::from_utf8_lossy(&got).contains(r#""type":"shutdown""#),
            "{}",
            String::from_utf8_lossy(&got)
        );
        manager.stop();
        assert_eq!(manager.count(), 0, "stopping cuts off who is left");
    }
}
