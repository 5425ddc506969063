//! HTTP requests to a server, and what its metrics say.

use std::net::SocketAddr;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::{Answer, Server, soon, until};

impl Server {
    /// Sends one HTTP request on a connection of its own.
    pub(crate) async fn request(&self, method: &str, path: &str, headers: &[&str], body: &str) -> Answer {
        let length = format!("Content-Length: {}", body.len());
        self.request_without_length(method, path, &[headers, &[&length]].concat(), body).await
    }

    /// The same, for a body whose length is told in another way.
    pub(crate) async fn request_without_length(
        &self,
        method: &str,
        path: &str,
        headers: &[&str],
        body: &str,
    ) -> Answer {
        let mut request =
            format!("{method} {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n", self.address);
        for header in headers {
            request += &format!("{header}\r\n");
        }
        request += &format!("\r\n{body}");
        self.exchange(request).await
    }

    /// Sends one HTTP request, byte for byte, after whose answer the server must hang up.
    pub(crate) async fn exchange(&self, request: impl AsRef<[u8]>) -> Answer {
        exchange(self.address, request).await
    }

    /// Returns the status of the answer to a request, whatever happens to the connection after it.
    pub(crate) async fn status(&self, head: &str) -> u16 {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut line = [0; 12];
        soon("a status line", stream.read_exact(&mut line)).await.unwrap();
        std::str::from_utf8(&line[9..]).unwrap().parse().unwrap()
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.request("GET", path, &[], "").await
    }

    /// Publishes through the API.
    pub(crate) async fn publish(&self, body: &str) -> Answer {
        self.request("POST", "/api/publish", &["Content-Type: application/json"], body).await
    }

    /// Returns what the metrics say of this one, now.
    pub(crate) async fn metric(&self, name: &str) -> f64 {
        metric(&self.get("/metrics").await.body, name)
    }

    /// Waits until the server has this number of clients: a connection that has ended is counted for a moment
    /// longer.
    pub(crate) async fn has_clients(&self, count: usize) {
        let has_them = async || self.get("/health/ready").await.json()["clients"] == count;
        until(&format!("{count} clients"), has_them).await;
    }

    /// Publishes texts of 60,000 letters until more than this many bytes of them wait in the server for a
    /// client that does not read, however much the kernel takes; how many it were. `read` is for the clients
    /// that do read, after each text. A few texts wait for a moment for any client: ask for more than those.
    pub(crate) async fn publish_until_queued(&self, bytes: usize, mut read: impl AsyncFnMut()) -> usize {
        let body = format!(r#"{{"data":"{}"}}"#, "x".repeat(60_000));
        soon("a queue", async {
            for published in 1.. {
                let answer = self.publish(&body).await;
                assert_eq!(answer.status, 200, "{answer:?}");
                read().await;
                if self.metric("lastcall_queue_bytes").await > bytes as f64 {
                    return published;
                }
            }
            unreachable!("numbers do not end");
        })
        .await
    }
}

/// Sends one HTTP request to this address, byte for byte; the answer ends with the connection.
pub(crate) async fn exchange(address: SocketAddr, request: impl AsRef<[u8]>) -> Answer {
    let mut stream = TcpStream::connect(address).await.unwrap();
    // The server may answer, and hang up, before it has read a body that it refuses.
    let _ = stream.write_all(request.as_ref()).await;
    let mut answer = Vec::new();
    let _ = soon("an HTTP answer", stream.read_to_end(&mut answer)).await;
    let answer = String::from_utf8(answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    Answer { status: head[9..12].parse().unwrap(), head: head.to_owned(), body: body.to_owned() }
}

/// Returns the value of a metric.
pub(crate) fn metric(text: &str, name: &str) -> f64 {
    let line = text.lines().find(|line| line.starts_with(&format!("{name} ")));
    let line = line.unwrap_or_else(|| panic!("no {name} in {text}"));
    line.split(' ').nth(1).unwrap().parse().unwrap()
}
