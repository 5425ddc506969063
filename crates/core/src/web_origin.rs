//! Origins of web pages (RFC 6454), and which of them are allowed.

use std::str::FromStr;

use crate::authority::{Authority, Host};

/// The origin of a web page: where it came from. Two are equal if they mean the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WebOrigin {
    /// In lower case.
    scheme: String,
    host: Host,
    /// The scheme's own if the origin names none.
    port: Option<u16>,
}

/// The text is not an origin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a scheme, a host and maybe a port")]
pub struct InvalidWebOrigin;

impl FromStr for WebOrigin {
    type Err = InvalidWebOrigin;

    fn from_str(text: &str) -> Result<Self, InvalidWebOrigin> {
        let (scheme, authority) = text.split_once("://").ok_or(InvalidWebOrigin)?;
        // RFC 3986 section 3.1.
        let is_scheme = scheme.starts_with(|c: char| c.is_ascii_alphabetic())
            && scheme.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte));
        if !is_scheme {
            return Err(InvalidWebOrigin);
        }
        let scheme = scheme.to_ascii_lowercase();
        let Authority { host, port } = authority.parse().map_err(|_| InvalidWebOrigin)?;
        let port = port.or(match scheme.as_str() {
            "http" => Some(80),
            "https" => Some(443),
            _ => None,
        });
        Ok(Self { scheme, host, port })
    }
}

impl WebOrigin {
    /// Returns the host that the page came from.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// Returns true if the page came from where a request goes to. A proxy may have ended TLS, so the scheme
    /// of the page decides which port is meant when the target names none.
    fn is_at(&self, target: &Authority) -> bool {
        matches!(self.scheme.as_str(), "http" | "https")
            && self.host == target.host
            && (self.port == target.port || target.port.is_none() && self.has_default_port())
    }

    fn has_default_port(&self) -> bool {
        matches!((self.scheme.as_str(), self.port), ("http", Some(80)) | ("https", Some(443)))
    }
}

/// The web pages that may connect and publish.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AllowedOrigins {
    /// Only pages that this server's own host name served.
    SameHost,
    /// Every page.
    Any,
    /// Pages of these origins.
    List(Vec<WebOrigin>),
}

impl AllowedOrigins {
    /// Returns true if a page with this `Origin` is allowed. `target` is where its request goes to; `None` if
    /// the request does not say, or only a list decides.
    pub fn include(&self, origin: &str, target: Option<&Authority>) -> bool {
        let is = |matches: &dyn Fn(&WebOrigin) -> bool| origin.parse().is_ok_and(|origin| matches(&origin));
        match self {
            Self::Any => true,
            Self::List(list) => is(&|origin| list.contains(origin)),
            Self::SameHost => target.is_some_and(|target| is(&|origin| origin.is_at(target))),
        }
    }

    /// Returns the hosts of the origins that are listed.
    pub fn hosts(&self) -> impl Iterator<Item = &Host> {
        let list = match self {
            Self::List(list) => list.as_slice(),
            Self::SameHost | Self::Any => &[],
        };
        list.iter().map(WebOrigin::host)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowed(setting: &AllowedOrigins, origin: &str, host: &str) -> bool {
        setting.include(origin, Some(&host.parse().unwrap()))
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
            ("://localhost", "localhost"),
            ("null", "null"),
            ("file://", "localhost"),
            ("", "localhost"),
        ] {
            assert!(!same(origin, host), "{origin} at {host}");
        }
        assert!(!AllowedOrigins::SameHost.include("http://localhost", None));
    }

    #[test]
    fn a_listed_origin_is_compared_by_its_meaning() {
        let list = ["https://a.example", "https://b.example:8443", "http://[0::1]:3000", "app://x"];
        let list = AllowedOrigins::List(list.map(|origin| origin.parse().unwrap()).into());
        for origin in ["https://A.example", "https://a.example:443", "https://b.example:8443", "app://x"] {
            assert!(allowed(&list, origin, "x") && list.include(origin, None), "{origin}");
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
    fn what_is_no_origin_is_refused() {
        for text in [
            "",
            "null",
            "a.example",
            "https://",
            "https://a:b:80",
            "1a://x",
            "a b://x",
            "https://[1:2:3:4:5:6:7:8:9]",
        ] {
            assert_eq!(text.parse::<WebOrigin>(), Err(InvalidWebOrigin), "{text}");
        }
    }
}
