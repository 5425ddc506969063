//! Round trips: each client sends a text and sends the next when it is back.

use std::time::{Duration, Instant};

use url::Url;

use crate::{client::text_frame, fleet::Fleet, process::Process};

/// Round trips a second, and the server's CPU time per round trip in microseconds.
pub(crate) struct Echo {
    pub(crate) per_second: f64,
    pub(crate) cpu_us: f64,
}

/// Bounces a text of 64 bytes for `time` between the server and each of `clients`.
pub(crate) fn run(url: &Url, clients: usize, time: Duration, server: Process) -> anyhow::Result<Echo> {
    let mut fleet = Fleet::connect(url, clients, clients, false)?;
    fleet.receive(Instant::now() + Duration::from_millis(200), |_, _| false)?;
    let frame = text_frame(&[b'x'; 64]);
    let before = server.usage()?.cpu;
    let started = Instant::now();
    for index in 0..clients {
        fleet.send(index, &frame)?;
    }
    let mut trips = 0u64;
    while started.elapsed() < time {
        let mut back = Vec::new();
        fleet.receive(started + time, |index, _| {
            back.push(index);
            true
        })?;
        trips += back.len() as u64;
        for index in back {
            fleet.send(index, &frame)?;
        }
    }
    let seconds = started.elapsed().as_secs_f64();
    let cpu = server.usage()?.cpu - before;
    Ok(Echo { per_second: trips as f64 / seconds, cpu_us: cpu.as_secs_f64() * 1e6 / trips.max(1) as f64 })
}
