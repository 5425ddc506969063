//! HTTP/1.1 as clients and proxies meet it: connections that are kept, early answers, clients that do not
//! read.

use std::{
    collections::HashSet,
    fs,
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    task::JoinSet,
};

use crate::support::{HANDSHAKE, Http, Server, Signal, Start, soon};

const JSON: &str = "Content-Type: application/json";

/// Longer than any bound on a head, a body or an answer.
const LONG: Duration = Duration::from_secs(11);

/// All of them wait for longer than ten seconds: at the same time.
#[tokio::test(flavor = "multi_thread")]
async fn ten_seconds_bound_a_head_and_an_answer_without_progress_but_not_idleness() {
    tokio::join!(
        a_connection_may_be_idle_for_longer_than_a_head_may_take(),
        clients_that_do_not_read_their_answers_hold_little_and_are_cut_off(),
        a_client_that_reads_slowly_gets_all_of_its_answers(),
    );
}

async fn a_connection_may_be_idle_for_longer_than_a_head_may_take() {
    let server = Server::start().await;
    let (mut silent, mut idle) = (Http::connect(&server).await, Http::connect(&server).await);
    let request = idle.head("GET", "/health/live", &[]);
    assert_eq!(idle.call(&request).await.status, 200);
    let mut dribbling = JoinSet::new();
    for kept in [false, true] {
        let mut http = Http::connect(&server).await;
        let request = request.clone();
        dribbling.spawn(async move {
            if kept {
                assert_eq!(http.call(&request).await.status, 200);
            }
            let started = Instant::now();
            for byte in request.as_bytes() {
                if http.stream.write_all(&[*byte]).await.is_err() {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
            started.elapsed()
        });
    }
    tokio::time::sleep(LONG).await;
    for http in [&mut silent, &mut idle] {
        assert_eq!(http.call(&request).await.status, 200);
    }
    for taken in soon("the end of those that dribble", dribbling.join_all()).await {
        // All of it would have taken 20 s and more.
        assert!(taken < Duration::from_millis(500) * u32::try_from(request.len() - 1).unwrap(), "{taken:?}");
    }
}

#[tokio::test]
async fn a_connection_that_is_idle_for_keep_alive_timeout_is_closed() {
    let server = Start::default().env("KEEP_ALIVE_TIMEOUT", "0.5").serve().await;
    let started = Instant::now();
    let (mut silent, mut idle) = (Http::connect(&server).await, Http::connect(&server).await);
    let request = idle.head("GET", "/health/live", &[]);
    assert_eq!(idle.call(&request).await.status, 200);
    for http in [&mut silent, &mut idle] {
        http.ended().await;
        assert!(started.elapsed() >= Duration::from_millis(500), "{:?}", started.elapsed());
        assert!(started.elapsed() < Duration::from_secs(9), "{:?}", started.elapsed());
    }
}

/// Returns a server that refuses early in many ways.
async fn refusing() -> Server {
    Start::default().env("API_KEYS", "0123456789abcdef").env("MAX_MESSAGE_SIZE", "1000").serve().await
}

/// Requests that are refused by their heads: method, path, header lines, and the status.
fn refused() -> [(&'static str, &'static str, Vec<&'static str>, u16); 7] {
    let key = "Authorization: Bearer 0123456789abcdef";
    [
        ("POST", "/api/publish", vec![JSON], 401),
        ("POST", "/api/publish", vec![key, "Content-Type: text/plain"], 415),
        ("POST", "/api/publish", vec![key, JSON, "Origin: https://elsewhere.example"], 403),
        ("POST", "/api/publish", vec![key, JSON], 413),
        ("POST", "/nothing", vec![JSON], 404),
        ("DELETE", "/", vec![], 405),
        ("POST", "/health/live", vec![], 405),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn an_early_answer_arrives_although_the_client_sends_all_of_its_body_first() {
    let server = refusing().await;
    for (method, path, headers, status) in refused() {
        for size in [60_000, 200_000, 2_000_000] {
            for chunked in [false, true] {
                let what = format!("{method} {path} {status} {size} chunked: {chunked}");
                let mut http = Http::connect(&server).await;
                let length = match chunked {
                    true => "Transfer-Encoding: chunked".to_owned(),
                    false => format!("Content-Length: {size}"),
                };
                let head = http.head(method, path, &[&headers[..], &[&length]].concat());
                http.send(head).await;
                if !(chunked && status == 413) {
                    // The server has answered when the body comes.
                    soon("an answer", http.stream.readable()).await.unwrap();
                }
                if chunked {
                    for _ in 0..size / 10_000 {
                        http.send(format!("2710\r\n{}\r\n", "x".repeat(10_000))).await;
                    }
                    http.send("0\r\n\r\n").await;
                } else {
                    http.send("x".repeat(size)).await;
                }
                let answer = http.answer().await;
                assert_eq!(answer.status, status, "{what}: {answer:?}");
                assert!(answer.error().1.len() > 3, "{what}: {answer:?}");
                if answer.head.to_lowercase().contains("connection: close") {
                    http.ended().await;
                } else {
                    let next = http.head("GET", "/health/live", &[]);
                    assert_eq!(http.call(next).await.status, 200, "{what}: the connection continues");
                }
            }
        }
    }
}

#[tokio::test]
async fn a_connection_goes_on_after_a_small_body_that_is_refused_although_it_comes_late() {
    let server = refusing().await;
    let mut http = Http::connect(&server).await;
    for (method, path, headers, status) in refused() {
        for length in ["Content-Length: 1200", "Transfer-Encoding: chunked"] {
            let head = http.head(method, path, &[&headers[..], &[length]].concat());
            http.send(head).await;
            // The head has been read when the rest comes: it would have been answered.
            tokio::time::sleep(Duration::from_millis(20)).await;
            match length.contains("chunked") {
                true => http.send(format!("4b0\r\n{}\r\n0\r\n\r\n", "x".repeat(1200))).await,
                false => http.send("x".repeat(1200)).await,
            }
            let answer = http.answer().await;
            assert_eq!(answer.status, status, "{method} {path} {length}: {answer:?}");
            assert!(!answer.head.to_lowercase().contains("connection: close"), "{answer:?}");
        }
    }
}

#[tokio::test]
async fn a_body_that_never_comes_does_not_delay_its_refusal_and_the_connection_is_closed() {
    let server = refusing().await;
    for (method, path, headers, status) in refused() {
        for expect in [&[][..], &["Expect: 100-continue"]] {
            let mut http = Http::connect(&server).await;
            let headers = [&headers[..], &["Content-Length: 5000"], expect].concat();
            let answer = http.call(http.head(method, path, &headers)).await;
            assert_eq!(answer.status, status, "{method} {path}: {answer:?}");
            assert!(answer.head.to_lowercase().contains("connection: close"), "{answer:?}");
            http.ended().await;
        }
    }
}

#[tokio::test]
async fn a_client_that_does_not_speak_http_is_told_so_although_it_goes_on() {
    let server = Server::start().await;
    let large = format!("GET / HTTP/1.1\r\nX: {}", "x".repeat(200_000));
    let garbage = format!("not HTTP at all\r\n\r\n{}", "x".repeat(200_000));
    for (request, status) in [(large, "HTTP/1.1 431"), (garbage, "HTTP/1.1 400")] {
        let mut http = Http::connect(&server).await;
        http.send(request).await;
        let mut answer = String::new();
        soon("an answer", http.stream.read_to_string(&mut answer)).await.unwrap();
        assert!(answer.starts_with(status), "{answer}");
    }
}

#[tokio::test]
async fn a_handshake_with_a_body_is_refused() {
    let server = Server::start().await;
    for (name, headers, body) in [
        ("a length", &["Content-Length: 5"][..], "Hello"),
        ("a length, and the body comes later", &["Content-Length: 5"], ""),
        ("chunks", &["Transfer-Encoding: chunked"], "5\r\nHello\r\n0\r\n\r\n"),
        ("no chunk", &["Transfer-Encoding: chunked"], "0\r\n\r\n"),
        ("no chunk, and its end comes later", &["Transfer-Encoding: chunked"], ""),
        ("a body that waits", &["Content-Length: 5", "Expect: 100-continue"], ""),
    ] {
        let mut http = Http::connect(&server).await;
        let head = http.head("GET", "/ws", &[&HANDSHAKE[..], headers].concat());
        let answer = http.call(head + body).await;
        assert_eq!(answer.error(), (400, "bad_handshake".into()), "{name}: {answer:?}");
        assert!(answer.body.contains("no body"), "{name}: {answer:?}");
    }
    for headers in [&["Content-Length: 0"][..], &["Expect: 100-continue"]] {
        let mut http = Http::connect(&server).await;
        http.send(http.head("GET", "/ws", &[&HANDSHAKE[..], headers].concat())).await;
        let mut status = [0; 12];
        soon("an answer", http.stream.read_exact(&mut status)).await.unwrap();
        assert_eq!(&status, b"HTTP/1.1 101", "{headers:?}: nothing is to come");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_closes_its_side_gets_all_of_its_answers() {
    let server = Start::default().env("NOTIFICATION_INTERVAL", "0").env("MAX_QUEUE", "64MiB").serve().await;
    let clients = server.clients(20).await;
    // None of them reads: the loops have much to do.
    let mut calls = JoinSet::new();
    let large = format!(r#"{{"data":"{}"}}"#, "x".repeat(60_000));
    for number in 0..150 {
        let mut http = Http::connect(&server).await;
        let request = match number % 3 {
            0 => http.head("GET", "/metrics", &[]),
            1 => http.head("GET", "/", &[]),
            _ => http.publication(&large),
        };
        calls.spawn(async move {
            http.send(request).await;
            http.stream.shutdown().await.unwrap();
            let answer = http.answer().await;
            http.ended().await;
            answer.status
        });
    }
    assert_eq!(calls.join_all().await, [200; 150]);
    // Two requests at once, of which one has a body.
    let mut http = Http::connect(&server).await;
    let requests = http.publication(r#"{"data":1}"#) + &http.head("GET", "/metrics", &[]);
    http.send(requests).await;
    http.stream.shutdown().await.unwrap();
    for _ in 0..2 {
        assert_eq!(http.answer().await.status, 200);
    }
    http.ended().await;
    drop(clients);
}

/// Returns what the kernel still has to send from the server's sockets to these clients, in bytes
/// (proc_pid_net(5)).
fn unsent(server: &Server, clients: &HashSet<u16>) -> Vec<usize> {
    let table = fs::read_to_string("/proc/net/tcp").unwrap();
    let port = |address: &str| u16::from_str_radix(address.split_once(':').unwrap().1, 16).unwrap();
    let mut unsent = Vec::new();
    for line in table.lines().skip(1) {
        let fields: Vec<_> = line.split_whitespace().collect();
        if port(fields[1]) == server.address.port() && clients.contains(&port(fields[2])) {
            let (to_send, _) = fields[4].split_once(':').unwrap();
            unsent.push(usize::from_str_radix(to_send, 16).unwrap());
        }
    }
    unsent
}

async fn clients_that_do_not_read_their_answers_hold_little_and_are_cut_off() {
    const CLIENTS: usize = 50;
    let server = Server::start().await;
    let memory = server.memory();
    let (mut stuck, mut ports) = (Vec::new(), HashSet::new());
    let started = Instant::now();
    for _ in 0..CLIENTS {
        let mut http = Http::connect_small(&server).await;
        http.send(http.head("GET", "/", &[]).repeat(200)).await;
        ports.insert(http.stream.local_addr().unwrap().port());
        stuck.push(http);
    }
    let (mut most, mut most_memory) = (0, 0);
    soon("the end of them", async {
        loop {
            let unsent = unsent(&server, &ports);
            most = unsent.iter().copied().max().unwrap_or(0).max(most);
            most_memory = server.memory().saturating_sub(memory).max(most_memory);
            if unsent.is_empty() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
    assert!(started.elapsed() > Duration::from_secs(9), "each had its time: {:?}", started.elapsed());
    assert!(most > 0 && most < 128 << 10, "{most} bytes in the kernel for one client");
    assert!(most_memory < CLIENTS * (256 << 10), "{most_memory} bytes in the process");
    for http in &mut stuck {
        // What did arrive, and then a reset: the rest was discarded.
        let cut = soon("a reset", http.stream.read_to_end(&mut Vec::new())).await;
        assert_eq!(cut.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
    }
}

async fn a_client_that_reads_slowly_gets_all_of_its_answers() {
    let server = Server::start().await;
    let mut http = Http::connect_small(&server).await;
    let page = server.get("/").await.body;
    let started = Instant::now();
    http.send(http.head("GET", "/", &[]).repeat(10)).await;
    // For longer than a client may take nothing at all.
    let pause = LONG / u32::try_from(page.len() * 10 / 8192).unwrap();
    let mut seen = Vec::new();
    while seen.len() < page.len() * 10 {
        let mut part = [0; 8192];
        let read = soon("more of the answers", http.stream.read(&mut part)).await.unwrap();
        assert_ne!(read, 0, "the end came after {} bytes", seen.len());
        seen.extend_from_slice(&part[..read]);
        tokio::time::sleep(pause).await;
    }
    assert!(started.elapsed() > Duration::from_secs(5), "it was slow");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_ends_answers_what_is_in_flight_and_closes_the_rest() {
    let mut server = Server::start().await;
    let (mut idle, mut busy) = (Http::connect(&server).await, Http::connect(&server).await);
    let request = idle.head("GET", "/health/live", &[]);
    assert_eq!(idle.call(&request).await.status, 200);
    let publication = busy.publication(r#"{"data":1}"#);
    let (head, body) = publication.split_at(publication.len() - 10);
    let head = head.replace("\r\n\r\n", "\r\nExpect: 100-continue\r\n\r\n");
    busy.send(head).await;
    let mut told = [0; 25];
    soon("100 Continue", busy.stream.read_exact(&mut told)).await.unwrap();
    server.signal(Signal::TERM);
    assert_eq!(busy.call(body).await.status, 200);
    for http in [&mut idle, &mut busy] {
        http.ended().await;
    }
    assert_eq!(server.exit_code().await, 0);
}
