//! Several event loops: what clients of different loops see. By default, as few clients as here share one
//! loop.

use std::{collections::HashMap, fs};

use tokio::{sync::watch, task::JoinSet};

use crate::support::{Client, Server, Start, soon};

/// Starts a server that spreads its clients evenly over this many event loops.
fn spread_over(event_loops: usize) -> Start {
    Start::default().env("LASTCALL_EVENT_LOOPS", event_loops).env("LASTCALL_CONNECTIONS_PER_LOOP", 1)
}

/// Returns how many threads of the process that serves are event loops. A thread has its name once it has
/// run.
fn event_loops(server: &Server) -> usize {
    let tasks = fs::read_dir(format!("/proc/{}/task", server.pid())).unwrap();
    let names = tasks.map(|task| fs::read_to_string(task.unwrap().path().join("comm")).unwrap());
    names.filter(|name| name.starts_with("event-loop-")).count()
}

/// The texts that a client received, in order, each with the id of its sender.
type Order = Vec<(String, String)>;

/// The last text of each client.
const END: &str = "end";

/// Sends numbers, each once the last one has come back, until it is told to stop. Returns all texts that it
/// received up to the last one of the last client.
async fn talk(mut client: Client, clients: usize, stopped: watch::Receiver<bool>) -> Order {
    let mut order = Order::new();
    let (mut sent, mut ended) = (0_usize, 0);
    client.say("0").await;
    while ended < clients {
        let message = client.next_of("message").await;
        let field = |name: &str| message[name].as_str().unwrap().to_owned();
        let (from, text) = (field("from"), field("data"));
        ended += usize::from(text == END);
        if from == client.id && text != END {
            sent += 1;
            let next = if *stopped.borrow() { END.to_owned() } else { sent.to_string() };
            client.say(&next).await;
        }
        order.push((from, text));
    }
    order
}

/// Asserts that all clients received the same in the same order: each client's texts, as it sent them.
fn assert_one_order(orders: &[Order]) {
    for order in orders {
        assert_eq!(order.len(), orders[0].len());
        let differs = order.iter().zip(&orders[0]).position(|(one, other)| one != other);
        assert_eq!(differs, None, "where a client received another text than the first client");
    }
    let mut next: HashMap<&str, usize> = HashMap::new();
    for (from, text) in &orders[0] {
        let number = next.entry(from).or_default();
        assert!(*text == number.to_string() || text == END, "{text} of {from}, not {number}");
        *number += 1;
    }
    assert_eq!(next.len(), orders.len(), "all clients talked");
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_of_several_event_loops_receive_all_texts_in_one_order() {
    for loops in [1, 2, 3] {
        let server = spread_over(loops).serve().await;
        let clients = server.clients(6).await;
        let mut observer = server.client().await;
        let stop = watch::Sender::new(false);
        let mut talking = JoinSet::new();
        for client in clients {
            talking.spawn(talk(client, 6, stop.subscribe()));
        }
        for _ in 0..500 {
            observer.next_of("message").await;
        }
        stop.send_replace(true);
        // From here on, nothing but the queue of this client would fill.
        drop(observer);
        assert_one_order(&soon("the last texts", talking.join_all()).await);
        assert_eq!(event_loops(&server), loops);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_of_several_event_loops_lose_no_text_and_keep_their_order_over_upgrades() {
    // A lower rate than the default, as nothing more is seen at a higher one.
    let start = spread_over(3).env("MAX_CLIENT_RATE", "16KiB").env("NOTIFICATION_INTERVAL", 0);
    let mut server = start.serve().await;
    let clients = server.clients(6).await;
    let stop = watch::Sender::new(false);
    let mut talking = JoinSet::new();
    for client in clients {
        talking.spawn(talk(client, 6, stop.subscribe()));
    }
    for _ in 0..3 {
        server.upgrade().await;
    }
    stop.send_replace(true);
    assert_one_order(&soon("the last texts", talking.join_all()).await);
    assert_eq!(event_loops(&server), 3);
}
