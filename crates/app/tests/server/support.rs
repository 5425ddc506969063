//! The real binary, as its users run it, and clients that talk to it.

use std::{
    net::SocketAddr,
    process::Stdio,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use futures_util::{SinkExt, StreamExt};
use rustix::process::{Pid, Resource, getrlimit, kill_process, setrlimit};
use serde_json::Value;
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpSocket, TcpStream},
    process::{Child, Command},
    sync::watch,
    time::timeout,
};
use tokio_tungstenite::{
    MaybeTlsStream, WebSocketStream, connect_async,
    tungstenite::{self, Message, client::IntoClientRequest, http::Response},
};

pub(crate) use rustix::process::Signal;

/// The longest that anything may take: a server that hangs fails its test, and none waits for ever.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Waits for `what`, but not for ever.
pub(crate) async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("{what}: nothing for {PATIENCE:?}"))
}

/// How to start a server.
pub(crate) struct Start {
    command: Command,
    dir: TempDir,
}

/// A server that runs: a process of its own, in a folder of its own.
pub(crate) struct Server {
    child: Child,
    pub(crate) address: SocketAddr,
    pub(crate) dir: TempDir,
    log: Log,
}

/// What a process printed and how it ended.
pub(crate) struct Ended {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// Log lines, as they come.
#[derive(Clone, Default)]
struct Log {
    lines: Arc<Mutex<Vec<Value>>>,
    count: watch::Sender<usize>,
}

impl Default for Start {
    fn default() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_lastcall"));
        // Nothing of the tester's own environment or folder reaches the server.
        command.env_clear().env("PORT", "0").env("LOG_FORMAT", "json").current_dir(dir.path());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        Self { command, dir }
    }
}

impl Start {
    pub(crate) fn env(mut self, name: &str, value: impl ToString) -> Self {
        self.command.env(name, value.to_string());
        self
    }

    pub(crate) fn args(mut self, args: &[&str]) -> Self {
        self.command.args(args);
        self
    }

    /// Writes a file into the folder that the server starts in.
    pub(crate) fn file(self, path: &str, text: &str) -> Self {
        let path = self.dir.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
        self
    }

    /// Starts it and waits until it listens.
    pub(crate) async fn serve(mut self) -> Server {
        self.command.stderr(Stdio::inherit());
        let mut child = self.command.spawn().unwrap();
        let log = Log::default();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let writer = log.clone();
        tokio::spawn(async move {
            while let Ok(Some(line)) = lines.next_line().await {
                let line =
                    serde_json::from_str(&line).unwrap_or_else(|_| panic!("not a JSON log line: {line}"));
                writer.lines.lock().unwrap().push(line);
                writer.count.send_modify(|count| *count += 1);
            }
        });
        let listening = log.line(|line| message(line).starts_with("listening on http://")).await;
        let address = message(&listening).trim_start_matches("listening on http://").parse().unwrap();
        Server { child, address, dir: self.dir, log }
    }

    /// Runs it to its end, which has to come by itself.
    pub(crate) async fn end(mut self) -> Ended {
        let output = soon("the end of the process", self.command.output()).await.unwrap();
        Ended {
            code: output.status.code(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

impl Log {
    async fn line(&self, wanted: impl Fn(&Value) -> bool) -> Value {
        let mut count = self.count.subscribe();
        let found = timeout(PATIENCE, async {
            loop {
                count.borrow_and_update();
                if let Some(line) = self.lines.lock().unwrap().iter().find(|line| wanted(line)) {
                    return line.clone();
                }
                count.changed().await.unwrap();
            }
        });
        found
            .await
            .unwrap_or_else(|_| panic!("that line did not come; there are {:#?}", self.lines.lock().unwrap()))
    }
}

/// The message of a log line.
pub(crate) fn message(line: &Value) -> &str {
    line["fields"]["message"].as_str().unwrap_or("")
}

impl Server {
    pub(crate) async fn start() -> Self {
        Start::default().serve().await
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub(crate) fn ws_url(&self) -> String {
        format!("ws://{}/ws", self.address)
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.child.id().expect("it runs").cast_signed()).unwrap();
        kill_process(pid, signal).unwrap();
    }

    /// The first log line, past or to come, whose message starts so.
    pub(crate) async fn logged(&self, start: &str) -> Value {
        self.log.line(|line| message(line).starts_with(start)).await
    }

    /// All log lines so far whose message starts so.
    pub(crate) fn log_lines(&self, start: &str) -> Vec<Value> {
        self.log
            .lines
            .lock()
            .unwrap()
            .iter()
            .filter(|line| message(line).starts_with(start))
            .cloned()
            .collect()
    }

    /// Waits until the process ends; its exit code.
    pub(crate) async fn exit_code(&mut self) -> i32 {
        soon("the end of the server", self.child.wait()).await.unwrap().code().expect("it was not killed")
    }

    pub(crate) async fn client(&self) -> Client {
        let (mut client, _) = self.dial(&[]).await.expect("to be let in");
        let welcome = client.next().await;
        assert_eq!(welcome["type"], "welcome", "welcome comes first");
        client.id = welcome["client"].as_str().unwrap().to_owned();
        client
    }

    pub(crate) async fn clients(&self, count: usize) -> Vec<Client> {
        let mut clients = Vec::new();
        for _ in 0..count {
            clients.push(self.client().await);
        }
        clients
    }

    /// Shakes hands, with these headers too.
    pub(crate) async fn dial(
        &self,
        headers: &[(&'static str, &str)],
    ) -> Result<(Client, Response<Option<Vec<u8>>>), tungstenite::Error> {
        let mut request = self.ws_url().into_client_request().unwrap();
        for (name, value) in headers {
            request.headers_mut().insert(*name, value.parse().unwrap());
        }
        let (socket, response) = soon("the handshake", connect_async(request)).await?;
        Ok((Client { socket, id: String::new() }, response))
    }

    /// How a handshake was refused: the status, `Retry-After`, and the body.
    pub(crate) async fn refusal(&self, headers: &[(&'static str, &str)]) -> Answer {
        match self.dial(headers).await {
            Err(tungstenite::Error::Http(response)) => Answer {
                status: response.status().as_u16(),
                head: format!("{:?}", response.headers()),
                body: String::from_utf8(response.body().clone().unwrap_or_default()).unwrap(),
            },
            other => panic!("to be refused, but {:?}", other.map(|_| "let in")),
        }
    }

    /// A client that shook hands and then is just a TCP connection, with a small receive buffer.
    pub(crate) async fn raw_client(&self) -> TcpStream {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4096).unwrap();
        let mut stream = socket.connect(self.address).await.unwrap();
        let request = format!(
            "GET /ws HTTP/1.1\r\nHost: {}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
            self.address
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(soon("the answer to a handshake", stream.read_u8()).await.unwrap());
        }
        // RFC 6455 section 1.3 has this key and its answer.
        assert!(head.windows(28).any(|bytes| bytes == b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="));
        stream
    }

    /// One HTTP request on a connection of its own.
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
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        let mut request =
            format!("{method} {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n", self.address);
        for header in headers {
            request += &format!("{header}\r\n");
        }
        request += &format!("\r\n{body}");
        // The server may answer, and hang up, before it has read a body that it refuses.
        let _ = stream.write_all(request.as_bytes()).await;
        let mut answer = Vec::new();
        let _ = soon("an HTTP answer", stream.read_to_end(&mut answer)).await;
        let answer = String::from_utf8(answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
        Answer { status: head[9..12].parse().unwrap(), head: head.to_owned(), body: body.to_owned() }
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.request("GET", path, &[], "").await
    }

    /// Publishes through the API.
    pub(crate) async fn publish(&self, body: &str) -> Answer {
        self.request("POST", "/api/publish", &["Content-Type: application/json"], body).await
    }
}

/// An HTTP answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|_| panic!("not JSON: {self:?}"))
    }

    /// The status and the error code; that the body has the shape of the contract.
    pub(crate) fn error(&self) -> (u16, String) {
        let body = self.json();
        let message = body["error"]["message"].as_str().unwrap_or_else(|| panic!("no message: {self:?}"));
        assert!(message.ends_with('.'), "not a sentence: {message}");
        (self.status, body["error"]["code"].as_str().unwrap().to_owned())
    }
}

/// A WebSocket client.
pub(crate) struct Client {
    pub(crate) socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
    pub(crate) id: String,
}

impl Client {
    /// The next frame that is not a control frame.
    pub(crate) async fn next(&mut self) -> Value {
        loop {
            match soon("a message", self.socket.next()).await.expect("a message, not the end").unwrap() {
                Message::Text(text) => return serde_json::from_str(&text).unwrap(),
                Message::Ping(_) | Message::Pong(_) => {}
                other => panic!("a message, not {other:?}"),
            }
        }
    }

    /// The next message of this type.
    pub(crate) async fn next_of(&mut self, wanted: &str) -> Value {
        loop {
            let message = self.next().await;
            if message["type"] == wanted {
                return message;
            }
        }
    }

    pub(crate) async fn send(&mut self, message: Message) {
        soon("sending", self.socket.send(message)).await.unwrap();
    }

    pub(crate) async fn say(&mut self, text: &str) {
        self.send(Message::text(text)).await;
    }

    /// Reads on until the server closes; how it did, and the messages before. The handshake is finished.
    pub(crate) async fn closed(&mut self) -> ((u16, String), Vec<Value>) {
        let mut before = Vec::new();
        let mut close = None;
        loop {
            match soon("a close", self.socket.next()).await {
                Some(Ok(Message::Close(Some(frame)))) => {
                    close = Some((frame.code.into(), frame.reason.to_string()))
                }
                Some(Ok(Message::Text(text))) => before.push(serde_json::from_str(&text).unwrap()),
                Some(Ok(_)) => {}
                // The connection may end in any way once the close frame is here.
                None | Some(Err(_)) => break,
            }
        }
        (close.unwrap_or_else(|| panic!("a close frame, not a bare end, after {before:?}")), before)
    }

    /// Says goodbye and waits for the answer.
    pub(crate) async fn leave(mut self) {
        soon("closing", self.socket.close(None)).await.unwrap();
        while let Some(Ok(_)) = soon("the answer to a close", self.socket.next()).await {}
    }
}

/// Tries up to three times whether `attempt` takes no longer than `limit`: a machine may be busy once, but
/// a server that is too slow always fails.
pub(crate) async fn takes_at_most(limit: Duration, mut attempt: impl AsyncFnMut() -> Duration) {
    let mut taken = Vec::new();
    for _ in 0..3 {
        taken.push(attempt().await);
        if taken.iter().any(|taken| *taken <= limit) {
            return;
        }
    }
    panic!("at most {limit:?} was wanted, but it took {taken:?}");
}

/// How long `future` takes.
pub(crate) async fn timed<T>(future: impl Future<Output = T>) -> (T, Duration) {
    let started = Instant::now();
    let value = future.await;
    (value, started.elapsed())
}

/// Lets this test have as many sockets as the system allows.
pub(crate) fn raise_fd_limit() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit).unwrap();
}
