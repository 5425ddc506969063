//! No client gets more than its share, and no other client pays for it.

use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio_tungstenite::tungstenite::Message;

use crate::support::{KEY, Server, Start, read_to_close, soon, takes_at_most, text_frame, timed};

#[tokio::test]
async fn a_client_that_stops_reading_is_cut_off_and_the_others_lose_nothing() {
    let server = Start::default().env("MAX_QUEUE", "256KiB").env("CLOSE_TIMEOUT", "600").serve().await;
    let mut slow = server.raw_client().await;
    let mut quick = server.clients(3).await;
    let padding = "x".repeat(60_000);
    soon("the slow one to be cut off", async {
        let (mut n, mut queued, mut most_queued) = (0, 0.0, 0.0_f64);
        // However much the kernel takes for it: something waits in the server, then it is let go.
        while queued > 0.5 * most_queued || most_queued < 128.0 * 1024.0 {
            let body = format!(r#"{{"data": {{"n": {n}, "padding": "{padding}"}}}}"#);
            assert_eq!(server.publish(&body).await.status, 200);
            for client in &mut quick {
                let notification = client.next().await;
                assert_eq!(notification["data"]["n"], n, "nothing lost, all in order");
            }
            n += 1;
            queued = server.metric("lastcall_queue_bytes").await;
            most_queued = most_queued.max(queued);
        }
    })
    .await;
    // Now it reads on: whole frames, and the close frame as the last of them.
    let bytes = read_to_close(&mut slow, b"\x88\x0F\x03\xF0slow consumer").await;
    let mut at = 0;
    while at < bytes.len() {
        at += match bytes[at + 1] {
            126 => 4 + usize::from(u16::from_be_bytes([bytes[at + 2], bytes[at + 3]])),
            127 => 10 + u64::from_be_bytes(bytes[at + 2..at + 10].try_into().unwrap()) as usize,
            len => 2 + usize::from(len),
        };
    }
    assert_eq!(at, bytes.len(), "no frame was cut in two");
}

#[tokio::test]
async fn a_full_server_refuses_clients_until_one_has_left() {
    let server = Start::default().env("MAX_CONNECTIONS", "2").serve().await;
    let (first, _second) = (server.client().await, server.client().await);
    let refusal = server.refusal(&[]).await;
    assert_eq!(refusal.error(), (503, "full".into()));
    assert!(refusal.head.contains("retry-after"));
    assert_eq!(server.get("/health/ready").await.status, 200, "it serves those it has");
    first.leave().await;
    server.has_clients(1).await;
    server.client().await;
}

#[tokio::test]
async fn pages_of_other_hosts_are_refused() {
    let own = Server::start().await;
    let same = format!("http://{}", own.address);
    assert!(own.dial(&[("origin", &same)]).await.is_ok());
    let refusal = own.refusal(&[("origin", "https://elsewhere.example")]).await;
    assert_eq!(refusal.error(), (403, "origin_not_allowed".into()));

    let list = Start::default().env("ALLOWED_ORIGINS", "https://a.example,https://b.example").serve().await;
    assert!(list.dial(&[("origin", "https://b.example")]).await.is_ok());
    assert_eq!(list.refusal(&[("origin", &same)]).await.status, 403);

    let all = Start::default().env("ALLOWED_ORIGINS", "*").serve().await;
    assert!(all.dial(&[("origin", "https://elsewhere.example")]).await.is_ok());
}

#[tokio::test]
async fn a_request_that_is_no_handshake_is_told_what_to_do() {
    let server = Server::start().await;
    let plain = server.get("/ws").await;
    assert_eq!(plain.error(), (426, "upgrade_required".into()));
    assert!(plain.head.to_lowercase().contains("upgrade: websocket"), "{plain:?}");
    let upgrade = ["Upgrade: websocket", KEY];
    let old = server.request("GET", "/ws", &[&upgrade[..], &["Sec-WebSocket-Version: 8"]].concat(), "").await;
    assert_eq!(old.status, 426);
    assert!(old.head.to_lowercase().contains("sec-websocket-version: 13"), "{old:?}");
    let key = server.refusal(&[("sec-websocket-key", "c2hvcnQ=")]).await;
    assert_eq!(key.error(), (400, "bad_handshake".into()));
    let delete = server.request("DELETE", "/", &[], "").await;
    assert_eq!(delete.error(), (405, "method_not_allowed".into()));
    assert!(delete.head.to_lowercase().contains("allow: get,head"), "{delete:?}");
    assert_eq!(server.get("/nothing").await.error(), (404, "not_found".into()));
    assert_eq!(server.get("/health/live").await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_from_one_client_does_not_keep_the_others_waiting() {
    let server = Start::default().env("CLIENT_MESSAGES", "ignore").serve().await;
    let (mut flood, mut other) = (server.raw_client().await, server.client().await);
    // Both are on the first event loop: a loop takes 256 connections before the next one is used.
    let flooding = tokio::spawn(async move {
        let frames = text_frame("Hello").repeat(5000);
        while flood.write_all(&frames).await.is_ok() {}
    });
    takes_at_most(Duration::from_millis(500), async || {
        let mut longest = Duration::ZERO;
        for n in 0..50 {
            let ping = Message::Ping(format!("{n}").into_bytes().into());
            let pong = Message::Pong(format!("{n}").into_bytes().into());
            other.send(ping).await;
            let (answer, taken) = timed(other.next_frame()).await;
            assert_eq!(answer, pong);
            longest = longest.max(taken);
        }
        longest
    })
    .await;
    flooding.abort();
}
