//! The listening socket: bound here, or by systemd.

use std::{env, net::SocketAddr};

use anyhow::{Context, bail};
use lastcall_core::settings::{ClientMessages, Loaded, SettingError, Settings, Source};
use lastcall_endpoints::{BindError, ListenerState, bind};
use listenfd::ListenFd;
use rustix::net::sockopt::set_tcp_nodelay;
use tokio::net::{TcpListener, lookup_host};
use tracing::{info, warn};

/// Whether a service manager passed a listening socket (sd_listen_fds(3)).
pub(crate) fn is_activated() -> bool {
    env::var_os("LISTEN_FDS").is_some()
}

/// Takes the socket that systemd passed (systemd.socket(5)), or binds one as the settings say. `None` if `host` or
/// `port` is `unusable`: it is added there.
pub(crate) async fn open(
    loaded: &Loaded,
    unusable: &mut Vec<SettingError>,
) -> anyhow::Result<Option<ListenerState>> {
    let mut passed = ListenFd::from_env();
    if passed.len() == 0 {
        return bind_as_set(loaded, unusable).await;
    }
    if passed.len() > 1 {
        bail!(
            "systemd passed {} sockets, and only one can be listened on; leave one ListenStream=",
            passed.len()
        );
    }
    let listener = passed
        .take_tcp_listener(0)
        .context("what systemd passed is no TCP socket; see ListenStream= in the socket unit")?
        .context("systemd passed a socket that is gone")?;
    listener.set_nonblocking(true).context("the socket that systemd passed cannot be used")?;
    // Small messages must not wait for each other (RFC 896). On Linux, accepted sockets inherit this.
    set_tcp_nodelay(&listener, true).context("the socket that systemd passed cannot be used")?;
    let listener =
        TcpListener::from_std(listener).context("the socket that systemd passed cannot be used")?;
    info!("listening on the socket that systemd passed; `host` and `port` do not matter");
    Ok(Some(listener.into()))
}

async fn bind_as_set(
    loaded: &Loaded,
    unusable: &mut Vec<SettingError>,
) -> anyhow::Result<Option<ListenerState>> {
    let Settings { host, port, .. } = &loaded.settings;
    let error = match bind(host, *port).await {
        Ok(listener) => return Ok(Some(listener.into())),
        Err(error) => error,
    };
    let key = match error {
        BindError::Host { .. } | BindError::NotLocal(_) | BindError::NoIpv6(_) => "host",
        BindError::InUse(_) | BindError::Privileged(_) => "port",
        BindError::Other { .. } => return Err(error.into()),
    };
    // The other program may end: the settings need not be wrong.
    let may_pass = matches!(error, BindError::InUse(_));
    let error = loaded.unusable(key, &format_args!("{:#}", anyhow::Error::from(error)));
    if may_pass && unusable.is_empty() {
        bail!("{error}");
    }
    unusable.push(error);
    Ok(None)
}

/// Logs a warning if other machines can connect, and their clients may send texts to all others without that having
/// been set.
pub(crate) fn warn_if_open(address: SocketAddr, loaded: &Loaded) {
    let is_default = matches!(loaded.source("client_messages"), Some(Source::Default));
    let is_open = loaded.settings.client_messages == ClientMessages::Broadcast && is_default;
    if is_open && !address.ip().to_canonical().is_loopback() {
        warn!(
            "every client that can connect to {address} can send text to all other clients: clients are not \
             authenticated. Set `client_messages` to `ignore` if only back ends should send, or to `broadcast` \
             if clients should, too; then this warning does not appear"
        );
    }
}

/// Logs that only this machine can call the API, as there are no keys: a warning only where other machines can reach the
/// server, and not at each upgrade.
pub(crate) fn log_api_is_local(address: SocketAddr, takes_over: bool) {
    if takes_over || address.ip().to_canonical().is_loopback() {
        info!("no api_keys are set: only this machine may call /api/");
    } else {
        warn!("no api_keys are set: only this machine may call /api/, while others can reach {address}");
    }
}

/// Says so if the socket that was taken over is not where the settings say.
pub(crate) async fn compare(address: SocketAddr, host: String, port: u16) {
    let wanted = lookup_host((host.as_str(), port)).await;
    let as_wanted = wanted.is_ok_and(|mut wanted| {
        wanted.any(|wanted| {
            wanted.ip() == address.ip() && (wanted.port() == 0 || wanted.port() == address.port())
        })
    });
    if !as_wanted {
        warn!(
            "still listening on {address}, not on {host}:{port} as set: an upgrade keeps the socket, a restart changes it"
        );
    }
}
