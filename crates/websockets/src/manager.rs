//! The manager of all connections: admits them, sends to all of them, closes them, counts them.

mod config;
mod handover;

use std::{
    io,
    panic::{self, AssertUnwindSafe},
    sync::{Arc, Mutex, OnceLock, PoisonError},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use lastcall_broker::{Broker, BrokerError, Delivery, IdempotencyKey, MAX_RECEIVERS, Published};
use lastcall_core::{ChannelName, Publication};
use tokio::{
    net::TcpStream,
    sync::{mpsc, watch},
    time::timeout_at,
};

use crate::{
    admission::{Admission, AdmitError, ConnectionCounts, Permit},
    budget::Budget,
    client_id::ClientId,
    codec::CloseReason,
    event_loop::{EventLoop, LoopConfig, Sockets, VITAL_NAME},
    handshake::Handshake,
    mailbox::{ConnectionSource, LoopCommand, NewConnection},
    mailboxes::{DeferredWake, MailboxDelivery, Mailboxes, OwnMailbox},
    notice::ShutdownNotice,
    phases::Phases,
    stats::Stats,
    vital_tasks::VitalTasks,
};

pub use self::{config::ManagerConfig, handover::ChannelListing};

/// Nothing was published.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PublishError {
    /// The server is closing all connections: no client would get it.
    #[error("the server is closing all connections")]
    Closing,
    /// The mailboxes of the event loops stayed full.
    #[error("too much is waiting to be sent")]
    Overloaded,
}

/// Publications that are to be made in a channel.
#[derive(Debug)]
pub struct PublishRequest {
    /// The channel.
    pub channel: ChannelName,
    /// One or more, in their order.
    pub publications: Vec<Publication>,
    /// With a key, they are published once.
    pub key: Option<IdempotencyKey>,
}

/// The handle to all connections. Clones are handles to the same ones.
///
/// # Example
///
/// An HTTP server has made the handshake of a WebSocket, and gives its socket to the manager:
///
/// ```
/// use std::{net, sync::Arc, time::Duration};
///
/// use lastcall_broker::{Broker, MemoryBroker};
/// use lastcall_core::{ChannelName, Publication, Publisher};
/// use lastcall_websockets::{
///     ConnectionManager, Handshake, ManagerConfig, Phases, PublishRequest, VitalTasks,
/// };
/// use serde_json::value::to_raw_value;
/// use tokio::net::TcpListener;
/// use tungstenite::{WebSocket, protocol::Role};
///
/// # #[tokio::main]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let (manager, _broker) = ConnectionManager::start(
///     ManagerConfig::default(),
///     Phases::default(),
///     VitalTasks::default(),
///     |delivery| -> Arc<dyn Broker> {
///         Arc::new(MemoryBroker::new(lastcall_broker::Config::default(), delivery))
///     },
/// )?;
///
/// let listener = TcpListener::bind("127.0.0.1:0").await?;
/// let client = net::TcpStream::connect(listener.local_addr()?)?;
/// let (socket, _) = listener.accept().await?;
/// // Before the handshake is answered: with no permit left, the answer is 503.
/// let permit = manager.admit()?;
/// let id = manager.connect(permit, socket, Handshake::default())?;
///
/// let mut client = WebSocket::from_raw_socket(client, Role::Client, None);
/// assert!(client.read()?.to_text()?.contains(&id.to_string()), "the welcome names the client");
///
/// // A client that has named no channel has this one.
/// let publication = Publication::new(Publisher::Api, to_raw_value("hello")?);
/// let request = PublishRequest {
///     channel: ChannelName::broadcast(),
///     publications: vec![publication],
///     key: None,
/// };
/// let published = manager.publish_all(vec![request], Duration::from_secs(10)).await?;
/// assert_eq!(published[0].as_ref().unwrap().subscribers, 1);
/// assert!(client.read()?.to_text()?.contains("\"data\":\"hello\""));
///
/// manager.stop();
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct ConnectionManager {
    inner: Arc<Inner>,
}

/// The order in which the locks are taken, each one while those before it may be held:
///
/// 1. the phase (`phases`): held for reading while something is admitted or published, so that a drain that
///    begins meanwhile comes after it;
/// 2. the counts of connections (`admission`), or the lock of the broker;
/// 3. the mailboxes (`mailboxes`), which a broker fills under its lock: so all loops have a channel's
///    publications and subscriptions in one order;
/// 4. none: a loop is woken under the lock of the mailboxes, by a write to its eventfd, which never blocks.
///
/// A permit locks the counts when it is dropped, so no connection is dropped under the lock of the mailboxes.
/// An event loop holds no lock when it calls the broker or takes from its mailbox, but one: that of the
/// buffers that are handed over (`UnreadRound`) comes before the broker's. No lock is held across an await.
#[derive(Debug)]
struct Inner {
    phases: Phases,
    admission: Arc<Admission>,
    mailboxes: Arc<Mailboxes>,
    broker: Arc<dyn Broker>,
    /// The statistics of the processes before this one.
    previous_stats: OnceLock<Stats>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    vital_tasks: VitalTasks,
}

/// An event loop has ended, by a failure or because it was stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an event loop has ended")]
pub struct LoopEnded;

impl ConnectionManager {
    /// Starts the event loops, which are among the `vital_tasks`. Connections are admitted as long as the
    /// phase allows it. `broker` makes the broker that delivers to them; a handle to it is returned, too.
    ///
    /// # Errors
    /// When the system gives no epoll instance or no thread.
    pub fn start<B: Clone + Into<Arc<dyn Broker>>>(
        config: ManagerConfig,
        phases: Phases,
        vital_tasks: VitalTasks,
        broker: impl FnOnce(Box<dyn Delivery>) -> B,
    ) -> io::Result<(Self, B)> {
        let mut sockets = Vec::new();
        let mut wakers = Vec::new();
        for _ in 0..config.event_loops.clamp(1, MAX_RECEIVERS) {
            let (socket, waker) = Sockets::new()?;
            sockets.push(socket);
            wakers.push(waker);
        }
        let mailboxes = Arc::new(Mailboxes::new(wakers, config.connections_per_loop));
        let own_broker = broker(Box::new(MailboxDelivery(Arc::clone(&mailboxes))));
        let broker: Arc<dyn Broker> = own_broker.clone().into();
        let budget = Arc::new(Budget::new(config.rates(), Instant::now()));
        let manager = Self {
            inner: Arc::new(Inner {
                admission: Admission::new(config.max_connections, phases.clone()),
                phases,
                mailboxes: Arc::clone(&mailboxes),
                broker: Arc::clone(&broker),
                previous_stats: OnceLock::new(),
                threads: Mutex::default(),
                vital_tasks: vital_tasks.clone(),
            }),
        };
        for (index, sockets) in sockets.into_iter().enumerate() {
            let setup = LoopConfig {
                connection: config.connection(),
                budget: Arc::clone(&budget),
                close_timeout: config.close_timeout,
                heartbeat: config.heartbeat,
                replay_timeout: config.replay_timeout,
                vital_tasks: vital_tasks.clone(),
            };
            let mailbox = OwnMailbox::new(Arc::clone(&mailboxes), index);
            let event_loop = EventLoop::new(setup, sockets, mailbox, Arc::clone(&broker));
            let (vital_tasks, mailboxes) = (vital_tasks.clone(), Arc::clone(&mailboxes));
            let run = move || {
                // A panic drops the loop's connections: their state cannot be trusted any more.
                let ended = panic::catch_unwind(AssertUnwindSafe(|| event_loop.run()));
                mailboxes.close(index);
                if let Ok(Err(error)) = &ended {
                    tracing::error!(%error, "an event loop cannot continue: its clients are cut off");
                }
                if !matches!(ended, Ok(Ok(()))) {
                    vital_tasks.fail(VITAL_NAME);
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
        Ok((manager, own_broker))
    }

    /// Admits one connection, before its handshake is answered: from here on it counts, and a drain waits for
    /// it. Give the [`Permit`] to [`ConnectionManager::connect`], or drop it.
    ///
    /// # Errors
    /// When the server is draining or full.
    pub fn admit(&self) -> Result<Permit, AdmitError> {
        self.inner.admission.admit()
    }

    /// Gives the socket of a client that made its handshake to an event loop, and returns the connection's
    /// id.
    ///
    /// Must be called on a tokio runtime: the event loops are woken once the tasks that are ready now have
    /// run, so connections that come together are registered together.
    ///
    /// # Errors
    /// When the socket cannot be taken off the runtime.
    pub fn connect(&self, permit: Permit, stream: TcpStream, handshake: Handshake) -> io::Result<ClientId> {
        let stream = stream.into_std()?;
        let id = ClientId::generate();
        let source = ConnectionSource::Handshake(id, handshake);
        if let Some(wake) = self.inner.mailboxes.assign(NewConnection { stream, permit, source }) {
            wake_after_ready_tasks(wake);
        }
        Ok(id)
    }

    /// Sends a command to all loops and waits until each has acknowledged it.
    async fn acknowledged(
        &self,
        command: impl FnOnce(mpsc::Sender<()>) -> LoopCommand,
    ) -> Result<(), LoopEnded> {
        let loops = self.inner.mailboxes.loops();
        let (ack, mut acks) = mpsc::channel(loops);
        self.inner.mailboxes.send(&command(ack));
        for _ in 0..loops {
            acks.recv().await.ok_or(LoopEnded)?;
        }
        Ok(())
    }

    /// Returns the statistics of all loops and of the processes before this one.
    ///
    /// Has no timeout of its own; the caller needs one.
    ///
    /// # Errors
    /// When a loop has ended.
    pub async fn stats(&self) -> Result<Stats, LoopEnded> {
        let loops = self.inner.mailboxes.loops();
        let (reply, mut replies) = mpsc::channel(loops);
        self.inner.mailboxes.send(&LoopCommand::CollectStats(reply));
        let mut stats = self.inner.previous_stats.get().cloned().unwrap_or_default();
        for _ in 0..loops {
            stats.add(&replies.recv().await.ok_or(LoopEnded)?);
        }
        Ok(stats)
    }

    /// Publishes, and returns the results in the order of the requests. Waits at most so long, first while
    /// the mailboxes are full, then for the broker: a publication that it has not answered then may have been
    /// made. See [`Broker::publish`].
    ///
    /// Must be called on a tokio runtime: the event loops are woken once the tasks that are ready now have
    /// run, so that requests that arrive together are delivered together. If the future is dropped while it
    /// waits for the mailboxes, nothing is published.
    ///
    /// # Errors
    /// When nothing was published.
    pub async fn publish_all(
        &self,
        requests: Vec<PublishRequest>,
        wait: Duration,
    ) -> Result<Vec<Result<Published, BrokerError>>, PublishError> {
        let deadline = tokio::time::Instant::now() + wait;
        let capacity = timeout_at(deadline, self.inner.mailboxes.wait_for_capacity()).await;
        capacity.map_err(|_| PublishError::Overloaded)?;
        let publish = |PublishRequest { channel, publications, key }: PublishRequest| {
            self.inner.broker.publish(&channel, publications, key)
        };
        if let Some(wake) = self.inner.mailboxes.defer_wake() {
            wake_after_ready_tasks(wake);
        }
        // The phase does not change before the loops have it: they get it before they close anything.
        let publishing: Option<Vec<_>> = self
            .inner
            .phases
            .hold(|phase| phase.delivers_publications().then(|| requests.into_iter().map(publish).collect()));
        let publishing = publishing.ok_or(PublishError::Closing)?;
        let mut published = Vec::with_capacity(publishing.len());
        for one in publishing {
            let result = timeout_at(deadline, one).await;
            let late = |_| Err(BrokerError::OutcomeUnknown(format!("no answer within {wait:?}")));
            published.push(result.unwrap_or_else(late));
        }
        Ok(published)
    }

    /// Returns the broker.
    pub fn broker(&self) -> &dyn Broker {
        &*self.inner.broker
    }

    /// Admits no more connections, enters the phase `Draining` until the notice's deadline, and sends the
    /// notice to all clients. A connection that was admitted before gets it with its welcome. Returns the
    /// counts at that moment.
    pub(crate) fn begin_drain(&self, notice: ShutdownNotice) -> ConnectionCounts {
        let counts = self.inner.admission.begin_drain(notice.deadline);
        self.inner.mailboxes.send(&LoopCommand::BeginDrain(notice));
        counts
    }

    /// Sends the notice again to all clients that have no output waiting.
    pub(crate) fn remind(&self) {
        self.inner.mailboxes.send(&LoopCommand::Remind);
    }

    /// Starts closing the open connections one by one, in random order, spread evenly from now until `until`.
    pub(crate) fn close_gradually(&self, reason: CloseReason, until: Instant) {
        self.inner.mailboxes.send(&LoopCommand::CloseGradually(reason, until));
    }

    /// Enters the phase `Closing` and starts closing all connections. What is queued for a client is sent
    /// first; the TCP socket of a client that does not answer within `close_timeout` is closed.
    pub(crate) fn close_all(&self, reason: CloseReason) {
        // In this order: once the phase allows no publication, none comes after the command.
        self.inner.phases.enter_closing();
        self.inner.mailboxes.send(&LoopCommand::CloseAll(reason));
    }

    /// Returns the phase's publisher.
    pub fn phases(&self) -> &Phases {
        &self.inner.phases
    }

    /// Returns how many connections there are, counted from before their handshake is answered.
    pub fn count(&self) -> usize {
        self.counts().connections
    }

    /// Returns how many connections there are, and how the others ended.
    pub fn counts(&self) -> ConnectionCounts {
        self.inner.admission.counts()
    }

    /// Returns the receiver of all changes of the counts.
    pub fn watch(&self) -> watch::Receiver<ConnectionCounts> {
        self.inner.admission.watch()
    }

    /// Waits until there is no connection.
    pub(crate) async fn wait_until_empty(&self) {
        // An error means that the sender is gone, and `self` holds it.
        let _ = self.watch().wait_for(|counts| counts.connections == 0).await;
    }

    /// Returns the tasks without which this server does not work.
    pub fn vital_tasks(&self) -> &VitalTasks {
        &self.inner.vital_tasks
    }

    /// Ends the event loops, which close the sockets that are left. Blocks for one iteration of a loop, until
    /// the threads have ended.
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

/// Wakes the event loops once the tasks that are ready now have run.
fn wake_after_ready_tasks(wake: DeferredWake) {
    tokio::spawn(async move {
        tokio::task::yield_now().await;
        drop(wake);
    });
}

#[cfg(test)]
pub(crate) mod tests;
