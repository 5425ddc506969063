use super::*;

/// Reads until these bytes have come. The runtime is free meanwhile for the task that wakes the event loop.
async fn read_until(mut client: TcpStream, expected: &'static [u8]) -> TcpStream {
    let reading = tokio::task::spawn_blocking(move || {
        let mut received = Vec::new();
        while !received.windows(expected.len()).any(|window| window == expected) {
            let mut buffer = [0; 4096];
            let read = client.read(&mut buffer).unwrap();
            assert_ne!(read, 0, "the connection ended");
            received.extend_from_slice(&buffer[..read]);
        }
        client
    });
    reading.await.unwrap()
}

#[tokio::test]
async fn a_publication_reaches_a_client() {
    let routes = Routes::serving(Config::default());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    client.set_read_timeout(Some(TEST_TIMEOUT)).unwrap();
    let (socket, _) = listener.accept().await.unwrap();
    let permit = routes.manager.admit().unwrap();
    routes.manager.connect(permit, socket, Handshake::default()).unwrap();
    // It is subscribed when it is welcomed.
    let client = read_until(client, br#""welcome""#).await;

    let response = routes.publish(&[], r#"{"data":{"order":"shipped"}}"#).await;
    assert_eq!((response.status, &response.json()["clients"]), (StatusCode::OK, &json!(1)));
    let id = response.json()["id"].as_str().unwrap().to_owned();
    assert!(id.ends_with("-1"), "{id}");
    read_until(client, br#""data":{"order":"shipped"}"#).await;
}

#[tokio::test]
async fn a_body_that_is_no_publication_is_refused_with_its_code() {
    let limits = Limits { max_message_size: 64, ..Limits::default() };
    let routes = Routes::serving(Config { limits, ..Config::default() });
    let large = format!(r#"{{"data":"{}"}}"#, "x".repeat(64));
    for (body, expected) in [
        ("", error(400, "bad_request")),
        ("[1]", error(400, "bad_request")),
        ("{", error(400, "bad_request")),
        ("{}", error(400, "bad_request")),
        (r#"{"data":1,"other":2}"#, error(400, "bad_request")),
        (r#"{"data":"\ud800"}"#, error(400, "bad_request")),
        (r#"{"data":1,"channel":"a b"}"#, error(400, "bad_channel")),
        (&large, error(413, "payload_too_large")),
    ] {
        assert_eq!(routes.publish(&[], body).await.error(), expected, "{body}");
    }
    let compressed = routes.publish(&[("content-encoding", "gzip")], r#"{"data":1}"#).await;
    assert_eq!(compressed.error(), error(415, "unsupported_content_encoding"));
    assert_eq!(compressed.header("accept-encoding"), Some("identity"));
    let call = Call { method: Method::POST, path: "/api/publish", body: r#"{"data":1}"#, ..Call::default() };
    let untyped = routes.response(call).await;
    assert_eq!(untyped.error(), error(415, "unsupported_media_type"));
    assert_eq!(untyped.header("accept"), Some("application/json"));
}

#[tokio::test]
async fn without_keys_only_this_machine_may_publish() {
    let routes = Routes::serving(Config::default());
    let publish = async |is_here, fields: Fields<'_>| {
        let fields = [fields, &[("content-type", "application/json")]].concat();
        let call = Call {
            method: Method::POST,
            path: "/api/publish",
            is_here,
            fields: &fields,
            body: r#"{"data":1}"#,
        };
        routes.response(call).await
    };
    assert_eq!(publish(false, &[]).await.error(), error(403, "loopback_only"));
    let forwarded = publish(true, &[("x-forwarded-for", "192.0.2.7")]).await;
    assert_eq!(forwarded.error(), error(403, "loopback_only"));
    let rebound = publish(true, &[("host", "evil.example")]).await;
    assert_eq!(rebound.error(), error(403, "host_not_allowed"));
}

#[tokio::test]
async fn a_key_lets_every_machine_publish() {
    let api_keys = vec![ApiKey::new("first-key"), ApiKey::new("second-key")];
    let routes = Routes::serving(Config { api_keys, ..Config::default() });
    let body = r#"{"data":1}"#;
    let refused = routes.publish(&[], body).await;
    assert_eq!(refused.error(), error(401, "unauthorized"));
    assert_eq!(refused.header("www-authenticate"), Some("Bearer"));
    let wrong = routes.publish(&[("authorization", "Bearer third-key")], body).await;
    assert_eq!(wrong.error(), error(401, "unauthorized"));
    let fields =
        [("authorization", "Bearer second-key"), ("content-type", "application/json"), ("host", "a.example")];
    let call = Call { method: Method::POST, path: "/api/publish", is_here: false, fields: &fields, body };
    assert_eq!(routes.response(call).await.status, StatusCode::OK);
}

#[tokio::test]
async fn a_page_may_publish_where_its_origin_is_allowed() {
    let body = r#"{"data":1}"#;
    let same_host = Routes::serving(Config::default());
    let own = same_host.publish(&[("origin", "http://localhost:8000")], body).await;
    assert_eq!((own.status, own.header("access-control-allow-origin")), (StatusCode::OK, None));
    let foreign = same_host.publish(&[("origin", "https://app.example")], body).await;
    assert_eq!(foreign.error(), error(403, "origin_not_allowed"));

    let allowed_origins = AllowedOrigins::List(vec!["https://app.example".parse().unwrap()]);
    let listed = Routes::serving(Config { allowed_origins, ..Config::default() });
    let response = listed.publish(&[("origin", "https://app.example")], body).await;
    assert_eq!(response.status, StatusCode::OK);
    assert_eq!(response.header("access-control-allow-origin"), Some("https://app.example"));
    let other = listed.publish(&[("origin", "https://other.example")], body).await;
    assert_eq!(other.error(), error(403, "origin_not_allowed"));
    assert_eq!(other.header("access-control-allow-origin"), None);
}

#[tokio::test]
async fn a_preflight_says_what_a_listed_page_may_send() {
    let allowed_origins = AllowedOrigins::List(vec!["https://app.example".parse().unwrap()]);
    let routes = Routes::serving(Config { allowed_origins, ..Config::default() });
    let preflight = async |origin| {
        let fields = [("origin", origin), ("access-control-request-method", "POST")];
        let call = Call { method: Method::OPTIONS, path: "/api/publish", fields: &fields, ..Call::default() };
        routes.response(call).await
    };
    let allowed = preflight("https://app.example").await;
    assert_eq!((allowed.status, allowed.header("allow")), (StatusCode::NO_CONTENT, Some("POST,OPTIONS")));
    assert_eq!(allowed.header("access-control-allow-origin"), Some("https://app.example"));
    assert_eq!(allowed.header("access-control-allow-methods"), Some("POST"));
    assert_eq!(
        allowed.header("access-control-allow-headers"),
        Some("authorization,content-type,idempotency-key")
    );
    assert_eq!(preflight("https://other.example").await.header("access-control-allow-origin"), None);
}
