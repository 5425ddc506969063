//! The history over upgrades and restarts: a client that comes back gets exactly what it missed, or is told.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, chown},
    path::{Path, PathBuf},
};

use futures_util::StreamExt;
use lastcall_handover::failpoint;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{sync::watch, task::JoinHandle};

use crate::support::{Client, Http, Server, Signal, Start, dial, folder, message, soon, until};

const JSON: &str = "Content-Type: application/json";

/// A folder for a history file, and the file, which is not there.
fn history_file() -> (TempDir, PathBuf) {
    let folder = folder();
    let file = folder.path().join("history");
    (folder, file)
}

fn with_file(file: &Path) -> Start {
    Start::default().env("HISTORY_FILE", file.display())
}

/// Publishes in `orders`; the id of the publication.
async fn publish(server: &Server, data: impl Into<Value>) -> String {
    let answer = server.publish(&json!({ "channel": "orders", "data": data.into() }).to_string()).await;
    answer.json()["id"].as_str().unwrap_or_else(|| panic!("{answer:?}")).to_owned()
}

/// Publishes in `orders` with an idempotency key; the answer.
async fn publish_with_key(server: &Server, key: &str) -> Value {
    let key = format!("Idempotency-Key: {key}");
    let answer = server
        .request("POST", "/api/publish", &[JSON, &key], r#"{"channel": "orders", "data": "once"}"#)
        .await;
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.json()
}

/// A client of `orders` that has missed what came after `since`, and how its subscription begins.
async fn subscribe(server: &Server, since: &str) -> (Client, Value) {
    let url = format!("{}?channel=orders&since={since}", server.ws_url());
    let (mut client, _) = dial(&url, &[]).await.expect("to be let in");
    let subscribed = client.next_of("subscribed").await;
    assert_eq!(subscribed["channel"], "orders");
    (client, subscribed)
}

/// A client that comes back gets what it missed: these data, in this order, and nothing else.
async fn recovers(server: &Server, since: &str, missed: &[Value]) {
    let (mut client, subscribed) = subscribe(server, since).await;
    assert_eq!(subscribed["recovered"], true, "{subscribed}");
    let mut expected = since.to_owned();
    for data in missed {
        let publication = client.next_of("notification").await;
        expected = next_id(&expected);
        assert_eq!((&publication["data"], &publication["id"]), (data, &json!(expected)));
    }
    let last = publish(server, "the last one").await;
    assert_eq!(last, next_id(&expected), "the numbering continues");
    assert_eq!(client.next_of("notification").await["id"], last, "nothing else was missed");
    client.leave().await;
}

/// A client that comes back is told that it may have missed something: the channel has begun anew.
async fn does_not_recover(server: &Server, since: &str) {
    let (client, subscribed) = subscribe(server, since).await;
    assert_eq!(subscribed["recovered"], false, "{subscribed}");
    assert_ne!(epoch(subscribed["id"].as_str().unwrap()), epoch(since));
    assert_ne!(epoch(&publish(server, 1).await), epoch(since));
    client.leave().await;
}

fn epoch(id: &str) -> &str {
    id.split_once('-').unwrap().0
}

/// Returns the id of the publication after this one.
fn next_id(id: &str) -> String {
    let (epoch, offset) = id.split_once('-').unwrap();
    format!("{epoch}-{}", offset.parse::<u64>().unwrap() + 1)
}

/// Ends a server by a signal, in order.
async fn stop(server: &mut Server) {
    server.signal(Signal::TERM);
    assert_eq!(server.exit_code().await, 0);
}

/// Returns a history file as a server writes it, with the id of the last but one of its publications.
async fn written_file() -> (Vec<u8>, String) {
    let (_folder, file) = history_file();
    let mut server = with_file(&file).serve().await;
    let since = publish(&server, "known").await;
    publish(&server, "missed").await;
    stop(&mut server).await;
    (fs::read(&file).unwrap(), since)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_recovers_what_was_published_over_two_upgrades() {
    let mut server = Server::start().await;
    publish(&server, "known").await;
    let (client, subscribed) = subscribe(&server, "").await;
    let since = subscribed["id"].as_str().unwrap().to_owned();
    client.leave().await;
    let once = publish_with_key(&server, "a").await;
    let mut missed = vec![json!("once")];
    for upgrade in 0..2 {
        for number in 0..3 {
            let data = json!([upgrade, number]);
            publish(&server, data.clone()).await;
            missed.push(data);
        }
        server.upgrade().await;
        assert_eq!(publish_with_key(&server, "a").await, once, "it is not published again");
    }
    recovers(&server, &since, &missed).await;
    assert!(server.log_lines("the history").is_empty(), "an upgrade needs no file");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quiet_channel_keeps_its_position_over_upgrades_while_it_has_a_subscriber() {
    // Whatever is not in use is gone before the next upgrade.
    let mut server = Start::default().env("HISTORY_TTL", "0.01").serve().await;
    let before = publish(&server, 1).await;
    let (mut client, subscribed) = subscribe(&server, "").await;
    let top = subscribed["id"].as_str().unwrap().to_owned();
    assert!(epoch(&top) != epoch(&before) || top == before, "{top} after {before}");
    server.upgrade().await;
    server.upgrade().await;
    let id = publish(&server, 2).await;
    assert_eq!(id, next_id(&top));
    assert_eq!(client.next_of("notification").await["id"], id);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_process_that_dies_after_the_commit_costs_the_epoch() {
    let failpoint = tempfile::NamedTempFile::new().unwrap();
    let server = Start::default().env(failpoint::FILE_VARIABLE, failpoint.path().display()).serve().await;
    let since = publish(&server, 1).await;
    let (mut client, _) = subscribe(&server, &since).await;
    // It may have published something, which the old process does not know.
    fs::write(failpoint.path(), "Committed:kill").unwrap();
    let told = server.failed_upgrade().await;
    assert!(told.contains("the server continues without its clients"), "{told}");
    assert!(soon("the end of the connection", client.socket.next()).await.is_none_or(|end| end.is_err()));
    does_not_recover(&server, &since).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_supervisor_keeps_no_history() {
    let mut server = Server::start().await;
    let before = server.memory();
    for _ in 0..100 {
        publish(&server, "x".repeat(60_000)).await;
    }
    let full = server.memory();
    assert!(full > before + 5_000_000, "{before}, then {full}");
    server.upgrade().await;
    let supervisor = server.started_pid();
    until("a supervisor without history", async || Server::memory_of(supervisor) < before + 2_000_000).await;
}

/// Publishes numbers in `orders` from 1 on, over one connection, one after the other as fast as they are answered, until
/// told to stop. The last number, with the id of each.
fn publish_fast(server: &Server) -> (watch::Sender<bool>, JoinHandle<Vec<String>>) {
    let (stop, stopped) = watch::channel(false);
    let address = server.address.to_string();
    let publishing = tokio::spawn(async move {
        let mut http = Http::to(&address).await;
        let mut ids = Vec::new();
        while !*stopped.borrow() {
            let body = json!({ "channel": "orders", "data": ids.len() + 1 }).to_string();
            let request = http.publication(&body);
            let answer = http.call(request).await;
            assert_eq!(answer.status, 200, "{answer:?}");
            ids.push(answer.json()["id"].as_str().unwrap().to_owned());
        }
        ids
    });
    (stop, publishing)
}

#[tokio::test(flavor = "multi_thread")]
async fn upgrades_under_publications_at_full_speed_lose_and_double_nothing() {
    let start = Start::default().env("HISTORY_SIZE", "1000000").env("MAX_QUEUE", "64MiB");
    let mut server = start.serve().await;
    let (mut connected, subscribed) = subscribe(&server, "").await;
    let since = subscribed["id"].as_str().unwrap().to_owned();
    // Large parts have to be sent while more is published.
    let large = json!({ "channel": "large", "data": "x".repeat(60_000) }).to_string();
    for _ in 0..100 {
        assert_eq!(server.publish(&large).await.status, 200);
    }
    let (stop, publishing) = publish_fast(&server);
    let (last, mut is_last) = watch::channel(usize::MAX);
    let reading = tokio::spawn(async move {
        let mut number = 0;
        while number < *is_last.borrow_and_update() {
            let publication = tokio::select! {
                publication = connected.next_of("notification") => publication,
                _ = is_last.changed() => continue,
            };
            number += 1;
            assert_eq!(publication["data"], number, "nothing lost, doubled or out of order");
        }
    });
    server.upgrade().await;
    // Comes back between two upgrades, while more is published.
    let (mut client, subscribed) = subscribe(&server, &since).await;
    assert_eq!(subscribed["recovered"], true);
    server.upgrade().await;
    stop.send_replace(true);
    let ids = soon("the publisher", publishing).await.unwrap();
    last.send_replace(ids.len());
    soon("all publications", reading).await.unwrap();
    let mut expected = since.clone();
    for (number, id) in (1..).zip(&ids) {
        expected = next_id(&expected);
        assert_eq!(*id, expected, "one epoch, and no gap");
        let publication = client.next_of("notification").await;
        assert_eq!((&publication["data"], &publication["id"]), (&json!(number), &json!(id)));
    }
    let numbers: Vec<_> = (1..=ids.len()).map(|number| json!(number)).collect();
    recovers(&server, &since, &numbers).await;
    let page = server.get("/api/channels/large/history?limit=1000").await.json();
    assert_eq!(page["publications"].as_array().map(Vec::len), Some(100), "{page}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_recovers_what_was_published_before_a_restart() {
    let (folder, file) = history_file();
    let mut server = with_file(&file).serve().await;
    let since = publish(&server, "known").await;
    let once = publish_with_key(&server, "a").await;
    let mut missed = vec![json!("once")];
    for restart in 0..2 {
        // Also of a process that has taken over.
        server.upgrade().await;
        publish(&server, restart).await;
        missed.push(json!(restart));
        assert!(!file.exists(), "a server that runs has no such file");
        stop(&mut server).await;
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o7777, 0o600);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing else is left");
        let written = &server.log_lines("the history was written")[0]["fields"];
        assert_eq!(written["bytes"], fs::metadata(&file).unwrap().len());
        assert_eq!(
            (&written["channels"], &written["publications"]),
            (&json!(1), &json!(missed.len() + 1)),
            "{written}"
        );

        server = with_file(&file).serve().await;
        let read = &server.log_lines("the history was read")[0]["fields"];
        for field in ["channels", "publications", "bytes", "path"] {
            assert_eq!(read[field], written[field], "{field}");
        }
        assert_eq!(publish_with_key(&server, "a").await, once, "it is not published again");
    }
    recovers(&server, &since, &missed).await;
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_without_a_history_file_begins_anew() {
    let mut server = Server::start().await;
    let since = publish(&server, 1).await;
    stop(&mut server).await;
    assert!(server.log_lines("the history").is_empty());
    let server = Server::start().await;
    does_not_recover(&server, &since).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_was_killed_begins_anew() {
    let (_folder, file) = history_file();
    let mut server = with_file(&file).serve().await;
    let first = publish(&server, 1).await;
    stop(&mut server).await;
    // The file is used up by this start.
    let server = with_file(&file).serve().await;
    let since = publish(&server, 2).await;
    assert_eq!(since, next_id(&first));
    server.kill().await;
    let server = with_file(&file).serve().await;
    does_not_recover(&server, &since).await;
    does_not_recover(&server, &first).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_ends_at_once_writes_no_history() {
    let (_folder, file) = history_file();
    let mut server = with_file(&file).serve().await;
    // It is not read, so its close is not answered.
    let _client = server.client().await;
    publish(&server, 1).await;
    for reaction in ["drain started", "second signal", "third signal"] {
        server.signal(Signal::TERM);
        server.logged(reaction).await;
    }
    assert_eq!(server.exit_code().await, 128 + 15);
    assert!(!file.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_history_that_is_too_old_is_not_recovered() {
    let (_folder, file) = history_file();
    let mut server = with_file(&file).serve().await;
    let since = publish(&server, 1).await;
    stop(&mut server).await;
    // Shorter than any restart takes.
    let server = with_file(&file).env("HISTORY_TTL", "0.001").serve().await;
    does_not_recover(&server, &since).await;
}

/// Starts a server with this file, which it must not use; the reason that it logs. The next shutdown writes again.
async fn refused(bytes: &[u8], since: &str) -> String {
    let (folder, file) = history_file();
    fs::write(&file, bytes).unwrap();
    let mut server = with_file(&file).env("HISTORY_BYTES", "1MiB").serve().await;
    let lines = server.log_lines("the history in ");
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert_eq!(lines[0]["level"], "WARN");
    let line = message(&lines[0]).to_owned();
    assert!(!file.exists());
    let unusable = folder.path().join("history.unusable");
    assert!(fs::read(&unusable).unwrap() == bytes, "it can be looked at");
    does_not_recover(&server, since).await;
    stop(&mut server).await;
    assert!(file.exists());
    line
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_torn_or_of_another_version_is_set_aside_with_the_reason() {
    let (whole, since) = written_file().await;
    for length in [12, 14, 40, whole.len() / 2, whole.len() - 20, whole.len() - 1] {
        let line = refused(&whole[..length], &since).await;
        assert!(line.contains(": it is not complete, or was changed; it is now /"), "{length}: {line}");
    }
    for changed in [20, whole.len() / 2, whole.len() - 1] {
        let mut bytes = whole.clone();
        bytes[changed] ^= 0x10;
        let line = refused(&bytes, &since).await;
        assert!(line.contains("it is not complete, or was changed"), "{changed}: {line}");
    }
    let mut other = whole.clone();
    other[11] = 7;
    let line = refused(&other, &since).await;
    assert!(line.contains("it has version 7 of the format, and this program reads version 1"), "{line}");
    for bytes in [&b""[..], b"#!/bin/sh", &whole[..4]] {
        let line = refused(bytes, &since).await;
        assert!(line.contains("it is not a history file"), "{line}");
    }
    // One that would not fit into memory; it has no data on the disk.
    let (_folder, file) = history_file();
    fs::File::create(&file).unwrap().set_len((2 << 20) + (64 << 20) + 1).unwrap();
    let server = with_file(&file).env("HISTORY_BYTES", "1MiB").serve().await;
    let line = server.logged("the history in ").await;
    assert!(message(&line).contains("and at most 69206016 are read"), "{line}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_there_at_an_upgrade_is_set_aside() {
    let (whole, _) = written_file().await;
    let (folder, file) = history_file();
    fs::write(&file, &whole).unwrap();
    let mut server = Start::default().file("config/lastcall.toml", "").serve().await;
    let since = publish(&server, "known").await;
    publish(&server, "missed").await;
    let settings = format!("history_file = {:?}", file.display().to_string());
    fs::write(server.dir.path().join("config/lastcall.toml"), settings).unwrap();
    server.upgrade().await;
    let line = server.logged("the history in ").await;
    assert!(message(&line).contains("it is older than what this server has"), "{line}");
    assert!(!file.exists());
    assert!(fs::read(folder.path().join("history.unusable")).unwrap() == whole);
    recovers(&server, &since, &[json!("missed")]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_cannot_be_removed_is_not_used() {
    if !rustix::process::getuid().is_root() {
        // Only root can make a file that another user may read and not remove, in a folder which that user may write.
        return;
    }
    let (whole, since) = written_file().await;
    let (folder, file) = history_file();
    fs::write(&file, &whole).unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o1777)).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
    chown(&file, Some(0), Some(0)).unwrap();
    let server = with_file(&file).user(12_345).serve().await;
    let line = server.logged("the history in ").await;
    assert!(message(&line).contains("it cannot be removed, and must not be read a second time"), "{line}");
    assert!(message(&line).ends_with("remove it before the next start"), "{line}");
    does_not_recover(&server, &since).await;
}
