//! The periodic notification.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::value::to_raw_value;
use tokio::{
    sync::oneshot,
    task::{JoinError, JoinHandle},
    time::{Instant, MissedTickBehavior, interval_at},
};

use crate::{
    manager::ConnectionManager,
    protocol::{NotificationSource, ServerMessage},
};

#[derive(Serialize)]
struct Data {
    sequence: u64,
    clients: usize,
    message: String,
}

/// Where the notifications are: another process can go on from here.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct NotifierState {
    /// The number of the last notification; 0: there was none.
    pub sequence: u64,
    /// Milliseconds until the next one.
    pub next_in_ms: Option<u64>,
}

/// Notifies everyone, again and again; goes on while the server drains.
#[derive(Debug)]
pub struct Notifier {
    stop: oneshot::Sender<()>,
    task: JoinHandle<NotifierState>,
}

impl Notifier {
    /// Notifies everyone every `every`, the first time after that long, or as `state` says.
    pub fn start(manager: ConnectionManager, every: Duration, state: NotifierState) -> Self {
        let (stop, stopped) = oneshot::channel();
        Self { stop, task: tokio::spawn(notify(manager, every, state, stopped)) }
    }

    /// Stops after the notification that is being sent, if one is. Where it stopped.
    ///
    /// # Errors
    /// When the task had failed.
    pub async fn stop(self) -> Result<NotifierState, JoinError> {
        // Fails only if the task has ended, and then it is not waited for.
        let _ = self.stop.send(());
        self.task.await
    }
}

async fn notify(
    manager: ConnectionManager,
    every: Duration,
    NotifierState { mut sequence, next_in_ms }: NotifierState,
    mut stopped: oneshot::Receiver<()>,
) -> NotifierState {
    let mut next = Instant::now() + next_in_ms.map_or(every, Duration::from_millis).min(every);
    let mut ticks = interval_at(next, every);
    // A suspended server does not make up for the notifications it missed.
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = &mut stopped => {
                let left = next.saturating_duration_since(Instant::now()).as_millis();
                return NotifierState { sequence, next_in_ms: u64::try_from(left).ok() };
            }
            _ = ticks.tick() => {}
        }
        next = Instant::now() + every;
        sequence += 1;
        let clients = manager.count();
        let message = match clients {
            1 => "1 client is connected".to_owned(),
            n => format!("{n} clients are connected"),
        };
        // Numbers and a string are always valid JSON.
        let data = to_raw_value(&Data { sequence, clients, message }).expect("plain data is valid JSON");
        let notification = ServerMessage::notification(NotificationSource::Server, &data);
        manager.broadcast(&notification).await;
    }
}
