//! Callers of `/api/`: those with an API key, or those on this machine.

use axum::http::{HeaderMap, header::AUTHORIZATION};
use lastcall_core::ApiKey;
use subtle::{Choice, ConstantTimeEq};

use crate::{
    auth::{forwarded::is_forwarded, trusted_hosts::TrustedHosts},
    error::{ApiError, ErrorCode},
    request::{FromThisMachine, RequestHost},
};

/// Lets a caller through that has one of `keys`; without keys, one that calls from this machine by one of the
/// server's own names.
pub(crate) fn check(
    keys: &[ApiKey],
    trusted_hosts: &TrustedHosts,
    from_this_machine: FromThisMachine,
    headers: &HeaderMap,
    host: &RequestHost,
) -> Result<(), ApiError> {
    if keys.is_empty() {
        check_loopback(from_this_machine, headers)?;
        return trusted_hosts.check(host);
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
        let trusted_hosts = TrustedHosts::new(&"127.0.0.1".parse().unwrap(), &AllowedOrigins::SameHost);
        let host = sent.iter().find(|(name, _)| *name == "host").map(|(_, host)| host.parse().unwrap());
        let here = FromThisMachine(peer == "here");
        match check(&keys, &trusted_hosts, here, &headers(sent), &RequestHost(host)) {
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
