//! Errors as callers see them: `{"error":{"code","message"}}`, and the status that goes with each code.

use std::borrow::Cow;

use axum::{
    Json,
    http::{
        HeaderValue, StatusCode,
        header::{ACCEPT, ACCEPT_ENCODING, RETRY_AFTER, WWW_AUTHENTICATE},
    },
    response::{IntoResponse, Response},
};
use lastcall_websockets::AdmitError;
use serde::Serialize;
use serde_json::json;

/// Seconds after which a refused client may try again: roughly the time that a restart takes, and enough for
/// load balancers to notice.
pub(crate) const RETRY_AFTER_SECONDS: u64 = 5;

/// The kind of an error, for programs. Stable: part of the public contract (`docs/protocol.md`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ErrorCode {
    BadChannel,
    BadHandshake,
    BadHeader,
    BadRequest,
    Closing,
    Draining,
    Full,
    HostNotAllowed,
    LoopbackOnly,
    MethodNotAllowed,
    NotFound,
    OriginNotAllowed,
    OutcomeUnknown,
    Overloaded,
    PayloadTooLarge,
    RequestTimeout,
    Unauthorized,
    Unavailable,
    UnknownChannel,
    UnsupportedContentEncoding,
    UnsupportedMediaType,
    UnsupportedTransferEncoding,
    UpgradeRequired,
}

impl ErrorCode {
    /// Every code, in the order of their names.
    pub(crate) const ALL: [Self; 23] = [
        Self::BadChannel,
        Self::BadHandshake,
        Self::BadHeader,
        Self::BadRequest,
        Self::Closing,
        Self::Draining,
        Self::Full,
        Self::HostNotAllowed,
        Self::LoopbackOnly,
        Self::MethodNotAllowed,
        Self::NotFound,
        Self::OriginNotAllowed,
        Self::OutcomeUnknown,
        Self::Overloaded,
        Self::PayloadTooLarge,
        Self::RequestTimeout,
        Self::Unauthorized,
        Self::Unavailable,
        Self::UnknownChannel,
        Self::UnsupportedContentEncoding,
        Self::UnsupportedMediaType,
        Self::UnsupportedTransferEncoding,
        Self::UpgradeRequired,
    ];

    /// Returns the code as callers see it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::BadChannel => "bad_channel",
            Self::BadHandshake => "bad_handshake",
            Self::BadHeader => "bad_header",
            Self::BadRequest => "bad_request",
            Self::Closing => "closing",
            Self::Draining => "draining",
            Self::Full => "full",
            Self::HostNotAllowed => "host_not_allowed",
            Self::LoopbackOnly => "loopback_only",
            Self::MethodNotAllowed => "method_not_allowed",
            Self::NotFound => "not_found",
            Self::OriginNotAllowed => "origin_not_allowed",
            Self::OutcomeUnknown => "outcome_unknown",
            Self::Overloaded => "overloaded",
            Self::PayloadTooLarge => "payload_too_large",
            Self::RequestTimeout => "request_timeout",
            Self::Unauthorized => "unauthorized",
            Self::Unavailable => "unavailable",
            Self::UnknownChannel => "unknown_channel",
            Self::UnsupportedContentEncoding => "unsupported_content_encoding",
            Self::UnsupportedMediaType => "unsupported_media_type",
            Self::UnsupportedTransferEncoding => "unsupported_transfer_encoding",
            Self::UpgradeRequired => "upgrade_required",
        }
    }

    fn status(self) -> StatusCode {
        match self {
            Self::BadChannel | Self::BadHandshake | Self::BadHeader | Self::BadRequest => {
                StatusCode::BAD_REQUEST
            }
            Self::Unauthorized => StatusCode::UNAUTHORIZED,
            Self::HostNotAllowed | Self::LoopbackOnly | Self::OriginNotAllowed => StatusCode::FORBIDDEN,
            Self::NotFound | Self::UnknownChannel => StatusCode::NOT_FOUND,
            Self::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Self::RequestTimeout => StatusCode::REQUEST_TIMEOUT,
            Self::PayloadTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::UnsupportedContentEncoding | Self::UnsupportedMediaType => {
                StatusCode::UNSUPPORTED_MEDIA_TYPE
            }
            // RFC 9112 section 6.1 asks for it.
            Self::UnsupportedTransferEncoding => StatusCode::NOT_IMPLEMENTED,
            Self::UpgradeRequired => StatusCode::UPGRADE_REQUIRED,
            Self::Closing
            | Self::Draining
            | Self::Full
            | Self::OutcomeUnknown
            | Self::Overloaded
            | Self::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        }
    }
}

/// An error response. The response has it as an extension, too: what was refused is counted and logged.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct ApiError {
    code: ErrorCode,
    message: Cow<'static, str>,
}

#[derive(Serialize)]
struct Body<'a> {
    error: &'a ApiError,
}

impl ApiError {
    /// Returns an error. `message` is for people: what was wrong, and what would be right.
    pub(crate) fn new(code: ErrorCode, message: impl Into<Cow<'static, str>>) -> Self {
        Self { code, message: message.into() }
    }

    /// Returns the error as the body of a response.
    pub(crate) fn json_body(&self) -> String {
        json!(Body { error: self }).to_string()
    }

    /// Returns the error as a server-sent event, with the time after which the client may come back. Its
    /// response must be a 200: after any other status, an `EventSource` never tries again.
    pub(crate) fn event(&self) -> String {
        let message = json!({"type": "error", "code": self.code, "message": self.message});
        let retry = RETRY_AFTER_SECONDS * 1000;
        format!("retry: {retry}\nevent: error\ndata: {message}\n\n")
    }

    /// Returns the error with the part of the request that it is about.
    pub(crate) fn within(self, part: &str) -> Self {
        Self { message: format!("{part}: {}", self.message).into(), ..self }
    }

    pub(crate) fn code(&self) -> ErrorCode {
        self.code
    }

    pub(crate) fn shared_message(&self) -> Cow<'static, str> {
        self.message.clone()
    }
}

impl From<AdmitError> for ApiError {
    fn from(error: AdmitError) -> Self {
        match error {
            AdmitError::Draining => Self::new(
                ErrorCode::Draining,
                "The server is shutting down and takes no new clients; try again soon.",
            ),
            AdmitError::Full => {
                Self::new(ErrorCode::Full, "The server has as many clients as it may; try again later.")
            }
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let body = Body { error: &self };
        self.clone().into_response_with(&body)
    }
}

impl ApiError {
    /// Returns the response, with this body.
    pub(crate) fn into_response_with(self, body: &impl Serialize) -> Response {
        let status = self.code.status();
        let mut response = (status, Json(body)).into_response();
        let headers = response.headers_mut();
        match (status, self.code) {
            (StatusCode::SERVICE_UNAVAILABLE, _) => {
                headers.insert(RETRY_AFTER, HeaderValue::from(RETRY_AFTER_SECONDS));
            }
            // RFC 9110 sections 15.5.2 and 15.5.16 ask for these.
            (StatusCode::UNAUTHORIZED, _) => {
                headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            }
            (_, ErrorCode::UnsupportedContentEncoding) => {
                headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
            }
            (_, ErrorCode::UnsupportedMediaType) => {
                headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
            }
            _ => {}
        }
        response.extensions_mut().insert(self);
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_has_the_same_name_everywhere_and_all_are_listed() {
        for code in ErrorCode::ALL {
            assert_eq!(serde_json::to_value(code).unwrap(), code.name());
        }
        let protocol = include_str!("../../../docs/protocol.md");
        let listed = protocol.lines().filter(|line| {
            let cells: Vec<_> = line.split('|').map(str::trim).collect();
            cells.len() == 5 && cells[1].parse::<u16>().is_ok()
        });
        let mut listed: Vec<_> = listed.filter_map(|line| line.split('`').nth(1)).collect();
        listed.sort_unstable();
        assert_eq!(listed, ErrorCode::ALL.map(ErrorCode::name));
    }
}
