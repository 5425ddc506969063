//! The socket at which operators, and new processes, reach this one.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use lastcall_handover::{Channel, Opening, Socket};
use tokio::{net::UnixListener, sync::Semaphore, sync::mpsc, task::spawn_blocking};
use tracing::{debug, warn};

/// How long somebody who connects has to say what they want.
const PATIENCE: Duration = Duration::from_secs(5);

/// Most who are listened to at once. Only this user's processes can be there at all.
const MOST: usize = 8;

/// Where people come, and who has come.
pub(crate) struct Desk {
    socket: Arc<Socket>,
    callers: mpsc::Receiver<(Channel, Opening)>,
    accepting: tokio::task::JoinHandle<()>,
}

impl Desk {
    /// Opens the desk.
    pub(crate) fn open(socket: Socket) -> std::io::Result<Self> {
        let listener = UnixListener::from_std(socket.listener().try_clone()?)?;
        let socket = Arc::new(socket);
        let (heard, callers) = mpsc::channel(MOST);
        let accepting = tokio::spawn(accept(listener, Arc::clone(&socket), heard));
        Ok(Self { socket, callers, accepting })
    }

    /// The socket, for a new process to connect to.
    pub(crate) fn path(&self) -> &std::path::Path {
        self.socket.path()
    }

    /// The next one who has said what they want.
    pub(crate) async fn next(&mut self) -> (Channel, Opening) {
        match self.callers.recv().await {
            Some(caller) => caller,
            // The accepting task is gone, with the runtime: nobody will come.
            None => std::future::pending().await,
        }
    }
}

impl Drop for Desk {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn accept(listener: UnixListener, socket: Arc<Socket>, heard: mpsc::Sender<(Channel, Opening)>) {
    let seats = Arc::new(Semaphore::new(MOST));
    loop {
        // Closed never: this holds it.
        let Ok(seat) = Arc::clone(&seats).acquire_owned().await else { return };
        let stream = match listener.accept().await.and_then(|(stream, _)| stream.into_std()) {
            Ok(stream) => stream,
            Err(error) => {
                warn!(%error, "a connection to the socket for upgrades could not be accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let (socket, heard) = (Arc::clone(&socket), heard.clone());
        drop(spawn_blocking(move || {
            let _seat = seat;
            let channel = match socket.welcome(stream) {
                Ok(channel) => channel,
                Err(error) => return warn!(%error, "somebody was turned away from the socket for upgrades"),
            };
            match channel.receive(Instant::now() + PATIENCE) {
                // If nobody waits for callers any more, the process is ending.
                Ok(opening) => drop(heard.blocking_send((channel, opening))),
                Err(error) => debug!(%error, "somebody came to the socket for upgrades and said nothing"),
            }
        }));
    }
}
