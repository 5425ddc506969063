//! Fairness: how long one client's pings, and handshakes, take while a server is busy with ten thousand
//! clients and a flood.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use hdrhistogram::Histogram;
use url::Url;

use crate::{client::text_frame, fleet::Fleet};

/// The longest that one read may take.
const READ_TIMEOUT: Duration = Duration::from_secs(10);

/// How long pings and handshakes took, in milliseconds: 99 of 100, and the longest.
pub(crate) struct Waits {
    pub(crate) ping: [f64; 2],
    pub(crate) handshake: [f64; 2],
}

/// Broadcasts to `clients` at `rate` for `time` while one more floods the server; meanwhile, another client
/// pings, and others connect.
pub(crate) fn run(url: &Url, clients: usize, rate: f64, time: Duration) -> anyhow::Result<Waits> {
    let address = *url.socket_addrs(|| None)?.first().context("the URL has no address")?;
    let mut fleet = Fleet::connect(url, clients, 512, false)?;
    let done = Arc::new(AtomicBool::new(false));
    let flood = thread::spawn({
        let (done, mut stream) = (Arc::clone(&done), connect(address)?);
        move || {
            // Unsolicited pongs: the server has to read every one, and answers none (RFC 6455 section 5.5.3).
            let frames = [0x8A, 0x80, 0, 0, 0, 0].repeat(2000);
            while !done.load(Ordering::Relaxed) && stream.write_all(&frames).is_ok() {}
        }
    });
    let probe = thread::spawn({
        let done = Arc::clone(&done);
        move || probe(address, &done)
    });
    let started = Instant::now();
    let mut publication = 0;
    while started.elapsed() < time {
        fleet.send(0, &text_frame(&[b'x'; 64]))?;
        publication += 1;
        fleet.receive(started + Duration::from_secs_f64(f64::from(publication) / rate), |_, _| false)?;
    }
    done.store(true, Ordering::Relaxed);
    let waits = probe.join().map_err(|_| anyhow::anyhow!("the probe panicked"))??;
    drop(fleet);
    // It ends with its socket, by an error that does not matter.
    let _ = flood.join();
    Ok(waits)
}

fn probe(address: SocketAddr, done: &AtomicBool) -> anyhow::Result<Waits> {
    let mut pinging = connect(address)?;
    let (mut pings, mut handshakes) = (Histogram::<u64>::new(3)?, Histogram::<u64>::new(3)?);
    let micros = |since: Instant| since.elapsed().as_micros() as u64;
    while !done.load(Ordering::Relaxed) {
        let started = Instant::now();
        pinging.write_all(&[0x89, 0x80, 0, 0, 0, 0])?;
        read_to_pong(&mut pinging)?;
        pings.record(micros(started))?;
        let started = Instant::now();
        drop(connect(address)?);
        handshakes.record(micros(started))?;
        thread::sleep(Duration::from_millis(5));
    }
    let of = |histogram: &Histogram<u64>| {
        [histogram.value_at_quantile(0.99) as f64 / 1e3, histogram.max() as f64 / 1e3]
    };
    Ok(Waits { ping: of(&pings), handshake: of(&handshakes) })
}

/// Reads frames until a pong.
fn read_to_pong(stream: &mut TcpStream) -> anyhow::Result<()> {
    loop {
        let mut head = [0; 2];
        stream.read_exact(&mut head)?;
        let len = match head[1] {
            126 => {
                let mut len = [0; 2];
                stream.read_exact(&mut len)?;
                u64::from(u16::from_be_bytes(len))
            }
            len => u64::from(len),
        };
        std::io::copy(&mut Read::by_ref(stream).take(len), &mut std::io::sink())?;
        if head[0] == 0x8A {
            return Ok(());
        }
    }
}

/// Connects a client; returns once its handshake is complete.
pub(crate) fn connect(address: SocketAddr) -> anyhow::Result<TcpStream> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(READ_TIMEOUT))?;
    let request = format!(
        "GET /ws HTTP/1.1\r\nHost: {address}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    );
    stream.write_all(request.as_bytes())?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    ensure!(head.starts_with(b"HTTP/1.1 101"), "the server refused a client");
    Ok(stream)
}
