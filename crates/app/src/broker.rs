//! The broker of the server: no other file says which one that is.

use std::{convert::Infallible, env, future::pending, panic::resume_unwind, sync::Arc, time::Duration};

pub(crate) use lastcall_broker::MemoryExport as BrokerExport;
use lastcall_broker::{Broker, BrokerPart, Config, Delivery, MemoryBroker, PartError, memory_broker};
use tokio::{
    task::{JoinError, spawn_blocking},
    time::sleep,
};

/// The variable with the seed of the broker's faults. Only builds for tests have faults.
const FAULTS_VARIABLE: &str = "LASTCALL_BROKER_FAULTS";

/// The shortest time from one look to the next one: what expires meanwhile is not recovered any more, and
/// only costs memory.
const MIN_INTERVAL: Duration = Duration::from_secs(1);

/// The broker, and what the process does with it beside publishing: it keeps the history over restarts and
/// upgrades, and drops what is too old. Clones are the same broker.
#[derive(Debug, Clone)]
pub(crate) struct ServerBroker {
    memory: Arc<MemoryBroker>,
    broker: Arc<dyn Broker>,
    /// The shortest time after which something that is published may be too old.
    shortest_ttl: Duration,
}

impl From<ServerBroker> for Arc<dyn Broker> {
    fn from(broker: ServerBroker) -> Self {
        broker.broker
    }
}

impl ServerBroker {
    /// Returns a broker without channels.
    pub(crate) fn new(config: Config, delivery: Box<dyn Delivery>) -> Self {
        let ttls = config.namespaces.iter().map(|namespace| namespace.retention.ttl);
        let shortest_ttl = ttls.fold(config.retention.ttl, Duration::min);
        let seed = env::var(FAULTS_VARIABLE).ok().and_then(|seed| seed.parse().ok());
        let (memory, broker) = memory_broker(config, delivery, seed);
        Self { memory, broker, shortest_ttl }
    }

    /// Returns what is kept, to be copied in parts.
    pub(crate) fn export(&self) -> BrokerExport {
        BrokerExport::new(Arc::clone(&self.memory))
    }

    /// Takes over a part of what another broker kept, which was written so long ago. See
    /// [`MemoryBroker::import`].
    ///
    /// # Errors
    /// When the part contradicts itself.
    pub(crate) fn import(&self, part: BrokerPart, age: Duration) -> Result<(), PartError> {
        self.memory.import(part, age)
    }

    /// Ends the import. See [`MemoryBroker::finish_import`].
    pub(crate) fn finish_import(&self) {
        self.memory.finish_import();
    }

    /// Begins a new epoch in every channel. See [`MemoryBroker::renew_all_epochs`].
    pub(crate) fn renew_all_epochs(&self) {
        self.memory.renew_all_epochs();
    }

    /// Drops everything. See [`MemoryBroker::clear`].
    pub(crate) fn clear(&self) {
        self.memory.clear();
    }

    /// Drops what is too old whenever there is something, also while nothing is published. Panics when the
    /// broker does.
    pub(crate) async fn expire(self) -> Infallible {
        loop {
            let looking = Arc::clone(&self.memory);
            // A channel for each of many clients may be too old at once, so this may take a while.
            let next = match spawn_blocking(move || looking.expire()).await.map_err(JoinError::try_into_panic)
            {
                Ok(next) => next,
                Err(Ok(panic)) => resume_unwind(panic),
                // The runtime is shutting down.
                Err(Err(_)) => pending().await,
            };
            sleep(next.unwrap_or(self.shortest_ttl).min(self.shortest_ttl).max(MIN_INTERVAL)).await;
        }
    }
}

/// Used by the tests of whatever keeps the history.
#[cfg(test)]
pub(crate) mod testing {
    use lastcall_broker::ReceiverSet;
    use lastcall_core::{ChannelName, Epoch, Position, Publication};

    use super::*;

    /// Delivers to no client.
    #[derive(Debug)]
    struct NoDelivery;

    impl Delivery for NoDelivery {
        fn deliver(&self, _: &ChannelName, _: Epoch, _: &[Arc<Publication>], _: ReceiverSet) {}

        fn reset(&self, _: &ChannelName, _: Position, _: ReceiverSet) {}
    }

    impl ServerBroker {
        pub(crate) fn for_test(config: Config) -> Self {
            Self::new(config, Box::new(NoDelivery))
        }

        pub(crate) fn as_broker(&self) -> &dyn Broker {
            &*self.broker
        }
    }
}

#[cfg(test)]
mod tests {
    use lastcall_core::{ChannelName, Publication, Publisher, Retention};
    use serde_json::value::RawValue;
    use tokio::time::timeout;

    use super::*;

    #[tokio::test]
    async fn what_is_too_old_is_dropped_while_nothing_is_published() {
        let retention = Retention { size: 10, ttl: Duration::from_millis(20) };
        let config = Config { retention, ..Config::default() };
        let broker = ServerBroker::for_test(config);
        let data = RawValue::from_string("1".to_owned()).unwrap();
        let publication = Publication::new(Publisher::Api, data);
        broker.as_broker().publish(&ChannelName::broadcast(), vec![publication], None).await.unwrap();
        assert!(broker.as_broker().usage().history_bytes > 0);
        let expiring = tokio::spawn(broker.clone().expire());
        let dropped = async {
            while broker.as_broker().usage().history_bytes > 0 {
                sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(Duration::from_secs(30), dropped).await.unwrap();
        expiring.abort();
    }
}
