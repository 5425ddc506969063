//! Requests that a proxy has forwarded.

use axum::http::{
    HeaderMap,
    header::{FORWARDED, VIA},
};

/// Returns true if the header fields say that a proxy has forwarded the request. A proxy on this machine calls from
/// loopback, wherever the request came from.
pub(super) fn is_forwarded(headers: &HeaderMap) -> bool {
    headers.contains_key(FORWARDED)
        || headers.contains_key(VIA)
        || headers.keys().any(|name| name.as_str().starts_with("x-forwarded-") || name == "x-real-ip")
}
