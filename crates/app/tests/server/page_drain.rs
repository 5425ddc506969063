//! The test page while the server drains: which pages leave by themselves, and what a new client is told.

use fantoccini::{Client, Locator};
use serde_json::json;

use crate::{
    browser::{open, pictures, text, until},
    support::{Api, Chromium, Driver, Proxy, Server, Signal, Software, Start, soon},
};

const STAYS: &str = "document.body.dataset.state === 'open' && !document.querySelector('#banner').hidden";
const LEFT: &str = "document.querySelector('#state').textContent.startsWith('Left, ')";

/// Minimizes the browser's window: its page is hidden then.
async fn hide(browser: &Client) {
    let command = |cmd: &str, params| Chromium {
        path: "goog/cdp/execute",
        body: json!({"cmd": cmd, "params": params}),
    };
    let window = browser.issue_cmd(command("Browser.getWindowForTarget", json!({}))).await.unwrap();
    let params = json!({"windowId": window["windowId"], "bounds": {"windowState": "minimized"}});
    browser.issue_cmd(command("Browser.setWindowBounds", params)).await.unwrap();
    until(browser, "document.hidden").await;
}

/// Has the page believe that two minutes have passed.
async fn pass_two_minutes(browser: &Client) {
    let script = "const now = performance.now.bind(performance); performance.now = () => now() + 120000;";
    browser.execute(script, vec![]).await.unwrap();
}

async fn draft(browser: &Client) {
    browser.find(Locator::Css("#text")).await.unwrap().send_keys("a draft").await.unwrap();
}

#[tokio::test]
async fn pages_of_idle_users_leave_so_that_a_drain_ends_early() {
    let mut driver = Driver::start().await;
    let mut server = Server::start().await;
    let (active, hidden, writing) = (
        driver.browser((800, 600)).await,
        driver.browser((800, 600)).await,
        driver.browser((800, 600)).await,
    );
    for browser in [&active, &hidden, &writing] {
        open(browser, &server).await;
    }
    draft(&writing).await;
    // Also if its tab was hidden before: what is in its field is not lost.
    for browser in [&hidden, &writing] {
        hide(browser).await;
    }
    server.signal(Signal::TERM);
    // A hidden page leaves at once, and says when it comes back.
    until(&hidden, LEFT).await;
    assert!(text(&hidden, "#wait").await.starts_with("in "));
    server.logged("drain progress: 1 of 3 gone").await;
    for browser in [&active, &writing] {
        until(browser, STAYS).await;
    }
    // A visible one leaves when there was no input for a minute; the one with a draft stays.
    pass_two_minutes(&active).await;
    until(&active, LEFT).await;
    pass_two_minutes(&writing).await;
    server.logged("drain progress: 2 of 3 gone").await;
    until(&writing, "document.querySelector('#countdown').textContent.startsWith('27 min')").await;
    assert_eq!(text(&writing, "#state").await, "Connected");
    // When its text is sent or deleted, it leaves, too: there are 28 minutes left, but the server ends.
    writing.execute("document.querySelector('#text').value = ''", vec![]).await.unwrap();
    assert_eq!(server.exit_code().await, 0);
    let ended = server.logged("drain ended").await;
    assert_eq!(ended["fields"]["left"], 3, "{ended}");
    for browser in [active, hidden, writing] {
        soon("the browser's end", browser.close()).await.unwrap();
    }
}

#[tokio::test]
async fn a_user_who_comes_back_to_the_page_or_moves_the_mouse_is_not_idle() {
    let mut driver = Driver::start().await;
    let server = Server::start().await;
    let browser = driver.browser((800, 600)).await;
    open(&browser, &server).await;
    server.signal(Signal::TERM);
    until(&browser, STAYS).await;
    // Two minutes pass, and there is input before the page looks again.
    for kind in ["keydown", "pointermove", "wheel"] {
        let script = "
            const now = performance.now.bind(performance); performance.now = () => now() + 120000;
            document.querySelector('main').dispatchEvent(new Event(arguments[0], { bubbles: true }));
            leaveIfIdle();
            return leaving;";
        let leaving = browser.execute(script, vec![json!(kind)]).await.unwrap();
        assert_eq!(leaving, false, "{kind}");
    }
    pass_two_minutes(&browser).await;
    until(&browser, LEFT).await;
    soon("the browser's end", browser.close()).await.unwrap();
}

#[tokio::test]
async fn a_new_client_is_told_that_the_server_drains_and_connects_after_it() {
    let mut driver = Driver::start().await;
    let mut server = Start::default().own_address().serve().await;
    let (host, port) = (server.address.ip(), server.address.port());
    let stays = server.client().await;
    server.signal(Signal::TERM);
    server.logged("drain started").await;
    let browser = driver.browser((800, 600)).await;
    browser.goto(&server.url("/")).await.unwrap();
    let told = "document.querySelector('#state').textContent.startsWith('The server closes within 29 min ')";
    until(&browser, told).await;
    until(&browser, "document.querySelector('#state').textContent.includes('admits no new clients')").await;
    pictures(&browser, "desktop-newcomer").await;
    stays.leave().await;
    assert_eq!(server.exit_code().await, 0);
    let _next = Start::default().env("HOST", host).env("PORT", port).serve().await;
    until(&browser, "document.body.dataset.state === 'open'").await;
    soon("the browser's end", browser.close()).await.unwrap();
}

#[tokio::test]
async fn a_new_client_of_a_full_server_is_told_that_it_was_refused() {
    let mut driver = Driver::start().await;
    let server = Start::default().env("MAX_CONNECTIONS", "1").serve().await;
    let stays = server.client().await;
    let browser = driver.browser((800, 600)).await;
    browser.goto(&server.url("/")).await.unwrap();
    until(&browser, "document.querySelector('#state').textContent.includes('it is full, or')").await;
    stays.leave().await;
    until(&browser, "document.body.dataset.state === 'open'").await;
    soon("the browser's end", browser.close()).await.unwrap();
}

/// The proxies of the examples answer 404 for `/health/ready`, which would say why.
#[tokio::test(flavor = "multi_thread")]
async fn a_new_client_of_a_full_server_behind_a_proxy_is_told_what_may_be_the_reason() {
    let mut driver = Driver::start().await;
    for software in Software::ALL {
        let server = Start::default().env("MAX_CONNECTIONS", "1").serve().await;
        let Some(proxy) = Proxy::start(software, server.address, Api::AsItStands).await else { continue };
        let stays = server.client().await;
        let browser = driver.browser((800, 600)).await;
        browser.goto(&format!("http://{}/", proxy.address)).await.unwrap();
        until(&browser, "document.querySelector('#state').textContent.startsWith('The server may be full')")
            .await;
        stays.leave().await;
        until(&browser, "document.body.dataset.state === 'open'").await;
        soon("the browser's end", browser.close()).await.unwrap();
    }
}
