//! Settings from outside: what is written is taken so or refused, and what other programs wrote does not
//! stop the start.

use std::{fs::File, io::Write, path::Path};

use rustix::fs::{CWD, FileType, Mode, mknodat};

use crate::support::{Ended, Server, Start, message};

/// Returns the only thing that is wrong; nothing was started.
fn refusal(ended: &Ended) -> &str {
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(2), ""), "{}", ended.stderr);
    let lines: Vec<_> = ended.stderr.lines().collect();
    assert!(lines.len() == 2 && lines[0] == "error: 1 setting is wrong", "{}", ended.stderr);
    lines[1].trim()
}

/// Returns the warnings about settings in a server's log.
fn warnings(server: &Server) -> Vec<String> {
    let lines = server.log_lines("settings: ");
    lines.iter().map(|line| message(line)["settings: ".len()..].to_owned()).collect()
}

fn make_fifo(path: &Path) {
    mknodat(CWD, path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
}

#[tokio::test]
async fn a_key_with_a_dollar_in_dot_env_is_literal_in_single_quotes_and_else_refused() {
    for line in ["API_KEYS=0123456789abcdef$HOME", "API_KEYS=\"0123456789abcdef$HOME\""] {
        let ended = Start::default().file(".env", line).end().await;
        let refusal = refusal(&ended);
        assert!(refusal.starts_with(".env:1: API_KEYS") && refusal.contains("single quotes"), "{refusal}");
        assert!(!refusal.contains("0123456789"), "{refusal}");
    }
    let server = Start::default().file(".env", "API_KEYS='0123456789abcdef$HOME'\n").serve().await;
    let publish = async |key: &str| {
        let headers = ["Content-Type: application/json", &format!("Authorization: Bearer {key}")];
        server.request("POST", "/api/publish", &headers, r#"{"data":1}"#).await.status
    };
    assert_eq!(publish("0123456789abcdef$HOME").await, 200);
    assert_eq!(publish("0123456789abcdef").await, 401);
}

#[tokio::test]
async fn a_value_that_may_mean_something_else_is_refused_with_the_reason() {
    for (variable, value, reason) in [
        ("LOG_DIR", "\"logs\"", "without quotes"),
        ("LOG_DIR", "~/logs", "the whole path"),
        ("LOG_DIR", "logs\r", "without white space"),
        ("LASTCALL_LOG_DIR", "'logs'", "without quotes"),
        ("API_KEYS", "\"0123456789abcdef\"", "without quotes"),
        ("API_KEYS", "[0123456789abcdef]", "without brackets"),
        ("SHUTDOWN_TIMEOUT", "5M", "d, h, m, s and ms"),
        ("SHUTDOWN_TIMEOUT", "1y", "d, h, m, s and ms"),
        ("MAX_QUEUE", "64K", "powers of 1024"),
        ("PORT", "08000", "whole number"),
        ("HOST", "0", "host name"),
        ("ALLOWED_ORIGINS", "https://[1:2:3:4:5:6:7:8:9]", "is not a scheme, a host"),
        ("ALLOWED_ORIGINS", "https://127.1", "no page comes from"),
        ("HOST", "127.0.0.1\u{200b}", "host name"),
    ] {
        let ended = Start::default().env(variable, value).end().await;
        let refusal = refusal(&ended);
        assert!(refusal.contains(reason) && refusal.contains(&format!("variable {variable})")), "{refusal}");
    }
}

#[tokio::test]
async fn a_key_that_did_not_arrive_stops_the_start_and_an_upgrade() {
    const GOOD: &str = "0123456789abcdef";
    let with_file = || Start::default().file("config/lastcall.toml", &format!("api_keys = [\"{GOOD}\"]\n"));
    for (start, source) in [
        (with_file().env("API_KEYS", " "), "environment variable API_KEYS"),
        (with_file().env("API_KEYS", ""), "environment variable API_KEYS"),
        (with_file().env("LASTCALL_API_KEYS", ","), "environment variable LASTCALL_API_KEYS"),
        (with_file().env("ALLOWED_ORIGINS", "\n"), "environment variable ALLOWED_ORIGINS"),
        (with_file().args(&["--api-keys="]), "command line --api-keys"),
        (with_file().args(&["config", "--allowed-origins", ""]), "command line --allowed-origins"),
        (with_file().file(".env", "API_KEYS=\n"), "API_KEYS in .env"),
        (Start::default().file("config/lastcall.toml", "api_keys = []\n"), "config/lastcall.toml:1"),
        (Start::default().file("config/lastcall.toml", "allowed_origins = ['']\n"), "config/lastcall.toml:1"),
        (
            with_file().env("API_KEYS", GOOD).file("config/lastcall.toml", "\napi_keys = ''"),
            "config/lastcall.toml:2",
        ),
    ] {
        let ended = start.end().await;
        let refusal = refusal(&ended);
        assert!(refusal.contains(&format!("({source}): it is there and has nothing in it")), "{refusal}");
    }
    let other = Start::default().env("LOG_DIR", "").env("CLIENT_MESSAGES", "").args(&["config"]).end().await;
    assert_eq!(other.code, Some(0), "an empty variable of another setting is none: {}", other.stderr);

    let server = with_file().serve().await;
    assert_eq!(server.publish(r#"{"data":1}"#).await.status, 401);
    std::fs::write(server.dir.path().join("config/lastcall.toml"), "api_keys = [\" \"]\n").unwrap();
    server.failed_upgrade().await;
    assert_eq!(server.publish(r#"{"data":1}"#).await.status, 401);
}

#[tokio::test]
async fn another_programs_variables_and_lines_do_not_stop_the_start() {
    let dot_env = "\u{feff}A=b c\r\nGREETING=it's fine\r\nLOG_LEVEL=debug\r\nno line\r\n";
    let start = || {
        Start::default()
            .file("config/lastcall.toml", "\u{feff}notification_interval = 77\r\n")
            .file(".env", dot_env)
            .env("LASTCALL_VERSION", "1.2.3")
            .env("LASTCALL_EVENT_LOOPS", "2")
            .env("RUST_LOG", "another_program")
    };
    let server = start().serve().await;
    let expected = [
        ".env:4: not read, as it is not NAME=value",
        "environment variable LASTCALL_VERSION: there is no such setting, so it does nothing; `lastcall --help` \
         lists all",
        "environment variable RUST_LOG: left out, as it is not error, warn, info, debug or trace, or directives, \
         such as info,lastcall_websockets=debug",
    ];
    assert_eq!(warnings(&server), expected);
    let ended = start().args(&["config"]).end().await;
    assert_eq!(ended.code, Some(0));
    let lines: Vec<_> = ended.stderr.lines().map(|line| line.trim_start_matches("warning: ")).collect();
    assert_eq!(lines, expected);
    let row = |key: &str| {
        let line = ended.stdout.lines().find(|line| line.starts_with(key)).unwrap();
        line.split_whitespace().skip(1).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(row("log_level"), "debug LOG_LEVEL in .env");
    assert_eq!(row("notification_interval"), "77 config/lastcall.toml:1");
}

#[tokio::test]
async fn a_log_filter_for_another_program_is_left_out_with_one_warning() {
    for (filter, level, lines) in [("my_app=debug", "debug", 1), ("my_app=debug,hyper=trace", "info", 1)] {
        let server = Start::default().env("RUST_LOG", filter).env("LOG_LEVEL", level).serve().await;
        let warnings = warnings(&server);
        assert_eq!(warnings.len(), lines, "{warnings:?}");
        let expected =
            "environment variable RUST_LOG: left out, as it is not a filter that names a level for lastcall";
        assert!(warnings[0].starts_with(expected), "{warnings:?}");
        let shown =
            Start::default().env("RUST_LOG", filter).env("LOG_LEVEL", level).args(&["config"]).end().await;
        let row = shown.stdout.lines().find(|line| line.starts_with("log_level")).unwrap();
        assert!(row.contains(level) && row.contains("LOG_LEVEL"), "{row}");
    }
    let ended = Start::default().env("LOG_LEVEL", "my_app=debug").end().await;
    assert!(refusal(&ended).contains("a level for lastcall, too"), "{}", ended.stderr);
}

#[tokio::test]
async fn a_variable_that_is_close_to_a_setting_stops_the_start() {
    for (variable, meant) in [("LASTCALL_PROT", "port"), ("LASTCALL_API_KEY", "api_keys")] {
        let ended = Start::default().env(variable, "1").end().await;
        assert!(refusal(&ended).contains(&format!("did you mean {meant}?")), "{}", ended.stderr);
    }
}

#[tokio::test]
async fn a_fifo_where_a_file_is_looked_for_does_not_hold_the_start() {
    for path in [".env", "config/lastcall.toml"] {
        let start = Start::default().file("config/other", "");
        make_fifo(&start.path(path));
        let mut server = start.serve().await;
        let expected = format!("{path}: not read, as it is a FIFO");
        let warnings = warnings(&server);
        assert!(warnings.len() == 1 && warnings[0].starts_with(&expected), "{warnings:?}");
        server.upgrade().await;
    }
}

#[tokio::test]
async fn a_settings_file_that_is_no_regular_file_any_more_stops_the_upgrade_at_once() {
    let text = "api_keys = ['0123456789abcdef']";
    for (path, text, arguments) in [
        (".env", "API_KEYS=0123456789abcdef", &[][..]),
        ("config/lastcall.toml", text, &[]),
        ("own.toml", text, &["--config", "own.toml"]),
    ] {
        // Whoever waits for a writer of the FIFO waits until the test fails.
        let start = Start::default().env("UPGRADE_TIMEOUT", "600").args(arguments);
        let server = start.file(path, text).serve().await;
        let full = server.dir.path().join(path);
        let refused = format!("the settings file {} was read at the start and is", full.display());
        std::fs::remove_file(&full).unwrap();
        for (make, problem) in [
            ((|_| {}) as fn(&Path), "gone"),
            (make_fifo, "no regular file any more"),
            (|path| std::fs::create_dir(path).unwrap(), "no regular file any more"),
        ] {
            make(&full);
            let told = server.failed_upgrade().await;
            assert!(told.contains(&format!("{refused} {problem}")), "{told}");
            let _ = std::fs::remove_file(&full);
        }
        assert_eq!(server.publish(r#"{"data":1}"#).await.status, 401, "{path}");
    }
}

#[tokio::test]
async fn a_settings_file_may_be_a_fifo_that_a_program_writes() {
    // As `--config <(decrypt lastcall.toml)` in bash.
    let start = Start::default();
    let path = start.path("settings");
    make_fifo(&path);
    let writing = std::thread::spawn({
        let path = path.clone();
        move || File::options().write(true).open(path).unwrap().write_all(b"log_level = 'debug'\n").unwrap()
    });
    let ended = start.args(&["config", "--config", path.to_str().unwrap()]).end().await;
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let row = ended.stdout.lines().find(|line| line.starts_with("log_level")).unwrap();
    assert!(row.contains("debug") && row.contains("settings:1"), "{row}");
    writing.join().unwrap();
}
