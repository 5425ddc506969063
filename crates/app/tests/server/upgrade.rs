//! Upgrades: the new process serves all clients, or, if it fails, the old one continues to.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::PathBuf,
    time::Duration,
};

use futures_util::StreamExt;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UnixDatagram},
    sync::{mpsc, watch},
    task::JoinSet,
};
use tokio_tungstenite::tungstenite::{
    Message,
    protocol::frame::{
        Frame,
        coding::{Data, OpCode},
    },
};

use crate::support::{
    ConnectionBudget, Server, Signal, Start, adopt_orphans, folder, folder_for_programs, install_script,
    install_server, message, soon, text_frame, until,
};

/// Publishes numbers, 20 a second, until told to stop; the last one.
fn publish_steadily(address: std::net::SocketAddr) -> (watch::Sender<bool>, tokio::task::JoinHandle<u64>) {
    let (stop, mut stopped) = watch::channel(false);
    let publishing = tokio::spawn(async move {
        let mut ticks = tokio::time::interval(Duration::from_millis(50));
        for number in 1.. {
            tokio::select! {
                _ = ticks.tick() => {}
                _ = stopped.wait_for(|stopped| *stopped) => return number - 1,
            }
            publish(address, number).await;
        }
        unreachable!("numbers do not end");
    });
    (stop, publishing)
}

/// Publishes a number, over a connection of its own.
async fn publish(address: std::net::SocketAddr, number: u64) {
    let body = format!(r#"{{"data":{number}}}"#);
    let request = format!(
        "POST /api/publish HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    soon("an answer to a publication", stream.read_to_string(&mut answer)).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn three_upgrades_under_load_lose_no_message_and_no_client() {
    let budget = ConnectionBudget::with(500, 500).await;
    let mut server = Server::start().await;
    let clients = server.clients(budget.connections).await;
    let (stop, publishing) = publish_steadily(server.address);
    let (last, _) = watch::channel(u64::MAX);
    let mut reading = JoinSet::new();
    for mut client in clients {
        let mut last = last.subscribe();
        reading.spawn(async move {
            let mut next = 1;
            while next <= *last.borrow_and_update() {
                let message = tokio::select! {
                    message = client.next_of("notification") => message,
                    _ = last.changed() => continue,
                };
                assert_eq!(message["data"], next, "nothing lost, doubled or out of order");
                next += 1;
            }
            client
        });
    }
    server.upgrade().await;
    // The control socket comes after the clients: then the process has opened all that it keeps open.
    until("the new process", async || server.log_lines("listening on").len() == 2).await;
    let files = server.open_files();
    server.upgrade().await;
    server.upgrade().await;
    stop.send_replace(true);
    last.send_replace(publishing.await.unwrap());
    let clients = soon("all messages", reading.join_all()).await;
    assert_eq!(server.get("/health/ready").await.json()["clients"], 500);
    // Connections of publishers are open for a moment longer.
    server.open_files_at_most(files).await;
    let mut clients = clients.into_iter();
    let (mut one, mut other) = (clients.next().unwrap(), clients.next().unwrap());
    one.say("still me").await;
    let message = other.next_of("message").await;
    assert_eq!((&message["data"], &message["from"]), (&"still me".into(), &one.id.as_str().into()));
    assert_eq!(server.metric("lastcall_upgrades_total{result=\"succeeded\"}").await, 3.0);
    assert_eq!(server.metric("lastcall_connections_opened_total").await, 500.0);
    drop((one, other, clients));
    server.signal(Signal::TERM);
    assert_eq!(server.exit_code().await, 0);
}

fn fragment(data: &str, opcode: Data, last: bool) -> Message {
    Message::Frame(Frame::message(data.to_owned(), OpCode::Data(opcode), last))
}

#[tokio::test(flavor = "multi_thread")]
async fn partial_messages_and_requests_continue_in_the_new_process() {
    let mut server = Start::default().env("MAX_QUEUE", "64MiB").serve().await;
    // A message of which a fragment and a half have come.
    let mut talker = server.client().await;
    talker.send(fragment("one, ", Data::Text, false)).await;
    let mut half = server.raw_client().await;
    let text = text_frame("HelloWorld");
    half.write_all(&text[..text.len() - 5]).await.unwrap();
    // More than its socket takes waits for a client that does not read.
    let mut slow = server.raw_client().await;
    let published = server
        .publish_until_queued(1_000_000, async || {
            talker.next_of("notification").await;
        })
        .await;
    // One client has only connected, and another one has sent half of a request.
    let mut silent = TcpStream::connect(server.address).await.unwrap();
    let mut asking = TcpStream::connect(server.address).await.unwrap();
    asking.write_all(b"GET /health/live HT").await.unwrap();
    let log = server.log();
    let asking = tokio::spawn(async move {
        log.line(|line| message(line).starts_with("upgrade: process")).await;
        asking.write_all(b"TP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        asking.read_to_string(&mut answer).await.unwrap();
        answer
    });

    server.upgrade().await;

    talker.send(fragment("two", Data::Continue, true)).await;
    assert_eq!(talker.next_of("message").await["data"], "one, two");
    half.write_all(b"World").await.unwrap();
    assert_eq!(talker.next_of("message").await["data"], "HelloWorld");
    silent.write_all(b"GET /health/live HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    soon("an answer to the client that was silent", silent.read_to_string(&mut answer)).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(soon("an answer to half a request", asking).await.unwrap().starts_with("HTTP/1.1 200"));

    server.signal(Signal::TERM);
    let seen = soon("everything that was queued", async {
        let mut seen = Vec::new();
        let mut part = vec![0; 1 << 16];
        while !seen.windows(17).rev().take(400).any(|end| end == b"\"type\":\"shutdown\"") {
            let read = slow.read(&mut part).await.unwrap();
            assert_ne!(read, 0, "the end came before the notice");
            seen.extend_from_slice(&part[..read]);
        }
        seen
    })
    .await;
    let texts = seen.split(|byte| *byte != b'x').filter(|text| text.len() == 60_000);
    assert_eq!(texts.count(), published, "each of them whole");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_release_that_a_link_leads_to_is_the_one_that_takes_over() {
    let folder = folder_for_programs();
    let current = folder.path().join("current");
    let releases = ["one", "two"].map(|name| {
        let release = folder.path().join(name);
        fs::create_dir(&release).unwrap();
        install_server(&release.join("lastcall"));
        release
    });
    symlink(&releases[0], &current).unwrap();
    let mut server = Start::default().program(&current.join("lastcall")).serve().await;
    for release in [&releases[1], &releases[0]] {
        fs::remove_file(&current).unwrap();
        symlink(release, &current).unwrap();
        server.upgrade().await;
        let program = fs::read_link(format!("/proc/{}/exe", server.pid().as_raw_nonzero())).unwrap();
        assert_eq!(program, release.canonicalize().unwrap().join("lastcall"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn notifications_keep_their_sequence_and_their_moment_over_upgrades() {
    let mut server = Start::default().env("NOTIFICATION_INTERVAL", "2").serve().await;
    let mut client = server.client().await;
    let first = client.next_of("notification").await["data"]["sequence"].as_u64().unwrap();
    let reading = tokio::spawn(async move {
        for expected in first + 1..first + 4 {
            assert_eq!(client.next_of("notification").await["data"]["sequence"], expected);
        }
    });
    // If an upgrade began the interval anew, none would come: the next upgrade begins before it is over.
    soon("notifications between upgrades", async {
        while !reading.is_finished() {
            server.upgrade().await;
        }
    })
    .await;
    reading.await.unwrap();
}

/// Waits until the service manager was told this.
async fn told(manager: &UnixDatagram, wanted: &str) -> String {
    let mut all = String::new();
    let mut buffer = [0; 1024];
    soon(&format!("the service manager to be told {wanted}"), async {
        while !all.contains(wanted) {
            let read = manager.recv(&mut buffer).await.unwrap();
            all += &String::from_utf8_lossy(&buffer[..read]);
        }
    })
    .await;
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn sigusr2_upgrades_and_the_service_manager_is_told_of_each_step() {
    let folder = folder();
    let path = folder.path().join("notify");
    let manager = UnixDatagram::bind(&path).unwrap();
    adopt_orphans();
    let mut server = Start::default().watched_by_this_process(path.display()).serve().await;
    told(&manager, "READY=1").await;
    let _client = server.client().await;
    server.signal(Signal::USR2);
    let all = told(&manager, "MAINPID=").await;
    assert!(
        !all.split("MAINPID=").next().unwrap().contains("READY=1"),
        "only the main process is listened to: {all}"
    );
    assert!(all.contains("RELOADING=1\n") && all.contains("MONOTONIC_USEC="), "{all}");
    let pid = all.split("MAINPID=").nth(1).unwrap().lines().next().unwrap().parse().unwrap();
    server.followed_by(pid).await;
    server.signal(Signal::TERM);
    let all = told(&manager, "EXTEND_TIMEOUT_USEC=").await;
    assert!(all.contains("STOPPING=1"), "{all}");
    server.signal(Signal::TERM);
    assert_eq!(server.exit_code().await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sigterm_during_an_upgrade_aborts_it() {
    let folder = folder_for_programs();
    let program = folder.path().join("lastcall");
    install_server(&program);
    let mut server = Start::default().program(&program).env("UPGRADE_TIMEOUT", "600").serve().await;
    let client = server.client().await;
    // It is never ready.
    install_script(&program, "exec sleep 600");
    let upgrade = async {
        let told = server.failed_upgrade().await;
        assert!(told.contains("asked to end meanwhile"), "{told}");
    };
    let signal = async {
        server.logged("upgrade: process").await;
        server.signal(Signal::TERM);
    };
    tokio::join!(upgrade, signal);
    server.logged("drain started").await;
    client.leave().await;
    assert_eq!(server.exit_code().await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upgrade_under_way_shows_in_health_metrics_and_status() {
    let folder = folder_for_programs();
    let program = folder.path().join("lastcall");
    install_server(&program);
    let server = Start::default().program(&program).env("UPGRADE_TIMEOUT", "600").serve().await;
    let shown = async || {
        let upgrading = server.get("/health/ready").await.json()["upgrading"].as_bool().unwrap();
        assert_eq!(server.metric("lastcall_upgrade_in_progress").await, f64::from(u8::from(upgrading)));
        let status = server.run("status").await.stdout;
        assert_eq!(status.contains("; an upgrade is under way\n"), upgrading, "{status}");
        upgrading
    };
    assert!(!shown().await);
    // It is never ready.
    install_script(&program, "exec sleep 600");
    let upgrade = async {
        let told = server.failed_upgrade().await;
        assert!(told.contains("it ended by itself") || told.contains("never said"), "{told}");
    };
    let look = async {
        let line = server.logged("upgrade: process").await;
        assert!(shown().await);
        let pid = i32::try_from(line["fields"]["new_pid"].as_i64().unwrap()).unwrap();
        rustix::process::kill_process(rustix::process::Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
    };
    tokio::join!(upgrade, look);
    assert!(!shown().await);
}

#[tokio::test]
async fn the_control_socket_is_for_this_user_alone_and_goes_with_the_server() {
    let mut server = Server::start().await;
    let folder = server.dir.path().join("run");
    let socket = folder.join(format!("lastcall-{}.sock", server.address));
    let mode = |path: &PathBuf| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&folder), mode(&socket)), (0o700, 0o600));
    server.signal(Signal::TERM);
    assert_eq!(server.exit_code().await, 0);
    assert!(!socket.exists());
    let told = server.failed_upgrade().await;
    assert!(told.contains("no server that listens on 127.0.0.1:"), "{told}");

    fs::set_permissions(&folder, fs::Permissions::from_mode(0o777)).unwrap();
    let ended = Start::default().env("RUNTIME_DIR", folder.display()).end().await;
    assert_eq!(ended.code, Some(2));
    assert!(ended.stderr.contains("writable by no other user"), "{}", ended.stderr);
}

/// A client of tungstenite's answers pings only while it is read.
#[tokio::test(flavor = "multi_thread")]
async fn heartbeats_go_on_across_an_upgrade() {
    let mut server = Start::default().env("PING_INTERVAL", "2").env("PONG_TIMEOUT", "2").serve().await;
    let mut alive = server.client().await;
    let mut dead = server.raw_client().await;
    let (pinged, mut pings) = mpsc::unbounded_channel();
    let answering = tokio::spawn(async move {
        loop {
            match soon("a ping", alive.socket.next()).await.unwrap().unwrap() {
                Message::Ping(_) if pinged.send(()).is_err() => return,
                Message::Close(frame) => panic!("{frame:?}"),
                _ => {}
            }
        }
    });
    server.upgrade().await;
    while pings.try_recv().is_ok() {}
    for _ in 0..3 {
        soon("a ping after the upgrade", pings.recv()).await.expect("a client that answers is not closed");
    }
    let mut rest = Vec::new();
    soon("a close for the client that does not answer", dead.read_to_end(&mut rest)).await.unwrap();
    assert!(rest.windows(4).any(|end| end == b"idle"), "{}", String::from_utf8_lossy(&rest));
    drop(pings);
    answering.await.unwrap();
}
