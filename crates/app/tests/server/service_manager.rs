//! The service manager (sd_notify(3)): it follows the server only if it has started it, and nothing waits for
//! it.

use std::{
    os::{
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr, UnixDatagram},
    },
    path::Path,
    process,
};

use lastcall_handover::failpoint;
use rustix::process::Signal;

use crate::support::{
    Server, Start, adopt_orphans, folder, folder_for_programs, install_script, install_server, soon,
};

/// Upgrades twice. The process that was started stays, and ends with the last one.
async fn stays(mut server: Server) {
    let client = server.client().await;
    for _ in 0..2 {
        server.upgrade().await;
    }
    let first = server.started_pid().as_raw_nonzero().get();
    let line = server.logged("handed over to process ").await;
    assert_eq!(line["fields"]["pid"], first);
    server.logged("took over from process").await;
    server.signal(Signal::TERM);
    server.logged("drain started").await;
    client.leave().await;
    assert_eq!(server.exit_code().await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_variable_that_was_inherited_is_no_service_manager() {
    let folder = folder();
    let socket = folder.path().join("notify");
    let _inherited = UnixDatagram::bind(&socket).unwrap();
    let here = || Start::default().env("NOTIFY_SOCKET", socket.display());
    let gone = Start::default().watched_by_this_process(folder.path().join("none").display());
    for (what, start) in [
        ("nobody says who started it", here()),
        ("another process was started", here().env("SYSTEMD_EXEC_PID", process::id())),
        ("another process is the manager", here().env("MANAGERPID", 1)),
        (
            "both, and the one that counts says no",
            here().env("SYSTEMD_EXEC_PID", 1).env("MANAGERPID", process::id()),
        ),
        ("no number", here().env("SYSTEMD_EXEC_PID", "yes")),
        ("nothing is there", gone),
        ("neither a path nor a name", Start::default().watched_by_this_process("notify")),
        ("nothing", Start::default().watched_by_this_process("")),
    ] {
        eprintln!("{what}");
        stays(start.serve().await).await;
    }
}

/// Returns what was sent to this socket, from here on.
async fn told(socket: &tokio::net::UnixDatagram) -> String {
    let mut buffer = [0; 1024];
    let read = soon("a message for the service manager", socket.recv(&mut buffer)).await.unwrap();
    String::from_utf8_lossy(&buffer[..read]).into_owned()
}

fn into_tokio(socket: UnixDatagram) -> tokio::net::UnixDatagram {
    socket.set_nonblocking(true).unwrap();
    tokio::net::UnixDatagram::from_std(socket).unwrap()
}

/// Waits until the manager is told of a new main process.
async fn main_pid(socket: &tokio::net::UnixDatagram) -> i32 {
    loop {
        let message = told(socket).await;
        if let Some(pid) = message.lines().find_map(|line| line.strip_prefix("MAINPID=")) {
            return pid.parse().unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_manager_at_an_abstract_socket_follows_what_it_has_started() {
    adopt_orphans();
    let name = format!("lastcall-test-{}", process::id());
    let address = SocketAddr::from_abstract_name(&name).unwrap();
    let socket = into_tokio(UnixDatagram::bind_addr(&address).unwrap());
    // As systemd does since version 248.
    let script = "SYSTEMD_EXEC_PID=$$ exec \"$0\"";
    let start = Start::default().env("NOTIFY_SOCKET", format!("@{name}"));
    let mut server = start.under(Path::new("sh"), &["-c", script]).serve().await;
    assert!(told(&socket).await.contains("READY=1"));
    for _ in 0..2 {
        server.signal(Signal::USR2);
        let pid = main_pid(&socket).await;
        server.followed_by(pid).await;
    }
    // Without a client, it would have ended before it says so.
    let client = server.client().await;
    server.signal(Signal::TERM);
    let mut all = String::new();
    while !all.contains("EXTEND_TIMEOUT_USEC=") {
        all += &told(&socket).await;
    }
    assert!(all.contains("STOPPING=1"), "{all}");
    client.leave().await;
    assert_eq!(server.exit_code().await, 0);
}

/// Sends to this socket until its queue is full.
fn fill(path: &Path) {
    let filler = UnixDatagram::unbound().unwrap();
    filler.set_nonblocking(true).unwrap();
    filler.connect(path).unwrap();
    while filler.send(b"filler").is_ok() {}
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_manager_that_takes_nothing_keeps_nothing_waiting() {
    let folder = folder();
    let path = folder.path().join("notify");
    let _manager = UnixDatagram::bind(&path).unwrap();
    fill(&path);
    // It does not answer, so the process that was started stays.
    stays(Start::default().watched_by_this_process(path.display()).serve().await).await;
    // Each signal has its effect.
    let mut server = Start::default().watched_by_this_process(path.display()).serve().await;
    let _client = server.raw_client().await;
    for (signal, effect) in
        [(Signal::TERM, "drain started"), (Signal::INT, "second signal"), (Signal::TERM, "third signal")]
    {
        server.signal(signal);
        server.logged(effect).await;
    }
    assert_eq!(server.exit_code().await, 128 + 15);
}

/// It was there when the upgrade began, and is not when it has to follow.
#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_the_service_manager_does_not_leave_stays_until_it_does() {
    adopt_orphans();
    let (folder, programs) = (folder(), folder_for_programs());
    let (path, program) = (folder.path().join("notify"), programs.path().join("lastcall"));
    for returns in [true, false] {
        let socket = into_tokio(UnixDatagram::bind(&path).unwrap());
        install_server(&program);
        let start = Start::default().program(&program).env("UPGRADE_TIMEOUT", "600");
        let mut server = start.watched_by_this_process(path.display()).serve().await;
        let mut client = server.client().await;
        let go = server.dir.path().join("go");
        let real = env!("CARGO_BIN_EXE_lastcall");
        install_script(
            &program,
            &format!("while [ ! -e {} ]; do sleep 0.01; done; exec {real} \"$@\"", go.display()),
        );
        server.signal(Signal::USR2);
        while !told(&socket).await.contains("RELOADING=1") {}
        server.logged("upgrade: process").await;
        drop(socket);
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&go, "").unwrap();
        server.logged("the service manager does not answer").await;
        client.say("served").await;
        client.next_of("message").await;
        if returns {
            let socket = into_tokio(UnixDatagram::bind(&path).unwrap());
            let pid = main_pid(&socket).await;
            server.followed_by(pid).await;
            std::fs::remove_file(&path).unwrap();
        }
        server.signal(Signal::TERM);
        server.logged("drain started").await;
        client.leave().await;
        assert_eq!(server.exit_code().await, 0);
    }
}

/// A disk that does not answer: the history takes as long as it may.
#[tokio::test(flavor = "multi_thread")]
async fn the_service_manager_is_asked_for_more_time_until_the_end() {
    let folder = folder();
    let path = folder.path().join("notify");
    let socket = into_tokio(UnixDatagram::bind(&path).unwrap());
    let failpoint = tempfile::NamedTempFile::new().unwrap();
    let start = Start::default().env("HISTORY_FILE", folder.path().join("history").display());
    let start = start.env(failpoint::FILE_VARIABLE, failpoint.path().display());
    let mut server = start.watched_by_this_process(path.display()).serve().await;
    std::fs::write(failpoint.path(), "WritingHistory:hang").unwrap();
    server.signal(Signal::TERM);
    server.logged("phase changed from draining to stopped").await;
    // What was asked before is here by now. The first one after it may be about the beginning of the history.
    while socket.try_recv(&mut [0; 1024]).is_ok() {}
    let mut asked = 0;
    while asked < 2 {
        asked += usize::from(told(&socket).await.contains("EXTEND_TIMEOUT_USEC="));
    }
    // Two of one kind could become one, and of two kinds either may be the third.
    server.signal(Signal::INT);
    server.signal(Signal::QUIT);
    let code = server.exit_code().await;
    assert!([128 + 2, 128 + 3].contains(&code), "{code}");
}
