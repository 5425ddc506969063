//! What each signal does.

use std::path::Path;

use rustix::process::{Pid, kill_process};

use crate::support::{Server, Signal, Start, installed, until};

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
