//! Channels, positions and recovery, over WebSockets and the API.

use serde_json::{Value, json};

use crate::support::{Answer, Client, Server, Start, dial, refusal_of};

const JSON: &str = "Content-Type: application/json";

/// Connects to channels, and reads the welcome.
async fn connect(server: &Server, query: &str) -> Client {
    let (mut client, _) = dial(&format!("ws://{}/ws{query}", server.address), &[]).await.unwrap();
    assert_eq!(client.next().await["type"], "welcome");
    client
}

/// Publishes numbers, and returns the ids.
async fn publish(server: &Server, channel: &str, numbers: std::ops::RangeInclusive<u64>) -> Vec<String> {
    let mut ids = Vec::new();
    for number in numbers {
        let answer = server.publish(&json!({"channel": channel, "data": number}).to_string()).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        ids.push(answer.json()["id"].as_str().unwrap().to_owned());
    }
    ids
}

/// Reads publications, which must have these ids.
async fn expect_ids(client: &mut Client, ids: &[String]) {
    for id in ids {
        assert_eq!(client.next().await["id"], *id);
    }
}

async fn quiet_server() -> Server {
    Start::default().env("NOTIFICATION_INTERVAL", "0").serve().await
}

#[tokio::test]
async fn clients_get_the_publications_of_the_channels_that_they_name() {
    let server = quiet_server().await;
    let mut both = connect(&server, "?channel=orders&channel=alerts&channel=orders").await;
    let mut unnamed = server.client().await;
    for channel in ["orders", "alerts"] {
        let subscribed = both.next().await;
        assert_eq!((&subscribed["type"], &subscribed["channel"]), (&json!("subscribed"), &json!(channel)));
        assert_eq!(subscribed["recovered"], false);
        assert!(subscribed["id"].as_str().unwrap().ends_with("-0"), "{subscribed}");
    }
    let answer = server.publish(r#"{"channel":"orders","data":1}"#).await;
    assert_eq!(answer.json()["clients"], 1);
    publish(&server, "alerts", 2..=2).await;
    publish(&server, "other", 3..=3).await;
    publish(&server, "broadcast", 4..=4).await;
    for (channel, data) in [("orders", 1), ("alerts", 2)] {
        let notification = both.next().await;
        assert_eq!((&notification["channel"], &notification["data"]), (&json!(channel), &json!(data)));
    }
    assert_eq!(unnamed.next().await["data"], 4);
    // A text goes to the first channel.
    both.say("hello").await;
    let message = both.next().await;
    assert_eq!(
        (&message["type"], &message["channel"], &message["data"]),
        (&json!("message"), &json!("orders"), &json!("hello"))
    );
    unnamed.say("mine").await;
    assert_eq!(unnamed.next().await["data"], "mine");
}

#[tokio::test]
async fn a_query_that_names_no_channel_is_refused_with_the_rule() {
    let server = quiet_server().await;
    let many: Vec<_> = (0..129).map(|number| format!("channel=c{number}")).collect();
    for (query, words) in [
        ("channel=", "1 to 255 printable ASCII characters"),
        ("channel=a%20b", "1 to 255 printable ASCII characters"),
        ("channel=a&since=&since=", "one `since` for each `channel`"),
        (&many.join("&"), "128 channels"),
    ] {
        let refused = refusal_of(dial(&format!("ws://{}/ws?{query}", server.address), &[]).await);
        assert_eq!(refused.error(), (400, "bad_channel".to_owned()));
        assert!(refused.body.contains(words), "{}", refused.body);
        let refused = server.get(&format!("/events?{query}")).await;
        assert_eq!(refused.error(), (400, "bad_channel".to_owned()), "{query}");
    }
}

#[tokio::test]
async fn a_client_that_comes_back_gets_what_it_missed_in_each_channel() {
    let server = quiet_server().await;
    let orders = publish(&server, "orders", 1..=5).await;
    let alerts = publish(&server, "alerts", 1..=3).await;
    let query =
        format!("?channel=orders&channel=alerts&channel=new&since={}&since={}&since=", orders[1], alerts[2]);
    let mut client = connect(&server, &query).await;
    let mut subscribed = Vec::new();
    let mut missed = Vec::new();
    for _ in 0..3 + 3 {
        let message = client.next().await;
        match message["type"].as_str().unwrap() {
            "subscribed" => subscribed.push((message["channel"].clone(), message["recovered"].clone())),
            _ => missed.push(message["id"].clone()),
        }
    }
    assert_eq!(
        subscribed,
        [(json!("orders"), json!(true)), (json!("alerts"), json!(true)), (json!("new"), json!(false))]
    );
    assert_eq!(missed, orders[2..]);
    let later = publish(&server, "alerts", 4..=4).await;
    expect_ids(&mut client, &later).await;
}

#[tokio::test]
async fn a_client_is_told_that_what_it_missed_is_not_kept_any_more() {
    let server = Start::default()
        .env("NOTIFICATION_INTERVAL", "0")
        .file("config/lastcall.toml", "history_size = 3\n[[namespace]]\nname = \"live\"\nhistory_size = 0\n")
        .serve()
        .await;
    let orders = publish(&server, "orders", 1..=5).await;
    let live = publish(&server, "live:a", 1..=2).await;
    let future = orders[4].replace("-5", "-6");
    let other_epoch = format!("{:016x}-4", 7);
    for (channel, since, recovered, missed) in [
        ("orders", &orders[1], true, &orders[2..]),
        ("orders", &orders[4], true, &[]),
        ("orders", &orders[0], false, &[]),
        ("orders", &future, false, &[]),
        ("orders", &other_epoch, false, &[]),
        ("orders", &"x".to_owned(), false, &[]),
        ("live:a", &live[1], false, &[]),
    ] {
        let mut client = connect(&server, &format!("?channel={channel}&since={since}")).await;
        let subscribed = client.next().await;
        assert_eq!(subscribed["recovered"], recovered, "{channel} since {since}");
        let expected = if recovered { since } else { &orders[4] };
        assert!(channel == "live:a" || subscribed["id"] == **expected, "{subscribed}");
        expect_ids(&mut client, missed).await;
        client.leave().await;
    }
}

#[tokio::test]
async fn a_publication_with_a_key_is_published_once() {
    let server = quiet_server().await;
    let mut client = connect(&server, "?channel=a").await;
    client.next().await;
    let call = async |key: &str, data: u64| {
        let headers = [JSON, &format!("Idempotency-Key: {key}")];
        server.request("POST", "/api/publish", &headers, &format!(r#"{{"channel":"a","data":{data}}}"#)).await
    };
    let first = call("k1", 1).await;
    assert_eq!(first.status, 200);
    assert_eq!(call("k1", 2).await.json(), first.json(), "the same answer");
    assert_ne!(call("k2", 3).await.json()["id"], first.json()["id"]);
    assert_eq!(client.next().await["data"], 1);
    assert_eq!(client.next().await["data"], 3);
    assert_eq!(call(&"k".repeat(256), 4).await.error(), (400, "bad_request".to_owned()));
    // Two keys contradict each other, and a batch has none of its own.
    let bad_header = (400, "bad_header".to_owned());
    let headers = [JSON, "Idempotency-Key: k3", "Idempotency-Key: k4"];
    assert_eq!(server.request("POST", "/api/publish", &headers, r#"{"data":5}"#).await.error(), bad_header);
    let answer = server
        .request(
            "POST",
            "/api/publish/batch",
            &headers[..2],
            r#"{"publications":[{"channel":"a","data":6}]}"#,
        )
        .await;
    assert_eq!(answer.error(), bad_header);
    assert!(answer.body.contains("idempotency_key"), "{answer:?}");
    publish(&server, "a", 7..=7).await;
    assert_eq!(client.next().await["data"], 7);
}

#[tokio::test]
async fn texts_of_a_batch_may_have_escapes() {
    let server = quiet_server().await;
    let body = r#"{"publications": [{"channel": "a\/b", "data": 1, "idempotency_key": "k\u002B"}]}"#;
    let call = async || server.request("POST", "/api/publish/batch", &[JSON], body).await;
    let first = call().await;
    assert_eq!(first.status, 200, "{first:?}");
    assert_eq!(call().await.json(), first.json(), "published once");
    let channel = server.get("/api/channels/a%2Fb").await.json();
    assert_eq!(channel["id"], first.json()["results"][0]["id"]);
}

async fn batch(server: &Server, body: &Value) -> Answer {
    server.request("POST", "/api/publish/batch", &[JSON], &body.to_string()).await
}

#[tokio::test]
async fn a_batch_is_published_in_order_or_not_at_all() {
    let server = quiet_server().await;
    let mut client = connect(&server, "?channel=a").await;
    client.next().await;
    let answer = batch(
        &server,
        &json!({"publications": [
            {"channel": "a", "data": 1},
            {"channel": "a", "data": 2},
            {"data": 3},
            {"channel": "a", "data": 4, "idempotency_key": "k"},
            {"channel": "a", "data": 5, "idempotency_key": "k"},
            {"channel": "a", "data": 6},
        ]}),
    )
    .await;
    let results = answer.json()["results"].as_array().unwrap().clone();
    let offset = |result: &Value| result["id"].as_str().unwrap().rsplit_once('-').unwrap().1.to_owned();
    assert_eq!(results.iter().map(offset).collect::<Vec<_>>(), ["1", "2", "1", "3", "3", "4"]);
    let clients: Vec<_> = results.iter().map(|result| result["clients"].as_u64().unwrap()).collect();
    assert_eq!(clients, [1, 1, 0, 1, 1, 1]);
    for (data, result) in [(1, 0), (2, 1), (4, 3), (6, 5)] {
        let notification = client.next().await;
        assert_eq!((&notification["data"], &notification["id"]), (&json!(data), &results[result]["id"]));
    }
    for wrong in [
        json!({"publications": [{"channel": "a", "data": 7}, {"channel": "a b", "data": 8}]}),
        json!({"publications": [{"channel": "a", "data": 7}, {"channel": "a"}]}),
        json!({"publications": [{"channel": "a", "data": 7, "idempotency_key": ""}]}),
        json!({"publications": (0..1001).map(|data| json!({"data": data})).collect::<Vec<_>>()}),
        json!([{"channel": "a", "data": 7}]),
    ] {
        let answer = batch(&server, &wrong).await;
        assert_eq!(answer.status, 400, "{wrong}");
        assert!(!answer.error().1.is_empty());
    }
    assert_eq!(batch(&server, &json!({"publications": []})).await.json(), json!({"results": []}));
    publish(&server, "a", 9..=9).await;
    assert_eq!(client.next().await["data"], 9, "nothing of the wrong ones");
}

#[tokio::test]
async fn channels_and_their_history_can_be_looked_at() {
    let server = quiet_server().await;
    let ids = publish(&server, "orders", 1..=5).await;
    let client = connect(&server, "?channel=a%2Fb").await;
    let orders = json!({"channel": "orders", "clients": 0, "id": ids[4], "history": 5});
    let list = server.get("/api/channels").await.json();
    let names: Vec<_> = list["channels"].as_array().unwrap().iter().map(|one| &one["channel"]).collect();
    assert_eq!(names, ["a/b", "orders"]);
    assert_eq!((&list["channels"][1], &list["more"]), (&orders, &json!(false)));
    let first = server.get("/api/channels?limit=1").await.json();
    assert_eq!((&first["channels"][0]["channel"], &first["more"]), (&json!("a/b"), &json!(true)));
    let second = server.get("/api/channels?limit=1&after=a/b").await.json();
    assert_eq!(second, json!({"channels": [orders], "more": false}));
    for (query, code) in
        [("limit=0", "bad_request"), ("before=x", "bad_request"), ("after=a%20b", "bad_channel")]
    {
        let answer = server.get(&format!("/api/channels?{query}")).await;
        assert_eq!(answer.error(), (400, code.to_owned()), "{query}");
    }
    assert_eq!(server.get("/api/channels/orders").await.json(), orders);
    assert_eq!(server.get("/api/channels/a%2Fb").await.json()["clients"], 1);
    assert_eq!(server.get("/api/channels/none").await.error(), (404, "unknown_channel".to_owned()));
    let page = server.get(&format!("/api/channels/orders/history?since={}&limit=2", ids[1])).await.json();
    assert_eq!((&page["id"], &page["recovered"]), (&json!(ids[4]), &json!(true)));
    let read: Vec<_> =
        page["publications"].as_array().unwrap().iter().map(|one| (&one["id"], &one["data"])).collect();
    assert_eq!(read, [(&json!(ids[2]), &json!(3)), (&json!(ids[3]), &json!(4))]);
    let lost = server.get("/api/channels/orders/history?since=x").await.json();
    assert_eq!((&lost["recovered"], &lost["publications"]), (&json!(false), &json!([])));
    for path in ["/api/channels/%ff", "/api/channels/%ff/history", "/api/channels/a%20b"] {
        assert_eq!(server.get(path).await.error(), (400, "bad_channel".to_owned()), "{path}");
    }
    for query in ["limit=0", "limit=1001", "limit=x", "sinse=1"] {
        let answer = server.get(&format!("/api/channels/orders/history?{query}")).await;
        assert_eq!(answer.error(), (400, "bad_request".to_owned()), "{query}");
    }
    client.leave().await;
}

#[tokio::test]
async fn the_api_of_channels_needs_the_key() {
    let server = Start::default().env("API_KEYS", "0123456789abcdef").serve().await;
    for path in ["/api/channels", "/api/channels/a", "/api/channels/a/history"] {
        assert_eq!(server.get(path).await.status, 401, "{path}");
        let headers = ["Authorization: Bearer 0123456789abcdef"];
        assert_ne!(server.request("GET", path, &headers, "").await.status, 401, "{path}");
    }
    assert_eq!(batch(&server, &json!({"publications": []})).await.status, 401);
}
