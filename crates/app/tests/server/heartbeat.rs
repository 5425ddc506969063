//! Pings: clients that answer stay, clients that do not are closed, and a time in which the server is stopped
//! does not count.

use std::time::Duration;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinSet,
    time::sleep,
};

use crate::support::{ConnectionBudget, Server, Signal, Start, read_frame, read_to_close, soon};

/// A ping as the server sends it.
const PING: &[u8] = b"\x89\x00";
/// An answer to it: masked, as a client's frames are.
const PONG: &[u8] = b"\x8A\x80\0\0\0\0";
const IDLE: &[u8] = b"\x88\x06\x03\xF0idle";

/// Returns a server that only sends pings, once the welcome is read.
async fn server(interval: &str, timeout: &str) -> Server {
    Start::default()
        .env("NOTIFICATION_INTERVAL", "0")
        .env("PING_INTERVAL", interval)
        .env("PONG_TIMEOUT", timeout)
        .serve()
        .await
}

/// Returns a client that has read its welcome.
async fn client(server: &Server) -> TcpStream {
    let mut client = server.raw_client().await;
    let (first_byte, _welcome) = read_frame(&mut client).await;
    assert_eq!(first_byte, 0x81);
    client
}

/// Waits for a ping: nothing else may come.
async fn ping(client: &mut TcpStream) {
    let mut got = [0; 2];
    soon("a ping", client.read_exact(&mut got)).await.expect("a ping, not the end");
    assert_eq!(got, PING);
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_answer_stay_when_they_may_take_the_whole_interval() {
    let server = server("0.5", "0.5").await;
    let mut clients = JoinSet::new();
    for _ in 0..300 {
        let mut client = client(&server).await;
        clients.spawn(async move {
            for _ in 0..6 {
                ping(&mut client).await;
                sleep(Duration::from_millis(30)).await;
                client.write_all(PONG).await.unwrap();
            }
        });
    }
    clients.join_all().await;
    assert_eq!(server.get("/metrics").await.body.matches("reason=\"idle\"").count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_answer_while_the_server_is_stopped_stay() {
    let budget = ConnectionBudget::with(1500, 1500).await;
    let server = server("0.6", "0.5").await;
    let mut answering = JoinSet::new();
    for _ in 0..budget.connections {
        let mut client = client(&server).await;
        answering.spawn(async move {
            for _ in 0..8 {
                ping(&mut client).await;
                client.write_all(PONG).await.unwrap();
            }
        });
    }
    // As often as it takes for the server to be stopped at every point of its work.
    while !answering.is_empty() {
        server.signal(Signal::STOP);
        sleep(Duration::from_millis(600)).await;
        server.signal(Signal::CONT);
        sleep(Duration::from_millis(400)).await;
        while let Some(ended) = answering.try_join_next() {
            ended.unwrap();
        }
    }
    assert_eq!(server.get("/metrics").await.body.matches("reason=\"idle\"").count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_has_its_whole_time_to_answer_although_the_server_was_stopped() {
    let server = server("4", "3").await;
    let mut client = client(&server).await;
    for _ in 0..2 {
        ping(&mut client).await;
        // Stopped for longer than the client may take: as both are on a machine that is paused.
        server.signal(Signal::STOP);
        sleep(Duration::from_millis(3200)).await;
        server.signal(Signal::CONT);
        sleep(Duration::from_millis(200)).await;
        client.write_all(PONG).await.unwrap();
    }
    ping(&mut client).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_never_answers_is_closed_although_the_server_is_stopped_again_and_again() {
    let server = server("1", "0.5").await;
    let mut dead = client(&server).await;
    let reading = tokio::spawn(async move { read_to_close(&mut dead, IDLE).await });
    while !reading.is_finished() {
        server.signal(Signal::STOP);
        sleep(Duration::from_millis(100)).await;
        server.signal(Signal::CONT);
        sleep(Duration::from_millis(300)).await;
    }
    assert_eq!(reading.await.unwrap(), [PING, IDLE].concat());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ping_that_was_sent_before_an_upgrade_can_be_answered_after_it() {
    let mut server = server("2", "2").await;
    let (mut answers, mut dead) = (client(&server).await, client(&server).await);
    ping(&mut answers).await;
    server.upgrade().await;
    answers.write_all(PONG).await.unwrap();
    for _ in 0..3 {
        ping(&mut answers).await;
        answers.write_all(PONG).await.unwrap();
    }
    // It was pinged before.
    assert!(read_to_close(&mut dead, IDLE).await.starts_with(PING));
}
