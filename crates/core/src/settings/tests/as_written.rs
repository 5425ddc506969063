//! A value means what is written, or is refused.

use std::{path::PathBuf, time::Duration};

use super::operator::Operator;

/// Returns all ways to write a value of `key`, with their names.
fn written(key: &'static str, value: &str) -> Vec<(&'static str, Operator)> {
    let mut written = vec![
        ("flag", Operator::new().flag(key, value)),
        ("variable", Operator::new().env(&key.to_ascii_uppercase(), value)),
    ];
    // A literal string of TOML, and single quotes in `.env`, have no escapes.
    if !value.contains(['\'', '\n', '\r']) {
        written.push(("TOML", Operator::new().toml(&format!("{key} = '{value}'\n"))));
        let line = format!("{}='{value}'\n", key.to_ascii_uppercase());
        written.push((".env", Operator::new().write(".env", line)));
    }
    written
}

#[test]
fn a_value_with_more_than_one_meaning_is_refused_wherever_it_is_written() {
    for (key, values) in [
        (
            "port",
            &["+5", "08000", "0x10", "1e3", "1_000", "80 80", "٣", "8000.0", "\u{200b}8000", "80\u{a0}"][..],
        ),
        ("max_connections", &["+5", "010", "0x10", "1e1", "1_0", "５"]),
        ("max_http_connections", &["+5", "010", "0x10", "1e1", "1_0", "５"]),
        (
            "shutdown_timeout",
            &[
                "5M",
                "1y",
                "2w",
                "1month",
                "10us",
                "10ns",
                "10µs",
                "5min",
                "5minutes",
                "1hour",
                "3days",
                "5sec",
                "5S",
                "1.5h",
                "1h30",
                "30 m 5",
                "-5",
                "-0",
                "+5",
                "1e3",
                ".5",
                "5.",
                "0x10",
                "1_000",
                "08",
                "inf",
                "nan",
                "infinity",
                "99999999999d",
                "99999999999999999999s",
                "٣",
                "5\u{a0}m",
                "5\tm",
                "1h,30m",
                "0.0000000001",
                "0.0.1",
                "1,5",
                "5m\u{200b}",
            ],
        ),
        ("ping_interval", &["0.0000000001", "5M", "off", "false"]),
        ("shutdown_spread", &["Auto", "5M"]),
        (
            "max_queue",
            &[
                "64K",
                "64k",
                "1M",
                "1m",
                "1G",
                "64Ki",
                "1Mi",
                "64kb",
                "64kib",
                "64Kib",
                "64KIB",
                "1mb",
                "1.5MiB",
                "1e6",
                "0x1000000",
                "1_000_000",
                "+1MiB",
                "01MiB",
                "-1",
                "1TiB",
                "1 000 000",
                "٣MiB",
                "18446744073709551616",
                "1MiB 5KiB",
                "64\u{a0}KiB",
            ],
        ),
        (
            "host",
            &[
                "0",
                "1",
                "127.1",
                "010.0.0.1",
                "0x7f.1",
                "2130706433",
                "1.2.3",
                "1.2.3.4.5",
                "127.0.0.1:8000",
                "[::1]:8000",
                "[::1",
                "::1]",
                "[127.0.0.1]",
                "[localhost]",
                "*",
                "a..b",
                "a,b",
                "a b",
                "http://a",
                "user@a",
                "127.0.0.1\u{200b}",
                "\u{feff}127.0.0.1",
                "münchen.example",
                "::1%",
                "256.0.0.1",
                "example.0x1f",
            ],
        ),
        ("client_messages", &["Broadcast", "echo,ignore", "\u{200b}echo", "“echo”"]),
        ("log_format", &["JSON", "\"json\""]),
        ("log_level", &["\"info\"", "'info'", "\u{200b}info"]),
        (
            "log_dir",
            &[
                "\"/var/log\"",
                "'/var/log'",
                "“/var/log”",
                "\"/var/log",
                "/var/log\"",
                "`pwd`",
                "~",
                "~/logs",
                "~root/logs",
                " /var/log",
                "/var/log ",
                "/var/log\n",
                "/var/log\r",
            ],
        ),
        ("history_size", &["+5", "010", "1e3", "1_000", "-1", "100.0"]),
        ("history_ttl", &["5M", "1.5h", "0.0", "forever"]),
        ("history_bytes", &["64M", "64mib", "1.5GiB", "0"]),
        ("history_file", &["\"history\"", "~/history", "history "]),
        ("templates_dir", &["\"pages\"", "~/pages", "pages "]),
        ("runtime_dir", &["\"/run/lastcall\"", "~/run"]),
        (
            "api_keys",
            &[
                "\"0123456789abcdef\"",
                "'0123456789abcdef'",
                "`0123456789abcdef`",
                "“0123456789abcdef”",
                "\"0123456789abcdef\",\"fedcba9876543210\"",
                "0123456789abcdef,\"fedcba9876543210\"",
                "[0123456789abcdef,fedcba9876543210]",
                "[\"0123456789abcdef\"]",
                "{\"0123456789abcdef\"}",
                "0123456789abcdef,,fedcba9876543210",
                ",0123456789abcdef",
                "0123456789abcdef,,",
                "0123456789abcdef\nfedcba9876543210",
                "0123456789abcdef fedcba9876543210",
                "0123456789abcdef\u{200b}",
                "0123456789abcdéf",
                "0123456789abcdef, 'fedcba9876543210'",
            ],
        ),
        (
            "allowed_origins",
            &["\"https://a.example\"", "[\"https://a.example\"]", "https://a.example,,https://b.example"],
        ),
    ] {
        for value in values {
            for (how, operator) in written(key, value) {
                let complaints = operator.complaints();
                assert!(
                    complaints.len() == 1 && complaints[0].contains(": expected "),
                    "{key}={value:?} by {how}: {complaints:?}"
                );
                assert!(!complaints[0].contains("0123456789abc"), "{complaints:?}");
            }
        }
    }
}

#[test]
fn a_refusal_names_the_quotes_and_the_units() {
    let refusal = |key, value: &str| Operator::new().flag(key, value).complaints().remove(0);
    assert!(refusal("log_dir", "\"logs\"").contains("without quotes around it"));
    assert!(refusal("api_keys", "'0123456789abcdef'").contains("without quotes around it"));
    assert!(refusal("shutdown_timeout", "5M").contains("units d, h, m, s and ms"));
    assert!(refusal("max_queue", "1M").contains("powers of 1024"));
}

#[test]
fn a_value_of_another_type_in_toml_is_refused() {
    for (key, value) in [
        ("port", "8000.0"),
        ("port", "true"),
        ("host", "1.2"),
        ("host", "8000"),
        ("host", "1979-05-27"),
        ("log_dir", "1979-05-27T07:32:00Z"),
        ("log_dir", "2024"),
        ("log_level", "1"),
        ("api_keys", "1234567890123456"),
        ("api_keys", "[1234567890123456]"),
        ("api_keys", "[['0123456789abcdef']]"),
        ("api_keys", "['0123456789abcdef', '']"),
        ("api_keys", "[\"'0123456789abcdef'\"]"),
        ("allowed_origins", "true"),
        ("shutdown_timeout", "inf"),
        ("shutdown_timeout", "nan"),
        ("shutdown_timeout", "-1"),
        ("shutdown_timeout", "-0.0"),
        ("shutdown_timeout", "07:32:00"),
        ("shutdown_timeout", "true"),
        ("max_queue", "1048576.5"),
        ("max_queue", "-1"),
        ("max_connections", "1e1"),
    ] {
        let complaints = Operator::new().toml(&format!("{key} = {value}\n")).complaints();
        let place = "(config/lastcall.toml:1): expected ";
        assert!(complaints.len() == 1 && complaints[0].contains(place), "{key} = {value}: {complaints:?}");
    }
}

#[test]
fn a_value_with_one_meaning_is_taken_as_written() {
    let port = |text: &str| Operator::new().env("PORT", text).settings().port;
    assert_eq!((port("0"), port("8000"), port(" 8000\n")), (0, 8000, 8000));
    let toml_port = |text: &str| Operator::new().toml(&format!("port = {text}")).settings().port;
    assert_eq!((toml_port("0x1F90"), toml_port("8_000"), toml_port("'8000'")), (8080, 8000, 8000));
    for (text, ms) in [
        ("0", 0),
        ("0.0", 0),
        ("0s", 0),
        ("2", 2_000),
        ("0.25", 250),
        ("250ms", 250),
        ("5s", 5_000),
        ("5m", 300_000),
        ("5 m", 300_000),
        ("1h30m", 5_400_000),
        ("1h 05m", 3_900_000),
        ("1d 2h 3m 4s 5ms", 93_784_005),
        ("365d", 31_536_000_000),
    ] {
        for (how, operator) in written("shutdown_timeout", text) {
            let operator = operator.flag("shutdown_spread", "0");
            assert_eq!(operator.settings().shutdown_timeout, Duration::from_millis(ms), "{text} by {how}");
        }
    }
    for (text, bytes) in [
        ("1000000", 1_000_000),
        ("1000000B", 1_000_000),
        ("1MB", 1_000_000),
        ("1000kB", 1_000_000),
        ("1000 KB", 1_000_000),
        ("128KiB", 131_072),
        ("3 MiB", 3 << 20),
        ("1GiB", 1 << 30),
        ("1GB", 1_000_000_000),
    ] {
        for (how, operator) in written("max_queue", text) {
            assert_eq!(operator.settings().max_queue, bytes, "{text} by {how}");
        }
    }
    for (text, host) in [
        ("[::]", "::"),
        ("[::1]", "::1"),
        ("[fe80::1%lo]", "fe80::1%lo"),
        ("::", "::"),
        ("::ffff:127.0.0.1", "::ffff:127.0.0.1"),
        ("fe80::1%lo", "fe80::1%lo"),
        ("0.0.0.0", "0.0.0.0"),
        ("localhost", "localhost"),
        ("my_host-1.example.", "my_host-1.example."),
        ("1.example", "1.example"),
        ("x86_64-conda-linux-gnu", "x86_64-conda-linux-gnu"),
        ("true", "true"),
        (" localhost ", "localhost"),
    ] {
        for (how, operator) in written("host", text) {
            assert_eq!(operator.settings().host.as_str(), host, "{text} by {how}");
        }
    }
    for path in
        ["/var/log/$USER", "it's", "C:\\logs", "a b", "%h/logs", "./~", "a~", "1", "true", "[logs]", "a#b"]
    {
        for (how, operator) in written("log_dir", path) {
            assert_eq!(operator.settings().log_dir, Some(PathBuf::from(path)), "{path} by {how}");
        }
    }
    for key in
        ["0123456789abc$def", "0123456789ab\\n'\"#=${x}`x`def", "0123456789;abc#def", "[0]123456789abcdef]x"]
    {
        for (how, operator) in written("api_keys", &format!("{key}x")) {
            // A bracket at the start is a list's.
            if key.starts_with('[') {
                assert_eq!(operator.complaints().len(), 1);
                continue;
            }
            let keys = operator.settings().api_keys;
            assert_eq!(keys.len(), 1, "{how}");
            assert_eq!(keys[0].expose(), format!("{key}x"), "{how}");
        }
    }
    let two = Operator::new().env("API_KEYS", " 0123456789abcdef , fedcba9876543210,\n").settings().api_keys;
    assert_eq!((two[0].expose(), two[1].expose()), ("0123456789abcdef", "fedcba9876543210"));
}

#[test]
fn a_dollar_in_a_line_of_dot_env_is_refused_or_taken_literally() {
    let key = |line: &str| Operator::new().write(".env", line);
    for line in [
        "API_KEYS=0123456789abcdef$def",
        "API_KEYS=\"0123456789abcdef$def\"",
        "API_KEYS=0123456789abcdef${def}",
        "API_KEYS=0123456789abcdef\\$def",
        "LASTCALL_API_KEYS=0123456789abcdef$def",
        "export API_KEYS=0123456789abcdef$def",
        "LOG_DIR=$HOME/logs",
        "LOG_DIR=/var/log/`id`",
    ] {
        let complaints = key(line).complaints();
        assert!(complaints.len() == 1 && complaints[0].starts_with(".env:1: "), "{line}: {complaints:?}");
        assert!(complaints[0].contains("single quotes"), "{complaints:?}");
        assert!(!complaints[0].contains("0123456789abcdef"), "{complaints:?}");
    }
    let literal =
        key("# mine\nexport API_KEYS='0123456789abc$def' # new\r\nLOG_DIR='$HOME/logs'\n").settings();
    assert_eq!(literal.api_keys[0].expose(), "0123456789abc$def");
    assert_eq!(literal.log_dir, Some("$HOME/logs".into()));
}
