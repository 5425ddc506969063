//! Callers of `/api/`: those with an API key; without keys, those on this machine.

use axum::{
    extract::{FromRef, FromRequestParts},
    http::{
        HeaderMap,
        header::{AUTHORIZATION, FORWARDED, VIA},
        request::Parts,
    },
};
use subtle::{Choice, ConstantTimeEq};

use super::{access_rules::AccessRules, origin};
use crate::{
    error::{ApiError, ErrorCode},
    request::{FromThisMachine, RequestHost},
};

/// Fields by which proxies and content delivery networks say that they have forwarded a request, besides
/// `Forwarded`, `Via` and those that begin with `X-Forwarded`.
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

/// The proof that a caller may use the API: a handler that takes one is called for nobody else.
#[derive(Debug)]
pub(crate) struct ApiCaller(());

impl<S: Sync> FromRequestParts<S> for ApiCaller
where
    AccessRules: FromRef<S>,
{
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let from_this_machine = FromThisMachine::of_request(&parts.extensions);
        let host = RequestHost::of_request(&parts.extensions);
        check(&AccessRules::from_ref(state), from_this_machine, &parts.headers, &host)?;
        Ok(Self(()))
    }
}

/// Lets a caller through that has one of the keys; without keys, one that calls from this machine by one of
/// the server's own names.
fn check(
    rules: &AccessRules,
    from_this_machine: FromThisMachine,
    headers: &HeaderMap,
    host: &RequestHost,
) -> Result<(), ApiError> {
    // A page of another host must not publish through a browser on this machine.
    origin::check(rules.allowed_origins(), headers, host)?;
    let keys = rules.api_keys();
    if keys.is_empty() {
        check_loopback(from_this_machine, headers)?;
        return rules.trusted_hosts().check(host);
    }
    let Some(sent) = bearer(headers) else {
        return Err(ApiError::new(
            ErrorCode::Unauthorized,
            "An API key is needed: send it as `Authorization: Bearer KEY`.",
        ));
    };
    // All are compared, whichever matches: the time taken tells nothing about the keys.
    let known = keys.iter().fold(Choice::from(0), |known, key| known | key.expose().as_bytes().ct_eq(sent));
    if known.into() {
        Ok(())
    } else {
        Err(ApiError::new(ErrorCode::Unauthorized, "This API key is not known here."))
    }
}

fn bearer(headers: &HeaderMap) -> Option<&[u8]> {
    let (scheme, key) = headers.get(AUTHORIZATION)?.as_bytes().split_at_checked(7)?;
    scheme.eq_ignore_ascii_case(b"Bearer ").then(|| key.trim_ascii())
}

fn check_loopback(from_this_machine: FromThisMachine, headers: &HeaderMap) -> Result<(), ApiError> {
    if from_this_machine.0 && !is_forwarded(headers) {
        return Ok(());
    }
    Err(ApiError::new(
        ErrorCode::LoopbackOnly,
        "Without API keys, only this machine itself may call: set `api_keys` on the server.",
    ))
}

/// Returns true if the header fields say that a proxy has forwarded the request. A proxy on this machine
/// calls from loopback, wherever the request came from.
///
/// That may only ever refuse a request: a page can set all of these fields but `Via` by itself, as they are
/// not among the forbidden request-headers of the Fetch Standard (section 2.2.2).
fn is_forwarded(headers: &HeaderMap) -> bool {
    headers.contains_key(FORWARDED)
        || headers.contains_key(VIA)
        || headers
            .keys()
            .map(|name| name.as_str())
            .any(|name| name.starts_with("x-forwarded") || OTHERS.contains(&name))
}

#[cfg(test)]
mod tests {
    use axum::response::IntoResponse;
    use lastcall_core::{AllowedOrigins, ApiKey};

    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
    }

    fn status(keys: &[&str], peer: &str, sent: &[(&'static str, &'static str)]) -> u16 {
        let keys: Vec<_> = keys.iter().map(|key| ApiKey::new(*key)).collect();
        let rules = AccessRules::new(&"127.0.0.1".parse().unwrap(), AllowedOrigins::SameHost, keys);
        let host = sent.iter().find(|(name, _)| *name == "host").map(|(_, host)| host.parse().unwrap());
        let here = FromThisMachine(peer == "here");
        match check(&rules, here, &headers(sent), &RequestHost(host)) {
            Ok(()) => 200,
            Err(error) => error.into_response().status().as_u16(),
        }
    }

    #[test]
    fn without_keys_only_this_machine_may_call() {
        assert_eq!(status(&[], "here", &[]), 200);
        assert_eq!(status(&[], "elsewhere", &[]), 403);
        for header in ["forwarded", "x-forwarded-for", "x-forwarded", "x-real-ip", "via", "cf-connecting-ip"]
        {
            assert_eq!(status(&[], "here", &[(header, "for=192.0.2.7")]), 403, "{header}");
        }
        assert_eq!(status(&[], "here", &[("host", "localhost:8000")]), 200);
        assert_eq!(status(&[], "here", &[("host", "evil.example:8000")]), 403);
        assert_eq!(status(&["first-key"], "here", &[("host", "evil.example")]), 401, "a key is proof");
    }

    #[test]
    fn calls_need_a_key_from_anywhere_if_keys_are_set() {
        let keys = ["first-key", "second-key"];
        assert_eq!(status(&keys, "here", &[]), 401);
        assert_eq!(status(&keys, "elsewhere", &[("authorization", "Bearer second-key")]), 200);
        assert_eq!(status(&keys, "elsewhere", &[("authorization", "bearer  first-key")]), 200);
        assert_eq!(status(&keys, "elsewhere", &[("authorization", "Bearer first-key2")]), 401);
        assert_eq!(status(&keys, "elsewhere", &[("authorization", "Basic first-key")]), 401);
        assert_eq!(status(&keys, "elsewhere", &[("authorization", "Bearer ")]), 401);
    }
}
