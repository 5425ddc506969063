//! The listening socket: bound here, passed by systemd, or inherited from an old process.

use std::{
    io::{self, ErrorKind},
    net::{IpAddr, SocketAddr},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use listenfd::ListenFd;
use rustix::{
    io::Errno,
    net::sockopt::{set_ipv6_v6only, set_tcp_nodelay, socket_acceptconn},
};
use tokio::net::{TcpListener, TcpSocket, TcpStream, lookup_host};
use tracing::warn;

/// Connections that may wait to be accepted. tokio's default of 128 overflows when a few hundred clients
/// come back at once after a restart, and their SYNs are then sent again a second later; the kernel cuts
/// this down to net.core.somaxconn.
const BACKLOG: u32 = 65_535;

/// The server cannot listen where it should.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// The host name means nothing here.
    #[error("cannot find the host {host:?}; set `host` to a name or an address of this machine")]
    Host {
        /// The host, as configured.
        host: String,
        /// The reason.
        source: io::Error,
    },
    /// Another program has the port.
    #[error("cannot listen on {0}: another program already does; stop it, or choose another `port`")]
    InUse(SocketAddr),
    /// The port is privileged.
    #[error("cannot listen on {0}: this user may not use ports below 1024; choose a higher `port`")]
    Privileged(SocketAddr),
    /// The address is not one of this machine's.
    #[error("cannot listen on {0}: this machine does not have that address; change `host`")]
    NotLocal(SocketAddr),
    /// The kernel has no IPv6.
    #[error(
        "cannot listen on {0}: this machine has no IPv6; set `host` to an IPv4 address, or to 0.0.0.0 for all"
    )]
    NoIpv6(SocketAddr),
    /// Something else.
    #[error("cannot listen on {address}")]
    Other {
        /// The address that was tried.
        address: SocketAddr,
        /// The reason.
        source: io::Error,
    },
}

/// The socket that systemd passed cannot be listened on.
#[derive(Debug, thiserror::Error)]
pub enum SystemdSocketError {
    /// There is one listening socket.
    #[error("systemd passed {0} sockets, and only one can be listened on; leave one ListenStream=")]
    TooMany(usize),
    /// It is a socket of another kind.
    #[error("what systemd passed is no TCP socket; see ListenStream= in the socket unit")]
    NotTcp(#[source] io::Error),
    /// It does not listen: it is connected, or only bound.
    #[error(
        "the socket that was passed does not listen, so it never accepts a connection; see Accept= in the socket unit, \
         which must be no"
    )]
    NotListening,
    /// The system refuses what is done with each listening socket.
    #[error("the socket that systemd passed cannot be used")]
    Unusable(#[source] io::Error),
}

/// The listening socket. Accepted sockets do not delay small messages.
#[derive(Debug)]
pub struct Listener(TcpListener);

impl Listener {
    /// Binds and listens; port 0 picks a free one. Of a host name with several addresses, the first one that
    /// this machine has is taken, and the log says which ones are not: an upgrade hands over one listening
    /// socket.
    ///
    /// # Errors
    /// When the address cannot be had; see [`BindError`].
    pub async fn bind(host: &str, port: u16) -> Result<Self, BindError> {
        let mut addresses: Vec<SocketAddr> = Vec::new();
        for address in lookup_host((host, port)).await.map_err(|source| no_host(host, source))?.map(canonical)
        {
            if !addresses.contains(&address) {
                addresses.push(address);
            }
        }
        let (address, listener) = listen_on_first(host, &addresses)?;
        let others: Vec<_> =
            addresses.iter().filter(|other| **other != address).map(|other| other.ip().to_string()).collect();
        if !others.is_empty() {
            warn!(
                "{host} has several addresses: listening on {} only, not on {}; set `host` to one of them, or to :: \
                 for all of this machine",
                address.ip(),
                others.join(", "),
            );
        }
        Ok(Self(listener))
    }

    /// Takes the socket that systemd passed (sd_listen_fds(3), systemd.socket(5)). Returns `None` if there is
    /// none. The variables that describe it are removed from the environment.
    ///
    /// # Errors
    /// When there are several, or it cannot be listened on.
    pub fn from_systemd() -> Result<Option<Self>, SystemdSocketError> {
        let mut passed = ListenFd::from_env();
        if passed.len() > 1 {
            return Err(SystemdSocketError::TooMany(passed.len()));
        }
        let Some(listener) = passed.take_tcp_listener(0).map_err(SystemdSocketError::NotTcp)? else {
            return Ok(None);
        };
        let accepts =
            socket_acceptconn(&listener).map_err(|errno| SystemdSocketError::Unusable(errno.into()))?;
        if !accepts {
            return Err(SystemdSocketError::NotListening);
        }
        // Small messages must not wait for each other (RFC 896). On Linux, accepted sockets inherit this.
        set_tcp_nodelay(&listener, true).map_err(|errno| SystemdSocketError::Unusable(errno.into()))?;
        Self::from_fd(listener.into()).map(Some).map_err(SystemdSocketError::Unusable)
    }

    /// Takes a socket that listens already, such as that of an old process. Its options stay.
    ///
    /// # Errors
    /// When the descriptor cannot be waited for.
    pub fn from_fd(descriptor: OwnedFd) -> io::Result<Self> {
        let listener = std::net::TcpListener::from(descriptor);
        listener.set_nonblocking(true)?;
        TcpListener::from_std(listener).map(Self)
    }

    /// Returns the address that it listens on.
    ///
    /// # Errors
    /// When the system does not say.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.local_addr().map(canonical)
    }

    /// Returns false if it can never accept a connection: it does not listen (SO_ACCEPTCONN, socket(7)), as
    /// after shutdown(2) in another process that has it, too.
    pub(super) fn can_accept(&self) -> bool {
        socket_acceptconn(&self.0).unwrap_or(false)
    }

    pub(super) async fn accept(&self) -> io::Result<(TcpStream, SocketAddr)> {
        self.0.accept().await
    }
}

/// Returns the IPv4 address of an IPv6 one that stands for it (RFC 4291 section 2.5.5.2), as a socket of IPv6
/// has for its clients of IPv4; any other as it is.
pub(super) fn canonical(address: SocketAddr) -> SocketAddr {
    match address.ip().to_canonical() {
        ip @ IpAddr::V4(_) => SocketAddr::new(ip, address.port()),
        // With its zone.
        IpAddr::V6(_) => address,
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Listens on the first of these addresses that this machine has.
///
/// # Errors
/// When it has none of them, or one cannot be listened on.
fn listen_on_first(host: &str, addresses: &[SocketAddr]) -> Result<(SocketAddr, TcpListener), BindError> {
    let mut first_error = None;
    for address in addresses {
        match listen(*address).map_err(|source| explain(*address, source)) {
            Ok(listener) => return Ok((*address, listener)),
            // `localhost` has an IPv6 address also where there is no IPv6. Any other error is one: to
            // continue without the address would leave it to the program that has it.
            Err(error @ (BindError::NotLocal(_) | BindError::NoIpv6(_))) => {
                first_error.get_or_insert(error);
            }
            Err(error) => return Err(error),
        }
    }
    Err(first_error.unwrap_or_else(|| no_host(host, ErrorKind::NotFound.into())))
}

fn no_host(host: &str, source: io::Error) -> BindError {
    BindError::Host { host: host.to_owned(), source }
}

fn explain(address: SocketAddr, source: io::Error) -> BindError {
    match source.kind() {
        ErrorKind::AddrInUse => BindError::InUse(address),
        ErrorKind::PermissionDenied if address.port() < 1024 => BindError::Privileged(address),
        ErrorKind::AddrNotAvailable => BindError::NotLocal(address),
        _ if address.is_ipv6() && source.raw_os_error() == Some(Errno::AFNOSUPPORT.raw_os_error()) => {
            BindError::NoIpv6(address)
        }
        _ => BindError::Other { address, source },
    }
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    if address.is_ipv6() && address.ip().is_unspecified() {
        // `::` stands for IPv4, too (ipv6(7)), whatever net.ipv6.bindv6only says.
        set_ipv6_v6only(&socket, false)?;
    }
    // A restart must not wait for the old connections' TIME_WAIT to pass.
    socket.set_reuseaddr(true)?;
    // Small messages must not wait for each other (RFC 896). On Linux, accepted sockets inherit this.
    socket.set_nodelay(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn accepted_sockets_do_not_delay_small_messages() {
        let listener = Listener::bind("127.0.0.1", 0).await.unwrap();
        let _client = tokio::net::TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        assert!(listener.accept().await.unwrap().0.nodelay().unwrap());
    }

    #[tokio::test]
    async fn bind_errors_are_reported_in_one_sentence() {
        let taken = Listener::bind("127.0.0.1", 0).await.unwrap();
        let port = taken.local_addr().unwrap().port();
        let error = Listener::bind("127.0.0.1", port).await.unwrap_err();
        assert!(matches!(error, BindError::InUse(address) if address.port() == port));
        // 203.0.113.0/24 is for documentation (RFC 5737): no machine has such an address.
        assert!(matches!(Listener::bind("203.0.113.1", 0).await, Err(BindError::NotLocal(_))));
        // Root may bind any port, so this one is only explained.
        let refused = explain("127.0.0.1:80".parse().unwrap(), io::Error::from(ErrorKind::PermissionDenied));
        let sentence =
            "cannot listen on 127.0.0.1:80: this user may not use ports below 1024; choose a higher `port`";
        assert_eq!(refused.to_string(), sentence);
        assert!(matches!(Listener::bind("no such host", 0).await, Err(BindError::Host { .. })));
    }

    #[tokio::test]
    async fn the_first_address_that_this_machine_has_is_taken() {
        let addresses = |list: &[&str]| list.iter().map(|one| one.parse().unwrap()).collect::<Vec<_>>();
        let absent = "203.0.113.1:0";
        let (address, _listener) =
            listen_on_first("a.example", &addresses(&[absent, "127.0.0.1:0", "127.0.0.2:0"])).unwrap();
        assert_eq!(address.to_string(), "127.0.0.1:0");
        let error = listen_on_first("a.example", &addresses(&[absent, "203.0.113.2:0"])).unwrap_err();
        assert!(matches!(error, BindError::NotLocal(address) if address.to_string() == absent));
        let held = Listener::bind("127.0.0.1", 0).await.unwrap();
        let port = held.local_addr().unwrap().port();
        let both = [held.local_addr().unwrap(), SocketAddr::from(([127, 0, 0, 2], port))];
        assert!(
            matches!(listen_on_first("a.example", &both), Err(BindError::InUse(_))),
            "the other is no way out"
        );
        assert!(matches!(listen_on_first("a.example", &[]), Err(BindError::Host { .. })));
    }

    #[test]
    fn a_kernel_without_ipv6_is_reported_in_one_sentence() {
        let unsupported = || io::Error::from_raw_os_error(Errno::AFNOSUPPORT.raw_os_error());
        let refused = explain("[::]:8000".parse().unwrap(), unsupported());
        let sentence = "cannot listen on [::]:8000: this machine has no IPv6; set `host` to an IPv4 address, or to \
                        0.0.0.0 for all";
        assert_eq!(refused.to_string(), sentence);
        assert!(matches!(explain("127.0.0.1:8000".parse().unwrap(), unsupported()), BindError::Other { .. }));
    }
}
