//! Clients disconnect in every way there is, and the server keeps nothing of them.

use std::time::Duration;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    task::JoinSet,
};

use crate::support::{CLOSE, ConnectionBudget, Server, Start, connect_one_of_many, handshake, soon};

/// The beginning of a text, masked with zeros, and something that is no frame.
const HALF_A_TEXT: &[u8] = b"\x81\x8A\0\0\0\0Hel";
const GARBAGE: &[u8] = b"\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF";

const WAYS: usize = 9;

/// One client connects, and disconnects in one of [`WAYS`].
async fn connect_and_disconnect(server: std::net::SocketAddr, number: usize) {
    let way = number % WAYS;
    let mut stream = connect_one_of_many(server, number).await;
    let handshake = handshake(server);
    match way {
        0 => return,
        1 => return stream.write_all(&handshake.as_bytes()[..40]).await.unwrap(),
        2 => return stream.write_all(handshake.as_bytes()).await.unwrap(),
        _ => stream.write_all(handshake.as_bytes()).await.unwrap(),
    }
    let mut head = [0; 512];
    let read = soon("an answer", stream.read(&mut head)).await.unwrap();
    assert!(head[..read].starts_with(b"HTTP/1.1 101"), "{}", String::from_utf8_lossy(&head[..read]));
    let last_words = match way {
        3 => CLOSE,
        4 => HALF_A_TEXT,
        5 => GARBAGE,
        _ => b"",
    };
    stream.write_all(last_words).await.unwrap();
    match way {
        // A reset instead of an end.
        6 => rustix::net::sockopt::set_socket_linger(&stream, Some(Duration::ZERO)).unwrap(),
        // Half closed; the server closes the other half.
        3 | 5 | 7 => {
            stream.shutdown().await.unwrap();
            soon("the end", stream.read_to_end(&mut Vec::new())).await.unwrap_or(0);
        }
        _ => {}
    }
}

async fn connect_many(server: &Server, count: usize, at_once: usize) {
    let mut clients = JoinSet::new();
    for number in 0..count {
        if clients.len() >= at_once {
            clients.join_next().await.unwrap().unwrap();
        }
        clients.spawn(connect_and_disconnect(server.address, number));
    }
    clients.join_all().await;
    // A connection that the server forgot to end shows in the count.
    server.has_clients(0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn twenty_thousand_clients_leave_nothing_behind() {
    let budget = ConnectionBudget::with(400, 400).await;
    let server = Start::default().env("CLOSE_TIMEOUT", "1").serve().await;
    let files = server.open_files();
    connect_many(&server, 4000, budget.connections).await;
    server.open_files_at_most(files).await;
    let mut more = Vec::new();
    // What the allocator keeps comes to rest, the later the more cores there are; a leak continues.
    for _ in 0..3 {
        let memory = server.memory();
        connect_many(&server, 20_000, budget.connections).await;
        server.open_files_at_most(files).await;
        more.push(server.memory().saturating_sub(memory));
        // 100 bytes for each of them would be 2 MB.
        if more.iter().any(|more| *more < 2_000_000) {
            return;
        }
    }
    panic!("each 20,000 clients more took {more:?} bytes more");
}
