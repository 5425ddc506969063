//! The places from which a server has its settings: an upgrade never takes fewer for none.

use std::{fs, os::unix::fs::symlink, path::Path};

use rustix::fs::{CWD, FileType, Mode, mknodat};

use crate::support::{Server, Signal, Start, message, until};

/// A settings file after which publishing needs a key.
const LOCKED: &str = "api_keys = [\"0123456789abcdef\"]\n";

async fn publish(server: &Server) -> u16 {
    server.publish(r#"{"data": 1}"#).await.status
}

/// Starts a server by this script of bash, in which `$0` is the program.
async fn started_by(start: Start, script: &str) -> Server {
    start.under(Path::new("/bin/bash"), &["-c", script]).serve().await
}

/// Returns the warnings about settings in a server's log.
fn warnings(server: &Server) -> Vec<String> {
    let lines = server.log_lines("settings: ");
    lines.iter().map(|line| message(line)["settings: ".len()..].to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_that_are_gone_stop_the_upgrade() {
    let server = Start::default().file("app/config/lastcall.toml", "api_keys = \"0123456789abcdef\"");
    let dir = server.folder().join("app");
    let script = format!("cd {} && exec \"$0\"", dir.display());
    let mut server = server.under(Path::new("/bin/sh"), &["-c", &script]).serve().await;
    assert_eq!(server.publish(r#"{"data": 1}"#).await.status, 401);
    let config = dir.join("config/lastcall.toml");
    let kept = fs::read(&config).unwrap();
    fs::remove_file(&config).unwrap();
    let told = server.failed_upgrade().await;
    assert!(told.contains(&format!("the settings file {} was read", config.display())), "{told}");
    fs::write(&config, kept).unwrap();
    let moved = server.dir.path().join("moved");
    fs::rename(&dir, &moved).unwrap();
    let told = server.failed_upgrade().await;
    assert!(told.contains(&dir.display().to_string()) && told.contains("is gone"), "{told}");
    assert_eq!(server.publish(r#"{"data": 1}"#).await.status, 401);
    fs::rename(&moved, &dir).unwrap();
    server.upgrade().await;
    assert_eq!(server.publish(r#"{"data": 1}"#).await.status, 401);
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_that_cannot_be_read_any_more_stop_the_upgrade() {
    let mut server = Start::default().file(".env", "API_KEYS=0123456789abcdef\n").serve().await;
    let dot_env = server.dir.path().join(".env");
    let kept = fs::read(&dot_env).unwrap();
    // It is there, but not read: it is no UTF-8 text.
    fs::write(&dot_env, b"\0").unwrap();
    let told = server.failed_upgrade().await;
    assert!(told.contains(&format!("could not read the settings file {}", dot_env.display())), "{told}");
    assert_eq!(server.publish(r#"{"data": 1}"#).await.status, 401);
    fs::write(&dot_env, kept).unwrap();
    server.upgrade().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_had_settings_and_has_none_stops_the_upgrade() {
    for (path, locked, empty) in [
        ("config/lastcall.toml", LOCKED, "log_dir = ''\nnamespace = []\n"),
        ("named.toml", LOCKED, "log_dir = ' '\n"),
        (".env", "API_KEYS=0123456789abcdef\n", "LOG_DIR=\nOTHER=1\n"),
    ] {
        let start = Start::default().file(path, locked);
        let start = if path == "named.toml" { start.args(&["--config", path]) } else { start };
        let mut server = start.serve().await;
        let full = server.dir.path().join(path);
        for nothing in ["", "\n", "# api_keys = [\"0123456789abcdef\"]\n", "\u{feff}", "#\r\n\r\n", empty] {
            fs::write(&full, nothing).unwrap();
            let told = server.failed_upgrade().await;
            let expected =
                format!("it found no setting in {}, where this process had found some", full.display());
            assert!(told.contains(&expected), "{path}, {nothing:?}: {told}");
            assert_eq!(publish(&server).await, 401, "{path}, {nothing:?}");
        }
        let failed = server.log_lines("the upgrade failed; ").len();
        server.signal(Signal::USR2);
        until("a line for the signal", async || server.log_lines("the upgrade failed; ").len() > failed)
            .await;
        assert_eq!(publish(&server).await, 401);
        fs::write(&full, locked).unwrap();
        server.upgrade().await;
        assert_eq!(publish(&server).await, 401);
        // The one that took over knows it, too.
        fs::write(&full, "").unwrap();
        assert!(server.failed_upgrade().await.contains("it found no setting in"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_never_had_settings_may_stay_so_or_go() {
    let start = Start::default().file("config/lastcall.toml", "# none\n").file(".env", "OTHER=1\n");
    let mut server = start.serve().await;
    assert_eq!(warnings(&server), [""; 0], "this is how the file is shipped");
    server.upgrade().await;
    for path in ["config/lastcall.toml", ".env"] {
        fs::remove_file(server.dir.path().join(path)).unwrap();
        server.upgrade().await;
    }
    fs::write(server.dir.path().join("config/lastcall.toml"), LOCKED).unwrap();
    server.upgrade().await;
    assert_eq!(publish(&server).await, 401);
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_that_can_be_read_only_once_are_said_at_the_start_and_stop_the_upgrade() {
    let print = format!("printf '%s' '{}'", LOCKED.trim_end());
    let fifo = |name: &str| {
        let start = Start::default();
        mknodat(CWD, start.path(name), FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        start
    };
    for (start, script, source) in [
        (Start::default(), format!("exec \"$0\" --config <({print})"), "/dev/fd/"),
        (Start::default(), format!("{print} | \"$0\" --config /dev/stdin"), "/dev/stdin"),
        (Start::default(), format!("{print} | \"$0\" --config /proc/self/fd/0"), "/proc/self/fd/0"),
        (fifo("fifo"), format!("{print} >fifo & exec \"$0\" --config fifo"), "fifo"),
    ] {
        let server = started_by(start, &script).await;
        let warnings = warnings(&server);
        assert!(
            warnings.len() == 1 && warnings[0].contains(source) && warnings[0].contains("only once"),
            "{script}: {warnings:?}"
        );
        let told = server.failed_upgrade().await;
        assert!(told.contains(source) && told.contains("can be read only once"), "{script}: {told}");
        assert_eq!(publish(&server).await, 401, "{script}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_in_a_file_without_a_name_are_read_again() {
    for script in [
        "exec \"$0\" --config /dev/stdin <locked",
        "exec 9<locked; exec \"$0\" --config /dev/fd/9",
        "exec 9<locked; rm locked; exec \"$0\" --config /proc/self/fd/9",
    ] {
        let mut server = started_by(Start::default().file("locked", LOCKED), script).await;
        assert_eq!(warnings(&server), [""; 0], "{script}");
        for _ in 0..2 {
            server.upgrade().await;
            assert_eq!(publish(&server).await, 401, "{script}");
        }
    }
}

#[tokio::test]
async fn a_named_file_without_settings_and_a_link_that_leads_nowhere_are_said_at_the_start() {
    let empty = "there is no setting in it";
    let nowhere = "not read, as a symbolic link on the way to it leads nowhere";
    let link = |name: &str| {
        let start = Start::default();
        let path = start.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        symlink("/nonexistent/file", path).unwrap();
        start
    };
    for (start, expected) in [
        (Start::default().file("a.toml", "").args(&["--config", "a.toml"]), format!("a.toml: {empty}")),
        (
            Start::default().file("a.toml", "# x\n\n").args(&["--config", "a.toml"]),
            format!("a.toml: {empty}"),
        ),
        (Start::default().args(&["--config", "/dev/null"]), format!("/dev/null: {empty}")),
        (link("config/lastcall.toml"), format!("config/lastcall.toml: {nowhere}")),
        (link("config"), format!("config/lastcall.toml: {nowhere}")),
        (link(".env"), format!(".env: {nowhere}")),
    ] {
        let mut server = start.serve().await;
        assert_eq!(warnings(&server), [expected]);
        server.upgrade().await;
    }
    let ended = link("a.toml").args(&["--config", "a.toml"]).end().await;
    assert_eq!(ended.code, Some(2), "{}", ended.stderr);
}
