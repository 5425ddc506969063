//! Where the server that runs is reached: a service manager may have chosen another address than the settings
//! have. The server itself says it, at its control socket.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use lastcall_handover::{
    ControlCommand, ControlSocket, FirstMessage, ServerAddress, SocketName, bound_sockets,
};

/// The time that a server has to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// Returns where the server listens that this folder belongs to alone, as one that systemd made does. `None`
/// if there is none, or it does not say it to this user.
pub(super) fn of_own_folder(folder: &Path) -> Option<SocketAddr> {
    ask(&SocketName::OwnFolder.path(folder)).map(|server| server.address)
}

/// Returns where the only server listens that has its control socket in this folder, and whose address a
/// service manager chose. One whose settings chose it is another server than the settings of the command
/// mean.
pub(super) fn of_activated(folder: &Path) -> Option<SocketAddr> {
    let folder = fs::canonicalize(folder).ok()?;
    let is_there = |path: &PathBuf| {
        path.parent().and_then(|parent| fs::canonicalize(parent).ok()).is_some_and(|parent| parent == folder)
    };
    let asked = bound_sockets().into_iter().filter(is_there).filter_map(|path| ask(&path));
    let mut activated = asked.filter(|server| server.activated);
    activated.next().filter(|_| activated.next().is_none()).map(|server| server.address)
}

/// Returns a sentence about all control sockets of this machine; empty if there are none.
pub(super) fn servers_here() -> String {
    let paths: String = bound_sockets().iter().map(|path| format!("\n  {}", path.display())).collect();
    if paths.is_empty() {
        paths
    } else {
        format!("\nServers that run on this machine have theirs at:{paths}")
    }
}

fn ask(path: &Path) -> Option<ServerAddress> {
    let deadline = Instant::now() + ANSWER_TIMEOUT;
    let answer = || {
        let stream = ControlSocket::connect(path)?;
        stream.send(&FirstMessage::Command(ControlCommand::Address), deadline)?;
        anyhow::Ok(stream.receive(deadline)?)
    };
    // No server, another user's, or one of an older version: then the settings say where it is.
    answer().ok()
}
