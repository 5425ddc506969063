//! HTTP connections across upgrades: a client that keeps its connection notices nothing.

use std::time::{Duration, Instant};

use lastcall_handover::failpoint::{self, Step};
use tokio::{io::AsyncWriteExt, sync::watch, task::JoinSet, time::sleep};

use crate::support::{ConnectionBudget, Http, Server, Start, soon};

const UPGRADES: usize = 5;

async fn is_answered(http: &mut Http) {
    let request = http.head("GET", "/health/live", &[]);
    let answer = http.call(request).await;
    assert_eq!(answer.status, 200, "{answer:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_connection_is_kept_by_every_upgrade() {
    let budget = ConnectionBudget::with(200, 20).await;
    let mut server = Server::start().await;
    let mut silent = Vec::new();
    for _ in 0..budget.connections {
        silent.push(Http::connect(&server).await);
    }
    for _ in 0..UPGRADES {
        server.upgrade().await;
    }
    for http in &mut silent {
        is_answered(http).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_connection_is_kept_by_every_upgrade() {
    let budget = ConnectionBudget::with(200, 20).await;
    let mut server = Server::start().await;
    let mut idle = Vec::new();
    for _ in 0..budget.connections {
        idle.push(Http::connect(&server).await);
    }
    for _ in 0..UPGRADES {
        for http in &mut idle {
            is_answered(http).await;
        }
        server.upgrade().await;
    }
    for http in &mut idle {
        is_answered(http).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn half_a_head_is_kept_by_an_upgrade() {
    let mut server = Server::start().await;
    let (mut first, mut second) = (Http::connect(&server).await, Http::connect(&server).await);
    is_answered(&mut second).await;
    let request = first.head("GET", "/health/live", &[]);
    for at in [1, 3, 30, request.len() - 1] {
        let (start, rest) = request.split_at(at);
        // Of one, this is the first request; of the other, a later one, in the segment of the one before.
        first.send(start).await;
        second.send(request.clone() + start).await;
        assert_eq!(second.answer().await.status, 200);
        server.upgrade().await;
        for http in [&mut first, &mut second] {
            assert_eq!(http.call(rest).await.status, 200, "cut after {at} bytes");
        }
    }
}

/// Connects, and sends a request after a while, again and again. How many connections there were.
async fn connect_again_and_again(address: String, wait: Duration, mut stop: watch::Receiver<bool>) -> usize {
    let mut count = 0;
    while !*stop.borrow_and_update() {
        let mut http = Http::to(&address).await;
        sleep(wait).await;
        is_answered(&mut http).await;
        count += 1;
    }
    count
}

#[tokio::test(flavor = "multi_thread")]
async fn no_new_client_is_refused_during_an_upgrade() {
    let _room = ConnectionBudget::with(100, 100).await;
    let mut server = Server::start().await;
    let (stop, stopped) = watch::channel(false);
    let mut running = JoinSet::new();
    for wait in [0, 0, 0, 0, 1, 2, 5, 10, 20, 50] {
        let wait = Duration::from_millis(wait);
        running.spawn(connect_again_and_again(server.address.to_string(), wait, stopped.clone()));
    }
    for _ in 0..UPGRADES {
        server.upgrade().await;
    }
    stop.send_replace(true);
    let counts = soon("the last new clients", running.join_all()).await;
    assert!(counts.iter().all(|count| *count > 0), "{counts:?}");
}

/// Publishes `publisher:number` with ascending numbers over one connection, until it is told to stop; how
/// many. `in_advance` is how many are sent before their answers come.
async fn publish(mut http: Http, publisher: usize, in_advance: u64, mut stop: watch::Receiver<bool>) -> u64 {
    // Each part is sent at once.
    http.stream.set_nodelay(true).unwrap();
    let (mut sent, mut answered) = (0, 0);
    while !*stop.borrow_and_update() || answered < sent {
        while sent < answered + in_advance && !*stop.borrow() {
            let request = http.publication(&format!(r#"{{"data":"{publisher}:{sent}"}}"#)).into_bytes();
            // Some of them come in two parts, cut anywhere.
            let cut = (sent as usize * 7) % request.len();
            http.send(&request[..cut]).await;
            http.send(&request[cut..]).await;
            sent += 1;
        }
        let answer = http.answer().await;
        assert_eq!(answer.status, 200, "{answer:?}");
        assert!(!answer.head.to_lowercase().contains("connection: close"), "{answer:?}");
        answered += 1;
    }
    sent
}

#[tokio::test(flavor = "multi_thread")]
async fn busy_publishers_that_keep_their_connections_lose_no_call_over_upgrades() {
    let mut server =
        Start::default().env("NOTIFICATION_INTERVAL", "0").env("MAX_QUEUE", "64MiB").serve().await;
    let mut client = server.client().await;
    let (stop, stopped) = watch::channel(false);
    let mut publishing = JoinSet::new();
    let in_advance = [1, 1, 1, 4, 50];
    for (publisher, in_advance) in in_advance.into_iter().enumerate() {
        let http = Http::connect(&server).await;
        let calls = publish(http, publisher, in_advance, stopped.clone());
        publishing.spawn(async move { (publisher, calls.await) });
    }
    let (last, mut lasts) = watch::channel(None);
    let reading = tokio::spawn(async move {
        let mut next = vec![0; in_advance.len()];
        loop {
            if lasts.borrow_and_update().as_ref().is_some_and(|lasts| *lasts == next) {
                return;
            }
            let message = tokio::select! {
                message = client.next_of("notification") => message,
                _ = lasts.changed() => continue,
            };
            let (publisher, number) = message["data"].as_str().unwrap().split_once(':').unwrap();
            let expected = &mut next[publisher.parse::<usize>().unwrap()];
            assert_eq!(number.parse::<u64>().unwrap(), *expected, "none lost, doubled or out of order");
            *expected += 1;
        }
    });
    for _ in 0..UPGRADES {
        server.upgrade().await;
    }
    stop.send_replace(true);
    let mut counts = soon("the last calls", publishing.join_all()).await;
    counts.sort_unstable();
    let counts: Vec<u64> = counts.into_iter().map(|(_, count)| count).collect();
    assert!(counts.iter().all(|count| *count > 0), "{counts:?}");
    last.send_replace(Some(counts));
    soon("every publication", reading).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_upgrade_keeps_connections_as_one_that_works_does() {
    let failpoints = tempfile::NamedTempFile::new().unwrap();
    let mut server =
        Start::default().env(failpoint::FILE_VARIABLE, failpoints.path().display()).serve().await;
    let (mut silent, mut idle, mut half) =
        (Http::connect(&server).await, Http::connect(&server).await, Http::connect(&server).await);
    is_answered(&mut idle).await;
    let request = half.head("GET", "/health/live", &[]);
    let (start, rest) = request.split_at(20);
    half.send(start).await;
    // The connections are in the new process when it is killed.
    std::fs::write(failpoints.path(), format!("{:?}:kill", Step::ReceivedAll)).unwrap();
    for _ in 0..UPGRADES {
        server.failed_upgrade().await;
    }
    assert_eq!(half.call(rest).await.status, 200);
    for http in [&mut silent, &mut idle, &mut half] {
        is_answered(http).await;
    }
    std::fs::write(failpoints.path(), "").unwrap();
    server.upgrade().await;
    for http in [&mut silent, &mut idle, &mut half] {
        is_answered(http).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_is_not_whole_in_time_is_answered_and_does_not_stop_an_upgrade() {
    let mut server = Server::start().await;
    let (mut half, mut half_closed) = (Http::connect(&server).await, Http::connect(&server).await);
    let request = half.publication(r#"{"data":1}"#);
    half.send(&request[..request.len() - 1]).await;
    half_closed.send(&request).await;
    half_closed.stream.shutdown().await.unwrap();
    server.upgrade().await;
    let answer = half.answer().await;
    assert_eq!(answer.error(), (503, "overloaded".into()), "{answer:?}");
    assert!(answer.head.to_lowercase().contains("connection: close"), "{answer:?}");
    assert_eq!(half_closed.answer().await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_never_ends_does_not_keep_others_waiting_during_an_upgrade() {
    let mut server = Server::start().await;
    let mut half = Http::connect(&server).await;
    let request = half.publication(r#"{"data":1}"#);
    half.send(&request[..request.len() - 1]).await;
    let (address, (stop, stopped)) = (server.address.to_string(), watch::channel(false));
    let others = tokio::spawn(async move {
        let mut longest = Duration::ZERO;
        while !*stopped.borrow() {
            let started = Instant::now();
            is_answered(&mut Http::to(&address).await).await;
            longest = longest.max(started.elapsed());
        }
        longest
    });
    let started = Instant::now();
    server.upgrade().await;
    let upgrade = started.elapsed();
    stop.send_replace(true);
    let longest = others.await.unwrap();
    // It is waited for for three seconds, and others for a tenth of a second at most.
    assert!(upgrade > Duration::from_secs(3), "{upgrade:?}");
    assert!(longest < upgrade / 2, "{longest:?} of {upgrade:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn of_requests_that_have_arrived_in_part_no_more_move_than_there_is_room_for() {
    const CONNECTIONS: usize = 450;
    const PART: usize = 23 << 10;
    let _budget = ConnectionBudget::with(CONNECTIONS, CONNECTIONS).await;
    let mut server = Start::default().env("MAX_HTTP_CONNECTIONS", 2 * CONNECTIONS).serve().await;
    let mut halves = Vec::new();
    for _ in 0..CONNECTIONS {
        let mut half = Http::connect(&server).await;
        let head = half.head("GET", &format!("/?{}", "x".repeat(PART)), &[]);
        half.send(&head[..PART]).await;
        halves.push(half);
    }
    // One more, which comes after them: all of them are read when it is answered.
    is_answered(&mut Http::connect(&server).await).await;
    server.upgrade().await;
    let left = server.metric("lastcall_http_connections").await - 1.0;
    let most = (8 << 20) as f64 / PART as f64;
    assert!(left > 1.0 && left <= most + 1.0, "{left} of {CONNECTIONS}");
}
