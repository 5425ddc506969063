//! The time of day is set, forwards and backwards, and the clock of the machine begins anew: what is measured
//! is the time that has passed.

use std::{fs, time::Instant};

use serde_json::json;

use crate::{
    history::{does_not_recover, publish, publish_with_key, recovers, stop},
    listen::may,
    support::{EventStream, Server, Start, WallClock, folder, message, until},
};

const HOUR: i64 = 60 * 60;

/// The last second of the year 9999.
const END_OF_9999: i64 = 253_402_300_799;

/// Publications that are kept of `orders`.
async fn kept(server: &Server) -> u64 {
    let answer = server.get("/api/channels/orders").await;
    if answer.status == 404 { 0 } else { answer.json()["history"].as_u64().unwrap() }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_is_set_forwards_forgets_neither_keys_nor_history() {
    let clock = WallClock::right();
    let mut server = clock.of(Start::default()).serve().await;
    let since = publish(&server, "known").await;
    let once = publish_with_key(&server, "a").await;
    for (hours, upgrades) in [(1, false), (24 * 400, true), (-24 * 400, true)] {
        clock.shift(hours * HOUR);
        if upgrades {
            server.upgrade().await;
        }
        assert_eq!(publish_with_key(&server, "a").await, once, "{hours} hours later");
        assert_eq!(kept(&server).await, 2, "{hours} hours later");
    }
    recovers(&server, &since, &[json!("once")]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_and_the_process_are_as_old_as_they_are() {
    let clock = WallClock::right();
    for upgrades in [false, true] {
        clock.shift(0);
        let mut server = clock.of(Start::default().env("LOG_LEVEL", "debug")).serve().await;
        let client = server.client().await;
        clock.shift(24 * HOUR);
        if upgrades {
            server.upgrade().await;
        }
        let uptime = server.get("/health/ready").await.json()["uptime_seconds"].as_f64().unwrap();
        assert!(uptime < 10_000.0, "{uptime}");
        client.leave().await;
        let ended = server.logged("connection ended").await;
        let age = ended["fields"]["age_seconds"].as_u64().unwrap();
        assert!(age < 10_000, "{ended}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_too_old_goes_although_the_clock_was_set_back() {
    let clock = WallClock::right();
    let start = Start::default().env("HISTORY_TTL", "0.5").env("HISTORY_BYTES", "1MiB");
    let server = clock.of(start).serve().await;
    publish(&server, 1).await;
    clock.shift(-24 * HOUR);
    let since = publish(&server, 2).await;
    until("both to expire", async || kept(&server).await == 0).await;
    does_not_recover(&server, &since).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_a_full_history_the_oldest_goes_first_although_the_clock_was_set_back() {
    let clock = WallClock::right();
    let start = Start::default().env("HISTORY_SIZE", "1000").env("HISTORY_BYTES", "1MiB");
    let server = clock.of(start).serve().await;
    for _ in 0..30 {
        let old = json!({ "channel": "old", "data": "x".repeat(30_000) });
        assert_eq!(server.publish(&old.to_string()).await.status, 200);
    }
    clock.shift(-24 * HOUR);
    for _ in 0..20 {
        publish(&server, "x".repeat(30_000)).await;
    }
    assert_eq!(kept(&server).await, 20, "they are the newest");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_time_of_day_makes_anything_panic() {
    // Linux sets its clock to no time before these, nor after them, and hyper has no date for one.
    for moment in [0, END_OF_9999 - 30 * HOUR, END_OF_9999 - HOUR] {
        let clock = WallClock::right();
        let logs = folder();
        let mut server = {
            clock.set(moment);
            clock.of(Start::default().env("LOG_DIR", logs.path().display())).serve().await
        };
        for moment in [moment, 1, END_OF_9999 - HOUR, 0, moment] {
            clock.set(moment);
            let answer = server.get("/health/ready").await;
            assert_eq!(answer.status, 200, "at {moment}");
            assert!(answer.header("date").is_some_and(|date| date.ends_with(" GMT")), "{answer:?}");
            assert_eq!(server.get("/metrics").await.status, 200, "at {moment}");
            let mut client = server.client().await;
            let mut stream = EventStream::open(&server.address.to_string(), "/events", &[]).await;
            stream.next_of("welcome").await;
            let since = publish(&server, moment).await;
            client.say("hello").await;
            assert_eq!(client.next_of("message").await["data"], "hello", "at {moment}");
            client.leave().await;
            assert!(server.get(&format!("/api/channels/orders/history?since={since}")).await.status == 200);
        }
        server.upgrade().await;
        let mut client = server.client().await;
        server.signal(crate::support::Signal::TERM);
        client.next_of("shutdown").await;
        client.leave().await;
        assert_eq!(server.exit_code().await, 0, "at {moment}");
        let panics = server.log_lines("a part of the server panicked");
        assert!(panics.is_empty(), "at {moment}: {panics:?}");
        // The log files, too, have been written to the end.
        let files = fs::read_dir(logs.path()).unwrap();
        let text: String = files.map(|file| fs::read_to_string(file.unwrap().path()).unwrap()).collect();
        assert!(text.contains("\"stopped\"") && !text.contains("panicked"), "at {moment}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_history_file_is_as_old_as_it_was_and_the_time_between_by_the_time_of_day() {
    // (how the clock is set between the stop and the start, whether the history is there then)
    for (shift, is_there) in [(0, true), (-24 * HOUR, true), (HOUR, false)] {
        let folder = folder();
        let file = folder.path().join("history");
        let clock = WallClock::right();
        let start = || clock.of(Start::default().env("HISTORY_FILE", file.display()));
        let mut server = start().serve().await;
        let since = publish(&server, "known").await;
        publish(&server, "missed").await;
        stop(&mut server).await;
        clock.shift(shift);
        let server = start().serve().await;
        if is_there {
            recovers(&server, &since, &[json!("missed")]).await;
        } else {
            does_not_recover(&server, &since).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_history_file_outlives_the_clock_of_the_machine() {
    let in_time = |offset: &str| ["--time", "--boottime", offset].map(str::to_owned);
    for (before, after) in [("9000000", None), ("100", Some("9000000")), ("9000000", Some("100"))] {
        let folder = folder();
        let file = folder.path().join("history");
        let start = |offset: Option<&str>| {
            let start = Start::default().env("HISTORY_FILE", file.display()).env("HISTORY_TTL", "600");
            match offset {
                Some(offset) => {
                    let kinds = in_time(offset);
                    start.in_namespaces(&kinds.each_ref().map(String::as_str), "true")
                }
                None => start,
            }
        };
        if !may(&in_time(before).each_ref().map(String::as_str), "true") {
            // The broker's own tests import parts of another clock.
            return;
        }
        let mut server = start(Some(before)).serve().await;
        let began = Instant::now();
        let since = publish(&server, "known").await;
        let once = publish_with_key(&server, "a").await;
        stop(&mut server).await;
        let server = start(after).serve().await;
        if began.elapsed().as_secs() > 200 {
            eprintln!("not tested: the machine was too slow");
            continue;
        }
        assert_eq!(publish_with_key(&server, "a").await, once, "{before} s, then {after:?}");
        recovers(&server, &since, &[json!("once")]).await;
        let lines = server.log_lines("the history was read");
        assert_eq!(lines.len(), 1, "{}", lines.first().map(message).unwrap_or_default());
    }
}
