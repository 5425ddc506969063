//! A drain in its order: readiness first, closes spread out.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::StreamExt;
use tokio::{
    sync::{Semaphore, mpsc},
    task::JoinSet,
};
use tokio_tungstenite::{client_async, tungstenite::Message};

use crate::support::{
    ConnectionBudget, Server, Signal, Start, connect_one_of_many, soon, takes_at_most, timed,
};

/// What a client saw at its end: whether it had notice, when its close came, and its code.
struct Seen {
    noticed: bool,
    closed: Option<(Instant, u16)>,
}

/// Clients that stay until they are closed.
async fn connect_listeners(server: &Server, count: usize) -> JoinSet<Seen> {
    let mut clients = JoinSet::new();
    let (ready, mut readies) = mpsc::channel(count);
    let slots = Arc::new(Semaphore::new(200));
    let address = server.address;
    for number in 0..count {
        let (url, ready, slots) = (server.ws_url(), ready.clone(), Arc::clone(&slots));
        clients.spawn(async move {
            let slot = slots.acquire().await.unwrap();
            let stream = connect_one_of_many(address, number).await;
            let (mut socket, _) = client_async(url, stream).await.unwrap();
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
    drop(ready);
    for _ in 0..count {
        soon("a welcome", readies.recv()).await.unwrap();
    }
    clients
}

/// Asserts that every client had notice and a close, and none of them before its time: closes are spread
/// evenly over the time from `from` on, and a client cannot see one before it is sent, however busy the
/// machine is. Each event loop has its own schedule, which may be ahead of the whole by one client. How even
/// the schedule is, its own test says (close_schedule.rs).
fn none_too_early(seen: &[Seen], from: Instant, over: Duration) {
    assert!(seen.iter().all(|one| one.noticed), "everybody had notice");
    let codes_are_right = seen.iter().all(|one| one.closed.is_some_and(|(_, code)| code == 1012));
    assert!(codes_are_right, "nobody saw a bare end");
    let mut closes: Vec<_> = seen.iter().map(|one| one.closed.unwrap().0).collect();
    closes.sort();
    let loops = std::thread::available_parallelism().map_or(1, usize::from);
    let step = over.div_f64(closes.len() as f64);
    for (number, at) in closes.iter().enumerate() {
        let earliest = from + step.mul_f64(number.saturating_sub(loops) as f64);
        assert!(*at >= earliest, "close {number} came {:?} too early", earliest - *at);
    }
    assert!(closes[0] < from + over, "it begins before the deadline");
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_closes_are_spread_over_the_shutdown_spread() {
    let budget = ConnectionBudget::with(10_000, 1000).await;
    // A client on a busy machine may take a while to answer.
    let mut server = Start::default()
        .env("SHUTDOWN_TIMEOUT", "11")
        .env("SHUTDOWN_SPREAD", "10")
        .env("CLOSE_TIMEOUT", "100")
        .serve()
        .await;
    let clients = connect_listeners(&server, budget.connections).await;
    let signalled = Instant::now();
    server.signal(Signal::TERM);
    let seen = soon("everybody's close", clients.join_all()).await;
    none_too_early(&seen, signalled + Duration::from_secs(1), Duration::from_secs(10));
    assert_eq!(server.exit_code().await, 0);
    let ended = server.logged("drain ended").await;
    assert_eq!(ended["fields"]["closed"], budget.connections, "{ended}");
}

#[tokio::test(flavor = "multi_thread")]
async fn by_default_the_last_third_is_for_closing() {
    let mut server =
        Start::default().env("SHUTDOWN_TIMEOUT", "1.5").env("CLOSE_TIMEOUT", "100").serve().await;
    let clients = connect_listeners(&server, 100).await;
    let signalled = Instant::now();
    server.signal(Signal::TERM);
    let seen = soon("everybody's close", clients.join_all()).await;
    none_too_early(&seen, signalled + Duration::from_secs(1), Duration::from_millis(500));
    server.logged("closing the remaining clients one by one: 100 over 500ms").await;
    assert_eq!(server.exit_code().await, 0);
}

#[tokio::test]
async fn load_balancers_are_told_first_while_new_clients_are_still_served() {
    let mut server = Start::default().env("SHUTDOWN_DELAY", "1").env("SHUTDOWN_TIMEOUT", "60").serve().await;
    let client = server.client().await;
    let signalled = Instant::now();
    server.signal(Signal::TERM);
    server.logged("no longer ready").await;
    let ready = server.get("/health/ready").await;
    assert_eq!((ready.status, &ready.json()["phase"]), (503, &"withdrawing".into()));
    let left = ready.json()["seconds_left"].as_f64().unwrap();
    assert!((1.0..=61.0).contains(&left), "the delay and the drain: {left}");
    let status = server.run("status").await;
    assert_eq!(status.code, Some(3), "{}", status.stderr);
    let mut late = server.client().await;
    late.say("I came late").await;
    assert_eq!(late.next().await["data"], "I came late", "and has heard of nothing yet");
    assert_eq!(late.next_of("shutdown").await["reason"], "service restart");
    assert!(signalled.elapsed() >= Duration::from_secs(1));
    assert_eq!(server.refusal(&[]).await.error(), (503, "draining".into()));
    client.leave().await;
    late.leave().await;
    assert_eq!(server.exit_code().await, 0);
    assert_eq!(server.phases(), ["serving", "withdrawing", "draining", "stopped"]);
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
