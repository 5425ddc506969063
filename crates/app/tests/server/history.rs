//! The history over upgrades and restarts: a client that comes back gets exactly what it missed, or is told.

use std::fs;

use futures_util::StreamExt;
use lastcall_handover::failpoint;
use serde_json::{Value, json};
use tokio::{sync::watch, task::JoinHandle};

use crate::support::{Client, Http, Server, Signal, Start, dial, soon, until};

const JSON: &str = "Content-Type: application/json";

/// Publishes in `orders`; the id of the publication.
pub(crate) async fn publish(server: &Server, data: impl Into<Value>) -> String {
    let answer = server.publish(&json!({ "channel": "orders", "data": data.into() }).to_string()).await;
    answer.json()["id"].as_str().unwrap_or_else(|| panic!("{answer:?}")).to_owned()
}

/// Publishes in `orders` with an idempotency key; the answer.
pub(crate) async fn publish_with_key(server: &Server, key: &str) -> Value {
    let key = format!("Idempotency-Key: {key}");
    let answer = server
        .request("POST", "/api/publish", &[JSON, &key], r#"{"channel": "orders", "data": "once"}"#)
        .await;
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.json()
}

/// A client of `orders` that has missed what came after `since`, and how its subscription begins.
pub(crate) async fn subscribe(server: &Server, since: &str) -> (Client, Value) {
    let url = format!("{}?channel=orders&since={since}", server.ws_url());
    let (mut client, _) = dial(&url, &[]).await.expect("to be let in");
    let subscribed = client.next_of("subscribed").await;
    assert_eq!(subscribed["channel"], "orders");
    (client, subscribed)
}

/// A client that comes back gets what it missed: these data, in this order, and nothing else.
pub(crate) async fn recovers(server: &Server, since: &str, missed: &[Value]) {
    let (mut client, subscribed) = subscribe(server, since).await;
    assert_eq!(subscribed["recovered"], true, "{subscribed}");
    let mut expected = since.to_owned();
    for data in missed {
        let publication = client.next_of("notification").await;
        expected = next_id(&expected);
        assert_eq!((&publication["data"], &publication["id"]), (data, &json!(expected)));
    }
    let last = publish(server, "the last one").await;
    assert_eq!(last, next_id(&expected), "the numbering continues");
    assert_eq!(client.next_of("notification").await["id"], last, "nothing else was missed");
    client.leave().await;
}

/// A client that comes back is told that it may have missed something: the channel has begun anew.
pub(crate) async fn does_not_recover(server: &Server, since: &str) {
    let (client, subscribed) = subscribe(server, since).await;
    assert_eq!(subscribed["recovered"], false, "{subscribed}");
    assert_ne!(epoch(subscribed["id"].as_str().unwrap()), epoch(since));
    assert_ne!(epoch(&publish(server, 1).await), epoch(since));
    client.leave().await;
}

fn epoch(id: &str) -> &str {
    id.split_once('-').unwrap().0
}

/// Returns the id of the publication after this one.
pub(crate) fn next_id(id: &str) -> String {
    let (epoch, offset) = id.split_once('-').unwrap();
    format!("{epoch}-{}", offset.parse::<u64>().unwrap() + 1)
}

/// Ends a server by a signal, in order.
pub(crate) async fn stop(server: &mut Server) {
    server.signal(Signal::TERM);
    assert_eq!(server.exit_code().await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_recovers_what_was_published_over_two_upgrades() {
    let mut server = Server::start().await;
    publish(&server, "known").await;
    let (client, subscribed) = subscribe(&server, "").await;
    let since = subscribed["id"].as_str().unwrap().to_owned();
    client.leave().await;
    let once = publish_with_key(&server, "a").await;
    let mut missed = vec![json!("once")];
    for upgrade in 0..2 {
        for number in 0..3 {
            let data = json!([upgrade, number]);
            publish(&server, data.clone()).await;
            missed.push(data);
        }
        server.upgrade().await;
        assert_eq!(publish_with_key(&server, "a").await, once, "it is not published again");
    }
    recovers(&server, &since, &missed).await;
    assert!(server.log_lines("the history").is_empty(), "an upgrade needs no file");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quiet_channel_keeps_its_position_over_upgrades_while_it_has_a_subscriber() {
    // Whatever is not in use is gone before the next upgrade.
    let mut server = Start::default().env("HISTORY_TTL", "0.01").serve().await;
    let before = publish(&server, 1).await;
    let (mut client, subscribed) = subscribe(&server, "").await;
    let top = subscribed["id"].as_str().unwrap().to_owned();
    assert!(epoch(&top) != epoch(&before) || top == before, "{top} after {before}");
    server.upgrade().await;
    server.upgrade().await;
    let id = publish(&server, 2).await;
    assert_eq!(id, next_id(&top));
    assert_eq!(client.next_of("notification").await["id"], id);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_process_that_dies_after_the_commit_costs_the_epoch() {
    let failpoint = tempfile::NamedTempFile::new().unwrap();
    let server = Start::default().env(failpoint::FILE_VARIABLE, failpoint.path().display()).serve().await;
    let since = publish(&server, 1).await;
    let (mut client, _) = subscribe(&server, &since).await;
    // It may have published something, which the old process does not know.
    fs::write(failpoint.path(), "Committed:kill").unwrap();
    let told = server.failed_upgrade().await;
    assert!(told.contains("the server continues without its clients"), "{told}");
    assert!(soon("the end of the connection", client.socket.next()).await.is_none_or(|end| end.is_err()));
    does_not_recover(&server, &since).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_supervisor_keeps_no_history() {
    let mut server = Server::start().await;
    let before = server.memory();
    for _ in 0..100 {
        publish(&server, "x".repeat(60_000)).await;
    }
    let full = server.memory();
    assert!(full > before + 5_000_000, "{before}, then {full}");
    server.upgrade().await;
    let supervisor = server.started_pid();
    until("a supervisor without history", async || Server::memory_of(supervisor) < before + 2_000_000).await;
}

/// Publishes numbers in `orders` from 1 on, over one connection, one after the other as fast as they are
/// answered, until told to stop. The last number, with the id of each.
fn publish_fast(server: &Server) -> (watch::Sender<bool>, JoinHandle<Vec<String>>) {
    let (stop, stopped) = watch::channel(false);
    let address = server.address.to_string();
    let publishing = tokio::spawn(async move {
        let mut http = Http::to(&address).await;
        let mut ids = Vec::new();
        while !*stopped.borrow() {
            let body = json!({ "channel": "orders", "data": ids.len() + 1 }).to_string();
            let request = http.publication(&body);
            let answer = http.call(request).await;
            assert_eq!(answer.status, 200, "{answer:?}");
            ids.push(answer.json()["id"].as_str().unwrap().to_owned());
        }
        ids
    });
    (stop, publishing)
}

#[tokio::test(flavor = "multi_thread")]
async fn upgrades_under_publications_at_full_speed_lose_and_double_nothing() {
    let start = Start::default().env("HISTORY_SIZE", "1000000").env("MAX_QUEUE", "64MiB");
    let mut server = start.serve().await;
    let (mut connected, subscribed) = subscribe(&server, "").await;
    let since = subscribed["id"].as_str().unwrap().to_owned();
    // Large parts have to be sent while more is published.
    let large = json!({ "channel": "large", "data": "x".repeat(60_000) }).to_string();
    for _ in 0..100 {
        assert_eq!(server.publish(&large).await.status, 200);
    }
    let (stop, publishing) = publish_fast(&server);
    let (last, mut is_last) = watch::channel(usize::MAX);
    let reading = tokio::spawn(async move {
        let mut number = 0;
        while number < *is_last.borrow_and_update() {
            let publication = tokio::select! {
                publication = connected.next_of("notification") => publication,
                _ = is_last.changed() => continue,
            };
            number += 1;
            assert_eq!(publication["data"], number, "nothing lost, doubled or out of order");
        }
    });
    server.upgrade().await;
    // Comes back between two upgrades, while more is published.
    let (mut client, subscribed) = subscribe(&server, &since).await;
    assert_eq!(subscribed["recovered"], true);
    server.upgrade().await;
    stop.send_replace(true);
    let ids = soon("the publisher", publishing).await.unwrap();
    last.send_replace(ids.len());
    soon("all publications", reading).await.unwrap();
    let mut expected = since.clone();
    for (number, id) in (1..).zip(&ids) {
        expected = next_id(&expected);
        assert_eq!(*id, expected, "one epoch, and no gap");
        let publication = client.next_of("notification").await;
        assert_eq!((&publication["data"], &publication["id"]), (&json!(number), &json!(id)));
    }
    let numbers: Vec<_> = (1..=ids.len()).map(|number| json!(number)).collect();
    recovers(&server, &since, &numbers).await;
    let large = server.get("/api/channels/large").await.json();
    assert_eq!(large["history"], 100, "{large}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_without_a_history_file_begins_anew() {
    let mut server = Server::start().await;
    let since = publish(&server, 1).await;
    stop(&mut server).await;
    assert!(server.log_lines("the history").is_empty());
    let server = Server::start().await;
    does_not_recover(&server, &since).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn names_that_clients_invent_displace_no_history() {
    let server = Start::default().env("HISTORY_BYTES", "1MiB").serve().await;
    let mut real = Vec::new();
    for number in 0..50 {
        let publication = json!({ "channel": format!("real{number}"), "data": "known" }).to_string();
        real.push(server.publish(&publication).await.json()["id"].as_str().unwrap().to_owned());
        assert_eq!(server.publish(&publication).await.status, 200);
    }
    // They take four times the room that there is. Each client also sends a text, which makes a publication
    // of one name.
    for connection in 0..100 {
        let names: Vec<_> = (0..128).map(|name| format!("invented-{connection}-{name}-{:050}", 0)).collect();
        let query = names.iter().map(|name| format!("channel={name}")).collect::<Vec<_>>().join("&");
        let (mut client, _) = dial(&format!("{}?{query}", server.ws_url()), &[]).await.expect("to be let in");
        client.say("invented").await;
        client.next_of("message").await;
        client.leave().await;
    }
    until("the names to be left", async || {
        let page = server.get("/metrics").await.body;
        let used = page.lines().find_map(|line| line.strip_prefix("lastcall_history_bytes ")).unwrap();
        used.parse::<f64>().unwrap() > 1_000_000.0
    })
    .await;
    for (number, id) in real.iter().enumerate() {
        let url = format!("{}?channel=real{number}&since={id}", server.ws_url());
        let (mut client, _) = dial(&url, &[]).await.expect("to be let in");
        assert_eq!(client.next_of("subscribed").await["recovered"], true, "real{number}");
        assert_eq!(client.next_of("notification").await["id"], next_id(id));
        client.leave().await;
    }
}
