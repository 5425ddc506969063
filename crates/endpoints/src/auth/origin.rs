//! Web pages that may connect and publish: browsers let any page try (RFC 6455 section 10.2).

use axum::http::{HeaderMap, HeaderValue, header::ORIGIN};
use lastcall_core::{AllowedOrigins, Authority};

use crate::{
    error::{ApiError, ErrorCode},
    request::RequestHost,
};

/// Refuses a request whose `Origin` is not allowed. A request without one does not come from a browser's
/// page.
pub(crate) fn check(
    allowed: &AllowedOrigins,
    headers: &HeaderMap,
    host: &RequestHost,
) -> Result<(), ApiError> {
    match headers.get(ORIGIN) {
        Some(origin) if !allowed.include(text(origin), host.0.as_ref()) => Err(not_allowed(origin, host)),
        _ => Ok(()),
    }
}

/// Returns the text of an `Origin`; one that is not ASCII is that of no page, as no text is.
pub(crate) fn text(origin: &HeaderValue) -> &str {
    origin.to_str().unwrap_or_default()
}

/// Returns the error for a page of this origin: why it is refused, and what to do about it.
fn not_allowed(origin: &HeaderValue, host: &RequestHost) -> ApiError {
    let origin = String::from_utf8_lossy(origin.as_bytes());
    if origin == "null" || origin.to_ascii_lowercase().starts_with("file:") {
        let message = format!(
            "The page has no origin of its own (`Origin: {origin}`): it was opened from a file, or is in a sandboxed \
             frame. Serve it over HTTP, and add where it comes from to `allowed_origins` on the server."
        );
        return ApiError::new(ErrorCode::OriginNotAllowed, message);
    }
    let named = match host {
        RequestHost(Some(Authority { host, port: Some(port) })) => format!("`{host}:{port}`"),
        RequestHost(Some(Authority { host, port: None })) => format!("`{host}`"),
        RequestHost(None) => "no host".to_owned(),
    };
    let message = format!(
        "Pages of `{origin}` may not connect or publish here, where the request names {named}: add the origin to \
         `allowed_origins` on the server."
    );
    ApiError::new(ErrorCode::OriginNotAllowed, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_without_an_origin_or_without_a_host() {
        let same = AllowedOrigins::SameHost;
        assert!(check(&same, &HeaderMap::new(), &RequestHost(None)).is_ok(), "not a browser");
        let headers = HeaderMap::from_iter([(ORIGIN, HeaderValue::from_static("http://localhost"))]);
        assert!(check(&same, &headers, &RequestHost(None)).is_err());
        let headers =
            HeaderMap::from_iter([(ORIGIN, HeaderValue::from_bytes(b"https://\xe4.example").unwrap())]);
        assert!(check(&same, &headers, &RequestHost(None)).is_err());
        assert!(check(&AllowedOrigins::Any, &headers, &RequestHost(None)).is_ok());
    }
}
