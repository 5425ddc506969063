//! Replays: ten thousand of them at once.

use std::sync::Arc;

use serde::Deserialize;
use serde_json::{Value, json, value::RawValue};
use tokio::{net::TcpStream, sync::mpsc, task::JoinSet};

use crate::support::{
    ConnectionBudget, Input, Received, Server, Start, Wire, connect_one_of_many, soon, until,
};

/// Publishes these data in these channels, in one request. Returns the ids.
async fn publish(server: &Server, publications: &[(&str, Value)]) -> Vec<String> {
    let publication = |(channel, data): &(&str, Value)| json!({"channel": channel, "data": data});
    let publications: Vec<_> = publications.iter().map(publication).collect();
    let body = json!({ "publications": publications }).to_string();
    let answer =
        server.request("POST", "/api/publish/batch", &["Content-Type: application/json"], &body).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let id = |result: &Value| result["id"].as_str().unwrap().to_owned();
    answer.json()["results"].as_array().unwrap().iter().map(id).collect()
}

/// Checks the start of a subscription, which must go on from `since`.
fn check_recovered(message: &Received, since: &str) {
    let message = message.json();
    assert_eq!(
        (&message["type"], &message["recovered"], &message["id"]),
        (&json!("subscribed"), &json!(true), &json!(since))
    );
}

/// What the clients of a channel missed.
struct Missed {
    channel: String,
    /// The id that they have.
    since: String,
    /// The id and the JSON of each publication.
    publications: Vec<(String, String)>,
}

/// A page of `GET /api/channels/NAME/history`.
#[derive(Deserialize)]
struct HistoryPage {
    recovered: bool,
    publications: Vec<Box<RawValue>>,
}

/// Publishes `missed` publications in each of so many channels, after one that clients have.
async fn publish_missed(server: &Server, channels: usize, missed: usize) -> Vec<Missed> {
    let names: Vec<_> = (0..channels).map(|number| format!("c{number}")).collect();
    // No two channels have the same data.
    let data = |channel: usize, number: usize| json!(channel * 1000 + number);
    // The channels take turns.
    let publish_in_each = async |number: usize| {
        let publications: Vec<_> =
            (0..).zip(&names).map(|(channel, name)| (name.as_str(), data(channel, number))).collect();
        publish(server, &publications).await
    };
    let known = publish_in_each(0).await;
    let mut ids = Vec::new();
    for number in 1..=missed {
        ids.push(publish_in_each(number).await);
    }
    let mut all = Vec::new();
    for (index, (channel, since)) in names.iter().zip(known).enumerate() {
        // Clients get publications as the history shows them.
        let path = format!("/api/channels/{channel}/history?since={since}&limit=1000");
        let page: HistoryPage = serde_json::from_str(&server.get(&path).await.body).unwrap();
        assert!(page.recovered && page.publications.len() == missed);
        let mut publications = Vec::new();
        for ((number, kept), ids) in (1..).zip(page.publications).zip(&ids) {
            let text = kept.get().to_owned();
            let kept: Value = serde_json::from_str(&text).unwrap();
            assert_eq!((&kept["id"], &kept["data"]), (&json!(ids[index]), &data(index, number)));
            publications.push((ids[index].clone(), text));
        }
        all.push(Missed { channel: channel.clone(), since, publications });
    }
    all
}

/// Connects so many clients that send nothing yet.
async fn connect_silent(server: &Server, count: usize) -> Vec<TcpStream> {
    let mut streams = Vec::with_capacity(count);
    for number in 0..count {
        streams.push(connect_one_of_many(server.address, number).await);
        // A system may queue no more than 128 connections that are not accepted; others would have to be tried again.
        if streams.len().is_multiple_of(100) {
            let accepted = async || server.open_files() >= streams.len();
            until("connections to be accepted", accepted).await;
        }
    }
    streams
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_clients_that_come_back_at_once_get_what_they_missed_and_then_the_rest() {
    const CHANNELS: usize = 100;
    const MISSED: usize = 100;
    /// Publications after which a client tells that it gets on.
    const STEP: usize = 10;
    let budget = ConnectionBudget::with(10_000, 1000).await;
    let clients = budget.connections;
    // Connections wait for their requests until all are there.
    let server = Start::default().env("KEEP_ALIVE_TIMEOUT", "600").serve().await;
    let missed = Arc::new(publish_missed(&server, CHANNELS, MISSED).await);
    let streams = connect_silent(&server, clients).await;
    // Half of the clients of each channel use either route. All of them ask before one of them reads.
    let wire = |client: usize| [Wire::WebSocket, Wire::EventStream][client % 2];
    let channel = |client: usize| client / 2 % CHANNELS;
    let mut inputs = Vec::with_capacity(clients);
    for (client, stream) in streams.into_iter().enumerate() {
        let Missed { channel, since, .. } = &missed[channel(client)];
        let parameter = if wire(client) == Wire::WebSocket { "since" } else { "last_event_id" };
        let query = format!("channel={channel}&{parameter}={since}");
        let request = wire(client).request(server.address, &query, &[]);
        inputs.push(Input::request(stream, wire(client), &request).await.unwrap());
    }
    let (got_on, mut getting_on) = mpsc::unbounded_channel();
    let mut reading = JoinSet::new();
    for (client, mut input) in inputs.into_iter().enumerate() {
        let (missed, got_on) = (Arc::clone(&missed), got_on.clone());
        reading.spawn(async move {
            // How long a client waits depends on how many are before it: the test waits as long as some get on.
            let status = input.status().await;
            let expected = if wire(client) == Wire::WebSocket { 101 } else { 200 };
            assert_eq!(status, Some(expected), "client {client}");
            let Missed { since, publications, .. } = &missed[channel(client)];
            let welcome = input.next().await.expect("a welcome").json();
            assert_eq!(welcome["type"], "welcome", "client {client}");
            check_recovered(&input.next().await.expect("a subscription"), since);
            for publications in publications.chunks(STEP) {
                for (id, text) in publications {
                    let message = input.next().await.expect("what it missed");
                    assert_eq!(message.text, *text, "client {client}");
                    let event_id = (wire(client) == Wire::EventStream).then_some(id);
                    assert_eq!(message.event_id.as_ref(), event_id, "client {client}");
                }
                got_on.send(()).unwrap();
            }
            let live = input.next().await.expect("what is published then").json();
            // It stays connected until all have that.
            (client, live, input)
        });
    }
    let all_replays = async {
        for _ in 0..clients * MISSED / STEP {
            soon("more of the replays", getting_on.recv()).await.unwrap();
        }
    };
    tokio::select! {
        () = all_replays => {}
        Some(ended) = reading.join_next() => panic!("a client has failed: {:?}", ended.map(|_| ())),
    }
    let live: Vec<_> = missed.iter().map(|one| (one.channel.as_str(), json!("live"))).collect();
    let live = publish(&server, &live).await;
    for (client, message, _) in soon("the live publications", reading.join_all()).await {
        assert_eq!((&message["id"], &message["data"]), (&json!(live[channel(client)]), &json!("live")));
    }
    for (metric, expected) in [
        (r#"lastcall_recoveries_total{result="recovered"}"#, clients),
        (r#"lastcall_recoveries_total{result="lost"}"#, 0),
        ("lastcall_connections_opened_total", clients),
        ("lastcall_slow_consumers_total", 0),
    ] {
        assert_eq!(server.metric(metric).await, expected as f64, "{metric}");
    }
}
