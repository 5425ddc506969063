//! One measurement: clients, a rate, and what comes of it.

use std::{
    thread::sleep,
    time::{Duration, Instant},
};

use clap::Args;
use hdrhistogram::Histogram;
use serde::Serialize;
use url::Url;

use crate::{arguments, client::text_frame, fleet::Fleet, process::Process};

/// What a text begins with, before the time stamp: found in whatever the server wraps it in.
const MARK: &[u8] = b"@lc:";

/// Digits of the stamp, hexadecimal nanoseconds.
const STAMP: usize = 16;

/// How long the server is watched while nothing happens.
const IDLE: Duration = Duration::from_millis(300);

/// How long the last deliveries may take after the last publication.
const DELIVERY_TIMEOUT: Duration = Duration::from_secs(20);

/// How to load a server.
#[derive(Debug, Clone, Args)]
pub(crate) struct Load {
    /// Clients that listen
    #[arg(long, default_value_t = 1000, value_parser = arguments::count)]
    pub(crate) clients: usize,
    /// Clients that dial at once; the next one dials when one of them is connected
    #[arg(long, default_value_t = 512, value_parser = arguments::count)]
    pub(crate) at_once: usize,
    /// Publications a second, each of --burst texts
    #[arg(long, default_value_t = 20.0, value_parser = arguments::positive)]
    pub(crate) rate: f64,
    /// Bytes of each text, at least 20
    #[arg(long, default_value_t = 64, value_parser = payload)]
    pub(crate) payload: usize,
    /// Texts published at once
    #[arg(long, default_value_t = 1, value_parser = arguments::count)]
    pub(crate) burst: usize,
    /// Seconds to publish for
    #[arg(long, default_value_t = 5.0, value_parser = arguments::positive)]
    pub(crate) seconds: f64,
    /// The server's process, on this machine: measures its CPU time and memory
    #[arg(long)]
    pub(crate) server_pid: Option<u32>,
}

fn payload(text: &str) -> Result<usize, String> {
    let least = MARK.len() + STAMP;
    let bytes = arguments::count(text)?;
    if bytes < least { Err(format!("it must be at least {least}")) } else { Ok(bytes) }
}

/// What came of it.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Outcome {
    pub(crate) clients: usize,
    pub(crate) deliveries: u64,
    /// Deliveries that did not come.
    pub(crate) missing: u64,
    /// Clients that the server closed.
    pub(crate) gone: usize,
    pub(crate) seconds: f64,
    pub(crate) deliveries_per_second: f64,
    /// From the publication to the receipt, in microseconds.
    pub(crate) latency_us: Latency,
    pub(crate) connect_seconds: f64,
    pub(crate) handshakes_per_second: f64,
    /// Of the server, while its clients listen and nothing happens: the share of a core.
    pub(crate) idle_cpu: Option<f64>,
    /// Of the server, per delivery, in microseconds, beyond what it takes idle.
    pub(crate) cpu_per_delivery_us: Option<f64>,
    /// Of the server, per handshake, in microseconds.
    pub(crate) cpu_per_handshake_us: Option<f64>,
    /// Of the server: resident memory that came with the clients, by their number, in bytes.
    pub(crate) memory_per_client: Option<f64>,
}

#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Latency {
    pub(crate) p50: f64,
    pub(crate) p99: f64,
    pub(crate) p999: f64,
    pub(crate) max: f64,
}

/// Clients that come and go before the server's memory is measured.
const WARM_UP: usize = 64;

/// Connects some clients, publishes once, and disconnects them: what a server needs once, such as the pages
/// of its program, is not memory of its clients.
pub(crate) fn warm_up(url: &Url) -> anyhow::Result<()> {
    let mut fleet = Fleet::connect(url, WARM_UP, WARM_UP, false)?;
    fleet.send(0, &text_frame(b"warm-up"))?;
    fleet.receive(Instant::now() + IDLE, |_, _| false)?;
    drop(fleet);
    sleep(IDLE);
    Ok(())
}

/// Loads the server at `url`.
pub(crate) fn run(url: &Url, load: &Load, progress: bool) -> anyhow::Result<Outcome> {
    let server = load.server_pid.map(Process);
    let usage = || server.map(Process::usage).transpose();

    warm_up(url)?;
    let empty = usage()?;
    let connecting = Instant::now();
    let mut fleet = Fleet::connect(url, load.clients, load.at_once, progress)?;
    let connect_seconds = connecting.elapsed().as_secs_f64();
    // Greetings are read, and the server settles.
    fleet.receive(Instant::now() + Duration::from_millis(500), |_, _| false)?;
    let settled = usage()?;
    fleet.receive(Instant::now() + IDLE, |_, _| false)?;
    let idle = usage()?;

    let epoch = Instant::now();
    let every = Duration::from_secs_f64(1.0 / load.rate);
    let publications = (load.rate * load.seconds).round().max(1.0) as u64;
    let expected = publications * load.burst as u64 * load.clients as u64;
    // To 60 s, to three digits.
    let mut latency = Histogram::<u64>::new_with_bounds(1, 60_000_000_000, 3)?;
    let (mut deliveries, mut gone) = (0u64, 0);
    for n in 0..publications {
        let stamp = epoch.elapsed().as_nanos();
        let mut text = [MARK, format!("{stamp:016x}").as_bytes()].concat();
        text.resize(load.payload, b'.');
        fleet.send(0, &text_frame(&text).repeat(load.burst))?;
        let last = n + 1 == publications;
        let until =
            epoch + every.mul_f64((n + 1) as f64) + if last { DELIVERY_TIMEOUT } else { Duration::ZERO };
        gone += fleet.receive(until, |_, text| {
            if let Some(sent) = stamped(text) {
                deliveries += 1;
                let nanos = (epoch.elapsed().as_nanos() as u64).saturating_sub(sent);
                latency.saturating_record(nanos.max(1));
            }
            last && deliveries >= expected
        })?;
    }
    let seconds = epoch.elapsed().as_secs_f64();
    let done = usage()?;

    // Some servers are busy without any work; that is not the price of a delivery.
    let idle_cpu =
        idle.zip(settled).map(|(idle, settled)| (idle.cpu - settled.cpu).as_secs_f64() / IDLE.as_secs_f64());
    let busy = done.zip(idle).zip(idle_cpu).map(|((done, idle), share)| {
        (done.cpu - idle.cpu).saturating_sub(Duration::from_secs_f64(share * seconds))
    });
    let us = |nanos: u64| nanos as f64 / 1000.0;
    let quantile = |q| us(latency.value_at_quantile(q));
    let per = |after: Option<Duration>, count: f64| after.map(|cpu| cpu.as_secs_f64() * 1e6 / count);
    Ok(Outcome {
        clients: load.clients,
        deliveries,
        missing: expected.saturating_sub(deliveries),
        gone,
        seconds,
        deliveries_per_second: deliveries as f64 / seconds,
        latency_us: Latency {
            p50: quantile(0.5),
            p99: quantile(0.99),
            p999: quantile(0.999),
            max: us(latency.max()),
        },
        connect_seconds,
        handshakes_per_second: load.clients as f64 / connect_seconds,
        idle_cpu,
        cpu_per_delivery_us: per(busy, deliveries.max(1) as f64),
        cpu_per_handshake_us: per(
            settled.zip(empty).map(|(settled, empty)| settled.cpu - empty.cpu),
            load.clients as f64,
        ),
        memory_per_client: idle
            .zip(empty)
            .map(|(idle, empty)| (idle.memory as f64 - empty.memory as f64) / load.clients as f64),
    })
}

/// Returns when this text was sent, if it is one of ours.
fn stamped(text: &[u8]) -> Option<u64> {
    let at = text.windows(MARK.len()).position(|bytes| bytes == MARK)? + MARK.len();
    u64::from_str_radix(std::str::from_utf8(text.get(at..at + STAMP)?).ok()?, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_is_found_in_whatever_the_server_wraps_it_in() {
        assert_eq!(stamped(br#"{"data":"@lc:00000000000000ff...."}"#), Some(255));
        assert_eq!(stamped(b"@lc:00000000000000"), None);
        assert_eq!(stamped(br#"{"type":"welcome"}"#), None);
    }
}
