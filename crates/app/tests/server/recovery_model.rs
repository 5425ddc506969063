//! A model that knows every publication, against which all that each client received is checked: no gap,
//! nothing twice, nothing out of order, and `recovered: false` exactly where the history does not reach back
//! far enough. Clients leave in all ways and come back, by WebSocket and by server-sent events, while the
//! server is upgraded three times and restarted once. The same again over a broker with faults: then every
//! loss is told.

use std::{
    collections::{BTreeMap, HashMap},
    env,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use rand::{Rng, RngExt, SeedableRng, rngs::StdRng};
use rustix::net::sockopt::set_socket_linger;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    sync::watch,
    task::JoinSet,
    time::sleep,
};

use crate::support::{Input, Received, Signal, Start, Wire, folder, own_address, soon, until};

const CHANNELS: usize = 20;
const CLIENTS: usize = 200;

/// Publications of each run, unless `MODEL_PUBLICATIONS` says another number.
const DEFAULT_PUBLICATIONS: usize = 12_000;

fn publications() -> usize {
    env::var("MODEL_PUBLICATIONS").map_or(DEFAULT_PUBLICATIONS, |number| number.parse().unwrap())
}

/// Publications of one request.
const BATCH: usize = 50;

/// Publications that the server keeps of each channel. Clients that are away for long miss more.
const HISTORY: u64 = 150;

/// Where a publication is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Place {
    channel: usize,
    epoch: String,
    offset: u64,
}

impl Place {
    fn new(channel: usize, id: &str) -> Self {
        let (epoch, offset) = id.split_once('-').unwrap();
        Self { channel, epoch: epoch.to_owned(), offset: offset.parse().unwrap() }
    }

    fn id(&self) -> String {
        format!("{}-{}", self.epoch, self.offset)
    }
}

/// Everything that was published, as far as the publisher and the clients were told.
#[derive(Default)]
struct Model {
    data: BTreeMap<Place, u64>,
    places: HashMap<u64, Place>,
    /// The last place of each channel, once everything is published.
    tops: Vec<Place>,
}

impl Model {
    /// Notes where a publication is: no place has two, and each has one place.
    fn note(&mut self, place: &Place, data: u64) {
        assert_eq!(*self.data.entry(place.clone()).or_insert(data), data, "two publications at {place:?}");
        assert_eq!(self.places.entry(data).or_insert_with(|| place.clone()), place, "{data} came twice");
    }

    /// Checks that every offset up to the last one was given, and the number of epochs of each channel.
    fn check(&self, is_faulty: bool) {
        let mut last: Option<&Place> = None;
        for place in self.data.keys() {
            let continues = last.filter(|last| (last.channel, &last.epoch) == (place.channel, &place.epoch));
            assert_eq!(place.offset, continues.map_or(1, |last| last.offset + 1), "{place:?} after {last:?}");
            let is_new_epoch = continues.is_none() && last.is_some_and(|last| last.channel == place.channel);
            assert!(is_faulty || !is_new_epoch, "the epoch stays over upgrades, and over a restart");
            last = Some(place);
        }
    }
}

/// What the publisher, the clients and the test share.
struct Shared {
    address: SocketAddr,
    model: Mutex<Model>,
    /// How many publications there will be.
    publications: usize,
    published: watch::Sender<usize>,
    /// Recoveries that were complete, and that were not.
    recoveries: Mutex<(u64, u64)>,
    /// Losses that clients were told of while they were connected.
    resets: AtomicU64,
    /// True if the broker has faults.
    is_faulty: bool,
}

fn channel_name(channel: usize) -> String {
    format!("c{channel}")
}

/// Sends a request on a new connection. Returns the body of a response with status 200, or with 503 if it has
/// results.
async fn request(address: SocketAddr, method: &str, path: &str, body: &str) -> Option<Value> {
    let mut stream = TcpStream::connect(address).await.ok()?;
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/json\r\nConnection: close\r\n\
         Content-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all((head + body).as_bytes()).await.ok()?;
    let mut response = Vec::new();
    soon("a response", stream.read_to_end(&mut response)).await.ok()?;
    let response = String::from_utf8(response).unwrap();
    let (head, body) = response.split_once("\r\n\r\n")?;
    let body: Value = serde_json::from_str(body).ok()?;
    (head.starts_with("HTTP/1.1 200 ") || !body["results"].is_null()).then_some(body)
}

/// Publishes everything, in batches, each until it is acknowledged: a key for each publication makes that
/// exactly once.
async fn publish(shared: Arc<Shared>, mut random: StdRng) {
    let mut number = 0;
    while number < shared.publications {
        let mut left: Vec<(usize, usize)> =
            (number..number + BATCH).map(|data| (data, random.random_range(0..CHANNELS))).collect();
        while !left.is_empty() {
            let publication = |(data, channel): &(usize, usize)| json!({"channel": channel_name(*channel), "data": data, "idempotency_key": data.to_string()});
            let publications: Vec<_> = left.iter().map(publication).collect();
            let body = json!({ "publications": publications }).to_string();
            let Some(answer) = request(shared.address, "POST", "/api/publish/batch", &body).await else {
                // The server restarts.
                sleep(Duration::from_millis(20)).await;
                continue;
            };
            let mut model = shared.model.lock().unwrap();
            let results = answer["results"].as_array().unwrap();
            assert_eq!(results.len(), left.len());
            let mut before = vec![None; CHANNELS];
            let mut results = results.iter();
            left.retain(|(data, channel)| {
                let result = results.next().unwrap();
                let Some(id) = result["id"].as_str() else {
                    let code = result["error"]["code"].as_str();
                    assert!(shared.is_faulty, "{result}");
                    assert!(code == Some("unavailable") || code == Some("outcome_unknown"), "{result}");
                    return true;
                };
                let place = Place::new(*channel, id);
                model.note(&place, *data as u64);
                let before = before[*channel].replace(place.offset);
                assert!(
                    shared.is_faulty || before.is_none_or(|before| place.offset == before + 1),
                    "offsets grow by one"
                );
                false
            });
        }
        number += BATCH;
        shared.published.send_replace(number);
    }
    let mut tops = Vec::new();
    for channel in 0..CHANNELS {
        let path = format!("/api/channels/{}", channel_name(channel));
        let top = loop {
            match request(shared.address, "GET", &path, "").await {
                Some(info) => break info["id"].as_str().unwrap().to_owned(),
                None => sleep(Duration::from_millis(20)).await,
            }
        };
        tops.push(Place::new(channel, &top));
    }
    shared.model.lock().unwrap().tops = tops;
    shared.published.send_replace(shared.publications + 1);
}

/// How a client leaves.
#[derive(Debug, Clone, Copy)]
enum Leave {
    CloseFrame,
    HalfClose,
    Drop,
    Reset,
    /// After it has read nothing for a while.
    NeverRead,
}

/// One client.
struct Client {
    shared: Arc<Shared>,
    random: StdRng,
    wire: Wire,
    channels: Vec<usize>,
    /// Where it is in each channel, once it is subscribed: it has everything up to there, or was told.
    last: Vec<Option<Place>>,
    /// The id of the last event, as an `EventSource` has it.
    last_event_id: String,
    /// Of which channels it has sent an id, as a client of server-sent events.
    asked: Vec<bool>,
    /// True if a `reset` must come next. Until it does, the client has its old position.
    expects_reset: bool,
    received: usize,
}

impl Client {
    /// Connects, and asks for what follows the last id. `None`: the server refuses the client now.
    async fn connect(&mut self) -> Option<Input> {
        let socket = TcpSocket::new_v4().unwrap();
        // Some have little room, so that much waits for them in the server.
        if self.random.random_bool(0.3) {
            socket.set_recv_buffer_size(4096).unwrap();
        }
        let stream = socket.connect(self.shared.address).await.ok()?;
        let mut query: Vec<_> =
            self.channels.iter().map(|one| format!("channel={}", channel_name(*one))).collect();
        let mut lines: Vec<String> = Vec::new();
        match self.wire {
            Wire::WebSocket => {
                let id = |last: &Option<Place>| last.as_ref().map(Place::id).unwrap_or_default();
                query.extend(self.last.iter().map(|last| format!("since={}", id(last))));
            }
            Wire::EventStream if self.last_event_id.is_empty() => {}
            Wire::EventStream => lines.push(format!("Last-Event-ID: {}", self.last_event_id)),
        }
        let lines: Vec<_> = lines.iter().map(String::as_str).collect();
        self.asked = self.last_event_id.split(',').map(|id| !id.is_empty()).collect();
        self.expects_reset = false;
        let request = self.wire.request(self.shared.address, &query.join("&"), &lines);
        let mut input = Input::request(stream, self.wire, &request).await.ok()?;
        let status = soon("a head", input.status()).await?;
        assert!([101, 200, 503].contains(&status), "{status}");
        (status != 503).then_some(input)
    }

    /// Checks a message against the model. Returns false if the server refuses the client.
    fn check(&mut self, received: &Received) -> bool {
        let message = received.json();
        let kind = message["type"].as_str().unwrap();
        assert!(!self.expects_reset || kind == "reset", "{message}");
        if ["welcome", "shutdown"].contains(&kind) {
            return true;
        }
        if kind == "error" {
            return false;
        }
        let channel: usize = message["channel"].as_str().unwrap()[1..].parse().unwrap();
        let index = self.channels.iter().position(|one| *one == channel).expect("one of its own");
        let place = Place::new(channel, message["id"].as_str().unwrap());
        let last = &mut self.last[index];
        match kind {
            "subscribed" => {
                let recovered = message["recovered"].as_bool().unwrap();
                match last {
                    Some(asked) if recovered => assert_eq!(place, *asked, "{message}"),
                    Some(asked) if asked.epoch == place.epoch => {
                        let missed = place.offset - asked.offset;
                        assert!(missed > HISTORY, "all since {asked:?} was kept: {message}");
                    }
                    Some(asked) => assert!(self.shared.is_faulty, "{message} after {asked:?}"),
                    None => assert!(!recovered, "{message}"),
                }
                if last.is_some() {
                    let mut recoveries = self.shared.recoveries.lock().unwrap();
                    recoveries.0 += u64::from(recovered);
                    recoveries.1 += u64::from(!recovered);
                }
                if self.wire == Wire::EventStream && !recovered && self.asked.get(index) == Some(&true) {
                    assert_eq!(received.event_id, None, "its position stays until it is told");
                    self.expects_reset = true;
                    return true;
                }
            }
            "reset" => {
                if !std::mem::take(&mut self.expects_reset) {
                    assert!(self.shared.is_faulty && last.is_some(), "{message}");
                    self.shared.resets.fetch_add(1, Ordering::Relaxed);
                }
                assert_eq!(received.event_id.is_some(), self.wire == Wire::EventStream, "{message}");
            }
            "notification" => {
                let next = last.clone().map(|last| Place { offset: last.offset + 1, ..last });
                assert_eq!(Some(&place), next.as_ref(), "{message}");
                self.shared.model.lock().unwrap().note(&place, message["data"].as_u64().unwrap());
                self.received += 1;
            }
            other => panic!("a {other}"),
        }
        *last = Some(place);
        if let Some(id) = &received.event_id {
            self.last_event_id.clone_from(id);
        }
        true
    }

    fn has_everything(&self) -> bool {
        let model = self.shared.model.lock().unwrap();
        self.channels.iter().zip(&self.last).all(|(channel, last)| last.as_ref() == model.tops.get(*channel))
    }

    /// Comes and leaves until everything is published, and then until it has everything.
    async fn run(mut self) -> usize {
        let mut published = self.shared.published.subscribe();
        // And one more step, after which the last places are known.
        let all = self.shared.publications + 1;
        loop {
            let Some(mut input) = self.connect().await else {
                sleep(Duration::from_millis(30)).await;
                continue;
            };
            let stay = self.random.random_range(1..400);
            let mut read = 0;
            loop {
                let is_over = *published.borrow() >= all;
                if is_over && self.has_everything() {
                    return self.received;
                }
                if !is_over && read >= stay {
                    break;
                }
                let message = tokio::select! {
                    message = soon("a message", input.next()) => message,
                    // When all is published, it may have everything already.
                    _ = published.changed(), if !is_over => continue,
                };
                match message {
                    Some(message) if self.check(&message) => read += 1,
                    _ => break,
                }
            }
            self.leave(input).await;
            // Most are back soon, and some are away for long.
            let away = if self.random.random_bool(0.1) { 0..4000 } else { 0..300 };
            let away = Duration::from_millis(self.random.random_range(away));
            tokio::select! {
                () = sleep(away) => {}
                Ok(_) = published.wait_for(|published| *published >= all) => {}
            }
        }
    }

    async fn leave(&mut self, mut input: Input) {
        const WAYS: [Leave; 5] =
            [Leave::CloseFrame, Leave::HalfClose, Leave::Drop, Leave::Reset, Leave::NeverRead];
        let way = WAYS[self.random.random_range(0..WAYS.len())];
        // An error means that the server has ended the connection.
        match way {
            Leave::CloseFrame if self.wire == Wire::WebSocket => {
                drop(input.stream.write_all(b"\x88\x80\0\0\0\0").await)
            }
            Leave::HalfClose => drop(input.stream.shutdown().await),
            Leave::CloseFrame | Leave::Drop => {}
            Leave::Reset => set_socket_linger(&input.stream, Some(Duration::ZERO)).unwrap(),
            Leave::NeverRead => {
                let time = self.random.random_range(0..1000);
                sleep(Duration::from_millis(time)).await;
            }
        }
    }
}

fn start(address: std::net::Ipv4Addr, file: &std::path::Path, event_loops: usize) -> Start {
    Start::default()
        .env("HOST", address)
        .env("PORT", 8000)
        .env("HISTORY_SIZE", HISTORY)
        .env("HISTORY_TTL", "1h")
        .env("HISTORY_FILE", file.display())
        .env("MAX_QUEUE", "128KiB")
        .env("SHUTDOWN_TIMEOUT", "0.5")
        .env("SHUTDOWN_SPREAD", "0.5")
        .env("CLOSE_TIMEOUT", "1")
        .env("LASTCALL_EVENT_LOOPS", event_loops)
        .env("LASTCALL_CONNECTIONS_PER_LOOP", 1)
}

#[expect(clippy::print_stdout, reason = "a failed test shows its output: the seed repeats it")]
async fn check_all(event_loops: usize, is_faulty: bool) {
    let seed = rand::rng().next_u64();
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let folder = folder();
    let (host, file) = (own_address(), folder.path().join("history"));
    let faults = random.next_u64();
    let start = || {
        let start = start(host, &file, event_loops);
        if is_faulty { start.env("LASTCALL_BROKER_FAULTS", faults) } else { start }
    };
    let mut server = start().serve().await;
    let shared = Arc::new(Shared {
        address: server.address,
        model: Mutex::default(),
        publications: publications(),
        published: watch::Sender::new(0),
        recoveries: Mutex::default(),
        resets: AtomicU64::new(0),
        is_faulty,
    });
    let mut clients = JoinSet::new();
    for number in 0..CLIENTS {
        let mut random = StdRng::seed_from_u64(random.next_u64());
        let first = random.random_range(0..CHANNELS);
        let channels =
            if random.random_bool(0.5) { vec![first] } else { vec![first, (first + 7) % CHANNELS] };
        let client = Client {
            shared: Arc::clone(&shared),
            random,
            wire: if number % 2 == 0 { Wire::WebSocket } else { Wire::EventStream },
            last: vec![None; channels.len()],
            channels,
            last_event_id: String::new(),
            asked: Vec::new(),
            expects_reset: false,
            received: 0,
        };
        clients.spawn(client.run());
    }
    let publisher = tokio::spawn(publish(Arc::clone(&shared), StdRng::seed_from_u64(random.next_u64())));
    let mut published = shared.published.subscribe();
    for fifth in 1..=4 {
        published.wait_for(|published| *published >= shared.publications * fifth / 5).await.unwrap();
        if fifth == 3 {
            server.signal(Signal::TERM);
            assert_eq!(server.exit_code().await, 0);
            server = start().serve().await;
        } else {
            server.upgrade().await;
        }
    }
    publisher.await.unwrap();
    let mut received = 0;
    while let Some(client) = soon("the clients", clients.join_next()).await {
        received += client.unwrap();
    }
    let (recovered, lost) = *shared.recoveries.lock().unwrap();
    let resets = shared.resets.load(Ordering::Relaxed);
    println!(
        "{received} publications received, {recovered} recoveries, {lost} not recovered, {resets} resets"
    );
    shared.model.lock().unwrap().check(is_faulty);
    assert!(received > shared.publications && recovered > 50, "it did not test much");
    assert_eq!(resets > 0, is_faulty);
    until("all clients to be gone", async || server.metric("lastcall_connections").await == 0.0).await;
    server.signal(Signal::TERM);
    assert_eq!(server.exit_code().await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_come_and_go_get_every_publication_once_with_one_event_loop() {
    check_all(1, false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_come_and_go_get_every_publication_once_with_two_event_loops() {
    check_all(2, false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_come_and_go_get_every_publication_once_with_three_event_loops() {
    check_all(3, false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_over_a_broker_with_faults_get_every_publication_once_or_are_told_with_one_event_loop() {
    check_all(1, true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_over_a_broker_with_faults_get_every_publication_once_or_are_told_with_two_event_loops() {
    check_all(2, true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_over_a_broker_with_faults_get_every_publication_once_or_are_told_with_three_event_loops() {
    check_all(3, true).await;
}
