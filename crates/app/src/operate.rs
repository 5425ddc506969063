//! What an operator does with a server that runs: `lastcall upgrade` and `lastcall status`.

use std::{
    io::{self, IsTerminal, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs},
    path::PathBuf,
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use http_body_util::{BodyExt, Empty};
use hyper::{Request, body::Bytes, client::conn::http1, header::HOST};
use hyper_util::rt::TokioIo;
use indicatif::{ProgressBar, ProgressStyle};
use lastcall_core::settings::{RuntimeDir, Settings};
use lastcall_handover::{Command, ControlSocket, Opening, Progress, find, others};
use serde::Deserialize;
use tokio::{
    net::{TcpStream, lookup_host},
    time::{sleep, timeout},
};

/// How long a running server has to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// What an upgrade may take on top of `upgrade_timeout`: requests that are finished, the handover itself, and the new
/// process that has to serve.
pub(crate) const UPGRADE_TIMEOUT: Duration = Duration::from_secs(30);

/// How often the progress of a drain is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Has the server that runs replace itself, and waits until it has. The exit code says how the upgrade went,
/// whatever becomes of the output.
pub(crate) fn upgrade(settings: &Settings) -> anyhow::Result<ExitCode> {
    let channel = ControlSocket::connect(&control_socket(settings)?)?;
    channel.send(&Opening::Command(Command::Upgrade), Instant::now() + ANSWER_TIMEOUT)?;
    // One upgrade may be under way already, whose end this waits for.
    let mut deadline = Instant::now() + settings.upgrade_timeout + UPGRADE_TIMEOUT;
    loop {
        let progress = channel.receive(deadline).context("the server did not say how the upgrade went")?;
        // A pipe that is closed must not end this before the upgrade has.
        let _ = report(&progress);
        match progress {
            // The server's own `upgrade_timeout` counts.
            Progress::Started { most_seconds, .. } => {
                deadline = Instant::now() + Duration::from_secs(most_seconds) + ANSWER_TIMEOUT;
            }
            Progress::Done { .. } => return Ok(ExitCode::SUCCESS),
            Progress::Failed { reason } => bail!("the upgrade failed; {reason}"),
        }
    }
}

fn report(progress: &Progress) -> anyhow::Result<()> {
    match progress {
        Progress::Started { pid, program, .. } => {
            say(&format!("process {pid} gets ready to take over: {}", program.display()))
        }
        Progress::Done { pid, program, version, files, clients, paused_ms } => {
            let clients = counted(*clients as u64);
            say(&format!("process {pid} has taken over {clients}, who waited {paused_ms:.0} ms"))?;
            let files: Vec<_> = files.iter().map(|file| file.display().to_string()).collect();
            let files = if files.is_empty() { "none".to_owned() } else { files.join(", ") };
            say(&format!("it runs {} (version {version}); settings files: {files}", program.display()))
        }
        Progress::Failed { .. } => Ok(()),
    }
}

/// The control socket of the server that listens where the settings say.
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
    if let Some(path) = find(folder, &addresses) {
        return Ok(path);
    }
    let others: Vec<_> = others().iter().map(|path| format!("\n  {}", path.display())).collect();
    let others = match others.len() {
        0 => String::new(),
        _ => format!("\nServers that run on this machine have theirs at:{}", others.concat()),
    };
    bail!(
        "no server that listens on {host}:{port} has its control socket in {}. Give the `host`, `port` and \
         `runtime_dir` of the server, and run this as its user: the server logs the path of its control socket at \
         the start.{others}",
        folder.display()
    )
}

/// What `/health/ready` says.
#[derive(Debug, Deserialize)]
struct Status {
    phase: String,
    clients: u64,
    seconds_left: Option<f64>,
    #[serde(default)]
    drain_clients: Option<u64>,
}

impl Status {
    fn line(&self) -> String {
        let (phase, clients) = (&self.phase, counted(self.clients));
        let drain = match (self.drain_clients, self.seconds_left) {
            (Some(total), Some(left)) => {
                format!("; {} of {total} have left, {left:.0} s left", total.saturating_sub(self.clients))
            }
            _ => String::new(),
        };
        format!("{phase}: {clients}{drain}")
    }
}

/// Says how the server that runs is doing; on a terminal, it follows a drain to its end.
pub(crate) async fn status(settings: &Settings) -> anyhow::Result<ExitCode> {
    let status = ask(settings).await?;
    let Some(total) = status.drain_clients.filter(|_| io::stdout().is_terminal()) else {
        say(&status.line())?;
        return Ok(ExitCode::SUCCESS);
    };
    let bar = ProgressBar::new(total);
    bar.set_style(ProgressStyle::with_template("{msg} {wide_bar} {pos} of {len} have left")?);
    let mut now = status;
    loop {
        bar.set_position(total.saturating_sub(now.clients));
        bar.set_message(format!("{}, {:.0} s left", now.phase, now.seconds_left.unwrap_or(0.0)));
        sleep(LOOK_EVERY).await;
        match ask(settings).await {
            Ok(next) if next.drain_clients.is_some() => now = next,
            // It has ended, or another one has started in its place.
            _ => break,
        }
    }
    bar.finish_and_clear();
    say("the server has ended")?;
    Ok(ExitCode::SUCCESS)
}

async fn ask(settings: &Settings) -> anyhow::Result<Status> {
    let asked = timeout(ANSWER_TIMEOUT, async {
        let addresses = reachable(&settings.host, settings.port).await.context("the host is not known")?;
        // Tries one after the other.
        let stream = TcpStream::connect(addresses.as_slice()).await.context("nothing listens there")?;
        let peer = stream.peer_addr()?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        let connection = tokio::spawn(connection);
        let request = Request::get("/health/ready")
            // The zone of an IPv6 address is for this machine alone (RFC 6874 section 1): without it.
            .header(HOST, SocketAddr::new(peer.ip(), peer.port()).to_string())
            .body(Empty::<Bytes>::new())?;
        let body = sender.send_request(request).await?.into_body().collect().await?.to_bytes();
        connection.abort();
        serde_json::from_slice(&body).context("what answers is not lastcall")
    });
    let answer = match asked.await {
        Ok(answer) => answer,
        Err(_) => Err(anyhow::anyhow!("no answer within {ANSWER_TIMEOUT:?}")),
    };
    let (host, port) = (&settings.host, settings.port);
    answer.with_context(|| format!("cannot ask the server at {}", authority(host, port)))
}

/// A host and a port, as URLs have them.
fn authority(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

/// Where a server with this setting of `host` is reached: the addresses of a name, and for all addresses this
/// machine's own. `::` stands for IPv4, too, and where IPv6 is off, for IPv4 alone.
async fn reachable(host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
    let own: &[IpAddr] = match host.parse::<IpAddr>() {
        Ok(IpAddr::V4(ip)) if ip.is_unspecified() => &[IpAddr::V4(Ipv4Addr::LOCALHOST)],
        Ok(IpAddr::V6(ip)) if ip.is_unspecified() => {
            &[IpAddr::V6(Ipv6Addr::LOCALHOST), IpAddr::V4(Ipv4Addr::LOCALHOST)]
        }
        _ => return Ok(lookup_host((host, port)).await?.collect()),
    };
    Ok(own.iter().map(|ip| SocketAddr::new(*ip, port)).collect())
}

fn counted(clients: u64) -> String {
    format!("{clients} client{}", if clients == 1 { "" } else { "s" })
}

fn say(line: &str) -> anyhow::Result<()> {
    writeln!(io::stdout(), "{line}").context("cannot write to stdout")
}
