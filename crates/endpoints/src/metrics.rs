//! `GET /metrics`: figures for Prometheus, in the OpenMetrics text format.

use std::{fmt, sync::Arc, time::Duration};

use axum::{
    extract::State,
    http::header::CONTENT_TYPE,
    response::{IntoResponse, Response},
};
use lastcall_websockets::{Durations, Figures, Occupancy};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric, NoLabelSet, text::encode},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
    registry::Registry,
};
use tokio::time::timeout;

use crate::{
    error::{ApiError, ErrorCode},
    health::HealthReport,
    routes::Context,
};

/// Every phase's name: a label for each, so that one can be waited for before it was ever reached.
const PHASES: [&str; 6] = ["starting", "serving", "withdrawing", "draining", "closing", "stopped"];

/// How long the event loops have to answer: each does in its next turn.
const PATIENCE: Duration = Duration::from_secs(2);

/// Everything there is to tell, at one moment.
#[derive(Debug)]
struct Snapshot {
    figures: Figures,
    occupancy: Occupancy,
    report: HealthReport,
    handovers: Handovers,
}

/// Upgrades by handing over the sockets, of this process and those before it.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Handovers {
    /// Those that were carried out.
    pub done: u64,
    /// Those that failed; nobody noticed.
    pub failed: u64,
    /// Clients that the last one handed over.
    pub clients: u64,
    /// How long nobody served them, in seconds.
    pub paused: f64,
}

pub(crate) async fn metrics(State(context): State<Arc<Context>>) -> Response {
    let Ok(Some(figures)) = timeout(PATIENCE, context.manager.figures()).await else {
        return ApiError::new(
            ErrorCode::Overloaded,
            "The event loops did not answer in time; try again later.",
        )
        .into_response();
    };
    let mut registry = Registry::with_prefix("lastcall");
    registry.register_collector(Box::new(Snapshot {
        figures,
        occupancy: context.manager.occupancy(),
        report: context.health.report(),
        handovers: context.health.handovers(),
    }));
    let mut text = String::new();
    match encode(&mut text, &registry) {
        Ok(()) => {
            let format = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            ([(CONTENT_TYPE, format)], text).into_response()
        }
        // Writing to a string does not fail.
        Err(error) => ApiError::new(ErrorCode::Overloaded, error.to_string()).into_response(),
    }
}

impl Collector for Snapshot {
    fn encode(&self, mut to: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let Self { figures, occupancy, report, handovers } = self;
        gauge(&mut to, "clients", "Clients that are connected", occupancy.clients as f64)?;
        counter(&mut to, "connections_opened", "Clients that came", figures.opened)?;
        let mut family = to.encode_descriptor(
            "connections_closed",
            "Clients that went, by reason",
            None,
            MetricType::Counter,
        )?;
        for (reason, count) in &figures.closed {
            ConstCounter::new(*count).encode(family.encode_family(&[("reason", reason.as_ref())])?)?;
        }
        counter(&mut to, "connections_cut", "Clients that were closed and had to be cut off", figures.cut)?;
        let slow = figures.closed.get("slow_consumer").copied().unwrap_or(0);
        counter(&mut to, "slow_consumers", "Clients that were closed because they did not keep up", slow)?;
        counter(&mut to, "messages_received", "Messages from clients", figures.messages_received)?;
        counter(&mut to, "messages_sent", "Messages to clients, once for each", figures.messages_sent)?;
        counter(&mut to, "received_bytes", "Bytes from clients, with framing", figures.bytes_received)?;
        counter(&mut to, "sent_bytes", "Bytes of messages to clients, with framing", figures.bytes_sent)?;
        gauge(&mut to, "queue_bytes", "Bytes that wait for slow clients", figures.queued_bytes as f64)?;
        gauge(&mut to, "queue_clients", "Clients that have bytes waiting", figures.queued_clients as f64)?;
        let mut family =
            to.encode_descriptor("phase", "1 for the phase of the process", None, MetricType::Gauge)?;
        for phase in PHASES {
            let now = i64::from(phase == report.phase);
            ConstGauge::new(now).encode(family.encode_family(&[("phase", phase)])?)?;
        }
        let left = report.seconds_left.unwrap_or(0.0);
        gauge(
            &mut to,
            "drain_seconds_left",
            "Seconds until those who stay are closed; 0: not draining",
            left,
        )?;
        let total = report.drain_clients.unwrap_or(0) as f64;
        gauge(&mut to, "drain_clients", "Clients there were when the drain started; 0: not draining", total)?;
        let mut family = to.encode_descriptor(
            "handovers",
            "Upgrades that handed over the live sockets, by result",
            None,
            MetricType::Counter,
        )?;
        for (result, count) in [("done", handovers.done), ("failed", handovers.failed)] {
            ConstCounter::new(count).encode(family.encode_family(&[("result", result)])?)?;
        }
        gauge(&mut to, "handover_clients", "Clients of the last handover", handovers.clients as f64)?;
        gauge(
            &mut to,
            "handover_pause_seconds",
            "Time nobody was served in the last handover",
            handovers.paused,
        )?;
        let help = "Time that a turn of an event loop took";
        let mut histogram = to.encode_descriptor("loop_turn_seconds", help, None, MetricType::Histogram)?;
        let Durations { counts, sum_us } = &figures.turns;
        let limits = Durations::LIMITS.iter().map(|us| *us as f64 / 1e6).chain([f64::MAX]);
        let buckets: Vec<_> = limits.zip(counts.iter().copied()).collect();
        histogram.encode_histogram::<NoLabelSet>(*sum_us as f64 / 1e6, counts.iter().sum(), &buckets, None)
    }
}

fn counter(to: &mut DescriptorEncoder<'_>, name: &str, help: &str, value: u64) -> Result<(), fmt::Error> {
    ConstCounter::new(value).encode(to.encode_descriptor(name, help, None, MetricType::Counter)?)
}

fn gauge(to: &mut DescriptorEncoder<'_>, name: &str, help: &str, value: f64) -> Result<(), fmt::Error> {
    ConstGauge::new(value).encode(to.encode_descriptor(name, help, None, MetricType::Gauge)?)
}
