use std::{
    collections::HashMap,
    net,
    sync::{
        Barrier,
        atomic::{AtomicUsize, Ordering},
    },
};

use lastcall_broker::ReceiverSet;
use lastcall_core::{Epoch, Publisher, phase::Phase};
use serde_json::{Value, value::RawValue};
use tokio::net::TcpListener;
use tungstenite::{Message, WebSocket, protocol::Role};

use super::*;
use crate::ManagerSnapshot;
use crate::encoded::EncodedPublication;

/// A client that has made its handshake.
type Client = WebSocket<net::TcpStream>;

/// The texts that a client received, in order, each with the id of its sender.
type Order = Vec<(String, String)>;

/// Returns the broker that most tests use.
pub(crate) fn memory_broker(delivery: Box<dyn Delivery>) -> Arc<dyn Broker> {
    Arc::new(lastcall_broker::MemoryBroker::new(lastcall_broker::Config::default(), delivery))
}

fn start(config: ManagerConfig) -> ConnectionManager {
    ConnectionManager::start(config, Phases::default(), VitalTasks::default(), memory_broker).unwrap().0
}

/// Returns both ends of a TCP connection.
async fn connection() -> (Client, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    client.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    client.set_nodelay(true).unwrap();
    let (server, _) = listener.accept().await.unwrap();
    (WebSocket::from_raw_socket(client, Role::Client, None), server)
}

async fn connect(manager: &ConnectionManager) -> (Client, ClientId) {
    let (client, server) = connection().await;
    let id = manager.connect(manager.admit().unwrap(), server, Handshake::default()).unwrap();
    (client, id)
}

/// Reads the next message.
fn read(client: &mut Client) -> Value {
    match client.read().unwrap() {
        Message::Text(text) => serde_json::from_str(&text).unwrap(),
        other => panic!("not a text: {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_is_welcomed_with_its_id_and_closed() {
    let manager = start(ManagerConfig::default());
    let (mut client, id) = connect(&manager).await;
    let welcome = read(&mut client);
    assert_eq!((&welcome["type"], &welcome["client"]), (&"welcome".into(), &id.to_string().into()));
    assert_eq!(manager.count(), 1);
    manager.close_all(CloseReason::ServiceRestart);
    assert_eq!(manager.phases().now(), Phase::Closing);
    let Message::Close(Some(close)) = client.read().unwrap() else { panic!("no close") };
    assert_eq!((u16::from(close.code), close.reason.as_str()), (1012, "service restart"));
    assert_eq!(manager.count(), 1, "the client has not answered yet");
    drop(client);
    manager.wait_until_empty().await;
    assert_eq!(manager.counts().by_server, 1);
    manager.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_loop_that_panics_is_noticed_and_its_clients_are_disconnected() {
    let manager = start(ManagerConfig { event_loops: 2, ..ManagerConfig::default() });
    let (mut client, _) = connect(&manager).await;
    read(&mut client);
    assert!(!manager.vital_tasks().has_failed());
    manager.inner.mailboxes.send_to(0, LoopCommand::Panic);
    assert_eq!(manager.vital_tasks().failed().await, VITAL_NAME);
    assert!(client.read().is_err());
    manager.wait_until_empty().await;
    assert_an_ended_loop_keeps_nobody_waiting(&manager).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_loop_that_cannot_poll_is_noticed_and_its_clients_are_disconnected() {
    static FAILS: AtomicUsize = AtomicUsize::new(0);
    let vital_tasks = VitalTasks::with_failpoint(|_| {
        FAILS.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok()
    });
    let config = ManagerConfig { event_loops: 2, ..ManagerConfig::default() };
    let started = ConnectionManager::start(config, Phases::default(), vital_tasks, memory_broker);
    let manager = started.unwrap().0;
    let (mut client, _) = connect(&manager).await;
    read(&mut client);
    // From here on, neither loop has anything to do.
    manager.stats().await.unwrap();
    FAILS.store(1, Ordering::Relaxed);
    manager.inner.mailboxes.send_to(0, LoopCommand::Remind);
    assert_eq!(manager.vital_tasks().failed().await, VITAL_NAME);
    assert!(client.read().is_err());
    manager.wait_until_empty().await;
    assert_an_ended_loop_keeps_nobody_waiting(&manager).await;
}

/// Asserts that publishers do not wait for the first of two loops, which has ended, nor anybody for its
/// answer; and that new clients get the other one.
async fn assert_an_ended_loop_keeps_nobody_waiting(manager: &ConnectionManager) {
    let mut waits_for_it = mpsc::channel(1);
    manager.inner.mailboxes.send_to(0, LoopCommand::EndRestoring(waits_for_it.0));
    assert_eq!(waits_for_it.1.recv().await, None);
    assert_eq!(manager.stats().await.unwrap_err(), LoopEnded);
    assert_eq!(manager.freeze().await.unwrap_err(), LoopEnded);
    let restored = manager.restore(ManagerSnapshot::default(), manager.begin_restoring(), Vec::new()).await;
    assert_eq!(restored.unwrap_err(), LoopEnded);
    // To the ended one, too: far more than a mailbox has room for.
    let bytes = "1".repeat(1 << 20);
    let publication = Publication::new(Publisher::Api, RawValue::from_string(bytes).unwrap());
    let publication = Arc::new(EncodedPublication::new(Epoch::default(), Arc::new(publication)));
    let mut receivers = ReceiverSet::default();
    receivers.insert(0);
    for _ in 0..4 {
        manager.inner.mailboxes.publish(&ChannelName::broadcast(), &[Arc::clone(&publication)], receivers);
    }
    assert!(manager.inner.mailboxes.has_capacity());
    let (mut client, _) = connect(manager).await;
    assert_eq!(read(&mut client)["type"], "welcome");
    // Two connections of one client count as one load: none may wait for the ended loop.
    let (mut another, _) = connect(manager).await;
    assert_eq!(read(&mut another)["type"], "welcome");
    manager.stop();
    assert_eq!(manager.count(), 0);
    drop(connect(manager).await);
    manager.wait_until_empty().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_admitted_before_the_drain_gets_the_notice_and_the_close() {
    let manager = start(ManagerConfig::default());
    let permit = manager.admit().unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    let counts = manager.begin_drain(ShutdownNotice::new("service restart", deadline, Duration::ZERO));
    assert_eq!(counts.connections, 1);
    assert_eq!(manager.admit().unwrap_err(), AdmitError::Draining);
    manager.close_all(CloseReason::ServiceRestart);
    let (mut client, server) = connection().await;
    manager.connect(permit, server, Handshake::default()).unwrap();
    assert_eq!(read(&mut client)["type"], "welcome");
    assert_eq!(read(&mut client)["type"], "shutdown");
    // The close repeats the notice, unless the loop was told to close all before it registered the
    // connection.
    loop {
        match client.read().unwrap() {
            Message::Text(text) => assert!(text.contains(r#""type":"shutdown""#), "{text}"),
            message => break assert!(matches!(message, Message::Close(Some(_))), "{message:?}"),
        }
    }
    manager.stop();
    assert_eq!(manager.count(), 0, "the sockets that are left are closed");
}

/// Has every client send `texts` texts, each once it has received its last one. Returns what each client
/// received, in order. `received` says how many texts some client has received.
fn talk(clients: Vec<Client>, texts: usize, received: &watch::Sender<usize>) -> Vec<Order> {
    let all = clients.len() * texts;
    let start = &Barrier::new(clients.len());
    let talk = |mut client: Client| {
        let id = read(&mut client)["client"].as_str().unwrap().to_owned();
        let mut order: Order = Vec::new();
        let (mut sent, mut returned) = (0, 0);
        start.wait();
        while order.len() < all {
            if sent == returned && sent < texts {
                client.send(Message::text(sent.to_string())).unwrap();
                sent += 1;
            }
            let message = read(&mut client);
            let field = |name: &str| message[name].as_str().unwrap().to_owned();
            let (from, text) = (field("from"), field("data"));
            returned += usize::from(from == id);
            order.push((from, text));
            received.send_modify(|most| *most = order.len().max(*most));
        }
        order
    };
    thread::scope(|scope| {
        let talking: Vec<_> = clients.into_iter().map(|client| scope.spawn(move || talk(client))).collect();
        talking.into_iter().map(|one| one.join().unwrap()).collect()
    })
}

/// Asserts that all clients received all texts in one order, and each sender's texts in the order in which it
/// sent them.
fn assert_one_order(orders: &[Order], texts: usize) {
    for (client, order) in orders.iter().enumerate() {
        assert!(*order == orders[0], "client {client} received another order than client 0");
    }
    let mut next: HashMap<&str, usize> = HashMap::new();
    for (from, text) in &orders[0] {
        let number = next.entry(from).or_default();
        assert_eq!(*text, number.to_string(), "texts of {from}");
        *number += 1;
    }
    assert_eq!(next.len(), orders.len());
    assert!(next.values().all(|count| *count == texts), "{next:?}");
}

/// Returns a configuration with which connections are spread evenly over the event loops.
fn spread_over(event_loops: usize) -> ManagerConfig {
    ManagerConfig { event_loops, connections_per_loop: 1, ..ManagerConfig::default() }
}

async fn connect_many(manager: &ConnectionManager, count: usize) -> Vec<Client> {
    let mut clients = Vec::new();
    for _ in 0..count {
        clients.push(connect(manager).await.0);
    }
    clients
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_of_several_event_loops_receive_all_texts_in_one_order() {
    const TEXTS: usize = 100;
    for event_loops in [2, 3] {
        let manager = start(spread_over(event_loops));
        let clients = connect_many(&manager, 2 * event_loops).await;
        let orders = tokio::task::spawn_blocking(move || talk(clients, TEXTS, &watch::Sender::default()));
        assert_one_order(&orders.await.unwrap(), TEXTS);
        manager.stop();
    }
}

/// Moves all connections to a new manager, as a handover moves them to a new process. `lists`: its channels
/// go over before.
async fn hand_over(old: &ConnectionManager, config: ManagerConfig, lists: bool) -> ConnectionManager {
    let new = start(config);
    let mut restoration = new.begin_restoring();
    let mut listing = old.list_channels();
    let listed = tokio::task::spawn_blocking(move || {
        while lists && let Some(part) = listing.next_part().unwrap() {
            restoration.take(part).unwrap();
        }
        (restoration, listing)
    });
    let (mut restoration, listing) = listed.await.unwrap();
    let frozen = old.freeze().await.unwrap();
    drop(listing);
    let parts: Vec<_> = frozen.parts().collect();
    let taken = tokio::task::spawn_blocking(move || {
        parts.into_iter().for_each(|part| restoration.take(part).unwrap());
        restoration
    });
    let restoration = taken.await.unwrap();
    let connections = frozen.connections().map(|(socket, state)| {
        restoration.check(&state).unwrap();
        (socket.try_clone_to_owned().unwrap(), state)
    });
    let connections = connections.collect();
    new.restore(frozen.manager(), restoration, connections).await.unwrap();
    frozen.release();
    old.stop();
    new
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_talk_while_all_event_loops_are_frozen_and_handed_over_lose_no_text() {
    const TEXTS: usize = 100;
    for event_loops in [2, 3] {
        let config = spread_over(event_loops);
        let mut manager = start(config);
        let clients = connect_many(&manager, 2 * event_loops).await;
        let all = clients.len() * TEXTS;
        let received = watch::Sender::default();
        let mut progress = received.subscribe();
        let talking = tokio::task::spawn_blocking(move || talk(clients, TEXTS, &received));
        for tenth in 1..=9 {
            progress.wait_for(|received| *received >= all * tenth / 10).await.unwrap();
            // A handover that fails: the loops continue where they were.
            if tenth.is_multiple_of(3) {
                drop(manager.freeze().await.unwrap());
            } else {
                manager = hand_over(&manager, config, tenth % 2 == 0).await;
            }
        }
        assert_one_order(&talking.await.unwrap(), TEXTS);
        manager.stop();
    }
}
