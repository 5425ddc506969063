//! What operators see of a server that runs.

use tokio::net::TcpSocket;

use crate::support::{STEP_TIMEOUT, Server, Signal, Start, message, metric, own_address, soon};

#[tokio::test]
async fn status_tells_the_phase_and_the_counts() {
    let mut server = Server::start().await;
    let clients = server.clients(3).await;
    let ended = server.run("status").await;
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let most = server.get("/health/ready").await.json()["max_connections"].as_u64().unwrap();
    let [first, process] = ended.stdout.lines().collect::<Vec<_>>()[..] else { panic!("{}", ended.stdout) };
    assert_eq!(first, format!("serving: 3 clients of at most {most}"));
    assert!(
        process.starts_with(&format!("process {}, version ", server.pid().as_raw_nonzero())),
        "{process}"
    );
    assert!(process.ends_with(", after 0 upgrades"), "{process}");
    server.signal(Signal::TERM);
    server.logged("drain started").await;
    let mut clients = clients.into_iter();
    clients.next().unwrap().leave().await;
    server.logged("drain progress: 1 of 3").await;
    let ended = server.run("status").await;
    assert_eq!(ended.code, Some(3), "{}", ended.stderr);
    let start = "draining: 2 clients still connected, 1 of 3 gone; the rest is closed in ";
    let left = ended.stdout.strip_prefix(start).unwrap_or_else(|| panic!("{}", ended.stdout));
    assert!(left.starts_with("30m") || left.starts_with("29m ") || left.starts_with("28m "), "{left}");
    for client in clients {
        client.leave().await;
    }
    assert_eq!(server.exit_code().await, 0);
}

/// Returns the text between these two.
fn between<'a>(text: &'a str, start: &str, end: &str) -> &'a str {
    let (_, rest) = text.split_once(start).unwrap_or_else(|| panic!("no {start:?} in {text}"));
    rest.split_once(end).unwrap_or_else(|| panic!("no {end:?} in {rest}")).0
}

#[tokio::test(flavor = "multi_thread")]
async fn the_version_and_the_process_are_the_same_wherever_they_are_shown() {
    let mut server = Server::start().await;
    let shown = Start::default().args(&["--version"]).end().await.stdout;
    let full = shown.trim_end().strip_prefix("lastcall ").unwrap();
    assert!(full.starts_with(env!("CARGO_PKG_VERSION")), "{full}");
    let first = server.pid();
    let listening = server.logged("listening on ").await;
    let text = server.upgrade().await;
    assert!(text.contains(&format!(", version {full}, in place of {full}; ")), "{text}");
    for start in ["took over from process ", "process "] {
        let line = server
            .log()
            .line(|line| message(line).starts_with(start) && !line["fields"]["old_version"].is_null())
            .await;
        assert_eq!(
            (&line["fields"]["old_version"], &line["fields"]["new_version"]),
            (&full.into(), &full.into())
        );
        assert!(message(&line).ends_with(&format!(": version {full} in place of {full}")), "{line}");
    }
    let pids = [first, server.pid()].map(|pid| pid.as_raw_nonzero().get());
    let log = server.log();
    let new = log.line(|line| line["fields"]["version"].is_string() && line["fields"]["pid"] == pids[1]);
    for (line, pid) in [(listening, pids[0]), (new.await, pids[1])] {
        assert_eq!(line["fields"]["pid"], pid);
        let commit =
            line["fields"]["commit"].as_str().map(|commit| format!(" ({commit})")).unwrap_or_default();
        assert_eq!(format!("{}{commit}", line["fields"]["version"].as_str().unwrap()), full);
    }
    let health = server.get("/health/ready").await.json();
    assert_eq!((&health["pid"], &health["upgrades"]), (&pids[1].into(), &1.into()));
    assert!(health["uptime_seconds"].as_f64().unwrap() >= 0.0);
    let text = server.run("status").await.stdout;
    let process = text.lines().nth(1).unwrap();
    assert_eq!(between(process, ", version ", ", running for "), full);
    assert!(process.starts_with(&format!("process {}, ", pids[1])), "{process}");
    assert!(process.ends_with(", after 1 upgrade"), "{process}");
    let text = server.get("/metrics").await.body;
    let labels = between(&text, "\nlastcall_build_info{", "} 1\n");
    let version = between(labels, "version=\"", "\"");
    let commit = between(labels, "commit=\"", "\"");
    assert_eq!(if commit == "unknown" { version.to_owned() } else { format!("{version} ({commit})") }, full);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64();
    let ago = now - metric(&text, "process_start_time_seconds");
    assert!((0.0..STEP_TIMEOUT.as_secs_f64()).contains(&ago), "the new process's start: {ago}");
}

#[tokio::test]
async fn status_tells_that_no_server_is_there() {
    // A socket has the port, so that no other program listens there, but does not listen itself.
    let taken = TcpSocket::new_v4().unwrap();
    taken.bind((own_address(), 0).into()).unwrap();
    let address = taken.local_addr().unwrap();
    let (host, port) = (address.ip().to_string(), address.port().to_string());
    let ended = Start::default().args(&["status", "--host", &host, "--port", &port]).end().await;
    assert_eq!(ended.code, Some(1));
    assert!(ended.stderr.contains(&format!("cannot ask the server at {address}")), "{}", ended.stderr);
    assert!(ended.stderr.contains("nothing listens there"), "{}", ended.stderr);
}

#[tokio::test]
async fn metrics_count_what_happens() {
    let server = Server::start().await;
    let mut clients = server.clients(3).await;
    clients[0].say("Hello").await;
    for client in &mut clients {
        client.next_of("message").await;
    }
    clients.pop().unwrap().leave().await;
    server.has_clients(2).await;
    let answer = server.get("/metrics").await;
    assert_eq!(answer.status, 200);
    let text = answer.body;
    assert_eq!(metric(&text, "lastcall_connections"), 2.0);
    assert_eq!(metric(&text, "lastcall_connections_opened_total"), 3.0);
    assert_eq!(metric(&text, "lastcall_disconnects_total{reason=\"left\"}"), 1.0);
    assert_eq!(metric(&text, "lastcall_messages_received_total"), 1.0);
    assert_eq!(metric(&text, "lastcall_messages_sent_total"), 3.0);
    // A text of 5 bytes, with its masked header of 6; and the close of the client that left, with its 6.
    assert!(metric(&text, "lastcall_received_bytes_total") >= 17.0);
    assert!(metric(&text, "lastcall_sent_bytes_total") > 300.0);
    assert_eq!(metric(&text, "lastcall_queue_bytes"), 0.0);
    assert_eq!(metric(&text, "lastcall_slow_consumers_total"), 0.0);
    assert_eq!(metric(&text, "lastcall_phase{phase=\"serving\"}"), 1.0);
    assert_eq!(metric(&text, "lastcall_phase{phase=\"draining\"}"), 0.0);
    assert_eq!(metric(&text, "lastcall_drain_remaining_seconds"), 0.0);
    assert_eq!(metric(&text, "lastcall_upgrades_total{result=\"succeeded\"}"), 0.0);
    assert!(metric(&text, "lastcall_event_loop_iteration_seconds_count") > 0.0);
    assert!(text.contains("lastcall_event_loop_iteration_seconds_bucket{le=\"0.001\"}"), "{text}");

    server.signal(Signal::TERM);
    server.logged("drain started").await;
    let text = server.get("/metrics").await.body;
    assert_eq!(metric(&text, "lastcall_phase{phase=\"draining\"}"), 1.0);
    assert!(metric(&text, "lastcall_drain_remaining_seconds") > 1000.0);
    assert_eq!(metric(&text, "lastcall_drain_initial_connections"), 2.0);
}

#[tokio::test]
async fn a_slow_consumer_and_its_queue_show_in_the_metrics() {
    let server = Start::default().env("MAX_QUEUE", "1MiB").serve().await;
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
    // What comes after that closes it: one publication more may be queued.
    assert!((500_000.0..=1_048_576.0 + 100_000.0).contains(&most_queued), "{most_queued}");
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

#[tokio::test(flavor = "multi_thread")]
async fn a_service_of_systemd_is_reloaded_whatever_its_port() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let start = Start::default().file("config/lastcall.toml", "port = 1");
    let (folder, runtime_dir) = (start.folder().to_owned(), start.folder().join("of-the-unit"));
    let unit = |start: Start| start.env("RUNTIME_DIR", "").env("RUNTIME_DIRECTORY", runtime_dir.display());
    let server = unit(start).listen_on(listener).env("PORT", "").serve().await;
    let mut client = server.client().await;
    assert!(runtime_dir.join("lastcall.sock").exists());
    std::fs::write(folder.join("config/lastcall.toml"), "port = 2").unwrap();
    for _ in 0..2 {
        // As ExecReload does: in the environment of the unit.
        let config = folder.join("config/lastcall.toml");
        let ended = unit(Start::default())
            .env("PORT", "")
            .args(&["upgrade", "--config", config.to_str().unwrap()])
            .end()
            .await;
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    }
    assert!(server.log_lines("still listening on").is_empty());
    client.say("hello").await;
    client.next_of("message").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn status_finds_a_server_whose_port_systemd_chose() {
    let listener = || std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    // As a unit has it: a folder that systemd made.
    let start = Start::default();
    let folder = start.path("of-the-unit");
    let unit = |start: Start| {
        start.env("RUNTIME_DIR", "").env("RUNTIME_DIRECTORY", folder.display()).env("PORT", "1")
    };
    let server = unit(start).listen_on(listener()).serve().await;
    let folder_of_operator = ["status", "--port", "1", "--runtime-dir", folder.to_str().unwrap()];
    for upgraded in [false, true] {
        if upgraded {
            let ended = unit(Start::default()).args(&["upgrade"]).end().await;
            assert_eq!(ended.code, Some(0), "{}", ended.stderr);
        }
        for command in [unit(Start::default()).args(&["status"]), Start::default().args(&folder_of_operator)]
        {
            let ended = command.end().await;
            assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""));
            assert!(ended.stdout.starts_with("serving: 0 clients"), "{}", ended.stdout);
        }
    }
    // An operator who does not know the folder is told.
    let ended = Start::default().env("PORT", "1").args(&["status"]).end().await;
    assert_eq!(ended.code, Some(1));
    let socket = folder.join("lastcall.sock");
    assert!(ended.stderr.contains(socket.to_str().unwrap()), "{}", ended.stderr);
    server.signal(Signal::TERM);
}

#[tokio::test(flavor = "multi_thread")]
async fn status_takes_no_other_server_for_the_one_that_is_meant() {
    let common = Start::default();
    let folder = common.path("common").display().to_string();
    let with_folder = |start: Start| start.env("RUNTIME_DIR", &folder).env("PORT", "1");
    let status = async || with_folder(Start::default()).args(&["status"]).end().await.code;
    let other = with_folder(Start::default()).env("PORT", "0").serve().await;
    assert_eq!(status().await, Some(1), "its settings chose another port");
    let listener = || std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let activated = with_folder(Start::default()).listen_on(listener()).serve().await;
    let _client = activated.client().await;
    let ended = with_folder(Start::default()).args(&["status"]).end().await;
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert!(ended.stdout.starts_with("serving: 1 client"), "{}", ended.stdout);
    let _second = with_folder(Start::default()).listen_on(listener()).serve().await;
    assert_eq!(status().await, Some(1), "it could be either");
    assert_eq!(other.run("status").await.code, Some(0));
}
