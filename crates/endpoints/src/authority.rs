//! A host and a port, as `Host` and URLs have them (RFC 3986 section 3.2).

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

/// A host, and a port if one was given. Two are equal if they mean the same: names in any case, addresses in any
/// notation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Authority {
    pub(crate) host: Host,
    pub(crate) port: Option<u16>,
}

/// A name or an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Host {
    Address(IpAddr),
    /// In lower case.
    Name(String),
}

/// The text is not a host, or its port is not a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a host name or an address, with a port or without")]
pub(crate) struct Malformed;

impl FromStr for Authority {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
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
                Some(digits.parse().map_err(|_| Malformed)?)
            }
            _ => return Err(Malformed),
        };
        Ok(Self { host: host.parse()?, port })
    }
}

impl FromStr for Host {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        if let Some(address) = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            // An IPv4 address in an IPv6 one (RFC 4291 section 2.5.5.2) is that address.
            return address
                .parse()
                .map(|ip: Ipv6Addr| Self::Address(ip.to_canonical()))
                .map_err(|_| Malformed);
        }
        if let Ok(ip) = text.parse::<Ipv4Addr>() {
            return Ok(Self::Address(ip.into()));
        }
        // A `reg-name`, but without the comma: two fields joined into one would have it.
        let in_a_name = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~%!$&'()*+;=".contains(&byte);
        if text.is_empty() || !text.bytes().all(in_a_name) {
            return Err(Malformed);
        }
        Ok(Self::Name(text.to_ascii_lowercase()))
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
            assert_eq!(text.parse::<Authority>(), Err(Malformed), "{text}");
        }
    }
}
