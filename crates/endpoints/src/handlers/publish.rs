//! `POST /api/publish`: a notification from outside.

use std::sync::Arc;

use axum::{
    Json,
    body::Body,
    extract::State,
    http::{HeaderMap, Uri},
};
use lastcall_core::{Position, Publication, Publisher};
use lastcall_websockets::{PublishRequest, Published};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::api_body::{bad_body, check_data, parse, read, refuse_outside_body, value};
use crate::{
    auth::api_caller::ApiCaller,
    error::ApiError,
    fields::IDEMPOTENCY_KEY,
    service::{self, channel_name, idempotency_key},
    state::AppState,
};

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
    let body = read(
        body,
        &headers,
        &state.body_budget,
        state.limits.max_message_size,
        "the server's `max_message_size`",
    )
    .await?;
    let PublishBody { data, channel } = parse(&body, SHAPE)?;
    check_data(data).map_err(|error| bad_body(SHAPE, &error))?;
    let key = headers.get(IDEMPOTENCY_KEY).map(|key| key.to_str().unwrap_or_default());
    let request = PublishRequest {
        channel: channel_name(channel.as_deref())?,
        publications: vec![Publication::new(Publisher::Api, data.to_owned())],
        key: key.map(idempotency_key).transpose()?,
    };
    let published = service::publish(&state.manager, request).await?;
    Ok(Json(published.into()))
}
