//! Every client of a drain is told when to come back before it is closed, and the number of clients is the
//! same wherever it is told.

use std::time::Duration;

use futures_util::StreamExt;
use rustix::process::kill_process;
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::mpsc,
    task::JoinSet,
};
use tokio_tungstenite::tungstenite::Message;

use crate::support::{CLOSE, Client, Server, Signal, Start, read_to_close, soon};

/// Returns the number of clients that a drain began with, from everywhere; they must be the same.
async fn drain_clients(server: &Server) -> u64 {
    let logged = server.logged("drain started").await["fields"]["clients"].as_u64().unwrap();
    let ready = server.get("/health/ready").await.json();
    assert_eq!(ready["drain_clients"], logged, "{ready}");
    assert_eq!(server.metric("lastcall_drain_initial_connections").await, logged as f64);
    logged
}

#[tokio::test(flavor = "multi_thread")]
async fn the_number_of_clients_of_a_drain_is_the_same_everywhere_although_clients_leave_meanwhile() {
    for _ in 0..5 {
        let mut server = Server::start().await;
        let stays = server.client().await;
        let mut leaving = Vec::new();
        for _ in 0..500 {
            leaving.push(server.raw_client().await);
        }
        let pid = server.pid();
        let leaving = tokio::task::spawn_blocking(move || {
            for (number, client) in leaving.into_iter().enumerate() {
                drop(client);
                if number == 50 {
                    kill_process(pid, Signal::TERM).unwrap();
                }
            }
        });
        let clients = drain_clients(&server).await;
        leaving.await.unwrap();
        let waiting = server.logged("waiting up to").await;
        let told = format!("for {clients} client");
        assert!(waiting["fields"]["message"].as_str().unwrap().contains(&told), "{clients}: {waiting}");
        stays.leave().await;
        assert_eq!(server.exit_code().await, 0);
        let ended = server.logged("drain ended").await;
        let sum =
            |keys: [&str; 3]| keys.iter().map(|key| ended["fields"][key].as_u64().unwrap()).sum::<u64>();
        assert_eq!(sum(["left", "closed", "cut"]), clients, "{ended}");
    }
}

#[tokio::test]
async fn the_phase_and_what_belongs_to_it_change_together() {
    let mut server = Server::start().await;
    let client = server.client().await;
    server.signal(Signal::TERM);
    loop {
        let ready = server.get("/health/ready").await.json();
        let draining = ready["phase"] == "draining";
        assert_eq!(ready["drain_clients"].is_u64(), draining, "{ready}");
        assert_eq!(ready["seconds_left"].is_f64(), draining, "{ready}");
        if draining {
            break;
        }
    }
    client.leave().await;
    assert_eq!(server.exit_code().await, 0);
}

/// Returns what a client got, once it is closed: its notices, and whether the last of them was the last
/// message.
async fn notices(mut client: Client) -> (Vec<Value>, u16) {
    let (close, before) = client.closed().await;
    assert_eq!(before.last().unwrap()["type"], "shutdown", "{before:?}");
    (before.into_iter().filter(|message| message["type"] == "shutdown").collect(), close.0)
}

#[tokio::test]
async fn the_last_message_before_a_close_is_a_notice_however_it_comes_to_the_close() {
    // Closed one by one, all at the deadline, and by a second signal.
    for (spread, signals) in [("0.3", 1), ("0", 1), ("0", 2)] {
        let timeout = if signals == 2 { "60" } else { "0.5" };
        let mut server = Start::default()
            .env("NOTIFICATION_INTERVAL", "0")
            .env("SHUTDOWN_TIMEOUT", timeout)
            .env("SHUTDOWN_SPREAD", spread)
            .serve()
            .await;
        let mut clients = server.clients(5).await;
        server.signal(Signal::TERM);
        server.logged("waiting up to").await;
        // Something after the first notice.
        clients[0].say("Hello").await;
        for client in &mut clients {
            client.next_of("message").await;
        }
        if signals == 2 {
            server.signal(Signal::INT);
        }
        for client in clients {
            let (notices, code) = notices(client).await;
            assert_eq!((notices.len(), code), (1, 1012), "{notices:?}");
            let left = notices[0]["seconds_left"].as_f64().unwrap();
            assert!(left <= 0.5, "it says how long there is: {notices:?}");
        }
        assert_eq!(server.exit_code().await, 0);
    }
}

#[tokio::test]
async fn clients_of_an_earlier_process_have_their_notices_from_the_new_one() {
    let mut server = Start::default().env("SHUTDOWN_TIMEOUT", "0.5").serve().await;
    let clients = server.clients(5).await;
    server.upgrade().await;
    server.signal(Signal::TERM);
    for client in clients {
        let (notices, code) = notices(client).await;
        assert_eq!((notices.len(), code), (2, 1012), "{notices:?}");
    }
    assert_eq!(server.exit_code().await, 0);
}

/// Returns when a client that had this notice right before its close is to come back: milliseconds after the
/// deadline, by the server's own clock; before it, they are negative.
fn comes_back(notice: &Value) -> i64 {
    let time = |key: &str| notice[key].as_str().unwrap().parse::<jiff::Timestamp>().unwrap();
    let after = notice["reconnect"]["after_ms"].as_i64().unwrap();
    after - time("deadline").duration_since(time("time")).as_millis() as i64
}

#[tokio::test]
async fn clients_that_are_closed_come_back_when_the_only_server_has_ended() {
    // Closed one by one, all at the deadline, and by a second signal.
    for (spread, signals) in [("1", 1), ("0", 1), ("1", 2)] {
        let timeout = if signals == 2 { "60" } else { "1.5" };
        let mut server = Start::default()
            .env("SHUTDOWN_TIMEOUT", timeout)
            .env("SHUTDOWN_SPREAD", spread)
            .env("CLOSE_TIMEOUT", "30")
            .serve()
            .await;
        let clients = server.clients(12).await;
        server.signal(Signal::TERM);
        if signals == 2 {
            server.logged("waiting up to").await;
            server.signal(Signal::TERM);
        }
        let mut moments = Vec::new();
        for client in clients {
            let (notices, _) = notices(client).await;
            moments.push(comes_back(notices.last().unwrap()));
        }
        // `close_timeout`, and at least a second; each of three times is rounded to a millisecond.
        let window = 30_998..=32_002;
        assert!(moments.iter().all(|moment| window.contains(moment)), "{moments:?}");
        moments.sort();
        moments.dedup();
        assert!(moments.len() > 6, "each at its own time: {moments:?}");
        assert_eq!(server.exit_code().await, 0);
    }
}

#[tokio::test]
async fn clients_that_are_closed_come_back_at_once_where_there_are_other_servers() {
    let mut server = Start::default()
        .env("SHUTDOWN_DELAY", "0.1")
        .env("SHUTDOWN_TIMEOUT", "1.5")
        .env("SHUTDOWN_SPREAD", "1")
        .env("CLOSE_TIMEOUT", "30")
        .serve()
        .await;
    let clients = server.clients(12).await;
    server.signal(Signal::TERM);
    for client in clients {
        let (notices, _) = notices(client).await;
        let after = notices.last().unwrap()["reconnect"]["after_ms"].as_u64().unwrap();
        assert!((1000..=2000).contains(&after), "{notices:?}");
    }
    assert_eq!(server.exit_code().await, 0);
}

/// Bytes that the queue may have.
const QUEUE: usize = 65536;

/// Returns a server, and a client that does not read, for which more than its queue may have is waiting: the
/// next publication would close it.
async fn full_queue() -> (Server, TcpStream) {
    let server = Start::default()
        .env("NOTIFICATION_INTERVAL", "0")
        .env("PING_INTERVAL", "0")
        .env("SHUTDOWN_TIMEOUT", "60")
        .env("MAX_QUEUE", QUEUE)
        .serve()
        .await;
    let stuck = server.raw_client().await;
    // What the kernel takes is not known. A chunk counts until all of it is written: so far from the bound,
    // the next publication closes nobody.
    while (server.metric("lastcall_queue_bytes").await as usize) < QUEUE - 25_000 {
        publish(&server, 20_000).await;
    }
    publish(&server, 60_000).await;
    (server, stuck)
}

async fn publish(server: &Server, size: usize) {
    let answer = server.publish(&format!(r#"{{"data":"{}"}}"#, "x".repeat(size))).await;
    assert_eq!(answer.status, 200);
    assert_eq!(server.metric("lastcall_slow_consumers_total").await, 0.0);
}

/// Returns the texts that came before the close.
fn texts(bytes: &[u8]) -> Vec<Value> {
    let (mut at, mut texts) = (0, Vec::new());
    while bytes[at] == 0x81 {
        let (start, len) = match bytes[at + 1] {
            126 => (at + 4, usize::from(u16::from_be_bytes([bytes[at + 2], bytes[at + 3]]))),
            127 => panic!("no text is that long"),
            len => (at + 2, usize::from(len)),
        };
        texts.push(serde_json::from_slice(&bytes[start..start + len]).unwrap());
        at = start + len;
    }
    assert_eq!(bytes[at], 0x88, "then the close");
    texts
}

#[tokio::test]
async fn a_client_whose_queue_is_full_has_its_notices_too() {
    let (mut server, mut stuck) = full_queue().await;
    server.signal(Signal::TERM);
    server.logged("waiting up to").await;
    server.signal(Signal::TERM);
    server.logged("closing 1 client").await;
    let texts = texts(&read_to_close(&mut stuck, b"\x03\xF4service restart").await);
    let types: Vec<_> = texts.iter().map(|text| text["type"].as_str().unwrap()).collect();
    assert!(types.ends_with(&["notification", "shutdown", "shutdown"]), "{types:?}");
    drop(stuck);
    assert_eq!(server.exit_code().await, 0);
}

#[tokio::test]
async fn a_client_that_is_too_slow_during_a_drain_is_told_when_to_come_back() {
    let (mut server, mut stuck) = full_queue().await;
    server.signal(Signal::TERM);
    server.logged("waiting up to").await;
    // The kernel may have taken more meanwhile, but does not take all of this.
    for _ in 0..20 {
        let body = format!(r#"{{"data":"{}"}}"#, "x".repeat(20_000));
        assert_eq!(server.publish(&body).await.status, 200);
    }
    let texts = texts(&read_to_close(&mut stuck, b"\x03\xF0slow consumer").await);
    let types: Vec<_> = texts.iter().map(|text| text["type"].as_str().unwrap()).collect();
    assert!(types.ends_with(&["notification", "shutdown"]), "{types:?}");
    drop(stuck);
    assert_eq!(server.exit_code().await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_finishes_its_handshake_during_the_drain_has_its_notices() {
    for round in 0..20 {
        let mut server =
            Start::default().env("SHUTDOWN_TIMEOUT", "0.2").env("SHUTDOWN_SPREAD", "0.1").serve().await;
        let stays = server.client().await;
        let (begins, mut begun) = mpsc::channel(20);
        let mut dialling = JoinSet::new();
        for _ in 0..20 {
            let (url, begins) = (server.ws_url(), begins.clone());
            dialling.spawn(async move {
                begins.send(()).await.unwrap();
                let Ok((mut socket, _)) = tokio_tungstenite::connect_async(url).await else { return };
                let (mut last, mut code) = (Value::Null, None);
                while let Some(Ok(message)) = socket.next().await {
                    match message {
                        Message::Text(text) => last = serde_json::from_str(&text).unwrap(),
                        Message::Close(frame) => code = frame.map(|frame| u16::from(frame.code)),
                        _ => {}
                    }
                }
                assert_eq!((&last["type"], code), (&"shutdown".into(), Some(1012)));
            });
        }
        for _ in 0..=round {
            begun.recv().await.unwrap();
        }
        server.signal(Signal::TERM);
        soon("all closes", dialling.join_all()).await;
        drop(stays);
        assert_eq!(server.exit_code().await, 0);
    }
}

#[tokio::test]
async fn a_client_that_closes_itself_at_the_same_moment_has_its_own_code_back() {
    let mut server = Server::start().await;
    let mut client = server.raw_client().await;
    client.write_all(CLOSE).await.unwrap();
    server.signal(Signal::TERM);
    let mut got = Vec::new();
    soon("the end", tokio::time::timeout(Duration::from_secs(20), client.read_to_end(&mut got)))
        .await
        .expect("the end")
        .unwrap();
    assert!(got.ends_with(b"\x88\x02\x03\xE8"), "{got:?}");
    assert_eq!(server.exit_code().await, 0);
}
