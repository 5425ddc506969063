//! The clients of `examples/`, as `docs/clients.md` describes what a client does.

use std::{
    net::SocketAddr,
    path::Path,
    process::Stdio,
    time::{Duration, Instant},
};

use futures_util::StreamExt;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Lines},
    net::TcpListener,
    process::{Child, ChildStderr, ChildStdout, Command},
};
use tokio_tungstenite::{
    accept_async,
    tungstenite::protocol::{CloseFrame, frame::coding::CloseCode},
};

use crate::{
    browser::until,
    support::{Driver, Server, Signal, Start, python_with, soon},
};

fn example(name: &str) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap();
    root.join("examples").join(name).to_str().unwrap().to_owned()
}

/// The client in Python.
struct Python {
    process: Child,
    messages: Lines<BufReader<ChildStdout>>,
    errors: Lines<BufReader<ChildStderr>>,
}

impl Python {
    fn start(python: &Path, url: &str) -> Self {
        let mut process = Command::new(python)
            .args([&example("client.py"), url])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let messages = BufReader::new(process.stdout.take().unwrap()).lines();
        let errors = BufReader::new(process.stderr.take().unwrap()).lines();
        Self { process, messages, errors }
    }

    /// Returns the next message of this type.
    async fn next_of(&mut self, kind: &str) -> Value {
        loop {
            let line = soon(kind, self.messages.next_line()).await.unwrap().expect("the client to continue");
            let message: Value = serde_json::from_str(&line).unwrap();
            if message["type"] == kind {
                return message;
            }
        }
    }

    async fn error(&mut self) -> String {
        soon("an error", self.errors.next_line()).await.unwrap().expect("the client to continue")
    }
}

/// A server at an address of its own, which another one can have after it. A client that comes back at its
/// own first delay comes within 1 s, and one that does what the server says later.
fn first_server() -> Start {
    Start::default().own_address().env("SHUTDOWN_TIMEOUT", "60").env("SHUTDOWN_SPREAD", "3")
}

fn next_server(address: SocketAddr) -> Start {
    Start::default().env("HOST", address.ip()).env("PORT", address.port())
}

/// A server that closes the next client with this code.
async fn close_with(listener: &TcpListener, code: u16) {
    let (stream, _) = soon("a client", listener.accept()).await.unwrap();
    let mut socket = soon("the handshake", accept_async(stream)).await.unwrap();
    let frame = CloseFrame { code: CloseCode::from(code), reason: "a test".into() };
    socket.close(Some(frame)).await.unwrap();
    while let Some(Ok(_)) = soon("the answer", socket.next()).await {}
}

/// A server that refuses the next client's handshake with this status.
async fn refuse_with(listener: &TcpListener, status: u16) {
    let (mut stream, _) = soon("a client", listener.accept()).await.unwrap();
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        assert_ne!(soon("a request", stream.read_buf(&mut request)).await.unwrap(), 0);
    }
    let answer = format!("HTTP/1.1 {status} Refused\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    stream.write_all(answer.as_bytes()).await.unwrap();
    stream.shutdown().await.unwrap();
    // A client that has the answer may reset the connection.
    let _ = soon("the client's end", stream.read_to_end(&mut request)).await;
}

#[tokio::test]
async fn the_python_client_leaves_when_it_is_told_and_comes_back_when_it_is_told() {
    let Some(python) = python_with("websockets") else { return };
    let mut server = first_server().serve().await;
    let mut client = Python::start(&python, &server.ws_url());
    client.next_of("welcome").await;
    server.publish(r#"{"data":{"order":1042}}"#).await;
    assert_eq!(client.next_of("notification").await["data"], json!({"order": 1042}));
    let signalled = Instant::now();
    server.signal(Signal::TERM);
    let after = client.next_of("shutdown").await["reconnect"]["after_ms"].as_u64().unwrap();
    // It leaves at once: there is a minute left.
    assert_eq!(server.exit_code().await, 0);
    assert_eq!(server.logged("drain ended").await["fields"]["left"], 1);
    let server = next_server(server.address).serve().await;
    client.next_of("welcome").await;
    assert!(signalled.elapsed() >= Duration::from_millis(after), "not before {after} ms");

    // Killed: there is no close frame.
    let address = server.address;
    server.kill().await;
    assert!(client.error().await.starts_with("not connected: "));
    let full = next_server(address).env("MAX_CONNECTIONS", "1").serve().await;
    let other = full.dial(&[]).await;
    // The first one is served; the client comes back after a 503, too.
    if let Ok((other, _)) = other {
        while !client.error().await.contains("503") {}
        other.leave().await;
    }
    client.next_of("welcome").await;
}

#[tokio::test]
async fn the_python_client_does_not_come_back_after_a_fault_of_its_own() {
    let Some(python) = python_with("websockets") else { return };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("ws://{}/ws", listener.local_addr().unwrap());
    for code in [1002, 1003, 1007, 1009] {
        let mut client = Python::start(&python, &url);
        close_with(&listener, code).await;
        let status = soon("the client's end", client.process.wait()).await.unwrap();
        assert_eq!(status.code(), Some(1), "{code}");
        while !client.error().await.contains(&format!("closed for good: {code} a test")) {}
    }
    for status in [400, 403, 426] {
        let mut client = Python::start(&python, &url);
        refuse_with(&listener, status).await;
        let ended = soon("the client's end", client.process.wait()).await.unwrap();
        assert_eq!(ended.code(), Some(1), "{status}");
        while !client.error().await.contains(&format!("refused for good: {status}")) {}
    }
    // After others it does.
    let _client = Python::start(&python, &url);
    refuse_with(&listener, 503).await;
    let refused = Instant::now();
    for code in [1001, 1008, 1011, 1012] {
        close_with(&listener, code).await;
        assert!(refused.elapsed() >= Duration::from_secs(5), "not before Retry-After");
    }
}

/// Has the page that the browser shows run the client in JavaScript. What it gets is in `got`.
async fn run(browser: &fantoccini::Client, url: &str) {
    let source = std::fs::read_to_string(example("client.js")).unwrap();
    let script = "
        const [source, url, done] = arguments;
        window.got = [];
        window.onerror = (error) => got.push({ type: 'error', error });
        window.timers = 0;
        const wait = window.setTimeout.bind(window);
        window.setTimeout = (...all) => { timers += 1; return wait(...all); };
        setInterval(() => { document.body.dataset.tick = Date.now(); }, 50);
        import(URL.createObjectURL(new Blob([source], { type: 'text/javascript' })))
            .then(({ stayConnected }) => stayConnected(url, (message) => got.push(message)))
            .then(() => done('runs'), (error) => done(String(error)));";
    let runs = browser.execute_async(script, vec![json!(source), json!(url)]).await.unwrap();
    assert_eq!(runs, "runs");
}

/// Returns an expression: the number of messages of this type.
fn count(kind: &str) -> String {
    format!("got.filter(({{ type }}) => type === '{kind}').length")
}

#[tokio::test]
async fn the_javascript_client_leaves_when_it_is_told_and_comes_back_when_it_is_told() {
    let mut driver = Driver::start().await;
    let browser = driver.browser((800, 600)).await;
    let mut server = first_server().serve().await;
    browser.goto(&server.url("/health/live")).await.unwrap();
    run(&browser, &server.ws_url()).await;
    until(&browser, &format!("{} === 1", count("welcome"))).await;
    server.publish(r#"{"data":{"order":1042}}"#).await;
    until(&browser, "got.some(({ data }) => data?.order === 1042)").await;
    let signalled = Instant::now();
    server.signal(Signal::TERM);
    assert_eq!(server.exit_code().await, 0);
    assert_eq!(server.logged("drain ended").await["fields"]["left"], 1);
    let after = "return got.find(({ type }) => type === 'shutdown').reconnect.after_ms";
    let after = browser.execute(after, vec![]).await.unwrap().as_u64().unwrap();
    let server = next_server(server.address).serve().await;
    until(&browser, &format!("{} === 2", count("welcome"))).await;
    assert!(signalled.elapsed() >= Duration::from_millis(after), "not before {after} ms");
    let address = server.address;
    server.kill().await;
    let _server = next_server(address).serve().await;
    until(&browser, &format!("{} === 3", count("welcome"))).await;
    soon("the browser's end", browser.close()).await.unwrap();
}

#[tokio::test]
async fn the_javascript_client_does_not_come_back_after_a_fault_of_its_own() {
    let mut driver = Driver::start().await;
    let browser = driver.browser((800, 600)).await;
    let server = Server::start().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("ws://{}/ws", listener.local_addr().unwrap());
    for code in [1002, 1003, 1007, 1009] {
        browser.goto(&server.url("/health/live")).await.unwrap();
        run(&browser, &url).await;
        close_with(&listener, code).await;
        until(
            &browser,
            &format!("got.some(({{ error }}) => error?.includes('closed for good: {code} a test'))"),
        )
        .await;
        assert_eq!(browser.execute("return timers", vec![]).await.unwrap(), 0, "{code}");
    }
    browser.goto(&server.url("/health/live")).await.unwrap();
    run(&browser, &url).await;
    for code in [1001, 1008, 1011, 1012] {
        close_with(&listener, code).await;
    }
    soon("the browser's end", browser.close()).await.unwrap();
}
