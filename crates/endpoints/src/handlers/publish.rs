//! `POST /api/publish`: a notification from outside.

use std::{sync::Arc, time::Duration};

use axum::{
    Extension, Json,
    body::{Body, to_bytes},
    extract::State,
    http::{
        HeaderMap,
        header::{CONTENT_ENCODING, CONTENT_TYPE},
    },
};
use lastcall_websockets::{BROADCAST, NotificationSource, PublishError, ServerMessage};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tokio::time::timeout;

use crate::{
    auth::api_key,
    error::{ApiError, ErrorCode},
    fields,
    server::PeerAddr,
    state::AppState,
    target::Target,
};

/// How long the body of a request may take to arrive.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a publication waits while the mailboxes of the event loops are full.
const PUBLISH_TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PublishRequest<'a> {
    #[serde(borrow)]
    data: &'a RawValue,
    #[serde(default = "broadcast")]
    channel: String,
}

fn broadcast() -> String {
    BROADCAST.to_owned()
}

#[derive(Serialize)]
pub(crate) struct Published {
    clients: usize,
}

pub(crate) async fn publish(
    State(state): State<Arc<AppState>>,
    Extension(PeerAddr(peer)): Extension<PeerAddr>,
    target: Target,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Published>, ApiError> {
    // A page of another host must not publish through a browser on this machine.
    state.allowed_origins.check(&headers, &target)?;
    api_key::check(&state.api_keys, &state.own_hosts, peer, &headers, &target)?;
    if fields::list(&headers, &CONTENT_ENCODING).any(|coding| !coding.eq_ignore_ascii_case(b"identity")) {
        return Err(ApiError::new(
            ErrorCode::UnsupportedContentEncoding,
            "The body must not be compressed: send it without `Content-Encoding`.",
        ));
    }
    if !is_json(&headers) {
        return Err(ApiError::new(
            ErrorCode::UnsupportedMediaType,
            "The body must be JSON: send `Content-Type: application/json`.",
        ));
    }
    let body = read(body, &headers, state.limits.max_message_size).await?;
    let request = parse(&body)?;
    if request.channel != BROADCAST {
        return Err(ApiError::new(
            ErrorCode::UnknownChannel,
            format!("There is no channel {:?}; the only one is \"{BROADCAST}\".", request.channel),
        ));
    }
    let notification = ServerMessage::notification(NotificationSource::Api, request.data);
    match timeout(PUBLISH_TIMEOUT, state.manager.broadcast(&notification)).await {
        Ok(Ok(clients)) => Ok(Json(Published { clients })),
        Ok(Err(PublishError::Closing)) => {
            Err(ApiError::new(ErrorCode::Closing, "The server is closing its clients: none would get this."))
        }
        Err(_) => Err(ApiError::new(
            ErrorCode::Overloaded,
            "Too much is waiting to be sent; nothing was published.",
        )),
    }
}

fn parse(body: &[u8]) -> Result<PublishRequest<'_>, ApiError> {
    let wrong = |what: &dyn std::fmt::Display| {
        let right = format!("{{\"data\": any JSON, \"channel\": \"{BROADCAST}\"}}");
        ApiError::new(ErrorCode::BadRequest, format!("The body must be {right}: {what}."))
    };
    if body.starts_with(&[0xFE, 0xFF])
        || body.starts_with(&[0xFF, 0xFE])
        || body.iter().take(2).any(|b| *b == 0)
    {
        return Err(wrong(&"it is not UTF-8 but another encoding, such as UTF-16"));
    }
    // RFC 8259 section 8.1 allows to skip the mark that some editors put before UTF-8.
    let body = body.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(body);
    // serde would read an array as the fields in their order.
    match body.trim_ascii_start().first() {
        Some(b'{') => {}
        None => return Err(wrong(&"it is empty")),
        Some(_) => match serde_json::from_slice::<serde::de::IgnoredAny>(body) {
            Ok(_) => return Err(wrong(&"it is JSON, but not an object")),
            Err(error) => return Err(wrong(&format_args!("it is not JSON ({error})"))),
        },
    }
    let request: PublishRequest<'_> = serde_json::from_slice(body).map_err(|error| wrong(&error))?;
    // Raw JSON is not looked into; what clients could not read, such as half a surrogate pair or a thousand
    // arrays in each other, stops here.
    serde_json::from_str::<serde_json::Value>(request.data.get()).map_err(|error| wrong(&error))?;
    Ok(request)
}

fn is_json(headers: &HeaderMap) -> bool {
    let essence = headers
        .get(CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        // With a comma, it would be two values in one line.
        .filter(|value| !value.contains(','))
        .and_then(|value| value.split(';').next())
        .map(str::trim);
    essence.is_some_and(|essence| {
        let essence = essence.to_ascii_lowercase();
        essence == "application/json" || (essence.starts_with("application/") && essence.ends_with("+json"))
    })
}

async fn read(body: Body, headers: &HeaderMap, limit: usize) -> Result<bytes::Bytes, ApiError> {
    let too_large = || {
        ApiError::new(
            ErrorCode::PayloadTooLarge,
            format!("The body is over {limit} bytes, the server's `max_message_size`."),
        )
    };
    // Said beforehand: then nothing has to be read to refuse it.
    let declared = headers
        .get(axum::http::header::CONTENT_LENGTH)
        .and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    if declared.is_some_and(|declared| declared > limit as u64) {
        return Err(too_large());
    }
    match timeout(BODY_TIMEOUT, to_bytes(body, limit)).await {
        Ok(Ok(body)) => Ok(body),
        Ok(Err(error)) if is_length_limit(&error) => Err(too_large()),
        Ok(Err(error)) => {
            Err(ApiError::new(ErrorCode::BadRequest, format!("The body could not be read: {error}.")))
        }
        Err(_) => Err(ApiError::new(
            ErrorCode::RequestTimeout,
            format!("The body did not arrive within {} seconds.", BODY_TIMEOUT.as_secs()),
        )),
    }
}

fn is_length_limit(error: &axum::Error) -> bool {
    std::error::Error::source(error).is_some_and(|source| source.is::<http_body_util::LengthLimitError>())
}
