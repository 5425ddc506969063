//! `POST /api/publish`.

use serde_json::{Value, json};

use crate::support::{Server, Signal, Start};

const JSON: &str = "Content-Type: application/json";

#[tokio::test]
async fn any_json_reaches_all_clients_as_a_notification() {
    let server = Server::start().await;
    let mut clients = server.clients(3).await;
    let like_the_servers = json!({"sequence": 7, "clients": 5, "message": "mine", "source": "server"});
    let any = [json!({"a": [1, 2.5, null], "ü": "x"}), json!("text"), json!(null), json!(17), json!([])];
    for data in any.into_iter().chain([like_the_servers]) {
        let answer = server.publish(&json!({"data": data, "channel": "broadcast"}).to_string()).await;
        assert_eq!((answer.status, &answer.json()["clients"]), (200, &json!(3)));
        for client in &mut clients {
            let notification = client.next_of("notification").await;
            assert_eq!(notification["id"], answer.json()["id"]);
            assert_eq!((&notification["channel"], &notification["data"]), (&json!("broadcast"), &data));
            assert_eq!(notification["source"], "api");
        }
    }
}

#[tokio::test]
async fn a_publication_that_is_refused_is_explained_and_reaches_no_client() {
    let server =
        Start::default().env("MAX_MESSAGE_SIZE", "1000").env("NOTIFICATION_INTERVAL", "0").serve().await;
    let mut client = server.client().await;
    let large = format!(r#"{{"data": "{}"}}"#, "x".repeat(1000));
    let deep = format!(r#"{{"data": {}{}}}"#, "[".repeat(200), "]".repeat(200));
    for (name, headers, body, error) in [
        ("not JSON", &[JSON][..], "{", (400, "bad_request")),
        ("no data", &[JSON], "{}", (400, "bad_request")),
        ("misspelt", &[JSON], r#"{"data": 1, "chanel": "x"}"#, (400, "bad_request")),
        ("not an object", &[JSON], "[1]", (400, "bad_request")),
        ("half a character", &[JSON], r#"{"data": "\ud800"}"#, (400, "bad_request")),
        ("too deep", &[JSON], &deep, (400, "bad_request")),
        ("bad channel", &[JSON], r#"{"data": 1, "channel": "a b"}"#, (400, "bad_channel")),
        ("too large", &[JSON], &large, (413, "payload_too_large")),
        ("no type", &[], r#"{"data": 1}"#, (415, "unsupported_media_type")),
        ("a form", &["Content-Type: text/plain"], r#"{"data": 1}"#, (415, "unsupported_media_type")),
        (
            "a page elsewhere",
            &[JSON, "Origin: https://evil.example"],
            r#"{"data": 1}"#,
            (403, "origin_not_allowed"),
        ),
        (
            "through another proxy",
            &[JSON, "Forwarded: for=192.0.2.7"],
            r#"{"data": 1}"#,
            (403, "loopback_only"),
        ),
        ("through a proxy", &[JSON, "X-Forwarded-For: 192.0.2.7"], r#"{"data": 1}"#, (403, "loopback_only")),
    ] {
        let answer = server.request("POST", "/api/publish", headers, body).await;
        assert_eq!(answer.error(), (error.0, error.1.to_owned()), "{name}: {answer:?}");
    }
    let chunked = ["Transfer-Encoding: chunked", JSON];
    let body = format!("{:x}\r\n{large}\r\n0\r\n\r\n", large.len());
    let answer = server.request_without_length("POST", "/api/publish", &chunked, &body).await;
    assert_eq!(answer.error(), (413, "payload_too_large".into()), "without a length beforehand");
    assert_eq!(
        server.request("GET", "/api/publish", &[], "").await.error(),
        (405, "method_not_allowed".into())
    );

    server.publish(r#"{"data": "the first that is right"}"#).await;
    assert_eq!(client.next().await["data"], "the first that is right");
}

#[tokio::test]
async fn what_would_reach_more_people_than_was_meant_is_refused() {
    let server = Start::default().env("NOTIFICATION_INTERVAL", "0").serve().await;
    let mut client = server.client().await;
    let (one, many) = ("/api/publish", "/api/publish/batch");
    let batch = r#"{"publications":[{"data":1}]}"#;
    for (target, fields, body, part) in [
        // A variable that was never set.
        (one, "", r#"{"channel":null,"data":1}"#, "null"),
        (many, "", r#"{"publications":[{"channel":null,"data":1}]}"#, "null"),
        (many, "", r#"{"publications":[{"channel":"broadcast","data":1,"idempotency_key":null}]}"#, "null"),
        (many, "", r#"{"publications":null}"#, "null"),
        (one, "", r#"{"channel":["orders"],"data":1}"#, "string"),
        (one, "", r#"{"channel":"orders","channel":"broadcast","data":1}"#, "duplicate"),
        // A member of the body that stands elsewhere.
        ("/api/publish?channel=orders", "", r#"{"data":1}"#, r#"`channel` would do nothing"#),
        ("/api/publish?channel=orders", "", r#"{"data":1,"channel":"orders"}"#, r#"body, `\"channel\"`"#),
        ("/api/publish?ch%61nnel=orders&a=b", "", r#"{"data":1}"#, "`channel`"),
        ("/api/publish?Channel=orders", "", r#"{"data":1}"#, "`Channel`"),
        ("/api/publish?channel[]=orders", "", r#"{"data":1}"#, "`channel[]`"),
        ("/api/publish?topic=orders", "", r#"{"data":1}"#, "`topic`"),
        ("/api/publish?data=2", "", r#"{"data":1}"#, "`data`"),
        ("/api/publish?idempotency_key=a", "", r#"{"data":1}"#, "the header field `Idempotency-Key`"),
        ("/api/publish?Idempotency-Key=a", "", r#"{"data":1}"#, "the header field `Idempotency-Key`"),
        (one, "Channel: orders", r#"{"data":1}"#, "header field `channel`"),
        (one, "X-Channel: orders", r#"{"data":1}"#, "header field `x-channel`"),
        (one, "X-Topic: orders", r#"{"data":1}"#, "header field `x-topic`"),
        (one, "X-Idempotency-Key: a", r#"{"data":1}"#, "the header field `Idempotency-Key`"),
        ("/api/publish/batch?channel=orders", "", batch, "`channel`"),
        ("/api/publish/batch?idempotency_key=a", "", batch, "the `idempotency_key` of a publication"),
        (many, "Channel: orders", batch, "`channel`"),
        (many, "Idempotency-Key: a", batch, "`idempotency_key`"),
        // Beside the publications, for all of them.
        (many, "", r#"{"channel":"orders","publications":[{"data":1}]}"#, "channel"),
    ] {
        let fields = [JSON, fields];
        let fields = if fields[1].is_empty() { &fields[..1] } else { &fields };
        let answer = server.request("POST", target, fields, body).await;
        assert_eq!(answer.status, 400, "{target} {fields:?} {body}: {answer:?}");
        answer.error();
        assert!(answer.body.contains(part), "{target} {fields:?} {body}: {answer:?}");
    }
    // `null` is data like any other, and other parameters are no one's business.
    let answer =
        server.request("POST", "/api/publish?trace=1", &[JSON, "X-Trace: 1"], r#"{"data":null}"#).await;
    assert_eq!((answer.status, &answer.json()["clients"]), (200, &json!(1)));
    assert_eq!(client.next().await["data"], json!(null), "it is the first one that is published");
}

#[tokio::test]
async fn calls_need_a_key_if_keys_are_set() {
    let server = Start::default().env("API_KEYS", "0123456789abcdef, fedcba9876543210").serve().await;
    let with = async |authorization: &str| {
        let headers = [JSON, "X-Forwarded-For: 192.0.2.7", authorization];
        server.request("POST", "/api/publish", &headers, r#"{"data": 1}"#).await
    };
    assert_eq!(with("Authorization: Bearer fedcba9876543210").await.status, 200);
    assert_eq!(with("Authorization: Bearer 0123456789abcdeX").await.error(), (401, "unauthorized".into()));
    assert_eq!(with("X-Nothing: at all").await.error(), (401, "unauthorized".into()));
    assert!(server.log_lines("no api_keys").is_empty());
    assert_eq!(Server::start().await.logged("no api_keys").await["level"], Value::from("INFO"));
}

#[tokio::test]
async fn while_clients_are_being_closed_nothing_is_published() {
    let server = Start::default().env("SHUTDOWN_TIMEOUT", "0").env("CLOSE_TIMEOUT", "600").serve().await;
    let _stuck = server.raw_client().await;
    server.signal(Signal::TERM);
    server.logged("closing 1 client").await;
    assert_eq!(server.publish(r#"{"data": 1}"#).await.error(), (503, "closing".into()));
    let ready = server.get("/health/ready").await;
    assert_eq!((ready.status, &ready.json()["phase"]), (503, &json!("closing")));
}
