//! The failure of a command or of the server, for whoever started it: a text on stderr, and an exit code.

use std::{fmt::Display, io, process::ExitCode};

use lastcall_core::{logging, process::OpenFileLimitTooLow};
use rustix::io::Errno;

/// The exit code for settings that are wrong, or that this machine does not allow; the same as for a wrong
/// command line.
pub(crate) const WRONG_SETTINGS: u8 = 2;

/// The reason for which the process ends without having done what it was to do.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The settings are wrong, this machine does not allow them, or what systemd passed is no socket to listen
    /// on.
    Settings(anyhow::Error),
    /// Anything else.
    Other(anyhow::Error),
}

impl Failure {
    pub(crate) fn settings(error: impl Into<anyhow::Error>) -> Self {
        Self::Settings(error.into())
    }

    /// Prints why, and returns the exit code.
    pub(crate) fn report(self) -> ExitCode {
        let (error, code) = match self {
            Self::Settings(error) => (error, ExitCode::from(WRONG_SETTINGS)),
            Self::Other(error) => (error, ExitCode::FAILURE),
        };
        let error =
            if is_out_of_descriptors(&error) { error.context(OpenFileLimitTooLow::current()) } else { error };
        print_error(&format_args!("{error:#}"));
        code
    }
}

impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::Other(error.into())
    }
}

/// Returns true if there were no descriptors left, wherever that was found.
fn is_out_of_descriptors(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        let error = cause.downcast_ref().and_then(io::Error::raw_os_error);
        error == Some(Errno::MFILE.raw_os_error())
    })
}

/// Prints an error to stderr: there may be no log yet.
fn print_error(what: &dyn Display) {
    logging::stderr_line(&format!("error: {what}"));
}
