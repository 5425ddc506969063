//! `lastcall upgrade`: has the server that runs replaced by a new process.

use std::{
    net::ToSocketAddrs,
    path::PathBuf,
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use lastcall_core::{
    process::count_clients,
    settings::{RuntimeDir, Settings},
};
use lastcall_handover::{ControlCommand, ControlSocket, FirstMessage, UpgradeProgress, find_socket};

use super::{output::print_line, server_address::servers_here};
use crate::upgrade::{AFTER_READY_TIMEOUT, COMMAND_REPLY_TIMEOUT};

/// Has the server that runs replace itself, and waits until it has. The exit code says how the upgrade went,
/// whatever becomes of the output.
pub(crate) fn upgrade(settings: &Settings) -> anyhow::Result<ExitCode> {
    let stream = ControlSocket::connect(&control_socket(settings)?)?;
    stream.send(&FirstMessage::Command(ControlCommand::Upgrade), Instant::now() + COMMAND_REPLY_TIMEOUT)?;
    // One upgrade may be under way already, whose end this waits for.
    let mut deadline = Instant::now() + settings.upgrade_timeout + AFTER_READY_TIMEOUT;
    loop {
        let progress = stream.receive(deadline).context("the server did not say how the upgrade went")?;
        // A pipe that is closed must not end this before the upgrade has.
        let _ = report(&progress);
        match progress {
            // The server's own `upgrade_timeout` counts.
            UpgradeProgress::Started { most_seconds, .. } => {
                deadline = Instant::now() + Duration::from_secs(most_seconds) + COMMAND_REPLY_TIMEOUT;
            }
            UpgradeProgress::Done { .. } => return Ok(ExitCode::SUCCESS),
            UpgradeProgress::Failed { reason } => bail!("the upgrade failed; {reason}"),
        }
    }
}

fn report(progress: &UpgradeProgress) -> anyhow::Result<()> {
    match progress {
        UpgradeProgress::Started { pid, program, .. } => {
            print_line(&format!("process {pid} gets ready to take over: {}", program.display()))
        }
        UpgradeProgress::Done { pid, program, version, old_version, files, clients, paused_ms } => {
            let clients = count_clients(*clients as u64);
            print_line(&format!("process {pid} has taken over {clients}, which waited {paused_ms:.0} ms"))?;
            let files: Vec<_> = files.iter().map(|file| file.display().to_string()).collect();
            let files = if files.is_empty() { "none".to_owned() } else { files.join(", ") };
            let old = old_version.as_ref().map(|old| format!(", in place of {old}")).unwrap_or_default();
            print_line(&format!(
                "it runs {}, version {version}{old}; settings files: {files}",
                program.display()
            ))
        }
        UpgradeProgress::Failed { .. } => Ok(()),
    }
}

/// Returns the path of the control socket of the server that listens where the settings say.
///
/// # Errors
/// When there is no such server.
fn control_socket(settings: &Settings) -> anyhow::Result<PathBuf> {
    let (host, port) = (settings.host.as_str(), settings.port);
    let folder = settings.runtime_dir.path();
    if port == 0 && !matches!(settings.runtime_dir, RuntimeDir::Service(_)) {
        bail!("which server? Give the `port` that it listens on: it has the log line \"listening on\"");
    }
    let addresses: Vec<_> = (host, port)
        .to_socket_addrs()
        .with_context(|| format!("cannot find the host {host:?}; set `host` to a name or an address"))?
        .collect();
    if let Some(path) = find_socket(folder, &addresses) {
        return Ok(path);
    }
    bail!(
        "no server that listens on {host}:{port} has its control socket in {}. Give the `host`, `port` and \
         `runtime_dir` of the server, and run this as its user: the server logs the path of its control socket at \
         the start.{}",
        folder.display(),
        servers_here()
    )
}
