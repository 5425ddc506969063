//! The files and variables of other programs, which must not stop the start.

use std::ffi::OsString;

use rustix::fs::{CWD, FileType, Mode, mknodat};

use super::operator::Operator;
use crate::settings::settings_file::CONFIG_FILE;

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
    let plain = Operator::new().env("LASTCALL_PORT", "9001");
    assert_eq!(plain.settings().port, 9001);
}

#[test]
fn a_variable_that_only_has_our_prefix_is_a_warning() {
    let operator = Operator::new()
        .env("LASTCALL_VERSION", "1.2.3")
        .env("LASTCALL_IMAGE", "example.org/lastcall:1")
        .env("lastcall_home", "/srv")
        .write(".env", "LASTCALL_COMMIT=abc def\n");
    assert_eq!(
        operator.warnings(),
        [
            "LASTCALL_COMMIT in .env: there is no such setting, so it does nothing; `lastcall --help` lists all",
            "environment variable LASTCALL_VERSION: there is no such setting, so it does nothing; `lastcall --help` \
             lists all",
            "environment variable LASTCALL_IMAGE: there is no such setting, so it does nothing; `lastcall --help` \
             lists all",
        ]
    );
}

#[test]
fn a_variable_that_is_close_to_one_of_ours_is_an_error() {
    for (variable, complaint) in [
        ("LASTCALL_PROT", "did you mean port?"),
        ("LASTCALL_API_KEY", "did you mean api_keys?"),
        ("LASTCALL_LOGLEVEL", "did you mean log_level?"),
        ("lastcall_port", "did you mean LASTCALL_PORT?"),
        ("Lastcall_Api_Keys", "did you mean LASTCALL_API_KEYS?"),
    ] {
        let line = Operator::new().write(".env", format!("{variable}=1\n"));
        for operator in [Operator::new().env(variable, "1"), line] {
            let complaints = operator.complaints();
            assert!(complaints.len() == 1 && complaints[0].contains(complaint), "{complaints:?}");
            assert!(complaints[0].contains(variable), "{complaints:?}");
        }
    }
}

#[test]
fn a_file_of_ours_with_an_unknown_key_is_an_error() {
    let complaints = Operator::new().toml("version = 1\n").complaints();
    assert_eq!(
        complaints,
        ["version (config/lastcall.toml:1): unknown setting; `lastcall --help` lists all"]
    );
}

#[test]
fn another_programs_lines_in_dot_env_do_not_matter() {
    let operator = Operator::new().write(
        ".env",
        b"\xef\xbb\xbf# shared\r\nA=b c\r\nGREETING=it's fine\r\nB=${A:-x}\r\nC=\xff\xfe\r\nD='open\r\nmore\r\nend'\r\n\
          dotted.name=1\r\nJSON={\"a\": [1, 2]}\r\nQ=\"a\" b\r\nPORT=9000\r\nexport HOST='::1'\r\nE='never closed\r\n\
          LOG_DIR=logs\r\n",
    );
    let loaded = operator.loaded();
    assert_eq!((loaded.settings.port, loaded.settings.host.as_str()), (9000, "::1"));
    assert_eq!(loaded.settings.log_dir, Some("logs".into()));
    assert_eq!(loaded.warnings, [".env:7: not read, as it is not NAME=value, nor is one more line"]);
}

#[test]
fn a_line_of_dot_env_without_a_name_is_a_warning_and_one_with_ours_an_error() {
    let junk = Operator::new().write(".env", "PORT=1\nwhat is this\n: that\n\u{200b}HOST=x\n");
    assert_eq!(junk.warnings(), [".env:2: not read, as it is not NAME=value, nor are 2 more lines"]);
    assert_eq!(
        Operator::new().write(".env", "???\n").warnings(),
        [".env:1: not read, as it is not NAME=value"]
    );
    for (text, complaint) in [
        ("PORT 9000\n", ".env:1: PORT is not understood: expected NAME=value"),
        ("PORT: 9000\n", ".env:1: PORT is not understood: expected NAME=value"),
        ("\nSHUTDOWN_TIMEOUT=1h 30m\n", ".env:2: SHUTDOWN_TIMEOUT is not understood: its value has a space"),
        ("LOG_DIR='a\nb'\n", ".env:1: LOG_DIR is not understood: its value begins with '"),
    ] {
        let complaints = Operator::new().write(".env", text).complaints();
        assert!(complaints.len() == 1 && complaints[0].starts_with(complaint), "{text}: {complaints:?}");
    }
    let bytes = Operator::new().write(".env", b"LOG_DIR=\xff\n").complaints();
    assert!(bytes[0].starts_with(".env:1: LOG_DIR is not understood: it is not UTF-8"), "{bytes:?}");
}

fn fifo(path: &str) -> Operator {
    let operator = Operator::new().write("config/x", "");
    mknodat(CWD, operator.dir.path().join(path), FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    operator
}

#[test]
fn what_only_has_the_name_of_the_settings_file_is_a_warning_unless_it_was_named() {
    let mut operator = fifo(CONFIG_FILE);
    assert_eq!(
        operator.warnings(),
        ["config/lastcall.toml: not read, as it is a FIFO or a device, and no file"]
    );
    operator.sources.config_file = Some("config".into());
    assert_eq!(operator.complaints(), ["config: cannot be read: Is a directory (os error 21)"]);
    let folder = Operator::new().write("config/lastcall.toml/file", "");
    assert_eq!(folder.warnings(), ["config/lastcall.toml: not read, as it is a folder"]);
}

#[test]
fn what_only_has_the_name_of_dot_env_does_not_stop_the_start() {
    let link = |to: &str| {
        let operator = Operator::new();
        std::os::unix::fs::symlink(to, operator.dir.path().join(".env")).unwrap();
        operator
    };
    let socket = Operator::new();
    let _listener = std::os::unix::net::UnixListener::bind(socket.dir.path().join(".env")).unwrap();
    for (what, operator) in [
        ("FIFO", fifo(".env")),
        ("socket", socket),
        ("endless device", link("/dev/zero")),
        ("loop of links", link(".env")),
        ("link to nothing", link("nothing")),
        ("UTF-16", Operator::new().write(".env", b"\xff\xfeP\0O\0R\0T\0=\x001\0\n\0")),
        ("huge", Operator::new().write(".env", "A=b\n".repeat(300_000))),
    ] {
        let warnings = operator.warnings();
        assert!(
            warnings.len() == 1 && warnings[0].starts_with(".env: not read, as "),
            "{what}: {warnings:?}"
        );
    }
    for (what, operator) in [
        ("folder", Operator::new().write(".env/pyvenv.cfg", "")),
        ("file instead of our folder", Operator::new().write("config", "")),
        ("null device", link("/dev/null")),
    ] {
        assert_eq!(operator.warnings(), [""; 0], "{what}");
    }
}

#[test]
fn a_byte_order_mark_and_crlf_are_no_part_of_the_settings() {
    let operator = Operator::new()
        .toml("\u{feff}port = 9000\r\nhost = '::1'\r\n")
        .write(".env", "\u{feff}LOG_LEVEL=debug\r\nLOG_DIR='logs'\r\n");
    let settings = operator.settings();
    assert_eq!((settings.port, settings.host.as_str(), settings.log_level.as_str()), (9000, "::1", "debug"));
    assert_eq!(settings.log_dir, Some("logs".into()));
    let wide = Operator::new().write(CONFIG_FILE, b"\xff\xfep\0").complaints();
    assert_eq!(wide, ["config/lastcall.toml: cannot be read: it is not UTF-8 text"]);
}

#[test]
fn rust_log_for_another_program_is_a_warning() {
    for text in [
        "myapp",
        "myapp=loud",
        "\"info\"",
        "info,myapp",
        "my_app=debug",
        "hyper=debug,tower_http=trace",
        "my_lastcall=debug",
        "[span]=debug",
        "other[lastcall]=info",
        "my_app=off",
    ] {
        let operator = Operator::new().env("RUST_LOG", text).env("LOG_LEVEL", "debug");
        assert_eq!(operator.settings().log_level, "debug", "{text}");
        let warnings = operator.warnings();
        assert!(warnings.len() == 1 && warnings[0].contains("RUST_LOG: left out"), "{warnings:?}");
    }
    for text in [
        "debug",
        "off",
        "my_app=debug,warn",
        "my_app=debug,lastcall=info",
        "lastcall_broker[x]=debug",
        "last=info",
    ] {
        let operator = Operator::new().env("RUST_LOG", text).env("LOG_LEVEL", "trace");
        assert_eq!((operator.settings().log_level.as_str(), operator.warnings().len()), (text, 0), "{text}");
    }
}

#[test]
fn a_log_level_that_turns_every_line_off_is_refused_unless_it_says_so() {
    for text in ["my_app=debug", "hyper=info,tokio=info", "[span]=trace"] {
        let complaints = Operator::new().env("LOG_LEVEL", text).complaints();
        assert!(
            complaints.len() == 1 && complaints[0].contains("a level for lastcall, too"),
            "{complaints:?}"
        );
    }
    assert_eq!(Operator::new().env("LOG_LEVEL", "off").settings().log_level, "off");
}

#[cfg(unix)]
#[test]
fn another_programs_bytes_do_not_matter() {
    use std::os::unix::ffi::OsStringExt;
    let mut operator = Operator::new();
    let bytes = || OsString::from_vec(vec![0xff]);
    operator.sources.environment.push((bytes(), "1".into()));
    operator.sources.environment.push(("LASTCALL_VERSION".into(), bytes()));
    operator.sources.environment.push(("OTHER".into(), bytes()));
    operator.loaded();
}

#[test]
fn a_wrong_value_of_a_shared_variable_names_the_one_that_wins() {
    let wrong = Operator::new().env("PORT", "tcp://10.0.0.1:80").complaints();
    assert!(wrong[0].ends_with("; if PORT is another program's, set LASTCALL_PORT, which wins"), "{wrong:?}");
    let dot_env = Operator::new().write(".env", "LOG_FORMAT=text\n").complaints();
    assert!(dot_env[0].ends_with("set LASTCALL_LOG_FORMAT, which wins"), "{dot_env:?}");
    let own = Operator::new().env("LASTCALL_PORT", "x").flag("host", "?").complaints();
    assert!(own.iter().all(|complaint| !complaint.contains("another program")), "{own:?}");
}
