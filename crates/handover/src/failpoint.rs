//! Failpoints: steps of a handover, and tasks, at which a test can have a process fail, to see that nothing
//! is lost.
//!
//! Only builds with the feature `failpoints` have them: those of `cargo test`, as the tests' dependency on
//! this crate turns it on. In any other build, [`hit`] and [`hit_task`] do nothing.

/// A step of a handover.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names say where in the code they stand")]
pub enum Step {
    /// In a start, as if its files were on a file system that does not answer.
    Preparing,
    /// In the old process, as if the program were on a file system that does not answer.
    Starting,
    Started,
    OtherProtocol,
    SentHello,
    Accepted,
    SentReady,
    ReceivedPart,
    ReceivedServer,
    ReceivedBatch,
    ReceivedAll,
    BeforeComplete,
    CommitTooLate,
    Committed,
    Reported,
    /// At the end of a drain, as a disk that does not answer.
    WritingHistory,
}

impl Step {
    /// Every step before the commit at which the new process can be killed or be stuck.
    pub const BEFORE_COMMIT: [Self; 9] = [
        Self::Started,
        Self::SentHello,
        Self::Accepted,
        Self::SentReady,
        Self::ReceivedPart,
        Self::ReceivedServer,
        Self::ReceivedBatch,
        Self::ReceivedAll,
        Self::BeforeComplete,
    ];
}

/// The variable with the path of a file that says what is to happen: a step's name, a colon, and `kill`,
/// `hang` or `do` (what the step's name says); or a task's name, a colon, and `panic` or `do` (fail without a
/// panic).
pub const FILE_VARIABLE: &str = "HANDOVER_FAILPOINT_FILE";

/// Does what the file says for this step. Returns true if it says `do`.
#[cfg(feature = "failpoints")]
pub fn hit(step: Step) -> bool {
    let Some(path) = std::env::var_os(FILE_VARIABLE) else { return false };
    let action = std::fs::read_to_string(path).unwrap_or_default();
    match action.trim().strip_prefix(&format!("{step:?}:")) {
        Some("kill") => {
            // As `kill -9` does: nothing is said, nothing is flushed.
            let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
            loop {
                std::thread::park();
            }
        }
        Some("hang") => loop {
            std::thread::park();
        },
        Some("do") => true,
        _ => false,
    }
}

/// Does what the file says for this task, which continues, once: the file is empty after it. Returns true if
/// it says `do`.
#[cfg(feature = "failpoints")]
pub fn hit_task(name: &str) -> bool {
    let Some(path) = std::env::var_os(FILE_VARIABLE) else { return false };
    let action = std::fs::read_to_string(&path).unwrap_or_default();
    let rest = action.trim().strip_prefix(name).and_then(|rest| rest.strip_prefix(':'));
    if rest.is_some() {
        std::fs::write(path, "").expect("the test's file can be written");
    }
    match rest {
        Some("panic") => panic!("a test has {name} panic"),
        action => action == Some("do"),
    }
}

/// Does nothing: this build has no failpoints.
#[cfg(not(feature = "failpoints"))]
pub fn hit(_: Step) -> bool {
    false
}

/// Does nothing: this build has no failpoints.
#[cfg(not(feature = "failpoints"))]
pub fn hit_task(_: &str) -> bool {
    false
}
