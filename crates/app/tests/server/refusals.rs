//! What operators see of requests that were refused: a count, and a line in the log that clients cannot
//! repeat at will.

use serde_json::Value;
use tokio::net::TcpStream;

use crate::support::{Http, Server, Signal, Start, message, metric};

/// More lines about one kind of refusal are not logged at once.
const MOST_LINES: usize = 5;

/// Returns the first line about a refusal with this code.
async fn line(server: &Server, code: &str) -> Value {
    server.log().line(|line| line["fields"]["code"] == code).await
}

async fn refused(server: &Server, code: &str) -> f64 {
    server.metric(&format!("lastcall_refused_requests_total{{code=\"{code}\"}}")).await
}

#[tokio::test]
async fn a_page_of_another_origin_is_logged_with_its_origin() {
    let server = Server::start().await;
    let refusal = server.refusal(&[("origin", "http://localhost:5173")]).await;
    assert_eq!(refusal.status, 403);
    let line = line(&server, "origin_not_allowed").await;
    assert_eq!(line["level"], "INFO");
    assert_eq!(line["fields"]["origin"], "http://localhost:5173");
    assert_eq!(line["fields"]["host"], server.address.to_string());
    assert_eq!(line["fields"]["request"], "GET /ws");
    assert!(message(&line).starts_with("a WebSocket handshake was refused: "), "{line}");
    assert!(message(&line).contains("allowed_origins"), "it says what to do: {line}");
    assert_eq!(refused(&server, "origin_not_allowed").await, 1.0);
}

#[tokio::test]
async fn a_page_that_may_not_publish_is_logged_when_its_browser_asks() {
    for origins in [None, Some("https://a.example")] {
        let start = origins.map(|origins| Start::default().env("ALLOWED_ORIGINS", origins));
        let server = start.unwrap_or_default().serve().await;
        let asks = ["Origin: https://b.example", "Access-Control-Request-Method: POST"];
        let answer = server.request("OPTIONS", "/api/publish", &asks, "").await;
        assert_eq!(answer.header("access-control-allow-origin"), None);
        let line = line(&server, "origin_not_allowed").await;
        assert_eq!(line["fields"]["origin"], "https://b.example");
        assert_eq!(refused(&server, "origin_not_allowed").await, 1.0);
    }
}

#[tokio::test]
async fn a_full_server_warns_and_shows_its_limits() {
    let server = Start::default().env("MAX_CONNECTIONS", "1").env("MAX_QUEUE", "2MiB").serve().await;
    let _client = server.client().await;
    assert_eq!(server.refusal(&[]).await.status, 503);
    let line = line(&server, "full").await;
    assert_eq!(line["level"], "WARN");
    assert!(line["fields"]["peer"].as_str().unwrap().starts_with("127.0.0.1:"), "{line}");
    let text = server.get("/metrics").await.body;
    assert_eq!(metric(&text, "lastcall_refused_requests_total{code=\"full\"}"), 1.0);
    assert_eq!(metric(&text, "lastcall_max_connections"), 1.0);
    assert_eq!(metric(&text, "lastcall_max_queue_bytes"), 2_097_152.0);
    assert_eq!(metric(&text, "lastcall_max_message_bytes"), 65_536.0);
    assert_eq!(metric(&text, "lastcall_max_client_rate_bytes_per_second"), 65_536.0);
    assert_eq!(metric(&text, "lastcall_max_total_rate_bytes_per_second"), 524_288.0);
}

#[tokio::test]
async fn every_kind_of_refusal_is_counted_and_has_a_line() {
    const JSON: &str = "Content-Type: application/json";
    let server = Start::default().env("API_KEYS", "0123456789abcdef").serve().await;
    let key = "Authorization: Bearer 0123456789abcdef";
    assert_eq!(server.publish("{}").await.status, 401);
    assert_eq!(server.request("POST", "/api/publish", &[key, JSON], "[1]").await.status, 400);
    assert_eq!(server.request("POST", "/api/publish", &[key], "{}").await.status, 415);
    assert_eq!(server.request("DELETE", "/api/publish", &[key], "").await.status, 405);
    assert_eq!(server.get("/ws").await.status, 426);
    assert_eq!(server.refusal(&[("sec-websocket-key", "short")]).await.status, 400);
    assert_eq!(server.get("/api/pubish").await.status, 404);
    assert_eq!(server.request("GET", "/ws", &["Origin: a", "Origin: b"], "").await.status, 400);
    // Without a body.
    assert_eq!(server.exchange("\x16\x03\x01 TLS\r\n\r\n").await.status, 400);
    let large = format!("GET / HTTP/1.1\r\nCookie: {}\r\n\r\n", "x".repeat(30_000));
    assert_eq!(server.exchange(large).await.status, 431);
    for code in [
        "unauthorized",
        "bad_request",
        "unsupported_media_type",
        "method_not_allowed",
        "upgrade_required",
        "bad_handshake",
        "not_found",
        "bad_header",
        "malformed_request",
        "head_too_large",
    ] {
        assert_eq!(refused(&server, code).await, 1.0, "{code}");
        assert_eq!(line(&server, code).await["level"], "INFO", "{code}");
    }
    assert_eq!(refused(&server, "draining").await, 0.0, "what has not happened is there, too");
    let log = format!("{:?}", server.log().lines());
    assert!(!log.contains("0123456789abcdef"), "no key is logged");
    // What browsers ask for by themselves is no news, and neither is a query, which may have secrets.
    assert_eq!(server.get("/favicon.ico?token=secret").await.status, 404);
    assert_eq!(server.get("/api/no?token=secret").await.status, 404);
    server.log().line(|line| line["fields"]["request"] == "GET /api/no").await;
    let log = format!("{:?}", server.log().lines());
    assert!(!log.contains("favicon") && !log.contains("secret"), "{log}");
}

#[tokio::test]
async fn clients_that_a_drain_refuses_are_counted_and_the_counts_go_on_over_upgrades() {
    let mut server = Server::start().await;
    let _client = server.client().await;
    assert_eq!(server.refusal(&[("origin", "null")]).await.status, 403);
    for upgrades in 1..=2 {
        server.upgrade().await;
        assert_eq!(refused(&server, "origin_not_allowed").await, f64::from(upgrades));
        assert_eq!(server.refusal(&[("origin", "null")]).await.status, 403);
    }
    server.signal(Signal::TERM);
    server.logged("drain started").await;
    assert_eq!(server.refusal(&[]).await.status, 503);
    assert_eq!(refused(&server, "draining").await, 1.0);
    assert_eq!(line(&server, "draining").await["level"], "INFO");
}

/// All lines that anything else has caused are few.
#[tokio::test]
async fn clients_cannot_fill_the_log() {
    let mut server = Start::default().env("MAX_CONNECTIONS", "3").env("SHUTDOWN_TIMEOUT", "0").serve().await;
    let before = server.log().lines().len();
    let _all = server.clients(3).await;
    let long = format!("https://{}.example", "\u{1b}[31m".repeat(1000).escape_default());
    const TIMES: usize = 40;
    for _ in 0..TIMES {
        assert_eq!(server.refusal(&[("origin", &long)]).await.status, 403);
        assert_eq!(server.refusal(&[]).await.status, 503);
        assert_eq!(server.request("GET", "/ws", &["Origin: \x1b[31m"], "").await.status, 400);
        assert_eq!(server.get("/ws").await.status, 426);
        assert_eq!(server.request("POST", "/api/publish", &["Via: x"], "{}").await.status, 403);
        assert_eq!(server.request("POST", "/api/publish", &[], &"x".repeat(70_000)).await.status, 415);
        assert_eq!(server.get("/no").await.status, 404);
        assert_eq!(server.exchange("no HTTP\r\n\r\n").await.status, 400);
        // A client that says nothing, one that stops in the middle, and one that breaks the rules.
        drop(TcpStream::connect(server.address).await.unwrap());
        let mut half = Http::connect(&server).await;
        half.send("POST /api/publish HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n{").await;
    }
    server.signal(Signal::TERM);
    assert_eq!(server.exit_code().await, 0);
    let all = server.log().lines();
    let lines: Vec<_> = all.iter().skip(before).filter(|line| !line["fields"]["code"].is_null()).collect();
    assert!(all.len() - before - lines.len() < 20, "{all:#?}");
    let codes = ["origin_not_allowed", "full", "upgrade_required", "loopback_only", "malformed_request"];
    for code in codes {
        let of_code: Vec<_> = lines.iter().filter(|line| line["fields"]["code"] == code).collect();
        // One more when the server ends: about those that had none.
        assert!((1..=MOST_LINES + 1).contains(&of_code.len()), "{code}: {of_code:?}");
        let of_code = of_code.iter().map(|line| 1 + line["fields"]["suppressed"].as_u64().unwrap());
        assert!(of_code.sum::<u64>() >= TIMES as u64, "{code}: each is in some line");
    }
    for line in lines {
        let text = line.to_string();
        assert!(text.len() < 2000 && !text.contains('\u{1b}') && !text.contains("u001b"), "{text}");
    }
}
