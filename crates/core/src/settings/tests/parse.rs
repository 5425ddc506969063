//! Every kind of value, right and wrong.

use std::time::Duration;

use super::operator::Operator;
use crate::AllowedOrigins;

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
    let list = |origins: &[&str]| {
        AllowedOrigins::List(origins.iter().map(|origin| origin.parse().unwrap()).collect())
    };
    let origins = list(&["https://a.example", "http://[::1]:3000"]);
    assert_eq!(settings.allowed_origins, origins);
    let env = Operator::new().env("ALLOWED_ORIGINS", "https://a.example, http://[::1]:3000,");
    assert_eq!(env.settings().allowed_origins, origins);
    let own_port = Operator::new().flag("allowed_origins", "https://a.example:443,http://b.example:80");
    assert_eq!(
        own_port.settings().allowed_origins,
        list(&["https://a.example", "http://b.example"]),
        "as browsers send them"
    );
    assert_eq!(Operator::new().flag("allowed_origins", "*").settings().allowed_origins, AllowedOrigins::Any);
}

#[test]
fn every_kind_of_bad_value_is_reported_with_its_place_and_what_would_be_right() {
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
        ("max_http_connections", "0", "a whole number from 1 to"),
        ("max_http_connections", "99999999999", "open files"),
        ("max_message_size", "big", "a number of bytes"),
        ("max_message_size", "0", "from 1 byte"),
        ("max_queue", "5GiB", "from 1 byte to 1GiB"),
        ("history_size", "1000001", "a whole number from 0, which turns history off, to 1000000"),
        ("history_size", "many", "a whole number from 0"),
        ("history_ttl", "0", "more than 0 seconds"),
        ("history_ttl", "400d", "at most 365 days"),
        ("history_bytes", "65GiB", "at most 64GiB"),
        ("history_bytes", "1023KiB", "at least 1MiB"),
        ("history_file", "history/", "the path of a file, and not of a folder"),
        ("history_file", "/", "the path of a file, and not of a folder"),
        ("history_file", "..", "the path of a file, and not of a folder"),
        ("history_file", "~/history", "the whole path of a file"),
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
        ("allowed_origins", "https://[1:2:3:4:5:6:7:8:9]", "is not a scheme, a host and maybe a port"),
        ("allowed_origins", "https://127.1", "has the host 127.1, which no page comes from"),
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
