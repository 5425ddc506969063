//! The `lastcall` binary: settings, logging, start, run, exit code.
//!
//! - `cli` is the command line, `commands` what `lastcall upgrade` and `lastcall status` do.
//! - `config` makes each library's configuration from the settings.
//! - `server` composes the parts of the server, and starts and stops them in order.
//! - `history` is the history of the channels as bytes, the file to which a shutdown writes it, and its
//!   expiry.
//! - `listener` opens the listening socket as the settings say, `exposure` logs what other machines can do.
//! - `ingress` is all that can publish: HTTP and the notifier, which an upgrade suspends.
//! - `upgrade` is both sides of a handover, the control socket, and the supervisor.
//! - `threads` starts the threads of the runtime, `version` knows the version and the commit, `start_time`
//!   when the process started.

mod broker;
mod cli;
mod commands;
mod config;
mod exposure;
mod history;
mod ingress;
mod listener;
mod server;
mod start_time;
mod threads;
mod upgrade;
mod variables;
mod version;

use std::{
    io::{self, ErrorKind, Write},
    panic,
    process::ExitCode,
    thread,
};

use anyhow::Context;
use lastcall_core::{
    logging::{self, LoggingError},
    process::{OpenFileLimit, OpenFileLimitTooLow, preallocate_descriptor_table},
    settings::{Loaded, Settings, SettingsErrors},
};
use lastcall_endpoints::SystemdSocketError;
use rustix::io::Errno;
use tokio::runtime::Builder;
use tracing::{error, warn};

use crate::{cli::Action, server::Inherited, upgrade::Role};

/// The exit code for settings that are wrong, or that this machine does not allow; the same as for a wrong
/// command line.
const WRONG_SETTINGS: u8 = 2;

fn main() -> ExitCode {
    lastcall_lifecycle::reset_inherited();
    start_time::record();
    let invocation = cli::parse();
    if let Err(error) = OpenFileLimit::raise() {
        print_error(&error);
        return ExitCode::FAILURE;
    }
    let loaded = match Settings::load(&invocation.sources) {
        Ok(loaded) => loaded,
        Err(errors) => {
            print_error(&errors);
            return ExitCode::from(WRONG_SETTINGS);
        }
    };
    let result = match invocation.action {
        Action::ShowConfig => show_config(&loaded),
        Action::Serve => serve(&loaded),
        Action::Upgrade => commands::upgrade(&loaded.settings),
        Action::Status => status(&loaded.settings),
    };
    result.unwrap_or_else(|error| {
        let error =
            if is_out_of_descriptors(&error) { error.context(OpenFileLimitTooLow::current()) } else { error };
        print_error(&format_args!("{error:#}"));
        if error.is::<SettingsErrors>() || error.is::<SystemdSocketError>() {
            ExitCode::from(WRONG_SETTINGS)
        } else {
            ExitCode::FAILURE
        }
    })
}

fn serve(loaded: &Loaded) -> anyhow::Result<ExitCode> {
    let settings = &loaded.settings;
    let handover = upgrade::inherited_descriptor(variables::HANDOVER)?;
    let role = Role::detect(handover.is_some())?;
    let inherited = Inherited { handover, role };
    // Before the log: that may have a thread.
    let connections = settings.max_connections.saturating_add(settings.max_http_connections);
    let preallocated = preallocate_descriptor_table(connections);
    // Dropped last: what is logged on the way down is written, too.
    let (mut log, unusable) = match logging::init(settings) {
        Ok(log) => (Some(log), Vec::new()),
        Err(LoggingError::Dir { source, .. }) => {
            let reason = format_args!("cannot write log files there: {source}");
            (None, vec![loaded.unusable_error("log_dir", &reason)])
        }
        Err(error) => return Err(error.into()),
    };
    log_panics();
    for warning in &loaded.warnings {
        warn!("settings: {warning}");
    }
    if let Err(error) = preallocated {
        warn!(%error, "cannot enlarge the descriptor table: new clients may have to wait while it grows");
    }
    let runtime = threads::runtime()?;
    let exit = runtime.block_on(server::run(loaded, inherited, unusable));
    // A task that is stuck must not keep the process: whatever had to end in order has ended.
    runtime.shutdown_background();
    let exit = exit?;
    if let Some(log) = &mut log
        && exit.at_once
    {
        log.flush_fast();
    }
    Ok(exit.code)
}

/// Has panics logged like everything else: stderr may be closed, or take nothing.
fn log_panics() {
    panic::set_hook(Box::new(|panic| {
        let thread = thread::current();
        error!(thread = thread.name(), "a part of the server panicked, which is a bug: {panic}");
    }));
}

fn status(settings: &Settings) -> anyhow::Result<ExitCode> {
    let runtime = Builder::new_current_thread().enable_all().build().context("cannot start the runtime")?;
    runtime.block_on(commands::status(settings))
}

fn show_config(loaded: &Loaded) -> anyhow::Result<ExitCode> {
    for warning in &loaded.warnings {
        // That stderr is closed does not matter to the reader of stdout.
        let _ = writeln!(io::stderr(), "warning: {warning}");
    }
    match io::stdout().write_all(cli::show_config(loaded).as_bytes()) {
        // The reader, such as `head`, needs no more.
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(error).context("cannot write to stdout"),
        _ => Ok(ExitCode::SUCCESS),
    }
}

fn is_out_of_descriptors(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        let error = cause.downcast_ref().and_then(io::Error::raw_os_error);
        error == Some(Errno::MFILE.raw_os_error())
    })
}

/// Prints an error to stderr: there may be no log yet.
fn print_error(what: &dyn std::fmt::Display) {
    logging::stderr_line(&format!("error: {what}"));
}
