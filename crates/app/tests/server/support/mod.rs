//! What the tests have in common.

mod browser;
mod chunks;
mod client;
mod connection_budget;
mod event_stream;
mod exposition;
mod http;
mod http_connection;
mod log;
mod network;
mod prefix_proxy;
mod process;
mod program;
mod proxy;
mod server;
mod start;
mod wall_clock;
mod websocket;
mod wire;

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    sync::atomic::{AtomicU8, Ordering},
    time::{Duration, Instant},
};

pub(crate) use browser::{Chromium, Driver};
pub(crate) use client::{Answer, Client, dial, refusal_of};
pub(crate) use connection_budget::ConnectionBudget;
pub(crate) use event_stream::{Event, EventStream};
pub(crate) use exposition::{Exposition, Format};
pub(crate) use http::{exchange, metric};
pub(crate) use http_connection::Http;
pub(crate) use log::message;
pub(crate) use network::Network;
pub(crate) use prefix_proxy::PrefixProxy;
pub(crate) use program::{folder_for_programs, install_script, install_server, installed, python_with};
pub(crate) use proxy::{Api, Proxy, Software};
pub(crate) use rustix::process::Signal;
pub(crate) use server::{Server, adopt_orphans};
pub(crate) use start::{Ended, Start};
use tempfile::TempDir;
use tokio::{
    net::{TcpSocket, TcpStream},
    time::timeout,
};
pub(crate) use wall_clock::WallClock;
pub(crate) use websocket::{
    ACCEPT, CLOSE, HANDSHAKE, KEY, VERSION, frame_length, handshake, handshake_with, masked_frame,
    read_frame, read_to_close, text_frame,
};

pub(crate) use wire::{Input, Received, Wire};

/// The longest that one step of a test may take: a server that hangs fails its test, and no test waits
/// without end. Far more than a busy machine needs, for a browser, too.
pub(crate) const STEP_TIMEOUT: Duration = Duration::from_secs(120);

/// Longest path of a folder that leaves room for the names of sockets in it: the path of a Unix socket has at
/// most 107 bytes (unix(7)).
const LONGEST_FOLDER: usize = 60;

/// Returns a folder of one's own, with a short path wherever TMPDIR is.
pub(crate) fn folder() -> TempDir {
    let usual = std::env::temp_dir();
    let fits = usual.as_os_str().len() + "/.tmpXXXXXX".len() <= LONGEST_FOLDER;
    let short = if fits { usual.as_path() } else { Path::new("/tmp") };
    tempfile::tempdir_in(short).unwrap_or_else(|error| {
        panic!("no folder can be made in {} ({error}): set TMPDIR to a short path", short.display())
    })
}

/// Waits until a condition is true, for conditions that no event reports.
pub(crate) async fn until(what: &str, mut is_true: impl AsyncFnMut() -> bool) {
    soon(what, async {
        while !is_true().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

/// Waits for `future`, but no longer than [`STEP_TIMEOUT`].
pub(crate) async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    timeout(STEP_TIMEOUT, future).await.unwrap_or_else(|_| panic!("{what}: nothing for {STEP_TIMEOUT:?}"))
}

/// Tries up to ten times whether `attempt` takes no longer than `limit`: a machine may be busy for a while,
/// but a server that is too slow always fails.
pub(crate) async fn takes_at_most(limit: Duration, mut attempt: impl AsyncFnMut() -> Duration) {
    let mut taken = Vec::new();
    for _ in 0..10 {
        taken.push(attempt().await);
        if taken.iter().any(|taken| *taken <= limit) {
            return;
        }
    }
    panic!("at most {limit:?} was wanted, but it took {taken:?}");
}

/// Returns how long `future` takes.
pub(crate) async fn timed<T>(future: impl Future<Output = T>) -> (T, Duration) {
    let started = Instant::now();
    let value = future.await;
    (value, started.elapsed())
}

/// Returns an address of this machine that no other test uses: all of 127.0.0.0/8 are (RFC 1122 section
/// 3.2.1.3). A program that takes any free port takes one of 127.0.0.1.
pub(crate) fn own_address() -> Ipv4Addr {
    static NEXT: AtomicU8 = AtomicU8::new(0);
    let [.., high, low] = std::process::id().to_be_bytes();
    Ipv4Addr::new(127, 128 | (high & 127), low, NEXT.fetch_add(1, Ordering::Relaxed))
}

/// Connects the client of this number. Many clients come from a hundred addresses: its connections would take
/// most of the ports that one has, also for the minute after they have ended, and other tests would find
/// none.
pub(crate) async fn connect_one_of_many(server: SocketAddr, number: usize) -> TcpStream {
    let from = Ipv4Addr::new(127, 0, 1, 1 + (number % 100) as u8);
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind((from, 0).into()).unwrap();
    socket.connect(server).await.unwrap()
}
