//! The words of the log about a request that was refused.

use std::net::SocketAddr;

use axum::http::{
    HeaderValue, Method, Uri,
    header::{HOST, ORIGIN, UPGRADE},
    request::Parts,
};

use crate::fields;

/// Longest value of a field in the log, in bytes.
const MAX_VALUE: usize = 200;

/// A request in short. Cheap to make: most requests are not refused.
#[derive(Debug, Clone, Default)]
pub(crate) struct RequestSummary {
    /// The other end of the connection; a proxy, if there is one.
    pub(super) peer: Option<SocketAddr>,
    /// The method and the target; `None` if there was no request that could be read.
    line: Option<(Method, Uri)>,
    origin: Option<HeaderValue>,
    host: Option<HeaderValue>,
    is_handshake: bool,
}

impl RequestSummary {
    /// Returns the summary of a request with this head.
    pub(crate) fn new(peer: SocketAddr, head: &Parts) -> Self {
        Self {
            peer: Some(peer),
            line: Some((head.method.clone(), head.uri.clone())),
            origin: head.headers.get(ORIGIN).cloned(),
            host: head.headers.get(HOST).cloned(),
            is_handshake: head.uri.path() == "/ws"
                || fields::has_member(&head.headers, &UPGRADE, "websocket"),
        }
    }

    /// Returns the summary for a connection on which there was no request.
    pub(crate) fn of_peer(peer: SocketAddr) -> Self {
        Self { peer: Some(peer), ..Self::default() }
    }

    fn path(&self) -> Option<&str> {
        self.line.as_ref().map(|(_, uri)| uri.path())
    }

    fn is_api_call(&self) -> bool {
        self.path().is_some_and(|path| path.starts_with("/api/"))
    }

    fn is_for_events(&self) -> bool {
        self.path() == Some("/events")
    }

    /// Returns true if an operator should see that it was refused: unlike a page's icon, which no server
    /// needs to have.
    pub(super) fn is_for_clients(&self) -> bool {
        self.is_handshake || self.is_api_call() || self.is_for_events() || self.line.is_none()
    }

    /// Returns true if a browser asks if a page may call the API, or have events (Fetch Standard, section
    /// 3.2.2).
    pub(super) fn is_preflight(&self) -> bool {
        let is_options = self.line.as_ref().is_some_and(|(method, _)| method == Method::OPTIONS);
        is_options && self.origin.is_some() && (self.is_api_call() || self.is_for_events())
    }

    /// Returns what it was, for a sentence.
    pub(super) fn what(&self) -> &'static str {
        match &self.line {
            _ if self.is_handshake => "a WebSocket handshake",
            _ if self.is_api_call() => "an API call",
            _ if self.is_for_events() => "a request for events",
            Some(_) => "a request",
            None => "a connection",
        }
    }

    /// Returns the method and the path, without the query, which may have secrets.
    pub(super) fn request_line(&self) -> Option<String> {
        let (method, uri) = self.line.as_ref()?;
        Some(printable(format!("{method} {}", uri.path()).as_bytes(), MAX_VALUE))
    }

    /// Returns the origin of the page, if it was one.
    pub(super) fn origin(&self) -> Option<String> {
        self.origin.as_ref().map(|value| printable(value.as_bytes(), MAX_VALUE))
    }

    /// Returns the host that it names.
    pub(super) fn host(&self) -> Option<String> {
        self.host.as_ref().map(|value| printable(value.as_bytes(), MAX_VALUE))
    }
}

/// Returns the beginning of a text: about `max` bytes of it, on one line, without characters that act on a
/// terminal or cannot be seen.
pub(super) fn printable(bytes: &[u8], max: usize) -> String {
    // Whatever is cut off is not looked at: a head may have thousands of bytes.
    let start = &bytes[..bytes.len().min(max)];
    let mut text = String::new();
    for c in String::from_utf8_lossy(start).chars() {
        if text.len() >= max {
            return text + "…";
        }
        if c.is_ascii_graphic() || c == ' ' || c.is_alphanumeric() || c == '…' {
            text.push(c);
        } else {
            text.extend(c.escape_default());
        }
    }
    if start.len() < bytes.len() { text + "…" } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_bounded_and_cannot_act_on_a_terminal() {
        assert_eq!(printable(b"http://localhost:5173", 100), "http://localhost:5173");
        assert_eq!(printable("a \"b\" `c` ü".as_bytes(), 100), "a \"b\" `c` ü");
        assert_eq!(printable(b"\x1b[2J\r\nlevel=ERROR", 100), "\\u{1b}[2J\\r\\nlevel=ERROR");
        // Overrides the direction of what follows; a C1 control character; not UTF-8.
        assert_eq!(printable("\u{202e}\u{9b}".as_bytes(), 100), "\\u{202e}\\u{9b}");
        assert_eq!(printable(b"\xff", 100), "\\u{fffd}");
        assert_eq!(printable(&[b'x'; 5000], 8), "xxxxxxxx…");
        let worst = printable(&[0xff; 5000], 200);
        assert!(worst.len() < 220, "{worst}");
    }
}
