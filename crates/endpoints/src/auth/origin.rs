//! Which web pages may connect and publish: browsers let any page try (RFC 6455 section 10.2).

use std::str::FromStr;

use axum::http::{HeaderMap, HeaderValue, header::ORIGIN};
use lastcall_core::settings::AllowedOrigins;

use crate::{
    authority::{Authority, Host, Malformed},
    error::{ApiError, ErrorCode},
    target::Target,
};

/// The origin of a web page (RFC 6454).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct WebOrigin {
    /// In lower case.
    scheme: String,
    pub(crate) host: Host,
    /// The scheme's own if the origin names none.
    port: Option<u16>,
}

impl FromStr for WebOrigin {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        let (scheme, authority) = text.split_once("://").ok_or(Malformed)?;
        let scheme = scheme.to_ascii_lowercase();
        let Authority { host, port } = authority.parse()?;
        let port = port.or(match scheme.as_str() {
            "http" => Some(80),
            "https" => Some(443),
            _ => None,
        });
        Ok(Self { scheme, host, port })
    }
}

impl WebOrigin {
    /// Returns true if the page came from where the request goes to. A proxy may have ended TLS, so the scheme of the
    /// page decides which port is meant when the target names none.
    fn is_at(&self, target: &Authority) -> bool {
        matches!(self.scheme.as_str(), "http" | "https")
            && self.host == target.host
            && (self.port == target.port || target.port.is_none() && self.has_default_port())
    }

    fn has_default_port(&self) -> bool {
        matches!((self.scheme.as_str(), self.port), ("http", Some(80)) | ("https", Some(443)))
    }
}

/// The setting `allowed_origins`, ready to be compared with.
#[derive(Debug, Clone)]
pub(crate) enum Allowed {
    SameHost,
    Any,
    List(Vec<WebOrigin>),
}

impl From<&AllowedOrigins> for Allowed {
    fn from(setting: &AllowedOrigins) -> Self {
        match setting {
            AllowedOrigins::SameHost => Self::SameHost,
            AllowedOrigins::Any => Self::Any,
            // The settings have checked them. What is wrong all the same, such as an address of nine parts, is
            // the origin of no page.
            AllowedOrigins::List(list) => {
                Self::List(list.iter().filter_map(|origin| origin.parse().ok()).collect())
            }
        }
    }
}

impl Allowed {
    /// Returns true if pages with this `Origin` may connect and publish.
    pub(crate) fn includes(&self, origin: &HeaderValue, target: &Target) -> bool {
        if matches!(self, Self::Any) {
            return true;
        }
        let Some(origin) = origin.to_str().ok().and_then(|text| text.parse::<WebOrigin>().ok()) else {
            return false;
        };
        match self {
            Self::Any => true,
            Self::List(list) => list.contains(&origin),
            Self::SameHost => target.0.as_ref().is_some_and(|target| origin.is_at(target)),
        }
    }

    /// Refuses a request whose `Origin` is not allowed. A request without one does not come from a browser's page.
    pub(crate) fn check(&self, headers: &HeaderMap, target: &Target) -> Result<(), ApiError> {
        match headers.get(ORIGIN) {
            Some(origin) if !self.includes(origin, target) => {
                Err(ApiError::new(ErrorCode::OriginNotAllowed, refusal(origin, target)))
            }
            _ => Ok(()),
        }
    }
}

/// Returns why the page is refused, and what to do about it.
fn refusal(origin: &HeaderValue, target: &Target) -> String {
    let origin = String::from_utf8_lossy(origin.as_bytes());
    if origin == "null" || origin.to_ascii_lowercase().starts_with("file:") {
        return format!(
            "The page has no origin of its own (`Origin: {origin}`): it was opened from a file, or is in a sandboxed \
             frame. Serve it over HTTP, and add where it comes from to `allowed_origins` on the server."
        );
    }
    let target = match target {
        Target(Some(Authority { host, port: Some(port) })) => format!("`{host}:{port}`"),
        Target(Some(Authority { host, port: None })) => format!("`{host}`"),
        Target(None) => "no host".to_owned(),
    };
    format!(
        "Pages of `{origin}` may not connect or publish here, where the request names {target}: add the origin to \
         `allowed_origins` on the server."
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowed(setting: &AllowedOrigins, origin: &str, host: &str) -> bool {
        let target = Target(Some(host.parse().unwrap()));
        Allowed::from(setting).includes(&origin.parse().unwrap(), &target)
    }

    #[test]
    fn same_host_means_the_host_and_port_that_the_page_came_from() {
        let same = |origin, host| allowed(&AllowedOrigins::SameHost, origin, host);
        for (origin, host) in [
            ("http://localhost:8000", "localhost:8000"),
            ("https://example.org", "example.org"),
            ("https://example.org", "example.org:443"),
            ("https://example.org", "example.org:"),
            ("https://example.org:443", "example.org"),
            ("http://example.org", "example.org:80"),
            ("HTTPS://Example.org", "EXAMPLE.ORG"),
            ("http://[::1]:8000", "[0:0:0:0:0:0:0:1]:8000"),
            ("http://192.0.2.7", "192.0.2.7:80"),
            ("https://example.org.", "example.org."),
        ] {
            assert!(same(origin, host), "{origin} at {host}");
        }
        for (origin, host) in [
            ("http://localhost:9000", "localhost:8000"),
            ("http://localhost", "localhost:8000"),
            ("http://localhost:8000", "localhost"),
            ("https://example.org", "example.org:80"),
            ("http://example.org", "example.org:443"),
            ("http://example.org:443", "example.org"),
            ("http://evil.example", "example.org"),
            ("https://example.org.evil.example", "example.org"),
            ("https://example.org.", "example.org"),
            ("https://user@example.org", "example.org"),
            ("https://example.org/", "example.org"),
            ("https://example.org, https://example.org", "example.org"),
            ("capacitor://localhost", "localhost"),
            ("null", "null"),
            ("file://", "localhost"),
            ("", "localhost"),
        ] {
            assert!(!same(origin, host), "{origin} at {host}");
        }
    }

    #[test]
    fn a_listed_origin_is_compared_by_its_meaning() {
        let list = ["https://a.example", "https://b.example:8443", "http://[0::1]:3000", "app://x"];
        let list = AllowedOrigins::List(list.map(str::to_owned).into());
        for origin in ["https://A.example", "https://a.example:443", "https://b.example:8443", "app://x"] {
            assert!(allowed(&list, origin, "x"), "{origin}");
        }
        assert!(allowed(&list, "http://[::1]:3000", "x"));
        for origin in ["http://a.example", "https://b.example", "https://b.example:443", "app://x:1", "null"]
        {
            assert!(!allowed(&list, origin, "b.example"), "{origin}");
        }
        assert!(allowed(&AllowedOrigins::Any, "https://anyone.example", "x"));
        assert!(allowed(&AllowedOrigins::Any, "null", "x"));
    }

    #[test]
    fn a_request_without_an_origin_or_without_a_host() {
        let same = Allowed::SameHost;
        assert!(same.check(&HeaderMap::new(), &Target(None)).is_ok(), "not a browser");
        let headers = HeaderMap::from_iter([(ORIGIN, HeaderValue::from_static("http://localhost"))]);
        assert!(same.check(&headers, &Target(None)).is_err());
    }
}
