//! Sockets at which nothing can be accepted: refused at the start, and an end with an error later.

use std::{
    fs::File,
    net::{TcpListener, TcpStream, UdpSocket},
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixListener,
    },
};

use rustix::{
    net::{AddressFamily, Shutdown, SocketType, bind, shutdown, socket},
    process::Signal,
};

use crate::support::{Start, folder, soon, until};

/// A TCP socket that is bound, and does not listen.
fn bound() -> OwnedFd {
    let socket = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
    bind(&socket, &std::net::SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
    socket
}

#[tokio::test]
async fn a_socket_that_can_never_accept_is_refused_at_the_start() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let connected = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let shut_down = TcpListener::bind("127.0.0.1:0").unwrap();
    shutdown(&shut_down, Shutdown::Both).unwrap();
    let folder = folder();
    let unix = UnixListener::bind(folder.path().join("socket")).unwrap();
    let (pipe, _other_end) = std::io::pipe().unwrap();
    let of_another_kind = "is no TCP socket";
    let sockets: [(OwnedFd, &str); 8] = [
        (bound(), "does not listen"),
        (connected.into(), "does not listen"),
        (listener.accept().unwrap().0.into(), "does not listen"),
        (shut_down.into(), "does not listen"),
        (UdpSocket::bind("127.0.0.1:0").unwrap().into(), of_another_kind),
        (unix.into(), of_another_kind),
        (pipe.into(), of_another_kind),
        (File::open("/dev/null").unwrap().into(), of_another_kind),
    ];
    for (number, (socket, reason)) in sockets.into_iter().enumerate() {
        let ended = Start::default().listen_on(socket).end().await;
        assert_eq!(ended.code, Some(2), "{number}: {}", ended.stderr);
        assert!(ended.stderr.contains(reason), "{number}: {}", ended.stderr);
        assert_eq!(ended.stderr.lines().count(), 1, "{number}: {}", ended.stderr);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listening_socket_that_is_shut_down_ends_the_process_with_an_error() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut server = Start::default().listen_on(listener.try_clone().unwrap()).serve().await;
    let mut client = server.client().await;
    client.say("hello").await;
    client.next_of("message").await;
    // Both processes have the same socket.
    shutdown(&listener, Shutdown::Both).unwrap();
    let line = server.logged("the listening socket does not listen any more").await;
    assert_eq!(line["level"], "ERROR");
    assert_eq!(client.closed().await.0.0, 1012);
    assert_eq!(server.exit_code().await, 1);
    assert_eq!(server.log_lines("the listening socket does not listen any more").len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_control_socket_that_is_shut_down_is_made_again() {
    let mut server = crate::support::Server::start().await;
    server.logged("control socket").await;
    let pid = rustix::process::pidfd_open(server.pid(), rustix::process::PidfdFlags::empty()).unwrap();
    let is_control = |descriptor: &OwnedFd| {
        let path = rustix::net::getsockname(descriptor).ok().and_then(|name| {
            rustix::net::SocketAddrUnix::try_from(name).ok()?.path_bytes().map(<[u8]>::to_vec)
        });
        path.is_some_and(|path| path == server.control_socket().as_os_str().as_encoded_bytes())
    };
    let flags = rustix::process::PidfdGetfdFlags::empty();
    let copies: Vec<_> =
        (3..64).filter_map(|number| rustix::process::pidfd_getfd(&pid, number, flags).ok()).collect();
    let Some(socket) = copies.iter().find(|copy| is_control(copy)) else {
        return eprintln!("not tested: this system gives no descriptor of a child");
    };
    shutdown(socket.as_fd(), Shutdown::Both).unwrap();
    drop(copies);
    until("a new control socket", async || server.log_lines("control socket").len() == 2).await;
    assert_eq!(server.logged("the control socket accepts nothing any more").await["level"], "WARN");
    server.upgrade().await;
    server.signal(Signal::TERM);
    assert_eq!(soon("the end", server.exit_code()).await, 0);
}
