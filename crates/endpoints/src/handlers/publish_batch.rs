//! `POST /api/publish/batch`: many publications in one request.

use std::{borrow::Cow, iter::repeat_with, sync::Arc};

use axum::{
    Json,
    body::Body,
    extract::State,
    http::{HeaderMap, Uri},
    response::{IntoResponse, Response},
};
use lastcall_core::{Position, Publication, Publisher};
use lastcall_websockets::{PublishRequest, Published};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::{
    api_body::{bad_body, check_data, parse, read, refuse_outside_body, value},
    publish::PublishResult,
};
use crate::{
    auth::api_caller::ApiCaller,
    error::{ApiError, ErrorCode},
    fields::IDEMPOTENCY_KEY,
    service::{self, channel_name, idempotency_key},
    state::AppState,
};

/// Most publications in one request.
const MAX_BATCH: usize = 1000;

const SHAPE: &str =
    "{\"publications\": [{\"data\": any JSON, \"channel\": \"broadcast\", \"idempotency_key\": a text}, …]}";

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct BatchBody<'a> {
    #[serde(borrow)]
    publications: Vec<BatchItem<'a>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct BatchItem<'a> {
    #[serde(borrow)]
    data: &'a RawValue,
    #[serde(borrow, default, deserialize_with = "value")]
    channel: Option<Text<'a>>,
    #[serde(borrow, default, deserialize_with = "value")]
    idempotency_key: Option<Text<'a>>,
}

/// A text of the body, borrowed where it has no escapes.
#[derive(Deserialize)]
#[serde(transparent)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

/// The results, in the order of the publications.
#[derive(Serialize)]
pub(crate) struct BatchResult {
    /// The first error of those that were not published, or may not have been.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<ApiError>,
    results: Vec<ItemResult>,
}

/// The result of one publication.
#[derive(Serialize)]
#[serde(untagged)]
enum ItemResult {
    Published(PublishResult),
    NotPublished { error: ApiError },
}

impl IntoResponse for BatchResult {
    fn into_response(self) -> Response {
        match self.error.clone() {
            None => Json(self).into_response(),
            Some(error) => error.into_response_with(&self),
        }
    }
}

pub(crate) async fn publish_batch(
    State(state): State<Arc<AppState>>,
    _: ApiCaller,
    uri: Uri,
    headers: HeaderMap,
    body: Body,
) -> Result<BatchResult, ApiError> {
    if headers.contains_key(IDEMPOTENCY_KEY) {
        // To ignore it would publish all of them again when the request is repeated.
        return Err(ApiError::new(
            ErrorCode::BadHeader,
            "A batch has no `Idempotency-Key`; give each of its publications an `idempotency_key`.",
        ));
    }
    refuse_outside_body(&uri, &headers, "the `idempotency_key` of a publication")?;
    let max_body = state.limits.max_batch_body();
    let body = read(body, &headers, &state.body_budget, max_body, "the limit of a batch").await?;
    let BatchBody { publications } = parse(&body, SHAPE)?;
    let requests = requests(&publications, state.limits.max_message_size)?;
    let counts: Vec<_> = requests.iter().map(|request| request.publications.len()).collect();
    let published = service::publish_all(&state.manager, requests).await?;
    let mut batch = BatchResult { error: None, results: Vec::with_capacity(publications.len()) };
    for (result, count) in published.into_iter().zip(counts) {
        match result {
            Ok(last) => {
                let results = each(last, count as u64).map(PublishResult::from).map(ItemResult::Published);
                batch.results.extend(results);
            }
            Err(error) => {
                let result = || ItemResult::NotPublished { error: error.clone() };
                batch.results.extend(repeat_with(result).take(count));
                batch.error.get_or_insert(error);
            }
        }
    }
    Ok(batch)
}

/// Returns what is to be published. Neighbours of one channel without a key are published together.
///
/// # Errors
/// When one of them is wrong: then nothing is published.
fn requests(items: &[BatchItem<'_>], max_message_size: usize) -> Result<Vec<PublishRequest>, ApiError> {
    if items.len() > MAX_BATCH {
        return Err(bad_body(
            SHAPE,
            &format_args!("it has {} publications, and may have at most {MAX_BATCH}", items.len()),
        ));
    }
    let mut requests: Vec<PublishRequest> = Vec::new();
    for (number, item) in (1..).zip(items) {
        let in_item = |error: ApiError| error.within(&format!("Publication {number}"));
        if item.data.get().len() > max_message_size {
            let what = format_args!(
                "publication {number} is over {max_message_size} bytes, the server's `max_message_size`"
            );
            return Err(bad_body(SHAPE, &what));
        }
        check_data(item.data)
            .map_err(|error| bad_body(SHAPE, &format_args!("publication {number}: {error}")))?;
        let publication = Publication::new(Publisher::Api, item.data.to_owned());
        let channel = item.channel.as_ref().map(|text| &*text.0);
        let key = item.idempotency_key.as_ref().map(|text| idempotency_key(&text.0));
        let key = key.transpose().map_err(in_item)?;
        if let Some(last) = requests.last_mut()
            && (last.key.is_none() && key.is_none())
            && channel.unwrap_or("broadcast") == last.channel.as_str()
        {
            last.publications.push(publication);
            continue;
        }
        let channel = channel_name(channel).map_err(in_item)?;
        requests.push(PublishRequest { channel, publications: vec![publication], key });
    }
    Ok(requests)
}

/// Returns the results of publications that were published together, from that of the last one.
fn each(last: Published, count: u64) -> impl Iterator<Item = Published> {
    let Position { epoch, offset } = last.position;
    (0..count).rev().map(move |later| Published {
        position: Position { epoch, offset: offset.saturating_sub(later) },
        ..last
    })
}
