//! The rules by which callers of the API and web pages are let in.

use std::sync::Arc;

use axum::http::{HeaderMap, header::ORIGIN};
use lastcall_core::{AllowedOrigins, ApiKey, Host};

use super::{origin, trusted_hosts::TrustedHosts};
use crate::{
    error::ApiError,
    request::{ListensOnLoopback, RequestHost},
};

/// The settings about access. Clones share them.
#[derive(Debug, Clone)]
pub(crate) struct AccessRules(Arc<Rules>);

#[derive(Debug)]
struct Rules {
    allowed_origins: AllowedOrigins,
    trusted_hosts: TrustedHosts,
    api_keys: Vec<ApiKey>,
}

impl AccessRules {
    /// Makes the rules. `host` is the one that the server was asked to listen on.
    pub(crate) fn new(host: &Host, allowed_origins: AllowedOrigins, api_keys: Vec<ApiKey>) -> Self {
        let trusted_hosts = TrustedHosts::new(host, &allowed_origins);
        Self(Arc::new(Rules { allowed_origins, trusted_hosts, api_keys }))
    }

    pub(crate) fn allowed_origins(&self) -> &AllowedOrigins {
        &self.0.allowed_origins
    }

    pub(super) fn trusted_hosts(&self) -> &TrustedHosts {
        &self.0.trusted_hosts
    }

    pub(super) fn api_keys(&self) -> &[ApiKey] {
        &self.0.api_keys
    }

    /// Checks a handshake at `/ws`.
    ///
    /// # Errors
    /// When it comes from a page that may not connect.
    pub(crate) fn check_websocket(
        &self,
        listens_on_loopback: ListensOnLoopback,
        headers: &HeaderMap,
        host: &RequestHost,
    ) -> Result<(), ApiError> {
        origin::check(&self.0.allowed_origins, headers, host)?;
        self.check_host_of_handshake(listens_on_loopback, headers, host)
    }

    /// Checks a request for events.
    ///
    /// # Errors
    /// When it comes from a page that may not have them.
    pub(crate) fn check_events(
        &self,
        listens_on_loopback: ListensOnLoopback,
        headers: &HeaderMap,
        host: &RequestHost,
    ) -> Result<(), ApiError> {
        origin::check(&self.0.allowed_origins, headers, host)?;
        self.check_host_of_page(listens_on_loopback, headers, host)
    }

    /// Checks the host of a handshake. One without an `Origin` is no page's: browsers have it in every
    /// handshake, and no page can remove or change it (it is a forbidden request-header of the Fetch
    /// Standard, section 2.2.2, as `Host` is).
    fn check_host_of_handshake(
        &self,
        listens_on_loopback: ListensOnLoopback,
        headers: &HeaderMap,
        host: &RequestHost,
    ) -> Result<(), ApiError> {
        if headers.contains_key(ORIGIN) {
            return self.check_host_of_page(listens_on_loopback, headers, host);
        }
        Ok(())
    }

    /// Checks the host of a request that may come from a page of that host without saying so, as browsers
    /// have no `Origin` in a `GET` of the page's own host. Anyone can choose a host name (DNS
    /// rebinding), so where only this machine can connect, it must be one of ours, whatever other fields say.
    fn check_host_of_page(
        &self,
        listens_on_loopback: ListensOnLoopback,
        headers: &HeaderMap,
        host: &RequestHost,
    ) -> Result<(), ApiError> {
        let is_listed =
            headers.contains_key(ORIGIN) && matches!(self.0.allowed_origins, AllowedOrigins::List(_));
        if listens_on_loopback.0 && !is_listed {
            return self.0.trusted_hosts.check(host);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_of_a_page_counts_where_loopback_is_the_only_proof() {
        let check = |allowed: &AllowedOrigins, on_loopback, fields: &[&'static str]| {
            let fields = fields.iter().map(|name| (name.parse().unwrap(), "x".parse().unwrap())).collect();
            let rules = AccessRules::new(&"127.0.0.1".parse().unwrap(), allowed.clone(), Vec::new());
            let on_loopback = ListensOnLoopback(on_loopback);
            let host = RequestHost(Some("evil.example".parse().unwrap()));
            let at_websocket = rules.check_host_of_handshake(on_loopback, &fields, &host).is_ok();
            (at_websocket, rules.check_host_of_page(on_loopback, &fields, &host).is_ok())
        };
        let list = AllowedOrigins::List(vec!["https://app.example".parse().unwrap()]);
        let same_host = AllowedOrigins::SameHost;
        assert_eq!(check(&same_host, true, &["origin"]), (false, false));
        assert_eq!(check(&same_host, true, &[]), (true, false), "a page's only if it is no handshake");
        assert_eq!(check(&same_host, false, &["origin"]), (true, true), "the network can connect as well");
        for field in ["x-forwarded-for", "x-real-ip", "forwarded", "via"] {
            assert_eq!(check(&same_host, true, &["origin", field]), (false, false), "{field} proves nothing");
            assert_eq!(check(&same_host, true, &[field]), (true, false), "{field} proves nothing");
            assert_eq!(check(&list, true, &[field]), (true, false), "{field} proves nothing");
        }
        assert_eq!(check(&list, true, &["origin"]), (true, true), "the list is the proof");
        assert_eq!(check(&list, true, &[]), (true, false), "a GET of the page's own host");
        assert_eq!(check(&AllowedOrigins::Any, true, &["origin"]), (true, true));
        assert_eq!(check(&AllowedOrigins::Any, true, &[]), (true, true));
    }
}
