//! Which callers may use `/api/`: with an API key, or from this machine.

use std::net::SocketAddr;

use axum::http::{HeaderMap, header::AUTHORIZATION};
use lastcall_core::settings::ApiKey;
use subtle::{Choice, ConstantTimeEq};

use crate::{
    auth::{forwarded::is_forwarded, own_hosts::OwnHosts},
    error::{ApiError, ErrorCode},
    target::Target,
};

/// Lets a caller through that has one of `keys`; without keys, one that calls from this machine by one of the
/// server's own names.
pub(crate) fn check(
    keys: &[ApiKey],
    own_hosts: &OwnHosts,
    peer: SocketAddr,
    headers: &HeaderMap,
    target: &Target,
) -> Result<(), ApiError> {
    if keys.is_empty() {
        check_loopback(peer, headers)?;
        return own_hosts.check(target);
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

fn check_loopback(peer: SocketAddr, headers: &HeaderMap) -> Result<(), ApiError> {
    if peer.ip().to_canonical().is_loopback() && !is_forwarded(headers) {
        return Ok(());
    }
    Err(ApiError::new(
        ErrorCode::LoopbackOnly,
        "Without API keys, only this machine itself may call: set `api_keys` on the server.",
    ))
}

#[cfg(test)]
mod tests {
    use axum::response::IntoResponse;

    use super::*;
    use crate::auth::origin::Allowed;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
    }

    fn status(keys: &[&str], peer: &str, sent: &[(&'static str, &'static str)]) -> u16 {
        let keys: Vec<_> = keys.iter().map(|key| ApiKey::new(*key)).collect();
        let own_hosts = OwnHosts::new("127.0.0.1", &Allowed::SameHost);
        let host = sent.iter().find(|(name, _)| *name == "host").map(|(_, host)| host.parse().unwrap());
        match check(&keys, &own_hosts, peer.parse().unwrap(), &headers(sent), &Target(host)) {
            Ok(()) => 200,
            Err(error) => error.into_response().status().as_u16(),
        }
    }

    #[test]
    fn without_keys_only_this_machine_may_call() {
        assert_eq!(status(&[], "127.0.0.1:5", &[]), 200);
        assert_eq!(status(&[], "[::1]:5", &[]), 200);
        assert_eq!(status(&[], "[::ffff:127.0.0.1]:5", &[]), 200);
        assert_eq!(status(&[], "192.0.2.7:5", &[]), 403);
        for header in ["forwarded", "x-forwarded-for", "x-real-ip", "via"] {
            assert_eq!(status(&[], "127.0.0.1:5", &[(header, "for=192.0.2.7")]), 403, "{header}");
        }
        assert_eq!(status(&[], "127.0.0.1:5", &[("host", "localhost:8000")]), 200);
        assert_eq!(status(&[], "127.0.0.1:5", &[("host", "evil.example:8000")]), 403);
        assert_eq!(status(&["first-key"], "127.0.0.1:5", &[("host", "evil.example")]), 401, "a key is proof");
    }

    #[test]
    fn calls_need_a_key_from_anywhere_if_keys_are_set() {
        let keys = ["first-key", "second-key"];
        assert_eq!(status(&keys, "127.0.0.1:5", &[]), 401);
        assert_eq!(status(&keys, "192.0.2.7:5", &[("authorization", "Bearer second-key")]), 200);
        assert_eq!(status(&keys, "192.0.2.7:5", &[("authorization", "bearer  first-key")]), 200);
        assert_eq!(status(&keys, "192.0.2.7:5", &[("authorization", "Bearer first-key2")]), 401);
        assert_eq!(status(&keys, "192.0.2.7:5", &[("authorization", "Basic first-key")]), 401);
        assert_eq!(status(&keys, "192.0.2.7:5", &[("authorization", "Bearer ")]), 401);
    }
}
