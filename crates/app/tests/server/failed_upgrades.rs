//! Upgrades that fail: the old process continues serving all clients.

use std::{
    fs,
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::Duration,
};

use lastcall_handover::failpoint::{self, Step};
use tokio::net::TcpStream;

use crate::support::{Client, Server, Signal, Start, folder_for_programs, install_script, install_server};

/// A server whose upgrades can be made to fail, and its clients.
struct Failing {
    server: Server,
    clients: Vec<Client>,
    /// Its queue makes the state larger than the buffer of the Unix socket: a new process that does not read
    /// stalls the old one.
    _slow: TcpStream,
    failpoint: tempfile::NamedTempFile,
    /// Upgrades so far, all of which failed.
    failed: usize,
}

impl Failing {
    async fn start(start: Start) -> Self {
        let failpoint = tempfile::NamedTempFile::new().unwrap();
        let start = start.env("MAX_QUEUE", "64MiB").env(failpoint::FILE_VARIABLE, failpoint.path().display());
        let server = start.serve().await;
        let mut clients = server.clients(20).await;
        let slow = server.raw_client().await;
        let unix_socket = fs::read_to_string("/proc/sys/net/core/wmem_default").unwrap();
        let unix_socket: usize = unix_socket.trim().parse().unwrap();
        let read = async || {
            for client in &mut clients {
                client.next_of("notification").await;
            }
        };
        server.publish_until_queued(2 * unix_socket, read).await;
        Self { server, clients, _slow: slow, failpoint, failed: 0 }
    }

    fn set(&self, action: &str) {
        fs::write(self.failpoint.path(), action).unwrap();
    }

    /// An upgrade that fails by this action: the old process serves all clients as before. What the command
    /// says.
    async fn fail(&mut self, action: &str) -> String {
        self.set(action);
        let pid = self.server.pid();
        let told = self.server.failed_upgrade().await;
        self.failed += 1;
        let number = self.failed.to_string();
        self.clients[0].say(&number).await;
        for client in &mut self.clients {
            assert_eq!(client.next_of("message").await["data"], number, "{action}");
        }
        assert_eq!(self.server.get("/health/ready").await.json()["clients"], 21, "{action}");
        assert_eq!(self.server.pid(), pid);
        let failed = self.server.metric("lastcall_upgrades_total{result=\"failed\"}").await;
        assert_eq!(failed, self.failed as f64, "{action}: {told}");
        told
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_process_that_dies_before_the_commit_leaves_the_old_one_serving() {
    let mut failing = Failing::start(Start::default()).await;
    let files = failing.server.open_files();
    for action in Step::BEFORE_COMMIT.iter().map(|step| format!("{step:?}:kill")) {
        let told = failing.fail(&action).await;
        assert!(told.contains("the server continues as before"), "{action}: {told}");
    }
    let told = failing.fail("CommitTooLate:do").await;
    assert!(told.contains("the server continues as before"), "{told}");
    let told = failing.fail("OtherProtocol:do").await;
    assert!(
        told.contains("understands version 3 to 3 of the handover") && told.contains("by version 4"),
        "{told}"
    );
    failing.server.open_files_at_most(files).await;
    // And after all that, one that works.
    failing.set("");
    failing.server.upgrade().await;
    failing.clients[0].say("done").await;
    assert_eq!(failing.clients[19].next_of("message").await["data"], "done");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_process_that_hangs_before_the_commit_leaves_the_old_one_serving() {
    // A short time for each that hangs. A new process on a busy machine may need it all for the step before,
    // which fails the upgrade as well.
    let mut failing = Failing::start(Start::default().env("UPGRADE_TIMEOUT", "1")).await;
    let files = failing.server.open_files();
    for action in Step::BEFORE_COMMIT.iter().map(|step| format!("{step:?}:hang")) {
        let told = failing.fail(&action).await;
        assert!(told.contains("the server continues as before"), "{action}: {told}");
    }
    failing.server.open_files_at_most(files).await;
}

/// Keeps the end of a process from its parent, as a debugger does (ptrace(2)). False if that is not allowed
/// here.
fn trace(pid: i32) -> bool {
    #[expect(unsafe_code, reason = "the system call has no safe form")]
    // SAFETY: it takes no memory of this process.
    let traced = unsafe { libc::ptrace(libc::PTRACE_SEIZE, pid, 0, 0) };
    traced == 0
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_process_that_cannot_be_ended_is_not_waited_for() {
    let mut failing = Failing::start(Start::default().env("UPGRADE_TIMEOUT", "3")).await;
    let server = failing.server.pid().as_raw_nonzero();
    // Each thread has children of its own.
    let children = move || -> Vec<i32> {
        let tasks = fs::read_dir(format!("/proc/{server}/task")).unwrap();
        let files = tasks.map(|task| task.unwrap().path().join("children"));
        let lists: String = files.filter_map(|file| fs::read_to_string(file).ok()).collect();
        lists.split_whitespace().map(|pid| pid.parse().unwrap()).collect()
    };
    let before = children();
    let (done, is_done) = mpsc::channel::<()>();
    // The tracer is the thread, and lets go when it ends.
    let tracer = thread::spawn(move || {
        while is_done.recv_timeout(Duration::from_millis(5)) == Err(RecvTimeoutError::Timeout) {
            if let Some(new) = children().into_iter().find(|pid| !before.contains(pid)) {
                let traced = trace(new);
                let _ = is_done.recv();
                return traced;
            }
        }
        false
    });
    let told = failing.fail(&format!("{:?}:hang", Step::SentHello)).await;
    drop(done);
    if !tracer.join().unwrap() {
        return eprintln!("not tested: no process may be traced here");
    }
    assert!(told.contains("the system has not ended it yet"), "{told}");
    // And then one that works.
    failing.set("");
    failing.server.upgrade().await;
    failing.clients[0].say("done").await;
    assert_eq!(failing.clients[19].next_of("message").await["data"], "done");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_cannot_serve_is_reported_and_the_old_process_goes_on() {
    let folder = folder_for_programs();
    let program = folder.path().join("lastcall");
    install_server(&program);
    let server = Start::default().program(&program).file("config/lastcall.toml", "").serve().await;
    let mut client = server.client().await;
    let config = server.dir.path().join("config/lastcall.toml");

    fs::write(&config, "close_timeout = 0").unwrap();
    let told = server.failed_upgrade().await;
    assert!(told.contains("it ended by itself (exit status: 2)"), "{told}");
    fs::write(&config, "max_connections = 1").unwrap();
    let _second = server.client().await;
    let told = server.failed_upgrade().await;
    assert!(told.contains("its `max_connections` is less than the clients that are connected"), "{told}");
    assert!(told.contains("it takes at most 1, but 2 are here"), "{told}");
    fs::write(&config, "").unwrap();

    // The real one, with too few files for all clients, but enough to start.
    let open_files = server.open_files();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let limit = open_files + 64 + 96 + 2 * cores;
    install_script(&program, &format!("ulimit -n {limit}; exec {} \"$@\"", env!("CARGO_BIN_EXE_lastcall")));
    let _more = server.clients(open_files - 1).await;
    let told = server.failed_upgrade().await;
    assert!(
        told.contains(&format!("it takes at most {open_files}, but {} are here", open_files + 1)),
        "{told}"
    );
    // The real one, with a folder for its socket that cannot be one.
    install_script(
        &program,
        &format!("RUNTIME_DIR=/dev/null/x exec {} \"$@\"", env!("CARGO_BIN_EXE_lastcall")),
    );
    let told = server.failed_upgrade().await;
    assert!(told.contains("it ended by itself (exit status: 2)"), "{told}");
    install_script(&program, "exit 3");
    let told = server.failed_upgrade().await;
    let reason = "it ended by itself (exit status: 3); its own output says why";
    assert!(told.trim_end().ends_with(reason), "{told}");
    fs::remove_file(&program).unwrap();
    let told = server.failed_upgrade().await;
    assert!(told.contains("cannot start") && told.contains("No such file"), "{told}");

    client.say("still here").await;
    assert_eq!(client.next_of("message").await["data"], "still here");
    assert_eq!(server.get("/health/ready").await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_is_never_ready_is_ended_and_the_old_process_goes_on() {
    let folder = folder_for_programs();
    let program = folder.path().join("lastcall");
    install_server(&program);
    let server = Start::default().program(&program).env("UPGRADE_TIMEOUT", "1").serve().await;
    let mut client = server.client().await;
    install_script(&program, "exec sleep 60");
    let told = server.failed_upgrade().await;
    assert!(told.contains("it was not ready within 1s"), "{told}");
    client.say("still here").await;
    assert_eq!(client.next_of("message").await["data"], "still here");
}

/// A server with more history than the buffer of a Unix socket takes, whose new process does not read on.
async fn with_history_that_is_not_taken(start: Start) -> (Server, tempfile::NamedTempFile) {
    let failpoint = tempfile::NamedTempFile::new().unwrap();
    let server = start.env(failpoint::FILE_VARIABLE, failpoint.path().display()).serve().await;
    let body = format!(r#"{{"channel":"orders","data":"{}"}}"#, "x".repeat(60_000));
    for _ in 0..50 {
        assert_eq!(server.publish(&body).await.status, 200);
    }
    fs::write(failpoint.path(), "ReceivedPart:hang").unwrap();
    (server, failpoint)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_history_that_is_not_taken_in_time_ends_the_upgrade_while_clients_are_served() {
    let start = Start::default().env("UPGRADE_TIMEOUT", "2");
    let (server, _failpoint) = with_history_that_is_not_taken(start).await;
    let (mut one, mut other) = (server.client().await, server.client().await);
    let upgrade = async {
        let told = server.failed_upgrade().await;
        assert!(told.contains("it had not taken over the history within 2s"), "{told}");
    };
    let serves = async {
        server.logged("upgrade: process").await;
        one.say("during it").await;
        assert_eq!(other.next_of("message").await["data"], "during it");
        assert!(server.log_lines("the upgrade failed").is_empty(), "it was under way");
    };
    tokio::join!(upgrade, serves);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sigterm_while_the_history_is_sent_aborts_the_upgrade() {
    let start = Start::default().env("UPGRADE_TIMEOUT", "600");
    let (mut server, _failpoint) = with_history_that_is_not_taken(start).await;
    let upgrade = async {
        let told = server.failed_upgrade().await;
        assert!(told.contains("asked to end meanwhile"), "{told}");
    };
    let signal = async {
        server.logged("upgrade: process").await;
        server.signal(Signal::TERM);
    };
    tokio::join!(upgrade, signal);
    assert_eq!(server.exit_code().await, 0);
}

/// The program may be on a file system that does not answer.
#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_cannot_be_read_keeps_the_server_from_nothing() {
    for (upgrade_timeout, reason) in
        [(1, "the program could not be started within 1s"), (600, "asked to end meanwhile")]
    {
        let failpoint = tempfile::NamedTempFile::new().unwrap();
        let start = Start::default().env("UPGRADE_TIMEOUT", upgrade_timeout);
        let mut server = start.env(failpoint::FILE_VARIABLE, failpoint.path().display()).serve().await;
        let mut client = server.client().await;
        fs::write(failpoint.path(), "Starting:hang").unwrap();
        let upgrade = async {
            let told = server.failed_upgrade().await;
            assert!(told.contains(reason), "{told}");
        };
        let serves = async {
            server.logged("an upgrade was requested").await;
            client.say("meanwhile").await;
            assert_eq!(client.next_of("message").await["data"], "meanwhile");
            if upgrade_timeout > 1 {
                server.signal(Signal::TERM);
            }
        };
        tokio::join!(upgrade, serves);
        if upgrade_timeout == 1 {
            fs::write(failpoint.path(), "").unwrap();
            server.upgrade().await;
            server.signal(Signal::TERM);
        }
        client.leave().await;
        assert_eq!(server.exit_code().await, 0);
    }
}
