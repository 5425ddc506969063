//! A graceful shutdown: clients have a notice, time to leave, and a close with a reason.

use std::{
    collections::HashSet,
    io::ErrorKind,
    time::{Duration, Instant},
};

use futures_util::StreamExt;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::mpsc,
    task::JoinSet,
};
use tokio_tungstenite::tungstenite::{Error, Message, error::ProtocolError};

use crate::support::{Server, Signal, Start, message, read_to_close, soon, takes_at_most, timed};

const RESTART: &str = "service restart";

#[tokio::test]
async fn a_server_without_clients_ends_at_once() {
    for signal in [Signal::TERM, Signal::INT] {
        takes_at_most(Duration::from_millis(200), async || {
            let mut server = Server::start().await;
            server.signal(signal);
            let (code, taken) = timed(server.exit_code()).await;
            assert_eq!(code, 0);
            taken
        })
        .await;
    }
}

#[tokio::test]
async fn a_server_ends_as_soon_as_its_last_client_has_left() {
    for signal in [Signal::TERM, Signal::INT] {
        takes_at_most(Duration::from_millis(100), async || {
            let mut server = Server::start().await;
            let mut clients = server.clients(50).await;
            server.signal(signal);
            for client in &mut clients {
                client.next_of("shutdown").await;
            }
            for client in clients {
                assert!(server.log_lines("drain ended").is_empty(), "it waits for the last one");
                client.leave().await;
            }
            let (code, taken) = timed(server.exit_code()).await;
            assert_eq!(code, 0);
            let ended = server.logged("drain ended").await;
            assert_eq!(
                (&ended["fields"]["left"], &ended["fields"]["closed"]),
                (&50.into(), &0.into()),
                "{ended}"
            );
            assert_eq!(server.phases(), ["serving", "draining", "stopped"]);
            taken
        })
        .await;
    }
}

#[tokio::test]
async fn a_client_that_stays_is_closed_at_the_deadline_with_a_reason() {
    for signal in [Signal::TERM, Signal::INT] {
        let mut server = Start::default()
            .env("SHUTDOWN_TIMEOUT", "1")
            .env("SHUTDOWN_SPREAD", "0")
            .env("CLOSE_TIMEOUT", "100")
            .serve()
            .await;
        let clients = server.clients(50).await;
        let signalled = Instant::now();
        server.signal(signal);
        let mut closing = JoinSet::new();
        for mut client in clients {
            closing.spawn(async move { (client.closed().await, signalled.elapsed()) });
        }
        for ((close, before), after) in closing.join_all().await {
            assert_eq!(close, (1012, RESTART.into()));
            assert!(
                before.iter().any(|message| message["type"] == "shutdown"),
                "notice comes before the close"
            );
            assert!(after >= Duration::from_secs(1), "closed {after:?} after the signal");
        }
        assert_eq!(server.exit_code().await, 0);
        let ended = server.logged("drain ended").await;
        assert_eq!((&ended["fields"]["closed"], &ended["fields"]["cut"]), (&50.into(), &0.into()), "{ended}");
        assert_eq!(server.phases(), ["serving", "draining", "closing", "stopped"]);
    }
}

#[tokio::test]
async fn a_client_that_never_reads_is_cut_off_after_the_close_timeout() {
    let both = Duration::from_millis(200 + 500);
    takes_at_most(both + Duration::from_secs(1), async || {
        let mut server = Start::default()
            .env("SHUTDOWN_TIMEOUT", "0.2")
            .env("SHUTDOWN_SPREAD", "0")
            .env("CLOSE_TIMEOUT", "0.5")
            .env("MAX_QUEUE", "64MiB")
            .serve()
            .await;
        let mut stuck = server.raw_client().await;
        let published = server.publish_until_queued(1_000_000, async || ()).await;
        server.signal(Signal::TERM);
        let (code, taken) = timed(server.exit_code()).await;
        assert_eq!(code, 0);
        assert!(taken >= both, "it had both timeouts, not {taken:?}");
        assert_eq!(server.logged("drain ended").await["fields"]["cut"], 1);
        let mut got = Vec::new();
        let _ = soon("the end", stuck.read_to_end(&mut got)).await;
        assert!(got.len() < published * 60_000, "something did wait");
        taken
    })
    .await;
}

#[tokio::test]
async fn queued_messages_are_written_before_the_close() {
    let mut server = Start::default()
        .env("SHUTDOWN_TIMEOUT", "0.2")
        .env("CLOSE_TIMEOUT", "100")
        .env("MAX_QUEUE", "64MiB")
        .serve()
        .await;
    let mut late = server.raw_client().await;
    let published = server.publish_until_queued(1_000_000, async || ()).await;
    server.signal(Signal::TERM);
    server.logged("closing 1 client").await;
    let got = read_to_close(&mut late, b"\x03\xF4service restart").await;
    assert!(got.len() > published * 60_000, "everything came before it, {} bytes", got.len());
    drop(late);
    assert_eq!(server.exit_code().await, 0);
}

#[tokio::test]
async fn a_second_signal_closes_now() {
    for second in [Signal::TERM, Signal::INT] {
        let mut server = Server::start().await;
        let mut client = server.client().await;
        server.signal(Signal::INT);
        let wait = server.logged("waiting up to 30m for 1 client to leave").await;
        assert!(
            message(&wait).contains("press Ctrl+C again") && message(&wait).contains("close 1 client now"),
            "{wait}"
        );
        server.signal(second);
        assert_eq!(client.closed().await.0, (1012, RESTART.into()));
        assert_eq!(server.exit_code().await, 0);
        assert_eq!(server.phases(), ["serving", "draining", "closing", "stopped"]);
        let closing = server.logged("closing 1 client, within 5s").await;
        assert!(message(&closing).contains("to exit at once"), "{closing}");
    }
}

#[tokio::test]
async fn a_third_signal_exits_at_once() {
    for (third, code) in [(Signal::TERM, 143), (Signal::INT, 130)] {
        let mut server = Start::default().env("CLOSE_TIMEOUT", "600").serve().await;
        let _stuck = server.raw_client().await;
        server.signal(Signal::TERM);
        server.logged("waiting up to").await;
        server.signal(Signal::TERM);
        server.logged("second signal").await;
        server.signal(third);
        let (exit, taken) = timed(server.exit_code()).await;
        assert_eq!(exit, code);
        assert!(taken < Duration::from_secs(5), "{taken:?}");
    }
}

#[tokio::test]
async fn new_clients_are_refused_during_a_drain_and_http_goes_on() {
    let mut server = Server::start().await;
    let ready = server.get("/health/ready").await;
    assert_eq!(ready.status, 200);
    let start =
        r#"{"phase":"serving","clients":0,"seconds_left":null,"drain_clients":null,"max_connections":"#;
    assert!(ready.body.starts_with(start), "{ready:?}");
    let client = server.client().await;
    server.signal(Signal::TERM);
    server.logged("waiting up to").await;

    let refusal = server.refusal(&[]).await;
    assert_eq!(refusal.error(), (503, "draining".into()));
    assert!(refusal.head.contains(r#""retry-after": "5""#), "{refusal:?}");
    let ready = server.get("/health/ready").await;
    let body = ready.json();
    assert_eq!((ready.status, &body["phase"], &body["clients"]), (503, &"draining".into(), &1.into()));
    let left = body["seconds_left"].as_f64().unwrap();
    assert!((1700.0..=1800.0).contains(&left), "{left}");
    assert_eq!(server.get("/health/live").await.status, 200);
    assert_eq!(server.get("/").await.status, 200);
    assert_eq!(server.publish(r#"{"data": 1}"#).await.json()["clients"], 1);
    client.leave().await;
    assert_eq!(server.exit_code().await, 0);
}

#[tokio::test]
async fn connected_clients_are_served_until_they_leave() {
    let mut server = Start::default().env("NOTIFICATION_INTERVAL", "0.2").serve().await;
    let mut clients = server.clients(5).await;
    server.signal(Signal::TERM);
    let mut notices = Vec::new();
    for client in &mut clients {
        let notice = client.next_of("shutdown").await;
        assert_eq!(notice["reason"], RESTART);
        let left = notice["seconds_left"].as_f64().unwrap();
        assert!((1700.0..=1800.0).contains(&left), "{notice}");
        let time = |key: &str| notice[key].as_str().unwrap().parse::<jiff::Timestamp>().unwrap();
        let until = time("deadline").duration_since(time("time")).as_secs_f64();
        assert!((until - left).abs() < 0.0025, "{until} s, each rounded to a millisecond: {notice}");
        notices.push(notice);
    }
    let after = |notice: &serde_json::Value| notice["reconnect"]["after_ms"].as_u64().unwrap();
    // Two of them may have the same millisecond of thousands.
    let moments: HashSet<_> = notices.iter().map(after).collect();
    assert!(moments.len() > 2, "each comes back at its own time: {moments:?}");

    clients[0].say("still here").await;
    assert_eq!(clients[1].next_of("message").await["data"], "still here");
    clients[1].next_of("notification").await;
    let again = clients[1].next_of("shutdown").await;
    assert!(again["seconds_left"].as_f64() < notices[1]["seconds_left"].as_f64(), "a reminder");
    assert_eq!(after(&again), after(&notices[1]), "the same each time, until clients are closed");
    for client in clients {
        client.leave().await;
    }
    assert_eq!(server.exit_code().await, 0);
}

#[tokio::test]
async fn progress_is_logged_at_every_tenth() {
    let mut server = Server::start().await;
    let clients = server.clients(20).await;
    server.signal(Signal::TERM);
    let started = server.logged("drain started").await;
    assert_eq!(started["fields"]["clients"], 20);
    for (index, client) in clients.into_iter().enumerate() {
        client.leave().await;
        let gone = index + 1;
        if gone % 2 == 0 {
            // Awaited one by one: clients that leave together are counted together.
            let line = server
                .logged(&format!("drain progress: {gone} of 20 gone, {} still connected", 20 - gone))
                .await;
            assert_eq!(line["fields"]["total"], 20);
        }
    }
    assert_eq!(server.exit_code().await, 0);
    assert_eq!(server.log_lines("drain progress").len(), 10, "not at every client");
    let ended = server.logged("drain ended: 20 left by themselves, 0 were closed, 0 had to be cut").await;
    assert_eq!(ended["fields"]["left"], 20);
}

/// What happened to a client that connected while the signal came.
#[derive(Debug, PartialEq, Eq, Hash)]
enum Seen {
    /// Told to come back later.
    Told,
    /// The port was closed already, or closed while it dialled.
    TooLate,
    Served,
    Forgotten(String),
}

async fn dial(url: String) -> Seen {
    let (mut socket, _) = match tokio_tungstenite::connect_async(url).await {
        Ok(connected) => connected,
        Err(Error::Http(answer)) if answer.status() == 503 => return Seen::Told,
        Err(Error::Io(error))
            if matches!(
                error.kind(),
                ErrorKind::ConnectionRefused | ErrorKind::ConnectionReset | ErrorKind::BrokenPipe
            ) =>
        {
            return Seen::TooLate;
        }
        // The port was closed while it stood in the backlog.
        Err(Error::Protocol(ProtocolError::HandshakeIncomplete)) => return Seen::TooLate,
        Err(error) => return Seen::Forgotten(error.to_string()),
    };
    let (mut noticed, mut code) = (false, None);
    while let Some(Ok(message)) = socket.next().await {
        match message {
            Message::Text(text) => noticed |= text.contains(r#""type":"shutdown""#),
            Message::Close(frame) => code = frame.map(|frame| u16::from(frame.code)),
            _ => {}
        }
    }
    if noticed && code == Some(1012) {
        Seen::Served
    } else {
        Seen::Forgotten(format!("noticed: {noticed}, close: {code:?}"))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_connects_at_the_signal_is_served_or_refused_but_never_forgotten() {
    let mut seen = HashSet::new();
    for round in 0..30 {
        // One that is late must not reach the next server, or that of another test.
        let mut server = Start::default()
            .own_address()
            .env("SHUTDOWN_TIMEOUT", "0.1")
            .env("CLOSE_TIMEOUT", "100")
            .serve()
            .await;
        // A client is connected before, and keeps the server until the deadline.
        let stays = server.client().await;
        let (begins, mut begun) = mpsc::channel(30);
        let mut dialling = JoinSet::new();
        for _ in 0..30 {
            let (url, begins) = (server.ws_url(), begins.clone());
            dialling.spawn(async move {
                begins.send(()).await.unwrap();
                dial(url).await
            });
        }
        for _ in 0..=round {
            begun.recv().await.unwrap();
        }
        server.signal(Signal::TERM);
        server.logged("drain started").await;
        let late = soon("the answer to a client that is late", dial(server.ws_url())).await;
        assert!(matches!(late, Seen::Told | Seen::TooLate), "round {round}: {late:?}");
        seen.extend(soon("the end of every handshake", dialling.join_all()).await);
        drop(stays);
        assert_eq!(server.exit_code().await, 0);
        let forgotten: Vec<_> = seen.iter().filter(|seen| matches!(seen, Seen::Forgotten(_))).collect();
        assert!(forgotten.is_empty(), "round {round}: {forgotten:?}");
    }
    assert!(seen.contains(&Seen::Served), "none came before the signal: {seen:?}");
}

#[tokio::test]
async fn idle_and_slow_http_connections_do_not_delay_the_end() {
    takes_at_most(Duration::from_millis(200), async || {
        let mut server = Server::start().await;
        let _silent = TcpStream::connect(server.address).await.unwrap();
        let mut dribbling = TcpStream::connect(server.address).await.unwrap();
        dribbling.write_all(b"GET / HTTP/1.1\r\nHost:").await.unwrap();
        // Answered after both above were accepted: connections are accepted in order.
        server.get("/health/live").await;
        server.signal(Signal::TERM);
        let (code, taken) = timed(server.exit_code()).await;
        assert_eq!(code, 0);
        taken
    })
    .await;
}

#[tokio::test]
async fn an_http_request_in_flight_is_answered_before_the_end() {
    let mut server = Server::start().await;
    let mut slow = TcpStream::connect(server.address).await.unwrap();
    let head = format!(
        "POST /api/publish HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\n\
         Content-Length: 11\r\nExpect: 100-continue\r\n\r\n",
        server.address
    );
    slow.write_all(head.as_bytes()).await.unwrap();
    // The server asks for the body: the request is in its hands.
    let mut asked = [0; 25];
    soon("100 Continue", slow.read_exact(&mut asked)).await.unwrap();
    server.signal(Signal::TERM);
    server.logged("drain ended").await;
    slow.write_all(br#"{"data": 1}"#).await.unwrap();
    let mut answer = String::new();
    soon("the answer", slow.read_to_string(&mut answer)).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert_eq!(server.exit_code().await, 0);
}
