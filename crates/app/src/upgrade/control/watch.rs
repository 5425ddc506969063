//! The folder of the control socket: the system reports when something is removed from it.

use std::{io, os::fd::OwnedFd, path::Path};

use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use tokio::io::{Interest, unix::AsyncFd};
use tracing::debug;

/// The events of inotify(7). `None` where the system gives none.
pub(super) struct FolderWatch(Option<AsyncFd<OwnedFd>>);

impl FolderWatch {
    /// Watches nothing yet.
    pub(super) fn none() -> Self {
        Self(None)
    }

    /// Watches the folder of this path.
    pub(super) fn new(socket: &Path) -> Self {
        let folder = socket.parent().unwrap_or(Path::new("."));
        let watch = start(folder)
            .inspect_err(|error| debug!(%error, "the folder of the control socket is not watched"));
        Self(watch.ok())
    }

    /// Waits until something is removed from the folder. May be dropped at any time without losing an event.
    pub(super) async fn removed(&mut self) {
        let Some(descriptor) = &mut self.0 else { return std::future::pending().await };
        let failed = match descriptor.readable_mut().await {
            Ok(mut ready) => {
                // What was removed does not matter: the caller looks for the socket.
                let mut events = [0; 4096];
                let read = ready.try_io(|descriptor| {
                    rustix::io::read(descriptor.get_ref(), &mut events).map_err(io::Error::from)
                });
                matches!(read, Ok(Err(_)))
            }
            Err(_) => true,
        };
        if failed {
            self.0 = None;
        }
    }
}

fn start(folder: &Path) -> io::Result<AsyncFd<OwnedFd>> {
    let descriptor = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
    let removals =
        WatchFlags::DELETE | WatchFlags::MOVED_FROM | WatchFlags::DELETE_SELF | WatchFlags::MOVE_SELF;
    inotify::add_watch(&descriptor, folder, removals)?;
    #[expect(unsafe_code, reason = "it has to be promised that the descriptor stays open")]
    // SAFETY: the value owns the descriptor, and nothing else has it.
    let watch = unsafe { AsyncFd::register_with_interest(descriptor, Interest::READABLE) }?;
    Ok(watch)
}
