//! The test page in a real browser: headless Chromium, driven over WebDriver (W3C).
//!
//! Screenshots go to `target/screenshots`, or, if another user has built the tests, to
//! `/tmp/lastcall-screenshots`.

use std::{fs, path::PathBuf};

use fantoccini::{Client, Locator, wd::TimeoutConfiguration};
use serde_json::json;

use crate::support::{
    Chromium, Driver, STEP_TIMEOUT, Server, Signal, Start, folder_for_programs, install_script, soon,
};

/// Returns what the console has got since it was last asked: the level and the message of each line.
async fn console(browser: &Client) -> Vec<(String, String)> {
    let command = Chromium { path: "se/log", body: json!({"type": "browser"}) };
    let entries = browser.issue_cmd(command).await.unwrap();
    let text = |entry: &serde_json::Value, key: &str| entry[key].as_str().unwrap().to_owned();
    entries.as_array().unwrap().iter().map(|entry| (text(entry, "level"), text(entry, "message"))).collect()
}

/// Asserts that the console has all of `wanted`, and no error.
pub(super) async fn console_has(browser: &Client, wanted: &[&str]) {
    let lines = console(browser).await;
    assert!(lines.iter().all(|(level, _)| level != "SEVERE"), "{lines:?}");
    for wanted in wanted {
        assert!(lines.iter().any(|(_, line)| line.contains(wanted)), "no {wanted}: {lines:?}");
    }
}

/// Waits, in the page and on its changes, until this JavaScript expression is true.
pub(super) async fn until(browser: &Client, condition: &str) {
    let script = format!(
        "const done = arguments[0], ok = () => {{ if ({condition}) {{ seen.disconnect(); done(true); }} }};
         const seen = new MutationObserver(ok);
         seen.observe(document, {{ subtree: true, childList: true, attributes: true, characterData: true }});
         ok();"
    );
    if let Err(error) = soon(condition, browser.execute_async(&script, vec![])).await {
        let page = browser.execute("return document.body.innerText", vec![]).await;
        pictures(browser, "failed").await;
        panic!("{condition}: {error}; the page says {page:?}");
    }
}

/// Has the page keep each text that this element gets from now on: one that is soon replaced is not missed.
pub(super) async fn record_texts(browser: &Client, selector: &str) {
    let script = "const element = document.querySelector(arguments[0]);
         window.recordedTexts = [];
         new MutationObserver(() => window.recordedTexts.push(element.textContent))
             .observe(element, { subtree: true, childList: true, characterData: true });";
    browser.execute(script, vec![json!(selector)]).await.unwrap();
}

/// Returns an expression: whether a recorded text contains this one.
pub(super) fn recorded(text: &str) -> String {
    format!("window.recordedTexts.some((one) => one.includes({text:?}))")
}

pub(super) async fn text(browser: &Client, selector: &str) -> String {
    browser.find(Locator::Css(selector)).await.unwrap().text().await.unwrap()
}

pub(super) async fn click(browser: &Client, selector: &str) {
    browser.find(Locator::Css(selector)).await.unwrap().click().await.unwrap();
}

pub(super) async fn say(browser: &Client, text: &str) {
    let input = browser.find(Locator::Css("#text")).await.unwrap();
    input.send_keys(&format!("{text}\u{E007}")).await.unwrap();
}

/// Returns an expression: whether a message of this text is on the page.
pub(super) fn shown(text: &str) -> String {
    format!(
        "[...document.querySelectorAll('#messages .text')].some((one) => one.textContent.includes({text:?}))"
    )
}

pub(super) async fn open(browser: &Client, server: &Server) {
    open_url(browser, &server.url("/")).await;
}

/// Opens the page at this URL, and waits until it is connected.
pub(super) async fn open_url(browser: &Client, url: &str) {
    let timeouts = TimeoutConfiguration::new(Some(STEP_TIMEOUT / 2), Some(STEP_TIMEOUT), None);
    browser.update_timeouts(timeouts).await.unwrap();
    browser.goto(url).await.unwrap();
    until(browser, "document.body.dataset.state === 'open'").await;
}

/// Takes a picture in daylight and one at night.
pub(super) async fn pictures(browser: &Client, name: &str) {
    let mut folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("../screenshots");
    if fs::create_dir_all(&folder).and_then(|()| tempfile::tempfile_in(&folder)).is_err() {
        folder = std::env::temp_dir().join("lastcall-screenshots");
        fs::create_dir_all(&folder).unwrap();
    }
    for theme in ["dark", "light"] {
        let features = json!([
            {"name": "prefers-color-scheme", "value": theme},
            // Or a picture has messages that are still fading in.
            {"name": "prefers-reduced-motion", "value": "reduce"},
        ]);
        let body = json!({"cmd": "Emulation.setEmulatedMedia", "params": {"features": features}});
        browser.issue_cmd(Chromium { path: "goog/cdp/execute", body }).await.unwrap();
        let picture = browser.screenshot().await.unwrap();
        fs::write(folder.join(format!("{name}-{theme}.png")), picture).unwrap();
    }
}

/// Makes the page smaller than a desktop's window can be.
pub(super) async fn resize(browser: &Client, width: u32, height: u32) {
    let params = json!({"width": width, "height": height, "deviceScaleFactor": 2, "mobile": true});
    let body = json!({"cmd": "Emulation.setDeviceMetricsOverride", "params": params});
    browser.issue_cmd(Chromium { path: "goog/cdp/execute", body }).await.unwrap();
}

/// Returns seconds that words such as "4 min 58 s" say.
fn seconds(words: &str) -> u64 {
    let words = words.trim_start_matches("in ").trim_end_matches(" …");
    humantime::parse_duration(words).unwrap_or_else(|_| panic!("a time, not {words:?}")).as_secs()
}

/// An expression: whether the page is not wider than its window.
pub(super) const FITS: &str = "document.documentElement.scrollWidth <= window.innerWidth";

/// Two tabs on the page of this server: one as wide as a desktop's, one as a phone's.
async fn two_tabs(driver: &mut Driver, server: &Server) -> (Client, Client) {
    let desktop = driver.browser((1280, 800)).await;
    let phone = driver.browser((500, 740)).await;
    resize(&phone, 360, 740).await;
    open(&desktop, server).await;
    open(&phone, server).await;
    until(&desktop, "document.querySelector('#clients').textContent === '2 clients'").await;
    (desktop, phone)
}

#[tokio::test]
async fn all_tabs_show_what_one_sends_and_what_is_published() {
    let mut driver = Driver::start().await;
    // So that the number of clients is up to date soon.
    let server = Start::default().env("NOTIFICATION_INTERVAL", "1").serve().await;
    let (desktop, phone) = two_tabs(&mut driver, &server).await;
    click(&desktop, "#hello").await;
    for browser in [&desktop, &phone] {
        until(browser, &shown("Hello")).await;
        console_has(browser, &[r#"\"type\":\"welcome\""#, r#"\"data\":\"Hello\""#]).await;
    }
    until(&desktop, "document.querySelector('li[data-mine] .who')?.textContent === 'you'").await;
    until(&phone, "!document.querySelector('li[data-mine]')").await;
    say(&phone, "Grüße from the <phone>").await;
    until(&desktop, &shown("Grüße from the <phone>")).await;
    server.publish(r#"{"data": {"order": 1042, "state": "shipped"}}"#).await;
    until(&desktop, &shown(r#"{"order":1042,"state":"shipped"}"#)).await;
    until(&phone, &shown("1042")).await;
    let newest_first = "(() => {
        const texts = [...document.querySelectorAll('#messages .text')].map((text) => text.textContent);
        const [order, words, hello] = ['1042', 'Grüße', 'Hello'].map((part) => texts.findIndex((text) => text.includes(part)));
        return 0 <= order && order < words && words < hello;
    })()";
    until(&desktop, newest_first).await;
    until(&phone, FITS).await;
    pictures(&desktop, "desktop").await;
    pictures(&phone, "phone").await;
    for browser in [desktop, phone] {
        soon("the browser's end", browser.close()).await.unwrap();
    }
}

#[tokio::test]
async fn a_drain_shows_a_countdown_while_everything_works_and_ends_with_the_last_tab() {
    let mut driver = Driver::start().await;
    let mut server =
        Start::default().env("SHUTDOWN_TIMEOUT", "300").env("NOTIFICATION_INTERVAL", "1").serve().await;
    let (desktop, phone) = two_tabs(&mut driver, &server).await;
    // A page with a draft stays.
    desktop.find(Locator::Css("#text")).await.unwrap().send_keys("On my way").await.unwrap();
    server.signal(Signal::TERM);
    for browser in [&desktop, &phone] {
        until(browser, "!document.querySelector('#banner').hidden").await;
        assert!(text(browser, "#reason").await.contains("service restart"));
    }
    let before = text(&desktop, "#countdown").await;
    until(&desktop, &format!("document.querySelector('#countdown').textContent !== {before:?}")).await;
    let (before, after) = (seconds(&before), seconds(&text(&desktop, "#countdown").await));
    assert!(before <= 300 && after < before && after > 100, "{before}, then {after}");
    // The notice is repeated each second, but listed once.
    let told =
        "performance.now() - noticedAt > 2000 && document.querySelectorAll('li[data-type=shutdown]').length";
    until(&desktop, told).await;
    let rows = desktop.execute(&format!("return {told}"), vec![]).await.unwrap();
    assert_eq!(rows, 1);
    say(&phone, "still served").await;
    until(&desktop, &shown("still served")).await;
    until(&phone, FITS).await;
    pictures(&desktop, "desktop-last-call").await;
    pictures(&phone, "phone-last-call").await;

    phone.close().await.unwrap();
    server.logged("drain progress: 1 of 2 gone").await;
    desktop.goto("about:blank").await.unwrap();
    assert_eq!(server.exit_code().await, 0);
    console_has(&desktop, &[]).await;
    soon("the browser's end", desktop.close()).await.unwrap();
}

#[tokio::test]
async fn a_tab_that_was_closed_comes_back_when_the_last_notice_said() {
    let mut driver = Driver::start().await;
    let desktop = driver.browser((1280, 800)).await;
    // The notice says 6 to 9 s; a page that takes its own first delay comes in 1 s at most.
    let mut server = Start::default().own_address().env("SHUTDOWN_SPREAD", "3").serve().await;
    let (host, port) = (server.address.ip(), server.address.port());
    open(&desktop, &server).await;
    server.signal(Signal::TERM);
    until(&desktop, "!document.querySelector('#banner').hidden").await;
    // The page notes what it says first: a later query may be too late.
    let waiting = "document.body.dataset.state === 'waiting' && document.querySelector('#state').textContent.includes('service restart')";
    let note = format!(
        "new MutationObserver(() => {{ if ({waiting}) window.firstWait ??= document.querySelector('#wait').textContent; }})
            .observe(document, {{ subtree: true, childList: true, attributes: true, characterData: true }});"
    );
    desktop.execute(&note, vec![]).await.unwrap();
    server.signal(Signal::TERM);
    let (code, ()) = tokio::join!(server.exit_code(), until(&desktop, "window.firstWait"));
    assert_eq!(code, 0);
    let notice =
        console(&desktop).await.into_iter().map(|(_, line)| line).rfind(|line| line.contains("after_ms"));
    let notice = notice.expect("a notice on the console");
    let after = notice.split("after_ms\\\":").nth(1).and_then(|rest| rest.split('}').next()).unwrap();
    let after: u64 = after.parse().unwrap();
    let wait = desktop.execute("return window.firstWait", vec![]).await.unwrap();
    let wait = seconds(wait.as_str().unwrap());
    // Rounded up, and some of it may have passed.
    assert!((after / 1000..=after.div_ceil(1000)).contains(&wait), "{wait} s of {after} ms");
    let banner_is_hidden = "return document.querySelector('#banner').hidden";
    assert_eq!(
        desktop.execute(banner_is_hidden, vec![]).await.unwrap(),
        true,
        "there is nothing to count down to any more"
    );
    pictures(&desktop, "desktop-waiting").await;
    let server = Start::default().env("HOST", host).env("PORT", port).serve().await;
    until(&desktop, "document.body.dataset.state === 'open'").await;
    click(&desktop, "#hello").await;
    until(&desktop, &shown("Hello")).await;
    server.signal(Signal::INT);
    until(&desktop, "!document.querySelector('#banner').hidden").await;

    soon("the browser's end", desktop.close()).await.unwrap();
}

#[tokio::test]
async fn a_driver_that_finds_its_port_taken_is_started_again() {
    let folder = folder_for_programs();
    let program = folder.path().join("driver");
    let started = folder.path().join("started");
    // Chromedriver exits with 1 when the port that the system chose for IPv4 is another program's for IPv6.
    install_script(
        &program,
        &format!(
            "echo once >>'{0}'
             [ $(wc -l <'{0}') = 3 ] || {{ echo 'bind() failed: Address already in use (98)'; exit 1; }}
             echo 'ChromeDriver was started successfully on port 4711.'
             exec sleep 60",
            started.display()
        ),
    );
    let driver = Driver::of(&program).await;
    assert_eq!(driver.url(), "http://127.0.0.1:4711");
    assert_eq!(fs::read_to_string(&started).unwrap().lines().count(), 3);
}
