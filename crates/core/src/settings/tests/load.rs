//! The source that wins, and the errors for values that are wrong.

use std::{
    ffi::{OsStr, OsString},
    time::Duration,
};

use super::operator::Operator;
use crate::{
    AllowedOrigins, ClientMessages, Retention,
    process::OpenFileLimit,
    settings::{LogFormat, RuntimeDir, Settings, settings_file::CONFIG_FILE},
};

#[test]
fn the_defaults_are_those_of_the_contract() {
    let settings = Operator::new().settings();
    assert_eq!((settings.host.as_str(), settings.port), ("127.0.0.1", 8000));
    assert_eq!(settings.notification_interval, Some(Duration::from_secs(10)));
    assert_eq!(settings.keep_alive_timeout, Duration::from_secs(75));
    assert_eq!(settings.shutdown_timeout, Duration::from_secs(1800));
    assert_eq!(settings.close_timeout, Duration::from_secs(5));
    assert_eq!(settings.client_messages, ClientMessages::Broadcast);
    assert_eq!(settings.retention, Retention::default());
    assert_eq!((settings.history_bytes, settings.history_file), (64 << 20, None));
    assert_eq!(settings.namespaces, []);
    assert_eq!((settings.max_message_size, settings.max_queue), (64 << 10, 1 << 20));
    assert_eq!(settings.ping_interval, Some(Duration::from_secs(25)));
    assert_eq!(settings.pong_timeout, Duration::from_secs(10));
    assert_eq!(settings.allowed_origins, AllowedOrigins::SameHost);
    assert_eq!((settings.api_keys.len(), settings.log_level.as_str()), (0, "info"));
    assert_eq!(settings.log_format, LogFormat::Auto);
    assert_eq!((settings.log_dir, settings.templates_dir), (None, None));
    let limit = OpenFileLimit::current();
    assert_eq!(settings.max_http_connections, limit.default_http_connections());
    assert_eq!(settings.max_connections, limit.max_connections(settings.max_http_connections));
    for key in ["max_connections", "max_http_connections"] {
        let source = format!("default, from the limit of {} open files", limit.get());
        assert_eq!(Operator::new().source(key), source);
    }
}

#[test]
fn every_source_wins_over_every_one_below_it() {
    // From the lowest to the highest; each sets the port to its own number.
    type Set = fn(Operator) -> Operator;
    let sources: [(Set, u16, &str); 6] = [
        (|o| o.toml("port = 1001\n"), 1001, "config/lastcall.toml:1"),
        (|o| append(o, "PORT=1002\n"), 1002, "PORT in .env"),
        (|o| append(o, "LASTCALL_PORT=1003\n"), 1003, "LASTCALL_PORT in .env"),
        (|o| o.env("PORT", "1004"), 1004, "environment variable PORT"),
        (|o| o.env("LASTCALL_PORT", "1005"), 1005, "environment variable LASTCALL_PORT"),
        (|o| o.flag("port", "1006"), 1006, "command line --port"),
    ];
    assert_eq!(Operator::new().source("port"), "default");
    for (high, (set_high, port, origin)) in sources.iter().enumerate() {
        let alone = set_high(Operator::new());
        assert_eq!(
            (alone.settings().port, alone.source("port").as_str()),
            (*port, *origin),
            "over the default"
        );
        for (set_low, ..) in &sources[..high] {
            // Whichever is set first.
            for both in [set_high(set_low(Operator::new())), set_low(set_high(Operator::new()))] {
                assert_eq!((both.settings().port, both.source("port").as_str()), (*port, *origin));
            }
        }
    }

    fn append(operator: Operator, line: &str) -> Operator {
        let before = std::fs::read_to_string(operator.dir.path().join(".env")).unwrap_or_default();
        operator.write(".env", &(before + line))
    }
}

#[test]
fn rust_log_wins_over_all_and_an_empty_variable_counts_as_unset() {
    let operator = Operator::new().flag("log_level", "error").env("RUST_LOG", "debug").env("PORT", "");
    assert_eq!(operator.settings().log_level, "debug");
    assert_eq!(operator.source("log_level"), "environment variable RUST_LOG");
    assert_eq!(operator.source("port"), "default");
    let target = Operator::new().env("RUST_LOG", "info,lastcall_websockets");
    assert_eq!(target.settings().log_level, "info,lastcall_websockets");
}

#[cfg(unix)]
#[test]
fn a_variable_of_ours_that_is_not_utf8_is_reported() {
    use std::os::unix::ffi::OsStringExt;
    for name in ["PORT", "LASTCALL_PORT", "RUNTIME_DIRECTORY"] {
        let mut operator = Operator::new();
        operator.sources.environment.push((name.into(), OsString::from_vec(vec![0xff])));
        assert_eq!(operator.complaints(), [format!("environment variable {name}: is not UTF-8")]);
    }
    let mut others = Operator::new();
    others.sources.environment.push(("OTHER".into(), OsString::from_vec(vec![0xff])));
    others.loaded();
}

#[test]
fn a_named_file_replaces_the_usual_one_and_must_exist() {
    let mut operator = Operator::new().toml("port = 1\n").write("other.toml", "port = 2\n");
    operator.sources.config_file = Some("other.toml".into());
    assert_eq!((operator.settings().port, operator.source("port").as_str()), (2, "other.toml:1"));
    operator.sources.config_file = Some("none.toml".into());
    assert_eq!(operator.complaints(), ["none.toml: cannot be read: No such file or directory (os error 2)"]);
}

#[test]
fn all_errors_are_reported_at_once() {
    let operator = Operator::new()
        .toml("# mine\nshutdown_timout = 5\n\nport = \"eighty\"\n")
        .write(".env", "LASTCALL_HOSTT=x\nOTHER=y\n")
        .env("CLOSE_TIMEOUT", "0")
        .env("PATH", "/bin")
        .flag("ping_interval", "5");
    let mut complaints = operator.complaints();
    complaints.sort();
    assert_eq!(
        complaints,
        [
            "close_timeout = \"0\" (environment variable CLOSE_TIMEOUT): expected more than 0 seconds; if CLOSE_TIMEOUT is \
             another program's, set LASTCALL_CLOSE_TIMEOUT, which wins",
            "hostt (LASTCALL_HOSTT in .env): unknown setting; did you mean host?",
            "pong_timeout = 10 (default): expected at most ping_interval, which is 5s: a pong must come before the \
             next ping",
            "port = \"eighty\" (config/lastcall.toml:4): expected a whole number from 0 to 65535, such as 8000",
            "shutdown_timout (config/lastcall.toml:2): unknown setting; did you mean shutdown_timeout?",
        ]
    );
    let errors = Settings::load(&operator.sources).unwrap_err().to_string();
    assert_eq!(errors.lines().next(), Some("5 settings are wrong"));
}

#[test]
fn conflicting_settings_are_rejected() {
    let queue = Operator::new().flag("max_queue", "1KiB").complaints();
    assert!(
        queue[0].starts_with("max_queue = \"1KiB\" (command line --max-queue): expected at least"),
        "{queue:?}"
    );
    let off = Operator::new().flag("ping_interval", "0").flag("pong_timeout", "3600");
    assert_eq!(off.settings().ping_interval, None, "without pings, nothing is contradicted");
}

#[test]
fn keys_are_never_shown() {
    let short = Operator::new().env("API_KEYS", "hunter2").complaints();
    assert!(
        short[0].starts_with("api_keys (environment variable API_KEYS): expected keys of 16"),
        "{short:?}"
    );
    assert!(!short[0].contains("hunter2"));
    let loaded = Operator::new().env("API_KEYS", "0123456789abcdef,fedcba9876543210").loaded();
    assert_eq!(loaded.settings.api_keys.len(), 2);
    assert!(!format!("{loaded:?}").contains("0123456789abcdef"));
    let sources =
        Operator::new().env("API_KEYS", "0123456789abcdef").flag("api_keys", "fedcba9876543210").sources;
    let debug = format!("{sources:?}");
    assert!(debug.contains("API_KEYS") && debug.contains("api_keys"), "{debug}");
    assert!(!debug.contains("0123456789abcdef") && !debug.contains("fedcba9876543210"), "{debug}");
}

#[test]
fn files_that_cannot_be_understood_are_reported() {
    let toml = Operator::new().toml("port = = 5\n").complaints();
    assert!(toml[0].starts_with("config/lastcall.toml:1: is not valid TOML: "), "{toml:?}");
    let table = Operator::new().toml("[server]\nport = 5\n").complaints();
    assert_eq!(table, ["server (config/lastcall.toml:1): unknown setting; `lastcall --help` lists all"]);
}

#[test]
fn a_file_that_cannot_be_understood_does_not_give_its_keys_away() {
    for (path, text) in [
        (CONFIG_FILE, "api_keys = [\"0123456789abcdef\n"),
        (CONFIG_FILE, "api_keys = [\"0123456789abcdef\"\nport = 1\n"),
        (CONFIG_FILE, "api_keys = 0123456789abcdef\n"),
        (CONFIG_FILE, "port = 1\nport = 2 # 0123456789abcdef\n"),
        (".env", "API_KEYS=\"0123456789abcdef\n"),
        (".env", "API_KEYS=abc 0123456789abcdef\n"),
        (".env", "API_KEYS 0123456789abcdef\n"),
    ] {
        let complaints = Operator::new().write(path, text).complaints();
        assert_eq!(complaints.len(), 1, "{text}: {complaints:?}");
        assert!(complaints[0].starts_with(path), "{complaints:?}");
        assert!(!complaints[0].contains("0123456789abcdef"), "{complaints:?}");
    }
}

#[test]
fn without_a_choice_it_is_a_folder_of_the_users_own() {
    let of_session = RuntimeDir::default(Some(OsStr::new("/run/user/7")));
    assert_eq!(of_session, RuntimeDir::Default("/run/user/7/lastcall".into()));
    let stand_in = RuntimeDir::default(Some(OsStr::new("not/absolute")));
    assert_eq!(stand_in, RuntimeDir::default(None));
    let name = stand_in.path().file_name().unwrap().to_str().unwrap().to_owned();
    assert_eq!(name, format!("lastcall-{}", rustix::process::geteuid().as_raw()));
}
