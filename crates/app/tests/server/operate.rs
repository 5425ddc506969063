//! What operators see of a server that runs.

use crate::support::{Server, Signal, Start, soon};

#[tokio::test]
async fn status_tells_the_phase_and_the_counts() {
    let mut server = Server::start().await;
    let clients = server.clients(3).await;
    let ended = server.run("status").await;
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(0), "serving: 3 clients\n"), "{}", ended.stderr);
    server.signal(Signal::TERM);
    server.logged("drain started").await;
    let mut clients = clients.into_iter();
    clients.next().unwrap().leave().await;
    server.logged("drain progress: 1 of 3").await;
    let ended = server.run("status").await;
    assert!(ended.stdout.starts_with("draining: 2 clients; 1 of 3 have left, 1"), "{}", ended.stdout);
    for client in clients {
        client.leave().await;
    }
    assert_eq!(server.exit_code().await, 0);
    let ended = server.run("status").await;
    assert_eq!(ended.code, Some(1));
    assert!(ended.stderr.contains("cannot ask the server at 127.0.0.1:"), "{}", ended.stderr);
    assert!(ended.stderr.contains("nothing listens there"), "{}", ended.stderr);
}

/// The value of a metric.
fn metric(text: &str, name: &str) -> f64 {
    let line = text.lines().find(|line| line.starts_with(&format!("{name} ")));
    let line = line.unwrap_or_else(|| panic!("no {name} in {text}"));
    line.split(' ').nth(1).unwrap().parse().unwrap()
}

#[tokio::test]
async fn metrics_count_what_happens() {
    let server = Start::default().env("NOTIFICATION_INTERVAL", "0").serve().await;
    let mut clients = server.clients(3).await;
    clients[0].say("Hello").await;
    for client in &mut clients {
        client.next_of("message").await;
    }
    clients.pop().unwrap().leave().await;
    let answer = server.get("/metrics").await;
    assert_eq!(answer.status, 200);
    let text = answer.body;
    assert_eq!(metric(&text, "lastcall_clients"), 2.0);
    assert_eq!(metric(&text, "lastcall_connections_opened_total"), 3.0);
    assert_eq!(metric(&text, "lastcall_connections_closed_total{reason=\"left\"}"), 1.0);
    assert_eq!(metric(&text, "lastcall_messages_received_total"), 1.0);
    assert_eq!(metric(&text, "lastcall_messages_sent_total"), 3.0);
    // A text of 5 bytes, with its masked header of 6; and the close of the one who left, with its 6.
    assert!(metric(&text, "lastcall_received_bytes_total") >= 17.0);
    assert!(metric(&text, "lastcall_sent_bytes_total") > 300.0);
    assert_eq!(metric(&text, "lastcall_queue_bytes"), 0.0);
    assert_eq!(metric(&text, "lastcall_slow_consumers_total"), 0.0);
    assert_eq!(metric(&text, "lastcall_phase{phase=\"serving\"}"), 1.0);
    assert_eq!(metric(&text, "lastcall_phase{phase=\"draining\"}"), 0.0);
    assert_eq!(metric(&text, "lastcall_drain_seconds_left"), 0.0);
    assert_eq!(metric(&text, "lastcall_handovers_total{result=\"done\"}"), 0.0);
    assert!(metric(&text, "lastcall_loop_turn_seconds_count") > 0.0);
    assert!(text.contains("lastcall_loop_turn_seconds_bucket{le=\"0.001\"}"), "{text}");

    server.signal(Signal::TERM);
    server.logged("drain started").await;
    let text = server.get("/metrics").await.body;
    assert_eq!(metric(&text, "lastcall_phase{phase=\"draining\"}"), 1.0);
    assert!(metric(&text, "lastcall_drain_seconds_left") > 1790.0);
    assert_eq!(metric(&text, "lastcall_drain_clients"), 2.0);
}

#[tokio::test]
async fn a_slow_consumer_and_its_queue_show_in_the_metrics() {
    let server = Start::default().env("NOTIFICATION_INTERVAL", "0").env("MAX_QUEUE", "1MiB").serve().await;
    let _slow = server.raw_client().await;
    let large = "x".repeat(60_000);
    let mut most_queued = 0.0_f64;
    soon("a slow consumer", async {
        loop {
            server.publish(&format!(r#"{{"data":"{large}"}}"#)).await;
            let text = server.get("/metrics").await.body;
            most_queued = most_queued.max(metric(&text, "lastcall_queue_bytes"));
            if metric(&text, "lastcall_slow_consumers_total") == 1.0 {
                break;
            }
        }
    })
    .await;
    assert!((500_000.0..=1_048_576.0).contains(&most_queued), "{most_queued}");
}

#[tokio::test(flavor = "multi_thread")]
async fn systemd_can_pass_the_listening_socket() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let mut server = Start::default().env("PORT", "1").listen_on(listener).serve().await;
    assert_eq!(server.address, address);
    server.logged("listening on the socket that systemd passed").await;
    let mut client = server.client().await;
    client.say("hello").await;
    client.next_of("message").await;
    server.upgrade().await;
    client.say("hello again").await;
    assert_eq!(client.next_of("message").await["data"], "hello again");
    let _another = server.client().await;
}
