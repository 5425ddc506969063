//! A program that publishes through the HTTP API.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use anyhow::{Context, ensure};

/// The longest that one response may take.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Connections that are kept alive. Each has one request under way at a time.
pub(crate) struct Publisher {
    connections: Vec<Connection>,
    host: String,
}

impl Publisher {
    pub(crate) fn connect(address: SocketAddr, connections: usize) -> anyhow::Result<Self> {
        let connections = (0..connections).map(|_| Connection::open(address)).collect::<Result<_, _>>()?;
        Ok(Self { connections, host: address.to_string() })
    }

    /// Sends a POST request with each of these bodies, as many at once as there are connections.
    pub(crate) fn post(
        &mut self,
        path: &str,
        bodies: impl IntoIterator<Item = String>,
    ) -> anyhow::Result<()> {
        self.post_each(bodies.into_iter().map(|body| (path.to_owned(), body)))
    }

    /// Sends a POST request with each of these paths and bodies, as many at once as there are connections.
    pub(crate) fn post_each(
        &mut self,
        requests: impl IntoIterator<Item = (String, String)>,
    ) -> anyhow::Result<()> {
        let mut requests = requests.into_iter().peekable();
        while requests.peek().is_some() {
            let mut sent = 0;
            for (connection, (path, body)) in self.connections.iter_mut().zip(requests.by_ref()) {
                let request = format!(
                    "POST {path} HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
                    self.host,
                    body.len()
                );
                connection.0.write_all(request.as_bytes()).context("cannot send a request")?;
                sent += 1;
            }
            for connection in &mut self.connections[..sent] {
                connection.read_response()?;
            }
        }
        Ok(())
    }
}

struct Connection(TcpStream);

impl Connection {
    fn open(address: SocketAddr) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(address).context("cannot connect")?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        Ok(Self(stream))
    }

    fn read_response(&mut self) -> anyhow::Result<()> {
        let mut response = Vec::new();
        let mut buffer = [0; 16 << 10];
        loop {
            let read = self.0.read(&mut buffer).context("no response")?;
            ensure!(read > 0, "the server has closed the publisher's connection");
            response.extend_from_slice(&buffer[..read]);
            if is_whole(&response)? {
                return Ok(());
            }
        }
    }
}

/// Returns true if this is a whole response.
///
/// # Errors
/// If its status is neither 200 nor 201 nor 202, or it has no `Content-Length`.
fn is_whole(response: &[u8]) -> anyhow::Result<bool> {
    let Some(end) = response.windows(4).position(|bytes| bytes == b"\r\n\r\n") else { return Ok(false) };
    let head = std::str::from_utf8(&response[..end]).context("the head of a response is not UTF-8")?;
    ensure!(
        ["HTTP/1.1 200 ", "HTTP/1.1 201 ", "HTTP/1.1 202 "].iter().any(|status| head.starts_with(status)),
        "the server has refused a publication: {}",
        head.lines().next().unwrap_or_default()
    );
    let fields = head.lines().filter_map(|line| line.split_once(':'));
    let mut lengths = fields.filter(|(name, _)| name.eq_ignore_ascii_case("content-length"));
    let (_, length) = lengths.next().context("a response has no Content-Length")?;
    let length: usize = length.trim().parse().context("a Content-Length is not a number")?;
    Ok(response.len() >= end + 4 + length)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_response_is_whole_with_its_body() {
        let response = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}";
        for end in 0..response.len() {
            assert!(!is_whole(&response[..end]).unwrap(), "{end}");
        }
        assert!(is_whole(response).unwrap());
        assert!(is_whole(b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n").is_err());
        assert!(is_whole(b"HTTP/1.1 200 OK\r\n\r\n").is_err());
    }
}
