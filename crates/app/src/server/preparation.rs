//! All that is found and opened before the server is built. Nothing of it can fail any more once this process
//! has taken over.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use lastcall_core::settings::{Loaded, RuntimeDir, SettingError, SettingsErrors};
use lastcall_endpoints::Page;
use lastcall_handover::{
    ControlSocket, SocketName,
    failpoint::{self, Step},
};
use tokio::task::spawn_blocking;

use crate::{
    failure::Failure,
    history,
    listener::{self, BoundListener},
    upgrade::IncomingHandover,
};

/// The address with the longest name: a control socket with that name fits for every other one.
const LONGEST_ADDRESS: SocketAddr =
    SocketAddr::new(IpAddr::V6(Ipv6Addr::new(!0, !0, !0, !0, !0, !0, !0, !0)), u16::MAX);

/// The things that the server is built of.
pub(super) struct Prepared {
    pub(super) page: Page,
    pub(super) listener: ListenerSource,
}

/// Where the listening socket comes from.
pub(super) enum ListenerSource {
    /// The old process, with its clients.
    Handover(IncomingHandover),
    /// The service manager, or the settings.
    Bound(BoundListener),
}

/// Loads and opens what the settings name. What cannot be used is reported together with what is `unusable`
/// already.
///
/// # Errors
/// [`Failure::Settings`] if a setting cannot be used on this machine; another one if the system does not
/// allow it.
pub(super) async fn prepare(
    loaded: &Loaded,
    handover: Option<IncomingHandover>,
    mut unusable: Vec<SettingError>,
) -> Result<Prepared, Failure> {
    let checking = spawn_blocking({
        let loaded = loaded.clone();
        move || check_files(&loaded)
    });
    let (page, also_unusable) = checking.await?;
    unusable.extend(also_unusable);
    let listener = match handover {
        Some(handover) => Some(ListenerSource::Handover(handover)),
        None => listener::open(loaded, &mut unusable).await?.map(ListenerSource::Bound),
    };
    match (page, listener) {
        (Some(page), Some(listener)) if unusable.is_empty() => Ok(Prepared { page, listener }),
        _ => Err(Failure::settings(SettingsErrors(unusable))),
    }
}

/// Loads the page, and looks at the other files and folders that the settings name. Returns what cannot be
/// used, too.
fn check_files(loaded: &Loaded) -> (Option<Page>, Vec<SettingError>) {
    let settings = &loaded.settings;
    let mut unusable = Vec::new();
    if !matches!(settings.runtime_dir, RuntimeDir::Default(_))
        && let Err(error) =
            ControlSocket::check_folder(settings.runtime_dir.path(), SocketName::Address(LONGEST_ADDRESS))
    {
        let reason = format_args!("there can be no control socket: {:#}", anyhow::Error::from(error));
        unusable.push(loaded.unusable_error("runtime_dir", &reason));
    }
    if let Some(path) = &settings.history_file
        && let Err(error) = history::check(path)
    {
        unusable.push(loaded.unusable_error("history_file", &error));
    }
    failpoint::hit(Step::Preparing);
    let page = Page::load(settings.templates_dir.as_deref(), settings.max_message_size)
        .map_err(|error| {
            let reason = format_args!("{:#}", anyhow::Error::from(error));
            unusable.push(loaded.unusable_error("templates_dir", &reason));
        })
        .ok();
    (page, unusable)
}
