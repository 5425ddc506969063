//! The body of a call of the API: a JSON object.

use std::{borrow::Cow, fmt::Display, time::Duration};

use axum::{
    body::Body,
    http::{
        HeaderMap, Uri,
        header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE},
    },
};
use http_body_util::BodyExt;
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;
use tokio::time::timeout;
use url::form_urlencoded;

use super::channel_query::other_spelling;
use crate::{
    body_budget::{BodyBudget, BudgetExhausted, ReceivedBody},
    error::{ApiError, ErrorCode},
    fields::{self, IDEMPOTENCY_KEY},
};

/// The time that the body of a request may take to arrive.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// Reads a body that says that it is JSON, and has at most `limit` bytes. `limit_name` is what an error calls
/// the limit.
///
/// # Errors
/// When it is something else, too large, does not arrive in time, or does not fit into the budget.
pub(crate) async fn read(
    body: Body,
    headers: &HeaderMap,
    budget: &BodyBudget,
    limit: usize,
    limit_name: &str,
) -> Result<ReceivedBody, ApiError> {
    if fields::list(headers, &CONTENT_ENCODING).any(|coding| !coding.eq_ignore_ascii_case(b"identity")) {
        return Err(ApiError::new(
            ErrorCode::UnsupportedContentEncoding,
            "The body must not be compressed: send it without `Content-Encoding`.",
        ));
    }
    if !is_json(headers) {
        return Err(ApiError::new(
            ErrorCode::UnsupportedMediaType,
            "The body must be JSON: send `Content-Type: application/json`.",
        ));
    }
    let too_large = || {
        ApiError::new(ErrorCode::PayloadTooLarge, format!("The body is over {limit} bytes, {limit_name}."))
    };
    // Said beforehand: then nothing has to be read to refuse it.
    let declared = headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    if declared.is_some_and(|declared| declared > limit as u64) {
        return Err(too_large());
    }
    let receiving = async {
        let (mut received, mut body) = (budget.begin(), body);
        while let Some(frame) = body.frame().await {
            let unreadable =
                |error| ApiError::new(ErrorCode::BadRequest, format!("The body could not be read: {error}."));
            // What is no data is a trailer.
            let Ok(data) = frame.map_err(unreadable)?.into_data() else { continue };
            if received.len() + data.len() > limit {
                return Err(too_large());
            }
            received.add(&data).map_err(|BudgetExhausted| {
                let why =
                    "The bodies of other calls take all the memory that there is for them; try again later.";
                ApiError::new(ErrorCode::Overloaded, why)
            })?;
        }
        Ok(received)
    };
    match timeout(BODY_TIMEOUT, receiving).await {
        Ok(received) => received,
        Err(_) => Err(ApiError::new(
            ErrorCode::RequestTimeout,
            format!("The body did not arrive within {} seconds.", BODY_TIMEOUT.as_secs()),
        )),
    }
}

/// Reads the fields of a body. `shape` is what an error says that the body must be.
///
/// # Errors
/// When it is no such JSON object.
pub(crate) fn parse<'a, T: Deserialize<'a>>(body: &'a [u8], shape: &str) -> Result<T, ApiError> {
    let wrong = |what: &dyn Display| bad_body(shape, what);
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
    serde_json::from_slice(body).map_err(|error| wrong(&error))
}

/// Reads a member that may be left out, and is a value where it is there: `null` comes from a variable that
/// was never set, and what is left out may mean everybody.
///
/// # Errors
/// When it is no such value.
pub(crate) fn value<'a, D: Deserializer<'a>, T: Deserialize<'a>>(member: D) -> Result<Option<T>, D::Error> {
    T::deserialize(member).map(Some)
}

/// The members of the bodies of the API.
const MEMBERS: [&str; 4] = ["channel", "data", "publications", "idempotency_key"];

/// Refuses a call that has a member of its body in the query or in a header field: it would be ignored, and
/// what is left out of the body may mean everybody. `key_place` is where an idempotency key belongs.
///
/// # Errors
/// When there is one.
pub(crate) fn refuse_outside_body(uri: &Uri, headers: &HeaderMap, key_place: &str) -> Result<(), ApiError> {
    let in_query = form_urlencoded::parse(uri.query().unwrap_or_default().as_bytes());
    let in_query = in_query.map(|(key, _)| ("query", key));
    // That one is a field, or refused by those that have none.
    let in_header = headers.keys().filter(|name| *name != IDEMPOTENCY_KEY);
    let in_header = in_header.map(|name| ("header field", Cow::Borrowed(name.as_str())));
    for (place, written) in in_query.chain(in_header) {
        let right = match member(&written) {
            Some("idempotency_key") => key_place.to_owned(),
            Some(member) => format!("a member of the body, `\"{member}\"`"),
            None => continue,
        };
        return Err(ApiError::new(
            ErrorCode::BadRequest,
            format!("The {place} `{written}` would do nothing here: make it {right}. Nothing was published."),
        ));
    }
    Ok(())
}

/// Returns the member that a parameter or a header field means, in any case, with dashes for its underscores,
/// and perhaps an `X-` before it.
fn member(written: &str) -> Option<&'static str> {
    let name = match written.split_at_checked(2) {
        Some((before, name)) if before.eq_ignore_ascii_case("x-") => name,
        _ => written,
    };
    let is = |member: &str| {
        let letters = name.bytes().map(|byte| if byte == b'-' { b'_' } else { byte.to_ascii_lowercase() });
        letters.eq(member.bytes())
    };
    MEMBERS
        .into_iter()
        .find(|member| is(member))
        .or_else(|| other_spelling(name).filter(|right| *right == "channel"))
}

/// Data that is JSON, and that clients could not read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UnreadableData {
    /// An escape that is no character.
    #[error(
        "the data is wrong: half a surrogate pair is no character: write both halves, as in \"\\ud83d\\ude00\", or the \
         character itself ({0} of the data)"
    )]
    Surrogate(serde_json::Error),
    /// Arrays and objects in each other.
    #[error("the data is wrong: arrays and objects may be at most 127 deep in each other ({0} of the data)")]
    TooDeep(serde_json::Error),
    /// A number without a value.
    #[error("the data is wrong: no double can hold the number: send it as a string ({0} of the data)")]
    TooLarge(serde_json::Error),
    /// Something else.
    #[error("the data is wrong: {0}")]
    Other(serde_json::Error),
}

/// Checks that clients can read this JSON. It was not looked into when the body was read, and may have half a
/// surrogate pair, or a thousand arrays in each other.
///
/// # Errors
/// When most parsers of clients would refuse it, or make something else of it.
pub(crate) fn check_data(data: &RawValue) -> Result<(), UnreadableData> {
    serde_json::from_str::<serde_json::Value>(data.get()).map(drop).map_err(|error| {
        let text = error.to_string();
        if text.contains("hex escape") {
            UnreadableData::Surrogate(error)
        } else if text.starts_with("recursion limit") {
            UnreadableData::TooDeep(error)
        } else if text.starts_with("number out of range") {
            UnreadableData::TooLarge(error)
        } else {
            UnreadableData::Other(error)
        }
    })
}

/// Returns the error for a body that is not what it must be.
pub(crate) fn bad_body(shape: &str, what: &dyn Display) -> ApiError {
    ApiError::new(ErrorCode::BadRequest, format!("The body must be {shape}: {what}."))
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
