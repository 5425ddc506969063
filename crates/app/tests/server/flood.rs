//! Clients that send texts as fast as they can: they are read from more slowly, and no client is closed for
//! it.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use futures_util::StreamExt;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::{mpsc, watch},
    task::{JoinHandle, JoinSet},
    time::sleep,
};
use tokio_tungstenite::tungstenite::Message;

use crate::support::{Client, Server, Signal, Start, frame_length, handshake, soon, text_frame, timed};

/// Returns a text of 20 bytes with a number, masked with zeros.
fn text(sender: usize, number: u64) -> Vec<u8> {
    let text = format!("{sender:04} {number:015}");
    text_frame(text)
}

/// What a client read so far.
#[derive(Default)]
struct Seen {
    bytes: Vec<u8>,
    /// By sender, the number that comes next: none may be missing.
    next: HashMap<String, u64>,
    texts: usize,
}

impl Seen {
    /// Takes in what came; that nothing is missing, and that it is not a close.
    fn take(&mut self, new: &[u8]) {
        self.bytes.extend_from_slice(new);
        let mut start = 0;
        while let Some((len, head)) =
            frame_length(&self.bytes[start..]).filter(|(len, _)| start + len <= self.bytes.len())
        {
            let payload = &self.bytes[start + head..start + len];
            assert_ne!(self.bytes[start], 0x88, "closed: {}", String::from_utf8_lossy(payload));
            if self.bytes[start] == 0x81 {
                let (from, to) = (start + head, start + len);
                self.text(String::from_utf8(self.bytes[from..to].to_vec()).unwrap());
            }
            start += len;
        }
        self.bytes.drain(..start);
    }

    fn text(&mut self, message: String) {
        // Not parsed: the clients must be quicker than the server, on a slow machine too.
        let Some((_, data)) = message.split_once(r#","data":""#) else { return };
        let Some((sender, number)) = data.trim_end_matches("\"}").split_once(' ') else { return };
        let next = self.next.entry(sender.to_owned()).or_default();
        assert_eq!(number.parse(), Ok(*next), "in order, and none is missing");
        *next += 1;
        self.texts += 1;
    }
}

/// Returns a client that reads at most so many bytes a second; how many texts it has is told.
async fn reader(server: &Server, rate: usize) -> (JoinHandle<()>, watch::Receiver<usize>) {
    let mut stream = server.raw_client_with_buffer(64 << 10).await;
    let (told, texts) = watch::channel(0);
    let reading = tokio::spawn(async move {
        let (mut seen, mut part) = (Seen::default(), vec![0; rate / 100]);
        let (started, mut got) = (Instant::now(), 0);
        loop {
            let read = stream.read(&mut part).await.unwrap();
            assert_ne!(read, 0, "closed without a word");
            seen.take(&part[..read]);
            told.send_replace(seen.texts);
            got += read;
            let due = started + Duration::from_secs_f64(got as f64 / rate as f64);
            sleep(due.saturating_duration_since(Instant::now())).await;
        }
    });
    (reading, texts)
}

/// Floods the server, and reads what comes, for as long as the test lasts.
async fn flood(server: &Server, sender: usize, flooding: &mut JoinSet<()>) {
    let (mut reading, mut writing) = server.raw_client_with_buffer(64 << 10).await.into_split();
    flooding.spawn(async move {
        let mut number = 0;
        loop {
            let texts: Vec<u8> = (number..number + 1000).flat_map(|number| text(sender, number)).collect();
            number += 1000;
            writing.write_all(&texts).await.expect("a flood is not closed");
        }
    });
    flooding.spawn(async move {
        let mut part = vec![0; 1 << 16];
        while reading.read(&mut part).await.expect("a flood is not closed") > 0 {}
        panic!("a flood is not closed");
    });
}

async fn server() -> Server {
    Start::default().env("NOTIFICATION_INTERVAL", "0").env("CLOSE_TIMEOUT", "1").serve().await
}

/// A client that talks as people do, and always reads. Give it a text: it tells how long that took to come
/// back.
fn talker(mut client: Client) -> (mpsc::Sender<String>, mpsc::Receiver<Duration>) {
    let (say, mut to_say) = mpsc::channel::<String>(1);
    let (came_back, back) = mpsc::channel(1);
    tokio::spawn(async move {
        let mut under_way: Option<(String, Instant)> = None;
        loop {
            tokio::select! {
                text = to_say.recv() => {
                    let Some(text) = text else { return };
                    under_way = Some((text.clone(), Instant::now()));
                    client.say(&text).await;
                }
                message = client.socket.next() => {
                    let Some(Ok(message)) = message else { panic!("the talker is closed: {message:?}") };
                    let Message::Text(message) = message else { continue };
                    if let Some((_, said)) = under_way.take_if(|(text, _)| message.contains(text.as_str())) {
                        came_back.send(said.elapsed()).await.unwrap();
                    }
                }
            }
        }
    });
    (say, back)
}

/// Floods from so many clients, while others read at 1 and 4 MB/s, and one talks as people do.
async fn floods(server: Server, flooders: usize) {
    let (say, mut came_back) = talker(server.client().await);
    let readers = [reader(&server, 1_000_000).await, reader(&server, 4_000_000).await];
    let mut flooding = JoinSet::new();
    for sender in 0..flooders {
        flood(&server, sender, &mut flooding).await;
    }
    // What they may say in some seconds, and a small part of what they try to.
    let mut longest = Duration::ZERO;
    for (number, goal) in [1000, 1500, 2000, 2500].into_iter().enumerate() {
        say.send(format!("talk-{number}")).await.unwrap();
        longest = longest.max(soon("a text to come back", came_back.recv()).await.expect("a talker"));
        for (reading, texts) in &readers {
            let mut texts = texts.clone();
            let got = soon("texts of the flood", texts.wait_for(|texts| *texts >= goal)).await.map(|_| ());
            assert!(got.is_ok() && !reading.is_finished(), "a client that reads is closed");
        }
    }
    assert!(longest < Duration::from_secs(5), "a talker waited {longest:?}");
    assert!(flooding.try_join_next().is_none(), "a flood is not closed");
    assert_eq!(server.metric("lastcall_slow_consumers_total").await, 0.0);
    assert_eq!(server.metric("lastcall_connections").await, flooders as f64 + 3.0);
    // One that is held back is so for nearly all of the time.
    soon("a flood to be held back", async {
        while server.metric("lastcall_throttled_connections").await == 0.0 {}
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_client_that_floods_costs_no_other_its_connection() {
    floods(server().await, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn three_clients_that_flood_cost_no_other_its_connection() {
    floods(server().await, 3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn twenty_clients_that_flood_cost_no_other_its_connection() {
    let server =
        Start::default().env("NOTIFICATION_INTERVAL", "0").env("MAX_TOTAL_RATE", "128KiB").serve().await;
    floods(server, 20).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_burst_of_texts_does_not_wait() {
    let server = server().await;
    let mut clients = server.clients(2).await;
    let (_, taken) = timed(async {
        for number in 0..400 {
            clients[0].say(&format!("text {number}")).await;
        }
        for number in 0..400 {
            assert_eq!(clients[1].next_of("message").await["data"], format!("text {number}"));
        }
    })
    .await;
    // At its rate, these would take more than a second; the rest is what a busy machine may take.
    assert!(taken < Duration::from_secs(10), "{taken:?}");
    assert_eq!(server.metric("lastcall_throttled_connections").await, 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_bounds_are_settings() {
    // A text with its envelope has about 245 bytes: ten of them may come at once, and then five a second.
    for (name, share) in [("MAX_CLIENT_RATE", 1.0), ("MAX_TOTAL_RATE", 0.75)] {
        let server = Start::default()
            .env("NOTIFICATION_INTERVAL", "0")
            .env("MAX_CLIENT_RATE", "0")
            .env("MAX_TOTAL_RATE", "0")
            .env(name, "1225")
            .serve()
            .await;
        let mut client = server.client().await;
        let (_, taken) = timed(async {
            for number in 0..30 {
                client.send(Message::text(format!("{number:0100}"))).await;
            }
            for _ in 0..30 {
                client.next_of("message").await;
            }
        })
        .await;
        assert!(taken.as_secs_f64() > 2.0 / share, "{name}: {taken:?}");
    }
    let server = Start::default()
        .env("NOTIFICATION_INTERVAL", "0")
        .env("MAX_CLIENT_RATE", "0")
        .env("MAX_TOTAL_RATE", "0")
        .serve()
        .await;
    let mut client = server.client().await;
    for number in 0..3000 {
        client.say(&format!("text {number}")).await;
    }
    for number in 0..3000 {
        assert_eq!(client.next_of("message").await["data"], format!("text {number}"));
    }
    assert_eq!(server.metric("lastcall_throttled_connections").await, 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn texts_that_come_with_the_handshake_are_bounded_too_and_move_with_an_upgrade() {
    let mut server = Start::default()
        .env("NOTIFICATION_INTERVAL", "0")
        .env("MAX_TOTAL_RATE", "2MiB")
        .env("MAX_QUEUE", "256KiB")
        .serve()
        .await;
    let (reading, texts) = reader(&server, 4_000_000).await;
    let mut flooding = JoinSet::new();
    for sender in 0..100 {
        // As much as fits behind the head: the client does not wait for the answer, although it must.
        let request = handshake(server.address);
        let texts: Vec<u8> = (0..500).flat_map(|number| text(sender, number)).collect();
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        stream.write_all(&[request.as_bytes(), &texts].concat()).await.unwrap();
        flooding.spawn(async move {
            let mut part = vec![0; 1 << 16];
            while stream.read(&mut part).await.unwrap() > 0 {}
        });
    }
    let mut texts = texts;
    soon("some texts", texts.wait_for(|texts| *texts >= 100)).await.unwrap();
    // What is left of them moves with the clients, and is bounded there.
    server.upgrade().await;
    let all = texts.wait_for(|texts| *texts == 100 * 500);
    assert!(soon("all texts, and none twice", all).await.is_ok(), "a client that reads is closed");
    assert!(!reading.is_finished());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_goes_on_to_the_byte_across_an_upgrade_and_ends_with_a_drain() {
    let mut server = server().await;
    let (reading, texts) = reader(&server, 4_000_000).await;
    let mut flooding = JoinSet::new();
    flood(&server, 0, &mut flooding).await;
    let mut texts = texts;
    soon("texts", texts.wait_for(|texts| *texts >= 1000)).await.unwrap();
    server.upgrade().await;
    let so_far = *texts.borrow();
    soon("texts after the upgrade", texts.wait_for(|texts| *texts >= so_far + 1000)).await.unwrap();
    assert!(!reading.is_finished());
    // It answers the close behind all that it wrote before.
    server.signal(Signal::TERM);
    server.logged("waiting up to").await;
    server.signal(Signal::TERM);
    assert_eq!(server.exit_code().await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_is_held_back_is_not_idle() {
    let server = Start::default()
        .env("NOTIFICATION_INTERVAL", "0")
        .env("PING_INTERVAL", "0.5")
        .env("PONG_TIMEOUT", "0.5")
        .env("MAX_CLIENT_RATE", "1KiB")
        .serve()
        .await;
    let (mut talker, mut other) = (server.client().await, server.client().await);
    // Paid for in 4 seconds, less its burst: meanwhile its pongs are not read.
    for _ in 0..2 {
        talker.say(&"x".repeat(4096)).await;
    }
    let answering = tokio::spawn(async move { while talker.next_of("message").await["data"] != "over" {} });
    let mut pings = 0;
    while pings < 12 {
        match soon("a ping", other.socket.next()).await.unwrap().unwrap() {
            Message::Ping(_) => pings += 1,
            Message::Close(close) => panic!("{close:?}"),
            _ => {}
        }
    }
    other.say("over").await;
    soon("the end", answering).await.expect("it is not closed");
}
