//! The examples for reverse proxies, in `deploy/proxies`: what they let through, and what they do not.

use std::{
    net::SocketAddr,
    process::Stdio,
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    process::Command,
};

use crate::support::{
    Answer, Api, EventStream, HANDSHAKE, Http, Proxy, Server, Signal, Software, Start, dial, exchange,
    installed, refusal_of, soon,
};

const KEY: &str = "0123456789abcdef";

/// Sends one HTTP/1.1 request to the proxy. The target is sent as it is.
async fn request(proxy: SocketAddr, method: &str, target: &str, headers: &[&str], body: &str) -> Answer {
    let mut head = format!("{method} {target} HTTP/1.1\r\nHost: {proxy}\r\nConnection: close\r\n");
    for header in headers {
        head += &format!("{header}\r\n");
    }
    exchange(proxy, format!("{head}Content-Length: {}\r\n\r\n{body}", body.len())).await
}

async fn publish(proxy: &Proxy, key: Option<&str>, body: &str) -> Answer {
    let authorization = key.map(|key| format!("Authorization: Bearer {key}"));
    let headers: Vec<_> =
        ["Content-Type: application/json"].into_iter().chain(authorization.as_deref()).collect();
    request(proxy.address, "POST", "/api/publish", &headers, body).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_websocket_through_a_proxy_stays_over_upgrades_and_is_told_of_the_drain() {
    for software in Software::ALL {
        let mut server = Server::start().await;
        let Some(proxy) = Proxy::start(software, server.address, Api::AsItStands).await else { continue };
        let origin = proxy.origin();
        let (mut client, _) = dial(&proxy.ws_url(), &[("Origin", &origin)]).await.unwrap();
        assert_eq!(client.next().await["type"], "welcome", "{software:?}");
        let foreign = dial(&proxy.ws_url(), &[("Origin", "https://evil.example")]).await;
        assert_eq!(refusal_of(foreign).error(), (403, "origin_not_allowed".to_owned()), "{software:?}");
        for number in 1..=3 {
            client.say(&format!("text {number}")).await;
            assert_eq!(client.next().await["data"], format!("text {number}"), "{software:?}");
            assert_eq!(server.publish(r#"{"data": 42}"#).await.status, 200);
            assert_eq!(client.next().await["data"], 42, "{software:?}");
            server.upgrade().await;
        }
        server.signal(Signal::TERM);
        assert_eq!(client.next().await["type"], "shutdown", "{software:?}");
        let refused = refusal_of(dial(&proxy.ws_url(), &[("Origin", &origin)]).await);
        assert_eq!(refused.error(), (503, "draining".to_owned()), "{software:?}");
        assert!(refused.head.contains("\"retry-after\": \"5\""), "{software:?}: {refused:?}");
        client.say("still served").await;
        assert_eq!(client.next().await["data"], "still served", "{software:?}");
        server.signal(Signal::TERM);
        assert_eq!(client.closed().await.0, (1012, "service restart".to_owned()), "{software:?}");
        assert_eq!(server.exit_code().await, 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_of_a_name_pass_a_proxy_if_their_origin_is_listed() {
    let ask = async |proxy: &Proxy, path: &str, fields: &[&str]| {
        let mut stream = TcpStream::connect(proxy.address).await.unwrap();
        let fields: String = fields.iter().map(|field| format!("{field}\r\n")).collect();
        let request = format!("GET {path} HTTP/1.1\r\nHost: example.org\r\n{fields}\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut line = [0; 12];
        soon("a status line", stream.read_exact(&mut line)).await.unwrap();
        String::from_utf8(line[9..].to_vec()).unwrap()
    };
    let page = "Origin: https://example.org";
    let handshake = [&HANDSHAKE[..], &[page]].concat();
    for software in Software::ALL {
        for (listed, websocket, events) in [(false, "403", "403"), (true, "101", "200")] {
            let start = Start::default();
            let start = if listed { start.env("ALLOWED_ORIGINS", "https://example.org") } else { start };
            let server = start.serve().await;
            let Some(proxy) = Proxy::start(software, server.address, Api::AsItStands).await else { continue };
            assert_eq!(ask(&proxy, "/ws", &handshake).await, websocket, "{software:?} {listed}");
            for fields in [&[][..], &[page]] {
                assert_eq!(ask(&proxy, "/events", fields).await, events, "{software:?} {listed} {fields:?}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn events_through_a_proxy_arrive_at_once_and_stay_over_an_upgrade() {
    for software in Software::ALL {
        let mut server = Start::default().env("NOTIFICATION_INTERVAL", "0").serve().await;
        let Some(proxy) = Proxy::start(software, server.address, Api::AsItStands).await else { continue };
        let mut stream = EventStream::open(&proxy.address.to_string(), "/events?channel=a", &[]).await;
        assert!(stream.head.starts_with("HTTP/1.1 200 "), "{software:?}: {}", stream.head);
        assert_eq!(stream.next_of("subscribed").await.data["channel"], "a", "{software:?}");
        for number in 1..=3 {
            let body = format!(r#"{{"channel":"a","data":{number}}}"#);
            assert_eq!(server.publish(&body).await.json()["clients"], 1, "{software:?}");
            assert_eq!(stream.next_of("notification").await.data["data"], number, "{software:?}");
            server.upgrade().await;
        }
        server.signal(Signal::TERM);
        stream.next_of("shutdown").await;
        server.signal(Signal::TERM);
        assert!(stream.next_of("shutdown").await.retry.is_some(), "{software:?}");
        assert_eq!(stream.next().await, None, "{software:?}");
        assert_eq!(server.exit_code().await, 0);
    }
}

/// Caddy keeps to `no-transform`; nginx compresses the events all the same, if it is told to compress
/// everything.
#[tokio::test(flavor = "multi_thread")]
async fn events_through_a_proxy_that_compresses_arrive_at_once() {
    let Some(curl) = installed("curl") else { return };
    for software in Software::ALL {
        let server = Start::default().env("NOTIFICATION_INTERVAL", "0").serve().await;
        let Some(proxy) = Proxy::start_compressing(software, server.address).await else { continue };
        let page = Command::new(&curl)
            .args(["--silent", "--head", "--request", "GET", "--compressed"])
            .arg(proxy.origin())
            .output()
            .await
            .unwrap();
        let head = String::from_utf8_lossy(&page.stdout).to_ascii_lowercase();
        assert!(head.contains("content-encoding: gzip"), "{software:?}: it compresses the page: {head}");

        let mut child = Command::new(&curl)
            .args(["--silent", "--no-buffer", "--compressed"])
            .arg(format!("{}/events?channel=a", proxy.origin()))
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut output = child.stdout.take().unwrap();
        let mut printed = Vec::new();
        for number in 0..=3 {
            let expected = match number {
                0 => "event: subscribed\n".to_owned(),
                _ => format!("\"data\":{number}"),
            };
            if number > 0 {
                server.publish(&format!(r#"{{"channel":"a","data":{number}}}"#)).await;
            }
            soon("each event", async {
                while !String::from_utf8_lossy(&printed).contains(&expected) {
                    assert!(output.read_buf(&mut printed).await.unwrap() > 0, "{software:?}: the end");
                }
            })
            .await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_proxy_waits_before_it_passes_an_event_on() {
    for software in Software::ALL {
        let server = Start::default().env("NOTIFICATION_INTERVAL", "0").serve().await;
        let Some(proxy) = Proxy::start(software, server.address, Api::AsItStands).await else { continue };
        let mut stream = EventStream::open(&proxy.address.to_string(), "/events?channel=a", &[]).await;
        stream.next_of("subscribed").await;
        let mut shortest = Duration::MAX;
        for number in 0..20 {
            let start = Instant::now();
            server.publish(&format!(r#"{{"channel":"a","data":{number}}}"#)).await;
            stream.next_of("notification").await;
            shortest = shortest.min(start.elapsed());
        }
        // A kernel that is told of more to come waits for 200 ms each time.
        assert!(shortest < Duration::from_millis(150), "{software:?}: {shortest:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_shows_the_page_and_the_websocket_only() {
    for software in Software::ALL {
        let server = Server::start().await;
        let Some(proxy) = Proxy::start(software, server.address, Api::AsItStands).await else { continue };
        let page = request(proxy.address, "GET", "/", &[], "").await;
        assert_eq!(page.status, 200, "{software:?}: {page:?}");
        assert!(page.body.starts_with("<!doctype html>"), "{software:?}: {page:?}");
        let absolute = format!("http://{}/metrics", proxy.address);
        for target in [
            "/metrics",
            "/metrics/",
            "//metrics",
            "/./metrics",
            "/%6detrics",
            "/metrics?a=b",
            "/ws/../metrics",
            "/ws/..%2fmetrics",
            "/health/live",
            "/health/ready",
            "/ws/../health/ready",
            "/api/publish",
            "/api/channels",
            "/api/channels/a/history",
            absolute.as_str(),
        ] {
            for method in ["GET", "POST"] {
                let answer = request(proxy.address, method, target, &[], "").await;
                assert!((400..500).contains(&answer.status), "{software:?}: {method} {target}: {answer:?}");
                assert!(!answer.body.contains("lastcall_"), "{software:?}: {method} {target}: {answer:?}");
            }
        }
    }
}

/// A proxy that decodes a target takes some for the page, the WebSocket or events that are a channel of the
/// API for the server, or nothing that is there.
#[tokio::test(flavor = "multi_thread")]
async fn the_server_gets_what_a_proxy_takes_a_target_for() {
    for software in Software::ALL {
        let server = Server::start().await;
        let Some(proxy) = Proxy::start(software, server.address, Api::AsItStands).await else { continue };
        for target in [
            "/metrics/..",
            "/health/ready/../..",
            "/health/ready/..%2f..",
            "/api/channels/..%2f..%2fws",
            "/api/channels/..%2F..%2Fevents",
            "/api/channels/..%2f..%2f",
            "/api/channels/%2e%2e%2f%2e%2e%2fws",
            "/api/channels/a/../..%2f..%2fws",
            "/api/channels/a%2f..%2f..%2f..%2fws",
            "/api/channels/..%2f..%2f..%2fws/history",
            "/api/channels//..%2f..%2f..%2fws",
            "/api/channels/..%5c..%5cws",
            "/api/channels/..%252f..%252fws",
            "/%77s",
            "//ws",
        ] {
            let mut stream = TcpStream::connect(proxy.address).await.unwrap();
            let address = proxy.address;
            let request = format!("GET {target} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
            stream.write_all(request.as_bytes()).await.unwrap();
            let mut answer = Vec::new();
            // What is refused ends; events do not.
            while !(answer.starts_with(b"HTTP/1.1 200") && answer.windows(4).any(|end| end == b"\r\n\r\n")) {
                if soon("an answer", stream.read_buf(&mut answer)).await.unwrap() == 0 {
                    break;
                }
            }
            let answer = String::from_utf8_lossy(&answer).into_owned();
            let head = answer.split("\r\n\r\n").next().unwrap().to_ascii_lowercase();
            let is_outside = head.contains("text/html") || head.contains("text/event-stream");
            let code = answer.split(r#""code":""#).nth(1).and_then(|rest| rest.split('"').next());
            let is_refused = !head.starts_with("http/1.1 200")
                && [None, Some("not_found"), Some("upgrade_required")].contains(&code);
            assert!(is_outside || is_refused, "{software:?}: {target}: {head} {code:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn publishing_through_a_proxy_needs_a_key() {
    for software in Software::ALL {
        let server = Server::start().await;
        let Some(proxy) = Proxy::start(software, server.address, Api::Routed).await else { continue };
        let answer = publish(&proxy, None, r#"{"data": 1}"#).await;
        assert_eq!(answer.error(), (403, "loopback_only".to_owned()), "{software:?}");
        assert_eq!(server.publish(r#"{"data": 1}"#).await.status, 200, "the machine itself needs none");

        let server = Start::default().env("API_KEYS", KEY).serve().await;
        let proxy = Proxy::start(software, server.address, Api::Routed).await.unwrap();
        let (mut client, _) = dial(&proxy.ws_url(), &[]).await.unwrap();
        assert_eq!(client.next().await["type"], "welcome");
        let answer = publish(&proxy, Some(KEY), r#"{"data": "with a key"}"#).await;
        assert_eq!((answer.status, &answer.json()["clients"]), (200, &1.into()), "{software:?}");
        assert_eq!(client.next().await["data"], "with a key", "{software:?}");
        // The name of a channel arrives as it was written.
        let body = r#"{"channel": "a/b%2Fc", "data": 1}"#;
        assert_eq!(publish(&proxy, Some(KEY), body).await.status, 200, "{software:?}");
        let key = format!("Authorization: Bearer {KEY}");
        for path in ["/api/channels/a%2Fb%252Fc", "/api/channels/a%2Fb%252Fc/history"] {
            let answer = request(proxy.address, "GET", path, &[&key], "").await;
            assert_eq!(answer.status, 200, "{software:?} {path}: {answer:?}");
            assert_eq!(answer.json()["channel"], "a/b%2Fc", "{software:?} {path}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_comes_through_a_proxy_while_the_body_is_still_sent() {
    // Far more than lastcall reads of a body that it refuses.
    let body = format!(r#"{{"data": "{}"}}"#, "x".repeat(200_000));
    for software in Software::ALL {
        let server = Start::default().env("API_KEYS", KEY).serve().await;
        let Some(proxy) = Proxy::start(software, server.address, Api::Routed).await else { continue };
        for _ in 0..20 {
            for key in [None, Some("0000000000000000")] {
                let answer = answer_to_large_body(&proxy, key, &body).await;
                assert_eq!(answer.error(), (401, "unauthorized".to_owned()), "{software:?}");
            }
            let answer = answer_to_large_body(&proxy, Some(KEY), &body).await;
            assert_eq!(answer.error(), (413, "payload_too_large".to_owned()), "{software:?}");
        }
    }
}

/// Returns the answer to a publication, read to its length and not to the end of the connection: after the
/// whole answer, Caddy 2.6.2 leaves one of some thousand of these connections open for ever, although the
/// request has `Connection: close` and the connection to the server has ended. The stacks of its goroutines,
/// five times of five: the HTTP server of Go waits in `finishRequest`, `abortPendingRead` for the end of a
/// `backgroundRead`, which waits without a deadline for bytes that the client will not send. That read begins
/// at the end of the request's body, which the proxy may reach when it has answered.
async fn answer_to_large_body(proxy: &Proxy, key: Option<&str>, body: &str) -> Answer {
    let mut connection = Http::to(&proxy.address.to_string()).await;
    let length = format!("Content-Length: {}", body.len());
    let authorization = key.map(|key| format!("Authorization: Bearer {key}"));
    let fields = ["Connection: close", "Content-Type: application/json", &length];
    let fields: Vec<_> = fields.into_iter().chain(authorization.as_deref()).collect();
    let request = connection.head("POST", "/api/publish", &fields) + body;
    // A proxy may answer, and hang up, before it has read all of it.
    let _ = soon("sending", connection.stream.write_all(request.as_bytes())).await;
    connection.answer().await
}

/// Returns the seconds that follow this text in a configuration.
fn seconds(config: &str, after: &str) -> Duration {
    let rest = config.split(after).nth(1).unwrap_or_else(|| panic!("no {after:?} in {config}"));
    let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
    assert!(rest[digits.len()..].starts_with('s'), "{after:?} in {config}");
    Duration::from_secs(digits.parse().unwrap())
}

#[tokio::test]
async fn the_idle_times_of_proxies_fit_the_defaults() {
    let ended = Start::default().args(&["config"]).end().await;
    let default = |key: &str| {
        let line = ended.stdout.lines().find(|line| line.starts_with(&format!("{key} "))).unwrap();
        Duration::from_secs_f64(line.split_whitespace().nth(1).unwrap().parse().unwrap())
    };
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap();
    let traefik = std::fs::read_to_string(root.join("deploy/proxies/traefik.yaml")).unwrap();
    let [nginx, haproxy, caddy] = Software::ALL.map(Software::example);
    for (config, after) in [
        (&nginx, "    keepalive_timeout "),
        (&haproxy, "timeout http-keep-alive "),
        (&haproxy, "pool-purge-delay "),
        (&caddy, "keepalive "),
        (&traefik, "idleConnTimeout: "),
    ] {
        let idle = seconds(config, after);
        assert!(idle + Duration::from_secs(10) <= default("keep_alive_timeout"), "{after}: {idle:?}");
    }
    for (config, after) in
        [(&nginx, "proxy_read_timeout "), (&nginx, "proxy_send_timeout "), (&haproxy, "timeout tunnel ")]
    {
        let silent = seconds(config, after);
        let pings = default("ping_interval") + default("pong_timeout");
        assert!(silent >= pings + Duration::from_secs(10), "{after}: {silent:?} for {pings:?}");
    }
}
