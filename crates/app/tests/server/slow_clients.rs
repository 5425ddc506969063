//! Clients that read slowly, nothing, or are gone: what they cost is bounded, and only those that do not read are closed.

use std::{
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    time::sleep,
};

use crate::support::{Input, Server, Start, Wire, masked_frame, metric, read_to_close, soon, until};

/// Publishes these data in this channel, in one request. Returns the id of the last one.
async fn publish(server: &Server, channel: &str, data: impl IntoIterator<Item = Value>) -> String {
    let publications: Vec<_> =
        data.into_iter().map(|data| json!({ "channel": channel, "data": data })).collect();
    let body = json!({ "publications": publications }).to_string();
    let answer =
        server.request("POST", "/api/publish/batch", &["Content-Type: application/json"], &body).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let results = answer.json()["results"].clone();
    results.as_array().unwrap().last().unwrap()["id"].as_str().unwrap().to_owned()
}

/// Connects a client with a receive buffer of this size. It has sent its request, and reads when a test has it read.
async fn connect(server: &Server, wire: Wire, buffer: u32, query: &str) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(buffer).unwrap();
    let mut stream = socket.connect(server.address).await.unwrap();
    stream.write_all(wire.request(server.address, query, &[]).as_bytes()).await.unwrap();
    stream
}

#[tokio::test(flavor = "multi_thread")]
async fn of_the_pongs_that_a_client_does_not_read_the_last_one_stands_for_all() {
    const PINGS: usize = 500_000;
    let server = Start::default()
        .env("MAX_QUEUE", "64MiB")
        .env("NOTIFICATION_INTERVAL", "0")
        .env("PING_INTERVAL", "0")
        .serve()
        .await;
    let mut client = server.raw_client().await;
    let before = server.memory();
    let pings = masked_frame(0x89, b"").repeat(1000);
    for _ in 0..PINGS / 1000 {
        soon("pings to be taken", client.write_all(&pings)).await.unwrap();
    }
    client.write_all(&masked_frame(0x89, b"the last")).await.unwrap();
    let all = (PINGS * 6 + 14) as f64;
    until("all pings to be read", async || server.metric("lastcall_received_bytes_total").await >= all).await;
    let added = server.memory().saturating_sub(before);
    assert!(added < 16 << 20, "{added} bytes for pongs that nobody reads");
    let queued = server.metric("lastcall_queue_bytes").await;
    assert!(queued < 200.0, "{queued} bytes are queued");
    read_to_close(&mut client, b"\x8A\x08the last").await;
    // While it reads, it gets each of them.
    for n in 0..10 {
        client.write_all(&masked_frame(0x89, &[b'0' + n])).await.unwrap();
    }
    let mut pongs = [0; 30];
    soon("ten pongs", client.read_exact(&mut pongs)).await.unwrap();
    let expected: Vec<u8> = (0..10).flat_map(|n| [0x8A, 1, b'0' + n]).collect();
    assert_eq!(pongs[..], expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_call_publishes_closes_no_client_that_reads() {
    for (max_queue, size, calls) in [("32KiB", 20, 3), ("1MiB", 1000, 2)] {
        let server = Start::default()
            .env("MAX_QUEUE", max_queue)
            .env("MAX_MESSAGE_SIZE", "32KiB")
            .env("NOTIFICATION_INTERVAL", "0")
            .serve()
            .await;
        let mut inputs = Vec::new();
        for client in 0..4 {
            let wire = [Wire::WebSocket, Wire::EventStream][client % 2];
            // Those with two channels get ids of their own.
            let query = ["channel=c", "channel=c&channel=d"][client / 2];
            let stream = connect(&server, wire, 4096, query).await;
            let mut input = Input::request(stream, wire, "").await.unwrap();
            assert!([101, 200].contains(&soon("a head", input.status()).await.unwrap()));
            let subscriptions = 1 + client / 2;
            for _ in 0..=subscriptions {
                soon("a subscription", input.next()).await.unwrap();
            }
            inputs.push(input);
        }
        for call in 0..calls {
            // They begin to read when all of it is published: no client could be quicker.
            let data = (0..1000).map(|n| json!(format!("{call} {n:0size$}")));
            publish(&server, "c", data).await;
            for input in &mut inputs {
                for n in 0..1000 {
                    let message = soon("a publication", input.next()).await.expect("not the end").json();
                    assert_eq!(message["data"], format!("{call} {n:0size$}"));
                }
            }
        }
        assert_eq!(server.metric("lastcall_slow_consumers_total").await, 0.0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_batch_costs_little_for_clients_of_many_channels_that_do_not_read() {
    const CLIENTS: usize = 60;
    const READERS: usize = 6;
    const CHANNELS: usize = 128;
    const BATCH: usize = 1000;
    /// One with all events would have 2.5 MB.
    const FOR_EACH: usize = 250_000;
    let mut server = Start::default()
        .env("MAX_QUEUE", "32KiB")
        .env("MAX_MESSAGE_SIZE", "16KiB")
        .env("NOTIFICATION_INTERVAL", "0")
        .serve()
        .await;
    let names: Vec<_> = (0..CHANNELS).map(|n| format!("channel=c{n}")).collect();
    let mut inputs = Vec::new();
    for _ in 0..CLIENTS {
        let stream = connect(&server, Wire::EventStream, 16 << 10, &names.join("&")).await;
        let mut input = Input::request(stream, Wire::EventStream, "").await.unwrap();
        assert_eq!(soon("a head", input.status()).await.unwrap(), 200);
        for _ in 0..=CHANNELS {
            soon("a subscription", input.next()).await.unwrap();
        }
        inputs.push(input);
    }
    let before = server.memory();
    publish(&server, "c7", (0..BATCH).map(|n| json!(n))).await;
    let added = server.memory().saturating_sub(before);
    assert!(added < CLIENTS * FOR_EACH, "{} bytes for each client", added / CLIENTS);
    let queued = server.metric("lastcall_queue_bytes").await;
    assert!(queued < (CLIENTS * FOR_EACH) as f64, "{queued} bytes are queued");
    // Those that read get all of it, also from another process.
    let read = async |inputs: &mut [Input], from: usize, to: usize| {
        for input in inputs {
            for n in from..to {
                let message = soon("a publication", input.next()).await.expect("not the end").json();
                assert_eq!(message["data"], n);
            }
        }
    };
    read(&mut inputs[..READERS], 0, BATCH / 3).await;
    server.upgrade().await;
    read(&mut inputs[..READERS], BATCH / 3, BATCH).await;
    // The others are closed for what they have not taken, and keep little until they are gone.
    let before = server.memory();
    publish(&server, "c7", (BATCH..2 * BATCH).map(|n| json!(n))).await;
    read(&mut inputs[..READERS], BATCH, 2 * BATCH).await;
    let added = server.memory().saturating_sub(before);
    assert!(added < CLIENTS * FOR_EACH / 2, "{} bytes for each client", added / CLIENTS);
    let queued = server.metric("lastcall_queue_bytes").await;
    assert!(queued < (CLIENTS * FOR_EACH / 2) as f64, "{queued} bytes are queued");
    let mut others = inputs.split_off(READERS);
    for other in &mut others {
        while soon("the end", other.next()).await.is_some() {}
    }
    drop(others);
    let slow = (CLIENTS - READERS) as f64;
    until("their end to be counted", async || server.metric("lastcall_slow_consumers_total").await == slow)
        .await;
    // A client gets what it is counted for.
    let sent = server.metric("lastcall_messages_sent_total").await;
    assert_eq!(sent, ((CLIENTS + READERS) * BATCH) as f64);
}

/// Returns a server that keeps 1 MiB of history.
async fn server_with_history(ping: &str, pong: &str) -> Server {
    Start::default()
        .env("HISTORY_SIZE", "1000000")
        .env("HISTORY_BYTES", "1MiB")
        .env("NOTIFICATION_INTERVAL", "0")
        .env("PING_INTERVAL", ping)
        .env("PONG_TIMEOUT", pong)
        .serve()
        .await
}

/// Publishes 800 kB.
async fn publish_history(server: &Server) {
    publish(server, "c", (0..80).map(|_| json!("x".repeat(10_000)))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_replays_keep_that_the_history_has_dropped_is_bounded_and_shown() {
    let server = server_with_history("600", "600").await;
    let mut since = publish(&server, "c", [json!(0)]).await;
    let mut clients = Vec::new();
    let mut most_pinned = 0.0_f64;
    for generation in 0..6 {
        publish_history(&server).await;
        for wire in [Wire::WebSocket, Wire::EventStream] {
            let client = connect(&server, wire, 4096, &format!("channel=c&since={since}")).await;
            clients.push((since.clone(), wire, client));
        }
        let subscribed = 2 * (generation + 1);
        let recoveries = r#"lastcall_recoveries_total{result="recovered"}"#;
        until("replays", async || server.metric(recoveries).await == f64::from(subscribed)).await;
        let sent = server.metric("lastcall_sent_bytes_total").await;
        assert!(sent < f64::from(subscribed) * 700_000.0, "{sent} bytes are not sent yet");
        // The last one displaces what the replays keep.
        since = publish(&server, "c", [json!("y".repeat(30_000))]).await;
        most_pinned = most_pinned.max(server.metric("lastcall_pinned_history_bytes").await);
    }
    publish_history(&server).await;
    let is_bounded = async || server.metric("lastcall_pinned_history_bytes").await <= f64::from(1 << 20);
    until("clients to be closed", is_bounded).await;
    assert!(most_pinned > 200_000.0, "{most_pinned} bytes");
    // They are counted when they have ended.
    until("a closed client to end", async || server.metric("lastcall_slow_consumers_total").await > 0.0)
        .await;
    let kept = server.get("/api/channels/c/history?limit=1").await.json();
    let first = offset(kept["publications"][0]["id"].as_str().unwrap());
    // Each comes back with what it has got. Much of the rest is gone for those that were closed, and they are told.
    let mut recovered = Vec::new();
    for (since, wire, client) in clients {
        let mut client = Input::request(client, wire, "").await.unwrap();
        let since = read_some(&mut client, &since, 60_000).await;
        drop(client);
        let mut client = come_back(&server, wire, &since).await;
        let subscribed = subscribed(&mut client).await;
        assert_eq!(subscribed, offset(&since) + 1 >= first, "{since}, and {first} is the first that is kept");
        recovered.push(subscribed);
        if subscribed {
            let next = soon("the rest", client.next()).await.expect("not the end").json();
            assert_eq!(offset(next["id"].as_str().unwrap()), offset(&since) + 1);
        }
    }
    assert!(!recovered[0], "{recovered:?}");
    until("nothing to be pinned", async || server.metric("lastcall_pinned_history_bytes").await == 0.0).await;
}

/// Returns the offset of an id.
fn offset(id: &str) -> u64 {
    id.rsplit_once('-').expect("an id").1.parse().unwrap()
}

/// Connects a client of `c` that has got the publication `since`.
async fn come_back(server: &Server, wire: Wire, since: &str) -> Input {
    let stream = connect(server, wire, 65_536, &format!("channel=c&since={since}")).await;
    Input::request(stream, wire, "").await.unwrap()
}

/// Reads the head and the beginning of a subscription. Returns true if it was recovered.
async fn subscribed(client: &mut Input) -> bool {
    assert!([101, 200].contains(&soon("a head", client.status()).await.unwrap()));
    assert_eq!(soon("a welcome", client.next()).await.unwrap().json()["type"], "welcome");
    let subscribed = soon("a subscription", client.next()).await.unwrap().json();
    assert_eq!(subscribed["type"], "subscribed");
    let recovered = subscribed["recovered"].as_bool().unwrap();
    if !recovered && client.wire() == Wire::EventStream {
        assert_eq!(soon("a reset", client.next()).await.unwrap().json()["type"], "reset");
    }
    recovered
}

/// Reads up to the end of the connection, or about this many bytes of publications, which begin after `since`. Returns the id of
/// the last one.
async fn read_some(client: &mut Input, since: &str, bytes: usize) -> String {
    assert!(subscribed(client).await);
    let (mut last, mut got) = (since.to_owned(), 0);
    while got < bytes
        && let Some(message) = soon("a message, or the end", client.next()).await
    {
        let id = message.json()["id"].as_str().unwrap().to_owned();
        assert_eq!(offset(&id), offset(&last) + 1);
        (last, got) = (id, got + message.text.len());
    }
    last
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_takes_nothing_of_its_replay_is_closed_whatever_it_sends_and_gets_the_rest_later() {
    // With pings and without.
    for interval in ["3", "0"] {
        let server = server_with_history(interval, "3").await;
        let since = publish(&server, "c", [json!(0)]).await;
        publish_history(&server).await;
        let mut clients = Vec::new();
        for wire in [Wire::WebSocket, Wire::EventStream] {
            clients.push((wire, connect(&server, wire, 4096, &format!("channel=c&since={since}")).await));
        }
        let closed = async || {
            // Fails once the server has given up.
            let _ = clients[0].1.write_all(&masked_frame(0x8A, b"")).await;
            sleep(Duration::from_millis(100)).await;
            server.metric("lastcall_slow_consumers_total").await == 2.0
        };
        until("the clients to be closed", closed).await;
        for (wire, client) in clients {
            let mut client = Input::request(client, wire, "").await.unwrap();
            let last = read_some(&mut client, &since, usize::MAX).await;
            assert!(offset(&last) < 81, "it was closed");
            let mut client = come_back(&server, wire, &last).await;
            assert!(subscribed(&mut client).await);
            for expected in offset(&last) + 1..=81 {
                let message = soon("the rest", client.next()).await.expect("not the end").json();
                assert_eq!(offset(message["id"].as_str().unwrap()), expected);
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_reads_its_replay_slowly_is_not_closed() {
    const RATE: usize = 100_000;
    let server = server_with_history("1", "1").await;
    let since = publish(&server, "c", [json!(0)]).await;
    publish_history(&server).await;
    for wire in [Wire::WebSocket, Wire::EventStream] {
        let client = connect(&server, wire, 8192, &format!("channel=c&since={since}")).await;
        let (mut client, mut answers) = client.into_split();
        let started = Instant::now();
        let (mut got, mut part) = (0, [0; RATE / 50]);
        while got < 800_000 {
            let read = soon("more of the replay", client.read(&mut part)).await.unwrap();
            assert_ne!(read, 0, "closed after {got} bytes");
            got += read;
            // A client answers the pings that it has read.
            if wire == Wire::WebSocket && part[..read].windows(2).any(|bytes| bytes == b"\x89\0") {
                answers.write_all(&masked_frame(0x8A, b"")).await.unwrap();
            }
            let due = started + Duration::from_secs_f64(got as f64 / RATE as f64);
            sleep(due.saturating_duration_since(Instant::now())).await;
        }
    }
    assert_eq!(server.metric("lastcall_slow_consumers_total").await, 0.0);
    assert_eq!(server.get("/metrics").await.body.matches("reason=\"idle\"").count(), 0);
}

/// Runs a program in the server's own network.
fn in_network_of(server: &Server, program: &[&str]) -> Command {
    let pid = server.pid().as_raw_nonzero().to_string();
    let mut command = Command::new("nsenter");
    command.args(["--preserve-credentials", "--user", "--net", "--target", &pid]).args(program);
    command
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_whose_network_is_gone_are_found() {
    let addresses =
        "ip link set lo up && ip address add 192.0.2.1/32 dev lo && ip address add 192.0.2.2/32 dev lo";
    let tools = ["unshare --map-root-user --net sh -c", "nsenter --version #", "curl --version #"];
    let works = |tool: &str| {
        let line = format!("{tool} '{addresses}'");
        Command::new("sh")
            .args(["-c", &line])
            .stdout(Stdio::null())
            .status()
            .is_ok_and(|status| status.success())
    };
    if let Some(tool) = tools.into_iter().find(|tool| !works(tool)) {
        eprintln!("not tested: `{tool}` does not work here");
        return;
    }
    let server = Start::default()
        .env("NOTIFICATION_INTERVAL", "0")
        .env("PING_INTERVAL", "1")
        .env("PONG_TIMEOUT", "1")
        .env("CLOSE_TIMEOUT", "1")
        .in_namespaces(&["--net"], addresses)
        .args(&["--host", "0.0.0.0"])
        .serve()
        .await;
    let port = server.address.port();
    let metrics = || {
        let url = format!("http://127.0.0.1:{port}/metrics");
        let got = in_network_of(&server, &["curl", "-s", &url]).output().unwrap();
        String::from_utf8(got.stdout).unwrap()
    };
    let clients = async |count: f64| {
        until("clients", async || metric(&metrics(), "lastcall_connections") == count).await;
    };
    let url = format!("http://192.0.2.1:{port}/events?channel=c");
    let mut client = in_network_of(&server, &["curl", "-sN", "--interface", "192.0.2.2", &url])
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    clients(1.0).await;
    // It stays as long as it is there: through three pings.
    sleep(Duration::from_secs(4)).await;
    assert_eq!(metric(&metrics(), "lastcall_connections"), 1.0);
    let gone =
        in_network_of(&server, &["ip", "address", "del", "192.0.2.2/32", "dev", "lo"]).status().unwrap();
    assert!(gone.success());
    clients(0.0).await;
    client.kill().unwrap();
    client.wait().unwrap();
}
