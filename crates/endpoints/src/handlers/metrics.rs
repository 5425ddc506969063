//! `GET /metrics`: the state and the stats for Prometheus, in its own text format or in that of OpenMetrics.

mod format;

use std::{fmt, sync::Arc, time::Duration};

use axum::{
    extract::State,
    http::{
        HeaderMap,
        header::{CONTENT_TYPE, VARY},
    },
    response::{IntoResponse, Response},
};
use lastcall_core::phase::Phase;
use lastcall_websockets::{ConnectionCounts, Histogram, Stats, Usage};
use prometheus_client::{
    collector::Collector,
    encoding::{
        DescriptorEncoder, EncodeMetric, MetricEncoder, NoLabelSet,
        text::{encode, encode_registry},
    },
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
    registry::Registry,
};
use tokio::time::timeout;

use self::format::Format;
use super::health::seconds;
use crate::{
    error::{ApiError, ErrorCode},
    process::Process,
    refusals::RefusalCounts,
    server::HttpConnections,
    state::AppState,
    state::Limits,
};

/// The time that the event loops have to report their stats. Each does in its next iteration.
const STATS_TIMEOUT: Duration = Duration::from_secs(2);

/// Everything that is reported, as it was at one moment.
#[derive(Debug)]
struct Metrics {
    format: Format,
    stats: Stats,
    counts: ConnectionCounts,
    limits: Limits,
    http_connections: HttpConnections,
    refused: RefusalCounts,
    usage: Usage,
    process: Process,
}

/// Metrics whose names are the same for all programs.
#[derive(Debug)]
struct Common(Process);

pub(crate) async fn metrics(State(state): State<Arc<AppState>>, headers: HeaderMap) -> Response {
    let Ok(Ok(stats)) = timeout(STATS_TIMEOUT, state.manager.stats()).await else {
        return ApiError::new(
            ErrorCode::Overloaded,
            "The event loops did not answer in time; try again later.",
        )
        .into_response();
    };
    let format = Format::negotiate(&headers);
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Common(state.process.clone())));
    registry.sub_registry_with_prefix("lastcall").register_collector(Box::new(Metrics {
        format,
        stats,
        counts: state.manager.counts(),
        limits: state.limits,
        http_connections: state.http_connections.clone(),
        refused: state.refusals.counts(),
        usage: state.manager.broker().usage(),
        process: state.process.clone(),
    }));
    let mut text = String::new();
    let encoded = match format {
        Format::OpenMetrics => encode(&mut text, &registry),
        // Without the `# EOF` of OpenMetrics.
        Format::Prometheus => encode_registry(&mut text, &registry),
    };
    match encoded {
        Ok(()) => ([(CONTENT_TYPE, format.content_type()), (VARY, "accept")], text).into_response(),
        // Writing to a string does not fail.
        Err(error) => ApiError::new(ErrorCode::Overloaded, error.to_string()).into_response(),
    }
}

impl Collector for Common {
    fn encode(&self, mut to: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let help = "Start time of the process, in seconds since 1970";
        gauge(&mut to, "process_start_time_seconds", help, self.0.start_time)
    }
}

impl Collector for Metrics {
    fn encode(&self, mut to: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let Self { format, stats, counts, limits, http_connections, refused, usage, process } = self;
        let (now, upgrade_stats) = (process.phase(), process.upgrade_stats());
        let help = "1, with the version of the program and the commit that it was built from";
        let mut family = to.encode_descriptor("build_info", help, None, MetricType::Gauge)?;
        let labels = [("version", process.version), ("commit", process.commit.unwrap_or("unknown"))];
        ConstGauge::new(1_i64).encode(family.encode_family(&labels)?)?;
        gauge(&mut to, "connections", "Open connections", counts.connections as f64)?;
        let help = "HTTP connections that are open, and are no connection of a client";
        gauge(&mut to, "http_connections", help, http_connections.count() as f64)?;
        let help = "Most HTTP connections at once, as set";
        gauge(&mut to, "max_http_connections", help, http_connections.max() as f64)?;
        counter(&mut to, *format, "connections_opened_total", "Connections that were opened", stats.opened)?;
        let mut family =
            counters(&mut to, *format, "disconnects_total", "Connections that have ended, by reason")?;
        for (reason, closed) in &stats.disconnects {
            count(family.encode_family(&[("reason", reason.as_ref())])?, *format, *closed)?;
        }
        let help = "Handshakes, API calls and other requests that were refused, by the code of the response";
        let mut family = counters(&mut to, *format, "refused_requests_total", help)?;
        for (code, refused) in refused {
            count(family.encode_family(&[("code", code.as_ref())])?, *format, *refused)?;
        }
        encode_limits(&mut to, limits)?;
        counter(
            &mut to,
            *format,
            "forced_disconnects_total",
            "Connections that the server ended without a closing handshake",
            stats.forced_disconnects,
        )?;
        let slow = stats.disconnects.get("slow_consumer").copied().unwrap_or(0);
        counter(
            &mut to,
            *format,
            "slow_consumers_total",
            "Connections that were closed because the client did not read fast enough",
            slow,
        )?;
        counter(
            &mut to,
            *format,
            "messages_received_total",
            "Messages from clients",
            stats.messages_received,
        )?;
        counter(
            &mut to,
            *format,
            "messages_sent_total",
            "Messages to clients, counted once for each client",
            stats.messages_sent,
        )?;
        counter(
            &mut to,
            *format,
            "received_bytes_total",
            "Bytes from clients, with framing",
            stats.bytes_received,
        )?;
        counter(
            &mut to,
            *format,
            "sent_bytes_total",
            "Bytes of messages to clients, with framing",
            stats.bytes_sent,
        )?;
        gauge(&mut to, "channels", "Channels with clients or history", usage.channels as f64)?;
        let help = "Bytes of the history of all channels";
        gauge(&mut to, "history_bytes", help, usage.history_bytes as f64)?;
        let help = "Bytes that the history has dropped and that replays still hold";
        gauge(&mut to, "pinned_history_bytes", help, usage.pinned_bytes as f64)?;
        let help = "Clients that came back with a position, by what became of what they had missed";
        let mut family = counters(&mut to, *format, "recoveries_total", help)?;
        for (result, recoveries) in [("recovered", stats.recovered), ("not_recovered", stats.not_recovered)] {
            count(family.encode_family(&[("result", result)])?, *format, recoveries)?;
        }
        gauge(&mut to, "queue_bytes", "Bytes that are queued for clients", stats.queued_bytes as f64)?;
        gauge(
            &mut to,
            "backlogged_connections",
            "Connections that have bytes queued",
            stats.queued_clients as f64,
        )?;
        gauge(
            &mut to,
            "throttled_connections",
            "Connections that are read from more slowly, as their clients send texts faster than they may",
            stats.throttled_clients as f64,
        )?;
        let mut family =
            to.encode_descriptor("phase", "1 for the phase of the process", None, MetricType::Gauge)?;
        for phase in Phase::ALL {
            let is_now = i64::from(phase == now.phase);
            ConstGauge::new(is_now).encode(family.encode_family(&[("phase", phase.name())])?)?;
        }
        let left = now.time_left().map_or(0.0, seconds);
        gauge(
            &mut to,
            "drain_remaining_seconds",
            "Time until the remaining connections are closed; 0: the server is not shutting down",
            left,
        )?;
        let total = now.drain_connections.unwrap_or(0) as f64;
        gauge(
            &mut to,
            "drain_initial_connections",
            "Connections when the drain started; 0: not draining",
            total,
        )?;
        let help = "Upgrades, by result";
        let mut family = counters(&mut to, *format, "upgrades_total", help)?;
        for (result, upgrades) in [("succeeded", upgrade_stats.succeeded), ("failed", upgrade_stats.failed)] {
            count(family.encode_family(&[("result", result)])?, *format, upgrades)?;
        }
        gauge(
            &mut to,
            "upgrade_in_progress",
            "1 while an upgrade is under way",
            f64::from(u8::from(upgrade_stats.in_progress)),
        )?;
        gauge(
            &mut to,
            "last_handover_connections",
            "Connections that the last handover moved",
            upgrade_stats.last_clients as f64,
        )?;
        gauge(
            &mut to,
            "last_handover_pause_seconds",
            "Time during which no connection was served in the last handover",
            upgrade_stats.last_pause.as_secs_f64(),
        )?;
        let help = "Time that one iteration of an event loop took";
        let mut histogram =
            to.encode_descriptor("event_loop_iteration_seconds", help, None, MetricType::Histogram)?;
        let Histogram { counts, sum_us } = &stats.loop_iterations;
        let limits = Histogram::BOUNDS_US.iter().map(|us| *us as f64 / 1e6).chain([f64::INFINITY]);
        let buckets: Vec<_> = limits.zip(counts.iter().copied()).collect();
        histogram.encode_histogram::<NoLabelSet>(*sum_us as f64 / 1e6, counts.iter().sum(), &buckets, None)
    }
}

fn encode_limits(to: &mut DescriptorEncoder<'_>, limits: &Limits) -> Result<(), fmt::Error> {
    gauge(to, "max_connections", "Most connections at once, as set", limits.max_connections as f64)?;
    gauge(
        to,
        "max_queue_bytes",
        "Most bytes that may be queued for one connection, as set",
        limits.max_queue as f64,
    )?;
    gauge(
        to,
        "max_message_bytes",
        "Largest message of a client, and body to publish, as set",
        limits.max_message_size as f64,
    )?;
    let help = "Most bytes a second that one client's texts bring to each client, as set; 0: no bound";
    gauge(to, "max_client_rate_bytes_per_second", help, limits.max_client_rate.unwrap_or(0) as f64)?;
    let help = "Most bytes a second that all clients' texts bring to each client, as set; 0: no bound";
    gauge(to, "max_total_rate_bytes_per_second", help, limits.max_total_rate.unwrap_or(0) as f64)
}

fn counter(
    to: &mut DescriptorEncoder<'_>,
    format: Format,
    name: &'static str,
    help: &str,
    value: u64,
) -> Result<(), fmt::Error> {
    count(counters(to, format, name, help)?, format, value)
}

/// Begins a counter, whose samples are called `name`, with its `_total`. Prometheus' format gives the help
/// and the type to that name, OpenMetrics to the name without it.
fn counters<'a>(
    to: &'a mut DescriptorEncoder<'_>,
    format: Format,
    name: &'static str,
    help: &str,
) -> Result<MetricEncoder<'a>, fmt::Error> {
    let family = match format {
        Format::Prometheus => name,
        Format::OpenMetrics => name.trim_end_matches("_total"),
    };
    to.encode_descriptor(family, help, None, MetricType::Counter)
}

/// Returns a sample of a counter.
fn count(mut counter: MetricEncoder<'_>, format: Format, value: u64) -> Result<(), fmt::Error> {
    match format {
        // A counter of the library always gets its `_total` added; a gauge is written as it is.
        Format::Prometheus => counter.encode_gauge(&value),
        Format::OpenMetrics => ConstCounter::new(value).encode(counter),
    }
}

fn gauge(to: &mut DescriptorEncoder<'_>, name: &str, help: &str, value: f64) -> Result<(), fmt::Error> {
    ConstGauge::new(value).encode(to.encode_descriptor(name, help, None, MetricType::Gauge)?)
}
