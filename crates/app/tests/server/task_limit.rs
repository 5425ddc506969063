//! The system gives no more processes and threads: `pids.max` of a cgroup, or RLIMIT_NPROC.

use std::{
    os::unix::{net::UnixStream, process::CommandExt},
    process::Command,
};

use crate::support::{Server, Signal, Start};

/// Users that have no other processes, as RLIMIT_NPROC counts all of a user's. Two at most in this process.
fn user(number: u32) -> u32 {
    0x4000_0000 + 2 * std::process::id() + number
}

/// Lets the server, and the processes that it starts, have this many tasks more than there are now.
fn limit_tasks(server: &Server, user: u32, more: usize) {
    let pid = server.pid().as_raw_nonzero();
    let most = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap().count() + more;
    // The soft limit alone, so that it can be raised again.
    let mut prlimit = Command::new("prlimit");
    prlimit.args([format!("--pid={pid}"), format!("--nproc={most}:")]);
    if rustix::process::getuid().is_root() {
        // The system may not allow to change another user's limit.
        prlimit.uid(user).gid(user);
    }
    assert!(prlimit.status().unwrap().success());
}

/// `lastcall upgrade` by the server's own user, which must fail: what it says.
async fn failed_upgrade(server: &Server, user: u32) -> String {
    let ended = Start::default()
        .user(user)
        .args(&["upgrade", "--port", &server.address.port().to_string()])
        .env("RUNTIME_DIR", server.dir.path().join("run").display())
        .end()
        .await;
    assert_eq!(ended.code, Some(1), "{}{}", ended.stdout, ended.stderr);
    ended.stderr
}

async fn serves(server: &Server, client: &mut crate::support::Client) {
    let _others = server.clients(20).await;
    assert_eq!(server.publish(r#"{"data": "still here"}"#).await.status, 200);
    assert_eq!(client.next_of("notification").await["data"], "still here");
}

#[tokio::test]
async fn a_server_at_the_task_limit_goes_on_and_says_why_it_cannot_upgrade() {
    let start = Start::default().user(user(0)).env("NOTIFICATION_INTERVAL", "0");
    let mut server = start.serve().await;
    let mut client = server.client().await;
    limit_tasks(&server, user(0), 0);
    let socket = server.control_socket();
    let silent: Vec<_> = (0..20).map(|_| UnixStream::connect(&socket).unwrap()).collect();
    serves(&server, &mut client).await;
    drop(silent);
    let said = failed_upgrade(&server, user(0)).await;
    assert!(said.contains("cannot start") && said.contains("Resource temporarily unavailable"), "{said}");
    serves(&server, &mut client).await;
    server.signal(Signal::TERM);
    client.leave().await;
    assert_eq!(server.exit_code().await, 0);
}

#[tokio::test]
async fn a_new_process_that_gets_no_threads_ends_in_order_and_the_old_one_goes_on() {
    if !rustix::process::getuid().is_root() {
        // The limit counts all tasks of the user, and other tests start and end some at the same moment.
        return eprintln!("not tested: only root can run the server as a user without other tasks");
    }
    let start = Start::default().user(user(1)).env("NOTIFICATION_INTERVAL", "0");
    let mut server = start.serve().await;
    let mut client = server.client().await;
    // Enough for the process itself, for some of its threads, and for nearly all.
    for more in [2, 5, 6] {
        limit_tasks(&server, user(1), more);
        let said = failed_upgrade(&server, user(1)).await;
        assert!(said.contains("did not take over"), "with {more}: {said}");
        serves(&server, &mut client).await;
    }
    server.signal(Signal::TERM);
    client.leave().await;
    assert_eq!(server.exit_code().await, 0);
}
