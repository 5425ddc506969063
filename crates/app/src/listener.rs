//! Opening the listening socket as the settings say, and the warnings about what it is open to.

use std::net::SocketAddr;

use anyhow::bail;
use lastcall_core::settings::{ClientMessages, Loaded, SettingError, Settings, Source};
use lastcall_endpoints::{BindError, Listener};
use tokio::net::lookup_host;
use tracing::{info, warn};

/// A listening socket, and where it is from.
pub(crate) struct Opened {
    pub(crate) listener: Listener,
    /// Whether a service manager has passed it.
    pub(crate) activated: bool,
}

/// Takes the socket that systemd passed, or binds one as the settings say. Returns `None` if `host` or `port` is
/// `unusable`: it is added there.
pub(crate) async fn open(
    loaded: &Loaded,
    unusable: &mut Vec<SettingError>,
) -> anyhow::Result<Option<Opened>> {
    if let Some(listener) = Listener::from_systemd()? {
        info!("listening on the socket that systemd passed; `host` and `port` do not matter");
        return Ok(Some(Opened { listener, activated: true }));
    }
    let Settings { host, port, .. } = &loaded.settings;
    let error = match Listener::bind(host, *port).await {
        Ok(listener) => return Ok(Some(Opened { listener, activated: false })),
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

/// Logs a warning if the socket that was taken over is not where the settings say.
pub(crate) async fn warn_if_moved(address: SocketAddr, host: String, port: u16) {
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
