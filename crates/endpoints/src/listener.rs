//! The listening socket.

use std::{
    io::{self, ErrorKind},
    net::SocketAddr,
};

use tokio::net::{TcpListener, TcpSocket, lookup_host};

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
        /// As configured.
        host: String,
        /// Why not.
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
    /// Something else.
    #[error("cannot listen on {address}")]
    Other {
        /// Where.
        address: SocketAddr,
        /// Why not.
        source: io::Error,
    },
}

/// Binds and listens; port 0 picks a free one.
///
/// # Errors
/// When the address cannot be had; see [`BindError`].
pub async fn bind(host: &str, port: u16) -> Result<TcpListener, BindError> {
    let no_host = |source| BindError::Host { host: host.to_owned(), source };
    let address = lookup_host((host, port))
        .await
        .map_err(no_host)?
        .next()
        .ok_or_else(|| no_host(io::Error::from(ErrorKind::NotFound)))?;
    listen(address).map_err(|source| explain(address, source))
}

fn explain(address: SocketAddr, source: io::Error) -> BindError {
    match source.kind() {
        ErrorKind::AddrInUse => BindError::InUse(address),
        ErrorKind::PermissionDenied if address.port() < 1024 => BindError::Privileged(address),
        ErrorKind::AddrNotAvailable => BindError::NotLocal(address),
        _ => BindError::Other { address, source },
    }
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
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
        let listener = bind("127.0.0.1", 0).await.unwrap();
        let _client = tokio::net::TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        assert!(listener.accept().await.unwrap().0.nodelay().unwrap());
    }

    #[tokio::test]
    async fn what_cannot_be_bound_is_told_in_one_sentence() {
        let taken = bind("127.0.0.1", 0).await.unwrap();
        let port = taken.local_addr().unwrap().port();
        let error = bind("127.0.0.1", port).await.unwrap_err();
        assert!(matches!(error, BindError::InUse(address) if address.port() == port));
        // 203.0.113.0/24 is for documentation (RFC 5737): nobody's.
        assert!(matches!(bind("203.0.113.1", 0).await, Err(BindError::NotLocal(_))));
        // Root may bind any port, so this one is only explained.
        let refused = explain("127.0.0.1:80".parse().unwrap(), io::Error::from(ErrorKind::PermissionDenied));
        let sentence =
            "cannot listen on 127.0.0.1:80: this user may not use ports below 1024; choose a higher `port`";
        assert_eq!(refused.to_string(), sentence);
        assert!(matches!(bind("no such host", 0).await, Err(BindError::Host { .. })));
    }
}
