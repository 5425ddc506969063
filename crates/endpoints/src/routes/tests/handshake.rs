use super::*;

const HANDSHAKE: [(&str, &str); 4] = [
    ("connection", "keep-alive, Upgrade"),
    ("upgrade", "websocket"),
    ("sec-websocket-version", "13"),
    ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
];

#[tokio::test]
async fn a_handshake_is_answered_as_the_rfc_says() {
    let routes = Routes::serving(Config::default());
    let answer = routes.get("/ws", &HANDSHAKE).await;
    assert_eq!(answer.status, StatusCode::SWITCHING_PROTOCOLS);
    // The example of RFC 6455 section 1.3.
    assert_eq!(answer.header("sec-websocket-accept"), Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="));
    assert_eq!(routes.manager.count(), 0, "the permit went with the connection that was not there");
    let without = |name| HANDSHAKE.iter().copied().filter(|field| field.0 != name).collect::<Vec<_>>();
    let no_upgrade = routes.get("/ws", &without("upgrade")).await;
    assert_eq!(no_upgrade.error(), error(426, "upgrade_required"));
    assert_eq!(no_upgrade.header("sec-websocket-version"), Some("13"));
    let no_key = routes.get("/ws", &without("sec-websocket-key")).await;
    assert_eq!(no_key.error(), error(400, "bad_handshake"));
    let foreign = [&HANDSHAKE[..], &[("origin", "https://app.example")]].concat();
    assert_eq!(routes.get("/ws", &foreign).await.error(), error(403, "origin_not_allowed"));
}

#[tokio::test]
async fn a_full_server_refuses_handshakes() {
    let limits = Limits { max_connections: 1, ..Limits::default() };
    let routes = Routes::serving(Config { limits, ..Config::default() });
    let permit = routes.manager.admit().unwrap();
    let full = routes.get("/ws", &HANDSHAKE).await;
    assert_eq!(full.error(), error(503, "full"));
    assert_eq!(full.header("retry-after"), Some("5"));
    drop(permit);
    assert_eq!(routes.get("/ws", &HANDSHAKE).await.status, StatusCode::SWITCHING_PROTOCOLS);
}

#[tokio::test]
async fn a_drain_refuses_handshakes_and_publishes_until_it_closes_the_clients() {
    for (phase, published) in [(Phase::Draining, 200), (Phase::Closing, 503)] {
        let routes = Routes::start(Config::default(), PhaseState { phase, ..PhaseState::default() });
        assert_eq!(routes.get("/ws", &HANDSHAKE).await.error(), error(503, "draining"), "{phase:?}");
        let answer = routes.publish(&[], r#"{"data":1}"#).await;
        assert_eq!(answer.status, published, "{phase:?}");
        if phase == Phase::Closing {
            assert_eq!(answer.error(), error(503, "closing"));
        }
    }
}
