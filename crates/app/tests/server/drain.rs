//! A drain in style: readiness first, closes spread out.

use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use futures_util::StreamExt;
use tokio::{sync::mpsc, task::JoinSet};
use tokio_tungstenite::{connect_async, tungstenite::Message};

use crate::support::{Server, Signal, Start, raise_fd_limit, soon, takes_at_most, timed};

/// What a client saw at its end: whether it had notice, when its close came, and its code.
struct Seen {
    noticed: bool,
    closed: Option<(Instant, u16)>,
}

/// Clients that stay until they are closed.
async fn crowd(server: &Server, count: usize) -> JoinSet<Seen> {
    let mut clients = JoinSet::new();
    let (ready, mut readies) = mpsc::channel(count);
    let slots = Arc::new(tokio::sync::Semaphore::new(200));
    for _ in 0..count {
        let (url, ready, slots) = (server.ws_url(), ready.clone(), Arc::clone(&slots));
        clients.spawn(async move {
            let slot = slots.acquire().await.unwrap();
            let (mut socket, _) = connect_async(url).await.unwrap();
            drop(slot);
            let mut seen = Seen { noticed: false, closed: None };
            while let Some(Ok(message)) = socket.next().await {
                match message {
                    Message::Text(text) if text.contains(r#""type":"welcome""#) => {
                        ready.send(()).await.unwrap()
                    }
                    Message::Text(text) => seen.noticed |= text.contains(r#""type":"shutdown""#),
                    Message::Close(frame) => {
                        seen.closed = frame.map(|frame| (Instant::now(), frame.code.into()));
                    }
                    _ => {}
                }
            }
            seen
        });
    }
    soon("everybody's welcome", async {
        for _ in 0..count {
            readies.recv().await.unwrap();
        }
    })
    .await;
    clients
}

/// The largest share of the closes that fell into a tenth of a second.
fn largest_slot(mut closes: Vec<Instant>) -> f64 {
    closes.sort();
    let window = Duration::from_millis(100);
    let in_window = |(first, start): (usize, &Instant)| {
        closes[first..].iter().take_while(|at| **at - *start < window).count()
    };
    let most = closes.iter().enumerate().map(in_window).max().unwrap();
    most as f64 / closes.len() as f64
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_closes_are_spread_evenly_over_the_pace() {
    raise_fd_limit();
    let slots = Mutex::new(Vec::new());
    // A machine may stand still for a tenth of a second; a server that closes in lumps does so each time.
    for _ in 0..3 {
        let mut server = Start::default()
            .env("NOTIFICATION_INTERVAL", "0")
            .env("SHUTDOWN_TIMEOUT", "11")
            .env("SHUTDOWN_PACE", "10")
            .serve()
            .await;
        let clients = crowd(&server, 10_000).await;
        server.signal(Signal::TERM);
        let seen = soon("everybody's close", clients.join_all()).await;
        assert!(seen.iter().all(|one| one.noticed), "everybody had notice");
        let codes_are_right = seen.iter().all(|one| one.closed.is_some_and(|(_, code)| code == 1012));
        assert!(codes_are_right, "nobody saw a bare end");
        assert_eq!(server.exit_code().await, 0);
        let ended = server.logged("drain ended").await;
        assert_eq!(ended["fields"]["closed"], 10_000, "{ended}");
        let closes: Vec<_> = seen.iter().map(|one| one.closed.unwrap().0).collect();
        let taken = *closes.iter().max().unwrap() - *closes.iter().min().unwrap();
        assert!(taken > Duration::from_secs(9), "{taken:?}");
        slots.lock().unwrap().push(largest_slot(closes));
        if slots.lock().unwrap().last().is_some_and(|share| *share <= 0.02) {
            return;
        }
    }
    panic!("largest shares of a tenth of a second: {slots:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn by_default_the_last_third_is_for_closing() {
    let mut server = Start::default().env("SHUTDOWN_TIMEOUT", "1.5").serve().await;
    let clients = crowd(&server, 100).await;
    let signalled = Instant::now();
    server.signal(Signal::TERM);
    let seen = soon("everybody's close", clients.join_all()).await;
    let closes: Vec<_> = seen.iter().map(|one| one.closed.unwrap().0 - signalled).collect();
    let (first, last) = (closes.iter().min().unwrap(), closes.iter().max().unwrap());
    assert!(*first >= Duration::from_secs(1), "{first:?}");
    assert!(*last - *first >= Duration::from_millis(400), "{first:?} to {last:?}");
    server.logged("closing those who stay, 100 of them, spread over 500ms").await;
    assert_eq!(server.exit_code().await, 0);
}

#[tokio::test]
async fn balancers_are_told_first_while_newcomers_are_still_served() {
    let mut server = Start::default().env("SHUTDOWN_DELAY", "1").env("SHUTDOWN_TIMEOUT", "60").serve().await;
    let client = server.client().await;
    let signalled = Instant::now();
    server.signal(Signal::TERM);
    server.logged("no longer ready").await;
    let ready = server.get("/health/ready").await;
    assert_eq!((ready.status, &ready.json()["phase"]), (503, &"withdrawing".into()));
    let mut late = server.client().await;
    late.say("I came late").await;
    assert_eq!(late.next().await["data"], "I came late", "and has heard of nothing yet");
    assert_eq!(late.next_of("shutdown").await["reason"], "service restart");
    assert!(signalled.elapsed() >= Duration::from_secs(1));
    assert_eq!(server.refusal(&[]).await.error(), (503, "draining".into()));
    client.leave().await;
    late.leave().await;
    assert_eq!(server.exit_code().await, 0);
    let to = |line: &serde_json::Value| line["fields"]["to"].as_str().unwrap().to_owned();
    let phases: Vec<_> = server.log_lines("phase").iter().map(to).collect();
    assert_eq!(phases, ["serving", "withdrawing", "draining", "stopped"]);
}

#[tokio::test]
async fn a_second_signal_ends_the_delay_too() {
    takes_at_most(Duration::from_secs(1), async || {
        let mut server = Start::default().env("SHUTDOWN_DELAY", "60").serve().await;
        let mut client = server.client().await;
        server.signal(Signal::TERM);
        server.logged("no longer ready").await;
        server.signal(Signal::TERM);
        let ((close, _), taken) = timed(client.closed()).await;
        assert_eq!(close.0, 1012);
        assert_eq!(server.exit_code().await, 0);
        taken
    })
    .await;
}
