//! A publisher at full speed, and clients that stopped reading: how fast the others are served.

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

/// The result.
pub(crate) struct Speed {
    pub(crate) deliveries_per_second: f64,
    /// The most that the server's memory grew by, in bytes.
    pub(crate) memory: f64,
}

/// Publishes for `time`. Each burst is sent when all clients that read have the one before. `stuck` more
/// clients never read.
pub(crate) fn run(
    url: &Url,
    clients: usize,
    stuck: usize,
    time: Duration,
    server: Process,
) -> anyhow::Result<Speed> {
    let mut fleet = Fleet::connect(url, clients, 512, false)?;
    let held = (0..stuck).map(|_| connect_stuck(url)).collect::<anyhow::Result<Vec<_>>>()?;
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
        ensure!(
            gone == 0 && got >= wanted,
            "{gone} clients that read were closed; {got} of {wanted} texts came"
        );
        deliveries += got;
        most = most.max(server.usage()?.memory);
    }
    let seconds = started.elapsed().as_secs_f64();
    drop(held);
    Ok(Speed { deliveries_per_second: deliveries as f64 / seconds, memory: (most - before) as f64 })
}

/// Connects a client that reads nothing after its handshake.
fn connect_stuck(url: &Url) -> anyhow::Result<TcpStream> {
    let address = url.socket_addrs(|| None)?.first().copied().context("the URL has no address")?;
    let stream = fair::connect(address)?;
    sockopt::set_socket_recv_buffer_size(&stream, 4096)?;
    Ok(stream)
}
