//! The bound on HTTP connections: however many there are, newcomers are answered, clients find their places,
//! and an upgrade has the descriptors that it needs.

use std::{
    os::unix::net::UnixStream,
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinSet,
};

use crate::support::{ConnectionBudget, Http, Server, Start, handshake, message, soon, until};

/// The descriptors that a server needs for itself, whatever its clients do: as the settings count it.
fn reserve() -> usize {
    96 + 2 * std::thread::available_parallelism().map_or(1, usize::from)
}

async fn is_answered(http: &mut Http) {
    let request = http.head("GET", "/health/live", &[]);
    let answer = http.call(request).await;
    assert_eq!(answer.status, 200, "{answer:?}");
}

async fn connect(server: &Server, count: usize) -> Vec<Http> {
    let mut connections = Vec::new();
    for _ in 0..count {
        connections.push(Http::connect(server).await);
    }
    connections
}

/// Returns the number of HTTP connections, of which the one that asks is one.
async fn http_connections(server: &Server) -> f64 {
    server.metric("lastcall_http_connections").await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_connection_that_is_idle_longest_makes_room_and_one_with_a_request_never_does() {
    const MAX: usize = 20;
    let _budget = ConnectionBudget::with(200, 200).await;
    let server = Start::default().env("MAX_HTTP_CONNECTIONS", MAX).serve().await;
    assert_eq!(server.metric("lastcall_max_http_connections").await, MAX as f64);
    let (mut half_a_head, mut half_a_body) = (Http::connect(&server).await, Http::connect(&server).await);
    let head = half_a_head.head("GET", "/health/live", &[]);
    half_a_head.send(&head[..20]).await;
    let body = half_a_body.publication(r#"{"data":1}"#);
    half_a_body.send(&body[..body.len() - 1]).await;
    let mut used = Http::connect(&server).await;
    is_answered(&mut used).await;
    let mut idle = connect(&server, 5 * MAX).await;
    // Each comes after all of these: connections are accepted in order.
    let mut last = Http::connect(&server).await;
    is_answered(&mut last).await;
    assert!(http_connections(&server).await <= MAX as f64);
    used.ended().await;
    for http in idle.drain(..4 * MAX) {
        let mut http = http;
        http.ended().await;
    }
    // Those that came last are still there, but for the few that have made room for the questions above.
    for http in &mut idle[MAX / 2..] {
        is_answered(http).await;
    }
    half_a_head.send(&head[20..]).await;
    assert_eq!(half_a_head.answer().await.status, 200);
    half_a_body.send(&body[body.len() - 1..]).await;
    assert_eq!(half_a_body.answer().await.status, 200);
    assert_eq!(server.metric("lastcall_refused_requests_total{code=\"full\"}").await, 0.0);
}

/// Sends a request as soon as the last one is answered, and connects again whenever the connection is closed.
async fn keep_busy(address: std::net::SocketAddr) {
    loop {
        let Ok(mut stream) = TcpStream::connect(address).await else { continue };
        let request = format!("GET /health/live HTTP/1.1\r\nHost: {address}\r\n\r\n");
        let mut answer = [0; 1024];
        while stream.write_all(request.as_bytes()).await.is_ok()
            && matches!(stream.read(&mut answer).await, Ok(1..))
        {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_always_have_the_next_request_soon_do_not_keep_others_out() {
    const MAX: usize = 16;
    let server = Start::default().env("MAX_HTTP_CONNECTIONS", MAX).serve().await;
    let mut busy = JoinSet::new();
    (0..MAX).for_each(|_| drop(busy.spawn(keep_busy(server.address))));
    until("all connections to be taken", async || http_connections(&server).await >= MAX as f64).await;
    for _ in 0..10 {
        let mut newcomer = Http::connect(&server).await;
        let request = newcomer.head("GET", "/health/live", &[]);
        assert!([200, 503].contains(&newcomer.call(request).await.status));
    }
}

#[tokio::test]
async fn where_each_has_a_request_new_connections_get_503_until_there_is_room() {
    let server = Start::default().env("MAX_HTTP_CONNECTIONS", 3).serve().await;
    let mut busy = connect(&server, 3).await;
    let head = busy[0].head("GET", "/health/live", &[]);
    let started = Instant::now();
    for http in &mut busy {
        http.send(&head[..20]).await;
    }
    let mut refused = 0;
    // A head has ten seconds: a slow machine may be too late to see it.
    while refused < 30 && started.elapsed() < Duration::from_secs(8) {
        let answer = server.get("/health/live").await;
        if answer.status == 503 {
            assert_eq!(answer.error(), (503, "full".into()));
            assert!(answer.head.contains("retry-after: 5"), "{answer:?}");
            refused += 1;
        }
        // An EventSource would never come back after a 503.
        let stream = server.request("GET", "/events", &["Accept: text/event-stream"], "").await;
        assert_eq!(stream.status, 200, "{stream:?}");
        assert!(stream.body.starts_with("retry: 5000\nevent: error\ndata: {"), "{stream:?}");
    }
    assert_ne!(refused, 0);
    // Connections that say nothing delay nobody's refusal.
    let _silent = connect(&server, 50).await;
    for http in &mut busy {
        http.send(&head[20..]).await;
        assert_eq!(http.answer().await.status, 200, "what was under way is answered");
    }
    until("room", async || server.get("/health/live").await.status == 200).await;
    let counted = server.metric("lastcall_refused_requests_total{code=\"full\"}").await;
    assert!(counted >= f64::from(2 * refused), "{counted} of {refused}");
    let line = server.log().line(|line| line["fields"]["code"] == "full").await;
    assert!(message(&line).contains("max_http_connections"), "{line}");
}

#[tokio::test(flavor = "multi_thread")]
async fn thousands_of_idle_connections_cost_neither_newcomers_nor_clients_nor_an_upgrade() {
    const CLIENTS: usize = 64;
    const HTTP: usize = 64;
    const FLOOD: usize = 2000;
    let budget = ConnectionBudget::with(FLOOD + CLIENTS, 500).await;
    let mut server = Start::default().open_files(reserve() + HTTP + CLIENTS).serve().await;
    assert_eq!(server.metric("lastcall_max_connections").await, CLIENTS as f64);
    assert_eq!(server.metric("lastcall_max_http_connections").await, HTTP as f64);
    let mut clients = server.clients(CLIENTS - 1).await;
    // As a command that hangs would leave them.
    let _control: Vec<_> = (0..40).map(|_| UnixStream::connect(server.control_socket()).unwrap()).collect();
    let flood = connect(&server, budget.connections - CLIENTS).await;
    clients.push(server.client().await);
    assert_eq!(server.refusal(&[]).await.error(), (503, "full".into()), "all clients that there may be");
    for number in 0..3 {
        server.upgrade().await;
        assert!(http_connections(&server).await <= HTTP as f64);
        clients[0].say(&number.to_string()).await;
        for client in &mut clients {
            assert_eq!(client.next_of("message").await["data"], number.to_string());
        }
        let mut newcomer = Http::connect(&server).await;
        is_answered(&mut newcomer).await;
        // Those that are idle come to the new process, which counts them.
        assert!(http_connections(&server).await > 0.9 * HTTP as f64);
    }
    assert!(server.log_lines("no file descriptors left").is_empty());
    drop(flood);
    until("the end of the flood", async || http_connections(&server).await == 1.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_clients_at_once_are_served_within_a_small_bound() {
    let budget = ConnectionBudget::with(1000, 100).await;
    let server = Start::default().env("MAX_HTTP_CONNECTIONS", 16).serve().await;
    let mut dialing = JoinSet::new();
    for _ in 0..budget.connections {
        let address = server.address;
        dialing.spawn(async move {
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.write_all(handshake(address).as_bytes()).await.unwrap();
            let mut status = [0; 12];
            soon("an answer", stream.read_exact(&mut status)).await.unwrap();
            assert_eq!(&status, b"HTTP/1.1 101");
            stream
        });
    }
    let clients = dialing.join_all().await;
    server.has_clients(clients.len()).await;
    until("the last hand-over", async || http_connections(&server).await == 1.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_the_new_process_may_not_have_leave_it_one_by_one() {
    let start = Start::default().file("config/lastcall.toml", "max_http_connections = 60");
    let mut server = start.serve().await;
    let mut idle = connect(&server, 50).await;
    until("all of them", async || http_connections(&server).await == 51.0).await;
    std::fs::write(server.dir.path().join("config/lastcall.toml"), "max_http_connections = 10").unwrap();
    server.upgrade().await;
    assert!(http_connections(&server).await <= 10.0);
    for http in &mut idle[..40] {
        http.ended().await;
    }
    is_answered(&mut idle[49]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bound_that_is_reached_all_the_time_has_few_lines() {
    let server = Start::default().env("MAX_HTTP_CONNECTIONS", 4).serve().await;
    let _idle = connect(&server, 40).await;
    is_answered(&mut Http::connect(&server).await).await;
    let lines = server.log_lines("all HTTP connections that there may be are open");
    assert_eq!(lines.len(), 5);
    assert_eq!(lines[0]["level"], "WARN");
    assert_eq!(lines[0]["fields"]["max_http_connections"], 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_that_do_not_come_to_their_end_have_a_bound_together() {
    const BODIES: usize = 80;
    const BYTES: usize = 1_000_000;
    let _budget = ConnectionBudget::with(BODIES, BODIES).await;
    let server = Start::default().env("MAX_HTTP_CONNECTIONS", 2 * BODIES).serve().await;
    let mut publishing = JoinSet::new();
    for _ in 0..BODIES {
        let mut http = Http::connect(&server).await;
        publishing.spawn(async move {
            let lines = ["Content-Type: application/json", &format!("Content-Length: {BYTES}")];
            let head = http.head("POST", "/api/publish/batch", &lines);
            http.send(head).await;
            // All but the last byte. Where there is no room, the answer comes earlier, and the rest may not
            // be taken.
            drop(http.stream.write_all(&vec![b' '; BYTES - 1]).await);
            http.answer().await
        });
    }
    let mut refused = 0;
    while let Some(answer) = soon("the answers", publishing.join_next()).await {
        let answer = answer.unwrap();
        match answer.status {
            503 => {
                assert_eq!(answer.error(), (503, "overloaded".into()), "{answer:?}");
                refused += 1;
            }
            // It has not come to its end.
            status => assert_eq!(status, 408, "{answer:?}"),
        }
    }
    let room = (64 << 20) / BYTES;
    assert!((BODIES - room..BODIES).contains(&refused), "{refused} of {BODIES}");
    // They give it back.
    assert_eq!(server.publish(r#"{"data":1}"#).await.status, 200);
}
