use std::{path::Path, time::Duration};

use tempfile::TempDir;

use super::*;
use crate::settings::{AllowedOrigins, ClientMessages, LogFormat};

/// A folder with what the operator wrote, and what surrounds it.
struct Operator {
    dir: TempDir,
    sources: Sources,
}

impl Operator {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let sources = Sources { working_dir: dir.path().to_owned(), ..Sources::default() };
        Self { dir, sources }
    }

    fn write(self, path: &str, text: &str) -> Self {
        let path = self.dir.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap_or(Path::new("/"))).unwrap();
        std::fs::write(path, text).unwrap();
        self
    }

    fn toml(self, text: &str) -> Self {
        self.write(CONFIG_FILE, text)
    }

    fn env(mut self, name: &str, value: &str) -> Self {
        self.sources.environment.push((name.into(), value.into()));
        self
    }

    fn flag(mut self, key: &'static str, value: &str) -> Self {
        self.sources.command_line.push((key, value.into()));
        self
    }

    fn loaded(&self) -> Loaded {
        Settings::load(&self.sources).unwrap_or_else(|errors| panic!("{errors}"))
    }

    fn settings(&self) -> Settings {
        self.loaded().settings
    }

    /// The lines of the complaint, without the first.
    fn complaints(&self) -> Vec<String> {
        let errors = Settings::load(&self.sources).expect_err("settings that are right").to_string();
        errors.lines().skip(1).map(|line| line.trim().to_owned()).collect()
    }

    fn origin(&self, key: &str) -> String {
        self.loaded().effective.iter().find(|one| one.key == key).unwrap().origin.to_string()
    }
}

#[test]
fn the_defaults_are_those_of_the_contract() {
    let settings = Operator::new().settings();
    assert_eq!((settings.host.as_str(), settings.port), ("127.0.0.1", 8000));
    assert_eq!(settings.notification_interval, Some(Duration::from_secs(10)));
    assert_eq!(settings.shutdown_timeout, Duration::from_secs(1800));
    assert_eq!(settings.close_timeout, Duration::from_secs(5));
    assert_eq!(settings.client_messages, ClientMessages::Broadcast);
    assert_eq!((settings.max_message_size, settings.max_queue), (64 << 10, 1 << 20));
    assert_eq!(settings.ping_interval, Some(Duration::from_secs(25)));
    assert_eq!(settings.pong_timeout, Duration::from_secs(10));
    assert_eq!(settings.allowed_origins, AllowedOrigins::SameHost);
    assert_eq!((settings.api_keys.len(), settings.log_level.as_str()), (0, "info"));
    assert_eq!(settings.log_format, LogFormat::Auto);
    assert_eq!((settings.log_dir, settings.templates_dir), (None, None));
    let (most, limit) = limits::most_connections();
    assert_eq!(settings.max_connections, most);
    assert_eq!(
        Operator::new().origin("max_connections"),
        format!("default (file descriptor limit {limit}, less 64 in reserve)")
    );
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
    assert_eq!(Operator::new().origin("port"), "default");
    for (high, (set_high, port, origin)) in sources.iter().enumerate() {
        let alone = set_high(Operator::new());
        assert_eq!(
            (alone.settings().port, alone.origin("port").as_str()),
            (*port, *origin),
            "over the default"
        );
        for (set_low, ..) in &sources[..high] {
            // Whichever is set first.
            for both in [set_high(set_low(Operator::new())), set_low(set_high(Operator::new()))] {
                assert_eq!((both.settings().port, both.origin("port").as_str()), (*port, *origin));
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
    assert_eq!(operator.origin("log_level"), "environment variable RUST_LOG");
    assert_eq!(operator.origin("port"), "default");
    let target = Operator::new().env("RUST_LOG", "info,lastcall_websockets");
    assert_eq!(target.settings().log_level, "info,lastcall_websockets");
}

#[cfg(unix)]
#[test]
fn a_variable_of_ours_that_is_not_utf8_is_told() {
    use std::os::unix::ffi::OsStringExt;
    for name in ["PORT", "LASTCALL_PORT", "RUST_LOG"] {
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
    assert_eq!((operator.settings().port, operator.origin("port").as_str()), (2, "other.toml:1"));
    operator.sources.config_file = Some("none.toml".into());
    assert_eq!(operator.complaints(), ["none.toml: cannot be read: No such file or directory (os error 2)"]);
}

#[test]
fn values_are_read_in_every_form_they_may_have() {
    let duration = |text: &str| Operator::new().flag("shutdown_timeout", text).settings().shutdown_timeout;
    assert_eq!(duration("10"), Duration::from_secs(10));
    assert_eq!(duration("0.5"), Duration::from_millis(500));
    assert_eq!(duration("1h 30m"), Duration::from_secs(5400));
    assert_eq!(duration("0"), Duration::ZERO);
    let size = |text: &str| Operator::new().flag("max_queue", text).settings().max_queue;
    assert_eq!(
        (size("70000"), size("128KiB"), size("2 MiB"), size("1MB")),
        (70_000, 131_072, 2 << 20, 1_000_000)
    );
    let toml = Operator::new().toml(
        "notification_interval = 0\nping_interval = 0.5\npong_timeout = 0.25\nmax_message_size = 1000\n\
         allowed_origins = ['https://a.example', 'http://[::1]:3000']\nhost = '::1'\nlog_format = 'json'\n\
         api_keys = ['0123456789abcdef']\nclient_messages = 'echo'\nlog_dir = 'logs'\n",
    );
    let settings = toml.settings();
    assert_eq!(
        (settings.notification_interval, settings.ping_interval),
        (None, Some(Duration::from_millis(500)))
    );
    assert_eq!((settings.max_message_size, settings.api_keys.len()), (1000, 1));
    let origins = vec!["https://a.example".to_owned(), "http://[::1]:3000".to_owned()];
    assert_eq!(settings.allowed_origins, AllowedOrigins::List(origins.clone()));
    let env = Operator::new().env("ALLOWED_ORIGINS", "https://a.example, http://[::1]:3000,");
    assert_eq!(env.settings().allowed_origins, AllowedOrigins::List(origins));
    let own_port = Operator::new().flag("allowed_origins", "https://a.example:443,http://b.example:80");
    assert_eq!(
        own_port.settings().allowed_origins,
        AllowedOrigins::List(vec!["https://a.example".into(), "http://b.example".into()]),
        "as browsers send them"
    );
    assert_eq!(Operator::new().flag("allowed_origins", "*").settings().allowed_origins, AllowedOrigins::Any);
}

#[test]
fn every_kind_of_bad_value_is_told_with_its_place_and_what_would_be_right() {
    for (key, value, expected) in [
        ("host", "", "a host name"),
        ("host", "http://x", "a host name"),
        ("port", "eighty", "a whole number from 0 to 65535"),
        ("port", "65536", "a whole number"),
        ("port", "-1", "a whole number"),
        ("notification_interval", "soon", "a number of seconds"),
        ("notification_interval", "-1", "a number of seconds"),
        ("notification_interval", "0.001", "at least 0.01 seconds"),
        ("shutdown_timeout", "NaN", "a number of seconds"),
        ("shutdown_timeout", "400d", "at most 365 days"),
        ("shutdown_timeout", "1e300", "a number of seconds"),
        ("close_timeout", "0", "more than 0 seconds"),
        ("pong_timeout", "0", "more than 0 seconds"),
        ("ping_interval", "10 fortnights", "a number of seconds"),
        ("max_connections", "0", "a whole number from 1 to"),
        ("max_connections", "99999999999", "open files"),
        ("max_message_size", "big", "a number of bytes"),
        ("max_message_size", "0", "from 1 byte"),
        ("max_queue", "5GiB", "from 1 byte to 1GiB"),
        ("client_messages", "shout", "broadcast, ignore or echo"),
        ("log_format", "xml", "auto, pretty or json"),
        ("log_level", "loud", "error, warn, info, debug or trace"),
        ("log_level", "info,x=loud", "error, warn, info, debug or trace"),
        ("allowed_origins", "example.org", "origins, such as"),
        ("allowed_origins", "https://example.org/path", "(no path)"),
        ("allowed_origins", "https://example.org:port", "origins, such as"),
        ("allowed_origins", "https://:80", "origins, such as"),
        ("allowed_origins", "https://[zz", "origins, such as"),
        ("allowed_origins", "https://[zz]", "origins, such as"),
        ("allowed_origins", "https://a:b:80", "origins, such as"),
        ("allowed_origins", "null", "origins, such as"),
        ("allowed_origins", "*,https://example.org", "* allows all and must stand alone"),
        ("allowed_origins", "https://*.example.org", "list each origin by itself"),
    ] {
        let complaints = Operator::new().flag(key, value).complaints();
        assert_eq!(complaints.len(), 1, "{key}={value}: {complaints:?}");
        let flag = key.replace('_', "-");
        let start = format!("{key} = {value:?} (command line --{flag}): expected ");
        assert!(complaints[0].starts_with(&start) && complaints[0].contains(expected), "{complaints:?}");
    }
    for (key, value) in
        [("port", "true"), ("port", "80.5"), ("host", "[\"a\"]"), ("log_dir", "3"), ("close_timeout", "[5]")]
    {
        let complaints = Operator::new().toml(&format!("{key} = {value}")).complaints();
        let start = format!("{key} = {value} (config/lastcall.toml:1): expected ");
        assert!(complaints[0].starts_with(&start), "{complaints:?}");
    }
}

#[test]
fn all_that_is_wrong_is_told_at_once() {
    let operator = Operator::new()
        .toml("# mine\nshutdown_timout = 5\n\nport = \"eighty\"\n")
        .write(".env", "LASTCALL_HOSTT=x\nOTHER=y\n")
        .env("CLOSE_TIMEOUT", "0")
        .env("LASTCALL_ZZZ", "1")
        .env("PATH", "/bin")
        .flag("ping_interval", "5");
    let mut complaints = operator.complaints();
    complaints.sort();
    assert_eq!(
        complaints,
        [
            "close_timeout = \"0\" (environment variable CLOSE_TIMEOUT): expected more than 0 seconds",
            "hostt (LASTCALL_HOSTT in .env): unknown setting; did you mean host?",
            "pong_timeout = 10 (default): expected at most ping_interval, which is 5s: a pong must come before the \
             next ping",
            "port = \"eighty\" (config/lastcall.toml:4): expected a whole number from 0 to 65535, such as 8000",
            "shutdown_timout (config/lastcall.toml:2): unknown setting; did you mean shutdown_timeout?",
            "zzz (environment variable LASTCALL_ZZZ): unknown setting; `lastcall --help` lists all",
        ]
    );
    let errors = Settings::load(&operator.sources).unwrap_err().to_string();
    assert_eq!(errors.lines().next(), Some("6 settings are wrong"));
}

#[test]
fn what_contradicts_is_refused() {
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
fn files_that_cannot_be_understood_are_told() {
    let toml = Operator::new().toml("port = = 5\n").complaints();
    assert!(toml[0].starts_with("config/lastcall.toml:1: is not valid TOML: "), "{toml:?}");
    let table = Operator::new().toml("[server]\nport = 5\n").complaints();
    assert_eq!(table, ["server (config/lastcall.toml:1): unknown setting; `lastcall --help` lists all"]);
    let env = Operator::new().write(".env", "PORT=1\nwhat is this").complaints();
    assert_eq!(env, [".env:2: is not understood: expected NAME=value, in quotes if it has spaces"]);
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
fn what_only_has_the_name_of_our_files_is_not_ours() {
    let operator = Operator::new().write("config", "a file").write(".env/pyvenv.cfg", "a folder");
    assert_eq!(operator.origin("port"), "default");
}

#[test]
fn what_kubernetes_sets_for_a_service_of_our_name_is_not_meant_for_us() {
    let operator = Operator::new()
        .env("LASTCALL_PORT", "tcp://10.0.0.1:8000")
        .env("LASTCALL_SERVICE_HOST", "10.0.0.1")
        .env("LASTCALL_PORT_8000_TCP_ADDR", "10.0.0.1")
        .env("LASTCALL_CANARY_SERVICE_HOST", "10.0.0.2")
        .env("LASTCALL_CANARY_SERVICE_PORT", "80")
        .env("LASTCALL_CANARY_SERVICE_PORT_HTTP", "80")
        .env("LASTCALL_CANARY_PORT", "tcp://10.0.0.2:80")
        .env("LASTCALL_CANARY_PORT_80_TCP_PROTO", "tcp")
        .env("PORT", "9000");
    assert_eq!(operator.settings().port, 9000);
    let plain = Operator::new().env("LASTCALL_PORT", "9001").env("LASTCALL_CANARY_PORT", "80");
    assert_eq!(
        plain.complaints(),
        [
            "canary_port (environment variable LASTCALL_CANARY_PORT): unknown setting; `lastcall --help` lists all"
        ]
    );
}
