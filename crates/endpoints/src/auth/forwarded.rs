//! Requests that a proxy has forwarded.

use axum::http::{
    HeaderMap,
    header::{FORWARDED, VIA},
};

/// Fields by which proxies and content delivery networks say that they have forwarded a request, besides `Forwarded`,
/// `Via` and those that begin with `X-Forwarded`.
const OTHERS: [&str; 8] = [
    "x-real-ip",
    "x-client-ip",
    "x-cluster-client-ip",
    "x-envoy-external-address",
    "true-client-ip",
    "cf-connecting-ip",
    "fastly-client-ip",
    "cdn-loop",
];

/// Returns true if the header fields say that a proxy has forwarded the request. A proxy on this machine calls from
/// loopback, wherever the request came from.
///
/// That may only ever refuse a request: a page can set all of these fields but `Via` by itself, as they are not among the
/// forbidden request-headers of the Fetch Standard (section 2.2.2).
pub(super) fn is_forwarded(headers: &HeaderMap) -> bool {
    headers.contains_key(FORWARDED)
        || headers.contains_key(VIA)
        || headers
            .keys()
            .map(|name| name.as_str())
            .any(|name| name.starts_with("x-forwarded") || OTHERS.contains(&name))
}
