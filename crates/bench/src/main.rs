//! `lastcall-bench`: load for a WebSocket server, and what it costs the server.
//!
//! It works with any server that sends each text that a client sends to all clients. Clients are counted in
//! thousands, so they are sockets in one poll loop, without tasks or buffers of their own.

mod arguments;
mod channels;
mod chart;
mod client;
mod compare;
mod contestant;
mod echo;
mod fair;
mod fleet;
mod load;
mod measured;
mod process;
mod publisher;
mod recovery;
mod report;
mod restart;
mod stuck;

use std::{path::PathBuf, process::ExitCode};

use anyhow::Context;
use clap::{Args, Parser, Subcommand};

use crate::{contestant::Servers, load::Load, restart::Plan};

/// Load for a WebSocket server that sends each client's text to all clients.
///
/// Connects the clients, publishes texts through one more, and tells how many deliveries there were, how
/// long they took, and what they cost the server (with --server-pid, on this machine).
///
/// A process may have as many clients as it may have open files (ulimit -n); on small machines that is
/// 20,000 or less. Run several for more.
#[derive(Parser)]
#[command(version, max_term_width = 100, args_conflicts_with_subcommands = true)]
struct Cli {
    /// Where the server is: ws://HOST:PORT/PATH
    #[arg(long)]
    url: Option<url::Url>,
    /// Print one JSON object instead of a table
    #[arg(long)]
    json: bool,
    /// Check the arguments, and end
    #[arg(long, global = true, hide = true)]
    check: bool,
    #[command(flatten)]
    load: Load,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Args)]
struct Folders {
    /// The folder with the built binaries
    #[arg(long)]
    binaries: PathBuf,
    /// Where to write the figures, as JSON, and the chart if there is one
    #[arg(long)]
    out: PathBuf,
}

impl Folders {
    /// Returns what starts lastcall, and the other servers in `peers`, if others are measured.
    fn servers(self, peers: Option<PathBuf>) -> Servers {
        let runtime_dir = self.out.join("run");
        Servers { peers: peers.unwrap_or_default(), binaries: self.binaries, runtime_dir }
    }
}

#[derive(Subcommand)]
enum Command {
    /// Measure lastcall beside other servers, pair by pair with a floor; write tables and a chart
    Compare {
        /// The folder with the peers, made by `just bench`
        #[arg(long)]
        peers: PathBuf,
        #[command(flatten)]
        folders: Folders,
        /// Pairs for each figure
        #[arg(long, default_value_t = 9, value_parser = arguments::count)]
        pairs: usize,
        /// Only the tables whose name contains this; --list shows the names
        #[arg(long, default_value = "", hide_default_value = true, value_parser = compare::part_of_a_name)]
        only: String,
        /// Print the names of the tables that would be made, and end
        #[arg(long)]
        list: bool,
    },
    /// Measure what channels, publications and history cost lastcall; write a table
    Channels {
        #[command(flatten)]
        folders: Folders,
        /// How often each figure is measured
        #[arg(long, default_value_t = 5, value_parser = arguments::count)]
        rounds: usize,
        /// Only the measurements whose name contains this; --list shows the names
        #[arg(long, default_value = "", hide_default_value = true, value_parser = channels::part_of_a_name)]
        only: String,
        /// Print the names of the measurements that would be made, and end
        #[arg(long)]
        list: bool,
    },
    /// Let clients miss publications and come back together: to lastcall, and to nginx with nchan; write a
    /// table
    Recovery {
        #[command(flatten)]
        folders: Folders,
        /// Clients that come back
        #[arg(long, default_value_t = 10_000, value_parser = arguments::count)]
        clients: usize,
        /// Channels that they are in, each client in one
        #[arg(long, default_value_t = 100, value_parser = arguments::count)]
        channels: usize,
        /// How often each server is measured
        #[arg(long, default_value_t = 5, value_parser = arguments::count)]
        rounds: usize,
    },
    /// Restart servers under load: how many clients are cut off, what is lost, how long clients wait; write
    /// tables and a chart
    Restart {
        /// The folder with the peers, made by `just bench-upgrade`
        #[arg(long)]
        peers: PathBuf,
        #[command(flatten)]
        folders: Folders,
        /// Clients of lastcall's upgrades in a row
        #[arg(long, default_value_t = 10_000, value_parser = arguments::count)]
        clients: usize,
        /// Clients of the restart beside others
        #[arg(long, default_value_t = 1000, value_parser = arguments::count)]
        fewer: usize,
        /// Texts a second
        #[arg(long, default_value_t = 20.0, value_parser = arguments::positive)]
        rate: f64,
        /// Upgrades in a row
        #[arg(long, default_value_t = 10, value_parser = arguments::count)]
        upgrades: usize,
    },
}

#[allow(clippy::print_stdout, reason = "the result of a command")]
fn run() -> anyhow::Result<()> {
    let cli = Cli::parse();
    match (cli.command, cli.url) {
        (Some(Command::Compare { only, list: true, .. }), _) => {
            compare::names(&only).for_each(|name| println!("{name}"));
            Ok(())
        }
        (Some(Command::Channels { only, list: true, .. }), _) => {
            channels::names(&only).for_each(|name| println!("{name}"));
            Ok(())
        }
        (Some(Command::Recovery { .. }), _) if cli.check => recovery::check_programs(),
        _ if cli.check => Ok(()),
        (Some(Command::Channels { folders, rounds, only, list: false }), _) => {
            let out = folders.out.clone();
            channels::Plan { servers: folders.servers(None), rounds, only }.run(&out)
        }
        (Some(Command::Compare { peers, folders, pairs, only, list: false }), _) => {
            let out = folders.out.clone();
            compare::Suite { servers: folders.servers(Some(peers)), pairs, only }.run(&out)
        }
        (Some(Command::Recovery { folders, clients, channels, rounds }), _) => {
            let out = folders.out.clone();
            recovery::Plan { servers: folders.servers(None), clients, channels, rounds }.run(&out)
        }
        (Some(Command::Restart { peers, folders, clients, fewer, rate, upgrades }), _) => {
            let out = folders.out.clone();
            Plan { servers: folders.servers(Some(peers)), clients, rate, upgrades }.run(fewer, &out)
        }
        (None, Some(url)) => {
            let outcome = load::run(&url, &cli.load, true)?;
            if cli.json {
                println!("{}", serde_json::to_string_pretty(&outcome).context("cannot write JSON")?);
            } else {
                print!("{}", report::table(&outcome));
            }
            Ok(())
        }
        (None, None) => anyhow::bail!("--url is needed; see --help"),
    }
}

#[allow(clippy::print_stderr, reason = "for the user who started it")]
fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, error::ErrorKind};

    use super::*;

    fn compare(arguments: &[&str]) -> Result<Cli, clap::Error> {
        let needed = ["lastcall-bench", "compare", "--peers", "a", "--binaries", "b", "--out", "c"];
        Cli::try_parse_from(needed.iter().chain(arguments))
    }

    fn without_peers(command: &str, arguments: &[&str]) -> Result<Cli, clap::Error> {
        let needed = ["lastcall-bench", command, "--binaries", "b", "--out", "c"];
        Cli::try_parse_from(needed.iter().chain(arguments))
    }

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_name_that_no_table_has_is_refused_with_the_names() {
        assert!(compare(&["--only", "dial at once"]).is_ok());
        let error = compare(&["--only", "idle"]).err().unwrap();
        assert_eq!((error.kind(), error.exit_code()), (ErrorKind::ValueValidation, 2));
        let text = error.to_string();
        assert!(text.contains("no table has this in its name"), "{text}");
        assert!(compare::names("").all(|name| text.contains(name)), "{text}");

        assert!(without_peers("channels", &["--only", "publish"]).is_ok());
        let text = without_peers("channels", &["--only", "idle"]).err().unwrap().to_string();
        assert!(text.contains("no measurement has this in its name"), "{text}");
        assert!(channels::names("").all(|name| text.contains(name)), "{text}");
    }

    #[test]
    fn what_measures_nothing_is_refused() {
        assert_eq!(compare(&["--pairs", "0"]).err().unwrap().exit_code(), 2);
        for (command, zero) in [
            ("channels", "--rounds"),
            ("recovery", "--clients"),
            ("recovery", "--channels"),
            ("recovery", "--rounds"),
        ] {
            assert_eq!(
                without_peers(command, &[zero, "0"]).err().unwrap().exit_code(),
                2,
                "{command} {zero}"
            );
        }
        for zero in ["--clients", "--at-once", "--rate", "--payload", "--burst", "--seconds"] {
            let line = ["lastcall-bench", "--url", "ws://127.0.0.1:1/ws", zero, "0"];
            assert_eq!(Cli::try_parse_from(line).err().unwrap().exit_code(), 2, "{zero}");
        }
    }
}
