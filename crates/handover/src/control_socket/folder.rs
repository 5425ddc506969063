//! The folder of a control socket: only its own user may write it, and a lock keeps two processes from
//! removing each other's socket.

use std::{
    fs::{self, DirBuilder, File},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::Path,
    thread,
    time::{Duration, Instant},
};

use rustix::{
    fs::{FlockOperation, flock},
    io::Errno,
    process::geteuid,
};

use super::error::SocketError;

/// The name of the file in the folder that is locked. Other users may be able to read the folder, but cannot
/// open this file.
const LOCK: &str = "lastcall.lock";

/// The time for which another process may hold the lock: it is held for a few system calls.
const LOCK_TIMEOUT: Duration = Duration::from_millis(100);

/// The time between two tries for a lock that another process holds: flock(2) has no timeout.
const LOCK_RETRY_INTERVAL: Duration = Duration::from_millis(5);

/// Makes the folder if it is not there.
///
/// # Errors
/// When it cannot be made, or when other users could write it.
pub(super) fn make(folder: &Path) -> Result<(), SocketError> {
    let error = |source| SocketError::Folder { folder: folder.into(), source };
    check_links(folder, geteuid().as_raw())?;
    DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(error)?;
    // Somebody may have made one meanwhile.
    check_links(folder, geteuid().as_raw())?;
    let metadata = fs::metadata(folder).map_err(error)?;
    // systemd makes a RuntimeDirectory for the service's user, with mode 0755: other users may look, not
    // write.
    if metadata.uid() == geteuid().as_raw() && metadata.mode() & 0o022 == 0 {
        return Ok(());
    }
    Err(SocketError::not_private(folder, &metadata))
}

/// Checks that no other user decides where the folder is: in `/tmp`, anybody can make a symbolic link of its
/// name, which leads to another folder of this user's. A link of root's, of this user's, or of `owner`, whose
/// folder it is, may be on the way.
///
/// # Errors
/// When there is such a link.
pub(super) fn check_links(folder: &Path, owner: u32) -> Result<(), SocketError> {
    let trusted = [0, geteuid().as_raw(), owner];
    for link in folder.ancestors() {
        let Ok(metadata) = fs::symlink_metadata(link) else { continue };
        if metadata.is_symlink() && !trusted.contains(&metadata.uid()) {
            return Err(SocketError::ForeignLink {
                folder: folder.into(),
                link: link.into(),
                owner: metadata.uid(),
            });
        }
    }
    Ok(())
}

/// Locks the folder against other processes that make or remove sockets, until the file is dropped.
///
/// # Errors
/// When the file that is locked cannot be made, or another process holds the lock for too long.
pub(super) fn lock(folder: &Path) -> Result<File, SocketError> {
    let error = |source| SocketError::Folder { folder: folder.into(), source };
    let mut options = File::options();
    options.create(true).truncate(false).write(true).mode(0o600);
    let file = options.open(folder.join(LOCK)).map_err(error)?;
    let deadline = Instant::now() + LOCK_TIMEOUT;
    loop {
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(file),
            Err(Errno::WOULDBLOCK | Errno::INTR) if Instant::now() < deadline => {
                thread::sleep(LOCK_RETRY_INTERVAL);
            }
            Err(errno) => return Err(error(errno.into())),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[test]
    fn a_lock_that_another_process_keeps_is_an_error_and_one_that_is_released_is_taken() {
        let folder = tempfile::tempdir().unwrap();
        let held = lock(folder.path()).unwrap();
        // flock(2): another open file of this process is as much another owner as another process is.
        let error = lock(folder.path()).unwrap_err();
        assert!(
            matches!(&error, SocketError::Folder { source, .. } if source.kind() == io::ErrorKind::WouldBlock),
            "{error:?}"
        );
        drop(held);
        lock(folder.path()).unwrap();
    }
}
