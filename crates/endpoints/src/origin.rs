//! Which web pages may open a WebSocket: browsers let any page try (RFC 6455 §10.2).

use axum::http::{
    HeaderMap,
    header::{HOST, ORIGIN},
};
use lastcall_core::settings::AllowedOrigins;

use crate::error::{ApiError, ErrorCode};

/// Lets a request through whose `Origin` is allowed, or that has none: then it is no browser's.
pub(crate) fn check(allowed: &AllowedOrigins, headers: &HeaderMap) -> Result<(), ApiError> {
    let Some(origin) = headers.get(ORIGIN) else { return Ok(()) };
    let origin = origin.to_str().unwrap_or("");
    let ok = match allowed {
        AllowedOrigins::Any => true,
        AllowedOrigins::List(list) => list.iter().any(|one| one.eq_ignore_ascii_case(origin)),
        AllowedOrigins::SameHost => {
            let host = headers.get(HOST).and_then(|host| host.to_str().ok());
            let from = origin.split_once("://").map(|(_, authority)| authority);
            matches!((host, from), (Some(host), Some(from)) if host.eq_ignore_ascii_case(from))
        }
    };
    if ok {
        return Ok(());
    }
    Err(ApiError::new(
        ErrorCode::OriginNotAllowed,
        "Pages of this origin may not connect: add it to `allowed_origins` on the server.",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowed(allowed: &AllowedOrigins, origin: Option<&str>, host: &str) -> bool {
        let mut headers = HeaderMap::new();
        headers.insert(HOST, host.parse().unwrap());
        if let Some(origin) = origin {
            headers.insert(ORIGIN, origin.parse().unwrap());
        }
        check(allowed, &headers).is_ok()
    }

    #[test]
    fn same_host_means_the_name_and_port_that_the_page_came_from() {
        let same = AllowedOrigins::SameHost;
        assert!(allowed(&same, Some("http://localhost:8000"), "localhost:8000"));
        assert!(allowed(&same, Some("https://Example.org"), "example.org"), "behind a proxy that ends TLS");
        assert!(!allowed(&same, Some("http://localhost:9000"), "localhost:8000"));
        assert!(!allowed(&same, Some("http://evil.example"), "example.org"));
        assert!(!allowed(&same, Some("null"), "null"), "a sandboxed page has the origin null");
        assert!(allowed(&same, None, "localhost:8000"), "no browser");
    }

    #[test]
    fn a_list_and_a_star() {
        let list = AllowedOrigins::List(vec!["https://a.example".into(), "https://b.example:8443".into()]);
        assert!(allowed(&list, Some("https://b.example:8443"), "x"));
        assert!(!allowed(&list, Some("https://b.example"), "b.example"));
        assert!(allowed(&AllowedOrigins::Any, Some("https://anyone.example"), "x"));
    }
}
