//! What clients are told.

use serde_json::json;
use tokio_tungstenite::tungstenite::Message;

use crate::support::{Server, Signal, Start, dial};

/// Returns true if this is a time as the contract has it: RFC 3339, UTC, milliseconds.
fn is_time(value: &serde_json::Value) -> bool {
    let pattern = b"dddd-dd-ddTdd:dd:dd.dddZ";
    value.as_str().is_some_and(|time| {
        time.len() == pattern.len()
            && time
                .bytes()
                .zip(pattern)
                .all(|(byte, want)| if *want == b'd' { byte.is_ascii_digit() } else { byte == *want })
    })
}

#[tokio::test]
async fn the_welcome_comes_first_and_names_client_and_server() {
    let server = Server::start().await;
    let (mut client, _) = server.dial(&[]).await.unwrap();
    let welcome = client.next().await;
    let id = welcome["client"].as_str().unwrap();
    assert_eq!((id.len(), &id[14..15]), (36, "7"), "a UUID of version 7");
    let version = env!("CARGO_PKG_VERSION");
    assert_eq!(
        welcome,
        json!({"type": "welcome", "client": id, "server": {"name": "lastcall", "version": version}})
    );
    assert_ne!(server.client().await.id, id);
}

#[tokio::test]
async fn a_text_reaches_all_clients_in_order_and_the_sender_too() {
    let server = Server::start().await;
    let mut clients = server.clients(5).await;
    let sender = clients[0].id.clone();
    for n in 0..200 {
        clients[0].say(&format!("text {n}")).await;
    }
    for client in &mut clients {
        for n in 0..200 {
            let mut message = client.next_of("message").await;
            assert!(is_time(&message["time"]), "{message}");
            message.as_object_mut().unwrap().remove("time");
            let id = message.as_object_mut().unwrap().remove("id").unwrap();
            assert!(id.as_str().unwrap().ends_with(&format!("-{}", n + 1)), "{id}");
            let text = format!("text {n}");
            assert_eq!(
                message,
                json!({"type": "message", "channel": "broadcast", "from": sender, "data": text})
            );
        }
    }
}

#[tokio::test]
async fn notifications_come_at_their_interval() {
    let server = Start::default().env("NOTIFICATION_INTERVAL", "0.3").serve().await;
    let mut client = server.client().await;
    let first = client.next_of("notification").await;
    let time = |message: &serde_json::Value| message["time"].as_str().unwrap().parse().unwrap();
    let mut before: jiff::Timestamp = time(&first);
    let mut sequence = first["data"]["sequence"].as_u64().unwrap();
    for _ in 0..3 {
        let mut notification = client.next().await;
        sequence += 1;
        assert!(is_time(&notification["time"]));
        // The server's own time: this test may read late. One that is late does not delay the next one.
        let taken = time(&notification).duration_since(before).as_millis();
        assert!(taken >= 30, "after {taken} ms");
        before = time(&notification);
        notification.as_object_mut().unwrap().remove("time");
        assert!(notification.as_object_mut().unwrap().remove("id").is_some());
        let data = json!({"sequence": sequence, "clients": 1, "message": "1 client is connected"});
        assert_eq!(
            notification,
            json!({"type": "notification", "channel": "broadcast", "source": "server", "data": data})
        );
    }
}

#[tokio::test]
async fn notifications_can_be_turned_off() {
    let server = Start::default()
        .file("config/lastcall.toml", "notification_interval = 0.05\n")
        .env("NOTIFICATION_INTERVAL", "0")
        .env("SHUTDOWN_TIMEOUT", "0.5")
        .env("SHUTDOWN_SPREAD", "0")
        .serve()
        .await;
    let mut client = server.client().await;
    server.signal(Signal::TERM);
    let (_, before) = client.closed().await;
    let types: Vec<_> = before.iter().map(|message| message["type"].as_str().unwrap()).collect();
    assert_eq!(types, ["shutdown", "shutdown"], "the first notice and the last one, and nothing else");
}

#[tokio::test]
async fn texts_can_be_ignored() {
    let server = Start::default().env("CLIENT_MESSAGES", "ignore").serve().await;
    let mut client = server.client().await;
    client.say("Hello").await;
    client.send(Message::Ping("sync".into())).await;
    // The pong says that the text before it was handled.
    assert_eq!(client.next_frame().await, Message::Pong("sync".into()));
    server.publish(r#"{"data": "published"}"#).await;
    assert_eq!(client.next().await["data"], "published", "the text before it went nowhere");
}

#[tokio::test]
async fn echo_gives_back_text_and_binary_unchanged_and_nothing_else() {
    let server = Start::default()
        .env("CLIENT_MESSAGES", "echo")
        .env("NOTIFICATION_INTERVAL", "0.05")
        .env("SHUTDOWN_TIMEOUT", "0.3")
        .serve()
        .await;
    let (plain, _) = server.dial(&[]).await.unwrap();
    // Also to a client that names channels.
    let (named, _) = dial(&format!("{}?channel=broadcast&since=", server.ws_url()), &[]).await.unwrap();
    let mut clients = [plain, named];
    for client in &mut clients {
        for message in [
            Message::text("Grüße"),
            Message::binary(vec![0, 255, 7]),
            Message::text(""),
            Message::text("x".repeat(60_000)),
        ] {
            client.send(message.clone()).await;
            assert_eq!(client.next_frame().await, message);
        }
    }
    server.publish(r#"{"data": "published"}"#).await;
    server.signal(Signal::TERM);
    for client in &mut clients {
        let (close, before) = client.closed().await;
        let expected = (1012, "service restart".into());
        assert_eq!((close, before.len()), (expected, 0), "no notice, no notification");
    }
}
