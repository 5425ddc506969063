//! The resources that the process has from the operating system: its limit of open files, its table of file
//! descriptors, its heap.

use std::{fs::File, io, ops::RangeInclusive, thread};

use rustix::{
    io::{Errno, fcntl_dupfd_cloexec},
    process::{Resource, getrlimit, setrlimit},
};

/// File descriptors that are for no connection of a client, without those of the event loops: standard
/// streams, the runtime, sockets that listen, log files (24 in all); the connections of the control socket
/// (32); what an upgrade opens (16); connections that are being told that there is no room (16); the history
/// file, looking up a host (8).
const RESERVED_WITHOUT_LOOPS: usize = 96;

/// File descriptors of an event loop, of which there is one for each core.
const DESCRIPTORS_PER_LOOP: usize = 2;

/// The share of the limit that is for HTTP connections unless it is set, and the least and the most that it
/// is.
const HTTP_SHARE: usize = 8;
const HTTP_CONNECTIONS: RangeInclusive<usize> = 64..=4096;

/// A limit that leaves room for fewer clients is reported at the start.
const FEW_CLIENTS: usize = 64;

/// With a lower limit of open files, not even the async runtime starts.
const MIN_OPEN_FILES: usize = 16;

/// The largest descriptor table that is allocated beforehand, in descriptors: half a mebibyte of kernel
/// memory.
const MAX_PREALLOCATED: usize = 1 << 16;

/// The soft limit of open files (RLIMIT_NOFILE, getrlimit(2)) of this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OpenFileLimit(usize);

impl OpenFileLimit {
    /// Returns the limit that is in force.
    pub fn current() -> Self {
        let limit = getrlimit(Resource::Nofile).current;
        Self(limit.and_then(|limit| usize::try_from(limit).ok()).unwrap_or(usize::MAX))
    }

    /// Raises the soft limit to the hard one. The usual low soft limit protects programs that use select(2);
    /// this program does not.
    ///
    /// # Errors
    /// When the limit is too low for the process to start.
    pub fn raise() -> Result<(), OpenFileLimitTooLow> {
        let mut limit = getrlimit(Resource::Nofile);
        limit.current = limit.maximum;
        // Refused: then the limit stays what it was, and the default of `max_connections` follows it.
        let _ = setrlimit(Resource::Nofile, limit);
        let now = Self::current();
        if now.0 < MIN_OPEN_FILES { Err(OpenFileLimitTooLow(now)) } else { Ok(()) }
    }

    /// Returns the limit itself, in open files.
    pub(crate) fn get(self) -> usize {
        self.0
    }

    /// Returns the default of `max_http_connections`.
    pub(crate) fn default_http_connections(self) -> usize {
        (self.0 / HTTP_SHARE).clamp(*HTTP_CONNECTIONS.start(), *HTTP_CONNECTIONS.end())
    }

    /// Returns the most HTTP connections that the limit has room for beside one client.
    pub(crate) fn max_http_connections(self) -> usize {
        self.0.saturating_sub(reserved_descriptors()).saturating_sub(1).max(self.default_http_connections())
    }

    /// Returns how many clients the limit leaves room for beside this many HTTP connections; at least 1.
    pub(crate) fn max_connections(self, max_http_connections: usize) -> usize {
        self.0.saturating_sub(reserved_descriptors()).saturating_sub(max_http_connections).max(1)
    }

    /// Returns a warning for the operator if the limit leaves room for few clients beside this many HTTP
    /// connections.
    pub(crate) fn warning(self, max_http_connections: usize) -> Option<String> {
        let (limit, max) = (self.0, self.max_connections(max_http_connections));
        (max < FEW_CLIENTS).then(|| {
            format!(
                "the limit of {limit} open files leaves room for {}, as {max_http_connections} are for \
                 HTTP connections and {} for the server itself; raise it (ulimit -n, or LimitNOFILE= of systemd)",
                count_clients(max as u64),
                reserved_descriptors(),
            )
        })
    }
}

/// Returns a number of clients in words.
pub fn count_clients(clients: u64) -> String {
    format!("{clients} client{}", if clients == 1 { "" } else { "s" })
}

/// Returns how many file descriptors are for no connection of a client.
pub(crate) fn reserved_descriptors() -> usize {
    let cores = thread::available_parallelism().map_or(1, usize::from);
    RESERVED_WITHOUT_LOOPS + DESCRIPTORS_PER_LOOP * cores
}

/// The limit of open files is too low for a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "the limit of {} open files is too low: the server keeps {} for itself, and needs one for each client; raise it \
     (ulimit -n, or LimitNOFILE= of systemd)", .0.get(), reserved_descriptors()
)]
pub struct OpenFileLimitTooLow(OpenFileLimit);

impl OpenFileLimitTooLow {
    /// Returns the error with the limit that is in force, for a failure to open a descriptor.
    pub fn current() -> Self {
        Self(OpenFileLimit::current())
    }
}

/// The resource that the system has no more of, for another descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shortage {
    /// This process, or the system, has no file descriptors left.
    Descriptors,
    /// The kernel has no memory for it. A higher limit of open files would not help.
    Memory,
}

impl Shortage {
    /// Returns the shortage because of which a system call has failed, if it was one.
    pub fn of(error: &io::Error) -> Option<Self> {
        match Errno::from_io_error(error)? {
            Errno::MFILE | Errno::NFILE => Some(Self::Descriptors),
            Errno::NOBUFS | Errno::NOMEM => Some(Self::Memory),
            _ => None,
        }
    }
}

/// Makes the kernel's descriptor table of this process large enough for this many connections, of clients and
/// of HTTP together. Call it before the second thread starts.
///
/// Otherwise the kernel doubles the table whenever it is full, and in a process with threads, the thread that
/// needs the descriptor waits until no processor reads the old table any more (an RCU grace period): 10 to 40
/// ms, measured, at each of 256, 512, 1,024 … descriptors. When many clients connect at once, the backlog of
/// the listening socket overflows in that time.
///
/// # Errors
/// When a descriptor cannot be opened. The server works without, but slower.
pub fn preallocate_descriptor_table(connections: usize) -> io::Result<()> {
    let highest = connections
        .saturating_add(reserved_descriptors())
        .min(OpenFileLimit::current().get())
        .min(MAX_PREALLOCATED)
        .saturating_sub(1);
    let lowest = File::open("/dev/null")?;
    // The table never shrinks: this descriptor can be closed at once.
    drop(fcntl_dupfd_cloexec(&lowest, i32::try_from(highest).unwrap_or(i32::MAX))?);
    Ok(())
}

/// Returns free heap memory to the operating system (malloc_trim(3)). After thousands of clients connected at
/// once, that is most of what the process holds: 1.4 KiB of 1.5 KiB per client, measured with 10,000. Takes
/// milliseconds. Does nothing where the allocator is not glibc's.
pub fn trim_heap() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        #[allow(unsafe_code, reason = "a function of the C library; it has no safe interface")]
        // SAFETY: it takes a number, touches only free memory, and may be called from any thread.
        unsafe {
            libc::malloc_trim(0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_leaves_at_least_one_client_and_warns_while_it_is_low() {
        let reserved = reserved_descriptors();
        let max = |files| OpenFileLimit(files).max_connections(64);
        assert_eq!((max(16), max(reserved + 65), max(reserved + 1064)), (1, 1, 1000));
        let warning = OpenFileLimit(65).warning(64).unwrap();
        assert!(warning.contains("65 open files leaves room for 1 client, as 64 are for HTTP"), "{warning}");
        assert!(OpenFileLimit(reserved + 64 + 63).warning(64).unwrap().contains("63 clients"));
        assert_eq!(OpenFileLimit(reserved + 64 + 64).warning(64), None);
    }

    #[test]
    fn an_eighth_of_the_limit_is_for_http_connections_within_bounds() {
        let http = |files| OpenFileLimit(files).default_http_connections();
        assert_eq!((http(16), http(512), http(1024), http(20_000)), (64, 64, 128, 2500));
        assert_eq!((http(1 << 20), http(usize::MAX)), (4096, 4096));
        let max = |files| OpenFileLimit(files).max_http_connections();
        assert_eq!((max(16), max(reserved_descriptors() + 1000)), (64, 999));
    }

    #[test]
    fn a_table_is_preallocated_for_any_number_of_clients() {
        for connections in [0, 1, 1000, usize::MAX] {
            preallocate_descriptor_table(connections).unwrap();
        }
    }

    #[test]
    fn a_shortage_of_memory_is_none_of_descriptors() {
        let shortage = |errno: Errno| Shortage::of(&errno.into());
        assert_eq!([Errno::MFILE, Errno::NFILE].map(shortage), [Some(Shortage::Descriptors); 2]);
        assert_eq!([Errno::NOBUFS, Errno::NOMEM].map(shortage), [Some(Shortage::Memory); 2]);
        assert_eq!(shortage(Errno::CONNABORTED), None);
        assert_eq!(Shortage::of(&io::Error::other("EMFILE")), None);
    }

    #[test]
    fn a_trim_changes_no_memory_in_use() {
        let used = vec![7_u8; 1 << 20];
        drop(vec![8_u8; 1 << 20]);
        trim_heap();
        assert!(used.iter().all(|byte| *byte == 7));
    }
}
