//! Starting, not starting, and the log.

use crate::support::{Ended, Server, Signal, Start, folder, message};

/// Returns what went wrong, as one sentence on stderr; nothing else is said.
fn complaint(ended: &Ended) -> &str {
    let line = ended.stderr.trim_end();
    assert!(line.starts_with("error: ") && line.lines().count() == 1, "{}", ended.stderr);
    line
}

/// Returns the setting that cannot be used here, as the only one on stderr, after exit code 2.
fn unusable(ended: &Ended) -> &str {
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(2), ""), "{}", ended.stderr);
    let line = ended.stderr.strip_prefix("error: 1 setting is wrong\n  ");
    line.filter(|line| line.lines().count() == 1).unwrap_or_else(|| panic!("{}", ended.stderr))
}

#[tokio::test]
async fn a_port_in_use_is_reported_in_one_sentence() {
    let first = Server::start().await;
    let port = first.address.port();
    let ended = Start::default().env("PORT", port).end().await;
    assert_eq!(ended.code, Some(1));
    assert!(
        complaint(&ended).contains(&format!("127.0.0.1:{port}: another program already does")),
        "{}",
        ended.stderr
    );
    assert_eq!(ended.stdout, "", "it never said that it listens");
}

#[tokio::test]
async fn an_address_of_another_machine_is_reported_in_one_sentence() {
    // For documentation (RFC 5737): no machine has it.
    let ended = Start::default().env("HOST", "203.0.113.1").end().await;
    assert!(unusable(&ended).contains("change `host`"), "{}", ended.stderr);
}

#[tokio::test]
async fn settings_that_this_machine_does_not_allow_are_reported_together() {
    let ended = Start::default()
        .file("file", "")
        .file("config/lastcall.toml", "templates_dir = \"none\"\n")
        .env("LASTCALL_HOST", "203.0.113.1")
        .env("LOG_DIR", "file/logs")
        .env("HISTORY_FILE", "none/history")
        .args(&["--runtime-dir", "file/run"])
        .end()
        .await;
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(2), ""));
    let mut lines: Vec<_> = ended.stderr.lines().collect();
    assert_eq!(lines.remove(0), "error: 5 settings are wrong");
    lines.sort_unstable();
    let expected = [
        (
            "  history_file = none/history (environment variable HISTORY_FILE): ",
            "its folder cannot be used: No such",
        ),
        ("  host = 203.0.113.1 (environment variable LASTCALL_HOST): ", "does not have that address"),
        ("  log_dir = file/logs (environment variable LOG_DIR): ", "cannot write log files there: "),
        ("  runtime_dir = file/run (command line --runtime-dir): ", "there can be no control socket: "),
        ("  templates_dir = none (config/lastcall.toml:1): ", "none/index.html: No such file"),
    ];
    for (line, (start, reason)) in lines.iter().zip(expected) {
        assert!(line.starts_with(start) && line.contains(reason), "{line}");
    }
    assert_eq!(lines.len(), expected.len(), "{}", ended.stderr);
}

#[tokio::test]
async fn a_bad_template_is_reported_with_its_place() {
    let ended =
        Start::default().env("TEMPLATES_DIR", "pages").file("pages/index.html", "<p>\n{% if %}").end().await;
    let text = unusable(&ended);
    assert!(text.contains("pages/index.html") && text.contains(":2"), "{text}");
    let ended = Start::default().env("TEMPLATES_DIR", "none").end().await;
    assert!(unusable(&ended).contains("none/index.html"), "{}", ended.stderr);
}

#[tokio::test]
async fn a_template_that_is_no_regular_file_is_refused_and_not_waited_for() {
    for (name, other) in [("index.html", None), ("page.css", Some("<p></p>"))] {
        let pages = folder();
        if let Some(page) = other {
            std::fs::write(pages.path().join("index.html"), page).unwrap();
        }
        // Nothing ever writes to it.
        let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
        let fifo = pages.path().join(name);
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, mode, 0).unwrap();
        let ended = Start::default().env("TEMPLATES_DIR", pages.path().display()).end().await;
        let text = unusable(&ended);
        assert!(text.contains(name) && text.contains("a regular file is needed"), "{text}");
        std::fs::remove_file(&fifo).unwrap();
        std::fs::create_dir(&fifo).unwrap();
        let ended = Start::default().env("TEMPLATES_DIR", pages.path().display()).end().await;
        assert!(unusable(&ended).contains("a regular file is needed"), "{}", ended.stderr);
        std::fs::remove_dir(&fifo).unwrap();
        std::os::unix::fs::symlink("/dev/zero", &fifo).unwrap();
        let ended = Start::default().env("TEMPLATES_DIR", pages.path().display()).end().await;
        assert!(unusable(&ended).contains("a regular file is needed"), "{}", ended.stderr);
    }
}

#[tokio::test]
async fn templates_of_ones_own_are_served() {
    let own = Start::default().env("TEMPLATES_DIR", "pages").file("pages/index.html", "<b>{{ name }}</b>");
    assert_eq!(own.serve().await.get("/").await.body, "<b>lastcall</b>");
    let built_in = Server::start().await.get("/").await;
    assert!(
        built_in.body.contains("Send Hello")
            && built_in.head.to_lowercase().contains("text/html; charset=utf-8")
    );
}

#[tokio::test]
async fn wrong_settings_are_reported_together_before_anything_is_bound() {
    let ended = Start::default()
        .file("config/lastcall.toml", "shutdown_timout = 5\n")
        .env("CLOSE_TIMEOUT", "soon")
        .args(&["--max-queue", "1"])
        .end()
        .await;
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(2), ""));
    let mut lines: Vec<_> = ended.stderr.lines().collect();
    assert_eq!(lines.remove(0), "error: 3 settings are wrong");
    assert!(
        lines.iter().any(|line| line.contains("config/lastcall.toml:1") && line.contains("shutdown_timeout"))
    );
    assert!(
        lines.iter().any(|line| line.contains("environment variable CLOSE_TIMEOUT") && line.contains("30m"))
    );
    assert!(lines.iter().any(|line| line.contains("--max-queue")));
    let unknown = Start::default().args(&["--prot", "1"]).end().await;
    assert_eq!(unknown.code, Some(2));
    assert!(unknown.stderr.contains("--port"), "{}", unknown.stderr);
}

#[tokio::test]
async fn config_help_and_version_answer_and_end() {
    let ended = Start::default()
        .file(".env", "NOTIFICATION_INTERVAL=3\n")
        .env("API_KEYS", "0123456789abcdef")
        .args(&["config", "--host", "::1"])
        .end()
        .await;
    assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""));
    let row = |key: &str| {
        let line =
            ended.stdout.lines().find(|line| line.starts_with(key)).unwrap_or_else(|| panic!("no {key}"));
        line.split_whitespace().skip(1).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(row("host"), "::1 command line --host");
    assert_eq!(row("notification_interval"), "3 NOTIFICATION_INTERVAL in .env");
    assert_eq!(row("api_keys"), "(1 hidden) environment variable API_KEYS");
    assert_eq!(row("close_timeout"), "5 default");
    assert!(!ended.stdout.contains("0123456789abcdef"));

    let version = Start::default().args(&["--version"]).end().await;
    assert!(
        version.stdout.starts_with(&format!("lastcall {}", env!("CARGO_PKG_VERSION"))),
        "{}",
        version.stdout
    );
    // A reader that has seen enough is no error.
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let status = std::process::Command::new(env!("CARGO_BIN_EXE_lastcall"))
        .arg("config")
        .stdout(writer)
        .stderr(std::process::Stdio::inherit())
        .status();
    assert!(status.unwrap().success());
    let help = Start::default().args(&["--help"]).end().await;
    assert!(help.stdout.contains("--shutdown-timeout") && help.stdout.contains("SIGTERM"));
}

#[tokio::test]
async fn log_files_have_everything_to_the_last_line() {
    let mut server = Start::default().env("LOG_DIR", "logs").env("LOG_LEVEL", "debug").serve().await;
    for client in server.clients(20).await {
        client.leave().await;
    }
    server.signal(Signal::TERM);
    assert_eq!(server.exit_code().await, 0);
    let files = std::fs::read_dir(server.dir.path().join("logs")).unwrap();
    let mut files: Vec<_> = files.map(|file| file.unwrap().path()).collect();
    files.sort();
    // One a day: two, if the day ends meanwhile.
    assert!((1..=2).contains(&files.len()), "{files:?}");
    let mut text = String::new();
    for path in &files {
        let name = path.file_name().unwrap().to_str().unwrap();
        assert!(name.starts_with("lastcall.2") && name.ends_with(".log"), "{name}");
        text += &std::fs::read_to_string(path).unwrap();
    }
    let lines: Vec<serde_json::Value> =
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(message(lines.last().unwrap()), "stopped");
    assert_eq!(lines.len(), server.log_lines("").len(), "as many as on stdout");
}

#[tokio::test]
async fn a_log_dir_that_cannot_be_written_is_reported_in_one_sentence() {
    let ended = Start::default().env("LOG_DIR", "file/logs").file("file", "").end().await;
    let text = unusable(&ended);
    assert!(text.starts_with("log_dir = file/logs (") && text.matches("(os error ").count() == 1, "{text}");
}

#[tokio::test]
async fn a_connection_has_one_line_at_debug_and_none_at_info() {
    for (level, lines) in [("debug", 3), ("info", 0)] {
        let mut server = Start::default().env("LOG_LEVEL", level).serve().await;
        for client in server.clients(3).await {
            client.leave().await;
        }
        server.signal(Signal::TERM);
        assert_eq!(server.exit_code().await, 0);
        let about_clients =
            server.log_lines("").into_iter().filter(|line| !line["fields"]["client"].is_null());
        assert_eq!(about_clients.count(), lines, "at {level}");
    }
}

#[tokio::test]
async fn a_port_is_free_again_at_once_for_the_next_server() {
    let mut first = Start::default().own_address().env("SHUTDOWN_TIMEOUT", "0").serve().await;
    let mut client = first.client().await;
    first.signal(Signal::TERM);
    client.closed().await;
    assert_eq!(first.exit_code().await, 0);
    let (host, port) = (first.address.ip(), first.address.port());
    let second = Start::default().env("HOST", host).env("PORT", port).serve().await;
    second.client().await;
}
