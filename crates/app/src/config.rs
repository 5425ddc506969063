//! The settings as each library's own configuration: only this crate knows both.

use std::env;

use anyhow::bail;
use lastcall_core::settings::Settings;
use lastcall_endpoints::{Config, Limits};
use lastcall_websockets::{HeartbeatConfig, ManagerConfig, ShutdownConfig};

use crate::variables;

/// Returns the configuration of the connection manager.
///
/// # Errors
/// When a variable for tests is not a number.
pub(crate) fn manager(settings: &Settings) -> anyhow::Result<ManagerConfig> {
    let default = ManagerConfig::default();
    Ok(ManagerConfig {
        event_loops: number(variables::EVENT_LOOPS)?.unwrap_or(default.event_loops),
        connections_per_loop: number(variables::CONNECTIONS_PER_LOOP)?
            .unwrap_or(default.connections_per_loop),
        max_connections: settings.max_connections,
        close_timeout: settings.close_timeout,
        heartbeat: settings
            .ping_interval
            .map(|interval| HeartbeatConfig { interval, timeout: settings.pong_timeout }),
        replay_timeout: settings.pong_timeout,
        client_messages: settings.client_messages,
        max_message_size: settings.max_message_size,
        max_queue: settings.max_queue,
        max_client_rate: settings.max_client_rate,
        max_total_rate: settings.max_total_rate,
    })
}

/// Returns the configuration of the broker.
pub(crate) fn broker(settings: &Settings) -> lastcall_broker::Config {
    lastcall_broker::Config {
        retention: settings.retention,
        namespaces: settings.namespaces.clone(),
        max_bytes: settings.history_bytes,
    }
}

/// Returns the configuration of the graceful shutdown.
pub(crate) fn shutdown(settings: &Settings) -> ShutdownConfig {
    ShutdownConfig {
        delay: settings.shutdown_delay,
        timeout: settings.shutdown_timeout,
        spread: settings.shutdown_spread,
        close_timeout: settings.close_timeout,
        reminder_interval: settings.notification_interval,
    }
}

/// Returns the configuration of the routes.
pub(crate) fn endpoints(settings: &Settings) -> Config {
    Config {
        host: settings.host.host().clone(),
        allowed_origins: settings.allowed_origins.clone(),
        api_keys: settings.api_keys.clone(),
        limits: Limits {
            max_connections: settings.max_connections,
            max_queue: settings.max_queue,
            max_message_size: settings.max_message_size,
            max_client_rate: settings.max_client_rate,
            max_total_rate: settings.max_total_rate,
        },
    }
}

/// Reads a variable that is no setting.
fn number(variable: &str) -> anyhow::Result<Option<usize>> {
    let Some(text) = env::var_os(variable) else { return Ok(None) };
    let number = text.to_str().and_then(|text| text.parse().ok());
    match number {
        Some(number) if number > 0 => Ok(Some(number)),
        _ => bail!("{variable} is not a whole number above 0: {}", text.display()),
    }
}
