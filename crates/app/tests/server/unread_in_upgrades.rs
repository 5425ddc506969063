//! Unread output, and messages that are sent in part, decide neither over an upgrade nor over its pause.

use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::support::{Server, Start, read_frame, soon, text_frame, until};

const MIB: usize = 1 << 20;

/// The memory that a process may take up beyond what the one before it had, in bytes.
const MEMORY: usize = 64 * MIB;

/// Upgrades, and returns how long the clients waited, in milliseconds.
async fn pause(server: &mut Server) -> f64 {
    let told = server.upgrade().await;
    let waited = told.split("which waited ").nth(1).and_then(|rest| rest.split(' ').next());
    waited.and_then(|milliseconds| milliseconds.parse().ok()).unwrap_or_else(|| panic!("{told}"))
}

/// Publishes so many texts of 1,000 bytes in `orders`. Returns the id of the last one.
async fn publish(server: &Server, count: usize) -> String {
    let mut last = String::new();
    let mut left = count;
    while left > 0 {
        let batch = left.min(500);
        let publications: Vec<_> =
            (0..batch).map(|_| json!({"channel": "orders", "data": "x".repeat(1000)})).collect();
        let body = json!({ "publications": publications }).to_string();
        let answer =
            server.request("POST", "/api/publish/batch", &["Content-Type: application/json"], &body).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        last = answer.json()["results"][batch - 1]["id"].as_str().unwrap().to_owned();
        left -= batch;
    }
    last
}

/// Connects a client that asks for everything after `since`, and reads nothing of it yet.
async fn come_back(server: &Server, since: &str) -> TcpStream {
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let mut stream = socket.connect(server.address).await.unwrap();
    let request = crate::support::handshake(server.address)
        .replace("GET /ws ", &format!("GET /ws?channel=orders&since={since} "));
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(soon("the answer to a handshake", stream.read_u8()).await.unwrap());
    }
    stream
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_read_nothing_of_a_large_history_neither_fail_an_upgrade_nor_make_its_pause_longer() {
    const MISSED: usize = 16_000;
    let start = Start::default().env("HISTORY_SIZE", "1000000").env("HISTORY_BYTES", "256MiB");
    let mut server = start.serve().await;
    let since = publish(&server, 1).await;
    publish(&server, MISSED).await;
    let idle = pause(&mut server).await.max(pause(&mut server).await);
    let mut clients = Vec::new();
    for _ in 0..20 {
        clients.push(come_back(&server, &since).await);
    }
    let before = server.memory();
    let unread = pause(&mut server).await;
    // As bytes, it would be 300 MiB, and far longer.
    assert!(unread < 10.0 * idle + 500.0, "{unread} ms, with idle clients {idle} ms");
    assert!(server.memory() < before + MEMORY, "{} bytes, before {before}", server.memory());
    // And nothing is lost.
    let last = publish(&server, 1).await;
    let client = clients.last_mut().unwrap();
    let mut count = 0;
    loop {
        let message: Value = serde_json::from_slice(&read_frame(client).await.1).unwrap();
        if message["type"] == "notification" {
            count += 1;
        }
        if message["id"] == json!(last) {
            break;
        }
    }
    assert_eq!(count, MISSED + 1);
    assert_eq!(server.metric("lastcall_connections").await, 20.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_that_clients_send_in_part_go_over_within_a_budget_and_the_largest_are_closed() {
    const CLIENTS: usize = 100;
    const PART: usize = 900 << 10;
    let mut server = Start::default().env("MAX_MESSAGE_SIZE", "1MiB").serve().await;
    let mut small = server.raw_client().await;
    small.write_all(&text_frame("the small message")[..10]).await.unwrap();
    let idle = pause(&mut server).await.max(pause(&mut server).await);
    let mut clients = Vec::new();
    let mut frame = vec![0x81, 0xFF];
    frame.extend((MIB as u64).to_be_bytes());
    frame.extend([0; 4]);
    frame.resize(frame.len() + PART, b'x');
    for _ in 0..CLIENTS {
        let mut client = server.raw_client().await;
        client.write_all(&frame).await.unwrap();
        clients.push(client);
    }
    let all = (CLIENTS * PART) as f64;
    until("the bytes to arrive", async || server.metric("lastcall_received_bytes_total").await >= all).await;
    let before = server.memory();
    let unread = pause(&mut server).await;
    assert!(unread < 10.0 * idle + 1000.0, "{unread} ms, with idle clients {idle} ms");
    assert!(server.memory() < before + MEMORY, "{} bytes, before {before}", server.memory());
    // Those that stay go on with their message.
    small.write_all(&text_frame("the small message")[10..]).await.unwrap();
    loop {
        let message: Value = serde_json::from_slice(&read_frame(&mut small).await.1).unwrap();
        if message["type"] == "message" {
            assert_eq!(message["data"], "the small message");
            break;
        }
    }
    let (mut closed, mut open) = (0, 0);
    for mut client in clients {
        client.write_all(&[b'x'; 1]).await.unwrap();
        // The welcome, the text of the small client, and a close if there is one: it came before that text.
        loop {
            let (first_byte, payload) = read_frame(&mut client).await;
            if first_byte == 0x88 {
                assert_eq!(&payload[2..], b"slow consumer");
                assert_eq!(payload[..2], 1008_u16.to_be_bytes());
                closed += 1;
                break;
            }
            if String::from_utf8_lossy(&payload).contains("the small message") {
                open += 1;
                break;
            }
        }
    }
    assert!(closed >= 10 && open >= 40, "{closed} closed, {open} open");
}
