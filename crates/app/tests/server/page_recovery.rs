//! What the test page does with the ids of messages: it comes back, and shows what it missed, or says that it
//! cannot.

use fantoccini::Client;
use serde_json::{Value, json};

use crate::{
    browser::{FITS, click, console_has, open, open_url, pictures, resize, say, shown, text, until},
    support::{Chromium, Driver, Network, Server, Start, soon},
};

const CONNECTED: &str = "document.body.dataset.state === 'open'";
const DISCONNECTED: &str = "document.body.dataset.state !== 'open'";
const MAY_BE_MISSED: &str = "Some messages may have been missed.";

/// Returns an expression: whether the list has exactly these texts beside the welcomes, from the oldest on.
fn listed(texts: &[&str]) -> String {
    let rows = "[...document.querySelectorAll('#messages li:not([data-type=welcome]) .text')]";
    format!(
        "JSON.stringify({rows}.map((row) => row.textContent).reverse()) === {:?}",
        json!(texts).to_string()
    )
}

async fn publish(server: &Server, channel: &str, data: &str) {
    let answer = server.publish(&json!({"data": data, "channel": channel}).to_string()).await;
    assert_eq!(answer.status, 200, "{answer:?}");
}

async fn run(browser: &Client, script: &str) -> Value {
    browser.execute(script, vec![]).await.unwrap()
}

/// Has the browser say that it has no network, or that it has one again. Connections that are open stay.
async fn set_offline(browser: &Client, offline: bool) {
    let conditions =
        json!({"offline": offline, "latency": 0, "downloadThroughput": -1, "uploadThroughput": -1});
    for (cmd, params) in [("Network.enable", json!({})), ("Network.emulateNetworkConditions", conditions)] {
        let body = json!({"cmd": cmd, "params": params});
        browser.issue_cmd(Chromium { path: "goog/cdp/execute", body }).await.unwrap();
    }
}

/// Opens the page behind a network that can be lost.
async fn open_behind_network(browser: &Client, server: &Server, query: &str) -> Network {
    let network = Network::start(server.address).await;
    open_url(browser, &format!("http://{}/{query}", network.address)).await;
    network
}

/// Takes pictures on a phone, a tablet and a desktop.
async fn pictures_of_all_sizes(browser: &Client, name: &str) {
    for (size, width, height) in [("phone", 360, 740), ("tablet", 768, 1024), ("desktop", 1440, 900)] {
        resize(browser, width, height).await;
        until(browser, FITS).await;
        pictures(browser, &format!("{size}-{name}")).await;
    }
}

#[tokio::test]
async fn a_tab_that_lost_its_network_shows_what_it_missed_once_and_in_order() {
    let mut driver = Driver::start().await;
    let (lost, other) = (driver.browser((1280, 800)).await, driver.browser((1280, 800)).await);
    let server = Server::start().await;
    let network = open_behind_network(&lost, &server, "").await;
    open(&other, &server).await;
    run(&lost, "window.raw = []; console.log = (text) => raw.push(text);").await;
    publish(&server, "broadcast", "before").await;
    until(&lost, &shown("before")).await;
    network.cut();
    until(&lost, DISCONNECTED).await;
    for number in 1..=3 {
        publish(&server, "broadcast", &format!("number {number}")).await;
    }
    publish(&server, "orders", "of another channel").await;
    network.repair();
    until(&lost, CONNECTED).await;
    publish(&server, "broadcast", "after").await;
    let texts = ["before", "number 1", "number 2", "number 3", "Recovered 3 messages.", "after"];
    until(&lost, &listed(&texts)).await;
    // A tab that lost nothing says nothing of it.
    until(&other, &listed(&["before", "number 1", "number 2", "number 3", "after"])).await;
    console_has(&other, &[]).await;
    pictures_of_all_sizes(&lost, "recovered").await;

    // A message that comes again is not shown again, and the position does not go back to it.
    let repeat = "
        const before = positions.get('broadcast');
        receive(raw.find((text) => text.includes('number 2')));
        return positions.get('broadcast') === before;";
    assert_eq!(run(&lost, repeat).await, true);
    network.cut();
    until(&lost, DISCONNECTED).await;
    network.repair();
    until(&lost, CONNECTED).await;
    publish(&server, "broadcast", "last").await;
    // Nothing was missed this time: nothing is said.
    until(&lost, &listed(&[&texts[..], &["last"]].concat())).await;
    for browser in [lost, other] {
        soon("the browser's end", browser.close()).await.unwrap();
    }
}

#[tokio::test]
async fn a_tab_whose_browser_was_offline_recovers() {
    let mut driver = Driver::start().await;
    let browser = driver.browser((1280, 800)).await;
    let server = Server::start().await;
    open(&browser, &server).await;
    // As the tools for developers do.
    set_offline(&browser, true).await;
    until(&browser, DISCONNECTED).await;
    publish(&server, "broadcast", "meanwhile").await;
    set_offline(&browser, false).await;
    until(&browser, &listed(&["meanwhile", "Recovered 1 message."])).await;
    soon("the browser's end", browser.close()).await.unwrap();
}

#[tokio::test]
async fn a_tab_says_that_messages_may_have_been_missed_when_the_history_is_too_small() {
    let mut driver = Driver::start().await;
    let browser = driver.browser((1280, 800)).await;
    let server = Start::default().env("HISTORY_SIZE", "2").serve().await;
    let network = open_behind_network(&browser, &server, "").await;
    network.cut();
    until(&browser, DISCONNECTED).await;
    for number in 1..=3 {
        publish(&server, "broadcast", &format!("number {number}")).await;
    }
    network.repair();
    until(&browser, CONNECTED).await;
    publish(&server, "broadcast", "after").await;
    let texts = [MAY_BE_MISSED, "after"];
    until(&browser, &listed(&texts)).await;
    let announced = "document.querySelector('#announced').textContent.includes('missed')";
    let said = format!("{announced} || document.querySelector('#announced').textContent.includes('after')");
    until(&browser, &said).await;
    pictures_of_all_sizes(&browser, "missed").await;
    // From there on it recovers again.
    network.cut();
    until(&browser, DISCONNECTED).await;
    publish(&server, "broadcast", "later").await;
    network.repair();
    until(&browser, &listed(&[&texts[..], &["later", "Recovered 1 message."]].concat())).await;
    soon("the browser's end", browser.close()).await.unwrap();
}

#[tokio::test]
async fn a_tab_says_that_messages_may_have_been_missed_after_its_server_was_killed() {
    let mut driver = Driver::start().await;
    let browser = driver.browser((1280, 800)).await;
    let server = Start::default().own_address().serve().await;
    let address = server.address;
    open(&browser, &server).await;
    publish(&server, "broadcast", "before").await;
    until(&browser, &shown("before")).await;
    server.kill().await;
    let server = Start::default().env("HOST", address.ip()).env("PORT", address.port()).serve().await;
    until(&browser, &listed(&["before", MAY_BE_MISSED])).await;
    publish(&server, "broadcast", "after").await;
    until(&browser, &listed(&["before", MAY_BE_MISSED, "after"])).await;
    soon("the browser's end", browser.close()).await.unwrap();
}

/// The broker in memory sends neither a `reset` over a WebSocket nor a close with 1013: the page is given
/// them here.
#[tokio::test]
async fn a_tab_goes_on_from_the_id_of_a_reset_also_after_it_was_told_to_try_again_later() {
    let mut driver = Driver::start().await;
    let browser = driver.browser((1280, 800)).await;
    let server = Server::start().await;
    open_url(&browser, &format!("http://{}/?channel=orders&channel=alerts", server.address)).await;
    publish(&server, "orders", "first").await;
    until(&browser, &shown("first")).await;
    // With an id that was here before, too.
    let reset = "
        const id = positions.get('orders');
        receive(JSON.stringify({ type: 'reset', channel: 'orders', id: 'of another epoch' }));
        receive(JSON.stringify({ type: 'reset', channel: 'orders', id }));
        return new URL(webSocketUrl()).searchParams.getAll('since')[0] === id;";
    assert_eq!(run(&browser, reset).await, true);
    let missed = "Some messages in orders may have been missed.";
    until(&browser, &listed(&["first", missed, missed])).await;

    let close = "
        socket.onmessage = socket.onclose = null;
        socket.close();
        closed(1013, 'try again later');
        return [document.body.dataset.state, document.querySelector('#state').textContent];";
    let shown = run(&browser, close).await;
    assert_eq!(shown, json!(["waiting", "Closed: try again later. Reconnecting"]));
    publish(&server, "orders", "meanwhile").await;
    until(&browser, CONNECTED).await;
    let texts = ["first", missed, missed, "meanwhile", "Recovered 1 message in orders."];
    until(&browser, &listed(&texts)).await;
    console_has(&browser, &[]).await;
    soon("the browser's end", browser.close()).await.unwrap();
}

#[tokio::test]
async fn a_tab_shows_nothing_as_missed_over_an_upgrade() {
    let mut driver = Driver::start().await;
    let browser = driver.browser((1280, 800)).await;
    let mut server = Server::start().await;
    open_url(&browser, &server.url("/?channel=orders&channel=alerts")).await;
    publish(&server, "orders", "before").await;
    server.upgrade().await;
    for channel in ["orders", "alerts"] {
        publish(&server, channel, &format!("after, in {channel}")).await;
    }
    until(&browser, &listed(&["before", "after, in orders", "after, in alerts"])).await;
    assert_eq!(run(&browser, "return document.querySelectorAll('[data-type=welcome]').length").await, 1);
    console_has(&browser, &[]).await;
    soon("the browser's end", browser.close()).await.unwrap();
}

#[tokio::test]
async fn a_page_shows_the_channels_of_its_url_and_sends_to_the_first() {
    let mut driver = Driver::start().await;
    let (browser, other) = (driver.browser((1280, 800)).await, driver.browser((1280, 800)).await);
    let server = Server::start().await;
    let network =
        open_behind_network(&browser, &server, "?channel=orders&channel=alerts&channel=orders").await;
    open(&other, &server).await;
    let placeholder = "return document.querySelector('#text').placeholder";
    assert_eq!(run(&browser, placeholder).await, "Say something in orders");
    assert_eq!(run(&other, placeholder).await, "Say something to everyone");
    assert_eq!(text(&browser, "#heading").await, "Messages in orders, alerts");
    say(&browser, "Grüße").await;
    // Two channels have no order.
    until(&browser, &listed(&["Grüße"])).await;
    publish(&server, "alerts", "disk full").await;
    publish(&server, "broadcast", "for the other").await;
    until(&browser, &listed(&["Grüße", "disk full"])).await;
    until(&other, &listed(&["for the other"])).await;
    let who = "[...document.querySelectorAll('li[data-type=message] .who, li[data-type=notification] .who')]
        .map((one) => one.textContent).join('; ')";
    let names = run(&browser, &format!("return {who}")).await;
    assert_eq!(names, "notification in alerts; you in orders");
    assert_eq!(run(&other, &format!("return {who}")).await, "notification");

    // Each channel is recovered for itself, in the order of the URL.
    network.cut();
    until(&browser, DISCONNECTED).await;
    for (channel, data) in [("alerts", "disk fine"), ("orders", "1042"), ("orders", "1043")] {
        publish(&server, channel, data).await;
    }
    network.repair();
    let recovered = [
        "Grüße",
        "disk full",
        "1042",
        "1043",
        "Recovered 2 messages in orders.",
        "disk fine",
        "Recovered 1 message in alerts.",
    ];
    until(&browser, &listed(&recovered)).await;
    pictures_of_all_sizes(&browser, "channels").await;

    let long = "n".repeat(255);
    resize(&other, 360, 740).await;
    open_url(&other, &server.url(&format!("/?channel={long}&channel=b"))).await;
    publish(&server, &long, "in a channel with a long name").await;
    until(&other, &format!("{} && {FITS}", shown("in a channel with a long name"))).await;
    for browser in [browser, other] {
        soon("the browser's end", browser.close()).await.unwrap();
    }
}

#[tokio::test]
async fn connect_again_recovers_and_a_reload_begins_anew() {
    let mut driver = Driver::start().await;
    let browser = driver.browser((1280, 800)).await;
    let server = Start::default().env("MAX_MESSAGE_SIZE", "100").serve().await;
    open(&browser, &server).await;
    // Longer than the page would send.
    run(&browser, "socket.send('x'.repeat(101))").await;
    until(&browser, "document.body.dataset.state === 'refused'").await;
    publish(&server, "broadcast", "meanwhile").await;
    click(&browser, "#reconnect").await;
    until(&browser, &listed(&["meanwhile", "Recovered 1 message."])).await;

    soon("a reload", browser.refresh()).await.unwrap();
    until(&browser, CONNECTED).await;
    publish(&server, "broadcast", "after the reload").await;
    until(&browser, &listed(&["after the reload"])).await;
    soon("the browser's end", browser.close()).await.unwrap();
}

#[tokio::test]
async fn a_page_with_a_name_that_is_no_channels_says_what_may_be_wrong() {
    let mut driver = Driver::start().await;
    let browser = driver.browser((1280, 800)).await;
    let server = Server::start().await;
    browser.goto(&server.url("/?channel=two%20words")).await.unwrap();
    until(&browser, "document.querySelector('#state').textContent.includes('no channel')").await;
    soon("the browser's end", browser.close()).await.unwrap();
}
