//! What a real browser makes of the rules for web pages.

use fantoccini::Client;
use serde_json::json;

use crate::{
    browser::{open, shown, until},
    support::{Driver, PrefixProxy, Server, Start, soon},
};

/// Publishes from the page that the browser shows: the answer, or that the browser kept it from the page.
async fn publish(browser: &Client, server: &Server, authorization: &str) -> String {
    let script = "
        const [url, Authorization, done] = arguments;
        const headers = { 'Content-Type': 'application/json', ...(Authorization && { Authorization }) };
        fetch(url, { method: 'POST', headers, body: '{\"data\":\"from a page\"}' })
            .then((answer) => answer.text()).then(done, (error) => done(String(error)));";
    let arguments = vec![json!(server.url("/api/publish")), json!(authorization)];
    let answer = soon("an answer", browser.execute_async(script, arguments)).await.unwrap();
    answer.as_str().unwrap().to_owned()
}

/// Connects from the page: whether it comes about.
async fn connects(browser: &Client, url: &str, protocols: &[&str]) -> bool {
    let script = "
        const [url, protocols, done] = arguments, socket = new WebSocket(url, protocols);
        socket.onopen = () => { done(true); socket.close(); };
        socket.onerror = () => done(false);";
    let answer = browser.execute_async(script, vec![json!(url), json!(protocols)]);
    soon("a WebSocket, or none", answer).await.unwrap() == true
}

#[tokio::test]
async fn a_page_of_a_listed_origin_publishes_and_another_does_not() {
    let mut driver = Driver::start().await;
    let browser = driver.browser((800, 600)).await;
    let page = Server::start().await;
    let origin = page.url("");
    let listed = Start::default()
        .env("ALLOWED_ORIGINS", &origin)
        .env("API_KEYS", "0123456789abcdef")
        .env("NOTIFICATION_INTERVAL", "0")
        .serve()
        .await;
    let mut client = listed.client().await;
    // Not the page of the server, which connects to no other.
    browser.goto(&page.url("/health/live")).await.unwrap();
    let answer = publish(&browser, &listed, "Bearer 0123456789abcdef").await;
    let answer: serde_json::Value = serde_json::from_str(&answer).unwrap();
    let notification = client.next().await;
    assert_eq!(answer, json!({"clients": 1, "id": notification["id"]}));
    assert_eq!(notification["data"], "from a page");
    let refused = publish(&browser, &listed, "Bearer 0000000000000000").await;
    assert!(refused.contains("unauthorized"), "the page can read why: {refused}");
    assert!(connects(&browser, &listed.ws_url(), &[]).await);

    let other = Start::default().env("ALLOWED_ORIGINS", "https://app.example").serve().await;
    let default = Server::start().await;
    for server in [&other, &default] {
        let answer = publish(&browser, server, "").await;
        assert!(answer.contains("TypeError"), "the browser keeps the answer from the page: {answer}");
        assert!(!connects(&browser, &server.ws_url(), &[]).await);
    }
    soon("the browser's end", browser.close()).await.unwrap();
}

#[tokio::test]
async fn a_page_whose_name_was_pointed_to_this_machine_is_refused() {
    let mut driver = Driver::start().await;
    let browser = driver.browser((800, 600)).await;
    let server = Server::start().await;
    let port = server.address.port();
    for (host, own) in [("evil.example", false), ("localhost", true), ("app.localhost", true)] {
        browser.goto(&format!("http://{host}:{port}/health/live")).await.unwrap();
        let socket = format!("ws://{host}:{port}/ws");
        assert_eq!(connects(&browser, &socket, &[]).await, own, "{host}");
        // The page is at the server's own origin for the browser.
        let script = "
            const done = arguments[0], headers = { 'Content-Type': 'application/json' };
            fetch('/api/publish', { method: 'POST', headers, body: '{\"data\":1}' })
                .then((answer) => done(answer.status));";
        let status = soon("an answer", browser.execute_async(script, vec![])).await.unwrap();
        assert_eq!(status, json!(if own { 200 } else { 403 }), "{host}");
        // As a proxy would set them: a page may do that, too.
        let script = "
            const done = arguments[0], stop = new AbortController();
            const headers = { 'X-Forwarded-For': '192.0.2.7', 'X-Real-IP': '192.0.2.7', 'Forwarded': 'for=_a' };
            fetch('/events?channel=a', { headers, signal: stop.signal })
                .then((answer) => { done(answer.status); stop.abort(); });";
        let status = soon("an answer", browser.execute_async(script, vec![])).await.unwrap();
        assert_eq!(status, json!(if own { 200 } else { 403 }), "{host}");
    }
    soon("the browser's end", browser.close()).await.unwrap();
}

#[tokio::test]
async fn a_browser_ends_a_connection_whose_subprotocol_was_not_chosen() {
    let mut driver = Driver::start().await;
    let browser = driver.browser((800, 600)).await;
    let server = Server::start().await;
    browser.goto(&server.url("/health/live")).await.unwrap();
    assert!(connects(&browser, &server.ws_url(), &[]).await);
    assert!(!connects(&browser, &server.ws_url(), &["chat"]).await);
    soon("the browser's end", browser.close()).await.unwrap();
}

#[tokio::test]
async fn the_page_works_under_a_prefix() {
    let mut driver = Driver::start().await;
    let browser = driver.browser((800, 600)).await;
    let server = Start::default().env("NOTIFICATION_INTERVAL", "0").serve().await;
    let proxy = PrefixProxy::start(server.address).await;
    browser.goto(&format!("http://{}/live/?from=a%20link#top", proxy.address)).await.unwrap();
    until(&browser, "document.body.dataset.state === 'open'").await;
    until(&browser, "document.querySelector('#clients').textContent === '1 client'").await;
    server.publish(r#"{"data": "under a prefix"}"#).await;
    until(&browser, &shown("under a prefix")).await;
    soon("the browser's end", browser.close()).await.unwrap();
}

#[tokio::test]
async fn the_pages_policy_lets_it_work_and_keeps_it_out_of_frames() {
    let mut driver = Driver::start().await;
    let browser = driver.browser((800, 600)).await;
    let server = Start::default().env("NOTIFICATION_INTERVAL", "0").serve().await;
    open(&browser, &server).await;
    let refused = "
        const done = arguments[0], script = document.createElement('script');
        window.ran = false;
        script.textContent = 'window.ran = true';
        document.addEventListener('securitypolicyviolation',
            (event) => done([event.effectiveDirective, window.ran]));
        document.body.append(script);";
    let refused = soon("a violation", browser.execute_async(refused, vec![])).await.unwrap();
    assert_eq!(refused, json!(["script-src-elem", false]), "a script that is not the page's own");
    // In a frame of a page of its own origin, too.
    browser.goto(&server.url("/health/live")).await.unwrap();
    let framed = "
        const [url, done] = arguments, frame = document.createElement('iframe');
        frame.src = url;
        frame.onload = () => done(frame.contentDocument === null);
        document.body.append(frame);";
    let framed = soon("a frame", browser.execute_async(framed, vec![json!(server.url("/"))])).await.unwrap();
    assert_eq!(framed, json!(true), "the browser shows an error of its own there");
    soon("the browser's end", browser.close()).await.unwrap();
}
