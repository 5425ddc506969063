//! Hosts, alone and with a port, as `Host` and URLs have them (RFC 3986 section 3.2), and as a server listens
//! on them.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

/// A host, and a port if one was given. Two are equal if they mean the same: names in any case, addresses in
/// any notation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Authority {
    /// The host.
    pub host: Host,
    /// The port, if one was given.
    pub port: Option<u16>,
}

/// A name or an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Host {
    /// An address.
    Address(IpAddr),
    /// A name, in lower case.
    Name(String),
}

/// The text is not a host, or its port is not a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a host name or an address, with a port or without")]
pub struct InvalidAuthority;

impl FromStr for Authority {
    type Err = InvalidAuthority;

    fn from_str(text: &str) -> Result<Self, InvalidAuthority> {
        let (host, port) = match text.rsplit_once(':') {
            // Not a colon within an IPv6 address.
            Some((host, port)) if !port.ends_with(']') => (host, port),
            _ => (text, ""),
        };
        let port = match port {
            // RFC 3986 section 3.2.3: an empty port is none.
            "" => None,
            // `parse` would take a sign.
            digits if digits.bytes().all(|byte| byte.is_ascii_digit()) => {
                Some(digits.parse().map_err(|_| InvalidAuthority)?)
            }
            _ => return Err(InvalidAuthority),
        };
        Ok(Self { host: host.parse()?, port })
    }
}

impl FromStr for Host {
    type Err = InvalidAuthority;

    fn from_str(text: &str) -> Result<Self, InvalidAuthority> {
        if let Some(address) = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            // An IPv4 address in an IPv6 one (RFC 4291 section 2.5.5.2) is that address.
            return address
                .parse()
                .map(|ip: Ipv6Addr| Self::Address(ip.to_canonical()))
                .map_err(|_| InvalidAuthority);
        }
        if let Ok(ip) = text.parse::<Ipv4Addr>() {
            return Ok(Self::Address(ip.into()));
        }
        // A `reg-name`, but without the comma: two fields joined into one would have it.
        let in_a_name = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~%!$&'()*+;=".contains(&byte);
        if text.is_empty() || !text.bytes().all(in_a_name) {
            return Err(InvalidAuthority);
        }
        Ok(Self::Name(text.to_ascii_lowercase()))
    }
}

impl Host {
    /// Returns true if a browser can have this host in a URL: an address, or a domain name. A name that ends
    /// in a number is none (WHATWG URL, "ends in a number"): it is an address in a form that is long
    /// forgotten, 127.1 for 127.0.0.1 and 010.0.0.1 for 8.0.0.1 (inet_aton(3)).
    pub fn is_address_or_domain(&self) -> bool {
        let Self::Name(name) = self else { return true };
        let name = name.strip_suffix('.').unwrap_or(name);
        let is_label = |label: &str| {
            !label.is_empty()
                && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
        };
        let last = name.rsplit('.').next().unwrap_or("");
        let is_number = last.bytes().all(|byte| byte.is_ascii_digit())
            || last.strip_prefix("0x").is_some_and(|hex| hex.bytes().all(|byte| byte.is_ascii_hexdigit()));
        name.split('.').all(is_label) && !is_number
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(IpAddr::V6(ip)) => write!(f, "[{ip}]"),
            Self::Address(IpAddr::V4(ip)) => ip.fmt(f),
            Self::Name(name) => f.write_str(name),
        }
    }
}

/// The host to listen on: a name, or an address, perhaps with a zone (RFC 4007 section 11), as
/// `fe80::1%eth0`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListenHost {
    text: String,
    host: Host,
}

impl ListenHost {
    /// Returns the host as the resolver takes it: without brackets, and with its zone.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Returns the host as a request names it, without a zone.
    pub fn host(&self) -> &Host {
        &self.host
    }
}

impl From<IpAddr> for ListenHost {
    fn from(ip: IpAddr) -> Self {
        Self { text: ip.to_string(), host: Host::Address(ip.to_canonical()) }
    }
}

impl FromStr for ListenHost {
    type Err = InvalidAuthority;

    fn from_str(text: &str) -> Result<Self, InvalidAuthority> {
        // Brackets as in a URL (RFC 3986 section 3.2.2).
        let inner = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
        let address = inner.unwrap_or(text);
        let host = match address.split_once('%') {
            Some((ip, zone)) if !zone.is_empty() => ip.parse::<Ipv6Addr>().map(IpAddr::V6),
            _ => address.parse(),
        };
        match host {
            Ok(ip) if inner.is_none() || ip.is_ipv6() => {
                Ok(Self { text: address.to_owned(), host: Host::Address(ip.to_canonical()) })
            }
            _ => {
                let host = text.parse::<Host>()?;
                if !host.is_address_or_domain() {
                    return Err(InvalidAuthority);
                }
                Ok(Self { text: text.to_owned(), host })
            }
        }
    }
}

impl fmt::Display for ListenHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_may_be_a_name_or_an_address_and_have_a_port() {
        for (text, host, port) in [
            ("example.org", "example.org", None),
            ("Example.ORG:8000", "example.org", Some(8000)),
            ("example.org:", "example.org", None),
            ("a_b.example.:0080", "a_b.example.", Some(80)),
            ("192.0.2.7:65535", "192.0.2.7", Some(65535)),
            ("[::1]", "[::1]", None),
            ("[0:0::0001]:80", "[::1]", Some(80)),
            ("[::ffff:7f00:1]:80", "127.0.0.1", Some(80)),
        ] {
            let authority: Authority = text.parse().unwrap_or_else(|_| panic!("{text}"));
            assert_eq!((authority.host.to_string().as_str(), authority.port), (host, port), "{text}");
        }
    }

    #[test]
    fn what_is_no_host_is_refused() {
        for text in [
            "",
            ":80",
            "a b",
            "a,b",
            "user@example.org",
            "example.org/",
            "example.org:http",
            "example.org:+80",
            "example.org:65536",
            "a:80:80",
            "::1",
            "[::1",
            "[::1]80",
            "[zz]",
            "[]",
            "[fe80::1%eth0]",
            "ex\"ample",
            "bücher.example",
        ] {
            assert_eq!(text.parse::<Authority>(), Err(InvalidAuthority), "{text}");
        }
    }

    #[test]
    fn a_browser_has_an_address_or_a_domain_name_in_a_url() {
        let can = |text: &str| text.parse::<Host>().unwrap().is_address_or_domain();
        for text in
            ["127.0.0.1", "[::1]", "example.org", "my_host-1.example.", "1.example", "0x7f.example", "a"]
        {
            assert!(can(text), "{text}");
        }
        for text in [
            "127.1",
            "010.0.0.1",
            "1",
            "0x7f",
            "a.0XfF",
            "256.0.0.1",
            "1.2.3.4.5",
            "a..b",
            ".",
            "a%20b",
            "a;b",
        ] {
            assert!(!can(text), "{text}");
        }
    }

    #[test]
    fn a_server_listens_on_a_name_or_an_address_without_a_port() {
        for (text, listened, host) in [
            ("[::1]", "::1", "[::1]"),
            ("::", "::", "[::]"),
            ("fe80::1%eth0", "fe80::1%eth0", "[fe80::1]"),
            ("[fe80::1%eth0]", "fe80::1%eth0", "[fe80::1]"),
            ("::ffff:127.0.0.1", "::ffff:127.0.0.1", "127.0.0.1"),
            ("0.0.0.0", "0.0.0.0", "0.0.0.0"),
            ("Host.Example.", "Host.Example.", "host.example."),
        ] {
            let read: ListenHost = text.parse().unwrap();
            assert_eq!((read.as_str(), read.host().to_string().as_str()), (listened, host), "{text}");
        }
        for text in [
            "",
            "a:80",
            "[::1]:80",
            "[127.0.0.1]",
            "[a]",
            "::1%",
            "127.0.0.1%eth0",
            "a%b",
            "127.1",
            "*",
            "::1]",
        ] {
            assert_eq!(text.parse::<ListenHost>(), Err(InvalidAuthority), "{text}");
        }
        assert_eq!(ListenHost::from(IpAddr::from([127, 0, 0, 1])), "127.0.0.1".parse().unwrap());
    }
}
