//! `POST /api/publish`: a notification from outside.

use std::{sync::Arc, time::Duration};

use axum::{
    Json,
    body::Body,
    extract::State,
    http::{HeaderMap, Uri},
};
use lastcall_core::{CHANNEL_NAME_RULE, ChannelName, Position, Publication, Publisher};
use lastcall_websockets::{BrokerError, IdempotencyKey, PublishError, PublishRequest, Published};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::api_body::{bad_body, check_data, parse, read, refuse_outside_body, value};
use crate::{
    auth::api_caller::ApiCaller,
    error::{ApiError, ErrorCode},
    fields::IDEMPOTENCY_KEY,
    state::AppState,
};

/// How long a publication waits while the mailboxes of the event loops are full, and for the broker.
const PUBLISH_TIMEOUT: Duration = Duration::from_secs(10);

const SHAPE: &str = "{\"data\": any JSON, \"channel\": \"broadcast\"}";

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PublishBody<'a> {
    #[serde(borrow)]
    data: &'a RawValue,
    #[serde(default, deserialize_with = "value")]
    channel: Option<String>,
}

/// The result of a publication.
#[derive(Serialize)]
pub(crate) struct PublishResult {
    /// Subscribers of the channel on this node.
    clients: usize,
    /// The position of the publication.
    id: Position,
}

impl From<Published> for PublishResult {
    fn from(published: Published) -> Self {
        Self { clients: published.subscribers, id: published.position }
    }
}

pub(crate) async fn publish(
    State(state): State<Arc<AppState>>,
    _: ApiCaller,
    uri: Uri,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<PublishResult>, ApiError> {
    refuse_outside_body(&uri, &headers, "the header field `Idempotency-Key`")?;
    let body = read(body, &headers, state.limits.max_message_size, "the server's `max_message_size`").await?;
    let PublishBody { data, channel } = parse(&body, SHAPE)?;
    check_data(data).map_err(|error| bad_body(SHAPE, &error))?;
    let key = headers.get(IDEMPOTENCY_KEY).map(|key| key.to_str().unwrap_or_default());
    let request = PublishRequest {
        channel: channel_name(channel.as_deref())?,
        publications: vec![Publication::new(Publisher::Api, data.to_owned())],
        key: key.map(idempotency_key).transpose()?,
    };
    let mut published = publish_all(&state, vec![request]).await?;
    // There is a result for each request.
    let published =
        published.pop().unwrap_or_else(|| Err(BrokerError::OutcomeUnknown("no answer".to_owned())));
    published.map(PublishResult::from).map(Json).map_err(|error| not_published(&error))
}

/// Returns the channel that a caller names, or `broadcast`.
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
pub(crate) fn idempotency_key(text: &str) -> Result<IdempotencyKey, ApiError> {
    text.parse().map_err(|error| {
        ApiError::new(ErrorCode::BadRequest, format!("The idempotency key is not valid: {error}."))
    })
}

/// Publishes, and returns the results in the order of the requests.
///
/// # Errors
/// When nothing was published.
pub(crate) async fn publish_all(
    state: &AppState,
    requests: Vec<PublishRequest>,
) -> Result<Vec<Result<Published, BrokerError>>, ApiError> {
    state.manager.publish_all(requests, PUBLISH_TIMEOUT).await.map_err(|error| match error {
        PublishError::Closing => ApiError::new(
            ErrorCode::Closing,
            "The server is closing all connections: no client would get this.",
        ),
        PublishError::Overloaded => {
            ApiError::new(ErrorCode::Overloaded, "Too much is waiting to be sent; nothing was published.")
        }
    })
}

/// Returns the error for a publication that was not made, or may not have been.
pub(crate) fn not_published(error: &BrokerError) -> ApiError {
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
