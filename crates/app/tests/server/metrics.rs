//! `/metrics`, as scrapers read it.

use crate::support::{Exposition, Format, Server, Start};

const OPEN_METRICS: &str =
    "Accept: application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5";

async fn scrape(server: &Server, format: Format) -> Exposition {
    let (fields, media_type) = match format {
        Format::Prometheus => (&[][..], "text/plain; version=0.0.4; charset=utf-8"),
        Format::OpenMetrics => {
            (&[OPEN_METRICS][..], "application/openmetrics-text; version=1.0.0; charset=utf-8")
        }
    };
    let answer = server.request("GET", "/metrics", fields, "").await;
    assert_eq!((answer.status, answer.header("content-type")), (200, Some(media_type)));
    assert_eq!(answer.header("vary"), Some("accept"));
    Exposition::parse(&answer.body, format).unwrap_or_else(|error| panic!("{error} in {}", answer.body))
}

#[tokio::test]
async fn a_strict_parser_reads_both_formats_and_computes_a_quantile() {
    let server = Start::default().env("NOTIFICATION_INTERVAL", "0.05").serve().await;
    let mut client = server.client().await;
    for _ in 0..3 {
        client.next_of("notification").await;
    }
    client.leave().await;
    for format in [Format::Prometheus, Format::OpenMetrics] {
        let metrics = scrape(&server, format).await;
        assert_eq!(metrics.value("lastcall_connections_opened_total", &[]), 1.0);
        assert_eq!(metrics.value("lastcall_disconnects_total", &[("reason", "left")]), 1.0);
        assert_eq!(metrics.value("lastcall_phase", &[("phase", "serving")]), 1.0);
        for q in [0.0, 0.5, 0.99, 1.0] {
            let seconds = metrics.quantile("lastcall_event_loop_iteration_seconds", q);
            // The last limit below infinity.
            assert!((0.0..=0.1).contains(&seconds), "{q}: {seconds}");
        }
    }
}

#[tokio::test]
async fn a_scraper_gets_the_format_that_it_asks_for() {
    let server = Server::start().await;
    for (accept, format) in [
        ("", "text/plain"),
        ("*/*", "text/plain"),
        ("text/html,application/xhtml+xml,*/*;q=0.8", "text/plain"),
        ("application/openmetrics-text", "application/openmetrics-text"),
        ("application/openmetrics-text;q=0.5,text/plain;q=0.7", "text/plain"),
        ("application/json", "text/plain"),
    ] {
        let answer = server.request("GET", "/metrics", &[&format!("Accept: {accept}")], "").await;
        let got = answer.header("content-type").unwrap().split(';').next();
        assert_eq!((answer.status, got), (200, Some(format)), "{accept}");
    }
}

#[tokio::test]
async fn the_documentation_lists_the_metrics_that_there_are() {
    let text = Server::start().await.get("/metrics").await.body;
    let there = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next());
    let docs = include_str!("../../../../docs/operations.md");
    let (_, section) = docs.split_once("\n## Metrics\n").unwrap();
    let table = section.split("\n## ").next().unwrap().lines().filter(|line| line.starts_with("| `"));
    let listed = table.flat_map(|row| row.split('|').nth(1).unwrap().split('`').skip(1).step_by(2));
    let listed = listed.map(|name| name.split('{').next().unwrap());
    let sorted = |names: &mut dyn Iterator<Item = &str>| {
        let mut names: Vec<_> = names.map(str::to_owned).collect();
        names.sort();
        names
    };
    assert_eq!(sorted(&mut { listed }), sorted(&mut { there }));
}
