//! The floor: a server that does nothing but write a ready-made frame to every socket. No server that makes
//! one write per message and client can cost less; the others are measured as multiples of it.
//!
//! It knows one handshake key (the one that `lastcall-bench` sends) and only frames that arrive whole.

use std::{
    env,
    io::{self, ErrorKind, Read, Write},
};

use mio::{
    Events, Interest, Poll, Token,
    net::{TcpListener, TcpStream},
};

/// With the mode `one`, each text goes to one client: to the one that is so many further than the one before.
/// A prime number, so that all get their turn, and none that was served a moment ago.
const STRIDE: usize = 7919;

const LISTENER: Token = Token(usize::MAX);

/// The answer to the key of RFC 6455 §1.3.
const WELCOME: &str = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                       Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

struct Client {
    stream: TcpStream,
    open: bool,
}

fn main() -> io::Result<()> {
    let port = env::args().nth(1).and_then(|port| port.parse().ok()).unwrap_or(0);
    let mode = env::args().nth(2).unwrap_or_default();
    let echo = mode == "echo";
    let mut next = 0;
    let std_listener = listen(port)?;
    std_listener.set_nonblocking(true)?;
    let mut listener = TcpListener::from_std(std_listener);
    let mut poll = Poll::new()?;
    poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
    let mut events = Events::with_capacity(1024);
    let mut clients: Vec<Option<Client>> = Vec::new();
    let mut buffer = vec![0; 64 << 10];
    loop {
        poll.poll(&mut events, None)?;
        for event in &events {
            if event.token() == LISTENER {
                while let Ok((mut stream, _)) = listener.accept() {
                    stream.set_nodelay(true)?;
                    poll.registry().register(&mut stream, Token(clients.len()), Interest::READABLE)?;
                    clients.push(Some(Client { stream, open: false }));
                }
                continue;
            }
            let index = event.token().0;
            let Some(client) = &mut clients[index] else { continue };
            match client.stream.read(&mut buffer) {
                Ok(n) if n > 0 && !client.open => {
                    client.open = true;
                    client.stream.write_all(WELCOME.as_bytes())?;
                }
                Ok(n) if n > 0 => {
                    let frames = frames(&buffer[..n], !echo);
                    for frame in frames {
                        let receivers = match mode.as_str() {
                            "echo" => index..index + 1,
                            "one" => {
                                next = one_of(&clients, next);
                                next..next + 1
                            }
                            _ => 0..clients.len(),
                        };
                        for other in clients[receivers].iter_mut().flatten() {
                            write(&mut other.stream, &frame);
                        }
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                _ => clients[index] = None,
            }
        }
    }
}

/// Returns the next client after the one that was served last. There is one: a client that has sent a text.
fn one_of(clients: &[Option<Client>], last: usize) -> usize {
    let mut next = last;
    loop {
        next = (next + STRIDE) % clients.len();
        if clients[next].as_ref().is_some_and(|client| client.open) {
            return next;
        }
    }
}

/// Returns a socket with the largest backlog, as the server that is compared has.
fn listen(port: u16) -> io::Result<std::net::TcpListener> {
    use rustix::net::{AddressFamily, SocketType, bind, socket, sockopt};
    let socket = socket(AddressFamily::INET, SocketType::STREAM, None)?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    bind(&socket, &std::net::SocketAddr::from(([127, 0, 0, 1], port)))?;
    rustix::net::listen(&socket, 65_535)?;
    Ok(socket.into())
}

/// Returns the texts in `bytes`, as frames from the server; wrapped as lastcall's are, so that all write the
/// same.
fn frames(mut bytes: &[u8], wrap: bool) -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    while bytes.len() >= 6 {
        let (start, len) = match bytes[1] & 0x7F {
            126 => (8, usize::from(u16::from_be_bytes([bytes[2], bytes[3]]))),
            short => (6, usize::from(short)),
        };
        let Some(text) = bytes.get(start..start + len) else { break };
        let payload = if wrap {
            [
                br#"{"type":"message","channel":"broadcast","time":"2026-01-02T03:04:05.678Z","from":"01a20897-adf5-76ce-9f22-e02aacce5ddd","data":""#,
                text,
                b"\"}",
            ]
            .concat()
        } else {
            text.to_vec()
        };
        let mut frame = vec![0x81];
        match payload.len() {
            short @ 0..=125 => frame.push(short as u8),
            len => {
                frame.push(126);
                frame.extend((len as u16).to_be_bytes());
            }
        }
        frame.extend(payload);
        frames.push(frame);
        bytes = &bytes[start + len..];
    }
    frames
}

/// Writes all of it, whatever it takes: there is no queue here.
fn write(stream: &mut TcpStream, mut frame: &[u8]) {
    while !frame.is_empty() {
        match stream.write(frame) {
            Ok(n) => frame = &frame[n..],
            Err(error) if error.kind() == ErrorKind::WouldBlock => std::thread::yield_now(),
            Err(_) => return,
        }
    }
}
