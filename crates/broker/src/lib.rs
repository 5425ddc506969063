//! Channels: which position each publication gets, which publications are kept, and what a subscriber has
//! missed. Knows no sockets and no HTTP.
//!
//! - [`Broker`] is the interface; its documentation is the contract that every implementation keeps.
//! - [`MemoryBroker`] (`memory`) keeps everything in this process. Its folder has the bookkeeping for that:
//!   `memory_channel` (the receivers of a channel, and when it was used), `retention_rules` (how much is kept
//!   of which channel), and `age_queue` (which channel loses something next).
//! - `channel` is the position and the history of one channel, and `idempotency` knows which requests were
//!   answered already: for whichever broker.
//! - [`MemoryExport`] copies what it keeps, in parts (`snapshot`), and [`MemoryBroker::import`] takes them
//!   over.
//! - `FaultyBroker` (`faults`, for tests) is the memory broker with faults in front of it.
//! - [`ReceiverSet`] (`receiver_set`) says which receivers get a channel's publications: for the server, its
//!   event loops.

mod channel;
mod config;
#[cfg(feature = "faults")]
mod faults;
mod idempotency;
mod memory;
mod receiver_set;
mod snapshot;

use std::{fmt, future::Future, pin::Pin, sync::Arc};

use lastcall_core::{ChannelName, Epoch, Position, Publication};
use serde::{Deserialize, Serialize};

pub use config::Config;
#[cfg(feature = "faults")]
pub use faults::{Faults, FaultyBroker, memory_broker};
pub use idempotency::{IDEMPOTENCY_TTL, IdempotencyKey, InvalidIdempotencyKey};
pub use memory::{MemoryBroker, MemoryExport};
pub use receiver_set::{MAX_RECEIVERS, ReceiverSet};
pub use snapshot::{BrokerPart, ChannelPart, KeyPart, PartError};

/// Returns the memory broker, twice: this build has no faults that a seed could choose.
#[cfg(not(feature = "faults"))]
pub fn memory_broker(
    config: Config,
    delivery: Box<dyn Delivery>,
    _seed: Option<u64>,
) -> (Arc<MemoryBroker>, Arc<dyn Broker>) {
    let memory = Arc::new(MemoryBroker::new(config, delivery));
    (Arc::clone(&memory), memory)
}

/// The result of a broker's work.
pub type BrokerFuture<T> = Pin<Box<dyn Future<Output = Result<T, BrokerError>> + Send>>;

/// The function that is called with the beginning of a subscription, or with the reason why there is none.
/// See [`Broker::subscribe`].
pub type Attach = Box<dyn FnOnce(Result<Subscribed, BrokerError>) + Send>;

/// A broker could not do its work.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BrokerError {
    /// It cannot work now, and has done nothing.
    #[error("the broker is unavailable: {0}")]
    Unavailable(String),
    /// It has not said what became of a publication, which may have been made: publish again only with the
    /// same [`IdempotencyKey`].
    #[error("the broker has not said whether this was published: {0}")]
    OutcomeUnknown(String),
}

/// The part of a server that gives publications their positions, and keeps them.
///
/// # Order
/// Within one epoch, a channel's publications have the offsets 1, 2, 3 and so on, and [`Delivery::deliver`]
/// is called for them in this order, each once. Nothing is promised across channels.
///
/// # Atomicity
/// A publication gets its position, is kept and is delivered in one step, under the channel's lock. A
/// subscription takes what was missed, adds the receiver and calls `attach` in one step, under the same lock.
/// So whatever is delivered to the receiver before `attach` is called is not for the subscriber, and whatever
/// is delivered after it is: there is no gap, and nothing comes twice. `attach` is called once, at once or
/// later, by any thread. `attach`, `deliver` and `reset` must be short, and must not call the broker.
///
/// # Recovery
/// What is missed is all there or not at all: `recovered` is true only if the epoch is the same and every
/// publication after the subscriber's position is still kept. An epoch ends when offsets could be given a
/// second time: then each earlier position is not recovered.
///
/// # Failure
/// The work of a call begins with the call, and goes to its end when the future is dropped. It may fail:
/// [`BrokerError::Unavailable`] says that nothing was done, [`BrokerError::OutcomeUnknown`] that a
/// publication may have been made. A subscription that fails has not begun, and costs its subscriber no
/// position: it can ask again. A broker that has lost publications begins a new epoch. Whenever receivers may
/// not have got all of a channel, they are told by [`Delivery::reset`], before anything that comes after it.
///
/// # Example
///
/// A client comes back with the position of the first publication, and gets the second one:
///
/// ```
/// use std::sync::{Arc, mpsc};
///
/// use lastcall_broker::{Broker, Config, Delivery, MemoryBroker, ReceiverSet, Since};
/// use lastcall_core::{ChannelName, Epoch, Position, Publication, Publisher};
/// use serde_json::value::RawValue;
///
/// #[derive(Debug)]
/// struct Print;
///
/// impl Delivery for Print {
///     fn deliver(&self, channel: &ChannelName, _: Epoch, new: &[Arc<Publication>], _: ReceiverSet) {
///         println!("{} in {channel}", new.len());
///     }
///
///     fn reset(&self, channel: &ChannelName, _: Position, _: ReceiverSet) {
///         println!("some of {channel} may be missing");
///     }
/// }
///
/// # #[tokio::main]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let broker = MemoryBroker::new(Config::default(), Box::new(Print));
/// let orders: ChannelName = "orders".parse()?;
/// let publication = |data: &str| -> serde_json::Result<_> {
///     Ok(vec![Publication::new(Publisher::Api, RawValue::from_string(data.to_owned())?)])
/// };
/// let first = broker.publish(&orders, publication("1")?, None).await?;
/// broker.publish(&orders, publication("2")?, None).await?;
///
/// let (answer, answers) = mpsc::channel();
/// let attach = Box::new(move |subscribed| drop(answer.send(subscribed)));
/// broker.subscribe(&orders, Since::Position(first.position), 0, attach);
/// let subscribed = answers.recv()??;
/// assert!(subscribed.recovered);
/// assert_eq!(subscribed.missed[0].data.get(), "2");
/// broker.unsubscribe(&orders, 0, true);
/// # Ok(())
/// # }
/// ```
pub trait Broker: fmt::Debug + Send + Sync {
    /// Publishes, in their order. With a key, the publications of this channel with the same key within
    /// [`IDEMPOTENCY_TTL`] are not published again: the result is the first one's.
    fn publish(
        &self,
        channel: &ChannelName,
        publications: Vec<Publication>,
        key: Option<IdempotencyKey>,
    ) -> BrokerFuture<Published>;

    /// Subscribes: from when `attach` is called on, the channel's publications are delivered to `receiver`,
    /// also for this subscriber. Each subscription that has begun is to be ended by one
    /// [`Broker::unsubscribe`].
    fn subscribe(&self, channel: &ChannelName, since: Since, receiver: usize, attach: Attach);

    /// Subscribes as often as the connections are subscribed that are about to come from another process: the
    /// channel's publications are delivered to `receiver` from now on. Each is to be ended by one
    /// [`Broker::unsubscribe`].
    fn resume(&self, channel: &ChannelName, receiver: usize, subscriptions: usize);

    /// Ends a subscription. `is_last`: the receiver has no other one to this channel, also none that waits
    /// for its `attach`.
    fn unsubscribe(&self, channel: &ChannelName, receiver: usize, is_last: bool);

    /// Returns some of the kept publications: the first ones after `since`, or the first of all. A channel
    /// that is not known has none, and is not known after this either.
    fn history(
        &self,
        channel: &ChannelName,
        since: Option<Position>,
        limit: PageLimit,
    ) -> BrokerFuture<HistoryPage>;

    /// Returns what is known of a channel on this node; `None`: nothing.
    fn channel(&self, name: &ChannelName) -> Option<ChannelInfo>;

    /// Returns what is known of the channels on this node: of at most `limit`, the first ones by name after
    /// `after`.
    fn channels(&self, after: Option<&ChannelName>, limit: usize) -> Vec<ChannelInfo>;

    /// Begins no work while it is paused: calls wait, and nothing is delivered. Returns once nothing is under
    /// way. A handover pauses the broker before it takes the state of everything: what was delivered after
    /// that, no process would have. A broker whose calls do all of their work at once needs no pause.
    fn set_paused(&self, paused: bool) {
        let _ = paused;
    }

    /// Returns true if the publications that the history has dropped and that replays still hold cost more
    /// than the history may.
    fn pins_too_much(&self) -> bool;

    /// Returns how much this node keeps.
    fn usage(&self) -> Usage;
}

/// Where a broker delivers publications.
pub trait Delivery: fmt::Debug + Send + Sync {
    /// Passes publications, one or more, on to these receivers. Called under the channel's lock.
    fn deliver(
        &self,
        channel: &ChannelName,
        epoch: Epoch,
        publications: &[Arc<Publication>],
        receivers: ReceiverSet,
    );

    /// Tells these receivers that they may have missed publications of a channel, and that those after `top`
    /// are delivered from now on. Its epoch may be a new one. Called under the channel's lock.
    fn reset(&self, channel: &ChannelName, top: Position, receivers: ReceiverSet);
}

/// The result of a publication.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Published {
    /// The position of the last publication.
    pub position: Position,
    /// Subscribers of the channel on this node.
    pub subscribers: usize,
}

/// From where on a subscriber wants a channel's publications. A handover has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Since {
    /// From the subscription on.
    Now,
    /// From this position on.
    Position(Position),
    /// From a position that is none: it cannot be recovered.
    Invalid,
}

/// The beginning of a subscription.
#[derive(Debug, Clone, PartialEq)]
pub struct Subscribed {
    /// The position of the channel: the last publication that is not delivered any more after this.
    pub top: Position,
    /// True if the subscriber wanted a position, and gets everything after it.
    pub recovered: bool,
    /// The publications that it missed, in order: up to and including `top`. Empty unless `recovered`.
    pub missed: Vec<Arc<Publication>>,
}

/// The size that a page of a history may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageLimit {
    /// Most publications.
    pub publications: usize,
    /// Most bytes of their data, beside those of the last one.
    pub bytes: usize,
}

/// A part of a channel's history.
#[derive(Debug, Clone, PartialEq)]
pub struct HistoryPage {
    /// The position of the channel.
    pub top: Position,
    /// True if nothing is missing between the position asked for and the first publication, or none was asked
    /// for.
    pub recovered: bool,
    /// In order. Empty unless `recovered`.
    pub publications: Vec<Arc<Publication>>,
    /// True if there are others after these.
    pub more: bool,
}

/// The amount that a node keeps.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Channels that have subscribers or history, or whose position is still kept.
    pub channels: usize,
    /// Bytes of history, as [`Config::max_bytes`] counts them.
    pub history_bytes: usize,
    /// Bytes of publications that the history has dropped and that replays still hold, each counted once.
    pub pinned_bytes: usize,
}

/// The state of a channel on this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChannelInfo {
    /// Its name.
    pub name: ChannelName,
    /// Subscribers on this node.
    pub subscribers: usize,
    /// The position of its last publication.
    pub top: Position,
    /// Publications that are kept.
    pub kept: usize,
}
