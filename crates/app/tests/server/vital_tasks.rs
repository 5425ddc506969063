//! A part of the server that fails, and that nothing else would miss, ends the server: its clients are told,
//! and whatever started it sees its exit code.

use lastcall_handover::failpoint;
use rustix::process::Signal;
use tempfile::NamedTempFile;
use tokio::net::{TcpStream, UnixStream};

use crate::support::{Client, Http, Server, Start, message};

/// A server, of which any part can be made to fail when it continues.
struct Failing {
    server: Server,
    client: Client,
    failpoint: NamedTempFile,
}

impl Failing {
    async fn start(start: Start) -> Self {
        let failpoint = NamedTempFile::new().unwrap();
        let start = start.env(failpoint::FILE_VARIABLE, failpoint.path().display());
        let server =
            start.env("LASTCALL_EVENT_LOOPS", 2).env("LASTCALL_CONNECTIONS_PER_LOOP", 1).serve().await;
        let client = server.client().await;
        Self { server, client, failpoint }
    }

    /// Waits until nothing is left to be done: what is set from here on is for what comes from here on. The
    /// end of the connection that is returned would be such a thing.
    async fn settle(&self) -> Http {
        let mut http = Http::connect(&self.server).await;
        let request = http.head("GET", "/metrics", &[]);
        // Each event loop and the accept loop come back to their wait between two of them.
        for _ in 0..3 {
            assert_eq!(http.call(&request).await.status, 200);
        }
        http
    }

    fn set(&self, action: &str) {
        std::fs::write(self.failpoint.path(), action).unwrap();
    }

    /// The server says which part has failed, closes its clients, and ends with code 1.
    async fn ends(mut self, name: &str) {
        let wanted = format!("{name} failed: closing all connections, and ending");
        let line = self.server.log().line(|line| message(line).contains("failed: closing all")).await;
        assert_eq!((message(&line), &line["level"]), (&*wanted, &"ERROR".into()));
        assert_eq!(self.client.closed().await.0.0, 1012, "{name}");
        assert_eq!(self.server.exit_code().await, 1, "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_loop_that_fails_ends_the_server() {
    for action in ["panic", "do"] {
        let failing = Failing::start(Start::default()).await;
        let _settled = failing.settle().await;
        // Of the other loop.
        let mut lost = failing.server.client().await;
        let _settled = failing.settle().await;
        failing.set(&format!("an event loop:{action}"));
        lost.say("hello").await;
        failing.ends("an event loop").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_accept_loop_that_fails_ends_the_server() {
    let failing = Failing::start(Start::default()).await;
    failing.set("the accept loop:panic");
    // It may be reset before this end knows that it is connected.
    let _stream = TcpStream::connect(failing.server.address).await;
    failing.ends("the accept loop").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_notifier_that_fails_ends_the_server() {
    let failing = Failing::start(Start::default().env("NOTIFICATION_INTERVAL", "0.1")).await;
    failing.set("the notifier:panic");
    failing.ends("the notifier").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expiry_that_fails_ends_the_server() {
    let failing = Failing::start(Start::default().env("HISTORY_TTL", "1")).await;
    failing.set("the expiry of the history:panic");
    failing.ends("the expiry of the history").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_control_socket_that_fails_ends_the_server() {
    let failing = Failing::start(Start::default()).await;
    failing.set("the control socket:panic");
    let _stream = UnixStream::connect(failing.server.control_socket()).await.unwrap();
    failing.ends("the control socket").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_cannot_receive_signals_ends() {
    let failing = Failing::start(Start::default()).await;
    failing.set("the handling of signals:panic");
    failing.server.signal(Signal::USR1);
    failing.ends("the handling of signals").await;

    let mut failing = Failing::start(Start::default()).await;
    failing.server.upgrade().await;
    failing.set("the link to the supervisor:panic");
    failing.server.signal(Signal::USR1);
    failing.ends("the link to the supervisor").await;
}

/// What still runs may have published since: offsets would be given a second time.
#[tokio::test(flavor = "multi_thread")]
async fn an_end_after_a_failure_says_that_it_writes_no_history() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("history");
    let mut failing = Failing::start(Start::default().env("HISTORY_FILE", file.display())).await;
    assert_eq!(failing.server.publish(r#"{"data":1}"#).await.status, 200);
    failing.set("the control socket:panic");
    let _stream = UnixStream::connect(failing.server.control_socket()).await.unwrap();
    assert_eq!(failing.server.exit_code().await, 1);
    assert_eq!(failing.server.log_lines("the history is not written").len(), 1);
    assert!(!file.exists());
}

/// A part that fails while an upgrade stops it is not there to be continued, so the old process must not say
/// that it continues.
#[tokio::test(flavor = "multi_thread")]
async fn what_fails_while_an_upgrade_stops_it_ends_the_server() {
    for name in ["the accept loop", "the notifier"] {
        // Neither has anything to do before the upgrade.
        let failing = Failing::start(Start::default().env("NOTIFICATION_INTERVAL", "3600")).await;
        let _settled = failing.settle().await;
        failing.set(&format!("{name}:panic"));
        let told = failing.server.failed_upgrade().await;
        assert!(told.contains("the server ends, as a part of it has failed"), "{name}: {told}");
        assert!(!told.contains("continues"), "{name}: {told}");
        failing.ends(name).await;
    }
}
