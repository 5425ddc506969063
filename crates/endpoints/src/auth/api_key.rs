//! Which callers may use `/api/`: with an API key, or from this machine.

use std::net::IpAddr;

use axum::http::{HeaderMap, header::AUTHORIZATION};
use lastcall_core::ApiKey;
use subtle::{Choice, ConstantTimeEq};

use crate::{
    auth::{forwarded::is_forwarded, own_hosts::OwnHosts},
    error::{ApiError, ErrorCode},
    target::Target,
};

/// The origin of a connection: true if it comes from this machine: both of its ends have a loopback address. A request on it may
/// still have been forwarded; what forwards bytes and adds no header field cannot be told from a program here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FromThisMachine(pub(crate) bool);

impl FromThisMachine {
    /// `local` is the server's end, if the system says which it is.
    pub(crate) fn of(peer: IpAddr, local: Option<IpAddr>) -> Self {
        Self([Some(peer), local].iter().all(|end| end.is_some_and(|ip| ip.to_canonical().is_loopback())))
    }
}

/// Lets a caller through that has one of `keys`; without keys, one that calls from this machine by one of the
/// server's own names.
pub(crate) fn check(
    keys: &[ApiKey],
    own_hosts: &OwnHosts,
    from_this_machine: FromThisMachine,
    headers: &HeaderMap,
    target: &Target,
) -> Result<(), ApiError> {
    if keys.is_empty() {
        check_loopback(from_this_machine, headers)?;
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

fn check_loopback(from_this_machine: FromThisMachine, headers: &HeaderMap) -> Result<(), ApiError> {
    if from_this_machine.0 && !is_forwarded(headers) {
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
    use lastcall_core::AllowedOrigins;

    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
    }

    fn status(keys: &[&str], peer: &str, sent: &[(&'static str, &'static str)]) -> u16 {
        let keys: Vec<_> = keys.iter().map(|key| ApiKey::new(*key)).collect();
        let own_hosts = OwnHosts::new(&"127.0.0.1".parse().unwrap(), &AllowedOrigins::SameHost);
        let host = sent.iter().find(|(name, _)| *name == "host").map(|(_, host)| host.parse().unwrap());
        let here = FromThisMachine(peer == "here");
        match check(&keys, &own_hosts, here, &headers(sent), &Target(host)) {
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
