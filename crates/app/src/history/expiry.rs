//! Has the broker drop what is too old while nothing is published.

use std::{convert::Infallible, future::pending, panic::resume_unwind, sync::Arc, time::Duration};

use lastcall_broker::{Config, MemoryBroker};
use tokio::{
    task::{JoinError, spawn_blocking},
    time::sleep,
};

/// The shortest time from one look to the next one: what expires meanwhile is not recovered any more, and only costs
/// memory.
const MIN_INTERVAL: Duration = Duration::from_secs(1);

/// Drops what is too old whenever there is something. Panics when the broker does.
pub(crate) async fn expire(broker: Arc<MemoryBroker>, config: Config) -> Infallible {
    // What is published after a look is not too old before this time is over.
    let ttls = config.namespaces.iter().map(|namespace| namespace.retention.ttl);
    let shortest_ttl = ttls.fold(config.retention.ttl, Duration::min);
    loop {
        let looking = Arc::clone(&broker);
        // A channel for each of many clients may be too old at once, so this may take a while.
        let next = match spawn_blocking(move || looking.expire()).await.map_err(JoinError::try_into_panic) {
            Ok(next) => next,
            Err(Ok(panic)) => resume_unwind(panic),
            // The runtime is shutting down.
            Err(Err(_)) => pending().await,
        };
        sleep(next.unwrap_or(shortest_ttl).min(shortest_ttl).max(MIN_INTERVAL)).await;
    }
}

#[cfg(test)]
mod tests {
    use lastcall_broker::{Broker, Retention};
    use lastcall_core::{ChannelName, Publication, Publisher};
    use serde_json::value::RawValue;
    use tokio::time::timeout;

    use super::*;
    use crate::history::testing::NoDelivery;

    #[tokio::test]
    async fn what_is_too_old_is_dropped_while_nothing_is_published() {
        let retention = Retention { size: 10, ttl: Duration::from_millis(20) };
        let config = Config { retention, ..Config::default() };
        let broker = Arc::new(MemoryBroker::new(config.clone(), Box::new(NoDelivery)));
        let data = RawValue::from_string("1".to_owned()).unwrap();
        let publication = Publication::new(Publisher::Api, data);
        broker.publish(&ChannelName::broadcast(), vec![publication], None).await.unwrap();
        assert!(broker.usage().history_bytes > 0);
        let expiring = tokio::spawn(expire(Arc::clone(&broker), config));
        let dropped = async {
            while broker.usage().history_bytes > 0 {
                sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(Duration::from_secs(30), dropped).await.unwrap();
        expiring.abort();
    }
}
