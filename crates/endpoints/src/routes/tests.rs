//! Requests answered in process, by the routes and a real connection manager.

mod handshake;
mod publish;

use std::{
    io::Read,
    net::TcpStream,
    time::{Duration, Instant},
};

use axum::{
    body::{Body, to_bytes},
    http::{HeaderMap, Method, Request, StatusCode},
};
use lastcall_broker::memory_broker;
use lastcall_core::{
    AllowedOrigins, ApiKey, clock,
    phase::{Phase, PhaseState},
};
use lastcall_websockets::{ConnectionManager, Handshake, ManagerConfig, Phases, VitalTasks};
use serde_json::{Value, json};
use tokio::{net::TcpListener, sync::watch};
use tower::ServiceExt;

use super::*;
use crate::{
    Config, HttpConnections, Process, Refusals, UpgradeStats,
    page::Page,
    request::{FromThisMachine, ListensOnLoopback},
    server::HandoffSlot,
    state::Limits,
};

/// The time for which a test waits for what must happen.
const TEST_TIMEOUT: Duration = Duration::from_secs(30);

/// The routes, and what is behind them.
struct Routes {
    router: Router,
    manager: ConnectionManager,
}

/// A response, read to its end.
struct TestResponse {
    status: StatusCode,
    headers: HeaderMap,
    body: String,
}

impl TestResponse {
    fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }

    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap()
    }

    /// Returns the status and the code of an error.
    fn error(&self) -> (u16, String) {
        let code = self.json()["error"]["code"].as_str().unwrap().to_owned();
        (self.status.as_u16(), code)
    }
}

/// Returns a process in this phase.
fn process(phase: PhaseState) -> Process {
    let upgrades = UpgradeStats {
        succeeded: 2,
        failed: 1,
        in_progress: true,
        last_clients: 3,
        last_pause: Duration::from_millis(250),
    };
    Process {
        version: "1.2.3",
        commit: None,
        pid: 42,
        start_time: 1.5,
        started: clock::since_boot(),
        phase: watch::channel(phase).1,
        upgrades: watch::channel(upgrades).1,
    }
}

impl Routes {
    fn start(config: Config, phase: PhaseState) -> Self {
        let limits = config.limits;
        let manager_config = ManagerConfig {
            event_loops: 1,
            max_connections: limits.max_connections,
            ..ManagerConfig::default()
        };
        let phases = Phases::default();
        phases.enter(phase.phase);
        let (manager, _) =
            ConnectionManager::start(manager_config, phases, VitalTasks::default(), |delivery| {
                memory_broker(lastcall_broker::Config::default(), delivery, None).1
            })
            .unwrap();
        let page = Page::load(None, limits.max_message_size).unwrap();
        let (refusals, connections) = (Refusals::default(), HttpConnections::new(7));
        let state = AppState::new(config, manager.clone(), process(phase), page, refusals, connections);
        Self { router: router(state), manager }
    }

    fn serving(config: Config) -> Self {
        Self::start(config, PhaseState { phase: Phase::Serving, ..PhaseState::default() })
    }

    async fn response(&self, request: Call<'_>) -> TestResponse {
        let Call { method, path, is_here, fields, body } = request;
        let mut request = Request::builder().method(method).uri(path);
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        let mut request = request.body(Body::from(body.to_owned())).unwrap();
        request.headers_mut().entry(header::HOST).or_insert(HeaderValue::from_static("localhost:8000"));
        request.extensions_mut().insert(FromThisMachine(is_here));
        request.extensions_mut().insert(ListensOnLoopback(true));
        request.extensions_mut().insert(HandoffSlot::default());
        let (head, body) = self.router.clone().oneshot(request).await.unwrap().into_parts();
        let body = to_bytes(body, usize::MAX).await.unwrap();
        TestResponse {
            status: head.status,
            headers: head.headers,
            body: String::from_utf8(body.into()).unwrap(),
        }
    }

    async fn get(&self, path: &str, fields: Fields<'_>) -> TestResponse {
        self.response(Call { path, fields, ..Call::default() }).await
    }

    async fn publish(&self, fields: Fields<'_>, body: &str) -> TestResponse {
        let json = [("content-type", "application/json")];
        let fields = [fields, &json].concat();
        self.response(Call {
            method: Method::POST,
            path: "/api/publish",
            fields: &fields,
            body,
            ..Call::default()
        })
        .await
    }
}

type Fields<'a> = &'a [(&'a str, &'a str)];

/// A request.
struct Call<'a> {
    method: Method,
    path: &'a str,
    is_here: bool,
    fields: Fields<'a>,
    body: &'a str,
}

impl Default for Call<'_> {
    fn default() -> Self {
        Self { method: Method::GET, path: "/", is_here: true, fields: &[], body: "" }
    }
}

fn error(status: u16, code: &str) -> (u16, String) {
    (status, code.to_owned())
}

#[tokio::test]
async fn a_process_is_ready_only_while_it_serves() {
    let routes = Routes::serving(Config::default());
    let live = routes.get("/health/live", &[]).await;
    assert_eq!((live.status, live.body.as_str()), (StatusCode::OK, "OK\n"));
    let ready = routes.get("/health/ready", &[]).await;
    assert_eq!(ready.status, StatusCode::OK);
    let body = ready.json();
    assert_eq!(
        (&body["phase"], &body["clients"], &body["upgrades"]),
        (&json!("serving"), &json!(0), &json!(2))
    );
    assert_eq!((&body["version"], &body["pid"]), (&json!("1.2.3"), &json!(42)));
    assert!(body["uptime_seconds"].as_f64().unwrap() >= 0.0);
    assert_eq!((&body["seconds_left"], &body["drain_clients"]), (&json!(null), &json!(null)));

    let deadline = Instant::now() + 10 * TEST_TIMEOUT;
    let phase = PhaseState { phase: Phase::Draining, deadline: Some(deadline), drain_connections: Some(7) };
    let routes = Routes::start(Config::default(), phase);
    let ready = routes.get("/health/ready", &[]).await;
    assert_eq!(ready.status, StatusCode::SERVICE_UNAVAILABLE);
    let body = ready.json();
    assert_eq!((&body["phase"], &body["drain_clients"]), (&json!("draining"), &json!(7)));
    let left = body["seconds_left"].as_f64().unwrap();
    assert!((1.0..=300.0).contains(&left), "{left}");
    assert_eq!(left, (left * 1e3).round() / 1e3, "to the millisecond");
    assert_eq!(routes.get("/health/live", &[]).await.status, StatusCode::OK, "it works all the same");
}

#[tokio::test]
async fn metrics_tell_the_state_and_the_limits_in_the_format_that_is_asked_for() {
    let limits = Limits { max_connections: 5, max_client_rate: Some(1000), ..Limits::default() };
    let routes = Routes::serving(Config { limits, ..Config::default() });
    let _permit = routes.manager.admit().unwrap();
    let text = routes.get("/metrics", &[]).await;
    assert_eq!(text.header("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
    for sample in [
        "lastcall_build_info{version=\"1.2.3\",commit=\"unknown\"} 1",
        "process_start_time_seconds 1.5",
        "lastcall_connections 1.0",
        "lastcall_connections_opened_total 0",
        "lastcall_refused_requests_total{code=\"full\"} 0",
        "lastcall_max_connections 5.0",
        "lastcall_http_connections 0.0",
        "lastcall_max_http_connections 7.0",
        "lastcall_max_client_rate_bytes_per_second 1000.0",
        "lastcall_max_total_rate_bytes_per_second 0.0",
        "lastcall_phase{phase=\"serving\"} 1",
        "lastcall_phase{phase=\"draining\"} 0",
        "lastcall_upgrades_total{result=\"succeeded\"} 2",
        "lastcall_upgrades_total{result=\"failed\"} 1",
        "lastcall_upgrade_in_progress 1.0",
        "lastcall_last_handover_connections 3.0",
        "lastcall_last_handover_pause_seconds 0.25",
    ] {
        assert!(text.body.lines().any(|line| line == sample), "{sample} in {}", text.body);
    }
    let open_metrics = routes.get("/metrics", &[("accept", "application/openmetrics-text")]).await;
    assert!(open_metrics.header("content-type").unwrap().starts_with("application/openmetrics-text;"));
    assert!(open_metrics.body.ends_with("# EOF\n"));
}

#[tokio::test]
async fn the_page_is_asked_for_anew_each_time() {
    let routes = Routes::serving(Config::default());
    let page = routes.get("/", &[]).await;
    assert_eq!(
        (page.status, page.header("content-type")),
        (StatusCode::OK, Some("text/html; charset=utf-8"))
    );
    assert_eq!(page.header("cache-control"), Some("no-cache"));
    assert!(page.body.contains("new WebSocket("));
    let head = routes.response(Call { method: Method::HEAD, ..Call::default() }).await;
    assert_eq!((head.status, head.body.as_str()), (StatusCode::OK, ""));
}

#[tokio::test]
async fn every_route_names_its_methods() {
    let routes = Routes::serving(Config::default());
    let read = "GET,HEAD,OPTIONS";
    for (path, methods) in [
        ("/", read),
        ("/ws", read),
        ("/health/live", read),
        ("/health/ready", read),
        ("/metrics", read),
        ("/api/publish", "POST,OPTIONS"),
    ] {
        let options = routes.response(Call { method: Method::OPTIONS, path, ..Call::default() }).await;
        assert_eq!(
            (options.status, options.header("allow")),
            (StatusCode::NO_CONTENT, Some(methods)),
            "{path}"
        );
        let put = routes.response(Call { method: Method::PUT, path, ..Call::default() }).await;
        assert_eq!(put.error(), error(405, "method_not_allowed"), "{path}");
        assert!(put.headers.contains_key(header::ALLOW), "{path}");
    }
    assert_eq!(routes.get("/api/pubish", &[]).await.error(), error(404, "not_found"));
    assert_eq!(routes.get("/", &[("host", "a b")]).await.error(), error(400, "bad_header"));
}
