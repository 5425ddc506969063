//! The body of `/events`: its chunks, its comments, and both of its ends. [`Input`] reads chunks strictly.

use std::time::Duration;

use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    process::Command,
};

use crate::support::{Input, Received, Server, Signal, Start, Wire, installed, soon};

fn quiet() -> Start {
    Start::default().env("NOTIFICATION_INTERVAL", "0")
}

/// Asks for the events of a channel, and reads up to the start of its subscription.
async fn ask(server: &Server, stream: TcpStream, channel: &str) -> Input {
    let request = Wire::EventStream.request(server.address, &format!("channel={channel}"), &[]);
    let mut input = Input::request(stream, Wire::EventStream, &request).await.unwrap();
    assert_eq!(soon("a head", input.status()).await, Some(200));
    assert_eq!(next(&mut input).await.json()["type"], "welcome");
    assert_eq!(next(&mut input).await.json()["type"], "subscribed");
    input
}

async fn connect(server: &Server) -> TcpStream {
    TcpStream::connect(server.address).await.unwrap()
}

/// Connects a client that soon takes no more if it does not read.
async fn connect_with_a_small_buffer(server: &Server) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    socket.connect(server.address).await.unwrap()
}

async fn next(input: &mut Input) -> Received {
    soon("a message", input.next()).await.expect("a message, not the end")
}

/// Reads to the end, and returns the messages.
async fn read_to_end(input: &mut Input) -> Vec<Received> {
    let mut messages = Vec::new();
    while let Some(message) = soon("a message, or the end", input.next()).await {
        messages.push(message);
    }
    messages
}

async fn publish(server: &Server, channel: &str, data: serde_json::Value) {
    let answer = server.publish(&json!({"channel": channel, "data": data}).to_string()).await;
    assert_eq!(answer.status, 200, "{answer:?}");
}

/// Publishes until some of it waits in the server for clients that do not read. Returns how many publications
/// these were.
async fn publish_until_it_waits(server: &Server) -> usize {
    let mut count = 0;
    while server.metric("lastcall_queue_bytes").await == 0.0 {
        publish(server, "a", json!(format!("{count} {:50000}", ""))).await;
        count += 1;
    }
    count
}

#[tokio::test]
async fn a_response_is_whole_after_a_drain_and_is_not_after_a_kill() {
    for (signal, is_whole) in [(Signal::TERM, true), (Signal::KILL, false)] {
        let mut server = quiet().env("SHUTDOWN_TIMEOUT", "1").env("SHUTDOWN_SPREAD", "1").serve().await;
        let mut input = ask(&server, connect(&server).await, "a").await;
        for data in 1..=3 {
            publish(&server, "a", json!(data)).await;
            assert_eq!(next(&mut input).await.json()["data"], data);
        }
        server.signal(signal);
        let last = read_to_end(&mut input).await;
        assert!(last.iter().all(|message| message.json()["type"] == "shutdown"), "{last:?}");
        assert_eq!(input.is_whole(), is_whole, "{signal:?}");
        drop(input);
        if is_whole {
            assert_eq!(server.exit_code().await, 0);
        }
    }
}

#[tokio::test]
async fn a_batch_of_publications_is_events_of_whole_chunks() {
    let server = quiet().serve().await;
    let mut input = ask(&server, connect(&server).await, "a").await;
    let publications: Vec<_> = (0..500).map(|data| json!({"channel": "a", "data": data})).collect();
    let body = json!({ "publications": publications }).to_string();
    let answer =
        server.request("POST", "/api/publish/batch", &["Content-Type: application/json"], &body).await;
    assert_eq!(answer.status, 200);
    for data in 0..500 {
        let message = next(&mut input).await;
        assert_eq!(message.json()["data"], data);
        assert_eq!(message.json()["id"], message.event_id.unwrap());
    }
}

#[tokio::test]
async fn an_upgrade_in_the_middle_of_a_chunk_goes_on_to_the_byte() {
    let mut server = quiet()
        .env("MAX_QUEUE", "64MiB")
        .env("SHUTDOWN_TIMEOUT", "1")
        .env("SHUTDOWN_SPREAD", "1")
        .serve()
        .await;
    let mut input = ask(&server, connect_with_a_small_buffer(&server).await, "a").await;
    let mut count = publish_until_it_waits(&server).await;
    for _ in 0..2 {
        server.upgrade().await;
        for _ in 0..3 {
            publish(&server, "a", json!(format!("{count} {:50000}", ""))).await;
            count += 1;
        }
    }
    for number in 0..count {
        let message = next(&mut input).await.json();
        assert!(message["data"].as_str().unwrap().starts_with(&format!("{number} ")), "{number}");
    }
    server.signal(Signal::TERM);
    read_to_end(&mut input).await;
    assert!(input.is_whole());
    assert_eq!(server.exit_code().await, 0);
}

#[tokio::test]
async fn a_slow_client_gets_the_rest_of_its_chunk_and_the_end() {
    let server = quiet()
        .env("MAX_QUEUE", "128KiB")
        .env("CLOSE_TIMEOUT", "100")
        .env("LASTCALL_EVENT_LOOPS", "1")
        .serve()
        .await;
    let mut input = ask(&server, connect_with_a_small_buffer(&server).await, "a").await;
    let count = publish_until_it_waits(&server).await;
    // It has its turn after the other one.
    let mut reader = ask(&server, connect(&server).await, "a").await;
    const MORE: usize = 5;
    for number in 0..MORE {
        publish(&server, "a", json!(format!("{number} {:50000}", ""))).await;
        next(&mut reader).await;
    }
    let got = read_to_end(&mut input).await;
    assert!(got.len() < count + MORE, "the rest was dropped");
    assert!(input.is_whole());
    drop(input);
    server.has_clients(1).await;
    assert_eq!(server.metric("lastcall_slow_consumers_total").await, 1.0);
}

#[tokio::test]
async fn a_client_that_has_ended_its_direction_gets_what_comes() {
    // Without pings, whatever happens here happens by itself.
    let mut server = quiet()
        .env("PING_INTERVAL", "0")
        .env("SHUTDOWN_TIMEOUT", "1")
        .env("SHUTDOWN_SPREAD", "1")
        .serve()
        .await;
    let mut after_the_start = ask(&server, connect(&server).await, "a").await;
    after_the_start.stream.shutdown().await.unwrap();
    let mut with_the_request = connect(&server).await;
    let request = Wire::EventStream.request(server.address, "channel=a", &[]);
    with_the_request.write_all(request.as_bytes()).await.unwrap();
    with_the_request.shutdown().await.unwrap();
    let mut with_the_request = Input::request(with_the_request, Wire::EventStream, "").await.unwrap();
    assert_eq!(soon("a head", with_the_request.status()).await, Some(200));
    assert_eq!(next(&mut with_the_request).await.json()["type"], "welcome");
    assert_eq!(next(&mut with_the_request).await.json()["type"], "subscribed");
    let mut inputs = [after_the_start, with_the_request];
    for data in 0..3 {
        publish(&server, "a", json!(data)).await;
        for input in &mut inputs {
            assert_eq!(next(input).await.json()["data"], data);
        }
        server.upgrade().await;
    }
    server.has_clients(2).await;
    server.signal(Signal::TERM);
    for input in &mut inputs {
        read_to_end(input).await;
        assert!(input.is_whole());
    }
    // The clients are still there, but nothing more can come of them.
    assert_eq!(server.exit_code().await, 0);
}

#[tokio::test]
async fn a_client_that_has_left_is_gone_at_once() {
    let server = quiet().env("PING_INTERVAL", "0").serve().await;
    for unread in [false, true] {
        let input = ask(&server, connect(&server).await, "a").await;
        server.has_clients(1).await;
        if unread {
            publish(&server, "a", json!(1)).await;
        }
        drop(input);
        server.has_clients(0).await;
    }
}

#[tokio::test]
async fn a_client_that_leaves_long_after_it_has_ended_its_direction_is_found_by_a_ping() {
    let server = quiet().env("PING_INTERVAL", "1").env("PONG_TIMEOUT", "1").serve().await;
    let mut input = ask(&server, connect(&server).await, "a").await;
    input.stream.shutdown().await.unwrap();
    // Longer than a client may be silent that does not take pings.
    tokio::time::sleep(Duration::from_secs(3)).await;
    publish(&server, "a", json!(1)).await;
    assert_eq!(next(&mut input).await.json()["data"], 1);
    drop(input);
    server.has_clients(0).await;
}

#[tokio::test]
async fn a_heartbeat_is_a_comment_and_no_empty_event() {
    let server = quiet().env("PING_INTERVAL", "1").env("PONG_TIMEOUT", "1").serve().await;
    let mut stream = connect(&server).await;
    let request = Wire::EventStream.request(server.address, "channel=a", &[]);
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut bytes = Vec::new();
    let count = |bytes: &[u8], part: &[u8]| bytes.windows(part.len()).filter(|one| *one == part).count();
    soon("two heartbeats", async {
        while count(&bytes, b"\r\n2\r\n:\n\r\n") < 2 {
            assert!(stream.read_buf(&mut bytes).await.unwrap() > 0);
        }
    })
    .await;
    let events = count(&bytes, b"\nevent: ") + count(&bytes, b"\r\nevent: ");
    assert_eq!(count(&bytes, b"\n\n"), events, "{}", String::from_utf8_lossy(&bytes));
}

/// Reads events line by line, as many libraries do, and prints each type when it is whole.
const PYTHON: &str = r#"
import http.client, sys
connection = http.client.HTTPConnection(sys.argv[1], timeout=100)
connection.request("GET", "/events?channel=a")
response = connection.getresponse()
assert response.chunked, response.headers
kind = None
for line in response:
    line = line.decode().rstrip("\n")
    if line.startswith("event: "):
        kind = line[len("event: "):]
    elif not line:
        print(kind, flush=True)
print("whole", flush=True)
"#;

#[tokio::test]
async fn the_library_of_python_gets_each_event_at_once_and_the_end() {
    let Some(python) = installed("python3") else { return };
    let mut server = quiet().env("SHUTDOWN_TIMEOUT", "1").env("SHUTDOWN_SPREAD", "1").serve().await;
    let mut child = Command::new(python)
        .args(["-c", PYTHON, &server.address.to_string()])
        .stdout(std::process::Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut output = child.stdout.take().unwrap();
    let mut printed = Vec::new();
    for (published, expected) in [(0, "welcome\nsubscribed\n"), (1, "notification\n"), (2, "notification\n")]
    {
        if published > 0 {
            publish(&server, "a", json!(published)).await;
        }
        printed.clear();
        soon("each event", async {
            while printed.len() < expected.len() {
                assert!(output.read_buf(&mut printed).await.unwrap() > 0, "{printed:?}");
            }
        })
        .await;
        assert_eq!(String::from_utf8_lossy(&printed), expected);
    }
    server.signal(Signal::TERM);
    printed.clear();
    soon("the end", output.read_to_end(&mut printed)).await.unwrap();
    assert!(printed.ends_with(b"shutdown\nwhole\n"), "{}", String::from_utf8_lossy(&printed));
    assert_eq!(server.exit_code().await, 0);
}
