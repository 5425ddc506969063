//! The calls of the API without HTTP: the handlers read requests, call these, and write the responses.

use std::time::Duration;

use lastcall_core::{CHANNEL_NAME_RULE, ChannelName, Position};
use lastcall_websockets::{
    BrokerError, ChannelInfo, ConnectionManager, HistoryPage, IdempotencyKey, PageLimit, PublishError,
    PublishRequest, Published,
};

use crate::error::{ApiError, ErrorCode};

/// The time that a publication waits while the mailboxes of the event loops are full, and for the broker.
const PUBLISH_TIMEOUT: Duration = Duration::from_secs(10);

/// Most bytes of a page of the history, beside its last publication.
const MAX_PAGE: usize = 1 << 20;

/// A page of the list of channels.
pub(crate) struct ChannelPage {
    /// The channels, by name.
    pub(crate) channels: Vec<ChannelInfo>,
    /// True if there are others after these.
    pub(crate) more: bool,
}

/// Returns the channel that a caller names, or `broadcast`.
///
/// # Errors
/// When it is no name of a channel.
pub(crate) fn channel_name(name: Option<&str>) -> Result<ChannelName, ApiError> {
    let Some(name) = name else { return Ok(ChannelName::broadcast()) };
    name.parse().map_err(|_| {
        ApiError::new(
            ErrorCode::BadChannel,
            format!("{name:?} is not the name of a channel: {CHANNEL_NAME_RULE}."),
        )
    })
}

/// Reads an idempotency key.
///
/// # Errors
/// When it is none.
pub(crate) fn idempotency_key(text: &str) -> Result<IdempotencyKey, ApiError> {
    text.parse().map_err(|error| {
        ApiError::new(ErrorCode::BadRequest, format!("The idempotency key is not valid: {error}."))
    })
}

/// Publishes one request.
///
/// # Errors
/// When it was not published, or may not have been.
pub(crate) async fn publish(
    manager: &ConnectionManager,
    request: PublishRequest,
) -> Result<Published, ApiError> {
    let mut published = publish_all(manager, vec![request]).await?;
    // There is a result for each request.
    published
        .pop()
        .unwrap_or_else(|| Err(not_published(&BrokerError::OutcomeUnknown("no answer".to_owned()))))
}

/// Publishes, and returns the results in the order of the requests: an error where one was not published, or
/// may not have been.
///
/// # Errors
/// When nothing was published.
pub(crate) async fn publish_all(
    manager: &ConnectionManager,
    requests: Vec<PublishRequest>,
) -> Result<Vec<Result<Published, ApiError>>, ApiError> {
    let published = manager.publish_all(requests, PUBLISH_TIMEOUT).await.map_err(|error| match error {
        PublishError::Closing => ApiError::new(
            ErrorCode::Closing,
            "The server is closing all connections: no client would get this.",
        ),
        PublishError::Overloaded => {
            ApiError::new(ErrorCode::Overloaded, "Too much is waiting to be sent; nothing was published.")
        }
    })?;
    Ok(published.into_iter().map(|result| result.map_err(|error| not_published(&error))).collect())
}

/// Returns the error for a publication that was not made, or may not have been.
fn not_published(error: &BrokerError) -> ApiError {
    match error {
        BrokerError::Unavailable(_) => {
            ApiError::new(ErrorCode::Unavailable, format!("This was not published: {error}."))
        }
        BrokerError::OutcomeUnknown(_) => ApiError::new(
            ErrorCode::OutcomeUnknown,
            format!(
                "It is not known whether this was published: {error}. Send it again with the idempotency key that it had, \
                 so that it is not published twice."
            ),
        ),
    }
}

/// Returns at most `limit` channels, those after this name.
pub(crate) fn channels(
    manager: &ConnectionManager,
    after: Option<&ChannelName>,
    limit: usize,
) -> ChannelPage {
    // One more shows whether there are more.
    let mut channels = manager.broker().channels(after, limit + 1);
    let more = channels.len() > limit;
    channels.truncate(limit);
    ChannelPage { channels, more }
}

/// Returns the state of a channel.
///
/// # Errors
/// When there is nothing of it here.
pub(crate) fn channel(manager: &ConnectionManager, name: &ChannelName) -> Result<ChannelInfo, ApiError> {
    manager.broker().channel(name).ok_or_else(|| {
        let what =
            format!("The channel {name:?} has neither clients nor history here.", name = name.as_str());
        ApiError::new(ErrorCode::UnknownChannel, what)
    })
}

/// Returns a page of the history of a channel: at most `limit` publications, those after this position.
///
/// # Errors
/// When the broker cannot say now.
pub(crate) async fn history(
    manager: &ConnectionManager,
    channel: &ChannelName,
    since: Option<Position>,
    limit: usize,
) -> Result<HistoryPage, ApiError> {
    let limit = PageLimit { publications: limit, bytes: MAX_PAGE };
    manager.broker().history(channel, since, limit).await.map_err(|error| {
        ApiError::new(ErrorCode::Unavailable, format!("The history cannot be read: {error}."))
    })
}
