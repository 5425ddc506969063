//! Where the server listens, and what it needs for that.

use std::{
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener},
    process::Command,
};

use serde_json::Value;
use tokio::net::TcpStream;

use crate::support::{
    Server, Signal, Start, dial, exchange, handshake_with, installed, message, own_address, soon,
};

/// Returns true if this machine has IPv6.
fn has_ipv6() -> bool {
    TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).is_ok()
}

/// Returns true if this user may make such namespaces, and do this in them; some systems forbid it.
pub(crate) fn may(kinds: &[&str], what: &str) -> bool {
    let unshare =
        Command::new("unshare").arg("--map-root-user").args(kinds).args(["sh", "-c", what]).status();
    let may = unshare.is_ok_and(|status| status.success());
    if !may {
        eprintln!("not tested: `unshare {}` and `{what}` do not work here", kinds.join(" "));
    }
    may
}

async fn reaches(address: impl Into<SocketAddr>) -> bool {
    soon("an answer to a SYN", TcpStream::connect(address.into())).await.is_ok()
}

/// How the output of `lastcall status` begins.
const SERVING: &str = "serving: 0 clients of at most ";

/// `lastcall status` reaches the server at this host.
async fn status_serves(server: &Server, host: &str) {
    let port = server.address.port().to_string();
    let ended = Start::default().args(&["status", "--host", host, "--port", &port]).end().await;
    assert_eq!(ended.code, Some(0), "{host}: {}", ended.stderr);
    assert!(ended.stdout.starts_with(SERVING), "{host}: {}", ended.stdout);
}

#[tokio::test]
async fn a_host_from_another_program_is_named_with_the_variable_that_wins() {
    // The second is a name that no resolver asks about: a part of it is too long (RFC 1035 section 2.3.4).
    for host in ["203.0.113.1".to_owned(), "x86_64-conda-linux-gnu".repeat(3)] {
        let ended = Start::default().env("HOST", &host).end().await;
        assert_eq!((ended.code, ended.stdout.as_str()), (Some(2), ""));
        let place = format!("host = {host} (environment variable HOST): ");
        let hint = "; if HOST is another program's (conda and csh set HOST), set LASTCALL_HOST, which wins";
        assert!(ended.stderr.contains(&place) && ended.stderr.trim_end().ends_with(hint), "{}", ended.stderr);
        let server = Start::default().env("HOST", &host).env("LASTCALL_HOST", "127.0.0.1").serve().await;
        assert_eq!(server.address.ip(), Ipv4Addr::LOCALHOST);
    }
    let own = Start::default().env("LASTCALL_HOST", "203.0.113.1").end().await;
    assert!(!own.stderr.contains("another program"), "{}", own.stderr);
}

#[tokio::test]
async fn all_ipv6_addresses_include_ipv4() {
    if !has_ipv6() {
        return eprintln!("not tested: no IPv6 here");
    }
    for host in ["[::]", "::"] {
        let server = Start::default().args(&["--host", host]).serve().await;
        assert_eq!(server.address.ip(), Ipv6Addr::UNSPECIFIED);
        let port = server.address.port();
        assert!(reaches((Ipv4Addr::LOCALHOST, port)).await && reaches((Ipv6Addr::LOCALHOST, port)).await);
        for host in ["[::]", "::1", "127.0.0.1", "localhost", "0.0.0.0", "::1%1"] {
            status_serves(&server, host).await;
        }
    }
}

#[tokio::test]
async fn all_ipv6_addresses_include_ipv4_where_the_system_separates_them() {
    let separate = "ip link set lo up && echo 1 >/proc/sys/net/ipv6/bindv6only";
    if !may(&["--net"], separate) {
        return;
    }
    let server = Start::default().in_namespaces(&["--net"], separate).args(&["--host", "::"]).serve().await;
    let (pid, port) = (server.pid().as_raw_nonzero().to_string(), server.address.port().to_string());
    // In the server's own network.
    let status = Command::new("nsenter")
        .args(["--preserve-credentials", "--user", "--net", "--target", &pid, env!("CARGO_BIN_EXE_lastcall")])
        .args(["status", "--host", "127.0.0.1", "--port", &port])
        .output()
        .unwrap();
    assert!(status.stdout.starts_with(SERVING.as_bytes()), "{status:?}");
}

/// A caller that has a loopback address is on this machine only if it calls a loopback address: what forwards
/// from elsewhere may have one, too.
#[tokio::test]
async fn without_keys_a_call_to_an_address_of_the_network_is_not_from_this_machine() {
    let setup = "ip link set lo up && ip address add 192.0.2.1/32 dev lo";
    let Some(curl) = installed("curl").filter(|_| may(&["--net"], setup)) else { return };
    let hosts: &[&str] = if has_ipv6() { &["0.0.0.0", "::"] } else { &["0.0.0.0"] };
    for host in hosts {
        let server = Start::default().in_namespaces(&["--net"], setup).args(&["--host", host]).serve().await;
        let (pid, port) = (server.pid().as_raw_nonzero().to_string(), server.address.port());
        // In the server's own network, from a loopback address.
        let publish = |to: &str| {
            let called = Command::new("nsenter")
                .args(["--preserve-credentials", "--user", "--net", "--target", &pid])
                .args([curl.to_str().unwrap(), "-s", "--interface", "127.0.0.1"])
                .args(["-H", "Content-Type: application/json", "-H", "Host: 203.0.113.7"])
                .args(["-d", r#"{"data":1}"#, &format!("http://{to}:{port}/api/publish")])
                .output()
                .unwrap();
            String::from_utf8(called.stdout).unwrap()
        };
        let refused = publish("192.0.2.1");
        assert!(refused.contains(r#""code":"loopback_only""#), "{refused}");
        let published = publish("127.0.0.1");
        assert!(published.contains(r#""clients":0"#), "{published}");
        // A client of IPv4 has its address of IPv4, wherever the server listens.
        let line = server.log().line(|line| line["fields"]["code"] == "loopback_only").await;
        assert!(line["fields"]["peer"].as_str().unwrap().starts_with("127.0.0.1:"), "{line}");
    }
}

#[tokio::test]
async fn an_ipv4_address_in_an_ipv6_one_is_that_of_ipv4() {
    if !has_ipv6() {
        return eprintln!("not tested: no IPv6 here");
    }
    let mut server = Start::default().args(&["--host", "::ffff:127.0.0.1"]).serve().await;
    assert_eq!(server.address.ip(), Ipv4Addr::LOCALHOST, "as the log shows it");
    for host in ["127.0.0.1", "::ffff:127.0.0.1", "[::ffff:7f00:1]"] {
        status_serves(&server, host).await;
    }
    // By the address that is set, the command finds it, and nothing has moved.
    server.upgrade().await;
    assert!(server.log_lines("still listening on").is_empty());
    // The host of a request and the origin of a page are compared by their meaning.
    let port = server.address.port();
    for (host, origin) in [("[::ffff:7f00:1]", "127.0.0.1"), ("127.0.0.1", "[::ffff:127.0.0.1]")] {
        let origin = format!("Origin: http://{origin}:{port}");
        let handshake = handshake_with(format!("{host}:{port}"), &[&origin]);
        assert_eq!(server.status(&handshake).await, 101, "{host} {origin}");
    }

    // A socket of IPv6 shows its clients of IPv4 as such.
    let server = Start::default().args(&["--host", "::"]).env("LOG_LEVEL", "debug").serve().await;
    let port = server.address.port();
    let to = format!("127.0.0.1:{port}");
    let refused =
        exchange(to.parse().unwrap(), format!("GET /ws HTTP/1.1\r\nHost: {to}\r\nConnection: close\r\n\r\n"));
    assert_eq!(refused.await.status, 426);
    let (client, _) = dial(&format!("ws://{to}/ws"), &[]).await.unwrap();
    drop(client);
    for text in ["a WebSocket handshake was refused", "connection ended"] {
        let line = server.logged(text).await;
        assert!(line["fields"]["peer"].as_str().unwrap().starts_with("127.0.0.1:"), "{line}");
    }
}

#[tokio::test]
async fn status_finds_a_server_on_ipv4_alone() {
    let server = Server::start().await;
    for host in ["::", "[::]", "0.0.0.0", "localhost", "127.0.0.1"] {
        status_serves(&server, host).await;
    }
}

#[tokio::test]
async fn a_name_with_several_addresses_tells_on_which_the_server_does_not_listen() {
    if !may(&["--mount"], "true") {
        return;
    }
    let addresses = [own_address(), own_address()];
    let hosts = addresses.map(|address| format!("{address} several.test\n")).concat();
    let start = Start::default().file("hosts", &hosts);
    let server = start
        .in_namespaces(&["--mount"], "mount --bind hosts /etc/hosts")
        .args(&["--host", "several.test"])
        .serve()
        .await;
    let line = server.logged("several.test has several addresses").await;
    let here = server.address.ip();
    let other = addresses.into_iter().find(|address| *address != here).unwrap();
    let expected = format!("several addresses: listening on {here} only, not on {other}; set `host`");
    assert!(message(&line).contains(&expected), "{line}");
    assert_eq!(line["level"], "WARN");
    let port = server.address.port();
    assert!(reaches((here, port)).await && !reaches((other, port)).await);
}

#[tokio::test]
async fn a_server_that_other_machines_reach_warns_once_that_its_clients_may_send_to_all() {
    const START: &str = "every client that can connect to ";
    for host in ["0.0.0.0", "::"] {
        if host == "::" && !has_ipv6() {
            continue;
        }
        let mut server = Start::default().env("HOST", host).serve().await;
        let line = server.logged(START).await;
        assert_eq!(line["level"], "WARN");
        assert!(message(&line).contains("Set `client_messages` to `ignore`"), "{line}");
        server.upgrade().await;
        let pid = server.pid().as_raw_nonzero().get();
        let is_new = |line: &Value| message(line).starts_with("listening on") && line["fields"]["pid"] == pid;
        server.log().line(is_new).await;
        assert_eq!(server.log_lines(START).len(), 1, "an upgrade does not repeat it");
    }
    // It does not appear where clients can do no harm, nor where an operator has decided.
    for (host, client_messages) in [
        ("127.0.0.1", None),
        ("localhost", None),
        ("0.0.0.0", Some("ignore")),
        ("0.0.0.0", Some("echo")),
        ("0.0.0.0", Some("broadcast")),
    ] {
        let mut start = Start::default().env("HOST", host);
        if let Some(client_messages) = client_messages {
            start = start.env("CLIENT_MESSAGES", client_messages);
        }
        assert_eq!(start.serve().await.log_lines(START).len(), 0, "{host} {client_messages:?}");
    }
}

#[tokio::test]
async fn few_descriptors_are_reported_at_the_start() {
    // What the server needs for itself grows with the cores, each of which has an event loop.
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let few = (12 + 4 * cores).max(40);
    let server = Start::default().open_files(few).serve().await;
    let start = format!("settings: the limit of {few} open files leaves room for 1 client");
    assert_eq!(server.logged(&start).await["level"], "WARN");
    server.client().await;
    // The least that leaves room for one client beside 64 HTTP connections and what the server needs for
    // itself.
    let one = 96 + 2 * cores + 64 + 1;
    let server = Start::default().open_files(one + 62).serve().await;
    server
        .logged(&format!("settings: the limit of {} open files leaves room for 63 clients", one + 62))
        .await;
    let server = Start::default().open_files(one + 63).serve().await;
    assert_eq!(server.log_lines("settings: ").len(), 0);
    let ended = Start::default().open_files(one + 63).env("MAX_CONNECTIONS", "65").end().await;
    assert_eq!(ended.code, Some(2));
    let limit = format!("from 1 to 64, which the limit of {} open files", one + 63);
    assert!(ended.stderr.contains(&limit), "{}", ended.stderr);
    assert!(ended.stderr.contains("beside max_http_connections, which is 64"), "{}", ended.stderr);
    let ended = Start::default().open_files(one + 63).env("MAX_HTTP_CONNECTIONS", "128").end().await;
    assert_eq!(ended.code, Some(2));
    assert!(ended.stderr.contains("from 1 to 127, which the limit of"), "{}", ended.stderr);
}

#[tokio::test]
async fn too_few_descriptors_to_start_are_reported_in_one_sentence() {
    let mut failed = 0;
    for most in 4..24 {
        let ended = Start::default().open_files(most).args(&["--host", "203.0.113.1"]).end().await;
        if !ended.stderr.contains("203.0.113.1") {
            failed += 1;
            assert!(ended.stderr.lines().count() == 1, "with {most}: {}", ended.stderr);
            assert!(ended.stderr.contains(&format!("the limit of {most} open files")), "{}", ended.stderr);
        }
    }
    assert_ne!(failed, 0);
}

#[tokio::test]
async fn a_server_without_proc_serves_and_says_that_there_will_be_no_upgrades() {
    let hide = "mount -t tmpfs none /proc";
    if !may(&["--mount"], hide) {
        return;
    }
    let mut server = Start::default().in_namespaces(&["--mount"], hide).serve().await;
    assert_eq!(server.logged("there will be no upgrades: ").await["level"], "WARN");
    let mut client = server.client().await;
    client.say("hello").await;
    assert_eq!(client.next_of("message").await["data"], "hello");
    assert!(server.failed_upgrade().await.contains("/proc"), "the reason");
    client.say("hello again").await;
    assert_eq!(client.next_of("message").await["data"], "hello again");
    server.signal(Signal::TERM);
    client.leave().await;
    assert_eq!(server.exit_code().await, 0);
}
