//! Facts about a request that its handler needs, and requests that no handler may get.

use std::{borrow::Cow, convert::Infallible, net::IpAddr};

use axum::{
    extract::{FromRequestParts, Request},
    http::{
        Extensions, HeaderName, Version,
        header::{
            ACCESS_CONTROL_REQUEST_METHOD, AUTHORIZATION, CONNECTION, CONTENT_TYPE, HOST, ORIGIN,
            SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_VERSION, TRANSFER_ENCODING,
        },
        request::Parts,
    },
    response::{IntoResponse, Response},
};
use lastcall_core::Authority;

use crate::{
    error::{ApiError, ErrorCode},
    fields::{IDEMPOTENCY_KEY, list},
};

/// Most bytes of a query that has a position for each of its channels. A client that may subscribe must be
/// able to come back with what it knows then: the largest head of a request leaves room for that, and for
/// what else is in it.
pub(crate) const MAX_QUERY: usize = 16 << 10;

/// The fields that are read here and that a request must not have twice (RFC 9110 section 5.3): programs on
/// the way may have taken another one of them for the right one. `Content-Length` is up to hyper (RFC 9112
/// section 6.3).
const SINGLE: [HeaderName; 8] = [
    HOST,
    ORIGIN,
    AUTHORIZATION,
    CONTENT_TYPE,
    SEC_WEBSOCKET_KEY,
    SEC_WEBSOCKET_VERSION,
    ACCESS_CONTROL_REQUEST_METHOD,
    IDEMPOTENCY_KEY,
];

/// The host and port that a request is for; `None` if it does not say, as HTTP/1.0 need not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RequestHost(pub(crate) Option<Authority>);

impl<S: Sync> FromRequestParts<S> for RequestHost {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        Ok(Self::of_request(&parts.extensions))
    }
}

impl RequestHost {
    /// Returns the host of the request with these extensions.
    pub(crate) fn of_request(extensions: &Extensions) -> Self {
        // Absent only where `check` has not run, which is the same as unknown.
        extensions.get().cloned().unwrap_or(Self(None))
    }
}

/// True for a request whose connection comes from this machine: both of its ends have a loopback address. It
/// may still have been forwarded; what forwards bytes and adds no header field cannot be told from a program
/// here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FromThisMachine(pub(crate) bool);

impl FromThisMachine {
    /// Returns the fact for a connection from `peer`. `local` is the server's end, if the system says which
    /// it is.
    pub(crate) fn of(peer: IpAddr, local: Option<IpAddr>) -> Self {
        Self([Some(peer), local].iter().all(|end| end.is_some_and(|ip| ip.to_canonical().is_loopback())))
    }

    /// Returns the fact for the request with these extensions.
    pub(crate) fn of_request(extensions: &Extensions) -> Self {
        // The stricter of the two where nobody has said.
        extensions.get().copied().unwrap_or(Self(false))
    }
}

/// True if only this machine can connect to the server: it listens on loopback addresses alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ListensOnLoopback(pub(crate) bool);

/// Refuses a request whose fields contradict each other or the protocol, and tells the routes its
/// [`RequestHost`].
pub(crate) async fn check(mut request: Request) -> Result<Request, Response> {
    match host(&request) {
        Ok(host) => {
            request.extensions_mut().insert(host);
            Ok(request)
        }
        // Programs on the way may not agree on where its body ends.
        Err(error) if request.headers().contains_key(TRANSFER_ENCODING) => {
            Err(([(CONNECTION, "close")], error).into_response())
        }
        Err(error) => Err(error.into_response()),
    }
}

fn host(request: &Request) -> Result<RequestHost, ApiError> {
    let headers = request.headers();
    for name in &SINGLE {
        if headers.get_all(name).iter().nth(1).is_some() {
            return Err(bad_header(format!("The request has more than one `{name}`; send it once.")));
        }
    }
    if list(headers, &TRANSFER_ENCODING).any(|coding| !coding.eq_ignore_ascii_case(b"chunked")) {
        return Err(ApiError::new(
            ErrorCode::UnsupportedTransferEncoding,
            "Only the transfer coding `chunked` is understood; send the body without compression.",
        ));
    }
    // RFC 9112 section 6.1: a sender must not apply it more than once.
    if list(headers, &TRANSFER_ENCODING).count() > 1 {
        return Err(bad_header("The request has `Transfer-Encoding: chunked` more than once; send it once."));
    }
    let host = match headers.get(HOST) {
        // RFC 9112 section 3.2. HTTP/1.0 has no such field.
        None if request.version() >= Version::HTTP_11 => {
            return Err(bad_header("The request has no `Host`, which HTTP/1.1 requires."));
        }
        None => None,
        Some(host) => {
            let host = host.to_str().ok().and_then(|host| host.parse().ok());
            Some(host.ok_or_else(|| {
                bad_header(
                    "`Host` must be a host name or an address, and may have a port: `example.org:8000`.",
                )
            })?)
        }
    };
    // RFC 9112 section 3.2.2: what an absolute target names wins over `Host`.
    match request.uri().authority() {
        Some(authority) => authority.as_str().parse().map(|host| RequestHost(Some(host))).map_err(|_| {
            bad_header("The request's target must name a host, and may have a port, but no user.")
        }),
        None => Ok(RequestHost(host)),
    }
}

fn bad_header(message: impl Into<Cow<'static, str>>) -> ApiError {
    ApiError::new(ErrorCode::BadHeader, message)
}

#[cfg(test)]
mod tests {
    use axum::body::Body;

    use super::*;

    fn read(version: Version, uri: &str, fields: &[(&str, &str)]) -> Result<Option<String>, u16> {
        let mut request = Request::builder().version(version).uri(uri);
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        host(&request.body(Body::empty()).unwrap())
            .map(|host| host.0.map(|named| format!("{} {:?}", named.host, named.port)))
            .map_err(|error| error.into_response().status().as_u16())
    }

    #[test]
    fn the_host_is_that_of_an_absolute_form_or_else_of_host() {
        let v11 = |uri, fields: &[_]| read(Version::HTTP_11, uri, fields);
        assert_eq!(v11("/ws", &[("host", "Example.org:443")]), Ok(Some("example.org Some(443)".into())));
        let absolute = v11("http://a.example/ws", &[("host", "b.example:8000")]);
        assert_eq!(absolute, Ok(Some("a.example None".into())));
        assert_eq!(v11("http://user@a.example/ws", &[("host", "a.example")]), Err(400));
        assert_eq!(v11("http://a.example/ws", &[]), Err(400), "it must be there all the same");
        assert_eq!(v11("http://a.example/ws", &[("host", "b c")]), Err(400));
        assert_eq!(v11("/", &[("host", "")]), Err(400));
        assert_eq!(read(Version::HTTP_10, "/", &[]), Ok(None));
        assert_eq!(read(Version::HTTP_10, "/", &[("host", "a,b")]), Err(400));
    }

    #[test]
    fn a_field_that_must_be_single_is_refused_twice() {
        let host = ("host", "a.example");
        for name in SINGLE {
            let twice = [host, (name.as_str(), "a"), (name.as_str(), "a")];
            assert_eq!(read(Version::HTTP_11, "/", &twice), Err(400), "{name}");
        }
        let lists = [host, ("connection", "a"), ("connection", "b"), ("accept", "a"), ("accept", "b")];
        assert!(read(Version::HTTP_11, "/", &lists).is_ok());
    }

    #[test]
    fn a_transfer_coding_other_than_chunked_is_not_implemented() {
        let coded = |coding| read(Version::HTTP_11, "/", &[("host", "a"), ("transfer-encoding", coding)]);
        assert!(coded("Chunked").is_ok());
        assert_eq!(coded("gzip, chunked"), Err(501));
        assert_eq!(coded("chunked, chunked"), Err(400));
    }

    #[test]
    fn a_connection_comes_from_this_machine_if_both_of_its_ends_are_here() {
        let of = |peer: &str, local: &str| FromThisMachine::of(peer.parse().unwrap(), local.parse().ok()).0;
        for (peer, local) in [
            ("127.0.0.1", "127.0.0.1"),
            ("127.0.0.9", "127.0.0.1"),
            ("::1", "::1"),
            ("::ffff:127.0.0.1", "::ffff:127.0.0.1"),
        ] {
            assert!(of(peer, local), "{peer} {local}");
        }
        for (peer, local) in [
            ("192.0.2.7", "127.0.0.1"),
            ("127.0.0.1", "192.0.2.7"),
            ("127.0.0.1", "::ffff:192.0.2.7"),
            ("::1", "2001:db8::7"),
            ("127.0.0.1", "unknown"),
        ] {
            assert!(!of(peer, local), "{peer} {local}");
        }
    }
}
