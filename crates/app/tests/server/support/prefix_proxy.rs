//! A reverse proxy that serves a server under a prefix, as nginx does with `location /live/`.

use std::net::SocketAddr;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};

/// Serves `server` under `/live/` alone, until this is dropped.
pub(crate) struct PrefixProxy {
    pub(crate) address: SocketAddr,
    _connections: JoinSet<()>,
}

impl PrefixProxy {
    pub(crate) async fn start(server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut connections = JoinSet::new();
        connections.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (client, _) = listener.accept().await.unwrap();
                connections.spawn(pass_on(client, server));
            }
        });
        Self { address, _connections: connections }
    }
}

/// One request, or one WebSocket. A client that goes, or asks for something else, ends it.
async fn pass_on(mut client: TcpStream, server: SocketAddr) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match client.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => return,
        }
    }
    let head = String::from_utf8(head).unwrap();
    let Some(stripped) = head.strip_prefix("GET /live/") else { return };
    let head = format!("GET /{stripped}")
        .replace("Connection: keep-alive\r\n", "Connection: close\r\n")
        .replacen("\r\n", "\r\nX-Forwarded-For: 192.0.2.7\r\n", 1);
    let mut upstream = TcpStream::connect(server).await.unwrap();
    if upstream.write_all(head.as_bytes()).await.is_ok() {
        // Either end may go in any way.
        let _ = copy_bidirectional(&mut client, &mut upstream).await;
    }
}
