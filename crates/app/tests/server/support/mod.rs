//! What the tests have in common.

mod browser;
mod client;
mod exposition;
mod log;
mod server;

use std::time::{Duration, Instant};

pub(crate) use browser::{Chromium, Driver};
pub(crate) use client::{Answer, Client};
pub(crate) use exposition::{Exposition, Format};
pub(crate) use log::message;
pub(crate) use rustix::process::Signal;
use rustix::process::{Resource, getrlimit, setrlimit};
pub(crate) use server::{Ended, Server, Start};
use tokio::{io::AsyncReadExt, net::TcpStream, time::timeout};

/// The longest that anything may take: a server that hangs fails its test, and none waits for ever.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Waits for `what`, but not for ever.
pub(crate) async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("{what}: nothing for {PATIENCE:?}"))
}

/// Tries up to three times whether `attempt` takes no longer than `limit`: a machine may be busy once, but
/// a server that is too slow always fails.
pub(crate) async fn takes_at_most(limit: Duration, mut attempt: impl AsyncFnMut() -> Duration) {
    let mut taken = Vec::new();
    for _ in 0..3 {
        taken.push(attempt().await);
        if taken.iter().any(|taken| *taken <= limit) {
            return;
        }
    }
    panic!("at most {limit:?} was wanted, but it took {taken:?}");
}

/// How long `future` takes.
pub(crate) async fn timed<T>(future: impl Future<Output = T>) -> (T, Duration) {
    let started = Instant::now();
    let value = future.await;
    (value, started.elapsed())
}

/// Lets this test have as many sockets as the system allows.
pub(crate) fn raise_fd_limit() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit).unwrap();
}

/// Reads until what came ends with `close`, the end of a close frame.
pub(crate) async fn read_to_close(stream: &mut TcpStream, close: &[u8]) -> Vec<u8> {
    let mut got = Vec::new();
    while !got.ends_with(close) {
        let read = soon("a close frame", stream.read_buf(&mut got)).await.unwrap();
        assert_ne!(read, 0, "the end came before the close: {:?}", &got[got.len().saturating_sub(40)..]);
    }
    got
}
