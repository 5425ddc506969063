//! The test page in a real browser: headless Chromium, driven over WebDriver (W3C).
//!
//! Screenshots go to `target/screenshots`.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use fantoccini::{
    Client, ClientBuilder, Locator,
    wd::{TimeoutConfiguration, WebDriverCompatibleCommand},
};
use http::Method;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
};

use crate::support::{PATIENCE, Server, Signal, Start, soon};

/// Chromedriver and the browsers that it started; both end with this.
struct Driver {
    process: Child,
    url: String,
    profiles: Vec<TempDir>,
}

impl Driver {
    async fn start() -> Self {
        let mut process = Command::new(program("CHROMEDRIVER", "chromedriver"))
            .arg("--port=0")
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap_or_else(|error| missing("chromedriver", &error));
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let port: u16 = soon("the port of chromedriver", async {
            loop {
                let line = lines.next_line().await.unwrap().expect("chromedriver to say its port");
                if let Some((_, port)) = line.split_once("started successfully on port ") {
                    return port.trim_end_matches('.').parse().unwrap();
                }
            }
        })
        .await;
        // What it says later must go somewhere, or it blocks.
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        Self { process, url: format!("http://127.0.0.1:{port}"), profiles: Vec::new() }
    }

    /// Opens a browser of its own, as wide and high as said.
    async fn browser(&mut self, (width, height): (u32, u32)) -> Client {
        let profile = tempfile::tempdir().unwrap();
        let mut args: Vec<String> = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--disable-dev-shm-usage",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--force-device-scale-factor=1",
        ]
        .map(String::from)
        .into();
        args.push(format!("--window-size={width},{height}"));
        args.push(format!("--user-data-dir={}", profile.path().display()));
        let binary = program("CHROMIUM", "chromium");
        let found = std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default())
            .map(|folder| folder.join(&binary))
            .find(|path| path.exists())
            .unwrap_or_else(|| missing("chromium", &"it is not on the PATH"));
        let capabilities = json!({
            "goog:chromeOptions": {"args": args, "binary": found},
            "goog:loggingPrefs": {"browser": "ALL"},
        });
        let Value::Object(capabilities) = capabilities else { unreachable!("it is an object") };
        self.profiles.push(profile);
        let mut builder = ClientBuilder::new(hyper_util::client::legacy::connect::HttpConnector::new());
        soon("a browser", builder.capabilities(capabilities).connect(&self.url)).await.unwrap()
    }
}

/// The program, or another that the environment names.
fn program(variable: &str, name: &str) -> PathBuf {
    std::env::var_os(variable).map_or_else(|| name.into(), PathBuf::from)
}

fn missing(what: &str, error: &dyn std::fmt::Display) -> ! {
    panic!(
        "{what} cannot be started ({error}). This test needs Chromium and its driver: on Debian, \
         `apt-get install chromium chromium-driver`; elsewhere, name them in CHROMIUM and CHROMEDRIVER"
    )
}

/// A command of Chromium's own.
#[derive(Debug)]
struct Chromium {
    path: &'static str,
    body: Value,
}

impl WebDriverCompatibleCommand for Chromium {
    fn endpoint(&self, base: &url::Url, session: Option<&str>) -> Result<url::Url, url::ParseError> {
        base.join(&format!("session/{}/{}", session.unwrap_or_default(), self.path))
    }

    fn method_and_body(&self, _: &url::Url) -> (Method, Option<String>) {
        (Method::POST, Some(self.body.to_string()))
    }
}

/// What the page wrote to the console since it was last asked.
async fn console(browser: &Client) -> Vec<String> {
    let command = Chromium { path: "se/log", body: json!({"type": "browser"}) };
    let entries = browser.issue_cmd(command).await.unwrap();
    entries.as_array().unwrap().iter().map(|entry| entry["message"].as_str().unwrap().to_owned()).collect()
}

/// Waits, in the page and on its changes, until this JavaScript expression is true.
async fn until(browser: &Client, condition: &str) {
    let script = format!(
        "const done = arguments[0], ok = () => {{ if ({condition}) {{ seen.disconnect(); done(true); }} }};
         const seen = new MutationObserver(ok);
         seen.observe(document, {{ subtree: true, childList: true, attributes: true, characterData: true }});
         ok();"
    );
    if let Err(error) = soon(condition, browser.execute_async(&script, vec![])).await {
        let page = browser.execute("return document.body.innerText", vec![]).await;
        panic!("{condition}: {error}; the page says {page:?}");
    }
}

async fn text(browser: &Client, selector: &str) -> String {
    browser.find(Locator::Css(selector)).await.unwrap().text().await.unwrap()
}

async fn click(browser: &Client, selector: &str) {
    browser.find(Locator::Css(selector)).await.unwrap().click().await.unwrap();
}

async fn say(browser: &Client, text: &str) {
    let input = browser.find(Locator::Css("#text")).await.unwrap();
    input.send_keys(&format!("{text}\u{E007}")).await.unwrap();
}

/// An expression: whether a message of this text is on the page.
fn shown(text: &str) -> String {
    format!(
        "[...document.querySelectorAll('#messages .text')].some((one) => one.textContent.includes({text:?}))"
    )
}

async fn open(browser: &Client, server: &Server) {
    let timeouts = TimeoutConfiguration::new(Some(PATIENCE), Some(PATIENCE), None);
    browser.update_timeouts(timeouts).await.unwrap();
    browser.goto(&server.url("/")).await.unwrap();
    until(browser, "document.body.dataset.state === 'open'").await;
}

/// Takes a picture in daylight and one at night.
async fn pictures(browser: &Client, name: &str) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap().join("target/screenshots");
    fs::create_dir_all(&folder).unwrap();
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
async fn resize(browser: &Client, width: u32, height: u32) {
    let params = json!({"width": width, "height": height, "deviceScaleFactor": 2, "mobile": true});
    let body = json!({"cmd": "Emulation.setDeviceMetricsOverride", "params": params});
    browser.issue_cmd(Chromium { path: "goog/cdp/execute", body }).await.unwrap();
}

/// Seconds on the countdown.
async fn countdown(browser: &Client) -> u32 {
    let words = text(browser, "#countdown").await;
    words.trim_end_matches(" s").parse().unwrap_or_else(|_| panic!("seconds, not {words:?}"))
}

#[tokio::test]
async fn people_see_what_happens_say_hello_and_come_back() {
    let mut driver = Driver::start().await;
    let mut server =
        Start::default().env("SHUTDOWN_TIMEOUT", "45").env("NOTIFICATION_INTERVAL", "1").serve().await;
    let desktop = driver.browser((1280, 800)).await;
    let phone = driver.browser((500, 740)).await;
    resize(&phone, 360, 740).await;
    open(&desktop, &server).await;
    open(&phone, &server).await;
    until(&desktop, "document.querySelector('#clients').textContent === '2 clients'").await;

    // Everyone sees what one says, and the console has it, too.
    click(&desktop, "#hello").await;
    for browser in [&desktop, &phone] {
        until(browser, &shown("Hello")).await;
        let console = console(browser).await;
        assert!(console.iter().any(|line| line.contains(r#"\"type\":\"welcome\""#)), "{console:?}");
        assert!(console.iter().any(|line| line.contains(r#"\"data\":\"Hello\""#)), "{console:?}");
        assert!(!console.iter().any(|line| line.contains("SEVERE") || line.contains("rror")), "{console:?}");
    }
    until(&desktop, "document.querySelector('li[data-mine] .who')?.textContent === 'you'").await;
    until(&phone, "!document.querySelector('li[data-mine]')").await;
    say(&phone, "Grüße from the phone <b>&amp;</b>").await;
    until(&desktop, &shown("Grüße from the phone <b>&amp;</b>")).await;
    server.publish(r#"{"data": {"order": 1042, "state": "shipped"}}"#).await;
    until(&desktop, &shown(r#"{"order":1042,"state":"shipped"}"#)).await;
    until(&phone, &shown("1042")).await;
    let newest_first =
        "(() => { const times = [...document.querySelectorAll('#messages time')].map((t) => t.dateTime);
        return times.length > 3 && times.every((t, i) => i === 0 || t <= times[i - 1]); })()";
    until(&desktop, newest_first).await;
    let fits = "document.documentElement.scrollWidth <= window.innerWidth";
    until(&phone, fits).await;
    pictures(&desktop, "desktop").await;
    pictures(&phone, "phone").await;

    // The last call: a banner that counts down, and everything still works.
    server.signal(Signal::TERM);
    for browser in [&desktop, &phone] {
        until(browser, "!document.querySelector('#banner').hidden").await;
    }
    let before = countdown(&desktop).await;
    assert!((30..=45).contains(&before), "{before}");
    until(&desktop, &format!("parseInt(document.querySelector('#countdown').textContent) < {before}")).await;
    say(&phone, "still served").await;
    until(&desktop, &shown("still served")).await;
    until(&phone, fits).await;
    pictures(&desktop, "desktop-last-call").await;
    pictures(&phone, "phone-last-call").await;

    // When the last tab is closed, the process ends by itself.
    phone.close().await.unwrap();
    server.logged("drain progress: 1 of 2 left").await;
    desktop.goto("about:blank").await.unwrap();
    assert_eq!(server.exit_code().await, 0);

    // After a restart a tab comes back by itself, when it was told to.
    let mut server = Start::default().env("SHUTDOWN_TIMEOUT", "0.2").serve().await;
    let port = server.address.port();
    open(&desktop, &server).await;
    server.signal(Signal::TERM);
    assert_eq!(server.exit_code().await, 0);
    until(&desktop, "document.body.dataset.state === 'waiting'").await;
    let words = text(&desktop, "#state").await;
    assert!(words.contains("service restart") && words.contains("Reconnecting in"), "{words}");
    pictures(&desktop, "desktop-waiting").await;
    let server = Start::default().env("PORT", port).serve().await;
    until(&desktop, "document.body.dataset.state === 'open'").await;
    click(&desktop, "#hello").await;
    until(&desktop, &shown("Hello")).await;
    server.signal(Signal::INT);
    until(&desktop, "!document.querySelector('#banner').hidden").await;

    soon("the browser's end", desktop.close()).await.unwrap();
    driver.process.kill().await.unwrap();
}

#[tokio::test]
async fn a_page_that_should_not_come_back_says_so_and_offers_to() {
    let mut driver = Driver::start().await;
    let server = Start::default().env("MAX_MESSAGE_SIZE", "100").serve().await;
    let browser = driver.browser((1280, 800)).await;
    open(&browser, &server).await;
    say(&browser, &"x".repeat(200)).await;
    until(&browser, "document.body.dataset.state === 'refused'").await;
    assert_eq!(text(&browser, "#state").await, "Closed: message too big.");
    pictures(&browser, "desktop-refused").await;
    click(&browser, "#reconnect").await;
    until(&browser, "document.body.dataset.state === 'open'").await;
    // A server that vanishes: the page keeps trying, ever more slowly.
    drop(server);
    until(&browser, "document.querySelector('#state').textContent.includes('connection lost')").await;
    let waits = Duration::from_secs(30);
    tokio::time::timeout(
        waits,
        until(&browser, "parseInt(document.querySelector('#state').textContent.split(' in ')[1]) >= 2"),
    )
    .await
    .expect("a growing delay");
    soon("the browser's end", browser.close()).await.unwrap();
    driver.process.kill().await.unwrap();
}
