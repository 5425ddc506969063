//! An origin of a web page, as `allowed_origins` names it.

/// Reads an origin as browsers send it (RFC 6454 section 6.2): without the port if it is the scheme's own.
///
/// # Errors
/// Why it could never be the origin of a page, and what to write instead: continues from the text.
pub(super) fn web_origin(text: &str) -> Result<String, String> {
    if text.eq_ignore_ascii_case("null") {
        return Err(
            "is what pages without an origin send, such as files and sandboxed frames, and tells none of \
                    them from another: serve the page over HTTP and list its origin"
                .into(),
        );
    }
    if text == "*" {
        return Err("allows all and must stand alone".into());
    }
    if text.contains('*') {
        return Err("has a wildcard, which is not understood: list each origin by itself".into());
    }
    let Some((scheme, authority)) = text.split_once("://") else {
        return Err(format!("has no scheme: write https://{text} or http://{text}"));
    };
    match scheme.to_ascii_lowercase().as_str() {
        "file" => {
            return Err(
                "is for files, and browsers send no origin for those that could be told apart: serve the \
                        page over HTTP and list its origin"
                    .into(),
            );
        }
        "ws" | "wss" => {
            let page = scheme.to_ascii_lowercase().replacen("ws", "http", 1);
            return Err(format!(
                "is a WebSocket's address, and not that of the page that connects: write {page}://{authority}"
            ));
        }
        _ => {}
    }
    if let Some((host, _)) = authority.split_once(['/', '?', '#']) {
        return Err(format!("has more than a host and a port: write {scheme}://{host}"));
    }
    if authority.contains('@') {
        return Err("has a user name, which is no part of an origin".into());
    }
    if !authority.is_ascii() {
        return Err("is not ASCII: write the host as browsers send it, such as xn--bcher-kva.example".into());
    }
    origin(scheme, authority).ok_or_else(|| "is not a scheme, a host and maybe a port".into())
}

fn origin(scheme: &str, authority: &str) -> Option<String> {
    let (host, port) = match authority.rsplit_once(':').filter(|_| !authority.ends_with(']')) {
        Some((host, port)) => (host, Some(port)),
        None => (authority, None),
    };
    let is_scheme = scheme.starts_with(|c: char| c.is_ascii_alphabetic())
        && scheme.chars().all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c));
    let is_host = match host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        // An IPv6 address, near enough.
        Some(address) => {
            address.contains(':') && address.chars().all(|c| c.is_ascii_hexdigit() || ":.".contains(c))
        }
        None => !host.is_empty() && host.chars().all(|c| c.is_ascii_alphanumeric() || "-._".contains(c)),
    };
    if !is_scheme || !is_host || port.is_some_and(|port| port.parse::<u16>().is_err()) {
        return None;
    }
    Some(match (scheme.to_ascii_lowercase().as_str(), port) {
        ("https", Some("443")) | ("http", Some("80")) => format!("{scheme}://{host}"),
        _ => format!("{scheme}://{authority}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_is_read_as_browsers_send_it() {
        for (text, sent) in [
            ("https://example.org", "https://example.org"),
            ("https://example.org:443", "https://example.org"),
            ("http://localhost:3000", "http://localhost:3000"),
            ("http://[::1]:80", "http://[::1]"),
            ("chrome-extension://abcdefgh", "chrome-extension://abcdefgh"),
        ] {
            assert_eq!(web_origin(text).as_deref(), Ok(sent));
        }
    }

    #[test]
    fn what_is_no_pages_origin_is_refused_with_what_to_write_instead() {
        for (text, reason) in [
            ("null", "serve the page over HTTP"),
            ("NULL", "serve the page over HTTP"),
            ("file://", "serve the page over HTTP"),
            ("file:///home/me/page.html", "serve the page over HTTP"),
            ("*", "must stand alone"),
            ("https://*.example.org", "list each origin by itself"),
            ("*.example.org", "list each origin by itself"),
            ("https://example.org:*", "list each origin by itself"),
            ("example.org", "write https://example.org or http://example.org"),
            ("localhost:3000", "write https://localhost:3000 or http://localhost:3000"),
            ("ws://example.org", "write http://example.org"),
            ("wss://example.org:8443", "write https://example.org:8443"),
            ("https://example.org/", "write https://example.org"),
            ("https://example.org/chat", "write https://example.org"),
            ("https://example.org?x=1", "write https://example.org"),
            ("https://me@example.org", "a user name"),
            ("https://bücher.example", "xn--bcher-kva.example"),
            ("https://", "a scheme, a host"),
            ("https://:80", "a scheme, a host"),
            ("https://example.org:port", "a scheme, a host"),
            ("https://[zz]", "a scheme, a host"),
            ("https://a:b:80", "a scheme, a host"),
        ] {
            let why = web_origin(text).expect_err(text);
            assert!(why.contains(reason), "{text} {why}");
        }
    }
}
