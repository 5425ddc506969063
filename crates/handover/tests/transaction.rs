//! A handover between two processes, with states that mean nothing: what is sent arrives, in order, with its
//! descriptors.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::{
    fs::File,
    io::{Read, Seek, Write},
    os::fd::{AsFd, OwnedFd},
    thread,
    time::{Duration, Instant},
};

use lastcall_handover::{
    FramedStream, HandoverReceiver, HandoverSender, Hello, OutgoingClient, OutgoingServer, ReceivedClient,
};

const TIMEOUT: Duration = Duration::from_secs(30);

/// More than fit into one message, which has at most 250 descriptors.
const MANY: u32 = 260;

/// A file with a number in it.
fn file(number: u32) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&number.to_be_bytes()).unwrap();
    file
}

/// The number in a file that was received.
fn number(descriptor: OwnedFd) -> u32 {
    let mut file = File::from(descriptor);
    file.rewind().unwrap();
    let mut number = [0; 4];
    file.read_exact(&mut number).unwrap();
    u32::from_be_bytes(number)
}

#[test]
fn everything_arrives_in_order_with_its_descriptors() {
    let (old, new) = FramedStream::pair().unwrap();
    let new_process = thread::spawn(|| {
        let stream = FramedStream::new(new.into()).unwrap();
        let hello = Hello { version: "2".into(), files: vec!["/settings".into()], ..Hello::default() };
        let receiver = HandoverReceiver::begin(stream, hello, TIMEOUT).unwrap();
        assert_eq!(receiver.old_process().version, "1");
        let mut parts = Vec::new();
        let take_part = |part| {
            parts.push(part);
            Ok(())
        };
        let received = receiver.receive::<String, (u32, String)>(1000, TIMEOUT, take_part).unwrap();
        assert_eq!(parts, [b"one".to_vec(), vec![7; 3 << 20], Vec::new()]);
        let committed = received.commit(TIMEOUT).unwrap();
        committed.old_process.report_serving(TIMEOUT).unwrap();
        (committed.server, committed.clients)
    });

    let sender = HandoverSender::begin(old, "1", Instant::now() + TIMEOUT).unwrap();
    assert_eq!((sender.new_process().version.as_str(), sender.new_process().files.len()), ("2", 1));
    for part in [b"one".to_vec(), vec![7; 3 << 20], Vec::new()] {
        sender.send_part(part, Instant::now() + TIMEOUT).unwrap();
    }
    let files: Vec<_> = (0..MANY).map(file).collect();
    let descriptors: Vec<_> = files.iter().map(AsFd::as_fd).collect();
    let server = OutgoingServer { state: &"server".to_owned(), descriptors: &descriptors };
    // Now and then one that fills a batch by itself.
    let clients = (0..MANY).zip(files.iter().rev()).map(|(client, file)| {
        let text = "x".repeat(if client % 100 == 50 { 2 << 20 } else { 10 });
        let size = text.len();
        OutgoingClient { socket: file.as_fd(), state: (client, text), size }
    });
    assert_eq!(sender.send_all(server, clients, Instant::now() + TIMEOUT).unwrap(), MANY as usize);
    sender.wait_until_serving(Instant::now() + TIMEOUT).unwrap();

    let (server, clients) = new_process.join().unwrap();
    assert_eq!(server.state, "server");
    let numbers: Vec<_> = server.descriptors.into_iter().map(number).collect();
    assert_eq!(numbers, (0..MANY).collect::<Vec<_>>());
    for (client, expected) in clients.into_iter().zip(0..) {
        let ReceivedClient { socket, state: (client, _) } = client;
        assert_eq!((client, number(socket)), (expected, MANY - 1 - expected));
    }
}

#[test]
fn a_server_without_clients_is_handed_over() {
    let (old, new) = FramedStream::pair().unwrap();
    let new_process = thread::spawn(|| {
        let stream = FramedStream::new(new.into()).unwrap();
        let receiver = HandoverReceiver::begin(stream, Hello::default(), TIMEOUT).unwrap();
        let received = receiver.receive::<u8, ()>(0, TIMEOUT, |_| Ok(())).unwrap();
        received.commit(TIMEOUT).unwrap().clients.len()
    });
    let sender = HandoverSender::begin(old, "1", Instant::now() + TIMEOUT).unwrap();
    let server = OutgoingServer { state: &1_u8, descriptors: &[] };
    let no_clients = std::iter::empty::<OutgoingClient<'_, ()>>();
    assert_eq!(sender.send_all(server, no_clients, Instant::now() + TIMEOUT).unwrap(), 0);
    assert_eq!(new_process.join().unwrap(), 0);
}
