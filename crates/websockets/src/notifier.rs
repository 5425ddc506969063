//! The notifier: a periodic notification in the channel `broadcast`.

use std::time::Duration;

use lastcall_broker::BrokerError;
use lastcall_core::{ChannelName, Publication, Publisher};
use serde::{Deserialize, Serialize};
use serde_json::value::to_raw_value;
use tokio::{
    sync::oneshot,
    task::{JoinError, JoinHandle},
    time::{Instant, MissedTickBehavior, interval_at},
};
use tracing::warn;

use crate::manager::{ConnectionManager, PublishError, PublishRequest};

#[derive(Serialize)]
struct Data {
    sequence: u64,
    clients: usize,
    message: String,
}

/// The point at which a notifier has stopped. Another one, also in a new process, continues from here.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct NotifierState {
    /// The number of the last notification; 0 if there was none.
    pub sequence: u64,
    /// Milliseconds until the next one.
    pub next_in_ms: Option<u64>,
}

/// Publishes notifications in the channel `broadcast`, also while the server drains.
#[derive(Debug)]
pub struct Notifier {
    stop: oneshot::Sender<()>,
    task: JoinHandle<NotifierState>,
}

impl Notifier {
    /// Sends a notification every `interval`, the first one after that time or when `state` says so.
    pub fn start(manager: ConnectionManager, interval: Duration, state: NotifierState) -> Self {
        let (stop, stopped) = oneshot::channel();
        let tasks = manager.vital_tasks().clone();
        Self { stop, task: tasks.spawn("the notifier", notify(manager, interval, state, stopped)) }
    }

    /// Stops, and returns where it has stopped. A notification that waits for the event loops is left to the
    /// notifier that continues.
    ///
    /// # Errors
    /// When the task has panicked.
    pub async fn stop(self) -> Result<NotifierState, JoinError> {
        // An error means that the task has ended already.
        let _ = self.stop.send(());
        self.task.await
    }
}

/// The time that a notification waits for event loops that have too much to do.
const PUBLISH_TIMEOUT: Duration = Duration::from_secs(10);

async fn notify(
    manager: ConnectionManager,
    interval: Duration,
    NotifierState { mut sequence, next_in_ms }: NotifierState,
    mut stopped: oneshot::Receiver<()>,
) -> NotifierState {
    let mut next = Instant::now() + next_in_ms.map_or(interval, Duration::from_millis).min(interval);
    let mut ticks = interval_at(next, interval);
    // After the process was suspended, the notifications that it missed are not sent.
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let state = |sequence, next: Instant| {
        let left = next.saturating_duration_since(Instant::now()).as_millis();
        NotifierState { sequence, next_in_ms: u64::try_from(left).ok() }
    };
    loop {
        tokio::select! {
            _ = &mut stopped => return state(sequence, next),
            _ = ticks.tick() => {}
        }
        let after = Instant::now() + interval;
        let published = tokio::select! {
            biased;
            published = publish(&manager, sequence + 1) => published,
            _ = &mut stopped => return state(sequence, next),
        };
        next = after;
        match published {
            Ok(Ok(())) => sequence += 1,
            Ok(Err(error)) => warn!(%error, "a notification failed"),
            Err(PublishError::Closing) => {
                let _ = stopped.await;
                return state(sequence, next);
            }
            Err(error @ PublishError::Overloaded) => warn!(%error, "a notification was not published"),
        }
    }
}

async fn publish(
    manager: &ConnectionManager,
    sequence: u64,
) -> Result<Result<(), BrokerError>, PublishError> {
    let clients = manager.count();
    let message = match clients {
        1 => "1 client is connected".to_owned(),
        n => format!("{n} clients are connected"),
    };
    // Numbers and a string are always valid JSON.
    let data = to_raw_value(&Data { sequence, clients, message }).expect("plain data is valid JSON");
    let publications = vec![Publication::new(Publisher::Server, data)];
    let request = PublishRequest { channel: ChannelName::broadcast(), publications, key: None };
    let results = manager.publish_all(vec![request], PUBLISH_TIMEOUT).await?;
    Ok(results.into_iter().try_for_each(|result| result.map(drop)))
}

#[cfg(test)]
mod tests {
    use tokio::time::sleep;

    use super::*;
    use crate::{
        codec::CloseReason,
        manager::{ManagerConfig, tests::memory_broker},
        phases::Phases,
        vital_tasks::VitalTasks,
    };

    const INTERVAL: Duration = Duration::from_secs(10);

    fn start(state: NotifierState) -> (ConnectionManager, Notifier) {
        let config = ManagerConfig { event_loops: 1, ..ManagerConfig::default() };
        let manager =
            ConnectionManager::start(config, Phases::default(), VitalTasks::default(), memory_broker)
                .unwrap()
                .0;
        (manager.clone(), Notifier::start(manager, INTERVAL, state))
    }

    #[tokio::test(start_paused = true)]
    async fn a_notifier_counts_and_says_when_the_next_notification_is_due() {
        let (manager, notifier) = start(NotifierState::default());
        sleep(Duration::from_secs(24)).await;
        let state = notifier.stop().await.unwrap();
        assert_eq!(state, NotifierState { sequence: 2, next_in_ms: Some(6000) });
        manager.stop();
    }

    #[tokio::test(start_paused = true)]
    async fn a_notifier_continues_where_another_one_has_stopped() {
        let (manager, notifier) = start(NotifierState { sequence: 7, next_in_ms: Some(4000) });
        sleep(Duration::from_secs(15)).await;
        let state = notifier.stop().await.unwrap();
        assert_eq!(state, NotifierState { sequence: 9, next_in_ms: Some(9000) });
        manager.stop();
    }

    #[tokio::test(start_paused = true)]
    async fn a_notifier_of_a_server_that_closes_sends_nothing_and_still_stops() {
        let (manager, notifier) = start(NotifierState::default());
        manager.close_all(CloseReason::ServiceRestart);
        sleep(Duration::from_secs(60)).await;
        assert_eq!(notifier.stop().await.unwrap().sequence, 0);
        manager.stop();
    }
}
