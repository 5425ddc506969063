//! A publisher at full speed, and clients that stopped reading: do the others notice?

use std::{
    net::TcpStream,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use rustix::net::sockopt;
use url::Url;

use crate::{client::text_frame, fair, fleet::Fleet, process::Process};

/// Texts that are under way at once, and their size: enough to fill a socket's buffers within a second.
const BURST: usize = 64;
const PAYLOAD: usize = 512;

/// What came of it.
pub(crate) struct Speed {
    pub(crate) deliveries_per_second: f64,
    /// The most that the server's memory grew by, in bytes.
    pub(crate) memory: f64,
}

/// Publishes for `time`, each burst when everyone who reads has the one before; `stuck` clients more never
/// read.
pub(crate) fn run(
    url: &Url,
    clients: usize,
    stuck: usize,
    time: Duration,
    server: Process,
) -> anyhow::Result<Speed> {
    let mut fleet = Fleet::connect(url, clients, 512, false)?;
    let held = (0..stuck).map(|_| stop_reading(url)).collect::<anyhow::Result<Vec<_>>>()?;
    fleet.receive(Instant::now() + Duration::from_millis(300), |_, _| false)?;
    let before = server.usage()?.memory;
    let burst = text_frame(&[b'x'; PAYLOAD]).repeat(BURST);
    let wanted = BURST * clients;
    let started = Instant::now();
    let (mut deliveries, mut most) = (0, before);
    while started.elapsed() < time {
        fleet.send(0, &burst)?;
        let mut got = 0;
        let gone = fleet.receive(Instant::now() + Duration::from_secs(20), |_, text| {
            got += usize::from(text.len() > PAYLOAD / 2);
            got >= wanted
        })?;
        ensure!(gone == 0 && got >= wanted, "{gone} of those who read were closed; {got} of {wanted} came");
        deliveries += got;
        most = most.max(server.usage()?.memory);
    }
    let seconds = started.elapsed().as_secs_f64();
    drop(held);
    Ok(Speed { deliveries_per_second: deliveries as f64 / seconds, memory: (most - before) as f64 })
}

/// A client that has shaken hands and reads nothing after that.
fn stop_reading(url: &Url) -> anyhow::Result<TcpStream> {
    let address = url.socket_addrs(|| None)?.first().copied().context("the URL has no address")?;
    let stream = fair::shake(address)?;
    sockopt::set_socket_recv_buffer_size(&stream, 4096)?;
    Ok(stream)
}
