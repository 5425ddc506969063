//! Log lines about what other machines can do to this server.

use std::net::SocketAddr;

use lastcall_core::{
    ClientMessages,
    settings::{Loaded, Source},
};
use tracing::{info, warn};

/// Logs a warning if other machines can connect, and their clients may send texts to all others without that
/// having been set.
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

/// Logs that only this machine can call the API, as there are no keys: a warning only where other machines
/// can reach the server, and not at each upgrade.
pub(crate) fn log_api_is_local(address: SocketAddr, takes_over: bool) {
    if takes_over || address.ip().to_canonical().is_loopback() {
        info!("no api_keys are set: only this machine may call /api/");
    } else {
        warn!(
            "no api_keys are set: only this machine may call /api/, while others can reach {address}. What a TCP \
             forwarder on this machine passes on (a proxy in TCP mode, stunnel, `ssh -R`, the ports of a rootless \
             container) counts as this machine: with one of these, set `api_keys`"
        );
    }
}
