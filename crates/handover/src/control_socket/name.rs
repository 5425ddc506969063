//! The name of a control socket in its folder, and the search for the socket of a server.

use std::{
    ffi::OsStr,
    fs,
    net::{IpAddr, SocketAddr},
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

/// The name in a folder that belongs to one server alone, as a service manager makes it.
const OWN_FOLDER_NAME: &str = "lastcall.sock";

/// Where a control socket is: its name in the folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SocketName {
    /// The folder is the server's own.
    OwnFolder,
    /// Several servers may have the folder: the name tells on which address its server listens.
    Address(SocketAddr),
}

impl SocketName {
    /// Returns the path of the socket with this name.
    pub fn path(self, folder: &Path) -> PathBuf {
        match self {
            Self::OwnFolder => folder.join(OWN_FOLDER_NAME),
            Self::Address(address) => folder.join(format!("lastcall-{address}.sock")),
        }
    }
}

/// Finds the control socket of the server that is reached at one of `addresses`: the one that listens on that
/// address, or on all addresses of this machine.
///
/// Returns its path, or `None` when the folder has no such socket.
pub fn find_socket(folder: &Path, addresses: &[SocketAddr]) -> Option<PathBuf> {
    let unspecified = |address: &SocketAddr| {
        let v4: IpAddr = [0; 4].into();
        let v6: IpAddr = [0; 16].into();
        // A socket on :: takes IPv4 connections, too.
        let hosts = if address.is_ipv4() { vec![v4, v6] } else { vec![v6] };
        hosts.into_iter().map(|host| SocketAddr::new(host, address.port())).collect::<Vec<_>>()
    };
    // An IPv4 address in an IPv6 one: the server names the socket after the address of IPv4.
    let v4 = |address: &SocketAddr| SocketAddr::new(address.ip().to_canonical(), address.port());
    let addresses: Vec<_> = addresses.iter().flat_map(|address| [*address, v4(address)]).collect();
    let exact = addresses.iter().copied();
    let names = exact.chain(addresses.iter().flat_map(unspecified)).map(SocketName::Address);
    let bound = bound_sockets();
    // The server and the command may have come to the folder by different symbolic links.
    let is_bound = |path: &PathBuf| {
        let same_file = |other: &PathBuf| {
            fs::canonicalize(path).is_ok_and(|path| fs::canonicalize(other).is_ok_and(|other| other == path))
        };
        bound.contains(path) || bound.iter().any(same_file)
    };
    // A file without a process is left over from one that was killed. Without /proc, all of them count.
    let is_used = |path: &PathBuf| fs::symlink_metadata(path).is_ok() && (bound.is_empty() || is_bound(path));
    names.chain([SocketName::OwnFolder]).map(|name| name.path(folder)).find(is_used)
}

/// Returns the paths of the control sockets that are bound on this machine, whatever their folder: unix(7)
/// lists them in /proc/net/unix. Without /proc, there are none.
pub fn bound_sockets() -> Vec<PathBuf> {
    // The sockets of other programs may have names of any bytes.
    let bytes = fs::read("/proc/net/unix").unwrap_or_default();
    let mut paths: Vec<_> = bytes
        .split(|byte| *byte == b'\n')
        .filter_map(|line| Some(&line[line.iter().position(|byte| *byte == b'/')?..]))
        .map(|path| PathBuf::from(OsStr::from_bytes(path)))
        .filter(|path| {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or("");
            name == OWN_FOLDER_NAME || name.starts_with("lastcall-") && name.ends_with(".sock")
        })
        .collect();
    paths.sort();
    // A connection that is open has a line of its own.
    paths.dedup();
    paths
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ControlSocket;

    #[test]
    fn the_kernel_lists_a_socket_under_its_path() {
        let folder = tempfile::tempdir().unwrap();
        let path = SocketName::Address("127.0.0.1:8000".parse().unwrap()).path(folder.path());
        let _socket = ControlSocket::bind(&path).unwrap();
        assert!(bound_sockets().contains(&path), "{:?}", bound_sockets());
    }

    #[test]
    fn a_name_that_is_not_utf8_hides_no_socket_and_is_found_itself() {
        let folder = tempfile::tempdir().unwrap();
        let odd = folder.path().join(OsStr::from_bytes(b"\xff"));
        let address: SocketAddr = "127.0.0.1:8000".parse().unwrap();
        let _socket = ControlSocket::bind(&SocketName::Address(address).path(folder.path())).unwrap();
        let _other = ControlSocket::bind(&SocketName::Address(address).path(&odd)).unwrap();
        for folder in [folder.path(), &odd] {
            let path = find_socket(folder, &[address]).unwrap();
            assert!(bound_sockets().contains(&path), "{:?}", bound_sockets());
        }
    }

    #[test]
    fn a_socket_is_found_although_its_server_came_to_the_folder_by_another_link() {
        let folder = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(".", folder.path().join("link")).unwrap();
        let address: SocketAddr = "127.0.0.1:8000".parse().unwrap();
        let _socket =
            ControlSocket::bind(&SocketName::Address(address).path(&folder.path().join("link"))).unwrap();
        assert!(find_socket(folder.path(), &[address]).is_some());
    }

    #[test]
    fn a_socket_is_found_by_an_address_at_which_its_server_is_reached() {
        let folder = tempfile::tempdir().unwrap();
        let found = |address: &str| {
            let path = find_socket(folder.path(), &[address.parse().unwrap()])?;
            Some(path.file_name().unwrap().to_str().unwrap().to_owned())
        };
        let listen = |address: &str| {
            ControlSocket::bind(&SocketName::Address(address.parse().unwrap()).path(folder.path())).unwrap()
        };
        let _other = listen("127.0.0.2:8000");
        assert_eq!(found("127.0.0.1:8000"), None, "the server at another address is another server");
        let _all = listen("[::]:8000");
        assert_eq!(found("127.0.0.1:8000").unwrap(), "lastcall-[::]:8000.sock");
        let _v4 = listen("0.0.0.0:8000");
        assert_eq!(found("127.0.0.1:8000").unwrap(), "lastcall-0.0.0.0:8000.sock");
        assert_eq!(found("[::1]:8000").unwrap(), "lastcall-[::]:8000.sock");
        let _exact = listen("127.0.0.1:8000");
        assert_eq!(found("127.0.0.1:8000").unwrap(), "lastcall-127.0.0.1:8000.sock");
        assert_eq!(found("127.0.0.1:8001"), None);
    }
}
