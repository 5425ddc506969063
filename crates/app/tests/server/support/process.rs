//! The processes of a test end with it, however it ends.

use std::{
    io::Write,
    os::unix::process::CommandExt,
    process::{ChildStdin, Command, Stdio},
    sync::{LazyLock, Mutex, PoisonError},
};

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::process::Child;

/// Reads which process groups there are, one change a line; kills those that are left when nothing more
/// comes.
const KILL_AT_END: &str = r#"
    groups=" "
    while read -r change group; do
        case $change in
            +) groups="$groups$group " ;;
            -) groups="${groups%% $group *} ${groups#* $group }" ;;
        esac
    done
    for group in $groups; do kill -s KILL -- "-$group"; done
"#;

/// A shell that runs [`KILL_AT_END`]. It hears nothing more when this process has ended, in whichever way:
/// only this process has the other end of the pipe. Its process group is its own, so that Ctrl+C, which ends
/// this process, does not end it.
#[allow(clippy::zombie_processes, reason = "it outlives this process")]
static KILLER: LazyLock<Mutex<ChildStdin>> = LazyLock::new(|| {
    let mut shell = Command::new("sh");
    shell.args(["-c", KILL_AT_END]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    let shell = shell.process_group(0).spawn().expect("the tests need a POSIX shell, `sh`");
    Mutex::new(shell.stdin.expect("it is a pipe"))
});

/// A process that was started in a process group of its own, and what it has started since. They are killed
/// when this is dropped, or when the test process ends without having dropped it.
#[derive(Debug)]
pub(crate) struct ProcessGroup(Pid);

impl ProcessGroup {
    /// Returns the group of this process, which must be a leader: spawned with `process_group(0)`.
    pub(crate) fn of(leader: &Child) -> Self {
        let group = leader.id().and_then(|id| Pid::from_raw(id.cast_signed())).expect("it was just started");
        tell("+", group).expect("the shell that ends the processes of a failed test runs");
        Self(group)
    }
}

impl Drop for ProcessGroup {
    fn drop(&mut self) {
        // Fails when all of them have ended, which is well.
        let _ = kill_process_group(self.0, Signal::KILL);
        // A panic here would hide why a test failed.
        let _ = tell("-", self.0);
    }
}

fn tell(change: &str, group: Pid) -> std::io::Result<()> {
    let mut killer = KILLER.lock().unwrap_or_else(PoisonError::into_inner);
    writeln!(killer, "{change} {}", group.as_raw_nonzero())
}
