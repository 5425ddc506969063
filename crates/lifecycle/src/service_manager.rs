//! The service manager (sd_notify(3)), if there is one. Whatever it does with what it is told, nothing waits
//! for it: what it does not take is queued, and the process serves, drains and ends meanwhile.

use std::{
    collections::VecDeque,
    convert::Infallible,
    env,
    ffi::OsStr,
    fmt::Write,
    future::{Future, pending},
    io,
    os::{
        linux::net::SocketAddrExt,
        unix::{
            ffi::OsStrExt,
            net::{SocketAddr, UnixDatagram},
        },
    },
    process,
    sync::Arc,
    time::{Duration, Instant},
};

use rustix::process::{Pid, getpid, getppid};
use sd_notify::NotifyState;
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};
use tracing::debug;

/// The interval at which the service manager is asked for more time.
const EXTEND_INTERVAL: Duration = Duration::from_secs(10);

/// Most messages that wait for the service manager. Of more, the oldest are dropped: those after them say
/// what is true now.
const MAX_QUEUED: usize = 16;

/// The time to wait for a service manager where it matters whether it has been told.
const TOLD_TIMEOUT: Duration = Duration::from_secs(1);

/// The time after which it is told again which process serves, when it did not take that.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// The service manager that started this process; does nothing if there is none. Clones are the same one.
#[derive(Debug, Clone, Default)]
pub struct ServiceManager(Option<Arc<Inner>>);

#[derive(Debug)]
struct Inner {
    address: SocketAddr,
    queue: watch::Sender<Queue>,
}

/// The messages that the service manager has not taken.
#[derive(Debug)]
struct Queue {
    messages: VecDeque<String>,
    /// True if it took the last message that was sent.
    answers: bool,
}

impl ServiceManager {
    /// Returns the service manager that the environment names (NOTIFY_SOCKET). That alone does not mean that
    /// it started this process: see [`ServiceManager::watches_this_process`].
    pub fn from_environment() -> Self {
        let Some(name) = env::var_os("NOTIFY_SOCKET").filter(|name| !name.is_empty()) else {
            return Self::default();
        };
        match address_of(&name) {
            Ok(address) => {
                let queue = Queue { messages: VecDeque::new(), answers: false };
                Self(Some(Arc::new(Inner { address, queue: watch::Sender::new(queue) })))
            }
            Err(error) => {
                debug!(%error, "NOTIFY_SOCKET is not understood: there is no service manager");
                Self::default()
            }
        }
    }

    /// Returns true if the environment proves that a service manager has started this very process, and not
    /// one of its ancestors, from which it may have NOTIFY_SOCKET. Only then does it follow another process
    /// (MAINPID=), and does nobody else wait for this one. In doubt, false.
    pub fn watches_this_process() -> bool {
        // A container ends with its process 1, whatever its manager is told.
        if env::var_os("NOTIFY_SOCKET").is_none() || getpid() == Pid::INIT {
            return false;
        }
        let pid_in = |variable| env::var(variable).ok()?.parse::<u32>().ok();
        let parent = getppid().and_then(|parent| u32::try_from(parent.as_raw_nonzero().get()).ok());
        match pid_in("SYSTEMD_EXEC_PID") {
            Some(started) => started == process::id(),
            // A systemd before version 248: that of a user says which process it is, that of the system is
            // process 1.
            None => match pid_in("MANAGERPID") {
                Some(manager) => parent == Some(manager),
                None => parent == Some(1) && sd_notify::booted().unwrap_or(false),
            },
        }
    }

    /// Runs `work`, and tells the service manager what is queued meanwhile.
    pub async fn telling<T>(&self, work: impl Future<Output = T>) -> T {
        tokio::select! {
            biased;
            done = work => done,
            never = self.deliver() => match never {},
        }
    }

    /// Runs `work`, a part of stopping, and asks for more time meanwhile. That happens in small steps, so
    /// that a process that hangs does not get all of `at_most`. To be run by [`ServiceManager::telling`].
    pub async fn extending<T>(&self, at_most: Duration, work: impl Future<Output = T>) -> T {
        let until = Instant::now() + at_most;
        let extending = async {
            loop {
                let left = until.saturating_duration_since(Instant::now());
                let time = left.min(3 * EXTEND_INTERVAL) + EXTEND_INTERVAL;
                let us = u32::try_from(time.as_micros()).unwrap_or(u32::MAX);
                self.tell(&[NotifyState::ExtendTimeoutUsec(us)]);
                sleep(EXTEND_INTERVAL).await;
            }
        };
        tokio::select! {
            biased;
            done = work => done,
            never = extending => never,
        }
    }

    /// Waits a moment until the service manager has taken everything. Returns true if it has.
    pub async fn is_told(&self) -> bool {
        let Some(inner) = &self.0 else { return false };
        let mut changes = inner.queue.subscribe();
        let told = timeout(TOLD_TIMEOUT, changes.wait_for(|queue| queue.messages.is_empty())).await;
        matches!(told, Ok(Ok(queue)) if queue.answers)
    }

    /// Tells it, until it takes that, that the process `pid` is the service's main process.
    pub async fn hand_over_to(&self, pid: u32) {
        while !self.is_told().await {
            let answers = self.0.as_ref().is_some_and(|inner| inner.queue.borrow().messages.is_empty());
            if answers || self.0.is_none() {
                // There is no event for a socket that is made anew.
                sleep(RETRY_INTERVAL).await;
                self.handed_over_to(pid);
            }
        }
    }

    /// This process serves.
    pub(crate) fn ready(&self) {
        self.tell(&[NotifyState::Ready, NotifyState::Status("serving")]);
    }

    /// This process is about to hand over to a new process.
    pub(crate) fn reloading(&self) {
        match NotifyState::monotonic_usec_now() {
            Ok(now) => self.tell(&[NotifyState::Reloading, now, NotifyState::Status("upgrading")]),
            Err(error) => debug!(%error, "the clock could not be read for the service manager"),
        }
    }

    /// The process `pid` serves, and is the service's main process from now on.
    pub(crate) fn handed_over_to(&self, pid: u32) {
        self.tell(&[NotifyState::MainPid(pid), NotifyState::Ready, NotifyState::Status("serving")]);
    }

    /// This process is stopping.
    pub(crate) fn stopping(&self) {
        self.tell(&[NotifyState::Stopping, NotifyState::Status("stopping")]);
    }

    /// This process waits for this many clients to leave.
    pub(crate) fn draining(&self, clients: usize) {
        self.tell(&[NotifyState::Status(&format!("waiting for {clients} clients to leave"))]);
    }

    fn tell(&self, states: &[NotifyState<'_>]) {
        let Some(inner) = &self.0 else { return };
        let mut message = String::new();
        for state in states {
            // Never fails: the target is a string.
            let _ = writeln!(message, "{state}");
        }
        inner.queue.send_modify(|queue| {
            if queue.messages.len() >= MAX_QUEUED {
                queue.messages.pop_front();
            }
            queue.messages.push_back(message);
        });
    }

    /// Sends what is queued, whenever there is something. At most one of these may run.
    async fn deliver(&self) -> Infallible {
        let Some(inner) = &self.0 else { return pending().await };
        let mut changes = inner.queue.subscribe();
        loop {
            // An error means that the sender is gone, and `self` holds it.
            let Ok(_) = changes.wait_for(|queue| !queue.messages.is_empty()).await else {
                return pending().await;
            };
            let Some(message) = inner.queue.borrow().messages.front().cloned() else { continue };
            let sent = send(&inner.address, &message).await;
            if let Err(error) = &sent {
                debug!(%error, "the service manager could not be told");
            }
            inner.queue.send_modify(|queue| {
                queue.answers = sent.is_ok();
                // It may have been dropped meanwhile, for others.
                if queue.messages.front() == Some(&message) {
                    queue.messages.pop_front();
                }
            });
        }
    }
}

/// Returns the address of a socket: a path, or a name in the abstract namespace after `@` (sd_notify(3)).
fn address_of(name: &OsStr) -> io::Result<SocketAddr> {
    match name.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name),
        [b'/', ..] => SocketAddr::from_pathname(name),
        _ => Err(io::Error::new(io::ErrorKind::InvalidInput, "neither a path nor an abstract name")),
    }
}

/// Sends one message. Waits, without blocking, while the queue of the other side is full.
async fn send(address: &SocketAddr, message: &str) -> io::Result<()> {
    // A socket for each message: the service manager may have made its own anew.
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    socket.connect_addr(address)?;
    tokio::net::UnixDatagram::from_std(socket)?.send(message.as_bytes()).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manager(address: SocketAddr) -> ServiceManager {
        let queue = Queue { messages: VecDeque::new(), answers: false };
        ServiceManager(Some(Arc::new(Inner { address, queue: watch::Sender::new(queue) })))
    }

    fn abstract_socket(name: &str) -> (UnixDatagram, ServiceManager) {
        let name = format!("lastcall-{name}-{}", process::id());
        let socket = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        socket.set_nonblocking(true).unwrap();
        let address = address_of(OsStr::new(&format!("@{name}"))).unwrap();
        (socket, manager(address))
    }

    fn read(socket: &UnixDatagram) -> io::Result<String> {
        let mut buffer = [0; 1024];
        let read = socket.recv(&mut buffer)?;
        Ok(String::from_utf8(buffer[..read].to_vec()).unwrap())
    }

    #[tokio::test]
    async fn an_abstract_socket_is_told_and_a_wrong_name_is_none() {
        let (socket, manager) = abstract_socket("told");
        manager.ready();
        assert!(manager.telling(manager.is_told()).await);
        assert_eq!(read(&socket).unwrap(), "READY=1\nSTATUS=serving\n");
        for wrong in ["", "run/notify", "vsock:2:1"] {
            assert!(address_of(OsStr::new(wrong)).is_err(), "{wrong}");
        }
        drop(socket);
        manager.ready();
        assert!(!manager.telling(manager.is_told()).await, "nobody is there");
        assert!(!ServiceManager::default().is_told().await);
    }

    #[tokio::test]
    async fn one_that_takes_nothing_keeps_nothing_waiting_and_is_told_later() {
        let (socket, manager) = abstract_socket("full");
        // Until its queue is full.
        let filler = UnixDatagram::unbound().unwrap();
        filler.set_nonblocking(true).unwrap();
        filler.connect_addr(&socket.local_addr().unwrap()).unwrap();
        while filler.send(b"filler").is_ok() {}
        for clients in 0..100 {
            manager.draining(clients);
        }
        assert!(!manager.telling(manager.is_told()).await);
        let mut told = Vec::new();
        let reading = async {
            while told.last().is_none_or(|last| last != "STATUS=waiting for 99 clients to leave\n") {
                match read(&socket) {
                    Ok(message) => told.extend((message != "filler").then_some(message)),
                    Err(_) => tokio::task::yield_now().await,
                }
            }
        };
        manager.telling(reading).await;
        assert!(told.len() <= MAX_QUEUED + 1, "{told:?}");
    }
}
