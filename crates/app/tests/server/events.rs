//! Server-sent events.

use serde_json::json;
use tokio::net::TcpStream;

use crate::support::{EventStream, HANDSHAKE, Server, Signal, Start};

async fn quiet_server() -> Server {
    Start::default().env("NOTIFICATION_INTERVAL", "0").serve().await
}

/// Publishes numbers, and returns the ids.
async fn publish(server: &Server, channel: &str, numbers: std::ops::RangeInclusive<u64>) -> Vec<String> {
    let mut ids = Vec::new();
    for number in numbers {
        let answer = server.publish(&json!({"channel": channel, "data": number}).to_string()).await;
        ids.push(answer.json()["id"].as_str().unwrap().to_owned());
    }
    ids
}

#[tokio::test]
async fn a_client_gets_events_with_ids_and_recovers_with_the_last_one() {
    let server = quiet_server().await;
    let mut stream = server.events("?channel=orders", &[]).await;
    for line in [
        "transfer-encoding: chunked",
        "content-type: text/event-stream",
        "cache-control: no-store, no-transform",
        "x-accel-buffering: no",
    ] {
        assert!(stream.head.lines().any(|one| one == line), "{}", stream.head);
    }
    let subscribed = stream.next().await.unwrap();
    assert_eq!(subscribed.name, "subscribed");
    assert_eq!(json!(subscribed.id), subscribed.data["id"], "a position before the first publication");
    let ids = publish(&server, "orders", 1..=2).await;
    for (id, data) in ids.iter().zip(1..) {
        let event = stream.next().await.unwrap();
        assert_eq!((&*event.name, event.id.as_ref()), ("notification", Some(id)));
        assert_eq!((&event.data["id"], &event.data["data"]), (&json!(id), &json!(data)));
    }
    drop(stream);
    let missed = publish(&server, "orders", 3..=4).await;
    // The field of a client that comes back wins over the parameter of its URL.
    let last = format!("Last-Event-ID: {}", ids[1]);
    for (query, headers) in [
        ("?channel=orders".to_owned(), vec![&*last]),
        (format!("?channel=orders&last_event_id={}", ids[1]), vec![]),
        (format!("?channel=orders&last_event_id={}", missed[1]), vec![&*last]),
    ] {
        let mut stream = server.events(&query, &headers).await;
        let subscribed = stream.next().await.unwrap();
        assert_eq!(
            (subscribed.data["recovered"].clone(), subscribed.id.as_ref()),
            (json!(true), Some(&ids[1]))
        );
        for id in &missed {
            assert_eq!(stream.next().await.unwrap().id.as_ref(), Some(id));
        }
    }
}

#[tokio::test]
async fn the_id_of_the_last_event_has_any_spelling_in_the_url() {
    let server = quiet_server().await;
    let ids = publish(&server, "orders", 1..=30).await;
    for name in ["last_event_id", "lastEventId", "LastEventId", "last-event-id", "Last-Event-ID"] {
        let mut stream = server.events(&format!("?channel=orders&{name}={}", ids[17]), &[]).await;
        assert_eq!(stream.next().await.unwrap().data["recovered"], true, "{name}");
        for id in &ids[18..] {
            assert_eq!(stream.next().await.unwrap().id.as_ref(), Some(id), "{name}");
        }
    }
}

#[tokio::test]
async fn another_spelling_of_channel_is_refused_with_the_right_one() {
    let server = quiet_server().await;
    let address = server.address;
    for key in [
        "channel[]",
        "channel%5B%5D",
        "channel[0]",
        "Channel",
        "channels",
        "CHANNELS",
        "chanel",
        "topic",
        "topics",
        "topics[]",
        "since[]",
    ] {
        for path in ["/events", "/ws"] {
            for other in ["", "channel=b&"] {
                let fields = HANDSHAKE.join("\r\n");
                let fields = if path == "/ws" { format!("{fields}\r\n") } else { String::new() };
                let request =
                    format!("GET {path}?{other}{key}=a HTTP/1.1\r\nHost: {address}\r\n{fields}\r\n");
                assert_eq!(server.status(&request).await, 400, "{request}");
            }
        }
        let answer = server.get(&format!("/events?{key}=a")).await;
        assert_eq!(answer.error(), (400, "bad_channel".into()), "{key}");
        assert!(answer.body.contains("`channel=a&channel=b`"), "{answer:?}");
    }
    // Others are none of ours.
    server.events("?channel=a&token=b&channel_id=c&subtopic=d", &[]).await;
}

#[tokio::test]
async fn the_id_of_a_client_with_several_channels_has_all_positions() {
    let server = quiet_server().await;
    let mut stream = server.events("?channel=a&channel=b", &[]).await;
    let (a, b) = (stream.next().await.unwrap(), stream.next().await.unwrap());
    let position = |event: &crate::support::Event| event.data["id"].as_str().unwrap().to_owned();
    assert_eq!(a.id, Some(format!("{},", position(&a))), "nothing of b is known yet");
    assert_eq!(b.id, Some(format!("{},{}", position(&a), position(&b))));
    let a1 = publish(&server, "a", 1..=1).await.remove(0);
    let b1 = publish(&server, "b", 1..=1).await.remove(0);
    assert_eq!(stream.next().await.unwrap().id, Some(format!("{a1},{}", position(&b))));
    let last = stream.next().await.unwrap().id.unwrap();
    assert_eq!(last, format!("{a1},{b1}"));
    drop(stream);
    let (a2, b2) = (publish(&server, "a", 2..=3).await, publish(&server, "b", 2..=2).await);
    let mut stream = server.events("?channel=a&channel=b", &[&format!("Last-Event-ID: {last}")]).await;
    let mut ids = Vec::new();
    for _ in 0..5 {
        let event = stream.next().await.unwrap();
        assert!(event.name != "subscribed" || event.data["recovered"] == true);
        ids.push(event.id.unwrap());
    }
    // After each of them, the client could come back: it has what the id says, and nothing else.
    let expected = [
        format!("{a1},{b1}"),
        format!("{},{b1}", a2[0]),
        format!("{},{b1}", a2[1]),
        format!("{},{b1}", a2[1]),
    ];
    assert_eq!(ids[..4], expected);
    assert_eq!(ids[4], format!("{},{}", a2[1], b2[0]));
}

#[tokio::test]
async fn what_cannot_be_recovered_is_an_event() {
    let server = Start::default().env("NOTIFICATION_INTERVAL", "0").env("HISTORY_SIZE", "2").serve().await;
    let ids = publish(&server, "a", 1..=4).await;
    for last in [&*ids[0], "garbage", "1,2", &format!("{},", ids[3])] {
        let mut stream = server.events("?channel=a", &[&format!("Last-Event-ID: {last}")]).await;
        let subscribed = stream.next().await.unwrap();
        assert_eq!((&subscribed.data["recovered"], &subscribed.id), (&json!(false), &None), "{last}");
        let reset = stream.next().await.unwrap();
        assert_eq!(reset.id.as_ref(), Some(&ids[3]));
        assert_eq!(
            (&*reset.name, &reset.data),
            ("reset", &json!({"type": "reset", "channel": "a", "id": ids[3]}))
        );
    }
    let mut fresh = server.events("?channel=a", &[]).await;
    assert_eq!(fresh.next().await.unwrap().data["recovered"], false);
    publish(&server, "a", 5..=5).await;
    assert_eq!(fresh.next().await.unwrap().name, "notification", "nothing was asked for, so nothing is lost");
}

#[tokio::test]
async fn a_client_that_loses_its_connection_before_it_is_told_of_a_loss_is_told_the_next_time() {
    let server = Start::default().env("NOTIFICATION_INTERVAL", "0").env("HISTORY_SIZE", "2").serve().await;
    let mut old = Vec::new();
    for channel in ["a", "b", "c"] {
        old.push(publish(&server, channel, 1..=5).await.remove(0));
    }
    let [a, b, c] = &old[..] else { panic!("three channels") };
    let query = "?channel=a&channel=b&channel=c";
    for (last, lost) in [
        (format!("{a},{b},{c}"), "abc"),
        (format!("{a},,{c}"), "ac"),
        (format!(",{b},"), "b"),
        (format!("{a},malformed,{c}"), "abc"),
        (format!("malformed,,{c}"), "ac"),
        (",,malformed".to_owned(), "c"),
        ("malformed".to_owned(), "abc"),
    ] {
        // Up to a welcome is read already; then come at most three subscriptions and three resets.
        for reads in 0..=3 + lost.len() {
            let (mut last, mut told) = (last.clone(), Vec::new());
            let mut stream = server.events(query, &[&format!("Last-Event-ID: {last}")]).await;
            for _ in 0..reads {
                let event = stream.next().await.unwrap();
                last = event.id.unwrap_or(last);
                if event.name == "reset" {
                    told.push(event.data["channel"].as_str().unwrap().to_owned());
                }
            }
            drop(stream);
            let mut stream = server.events(query, &[&format!("Last-Event-ID: {last}")]).await;
            publish(&server, "c", 6..=6).await;
            loop {
                let event = stream.next().await.unwrap();
                match &*event.name {
                    "reset" => told.push(event.data["channel"].as_str().unwrap().to_owned()),
                    "notification" => break,
                    _ => {}
                }
            }
            assert_eq!(told.concat(), lost, "{reads} events were read");
        }
    }
}

#[tokio::test]
async fn a_drain_ends_each_stream_with_the_time_to_come_back() {
    let mut server = Start::default()
        .env("NOTIFICATION_INTERVAL", "0")
        .env("SHUTDOWN_TIMEOUT", "1")
        .env("SHUTDOWN_SPREAD", "1")
        .serve()
        .await;
    let mut stream = server.events("", &[]).await;
    let subscribed = stream.next().await.unwrap();
    assert_eq!(subscribed.data["channel"], "broadcast");
    server.signal(Signal::TERM);
    let first = stream.next_of("shutdown").await;
    assert_eq!(first.retry, None, "the client is still served");
    let mut last = first;
    while let Some(event) = stream.next().await {
        last = event;
    }
    assert_eq!(last.name, "shutdown");
    assert_eq!(json!(last.retry), last.data["reconnect"]["after_ms"]);
    drop(stream);
    assert_eq!(server.exit_code().await, 0);
}

#[tokio::test]
async fn an_upgrade_keeps_streams_and_their_ids() {
    let mut server = quiet_server().await;
    let mut one = server.events("?channel=a", &[]).await;
    let mut both = server.events("?channel=a&channel=b", &[]).await;
    one.next().await;
    both.next().await;
    both.next().await;
    let before = publish(&server, "a", 1..=1).await.remove(0);
    assert_eq!(one.next().await.unwrap().id.unwrap(), before);
    let id = both.next().await.unwrap().id.unwrap();
    let (_, b) = id.split_once(',').unwrap();
    server.upgrade().await;
    let after = publish(&server, "a", 2..=2).await.remove(0);
    assert_eq!(one.next().await.unwrap().id.unwrap(), after);
    assert_eq!(both.next().await.unwrap().id.unwrap(), format!("{after},{b}"));
}

#[tokio::test]
async fn a_client_that_is_not_admitted_is_told_when_to_come_back() {
    let server = Start::default().env("NOTIFICATION_INTERVAL", "0").env("MAX_CONNECTIONS", "1").serve().await;
    let _client = server.client().await;
    let mut refused = EventStream::open(&server.address.to_string(), "/events", &[]).await;
    // After any other status, an `EventSource` never comes back.
    assert!(refused.head.starts_with("HTTP/1.1 200 "), "{}", refused.head);
    let event = refused.next().await.unwrap();
    assert_eq!((&*event.name, event.data["code"].as_str(), event.retry), ("error", Some("full"), Some(5000)));
    assert_eq!(refused.next().await, None);
    assert_eq!(server.metric(r#"lastcall_refused_requests_total{code="full"}"#).await, 1.0);
}

#[tokio::test]
async fn a_client_that_does_not_read_is_closed_like_a_slow_websocket() {
    let server = Start::default().env("NOTIFICATION_INTERVAL", "0").env("MAX_QUEUE", "65536").serve().await;
    let stuck = TcpStream::connect(server.address).await.unwrap();
    let _stuck = EventStream::request(stuck, "localhost", "/events", &[]).await;
    let mut reader = server.events("", &[]).await;
    let body = json!({"data": "x".repeat(20_000)}).to_string();
    while server.metric("lastcall_slow_consumers_total").await < 1.0 {
        assert_eq!(server.publish(&body).await.status, 200);
        reader.next_of("notification").await;
    }
}

#[tokio::test]
async fn a_request_that_cannot_become_a_stream_is_refused() {
    let server = quiet_server().await;
    let old = server.exchange("GET /events HTTP/1.0\r\n\r\n").await;
    assert_eq!(old.error(), (400, "bad_request".to_owned()));
    let body = server.request("GET", "/events", &[], "body").await;
    assert_eq!(body.error(), (400, "bad_request".to_owned()));
    assert_eq!(server.request("POST", "/events", &[], "").await.status, 405);
    let foreign = server.request("GET", "/events", &["Origin: https://evil.example"], "").await;
    assert_eq!(foreign.error(), (403, "origin_not_allowed".to_owned()));
    let rebound =
        server.exchange("GET /events HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n").await;
    assert_eq!(rebound.error(), (403, "host_not_allowed".to_owned()));
    let head = server.request("HEAD", "/events", &[], "").await;
    assert_eq!((head.status, head.header("content-type")), (200, Some("text/event-stream")));
}
