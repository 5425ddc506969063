//! The periodic notification.

use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;
use serde_json::value::to_raw_value;
use tokio::time::{Instant, MissedTickBehavior, interval_at};

use crate::{
    manager::ConnectionManager,
    message::{BROADCAST, ServerMessage},
};

#[derive(Serialize)]
struct Data {
    sequence: u64,
    clients: usize,
    message: String,
}

/// Notifies everyone every `every`, the first time after that long; goes on while the server drains.
/// Never returns: drop it to end it.
pub async fn notify_periodically(manager: ConnectionManager, every: Duration) {
    let mut ticks = interval_at(Instant::now() + every, every);
    // A suspended server does not make up for the notifications it missed.
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    for sequence in 1.. {
        ticks.tick().await;
        let clients = manager.count();
        let message = match clients {
            1 => "1 client is connected".to_owned(),
            n => format!("{n} clients are connected"),
        };
        // Numbers and a string are always valid JSON.
        let data = to_raw_value(&Data { sequence, clients, message }).expect("plain data is valid JSON");
        let notification =
            ServerMessage::Notification { channel: BROADCAST, time: Timestamp::now(), data: &data };
        manager.broadcast(&notification).await;
    }
}
