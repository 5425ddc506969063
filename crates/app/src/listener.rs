//! Opening the listening socket as the settings say.

use std::net::SocketAddr;

use anyhow::anyhow;
use lastcall_core::settings::{Loaded, SettingError, Settings};
use lastcall_endpoints::{BindError, Listener};
use tokio::net::lookup_host;
use tracing::{info, warn};

use crate::failure::Failure;

/// A listening socket, and where it is from.
pub(crate) struct BoundListener {
    pub(crate) listener: Listener,
    /// True if systemd has passed it: then the settings do not say where it is.
    pub(crate) from_systemd: bool,
}

/// Takes the socket that systemd passed, or binds one as the settings say. Returns `None` if `host` or `port`
/// is `unusable`: it is added there.
pub(crate) async fn open(
    loaded: &Loaded,
    unusable: &mut Vec<SettingError>,
) -> Result<Option<BoundListener>, Failure> {
    if let Some(listener) = Listener::from_systemd().map_err(Failure::settings)? {
        info!("listening on the socket that systemd passed; `host` and `port` do not matter");
        return Ok(Some(BoundListener { listener, from_systemd: true }));
    }
    let Settings { host, port, .. } = &loaded.settings;
    let error = match Listener::bind(host.as_str(), *port).await {
        Ok(listener) => return Ok(Some(BoundListener { listener, from_systemd: false })),
        Err(error) => error,
    };
    let key = match error {
        BindError::Host { .. } | BindError::NotLocal(_) | BindError::NoIpv6(_) => "host",
        BindError::InUse(_) | BindError::Privileged(_) => "port",
        BindError::Other { .. } => return Err(error.into()),
    };
    // The other program may end: the settings need not be wrong.
    let may_pass = matches!(error, BindError::InUse(_));
    let error = loaded.unusable_error(key, &format_args!("{:#}", anyhow::Error::from(error)));
    if may_pass && unusable.is_empty() {
        return Err(anyhow!("{error}").into());
    }
    unusable.push(error);
    Ok(None)
}

/// Logs a warning if the socket that was taken over is not where the settings say.
pub(crate) async fn warn_if_moved(address: SocketAddr, host: String, port: u16) {
    let wanted = lookup_host((host.as_str(), port)).await;
    let as_wanted = wanted.is_ok_and(|mut wanted| {
        wanted.any(|wanted| {
            wanted.ip().to_canonical() == address.ip()
                && (wanted.port() == 0 || wanted.port() == address.port())
        })
    });
    if !as_wanted {
        warn!(
            "still listening on {address}, not on {host}:{port} as set: an upgrade keeps the socket, a restart changes it"
        );
    }
}
