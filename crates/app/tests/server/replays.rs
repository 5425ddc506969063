//! Replays: ten thousand of them at once, and what happens in the middle of one.

use std::{fs, sync::Arc, time::Duration};

use serde::Deserialize;
use serde_json::{Value, json, value::RawValue};
use tokio::{
    net::{TcpSocket, TcpStream},
    sync::mpsc,
    task::JoinSet,
};

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

async fn next(input: &mut Input) -> Received {
    soon("a message", input.next()).await.expect("a message, not the end")
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
        // A system may queue no more than 128 connections that are not accepted; others would have to be
        // tried again.
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
    // Nearly: while they wait, each has its place among the HTTP connections, and another one is kept for it
    // among the clients.
    let budget = ConnectionBudget::with(9_700, 1000).await;
    let clients = budget.connections;
    // Connections wait for their requests until all are there.
    let start = Start::default().env("KEEP_ALIVE_TIMEOUT", "600");
    let server = start.env("MAX_HTTP_CONNECTIONS", clients + 100).serve().await;
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
            // How long a client waits depends on how many are before it: the test waits as long as some get
            // on.
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
        (r#"lastcall_recoveries_total{result="not_recovered"}"#, 0),
        ("lastcall_connections_opened_total", clients),
        ("lastcall_slow_consumers_total", 0),
    ] {
        assert_eq!(server.metric(metric).await, expected as f64, "{metric}");
    }
}

/// The bound of a queue in the tests with large replays.
const MAX_QUEUE: usize = 256 << 10;

/// Returns a server that keeps a large history.
async fn server_with_a_large_history() -> Server {
    Start::default()
        .env("HISTORY_SIZE", "1000000")
        .env("HISTORY_BYTES", "4GiB")
        .env("MAX_QUEUE", MAX_QUEUE)
        .serve()
        .await
}

/// A publication in `orders`: its id and its data.
type Order = (String, Value);

async fn publish_order(server: &Server, data: Value) -> Order {
    (publish(server, &[("orders", data.clone())]).await.remove(0), data)
}

/// Publishes one publication that clients have, and then more than a client takes that does not read. Returns
/// the id of the first one, and the others.
async fn publish_large_replay(server: &Server) -> (String, Vec<Order>) {
    let (since, _) = publish_order(server, json!("known")).await;
    (since, publish_more_than_a_client_takes(server).await)
}

/// Publishes so much that twice `MAX_QUEUE` bytes stay in the server if a client does not read.
async fn publish_more_than_a_client_takes(server: &Server) -> Vec<Order> {
    const BATCH: usize = 20;
    let mut missed = Vec::new();
    let mut bytes = 0;
    while bytes < largest_send_buffer() + 2 * MAX_QUEUE {
        let data: Vec<_> =
            (0..BATCH).map(|number| json!(format!("{} {:40000}", missed.len() + number, ""))).collect();
        bytes += 40_000 * BATCH;
        let publications: Vec<_> = data.iter().map(|data| ("orders", data.clone())).collect();
        missed.extend(publish(server, &publications).await.into_iter().zip(data));
    }
    missed
}

/// Returns the most bytes that the kernel takes from a server for one client that does not read (tcp(7)). The
/// receive buffer of such a client is small beside that.
fn largest_send_buffer() -> usize {
    let sizes = fs::read_to_string("/proc/sys/net/ipv4/tcp_wmem").unwrap();
    sizes.split_whitespace().nth(2).unwrap().parse().unwrap()
}

/// Connects a client of `orders` with a small receive buffer, which has the publication `since`. Reads up to
/// the start of its replay.
async fn come_back_with_a_small_buffer(server: &Server, wire: Wire, since: &str) -> Input {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    come_back(socket.connect(server.address).await.unwrap(), wire, since).await
}

/// Makes a connection one of a client of `orders` that has the publication `since`. Reads up to the start of
/// its replay.
async fn come_back(stream: TcpStream, wire: Wire, since: &str) -> Input {
    let address = stream.peer_addr().unwrap();
    let request = match wire {
        Wire::WebSocket => wire.request(address, &format!("channel=orders&since={since}"), &[]),
        Wire::EventStream => wire.request(address, "channel=orders", &[&format!("Last-Event-ID: {since}")]),
    };
    let mut input = Input::request(stream, wire, &request).await.unwrap();
    let status = soon("a head", input.status()).await.unwrap();
    assert!([101, 200].contains(&status), "{status}");
    assert_eq!(next(&mut input).await.json()["type"], "welcome");
    check_recovered(&next(&mut input).await, since);
    input
}

/// Reads publications, which must be these.
async fn expect_orders(input: &mut Input, expected: &[Order]) {
    for (id, data) in expected {
        let message = next(input).await;
        assert!(message.event_id.as_ref().is_none_or(|event_id| event_id == id), "{:?}", message.event_id);
        let message = message.json();
        assert_eq!(message["id"], **id);
        assert!(message["data"] == *data, "other data than those of {id}");
    }
}

/// Publishes the publication of this number behind the replays of so many clients that do not read, and waits
/// until it is queued for all of them.
async fn publish_behind(server: &Server, clients: usize, number: usize) -> Order {
    // More than the page of a replay, which is queued too.
    const SIZE: usize = 60_000;
    let order = publish_order(server, json!(format!("behind {number} {:SIZE$}", ""))).await;
    let queued = async || {
        assert_eq!(server.metric("lastcall_slow_consumers_total").await, 0.0);
        server.metric("lastcall_queue_bytes").await >= (clients * (number + 1) * SIZE) as f64
    };
    until("a publication to be queued", queued).await;
    order
}

#[tokio::test(flavor = "multi_thread")]
async fn upgrades_in_the_middle_of_a_replay_lose_and_double_nothing() {
    let mut server = server_with_a_large_history().await;
    let (since, mut expected) = publish_large_replay(&server).await;
    let mut inputs = Vec::new();
    for wire in [Wire::WebSocket, Wire::EventStream] {
        let mut input = come_back_with_a_small_buffer(&server, wire, &since).await;
        expect_orders(&mut input, &expected[..1]).await;
        inputs.push(input);
    }
    // These clients do not read, so the rest of each replay waits in the server: what is queued behind it
    // shows that.
    expected.push(publish_behind(&server, inputs.len(), 0).await);
    for upgrade in 1..=2 {
        server.upgrade().await;
        expected.push(publish_behind(&server, inputs.len(), upgrade).await);
    }
    for input in &mut inputs {
        expect_orders(input, &expected[1..]).await;
    }
    let last = publish_order(&server, json!("the last one")).await;
    for input in &mut inputs {
        expect_orders(input, std::slice::from_ref(&last)).await;
    }
    assert_eq!(server.metric("lastcall_slow_consumers_total").await, 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_in_the_middle_of_a_replay_gets_exactly_the_rest() {
    let server = server_with_a_large_history().await;
    let (since, mut expected) = publish_large_replay(&server).await;
    for wire in [Wire::WebSocket, Wire::EventStream] {
        let mut since = since.clone();
        let mut has = 0;
        // It leaves before the first publication, after it, and after some more.
        for reads in [0, 1, 3] {
            let mut input = come_back_with_a_small_buffer(&server, wire, &since).await;
            expect_orders(&mut input, &expected[has..has + reads]).await;
            has += reads;
            if let Some(last) = has.checked_sub(1) {
                since.clone_from(&expected[last].0);
            }
            drop(input);
            server.has_clients(0).await;
            expected.push(publish_order(&server, json!("missed meanwhile")).await);
        }
        let mut input = come_back_with_a_small_buffer(&server, wire, &since).await;
        expect_orders(&mut input, &expected[has..]).await;
        expected.push(publish_order(&server, json!("the last one")).await);
        expect_orders(&mut input, &expected[expected.len() - 1..]).await;
        drop(input);
        server.has_clients(0).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_is_closed_as_too_slow_gets_the_rest_when_it_comes_back() {
    let server = server_with_a_large_history().await;
    for (wire, slow_before) in [(Wire::WebSocket, 0), (Wire::EventStream, 1)] {
        let (mut since, _) = publish_order(&server, json!("known")).await;
        let mut input = come_back_with_a_small_buffer(&server, wire, &since).await;
        // It does not read meanwhile.
        let mut expected = publish_more_than_a_client_takes(&server).await;
        // What comes after what it has not taken closes it.
        expected.push(publish_order(&server, json!("one more")).await);
        let mut has = 0;
        while let Some(message) = soon("a message, or the end", input.next()).await {
            let message = message.json();
            assert_eq!(
                (message["id"].as_str(), &message["data"]),
                (Some(&*expected[has].0), &expected[has].1)
            );
            since.clone_from(&expected[has].0);
            has += 1;
        }
        assert!(has < expected.len(), "it was closed");
        drop(input);
        let mut input = come_back_with_a_small_buffer(&server, wire, &since).await;
        expect_orders(&mut input, &expected[has..]).await;
        drop(input);
        server.has_clients(0).await;
        assert_eq!(server.metric("lastcall_slow_consumers_total").await, f64::from(slow_before + 1));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_come_back_while_a_thousand_publications_a_second_are_made_miss_and_double_none() {
    const PUBLICATIONS: usize = 3000;
    const BATCH: usize = 10;
    const CLIENTS: usize = 20;
    let server = server_with_a_large_history().await;
    let (known, _) = publish_order(&server, json!(0)).await;
    let mut clients = JoinSet::new();
    for client in 0..CLIENTS {
        let (address, mut since) = (server.address, known.clone());
        clients.spawn(async move {
            let wire = [Wire::WebSocket, Wire::EventStream][client % 2];
            let (mut number, mut connections) = (0, 0);
            while number < PUBLICATIONS {
                let mut input = come_back(TcpStream::connect(address).await.unwrap(), wire, &since).await;
                // It leaves after one publication, or after some more.
                let last = number + 1 + (client * 7 + connections * 13) % 50;
                while number < last.min(PUBLICATIONS) {
                    let message = next(&mut input).await.json();
                    number += 1;
                    assert_eq!(message["data"], number, "client {client}, connection {connections}");
                    since = message["id"].as_str().unwrap().to_owned();
                }
                connections += 1;
            }
            connections
        });
    }
    let mut pace = tokio::time::interval(Duration::from_secs(BATCH as u64) / 1000);
    for first in (1..=PUBLICATIONS).step_by(BATCH) {
        pace.tick().await;
        let batch: Vec<_> = (first..first + BATCH).map(|number| ("orders", json!(number))).collect();
        publish(&server, &batch).await;
    }
    let connections: usize = soon("the last publication", clients.join_all()).await.into_iter().sum();
    assert_eq!(server.metric(r#"lastcall_recoveries_total{result="recovered"}"#).await, connections as f64);
    assert_eq!(server.metric(r#"lastcall_recoveries_total{result="not_recovered"}"#).await, 0.0);
}
