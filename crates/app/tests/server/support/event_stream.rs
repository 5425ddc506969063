//! A client of server-sent events.

use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
};

use super::{Server, chunks::Chunks, soon};

/// An event.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Event {
    pub(crate) name: String,
    pub(crate) data: Value,
    pub(crate) id: Option<String>,
    pub(crate) retry: Option<u64>,
}

/// A connection that has got the head of its response.
pub(crate) struct EventStream {
    reader: BufReader<TcpStream>,
    pub(crate) head: String,
    /// What was read of the body and is no whole line yet.
    body: Vec<u8>,
    chunks: Chunks,
}

impl EventStream {
    /// Sends a request with these header fields, and reads the head of the response.
    pub(crate) async fn open(address: &str, path: &str, headers: &[&str]) -> Self {
        let stream = soon("a connection", TcpStream::connect(address)).await.unwrap();
        Self::request(stream, address, path, headers).await
    }

    /// The same over a connection that is there.
    pub(crate) async fn request(mut stream: TcpStream, host: &str, path: &str, headers: &[&str]) -> Self {
        let lines: String = headers.iter().map(|line| format!("{line}\r\n")).collect();
        let request =
            format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nAccept: text/event-stream\r\n{lines}\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let reader = BufReader::new(stream);
        let mut stream = Self { reader, head: String::new(), body: Vec::new(), chunks: Chunks::default() };
        loop {
            let mut line = String::new();
            soon("a line", stream.reader.read_line(&mut line)).await.unwrap();
            let line = line.strip_suffix("\r\n").expect("the head of a response");
            if line.is_empty() {
                return stream;
            }
            stream.head.push_str(line);
            stream.head.push('\n');
        }
    }

    /// Returns the next line of the body without its end; `None`: the response has ended.
    async fn line(&mut self) -> Option<String> {
        loop {
            if let Some(end) = self.body.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.body.drain(..=end).collect();
                return Some(String::from_utf8(line[..end].to_vec()).unwrap());
            }
            let part = self.part().await?;
            self.body.extend_from_slice(&part);
        }
    }

    /// Returns the next bytes of the body.
    async fn part(&mut self) -> Option<Vec<u8>> {
        if self.chunks.has_ended() {
            return None;
        }
        let part = soon("a part", self.reader.fill_buf()).await.unwrap_or_default().to_vec();
        self.reader.consume(part.len());
        if part.is_empty() {
            return None;
        }
        let is_chunked = self.head.to_ascii_lowercase().contains("transfer-encoding: chunked");
        Some(if is_chunked { self.chunks.read(&part).concat() } else { part })
    }

    /// Returns the next event as a browser understands it; `None`: the response has ended.
    pub(crate) async fn next(&mut self) -> Option<Event> {
        let mut event = Event { name: "message".to_owned(), data: Value::Null, id: None, retry: None };
        let mut data: Vec<String> = Vec::new();
        loop {
            let line = self.line().await?;
            if line.is_empty() {
                if data.is_empty() {
                    continue;
                }
                event.data = serde_json::from_str(&data.join("\n")).unwrap();
                return Some(event);
            }
            let (field, value) = line.split_once(':').unwrap_or((&line, ""));
            let value = value.strip_prefix(' ').unwrap_or(value).to_owned();
            match field {
                "" => {}
                "event" => event.name = value,
                "data" => data.push(value),
                "id" => event.id = Some(value),
                "retry" => event.retry = Some(value.parse().unwrap()),
                _ => panic!("no field {field:?} is sent"),
            }
        }
    }

    /// Returns the next event of this name.
    pub(crate) async fn next_of(&mut self, name: &str) -> Event {
        loop {
            let event = self.next().await.unwrap_or_else(|| panic!("{name}, not the end"));
            if event.name == name {
                return event;
            }
        }
    }
}

impl Server {
    /// Asks for events, and reads up to the welcome.
    pub(crate) async fn events(&self, query: &str, headers: &[&str]) -> EventStream {
        let mut stream =
            EventStream::open(&self.address.to_string(), &format!("/events{query}"), headers).await;
        assert!(stream.head.starts_with("HTTP/1.1 200 OK\n"), "{}", stream.head);
        assert_eq!(stream.next().await.expect("a welcome").name, "welcome");
        stream
    }
}
