//! The timeouts of an upgrade. Some must be longer than others, or one side would give up while the other
//! still works; the assertions at the end hold them together.
//!
//! Between the two processes, the old one decides: it must time out first. The command that asked for the
//! upgrade must wait for both, and so must the supervisor.

use std::time::Duration;

use lastcall_endpoints::StopTimeouts;

/// The time that requests that are in flight when an upgrade begins have to be finished, while everything is
/// served.
pub(super) const SETTLE_TIMEOUT: Duration = Duration::from_secs(3);

/// The time that the HTTP server has to stop after that. New clients wait meanwhile, and whoever sends or
/// reads slowly must not keep them waiting.
pub(super) const STOP_TIMEOUTS: StopTimeouts = StopTimeouts {
    closing: Duration::from_millis(20),
    in_flight: Duration::from_millis(50),
    refused: Duration::from_millis(30),
};

/// The time that the event loops have to close the clients that have too much unread.
pub(super) const FIT_TIMEOUT: Duration = Duration::from_secs(2);

/// The time that the event loops have to come to a stop: each writes what was published before.
pub(super) const FREEZE_TIMEOUT: Duration = Duration::from_secs(2);

/// The time that the old process may take to send everything that it has not sent before, and to commit,
/// while no connection is served: 10,000 connections take a tenth of a second. The setting `upgrade_timeout`
/// bounds it, too.
pub(super) const TRANSFER_TIMEOUT: Duration = Duration::from_secs(5);

/// The time that the new process has to serve after the commit.
pub(super) const SERVING_TIMEOUT: Duration = Duration::from_secs(10);

/// The time for which the exit code of a new process is waited for that has closed its side of the handover.
pub(super) const EXIT_TIMEOUT: Duration = Duration::from_secs(1);

/// The time for which the end of a new process that was killed is waited for: one in a system call that
/// cannot be interrupted ends after that.
pub(super) const KILL_TIMEOUT: Duration = Duration::from_secs(3);

/// The time for which the new process waits for the answer to its hello.
pub(super) const HELLO_TIMEOUT: Duration = Duration::from_secs(10);

/// The time for which the new process waits, once it is ready, for the next part of the history, and then for
/// everything else that is handed over. The old process bounds the time of all parts.
pub(super) const RECEIVE_TIMEOUT: Duration = Duration::from_secs(20);

/// The time for which the new process waits for the commit, once it has everything.
pub(super) const COMMIT_TIMEOUT: Duration = Duration::from_secs(10);

/// The time that the old process has to take the message that the new one serves.
pub(crate) const SERVING_REPORT_TIMEOUT: Duration = Duration::from_secs(1);

/// The time that the command that asked for an upgrade has to take a report.
pub(super) const REPORT_TIMEOUT: Duration = Duration::from_secs(1);

/// The time for which the old process waits, after an upgrade, for commands that were on their way to it.
pub(super) const LATE_COMMAND_TIMEOUT: Duration = Duration::from_millis(200);

/// The time that a process that connects to the control socket has to send its command.
pub(super) const COMMAND_TIMEOUT: Duration = Duration::from_secs(5);

/// The time that a running server has to take the command, and how much later than it said a report may come.
pub(crate) const COMMAND_REPLY_TIMEOUT: Duration = Duration::from_secs(5);

/// The time that the process that serves has to take a signal from the supervisor: it reads them at once,
/// unless it is stopped.
pub(super) const FORWARD_TIMEOUT: Duration = Duration::from_secs(1);

/// The time for which the supervisor waits, after the process that serves has ended, for the report of the
/// next one: that may have taken over at that very moment.
pub(super) const NEXT_PROCESS_TIMEOUT: Duration = Duration::from_secs(15);

/// The time that an upgrade may take once the new process is ready and has the history. That is bounded by
/// the setting `upgrade_timeout`.
pub(crate) const AFTER_READY_TIMEOUT: Duration = Duration::from_secs(30);

/// The time for all that comes after the new process is ready, and before the transfer.
const STOP_ALL_TIMEOUT: Duration = sum(&[
    SETTLE_TIMEOUT,
    STOP_TIMEOUTS.closing,
    STOP_TIMEOUTS.in_flight,
    STOP_TIMEOUTS.refused,
    FIT_TIMEOUT,
    FREEZE_TIMEOUT,
]);

const _: () = assert!(is_less(sum(&[STOP_ALL_TIMEOUT, TRANSFER_TIMEOUT]), RECEIVE_TIMEOUT));
const _: () = assert!(is_less(TRANSFER_TIMEOUT, COMMIT_TIMEOUT));
const _: () = assert!(is_less(SERVING_REPORT_TIMEOUT, SERVING_TIMEOUT));
const _: () = assert!(is_less(SERVING_TIMEOUT, NEXT_PROCESS_TIMEOUT));
const _: () = assert!(is_less(
    sum(&[
        STOP_ALL_TIMEOUT,
        TRANSFER_TIMEOUT,
        SERVING_TIMEOUT,
        EXIT_TIMEOUT,
        KILL_TIMEOUT,
        LATE_COMMAND_TIMEOUT
    ]),
    AFTER_READY_TIMEOUT
));

const fn sum(timeouts: &[Duration]) -> Duration {
    match timeouts {
        [] => Duration::ZERO,
        [first, rest @ ..] => first.saturating_add(sum(rest)),
    }
}

const fn is_less(timeout: Duration, other: Duration) -> bool {
    timeout.as_nanos() < other.as_nanos()
}
