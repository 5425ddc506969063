//! What the test page makes of messages: any JSON, long texts, texts that are too long, many at once.

use fantoccini::{Client, Locator};
use serde_json::{Value, json};

use crate::{
    browser::{click, console_has, open, pictures, record_texts, recorded, say, shown, text, until},
    support::{Driver, Server, Start, soon},
};

/// Returns what this JavaScript expression is in the page.
async fn value(browser: &Client, expression: &str) -> Value {
    browser.execute(&format!("return {expression}"), vec![]).await.unwrap()
}

#[tokio::test]
async fn the_page_shows_whatever_comes() {
    let mut driver = Driver::start().await;
    let browser = driver.browser((1280, 800)).await;
    let server = Start::default().env("NOTIFICATION_INTERVAL", "0").serve().await;
    open(&browser, &server).await;
    // JSON that is like the server's own is not taken for it; numbers and markup are shown as they were sent.
    let short = [
        r#"{"message":"shipped","clients":-3}"#,
        r#"{"sequence":7,"text":"mine"}"#,
        r#"{"sequence":8,"clients":5,"message":{"a":1}}"#,
        r#"{"sequence":9,"clients":5,"message":"mine"}"#,
        r#"{"data":{"data":1},"source":"server"}"#,
        r#"[9007199254740993,1.50,-0]"#,
        "null",
        "17",
        "false",
        "[]",
        r#"{"__proto__":1}"#,
    ];
    for data in short {
        server.publish(&format!(r#"{{"data":{data}}}"#)).await;
        until(&browser, &format!("document.querySelector('li .text')?.textContent === {}", json!(data)))
            .await;
        assert_eq!(
            value(&browser, "document.querySelector('li .text').classList.contains('json')").await,
            true
        );
    }
    assert_eq!(text(&browser, "#clients").await, "1 client");
    let data = r#"{"a":{"b":[1,"two"]},"c":"long enough to have more than a line, to be read"}"#;
    server.publish(&format!(r#"{{"data":{data}}}"#)).await;
    until(&browser, &shown("\"b\": [\n      1,\n      \"two\"\n    ]")).await;
    for markup in ["<img src=x onerror=alert(1)>", "<script>alert(1)</script>"] {
        server.publish(&json!({"data": markup}).to_string()).await;
        until(&browser, &shown(markup)).await;
    }
    assert_eq!(value(&browser, "document.querySelectorAll('li img, li script').length").await, 0);
    server.publish(r#"{"data":" "}"#).await;
    until(&browser, "document.querySelector('li .text').textContent === '(empty text)'").await;
    console_has(&browser, &["two"]).await;
    // An echo server sends back anything; nothing of it may trip the page.
    let echo = Start::default().env("CLIENT_MESSAGES", "echo").serve().await;
    open(&browser, &echo).await;
    let odd = [
        ("null", "null"),
        ("5", "5"),
        ("{", "{"),
        (r#"{"type":"message","time":"yesterday","data":"late"}"#, "late"),
        (r#"{"type":"notification","source":"server"}"#, r#""source":"server""#),
        (r#"{"type":"notification","source":"server","data":{"message":"odd","clients":"x"}}"#, "odd"),
        (r#"{"type":"shutdown"}"#, "Closing in 0 s"),
    ];
    for (odd, _) in odd {
        say(&browser, odd).await;
    }
    for (_, part) in odd {
        until(&browser, &shown(part)).await;
    }
    console_has(&browser, &["yesterday"]).await;
    soon("the browser's end", browser.close()).await.unwrap();
}

#[tokio::test]
async fn the_page_folds_long_texts() {
    let mut driver = Driver::start().await;
    let browser = driver.browser((1280, 800)).await;
    let server = Start::default().env("NOTIFICATION_INTERVAL", "0").serve().await;
    open(&browser, &server).await;
    let emoji = format!("{}{}", "x".repeat(599), "🙂".repeat(1000));
    let shown = "document.querySelector('li .text').textContent";
    for long in [&"x".repeat(60_000), &"line\n".repeat(300), &emoji] {
        server.publish(&json!({"data": long}).to_string()).await;
        until(&browser, "document.querySelector('li .more')?.textContent.startsWith('Show all')").await;
        let folded = value(&browser, shown).await;
        let start = folded.as_str().unwrap().strip_suffix(" …").expect("something is left out");
        assert!(long.starts_with(start) && start.len() <= 600 && start.lines().count() <= 12, "{start:?}");
        assert_eq!(value(&browser, "document.querySelector('li').offsetHeight < 400").await, true);
        click(&browser, "li .more").await;
        assert_eq!(value(&browser, shown).await, **long);
        click(&browser, "li .more").await;
        assert_eq!(value(&browser, shown).await, folded);
        browser.execute("document.querySelector('#messages').replaceChildren()", vec![]).await.unwrap();
    }
    soon("the browser's end", browser.close()).await.unwrap();
}

#[tokio::test]
async fn the_page_keeps_a_text_that_is_too_long_and_says_what_the_limit_is() {
    let mut driver = Driver::start().await;
    let mut server =
        Start::default().own_address().file("config/lastcall.toml", "max_message_size = 100\n").serve().await;
    let browser = driver.browser((1280, 800)).await;
    open(&browser, &server).await;
    // 51 characters, 102 bytes.
    let long = "é".repeat(51);
    say(&browser, &long).await;
    assert_eq!(text(&browser, "#limit").await, "This text has 102 bytes; the server takes 100 at most.");
    assert_eq!(value(&browser, "document.querySelector('#text').value").await, long);
    pictures(&browser, "desktop-too-long").await;
    // One character less fits.
    say(&browser, "\u{E003}").await;
    until(&browser, &shown(&"é".repeat(50))).await;
    assert_eq!(text(&browser, "#limit").await, "");

    // The limit has changed since the page was loaded: the server closes, and the text is not lost.
    std::fs::write(server.dir.path().join("config/lastcall.toml"), "max_message_size = 50\n").unwrap();
    server.upgrade().await;
    let text_is = |text: &str| format!("document.querySelector('#text').value === '{text}'");
    say(&browser, &"x".repeat(60)).await;
    until(&browser, "document.body.dataset.state === 'refused'").await;
    let words = "Closed: message too big. This page does not reconnect by itself.";
    assert_eq!(text(&browser, "#state").await, words);
    until(&browser, &text_is(&"x".repeat(60))).await;
    pictures(&browser, "desktop-refused").await;
    click(&browser, "#reconnect").await;
    until(&browser, "document.body.dataset.state === 'open'").await;
    // A server that vanishes: the page keeps trying, ever more slowly.
    record_texts(&browser, "#state").await;
    drop(server);
    until(&browser, &recorded("connection lost")).await;
    until(&browser, &recorded("cannot be reached")).await;
    until(&browser, "parseInt(document.querySelector('#wait').textContent.slice(3)) >= 2").await;
    soon("the browser's end", browser.close()).await.unwrap();
}

#[tokio::test]
async fn a_screen_reader_is_given_few_of_many_messages_and_none_when_muted() {
    let mut driver = Driver::start().await;
    let browser = driver.browser((1280, 800)).await;
    let server = Server::start().await;
    open(&browser, &server).await;
    // What a live region says, each time.
    let note = "window.said = []; new MutationObserver(() => {
            const words = document.querySelector('#announced').textContent;
            if (words !== '') said.push(words);
        }).observe(document.querySelector('#announced'), { childList: true });";
    browser.execute(note, vec![]).await.unwrap();
    for number in 0..200 {
        server.publish(&format!(r#"{{"data":"number {number}"}}"#)).await;
    }
    until(&browser, &shown("number 199")).await;
    // A page does not change for what is only said.
    let all = "(document.title, said.at(-1)?.endsWith('number 199'))";
    browser
        .execute("setInterval(() => { document.body.dataset.tick = said.length; }, 100)", vec![])
        .await
        .unwrap();
    until(&browser, all).await;
    let said = value(&browser, "said").await;
    let said = said.as_array().unwrap();
    assert_eq!(said[0], "notification: number 0");
    let seconds = value(&browser, "performance.now() / 1000").await.as_f64().unwrap();
    assert!(said.len() <= 2 + (seconds / 5.0) as usize, "{said:?} in {seconds} s");
    let live =
        "document.querySelector('#messages').closest('[aria-live], [role=log], [role=status]') === null";
    assert_eq!(value(&browser, live).await, true);
    assert_eq!(value(&browser, "document.querySelector('#messages').getAttribute('role')").await, "list");

    click(&browser, "#announce").await;
    browser.execute("window.before = said.length", vec![]).await.unwrap();
    server.publish(r#"{"data":"silent"}"#).await;
    until(&browser, &shown("silent")).await;
    assert_eq!(value(&browser, "unannounced === 0 && said.length === before").await, true);
    // A label is as good as its box, and a keyboard reaches it.
    let names = "document.querySelector('#announce').labels[0].textContent.trim()";
    assert_eq!(value(&browser, names).await, "Announce to screen readers");
    browser.find(Locator::Css("#announce")).await.unwrap().send_keys(" ").await.unwrap();
    assert_eq!(value(&browser, "document.querySelector('#announce').checked").await, true);
    soon("the browser's end", browser.close()).await.unwrap();
}
