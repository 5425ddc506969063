//! A connection that speaks HTTP/1.1, and does nothing by itself: no retry, no new connection.

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
};

use super::{Answer, Server, soon};

/// A connection to a server.
pub(crate) struct Http {
    pub(crate) stream: TcpStream,
    /// What was read beyond the last answer.
    read: Vec<u8>,
    host: String,
}

impl Http {
    pub(crate) async fn connect(server: &Server) -> Self {
        Self::to(&server.address.to_string()).await
    }

    pub(crate) async fn to(address: &str) -> Self {
        let stream = TcpStream::connect(address).await.unwrap();
        Self { stream, read: Vec::new(), host: address.to_owned() }
    }

    /// With a small receive buffer, which is soon full when it is not read.
    pub(crate) async fn connect_small(server: &Server) -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4096).unwrap();
        let stream = socket.connect(server.address).await.unwrap();
        Self { stream, read: Vec::new(), host: server.address.to_string() }
    }

    /// Returns a request of these header lines.
    pub(crate) fn head(&self, method: &str, path: &str, headers: &[&str]) -> String {
        let mut head = format!("{method} {path} HTTP/1.1\r\nHost: {}\r\n", self.host);
        for header in headers {
            head += &format!("{header}\r\n");
        }
        head + "\r\n"
    }

    /// Returns a publication.
    pub(crate) fn publication(&self, body: &str) -> String {
        let length = format!("Content-Length: {}", body.len());
        self.head("POST", "/api/publish", &["Content-Type: application/json", &length]) + body
    }

    pub(crate) async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        soon("sending", self.stream.write_all(bytes.as_ref())).await.unwrap();
    }

    /// Returns the next answer, which has a `Content-Length`.
    pub(crate) async fn answer(&mut self) -> Answer {
        let head = loop {
            if let Some(end) = self.read.windows(4).position(|end| end == b"\r\n\r\n") {
                let head = String::from_utf8(self.read.drain(..end + 4).collect()).unwrap();
                break head.trim_end().to_owned();
            }
            self.read_some("the head of an answer").await;
        };
        let lower = head.to_lowercase();
        let length = lower.lines().find_map(|line| line.strip_prefix("content-length: "));
        let length: usize = length.unwrap_or_else(|| panic!("no length: {head}")).parse().unwrap();
        while self.read.len() < length {
            self.read_some("the body of an answer").await;
        }
        let body = String::from_utf8(self.read.drain(..length).collect()).unwrap();
        Answer { status: head[9..12].parse().unwrap(), head, body }
    }

    /// Sends a request and waits for its answer.
    pub(crate) async fn call(&mut self, request: impl AsRef<[u8]>) -> Answer {
        self.send(request).await;
        self.answer().await
    }

    /// Waits until the server has closed the connection, and not reset it. Nothing else may come.
    pub(crate) async fn ended(&mut self) {
        let read = soon("the end of a connection", self.stream.read_buf(&mut self.read)).await;
        assert_eq!(read.expect("an end, not a reset"), 0, "{:?}", String::from_utf8_lossy(&self.read));
        assert!(self.read.is_empty(), "{:?}", String::from_utf8_lossy(&self.read));
    }

    async fn read_some(&mut self, what: &str) {
        let read = soon(what, self.stream.read_buf(&mut self.read)).await;
        let read = read.unwrap_or_else(|error| panic!("{what}: {error}"));
        assert_ne!(read, 0, "{what}: the end came after {:?}", String::from_utf8_lossy(&self.read));
    }
}
