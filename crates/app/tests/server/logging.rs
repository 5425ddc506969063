//! A log that cannot be written hurts nothing else.

use std::{
    fs::{self, File},
    io::Read,
    os::unix::fs::{MetadataExt, chown, symlink},
    path::Path,
    process::Stdio,
    time::SystemTime,
};

use rustix::{
    fs::{CWD, FileType, Mode, mknodat},
    process::{Pid, getuid, kill_process},
    pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::support::{Server, Signal, Start, own_address, soon, until};

async fn get(address: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("GET /health/ready HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    soon("an answer", stream.read_to_string(&mut answer)).await.unwrap();
    answer
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stdout_that_takes_nothing_stops_neither_http_nor_a_drain_nor_an_upgrade_nor_the_third_signal() {
    let host = own_address().to_string();
    let address = format!("{host}:8000");
    let start = Start::default().env("HOST", &host).env("PORT", "8000").env("LOG_LEVEL", "trace");
    let (mut command, folder) = start.into_command();
    // Nothing is read from it, and it is full at once.
    let (read, mut write) = std::io::pipe().unwrap();
    rustix::io::ioctl_fionbio(&write, true).unwrap();
    while std::io::Write::write(&mut write, &[b'x'; 4096]).is_ok() {}
    while std::io::Write::write(&mut write, b"x").is_ok() {}
    rustix::io::ioctl_fionbio(&write, false).unwrap();
    let mut server = command.stdout(Stdio::from(write)).stderr(Stdio::null()).spawn().unwrap();
    drop(command);
    until("the server to listen", async || {
        assert!(server.try_wait().unwrap().is_none());
        TcpStream::connect(&address).await.is_ok()
    })
    .await;
    for _ in 0..200 {
        assert!(get(&address).await.starts_with("HTTP/1.1 200"));
    }
    let ended = Start::default()
        .args(&["upgrade", "--host", &host, "--port", "8000"])
        .env("RUNTIME_DIR", folder.path().join("run").display())
        .end()
        .await;
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let (mut client, _) = tokio_tungstenite::connect_async(format!("ws://{address}/ws")).await.unwrap();
    let pid = Pid::from_raw(server.id().unwrap().cast_signed()).unwrap();
    kill_process(pid, Signal::TERM).unwrap();
    soon("the notice", async {
        loop {
            let message = futures_util::StreamExt::next(&mut client).await.unwrap().unwrap();
            if message.to_text().is_ok_and(|text| text.contains("\"type\":\"shutdown\"")) {
                break;
            }
        }
    })
    .await;
    // One at a time: signals that wait are one.
    soon("the end", async {
        loop {
            kill_process(pid, Signal::TERM).unwrap();
            if let Ok(status) =
                tokio::time::timeout(std::time::Duration::from_millis(100), server.wait()).await
            {
                break assert!([Some(0), Some(128 + 15)].contains(&status.unwrap().code()));
            }
        }
    })
    .await;
    drop(read);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_file_that_takes_no_more_is_reported_once_and_the_server_goes_on() {
    // 8 blocks of 512 bytes, as POSIX has it for `ulimit -f`: the signal for that limit ends most programs.
    let start = Start::default()
        .env("LOG_DIR", "logs")
        .env("LOG_LEVEL", "trace")
        .under(Path::new("/bin/sh"), &["-c", "ulimit -f 8; exec \"$0\""]);
    let server = start.serve().await;
    soon("a file at its limit", async {
        while server.log_lines("log_dir takes no log lines").is_empty() {
            assert_eq!(server.get("/health/ready").await.status, 200);
        }
    })
    .await;
    let line = server.logged("log_dir takes no log lines").await;
    assert!(line["fields"]["error"].as_str().unwrap().contains("File too large"), "{line}");
    for _ in 0..20 {
        assert_eq!(server.get("/health/ready").await.status, 200);
    }
    assert_eq!(server.log_lines("log_dir takes no log lines").len(), 1);
}

/// Runs a command on a terminal of its own, until `until` is on its screen. Returns what is there then.
fn on_a_terminal(start: Start, kind: &str, until: &'static str) -> String {
    let mut controller =
        File::from(openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap());
    grantpt(&controller).unwrap();
    unlockpt(&controller).unwrap();
    let name = ptsname(&controller, Vec::new()).unwrap();
    let open = || File::options().read(true).write(true).open(name.to_str().unwrap()).unwrap();
    let (mut command, _folder) = start.env("TERM", kind).env_remove("LOG_FORMAT").into_command();
    // Kept until the screen was read: it is empty once nothing has it open.
    let (screen, _child) = (open(), command.stdout(open()).stderr(open()).spawn().unwrap());
    let mut seen = Vec::new();
    let mut part = [0; 4096];
    while !String::from_utf8_lossy(&seen).contains(until) {
        let read = controller.read(&mut part).unwrap();
        seen.extend_from_slice(&part[..read]);
    }
    drop(screen);
    String::from_utf8(seen).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminal_gets_escapes_unless_it_is_dumb_or_they_are_not_wanted() {
    let has_escapes = async |start: Start, kind: &'static str, until: &'static str| {
        let seen = soon(until, tokio::task::spawn_blocking(move || on_a_terminal(start, kind, until)));
        seen.await.unwrap().contains('\x1b')
    };
    let listening = "listening on http://";
    for (kind, no_color, expected) in
        [("xterm", None, true), ("xterm", Some(""), true), ("xterm", Some("1"), false), ("dumb", None, false)]
    {
        for format in [None, Some("pretty"), Some("json")] {
            let mut start = Start::default();
            if let Some(value) = no_color {
                start = start.env("NO_COLOR", value);
            }
            if let Some(format) = format {
                start = start.env("LASTCALL_LOG_FORMAT", format);
            }
            let expected = expected && format != Some("json");
            assert_eq!(has_escapes(start, kind, listening).await, expected, "{kind} {no_color:?} {format:?}");
        }
    }
    let server = Server::start().await;
    let mut client = server.client().await;
    server.signal(Signal::TERM);
    client.next_of("shutdown").await;
    // Where nothing can be drawn, it does not follow the drain.
    assert!(!has_escapes(server.command("status"), "dumb", ", version ").await);
}

/// Returns the names that the file of today may have until the end of a test.
fn names() -> [String; 2] {
    let date = |days: i64| {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs().cast_signed();
        let time = jiff::Timestamp::from_second(now + days * 24 * 60 * 60).unwrap();
        format!("lastcall.{}.log", time.to_string().split('T').next().unwrap())
    };
    [date(0), date(1)]
}

#[tokio::test]
async fn what_has_the_name_of_the_log_file_and_is_no_file_of_this_user_stops_the_start() {
    type Make = fn(&Path);
    let mut made: Vec<(Make, &str)> = vec![
        (|path| symlink("../victim", path).unwrap(), "is a symbolic link"),
        (|path| symlink("nothing", path).unwrap(), "is a symbolic link"),
        (
            |path| mknodat(CWD, path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap(),
            "is not a regular file",
        ),
    ];
    if getuid().is_root() {
        made.push((
            |path| {
                fs::write(path, "").unwrap();
                chown(path, Some(65534), None).unwrap();
            },
            "belongs to another user",
        ));
    }
    for (make, why) in made {
        let start = Start::default().env("LOG_DIR", "logs").file("victim", "kept").file("logs/other", "");
        let logs = start.path("logs");
        for name in names() {
            make(&logs.join(name));
        }
        let (mut command, folder) = start.into_command();
        let output = soon("the end", command.output()).await.unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{text}");
        assert!(
            text.contains("log_dir = logs (environment variable LOG_DIR)") && text.contains(why),
            "{text}"
        );
        assert_eq!(fs::read_to_string(folder.path().join("victim")).unwrap(), "kept");
        assert!(!folder.path().join("logs/nothing").exists());
    }
}

#[tokio::test]
async fn log_files_are_for_this_user_alone() {
    let start = Start::default().env("LOG_DIR", "logs");
    let server = start.under(Path::new("/bin/sh"), &["-c", "umask 022; exec \"$0\""]).serve().await;
    for file in fs::read_dir(server.dir.path().join("logs")).unwrap() {
        assert_eq!(file.unwrap().metadata().unwrap().mode() & 0o7777, 0o600);
    }
}
