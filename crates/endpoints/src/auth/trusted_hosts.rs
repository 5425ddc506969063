//! The names of the server where a call from this machine is trusted for that alone. Any domain name can be
//! pointed at 127.0.0.1: the browser then takes the server for the host of their page (DNS rebinding).

use axum::http::{HeaderMap, header::ORIGIN};
use lastcall_core::{AllowedOrigins, Host};

use crate::{
    error::{ApiError, ErrorCode},
    request::{ListensOnLoopback, RequestHost},
};

/// The names that are the server's own, besides `localhost`. An address is always right: to say it, a page must
/// have come from it.
#[derive(Debug)]
pub(crate) struct TrustedHosts {
    any: bool,
    listed: Vec<Host>,
}

impl TrustedHosts {
    /// `host` is the one that the server was asked to listen on.
    pub(crate) fn new(host: &Host, allowed: &AllowedOrigins) -> Self {
        let listed = allowed.hosts().chain([host]).cloned().collect();
        Self { any: matches!(allowed, AllowedOrigins::Any), listed }
    }

    fn include(&self, host: &Host) -> bool {
        let Host::Name(name) = host else { return true };
        // `localhost.` is the same name, and all below it are this machine (RFC 6761 section 6.3).
        let name = name.strip_suffix('.').unwrap_or(name);
        self.any || name == "localhost" || name.ends_with(".localhost") || self.listed.contains(host)
    }

    /// Lets a request through that names one of the server's own hosts, or none, as no browser does.
    pub(crate) fn check(&self, host: &RequestHost) -> Result<(), ApiError> {
        match &host.0 {
            Some(named) if !self.include(&named.host) => Err(ApiError::new(
                ErrorCode::HostNotAllowed,
                format!(
                    "The request is for the host `{}`, which may be any web page's name for this machine. Use an \
                     address or `localhost`; or on the server, list the origin of that host in `allowed_origins`, as \
                     is needed behind a proxy on the same machine, or set `host` to the name, or set `api_keys` for \
                     `/api/`.",
                    named.host
                ),
            )),
            _ => Ok(()),
        }
    }

    /// The same for a handshake at `/ws`. One without an `Origin` is no page's: browsers have it in every handshake, and
    /// no page can remove or change it (it is a forbidden request-header of the Fetch Standard, section 2.2.2, as `Host` is).
    pub(crate) fn check_websocket(
        &self,
        allowed: &AllowedOrigins,
        on_loopback: ListensOnLoopback,
        headers: &HeaderMap,
        host: &RequestHost,
    ) -> Result<(), ApiError> {
        if headers.contains_key(ORIGIN) {
            return self.check_page(allowed, on_loopback, headers, host);
        }
        Ok(())
    }

    /// The same for a request that may come from a page of the host that it names without saying so, as browsers have no
    /// `Origin` in a `GET` of the page's own host. That host is no proof if only this machine can connect, whatever
    /// other fields say.
    pub(crate) fn check_page(
        &self,
        allowed: &AllowedOrigins,
        on_loopback: ListensOnLoopback,
        headers: &HeaderMap,
        host: &RequestHost,
    ) -> Result<(), ApiError> {
        let is_listed = headers.contains_key(ORIGIN) && matches!(allowed, AllowedOrigins::List(_));
        if on_loopback.0 && !is_listed {
            return self.check(host);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(host: &str) -> RequestHost {
        RequestHost(Some(host.parse().unwrap()))
    }

    #[test]
    fn addresses_localhost_and_what_the_settings_name_are_the_servers_own() {
        let list = AllowedOrigins::List(vec!["https://app.example:8443".parse().unwrap()]);
        let own = TrustedHosts::new(&"Host.Example".parse().unwrap(), &list);
        for host in [
            "127.0.0.1:8000",
            "192.0.2.7",
            "[::1]:8000",
            "localhost",
            "LOCALHOST.:8000",
            "app.localhost:8000",
            "host.example:8000",
            "app.example",
        ] {
            assert!(own.check(&named(host)).is_ok(), "{host}");
        }
        for host in ["evil.example", "localhost.evil.example", "notlocalhost", "127.0.0.1.evil.example"] {
            assert!(own.check(&named(host)).is_err(), "{host}");
        }
        assert!(own.check(&RequestHost(None)).is_ok());
        assert!(
            TrustedHosts::new(&"[::1]".parse().unwrap(), &AllowedOrigins::Any)
                .check(&named("any.example"))
                .is_ok()
        );
        assert!(
            TrustedHosts::new(&"127.0.0.1".parse().unwrap(), &AllowedOrigins::SameHost)
                .check(&named("any.example"))
                .is_err()
        );
    }

    #[test]
    fn the_host_of_a_page_counts_where_loopback_is_the_only_proof() {
        let check = |allowed: &AllowedOrigins, on_loopback, fields: &[&'static str]| {
            let fields = fields.iter().map(|name| (name.parse().unwrap(), "x".parse().unwrap())).collect();
            let own = TrustedHosts::new(&"127.0.0.1".parse().unwrap(), allowed);
            let (on_loopback, host) = (ListensOnLoopback(on_loopback), named("evil.example"));
            let at_websocket = own.check_websocket(allowed, on_loopback, &fields, &host).is_ok();
            (at_websocket, own.check_page(allowed, on_loopback, &fields, &host).is_ok())
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
