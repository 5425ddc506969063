//! What each signal does.

use std::path::Path;

use lastcall_handover::failpoint::{self, Step};
use rustix::process::{Pid, kill_process};
use tokio::process::Child;

use crate::support::{Server, Signal, Start, installed, soon, until};

/// Waits until the server has handled all signals before this one.
async fn settle(server: &Server) {
    let before = server.log_lines("SIGUSR1 means nothing").len();
    server.signal(Signal::USR1);
    until("a line for SIGUSR1", async || server.log_lines("SIGUSR1 means nothing").len() > before).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sighup_upgrades_and_reads_the_settings_anew() {
    let mut server = Start::default().file("config/lastcall.toml", "max_message_size = 100").serve().await;
    let mut client = server.client().await;
    std::fs::write(server.dir.path().join("config/lastcall.toml"), "max_message_size = 200").unwrap();
    for upgrades in 1..=2 {
        server.signal(Signal::HUP);
        until("an upgrade", async || server.log_lines("took over").len() == upgrades).await;
        server.logged("process").await;
    }
    client.say(&"x".repeat(150)).await;
    assert_eq!(client.next_of("message").await["data"].as_str().unwrap().len(), 150);
    client.leave().await;
    server.signal(Signal::TERM);
    assert_eq!(server.exit_code().await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn sigquit_drains() {
    let mut server = Server::start().await;
    let client = server.client().await;
    server.signal(Signal::QUIT);
    let line = server.logged("waiting up to").await;
    assert_eq!(line["fields"]["signal"], "SIGQUIT");
    client.leave().await;
    assert_eq!(server.exit_code().await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn signals_that_mean_nothing_end_nothing() {
    let server = Server::start().await;
    let mut client = server.client().await;
    for signal in
        [Signal::ALARM, Signal::VTALARM, Signal::PROF, Signal::IO, Signal::POWER, Signal::PIPE, Signal::XFSZ]
    {
        server.signal(signal);
        settle(&server).await;
    }
    client.say("still here").await;
    client.next_of("message").await;
    assert!(server.log_lines("drain started").is_empty() && server.log_lines("took over").is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signal_that_was_ignored_at_the_start_stays_ignored_over_upgrades() {
    let nohup = installed("nohup").map(|path| (path, vec![], Signal::HUP));
    let trap = (Path::new("/bin/sh").to_owned(), vec!["-c", "trap '' INT; exec \"$0\""], Signal::INT);
    for (program, args, signal) in nohup.into_iter().chain([trap]) {
        let mut server = Start::default().under(&program, &args).serve().await;
        let client = server.client().await;
        for upgraded in [false, true] {
            if upgraded {
                server.upgrade().await;
                // The line is written before the command is answered, but may be read later.
                server.logged("took over").await;
            }
            let pids: [Pid; 2] = [server.started_pid(), server.pid()];
            let upgrades = server.log_lines("took over").len();
            for pid in pids {
                kill_process(pid, signal).unwrap();
            }
            settle(&server).await;
            assert!(server.log_lines("waiting up to").is_empty(), "{signal:?}");
            assert_eq!(server.log_lines("took over").len(), upgrades, "{signal:?}");
        }
        server.signal(Signal::TERM);
        client.leave().await;
        assert_eq!(server.exit_code().await, 0);
    }
}

/// A mask of blocked signals is inherited, also by each new process.
#[tokio::test(flavor = "multi_thread")]
async fn signals_that_were_blocked_at_the_start_are_heard_over_upgrades() {
    let Some(env) = installed("env") else { return };
    let block = "--block-signal=HUP,INT,QUIT,USR1,USR2,TERM,CHLD";
    for ending in [Signal::TERM, Signal::INT, Signal::QUIT] {
        let mut server = Start::default().under(&env, &[block]).serve().await;
        let client = server.client().await;
        settle(&server).await;
        for (upgrades, signal) in [(1, Signal::HUP), (2, Signal::USR2)] {
            server.signal(signal);
            until("an upgrade", async || server.log_lines("took over").len() == upgrades).await;
            until("its end", async || server.log_lines("handed over to").len() == upgrades).await;
        }
        server.signal(ending);
        server.logged("drain started").await;
        client.leave().await;
        assert_eq!(server.exit_code().await, 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_supervisor_notices_the_end_of_the_server_however_it_was_started() {
    let Some(env) = installed("env") else { return };
    for option in ["--block-signal=CHLD", "--ignore-signal=CHLD"] {
        let mut server = Start::default().under(&env, &[option]).serve().await;
        // A new process that ends by itself is noticed, too.
        let wrong = server.dir.path().join("config/lastcall.toml");
        std::fs::create_dir(wrong.parent().unwrap()).unwrap();
        std::fs::write(&wrong, "close_timeout = 0").unwrap();
        let told = server.failed_upgrade().await;
        assert!(told.contains("it ended by itself (exit status: 2)"), "{option}: {told}");
        std::fs::remove_file(&wrong).unwrap();
        server.upgrade().await;
        server.logged("handed over to").await;
        kill_process(server.pid(), Signal::KILL).unwrap();
        assert_eq!(server.exit_code().await, 128 + 9, "{option}");
    }
}

/// Waits until a process handles SIGTERM.
async fn handles_sigterm(child: &Child) {
    let status = format!("/proc/{}/status", child.id().unwrap());
    until("a handler for SIGTERM", async || {
        let status = std::fs::read_to_string(&status).unwrap();
        let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).unwrap().trim();
        u64::from_str_radix(caught, 16).unwrap() & 1 << (Signal::TERM.as_raw() - 1) != 0
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_that_waits_for_a_file_can_be_ended() {
    let start = Start::default().file("failpoint", &format!("{:?}:hang", Step::Preparing));
    let failpoint = start.path("failpoint");
    let (mut command, _folder) = start.env(failpoint::FILE_VARIABLE, failpoint.display()).into_command();
    let mut server = command.spawn().unwrap();
    handles_sigterm(&server).await;
    kill_process(Pid::from_raw(server.id().unwrap().cast_signed()).unwrap(), Signal::TERM).unwrap();
    assert_eq!(soon("the end of the server", server.wait()).await.unwrap().code(), Some(0));
}
