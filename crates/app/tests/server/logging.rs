//! A log that cannot be written hurts nothing else.

use std::process::Stdio;

use rustix::process::{Pid, kill_process};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::support::{Signal, Start, own_address, soon, until};

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
        .under(std::path::Path::new("/bin/sh"), &["-c", "ulimit -f 8; exec \"$0\""]);
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
