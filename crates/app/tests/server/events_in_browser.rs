//! Server-sent events in a real browser: `EventSource` comes back by itself.

use serde_json::{Value, json};

use crate::{
    browser::open,
    support::{Driver, Server, Signal, Start, folder, own_address, soon, until},
};

/// Opens an `EventSource` that keeps what it gets.
const LISTEN: &str = "window.got = [];
    window.source = new EventSource('/events?channel=orders&channel=alerts');
    for (const type of ['subscribed', 'notification', 'reset', 'shutdown'])
        window.source.addEventListener(type, (event) => window.got.push([type, JSON.parse(event.data)]));";

/// Returns what came of this type.
async fn got(browser: &fantoccini::Client, kind: &str) -> Vec<Value> {
    let all = browser.execute("return window.got", vec![]).await.unwrap();
    let all = all.as_array().unwrap().iter().filter(|one| one[0] == kind);
    all.map(|one| one[1].clone()).collect()
}

async fn publish(server: &Server, channel: &str, data: u64) {
    let answer = server.publish(&json!({"channel": channel, "data": data}).to_string()).await;
    assert_eq!(answer.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_source_recovers_by_itself_over_a_restart() {
    let mut driver = Driver::start().await;
    let browser = driver.browser((800, 600)).await;
    let folder = folder();
    let host = own_address();
    let start = |file: &str| {
        Start::default()
            .env("HOST", host)
            .env("PORT", 8000)
            .env("SHUTDOWN_TIMEOUT", 1)
            .env("SHUTDOWN_SPREAD", 1)
            .env("HISTORY_FILE", folder.path().join(file).display())
    };
    let mut server = start("history").serve().await;
    open(&browser, &server).await;
    browser.execute(LISTEN, vec![]).await.unwrap();
    until("both subscriptions", async || got(&browser, "subscribed").await.len() == 2).await;
    publish(&server, "orders", 1).await;
    publish(&server, "alerts", 2).await;
    until("both publications", async || got(&browser, "notification").await.len() == 2).await;

    server.signal(Signal::TERM);
    assert_eq!(server.exit_code().await, 0);
    assert!(!got(&browser, "shutdown").await.is_empty());
    let mut server = start("history").serve().await;
    // At the latest now, before it is back: it waits for a second at least.
    publish(&server, "orders", 3).await;
    publish(&server, "alerts", 4).await;
    until("what it missed", async || got(&browser, "notification").await.len() == 4).await;
    publish(&server, "orders", 5).await;
    until("what is published then", async || got(&browser, "notification").await.len() == 5).await;
    let data = |channel: &str, all: &[Value]| {
        let of = all.iter().filter(|one| one["channel"] == channel);
        of.map(|one| one["data"].as_u64().unwrap()).collect::<Vec<_>>()
    };
    let all = got(&browser, "notification").await;
    assert_eq!((data("orders", &all), data("alerts", &all)), (vec![1, 3, 5], vec![2, 4]));
    assert_eq!(got(&browser, "subscribed").await[2]["recovered"], true);
    assert!(got(&browser, "reset").await.is_empty());

    // Without its history, the client is told in each channel.
    server.signal(Signal::TERM);
    assert_eq!(server.exit_code().await, 0);
    let mut server = start("another").serve().await;
    until("both resets", async || got(&browser, "reset").await.len() == 2).await;
    publish(&server, "alerts", 6).await;
    until("what is published after that", async || got(&browser, "notification").await.len() == 6).await;
    soon("the browser's end", browser.close()).await.unwrap();
    server.signal(Signal::TERM);
    assert_eq!(server.exit_code().await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_source_of_another_origin_gets_events_where_its_origin_is_listed() {
    let mut driver = Driver::start().await;
    let browser = driver.browser((800, 600)).await;
    let page = Server::start().await;
    let origin = page.url("");
    let listed = Start::default().env("ALLOWED_ORIGINS", &origin).serve().await;
    let any = Start::default().env("ALLOWED_ORIGINS", "*").serve().await;
    let other = Start::default().env("ALLOWED_ORIGINS", "https://app.example").serve().await;
    browser.goto(&page.url("/health/live")).await.unwrap();
    // An `EventSource` that may not have the response ends, and never comes back.
    let listen = "
        const [url, withCredentials, done] = arguments, source = new EventSource(url, { withCredentials });
        source.addEventListener('subscribed', (event) => { done(JSON.parse(event.data).channel); source.close(); });
        source.onerror = () => { if (source.readyState === EventSource.CLOSED) done('closed'); };";
    for (server, with_credentials, expected) in [
        (&listed, false, "a"),
        (&listed, true, "a"),
        (&any, false, "a"),
        (&any, true, "closed"),
        (&other, false, "closed"),
        (&other, true, "closed"),
    ] {
        let arguments = vec![json!(server.url("/events?channel=a")), json!(with_credentials)];
        let got = soon("an event, or the end", browser.execute_async(listen, arguments)).await.unwrap();
        assert_eq!(got, expected, "{} {with_credentials}", server.address);
    }
    // A client that is written in JavaScript asks beforehand, and can read why it was refused.
    let fetched = "
        const [url, credentials, done] = arguments, stop = new AbortController();
        const headers = { 'Last-Event-ID': '', 'Cache-Control': 'no-cache', Authorization: 'Bearer x' };
        fetch(url, { headers, credentials, signal: stop.signal }).then(async (answer) => {
            done(answer.ok ? 'ok' : (await answer.json()).error.code);
            stop.abort();
        }, () => done('kept from the page'));";
    for (server, query, credentials, expected) in [
        (&listed, "channel=a", "include", "ok"),
        (&listed, "channel=a", "omit", "ok"),
        (&listed, "channel[]=a", "include", "bad_channel"),
        (&any, "channel=a", "omit", "ok"),
        (&any, "channel=a", "include", "kept from the page"),
        (&any, "channel[]=a", "omit", "bad_channel"),
        (&other, "channel=a", "omit", "kept from the page"),
    ] {
        let arguments = vec![json!(server.url(&format!("/events?{query}"))), json!(credentials)];
        let got = soon("an answer", browser.execute_async(fetched, arguments)).await.unwrap();
        assert_eq!(got, expected, "{} {query} {credentials}", server.address);
    }
    soon("the browser's end", browser.close()).await.unwrap();
}
