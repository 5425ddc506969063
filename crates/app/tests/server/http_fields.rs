//! Header fields as HTTP defines them (RFC 9110 section 5, RFC 9112 section 3.2).

use crate::support::{Answer, KEY, Server, Start, VERSION};

const HANDSHAKE: [&str; 2] = [VERSION, KEY];
const LISTS: [&str; 2] = ["Connection: Upgrade", "Upgrade: websocket"];
const JSON: &str = "Content-Type: application/json";
const TEXT: &str = r#"{"data":1}"#;

/// Returns the head of a request: the first line, and these fields.
fn head(first: &str, fields: &[&[&str]]) -> String {
    format!("{first}\r\n{}\r\n\r\n", fields.concat().join("\r\n"))
}

/// Publishes, with these fields in place of `Host` and `Content-Type`.
async fn publish(server: &Server, target: &str, fields: &[&str]) -> Answer {
    let length = format!("Content-Length: {}", TEXT.len());
    let first = format!("POST {target} HTTP/1.1");
    let head = head(&first, &[fields, &[&length, "Connection: close"]]);
    server.exchange(head + TEXT).await
}

#[tokio::test]
async fn a_handshake_may_write_its_lists_in_every_way_that_http_allows() {
    let server = Server::start().await;
    let host = format!("Host: {}", server.address);
    for lists in [
        &LISTS[..],
        &["Connection: keep-alive", "Connection: Upgrade", "Upgrade: websocket"],
        &["Connection: Upgrade", "Connection: keep-alive", "Upgrade: websocket"],
        &["Connection: keep-alive,Upgrade", "Upgrade: websocket"],
        &["Connection:\tkeep-alive\t,\tUpgrade\t", "Upgrade:\twebsocket"],
        &["Connection: , keep-alive,, ,Upgrade ,", "Upgrade: ,websocket,"],
        &["connection: UPGRADE", "UPGRADE: WebSocket"],
        &["Connection: Upgrade, HTTP2-Settings", "Upgrade: websocket, h2c", "HTTP2-Settings: AAMAAABk"],
        &["Connection: Upgrade", "Upgrade: h2c", "Upgrade: TLS/1.2, websocket"],
        &["Connection: Upgrade", "Connection:", "Upgrade:", "Upgrade: websocket"],
        &["Connection: Upgrade\r\nConnection: Upgrade", "Upgrade: websocket\r\nUpgrade: websocket"],
    ] {
        let status = server.status(&head("GET /ws HTTP/1.1", &[&[&host], lists, &HANDSHAKE])).await;
        assert_eq!(status, 101, "{lists:?}");
    }
    for lists in [
        &["Upgrade: websocket"][..],
        &["Connection: Upgrade"],
        &["Connection: keep-alive", "Connection: close", "Upgrade: websocket"],
        &["Connection: Upgrader", "Upgrade: websocket"],
        &["Connection: keep-alive Upgrade", "Upgrade: websocket"],
        &["Connection: \"Upgrade\"", "Upgrade: websocket"],
        &["Connection: Upgrade", "Upgrade: websocket2, h2c"],
        &["Connection: Upgrade", "Upgrade: h2c"],
    ] {
        let status = server.status(&head("GET /ws HTTP/1.1", &[&[&host], lists, &HANDSHAKE])).await;
        assert_eq!(status, 426, "{lists:?}");
    }
    // Only a GET of HTTP/1.1 asks for another protocol.
    for first in ["HEAD /ws HTTP/1.1", "GET /ws HTTP/1.0"] {
        assert_eq!(server.status(&head(first, &[&[&host], &LISTS, &HANDSHAKE])).await, 426, "{first}");
    }
}

#[tokio::test]
async fn a_field_that_must_be_single_is_refused_twice() {
    let server = Server::start().await;
    let host = format!("Host: {}", server.address);
    let origin = format!("Origin: http://{}", server.address);
    let key = "Authorization: Bearer 0123456789abcdef";
    for (name, fields) in [
        ("host", &[host.as_str(), &host, JSON][..]),
        ("host", &[&host, JSON, "Host: other.example"]),
        ("origin", &[&host, JSON, &origin, &origin]),
        ("origin", &[&host, JSON, &origin, "Origin: null"]),
        ("authorization", &[&host, JSON, key, "Authorization: Bearer other"]),
        ("content-type", &[&host, JSON, JSON]),
        ("content-type", &[&host, JSON, "Content-Type: text/plain"]),
    ] {
        let answer = publish(&server, "/api/publish", fields).await;
        assert_eq!(answer.error(), (400, "bad_header".into()), "{fields:?}");
        assert!(answer.body.contains(&format!("`{name}`")), "{answer:?}");
    }
    let [version, key] = HANDSHAKE;
    for (name, fields) in [
        ("host", &[host.as_str(), &host, version, key][..]),
        ("origin", &[&host, version, key, &origin, &origin]),
        ("sec-websocket-key", &[&host, version, key, key]),
        ("sec-websocket-key", &[&host, version, key, "sec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA=="]),
        ("sec-websocket-version", &[&host, version, "Sec-WebSocket-Version: 8", key]),
    ] {
        let request = head("GET /ws HTTP/1.1", &[&LISTS, fields, &["Connection: close"]]);
        let answer = server.exchange(request).await;
        assert_eq!(answer.error(), (400, "bad_header".into()), "{fields:?}");
        assert!(answer.body.contains(&format!("`{name}`")), "{answer:?}");
    }
    // Two values in one line are no better.
    for (status, fields) in [
        (400, &["Host: a.example, b.example", JSON][..]),
        (400, &["Host: a.example,b.example", JSON]),
        (415, &[&host, "Content-Type: application/json, text/plain"]),
        (415, &[&host, "Content-Type: application/json; charset=utf-8, text/plain"]),
        (403, &[&host, JSON, &format!("{origin}, {origin}")]),
        (400, &[&host, JSON, "Content-Length: 9"]),
        (400, &[&host, JSON, "Content-Length: 10, 10"]),
        (501, &[&host, JSON, "Transfer-Encoding: gzip, chunked"]),
        (400, &[&host, JSON, "Transfer-Encoding: chunked, chunked"]),
        (400, &[&host, JSON, "Transfer-Encoding: chunked", "Transfer-Encoding: chunked"]),
        (400, &[&host, JSON, "Transfer-Encoding: chunked, identity"]),
        (400, &[&host, JSON, "Transfer-Encoding: chunked;a=b"]),
        (400, &[&host, JSON, "Transfer-Encoding:"]),
    ] {
        assert_eq!(publish(&server, "/api/publish", fields).await.status, status, "{fields:?}");
    }
    assert_eq!(publish(&server, "/api/publish", &[&host, JSON]).await.status, 200);
}

#[tokio::test]
async fn a_request_must_name_its_host_on_every_route() {
    let server = Server::start().await;
    for path in ["/", "/ws", "/health/live", "/metrics", "/nothing"] {
        for fields in [
            &[][..],
            &["Host:"],
            &["Host: user@localhost"],
            &["Host: local host"],
            &["Host: localhost:http"],
            &["Host: localhost:65536"],
            &["Host: localhost/path"],
            &["Host: http://localhost"],
            &["Host: ::1"],
            &["Host: [::1"],
            &["Host: [localhost]"],
            &["Host: bücher.example"],
        ] {
            let request = head(&format!("GET {path} HTTP/1.1"), &[fields, &["Connection: close"]]);
            let answer = server.exchange(request).await;
            assert_eq!(answer.error(), (400, "bad_header".into()), "{path} {fields:?}");
            assert!(answer.body.contains("`Host`"), "{answer:?}");
        }
    }
    for host in ["localhost", "LOCALHOST:8000", "localhost:", "[::1]:8000", "127.0.0.1", "a_b.example."] {
        let host = format!("Host: {host}");
        let request = head("GET /health/live HTTP/1.1", &[&[&host, "Connection: close"]]);
        assert_eq!(server.exchange(request).await.status, 200, "{host}");
    }
    // HTTP/1.0 has no `Host`: some load balancers check the health so.
    assert_eq!(server.exchange(b"GET /health/live HTTP/1.0\r\n\r\n").await.status, 200);
    assert_eq!(server.exchange(b"GET /health/live HTTP/1.0\r\nHost: a b\r\n\r\n").await.status, 400);
}

#[tokio::test]
async fn a_pages_origin_and_the_requests_host_are_compared_by_their_meaning() {
    // Where other machines can connect, a page's own host may have any name.
    let server = Start::default().env("HOST", "0.0.0.0").serve().await;
    let dial = async |target: &str, host: &str, origin: &str| {
        let (host, origin) = (format!("Host: {host}"), format!("Origin: {origin}"));
        let fields = [host.as_str(), &origin];
        server.status(&head(&format!("GET {target} HTTP/1.1"), &[&fields, &LISTS, &HANDSHAKE])).await
    };
    for (host, origin) in [
        ("example.org", "https://example.org"),
        ("example.org:443", "https://example.org"),
        ("example.org:", "https://example.org"),
        ("example.org", "https://example.org:443"),
        ("example.org:80", "http://example.org"),
        ("Example.ORG:8443", "HTTPS://example.org:8443"),
        ("[2001:DB8:0:0::7]:443", "https://[2001:db8::7]"),
        ("192.0.2.7:8000", "http://[::ffff:c000:207]:8000"),
    ] {
        assert_eq!(dial("/ws", host, origin).await, 101, "{host} {origin}");
    }
    for (host, origin) in [
        ("example.org:80", "https://example.org"),
        ("example.org:443", "http://example.org"),
        ("example.org", "https://example.org:8443"),
        ("example.org:8443", "https://example.org"),
        ("example.org", "https://www.example.org"),
        ("example.org", "https://example.org.evil.example"),
        ("example.org", "ftp://example.org"),
        ("example.org", "null"),
        ("example.org", "example.org"),
    ] {
        assert_eq!(dial("/ws", host, origin).await, 403, "{host} {origin}");
    }
    // What an absolute target names is the host, whatever `Host` says.
    assert_eq!(dial("http://example.org/ws", "other.example", "https://example.org").await, 101);
    assert_eq!(dial("HTTPS://Example.org:443/ws", "other.example", "https://example.org").await, 101);
    assert_eq!(dial("http://other.example/ws", "example.org", "https://example.org").await, 403);
    assert_eq!(dial("http://user@example.org/ws", "example.org", "https://example.org").await, 400);
}

#[tokio::test]
async fn options_tells_the_methods_of_every_route_and_head_answers_where_get_does() {
    let server = Start::default().env("ALLOWED_ORIGINS", "https://app.example").serve().await;
    for path in ["/", "/ws", "/health/live", "/health/ready", "/metrics"] {
        let options = server.request("OPTIONS", path, &[], "").await;
        assert_eq!((options.status, options.header("allow")), (204, Some("GET,HEAD,OPTIONS")), "{path}");
        let refused = server.request("DELETE", path, &[], "").await;
        assert_eq!(refused.error(), (405, "method_not_allowed".into()));
        assert_eq!(refused.header("allow"), Some("GET,HEAD,OPTIONS"));
        let (get, head) = (server.get(path).await, server.request("HEAD", path, &[], "").await);
        assert_eq!((head.status, head.body.as_str()), (get.status, ""), "{path}");
        assert_eq!(head.header("content-type"), get.header("content-type"), "{path}");
    }
    for server in [server, Server::start().await] {
        let options = server.request("OPTIONS", "/api/publish", &[], "").await;
        assert_eq!((options.status, options.header("allow")), (204, Some("POST,OPTIONS")));
        let refused = server.request("PUT", "/api/publish", &[], "").await;
        assert_eq!((refused.status, refused.header("allow")), (405, Some("POST,OPTIONS")));
        let all = server.request("OPTIONS", "*", &[], "").await;
        assert_eq!((all.status, all.header("allow")), (204, Some("GET,HEAD,POST,OPTIONS")));
        assert_eq!(server.request("OPTIONS", "/nothing", &[], "").await.status, 404);
    }
}

#[tokio::test]
async fn a_method_that_is_not_known_is_one_that_the_route_does_not_have() {
    let server = Start::default().env("ALLOWED_ORIGINS", "https://app.example").serve().await;
    for (path, methods) in [
        ("/", "GET,HEAD,OPTIONS"),
        ("/ws", "GET,HEAD,OPTIONS"),
        ("/events", "GET,HEAD,OPTIONS"),
        ("/metrics", "GET,HEAD,OPTIONS"),
        ("/health/ready", "GET,HEAD,OPTIONS"),
        ("/api/channels", "GET,HEAD,OPTIONS"),
        ("/api/channels/a/history", "GET,HEAD,OPTIONS"),
        ("/api/publish", "POST,OPTIONS"),
        ("/api/publish/batch", "POST,OPTIONS"),
    ] {
        for method in ["FOO", "PROPFIND", "QUERY", "TRACE", "get", "DELETE", "PATCH"] {
            let answer = server.request(method, path, &[], "").await;
            assert_eq!(answer.error(), (405, "method_not_allowed".into()), "{method} {path}");
            assert_eq!(answer.header("allow"), Some(methods), "{method} {path}");
        }
    }
    assert_eq!(server.request("FOO", "/nothing", &[], "").await.status, 404);
}

#[tokio::test]
async fn the_head_of_events_is_that_of_a_stream_without_a_length() {
    let server = Server::start().await;
    let head = server.request("HEAD", "/events?channel=a", &[], "").await;
    assert_eq!((head.status, head.body.as_str(), head.header("content-length")), (200, "", None), "{head:?}");
    let stream = server.events("?channel=a", &[]).await;
    for name in ["content-type", "cache-control", "x-accel-buffering", "connection"] {
        let value = head.header(name).unwrap_or_else(|| panic!("{name} in {head:?}"));
        assert!(stream.head.contains(&format!("{name}: {value}\n")), "{name}: {}", stream.head);
    }
    assert_eq!(server.request("HEAD", "/events?channel=a+b", &[], "").await.status, 400);
}

#[tokio::test]
async fn a_request_by_http_1_0_and_an_unencoded_slash_are_told_what_would_be_right() {
    let server = Server::start().await;
    for (path, status) in [("/ws", 426), ("/events", 400)] {
        let fields = [&LISTS[..], &HANDSHAKE].concat().join("\r\n");
        for fields in ["Connection: close", &fields] {
            let head = format!("GET {path} HTTP/1.0\r\nHost: localhost\r\n{fields}\r\n\r\n");
            let answer = server.exchange(head).await;
            assert_eq!(answer.status, status, "{answer:?}");
            assert!(answer.body.contains("`proxy_http_version 1.1`"), "{answer:?}");
        }
    }
    server.publish(r#"{"channel":"a/b","data":1}"#).await;
    for path in ["/api/channels/a/b", "/api/channels/a/b/history", "/api/channels/a/"] {
        let answer = server.get(path).await;
        assert_eq!(answer.error(), (404, "not_found".into()), "{path}");
        assert!(answer.body.contains("`%2F`"), "{answer:?}");
    }
    assert_eq!(server.get("/api/channels/a%2Fb").await.json()["history"], 1);
}

#[tokio::test]
async fn a_head_may_have_a_hundred_fields_and_24_kib() {
    let server = Server::start().await;
    let with = async |count: usize, length: usize| {
        let host = format!("Host: {}", server.address);
        let fields: Vec<_> = (2..count).map(|n| format!("X-{n}: {}", "x".repeat(length))).collect();
        let fields: Vec<_> = fields.iter().map(String::as_str).collect();
        let request = head("GET /health/live HTTP/1.1", &[&[&host, "Connection: close"], &fields]);
        server.exchange(request).await.status
    };
    assert_eq!((with(100, 1).await, with(101, 1).await), (200, 431));
    assert_eq!((with(20, 1100).await, with(20, 1400).await), (200, 431));
}

#[tokio::test]
async fn a_body_that_is_encoded_is_refused_or_read_for_what_it_is() {
    let server = Start::default().env("NOTIFICATION_INTERVAL", "0").serve().await;
    let mut client = server.client().await;
    for coding in ["gzip", "br", "GZIP", "identity, gzip", "deflate, gzip"] {
        let coding = format!("Content-Encoding: {coding}");
        let answer = server.request("POST", "/api/publish", &[JSON, &coding], TEXT).await;
        assert_eq!(answer.error(), (415, "unsupported_content_encoding".into()), "{coding}");
        assert_eq!(answer.header("accept-encoding"), Some("identity"));
    }
    let answer = server.request("POST", "/api/publish", &["Content-Type: text/plain"], TEXT).await;
    assert_eq!((answer.status, answer.header("accept")), (415, Some("application/json")));
    for coding in ["Content-Encoding: identity", "Content-Encoding:"] {
        let answer = server.request("POST", "/api/publish", &[JSON, coding], TEXT).await;
        assert_eq!(answer.json()["clients"], 1, "{coding}");
        assert_eq!(client.next().await["data"], 1);
    }
    // Editors on Windows put a mark before UTF-8.
    assert_eq!(server.publish("\u{FEFF}{\"data\": \"marked\"}").await.status, 200);
    assert_eq!(client.next().await["data"], "marked");
    let host = format!("Host: {}", server.address);
    let utf_16 = |marked: bool| {
        let text = if marked { "\u{FEFF}{\"data\": 1}" } else { "{\"data\": 1}" };
        text.encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<_>>()
    };
    let big_endian: Vec<_> = TEXT.encode_utf16().flat_map(u16::to_be_bytes).collect();
    for body in [utf_16(true), utf_16(false), big_endian, b"{\"data\": \"\xFC\"}".to_vec()] {
        let length = format!("Content-Length: {}", body.len());
        let head = head("POST /api/publish HTTP/1.1", &[&[&host, JSON, &length, "Connection: close"]]);
        let answer = server.exchange([head.as_bytes(), &body].concat()).await;
        assert_eq!(answer.error(), (400, "bad_request".into()));
        assert!(answer.body.contains("UTF-8") || answer.body.contains("unicode"), "{answer:?}");
    }
}

#[tokio::test]
async fn data_is_passed_on_as_it_was_written() {
    let server = Start::default().env("NOTIFICATION_INTERVAL", "0").serve().await;
    let mut client = server.client().await;
    for data in
        ["9007199254740993", "18446744073709551616123", "1.10", "1E2", r#"{"b":1, "a":2,"b":"\u00fc"}"#]
    {
        assert_eq!(server.publish(&format!(r#"{{"data":{data}}}"#)).await.status, 200, "{data}");
        let text = client.next_frame().await.into_text().unwrap();
        assert!(text.ends_with(&format!(r#""data":{data}}}"#)), "{text}");
    }
    let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
    assert_eq!(server.publish(&format!(r#"{{"data":{}}}"#, nested(127))).await.status, 200);
    let text = client.next_frame().await.into_text().unwrap();
    assert!(text.ends_with(&format!(r#""data":{}}}"#, nested(127))), "{text}");
    for (data, why) in [
        ("1e400", "no double can hold the number"),
        (r#""\ud83d""#, "half a surrogate pair"),
        (r#""\ude00""#, "half a surrogate pair"),
        (r#"{"\ud83dx":1}"#, "half a surrogate pair"),
        (&nested(128), "at most 127 deep"),
        (&nested(30_000), "at most 127 deep"),
    ] {
        for (path, body) in [
            ("/api/publish", format!(r#"{{"data":{data}}}"#)),
            ("/api/publish/batch", format!(r#"{{"publications":[{{"data":{data}}}]}}"#)),
        ] {
            let answer = server.request("POST", path, &[JSON], &body).await;
            assert_eq!(answer.error(), (400, "bad_request".into()), "{why}");
            assert!(answer.body.contains(why), "{answer:?}");
        }
    }
}
