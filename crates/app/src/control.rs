//! Answers operators at the control socket.

use std::{
    io,
    os::fd::OwnedFd,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use anyhow::Context;
use lastcall_core::SpareDescriptor;
use lastcall_handover::{
    Command, ControlSocket, Identity, Opening, PROTOCOL, Progress, body_length, decode, encode, refusal,
};
use rustix::fs::inotify;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, Interest, unix::AsyncFd},
    net::{UnixListener, UnixStream},
    sync::{Semaphore, mpsc},
    task::JoinHandle,
    time::{MissedTickBehavior, interval, sleep, timeout},
};
use tracing::{debug, info, warn};

/// How long a process that connects has to say what it wants.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(5);

/// Longest command, in bytes.
const MAX_COMMAND: usize = 64 << 10;

/// Most connections that are listened to at once. Only this user's processes, and root's, can be there at all.
const MAX_CONNECTIONS: usize = 8;

/// How long an operator's terminal has to take a line.
const TELL_TIMEOUT: Duration = Duration::from_secs(1);

/// How long the old process waits, after an upgrade, for commands that were on their way to it.
const LATE_COMMAND_TIMEOUT: Duration = Duration::from_millis(200);

/// How long until the next attempt to accept a connection when there is not even a descriptor that was kept.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// How often the socket is looked for where the system reports no changes of its folder, and how often a socket
/// that could not be made is tried again.
const CHECK_INTERVAL: Duration = Duration::from_secs(30);

/// An operator who asked for an upgrade, and waits to hear how it goes.
pub(crate) struct Operator(UnixStream);

impl Operator {
    /// Tells the operator how it goes. The operator may have gone: then nothing happens.
    pub(crate) async fn tell(&mut self, progress: &Progress) {
        let told = async {
            let message = encode(progress)?;
            timeout(TELL_TIMEOUT, self.0.write_all(&message)).await??;
            anyhow::Ok(())
        };
        if let Err(error) = told.await {
            debug!("an operator could not be told how the upgrade went: {error:#}");
        }
    }
}

/// The control socket while this process serves. Its file is removed when this is dropped, unless
/// [`Control::leave`] was called.
pub(crate) struct Control {
    socket: Arc<Mutex<ControlSocket>>,
    operators: mpsc::Receiver<Operator>,
    accepting: JoinHandle<()>,
}

impl Control {
    /// Accepts connections at `socket`, and makes the socket again when it is removed.
    ///
    /// # Errors
    /// When the system cannot wait for connections.
    pub(crate) fn start(socket: ControlSocket) -> io::Result<Self> {
        let listener = listen(&socket)?;
        let socket = Arc::new(Mutex::new(socket));
        let (sender, operators) = mpsc::channel(MAX_CONNECTIONS);
        let acceptor = Acceptor { socket: Arc::clone(&socket), operators: sender };
        let accepting = tokio::spawn(acceptor.run(listener));
        Ok(Self { socket, operators, accepting })
    }

    /// The next operator who asks for an upgrade.
    pub(crate) async fn next(&mut self) -> Operator {
        match self.operators.recv().await {
            Some(operator) => operator,
            // The accepting task is gone, with the runtime: none will come.
            None => std::future::pending().await,
        }
    }

    /// The listening descriptor, for the new process, and the file that it has.
    pub(crate) fn share(&self) -> io::Result<(OwnedFd, Identity)> {
        let socket = lock(&self.socket);
        Ok((socket.listener().try_clone()?.into(), socket.identity().clone()))
    }

    /// Leaves the socket to the new process. Returns the operators who had asked meanwhile.
    pub(crate) async fn leave(mut self) -> Vec<Operator> {
        lock(&self.socket).leave();
        // Connections that were accepted are served by tasks of their own, which go on.
        self.accepting.abort();
        if let Err(error) = (&mut self.accepting).await
            && !error.is_cancelled()
        {
            warn!(%error, "the control socket had failed");
        }
        let mut late = Vec::new();
        let all = async {
            while let Some(operator) = self.operators.recv().await {
                late.push(operator);
            }
        };
        // At the timeout, those that have said nothing are left alone.
        let _ = timeout(LATE_COMMAND_TIMEOUT, all).await;
        late
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

fn lock(socket: &Mutex<ControlSocket>) -> MutexGuard<'_, ControlSocket> {
    // Nothing that holds it can panic.
    socket.lock().unwrap_or_else(PoisonError::into_inner)
}

fn listen(socket: &ControlSocket) -> io::Result<UnixListener> {
    UnixListener::from_std(socket.listener().try_clone()?)
}

struct Acceptor {
    socket: Arc<Mutex<ControlSocket>>,
    operators: mpsc::Sender<Operator>,
}

impl Acceptor {
    async fn run(self, mut listener: UnixListener) {
        let connections = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let mut checks = interval(CHECK_INTERVAL);
        checks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut watch = self.watch();
        let mut reported = false;
        let mut shortage = Shortage(SpareDescriptor::reserve().ok());
        loop {
            // Never closed: this holds it.
            let Ok(permit) = Arc::clone(&connections).acquire_owned().await else { return };
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = changed(&mut watch) => {
                    self.make_again(&mut listener, &mut watch, &mut reported);
                    continue;
                }
                _ = checks.tick() => {
                    self.make_again(&mut listener, &mut watch, &mut reported);
                    continue;
                }
            };
            let accepted = match accepted {
                Err(error) if SpareDescriptor::is_shortage(&error) => {
                    shortage.log(&error);
                    shortage.release();
                    // At once, before anything else takes the descriptor.
                    timeout(Duration::ZERO, listener.accept()).await.unwrap_or(Err(error))
                }
                accepted => {
                    shortage.accepted();
                    accepted
                }
            };
            match accepted {
                Ok((stream, _)) => {
                    let (socket, operators) = (Arc::clone(&self.socket), self.operators.clone());
                    tokio::spawn(async move {
                        let _permit = permit;
                        match timeout(COMMAND_TIMEOUT, receive(stream, &socket)).await {
                            // Closed when this process ends: the operator sees that.
                            Ok(Ok(Some(operator))) => drop(operators.send(operator).await),
                            Ok(Ok(None)) => {}
                            Ok(Err(error)) => warn!("a command at the control socket was refused: {error:#}"),
                            Err(_) => debug!("a process connected to the control socket and said nothing"),
                        }
                    });
                }
                Err(error) => {
                    debug!(%error, "a connection to the control socket could not be accepted");
                    // There is no event for a descriptor becoming free.
                    sleep(ACCEPT_RETRY).await;
                }
            }
            shortage.restore();
        }
    }

    /// Makes the socket again if its file is gone.
    fn make_again(&self, listener: &mut UnixListener, watch: &mut Watch, reported: &mut bool) {
        let mut socket = lock(&self.socket);
        if socket.identity().is_there() {
            *reported = false;
            return;
        }
        let path = socket.path().to_owned();
        let made = ControlSocket::bind(&path)
            .map_err(anyhow::Error::from)
            .and_then(|new| Ok((listen(&new).context("cannot wait for connections")?, new)));
        match made {
            Ok((new_listener, new)) => {
                info!(path = %path.display(), "the control socket had been removed: made it again");
                (*listener, *socket) = (new_listener, new);
                drop(socket);
                *watch = self.watch();
                *reported = false;
            }
            Err(error) if !std::mem::replace(reported, true) => {
                warn!("the control socket was removed and cannot be made again: {error:#}");
            }
            Err(_) => {}
        }
    }

    /// Has the system report changes of the socket's folder.
    fn watch(&self) -> Watch {
        let path = lock(&self.socket).path().to_owned();
        let folder = path.parent().unwrap_or(Path::new("."));
        watch_folder(folder)
            .inspect_err(|error| debug!(%error, "the folder of the control socket is not watched"))
            .ok()
    }
}

/// The descriptor that is kept for operators: they can ask when all others are taken. `None` where there was none
/// left at the start.
struct Shortage(Option<SpareDescriptor>);

impl Shortage {
    fn log(&mut self, error: &io::Error) {
        if self.0.as_mut().is_some_and(SpareDescriptor::begins) {
            warn!(%error, "no file descriptors left: the control socket uses the one that is kept for it");
        }
    }

    fn accepted(&mut self) {
        // That it has ended needs no line of its own: the HTTP server says so.
        let _ = self.0.as_mut().is_some_and(SpareDescriptor::succeeded);
    }

    fn release(&mut self) {
        if let Some(spare) = &mut self.0 {
            spare.release();
        }
    }

    fn restore(&mut self) {
        if let Some(spare) = &mut self.0 {
            spare.restore();
        }
    }
}

/// The events of inotify(7); `None` where the system has none left to give: then [`CHECK_INTERVAL`] is what there is.
type Watch = Option<AsyncFd<OwnedFd>>;

fn watch_folder(folder: &Path) -> io::Result<AsyncFd<OwnedFd>> {
    use inotify::{CreateFlags, WatchFlags};

    let descriptor = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
    let removals =
        WatchFlags::DELETE | WatchFlags::MOVED_FROM | WatchFlags::DELETE_SELF | WatchFlags::MOVE_SELF;
    inotify::add_watch(&descriptor, folder, removals)?;
    #[expect(unsafe_code, reason = "it has to be promised that the descriptor stays open")]
    // SAFETY: the value owns the descriptor, and nothing else has it.
    let watch = unsafe { AsyncFd::register_with_interest(descriptor, Interest::READABLE) }?;
    Ok(watch)
}

/// Waits until something is removed from the folder.
async fn changed(watch: &mut Watch) {
    let Some(descriptor) = watch else { return std::future::pending().await };
    let gone = match descriptor.readable_mut().await {
        Ok(mut ready) => {
            // What was removed does not matter: the socket is looked for.
            let mut events = [0; 4096];
            let read = ready.try_io(|descriptor| {
                rustix::io::read(descriptor.get_ref(), &mut events).map_err(io::Error::from)
            });
            matches!(read, Ok(Err(_)))
        }
        Err(_) => true,
    };
    if gone {
        *watch = None;
    }
}

/// Reads a command. `None`: it was answered.
async fn receive(mut stream: UnixStream, socket: &Mutex<ControlSocket>) -> anyhow::Result<Option<Operator>> {
    let stream_for_check = stream.into_std()?;
    lock(socket).check_peer(&stream_for_check)?;
    stream = UnixStream::from_std(stream_for_check)?;
    let mut header = [0; lastcall_handover::HEADER];
    stream.read_exact(&mut header).await.context("no command came")?;
    let mut body = vec![0; body_length(header, MAX_COMMAND)?];
    stream.read_exact(&mut body).await.context("half a command came")?;
    match decode(&body)? {
        Opening::Command(Command::Upgrade) => Ok(Some(Operator(stream))),
        Opening::Hello(hello) => {
            let reason = format!(
                "the new process (version {}) speaks version {} of the handover, this one {PROTOCOL}",
                hello.version, hello.protocol
            );
            stream.write_all(&encode(&refusal(&reason))?).await?;
            anyhow::bail!(reason)
        }
    }
}

/// Asks the process that listens at `path` for an upgrade, and waits for its end; `say` gets each line on the way.
///
/// # Errors
/// When the process cannot be asked, or the upgrade fails.
pub(crate) fn ask_for_upgrade(
    path: &Path,
    within: Duration,
    mut say: impl FnMut(&Progress),
) -> anyhow::Result<()> {
    let channel = ControlSocket::connect(path)?;
    channel.send(&Opening::Command(Command::Upgrade), Instant::now() + COMMAND_TIMEOUT)?;
    let deadline = Instant::now() + within;
    loop {
        let progress = channel.receive(deadline).context("the server did not say how the upgrade went")?;
        say(&progress);
        match progress {
            Progress::Started { .. } => {}
            Progress::Done { .. } => return Ok(()),
            Progress::Failed { reason } => anyhow::bail!("the upgrade failed; {reason}"),
        }
    }
}
