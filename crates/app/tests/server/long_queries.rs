//! Queries with many channels: what a client may subscribe to, it can come back to with all positions,
//! directly and through the examples for proxies.

use std::net::SocketAddr;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::support::{Api, HANDSHAKE, Proxy, Server, Software, Start, soon};

/// As `docs/protocol.md` has it.
const MOST_BYTES: usize = 16 << 10;
const MOST_CHANNELS: usize = 128;

/// The longest position.
const POSITION: &str = "ffffffffffffffff-18446744073709551615";

/// Sends a request, and returns the status and the beginning of the answer.
async fn ask(address: SocketAddr, path: &str, query: &str, fields: &[&str]) -> (u16, String) {
    let handshake = if path == "/ws" { &HANDSHAKE[..] } else { &[] };
    // What a browser sends besides.
    let cookie = format!("Cookie: session={}", "c".repeat(2000));
    let fields: String =
        [handshake, fields, &[&cookie]].concat().iter().map(|field| format!("{field}\r\n")).collect();
    let request = format!("GET {path}?{query} HTTP/1.1\r\nHost: {address}\r\n{fields}\r\n");
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    while !answer.windows(4).any(|end| end == b"\r\n\r\n") || answer.starts_with(b"HTTP/1.1 400") {
        if soon("an answer", stream.read_buf(&mut answer)).await.unwrap() == 0 {
            break;
        }
        if answer.ends_with(b"}}") {
            break;
        }
    }
    let answer = String::from_utf8_lossy(&answer).into_owned();
    (answer[9..12].parse().unwrap(), answer)
}

/// Returns a query of as many channels as there may be, in so many bytes with the positions of all of them.
/// The names are written as a client writes `/`, in three bytes.
fn query(bytes: usize) -> String {
    let of_names = bytes - MOST_CHANNELS * ("channel=&since=&".len() + POSITION.len());
    let name = |number: usize| {
        let length = of_names / MOST_CHANNELS + usize::from(number < of_names % MOST_CHANNELS);
        format!("{number:03}%2F{}", "n".repeat(length - 6))
    };
    (0..MOST_CHANNELS).map(|number| format!("channel={}", name(number))).collect::<Vec<_>>().join("&")
}

/// Checks that a client can come back to the largest subscription, and that a larger one is refused at once.
async fn check(address: SocketAddr, what: &str) {
    let largest = query(MOST_BYTES);
    let since = format!("&since={POSITION}").repeat(MOST_CHANNELS);
    let header = format!("Last-Event-ID: {}", [POSITION; MOST_CHANNELS].join(","));
    let parameter = format!("&lastEventId={}", [POSITION; MOST_CHANNELS].join("%2C"));
    for (path, status) in [("/ws", 101), ("/events", 200)] {
        for (name, with, field) in [
            ("for the first time", "", None),
            ("by since", since.as_str(), None),
            ("by Last-Event-ID", "", Some(header.as_str())),
            ("by Last-Event-ID, with the since with which it began", &since, Some(&header)),
            ("by a parameter", &parameter, None),
        ] {
            let fields = Vec::from_iter(field);
            let (got, answer) = ask(address, path, &format!("{largest}{with}"), &fields).await;
            assert_eq!(got, status, "{what}: {path} {name}: {}", &answer[..answer.len().min(500)]);
        }
        // As it stands, it would fit.
        for with in ["", "&since=".repeat(MOST_CHANNELS).as_str()] {
            let (got, answer) = ask(address, path, &format!("{}{with}", query(MOST_BYTES + 1)), &[]).await;
            assert_eq!(got, 400, "{what}: {path}: {answer}");
            assert!(answer.contains("bad_channel") && answer.contains("16384"), "{what}: {path}: {answer}");
        }
    }
}

#[tokio::test]
async fn a_client_can_come_back_to_all_that_it_may_subscribe_to() {
    let server = Server::start().await;
    check(server.address, "directly").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_can_come_back_to_it_through_a_proxy() {
    for software in Software::ALL {
        let server = Start::default().env("ALLOWED_ORIGINS", "https://example.org").serve().await;
        let Some(proxy) = Proxy::start(software, server.address, Api::AsItStands).await else { continue };
        check(proxy.address, &format!("{software:?}")).await;
    }
}
