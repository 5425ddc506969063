//! A budget for the connections of a test: file descriptors, which all tests of this process have in common.

use std::{
    io::{Write, stderr},
    sync::{LazyLock, Once},
};

use rustix::process::{Resource, getrlimit, setrlimit};
use tokio::sync::{Semaphore, SemaphorePermit};

/// Descriptors that are left to the tests that need few, which do not ask.
const OTHERS: usize = 1000;

/// More are never needed.
const MOST: usize = 1 << 20;

/// How many descriptors this process may have open at most. The first call raises the soft limit to
/// the hard one.
static LIMIT: LazyLock<usize> = LazyLock::new(|| {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit).unwrap();
    limit.maximum.and_then(|most| usize::try_from(most).ok()).unwrap_or(MOST).min(MOST)
});

/// What is free of it.
static FREE: LazyLock<Semaphore> = LazyLock::new(|| Semaphore::new(LIMIT.saturating_sub(OTHERS)));

/// The budget for this many connections; no other test has it before this is dropped.
#[derive(Debug)]
pub(crate) struct ConnectionBudget {
    pub(crate) connections: usize,
    _taken: SemaphorePermit<'static>,
}

impl ConnectionBudget {
    /// Waits for a budget of `wanted` connections, or for as many as the limit of this process allows. Waits
    /// until other tests have left enough. Without room for `needed` ones, the test fails with a sentence
    /// that says what to do.
    pub(crate) async fn with(wanted: usize, needed: usize) -> Self {
        let connections = fitting(*LIMIT, wanted, needed).unwrap_or_else(|told| panic!("{told}"));
        if connections < wanted {
            static ONCE: Once = Once::new();
            ONCE.call_once(|| {
                // Not by eprintln!, which is only shown of tests that fail.
                let told = format!(
                    "note: with no more than {} open files (ulimit -Hn), tests that want {wanted} connections \
                     have {connections}; {} are enough\n",
                    *LIMIT,
                    wanted + OTHERS
                );
                stderr().write_all(told.as_bytes()).unwrap();
            });
        }
        let permits = u32::try_from(connections).unwrap();
        Self { connections, _taken: FREE.acquire_many(permits).await.unwrap() }
    }
}

/// Returns how many of the connections that a test wants, and needs, a limit of open files leaves room for.
fn fitting(limit: usize, wanted: usize, needed: usize) -> Result<usize, String> {
    let free = limit.saturating_sub(OTHERS);
    if free < needed {
        return Err(format!(
            "this test needs {} open files, but no more than {limit} are allowed here: raise the hard limit, \
             as root with `ulimit -n {}` in the shell that runs the tests, or for a user in \
             /etc/security/limits.conf (limits.conf(5))",
            needed + OTHERS,
            wanted + OTHERS
        ));
    }
    Ok(wanted.min(free))
}

#[test]
fn a_test_has_what_it_wants_or_what_there_is_or_says_what_it_needs() {
    assert_eq!(fitting(20_000, 10_000, 1000), Ok(10_000));
    assert_eq!(fitting(4096, 10_000, 1000), Ok(3096));
    assert_eq!(fitting(2000, 10_000, 1000), Ok(1000));
    let told = fitting(1024, 10_000, 1000).unwrap_err();
    assert!(told.starts_with("this test needs 2000 open files, but no more than 1024 are allowed"), "{told}");
    assert!(told.contains("`ulimit -n 11000`"), "{told}");
}
