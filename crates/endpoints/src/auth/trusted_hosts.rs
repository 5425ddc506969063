//! The names of the server where a call from this machine is trusted for that alone. Any domain name can be
//! pointed at 127.0.0.1: the browser then takes the server for the host of their page (DNS rebinding).

use lastcall_core::{AllowedOrigins, Host};

use crate::{
    error::{ApiError, ErrorCode},
    request::RequestHost,
};

/// The names that are the server's own, besides `localhost`. An address is always right: to say it, a page
/// must have come from it.
#[derive(Debug)]
pub(crate) struct TrustedHosts {
    any: bool,
    listed: Vec<Host>,
}

impl TrustedHosts {
    /// Returns the names for a server that was asked to listen on `host`.
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
}
