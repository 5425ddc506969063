//! `lastcall status`: prints how the server that runs is doing.

use std::{
    fmt, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context, anyhow};
use http_body_util::{BodyExt, Empty};
use humantime::format_duration;
use hyper::{Request, body::Bytes, client::conn::http1, header::HOST};
use hyper_util::rt::TokioIo;
use indicatif::{ProgressBar, ProgressStyle};
use lastcall_core::{
    logging::stdout_takes_escapes, phase::Phase, process::count_clients, settings::Settings,
};
use serde::Deserialize;
use tokio::{
    net::{TcpStream, lookup_host},
    task::spawn_blocking,
    time::{sleep, timeout},
};

use super::{output::print_line, server_address};

/// The time that a running server has to answer.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// The interval at which the progress of a drain is looked at.
const POLL_INTERVAL: Duration = Duration::from_millis(500);

/// The exit code for a server that is shutting down: it answers, but new clients should go elsewhere.
pub(crate) const SHUTTING_DOWN: u8 = 3;

/// The answer of `/health/ready`. Older servers leave some of it out.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Status {
    phase: String,
    clients: u64,
    max_connections: Option<u64>,
    seconds_left: Option<f64>,
    drain_clients: Option<u64>,
    version: Option<String>,
    commit: Option<String>,
    pid: Option<u32>,
    uptime_seconds: Option<f64>,
    upgrades: Option<u64>,
    upgrading: bool,
}

impl Status {
    fn is_shutting_down(&self) -> bool {
        self.phase != Phase::Serving.name()
    }

    fn exit_code(&self) -> ExitCode {
        if self.is_shutting_down() { ExitCode::from(SHUTTING_DOWN) } else { ExitCode::SUCCESS }
    }

    fn lines(&self) -> String {
        let (phase, clients) = (&self.phase, count_clients(self.clients));
        let first = match (self.drain_clients, self.max_connections) {
            (Some(total), _) => {
                format!(
                    "{phase}: {clients} still connected, {} of {total} gone",
                    total.saturating_sub(self.clients)
                )
            }
            (None, Some(most)) => format!("{phase}: {clients} of at most {most}"),
            (None, None) => format!("{phase}: {clients}"),
        };
        let upgrading = if self.upgrading { "; an upgrade is under way" } else { "" };
        let closes = self.seconds_left.map(|left| format!("; the rest is closed in {}", duration(left)));
        format!("{first}{}{upgrading}{}", closes.unwrap_or_default(), self.process())
    }

    /// Returns a line about the process.
    fn process(&self) -> String {
        let (Some(pid), Some(version)) = (self.pid, &self.version) else { return String::new() };
        let commit = self.commit.as_ref().map(|commit| format!(" ({commit})")).unwrap_or_default();
        let uptime = self.uptime_seconds.map(|seconds| format!(", running for {}", duration(seconds)));
        let upgrades = self.upgrades.map(|upgrades| match upgrades {
            1 => ", after 1 upgrade".to_owned(),
            upgrades => format!(", after {upgrades} upgrades"),
        });
        let rest = [uptime, upgrades].into_iter().flatten().collect::<String>();
        format!("\nprocess {pid}, version {version}{commit}{rest}")
    }
}

/// Returns a number of seconds in words.
fn duration(seconds: f64) -> String {
    // A number that is no duration does not come from lastcall.
    let whole = Duration::try_from_secs_f64(seconds.round()).unwrap_or_default();
    format_duration(whole).to_string()
}

/// Prints how the server that runs is doing; on a terminal, follows a shutdown to its end. The exit code
/// tells whether the server serves.
///
/// # Errors
/// When no server answers, or stdout takes nothing.
pub(crate) async fn status(settings: &Settings) -> anyhow::Result<ExitCode> {
    let (server, mut now) = find(settings).await?;
    if !now.is_shutting_down() || !stdout_takes_escapes() {
        print_line(&now.lines())?;
        return Ok(now.exit_code());
    }
    let bar = ProgressBar::new(now.clients);
    bar.set_style(ProgressStyle::with_template("{msg} {wide_bar} {pos} of {len} gone")?);
    loop {
        let total = now.drain_clients.unwrap_or(now.clients);
        bar.set_length(total);
        bar.set_position(total.saturating_sub(now.clients));
        let left = now.seconds_left.map(|left| format!(", the rest is closed in {}", duration(left)));
        bar.set_message(format!("{}{}", now.phase, left.unwrap_or_default()));
        sleep(POLL_INTERVAL).await;
        match fetch_status(&server).await {
            Ok(next) if next.is_shutting_down() => now = next,
            // The server has ended, or another one has started in its place.
            _ => break,
        }
    }
    bar.finish_and_clear();
    print_line("the server has ended")?;
    Ok(ExitCode::from(SHUTTING_DOWN))
}

/// Finds the server, by its own folder or by the settings, and asks it.
async fn find(settings: &Settings) -> anyhow::Result<(Authority, Status)> {
    let folder = settings.runtime_dir.path().clone();
    let found = spawn_blocking({
        let folder = folder.clone();
        move || server_address::of_own_folder(&folder)
    });
    let server = match found.await? {
        Some(address) => Authority::from(address),
        None => Authority { host: settings.host.to_string(), port: settings.port },
    };
    let error = match fetch_status(&server).await {
        Ok(status) => return Ok((server, status)),
        Err(error) => error,
    };
    match spawn_blocking(move || server_address::of_activated(&folder)).await? {
        Some(address) => {
            let server = Authority::from(address);
            let status = fetch_status(&server).await?;
            Ok((server, status))
        }
        None => {
            let servers = server_address::servers_here();
            let advice = "if systemd holds its port, give the folder of its control socket as `runtime_dir`";
            Err(if servers.is_empty() { error } else { anyhow!("{error:#}; {advice}.{servers}") })
        }
    }
}

async fn fetch_status(server: &Authority) -> anyhow::Result<Status> {
    let asked = timeout(REQUEST_TIMEOUT, async {
        let addresses = server.dial_addresses().await.context("the host is not known")?;
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
        serde_json::from_slice(&body).context("the answer is not from lastcall")
    });
    let answer = match asked.await {
        Ok(answer) => answer,
        Err(_) => Err(anyhow::anyhow!("no answer within {REQUEST_TIMEOUT:?}")),
    };
    answer.with_context(|| format!("cannot ask the server at {server}"))
}

/// A host and a port on which a server listens.
struct Authority {
    host: String,
    port: u16,
}

impl From<SocketAddr> for Authority {
    fn from(address: SocketAddr) -> Self {
        // With the zone of an IPv6 address.
        let host = match address {
            SocketAddr::V6(address) if address.scope_id() != 0 => {
                format!("{}%{}", address.ip(), address.scope_id())
            }
            _ => address.ip().to_string(),
        };
        Self { host, port: address.port() }
    }
}

impl Authority {
    /// Returns the addresses at which the server is reached: those of a name, or this machine's own where it
    /// listens on all addresses. `::` stands for IPv4, too, and where IPv6 is off, for IPv4 alone.
    async fn dial_addresses(&self) -> io::Result<Vec<SocketAddr>> {
        let Self { host, port } = self;
        let own: &[IpAddr] = match host.parse::<IpAddr>() {
            Ok(IpAddr::V4(ip)) if ip.is_unspecified() => &[IpAddr::V4(Ipv4Addr::LOCALHOST)],
            Ok(IpAddr::V6(ip)) if ip.is_unspecified() => {
                &[IpAddr::V6(Ipv6Addr::LOCALHOST), IpAddr::V4(Ipv4Addr::LOCALHOST)]
            }
            _ => return Ok(lookup_host((host.as_str(), *port)).await?.collect()),
        };
        Ok(own.iter().map(|ip| SocketAddr::new(*ip, *port)).collect())
    }
}

/// As in URLs.
impl fmt::Display for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, port } = self;
        if host.contains(':') { write!(f, "[{host}]:{port}") } else { write!(f, "{host}:{port}") }
    }
}
