//! `lastcall-bench`: load for a WebSocket server, and what it costs the server.
//!
//! It works with any server that sends each text that a client sends to everyone. Clients are counted in
//! thousands, so they are sockets in one poll loop, without tasks or buffers of their own.

mod chart;
mod client;
mod compare;
mod contestant;
mod echo;
mod fair;
mod fleet;
mod load;
mod process;
mod report;
mod restart;
mod restart_chart;
mod stuck;

use std::{path::PathBuf, process::ExitCode};

use anyhow::Context;
use clap::{Parser, Subcommand};

use crate::{contestant::Servers, load::Load, restart::Plan};

/// Load for a WebSocket server that sends each client's text to everyone.
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
    #[command(flatten)]
    load: Load,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Measure lastcall beside other servers, pair by pair with a floor; write tables and a chart
    Compare {
        /// The folder with the peers, made by `just bench`
        #[arg(long)]
        peers: PathBuf,
        /// The folder with the built binaries
        #[arg(long)]
        binaries: PathBuf,
        /// Where to write benchmarks.json and the chart
        #[arg(long)]
        out: PathBuf,
        /// Pairs for each figure
        #[arg(long, default_value_t = 9)]
        pairs: usize,
        /// Only the tables whose name contains this
        #[arg(long, default_value = "")]
        only: String,
    },
    /// Restart servers under load: who is cut off, what is lost, how long clients wait; write tables and a chart
    Restart {
        /// The folder with the peers, made by `just bench-upgrade`
        #[arg(long)]
        peers: PathBuf,
        /// The folder with the built binaries
        #[arg(long)]
        binaries: PathBuf,
        /// Where to write restarts.json and the chart
        #[arg(long)]
        out: PathBuf,
        /// Clients of lastcall's upgrades in a row
        #[arg(long, default_value_t = 10_000)]
        clients: usize,
        /// Clients of the restart beside others
        #[arg(long, default_value_t = 1000)]
        fewer: usize,
        /// Texts a second
        #[arg(long, default_value_t = 20.0)]
        rate: f64,
        /// Upgrades in a row
        #[arg(long, default_value_t = 10)]
        upgrades: usize,
    },
}

#[allow(clippy::print_stdout, reason = "the result of a command")]
fn run() -> anyhow::Result<()> {
    let cli = Cli::parse();
    match (cli.command, cli.url) {
        (Some(Command::Compare { peers, binaries, out, pairs, only }), _) => {
            let servers = Servers { peers, binaries, runtime_dir: out.join("run") };
            compare::Suite { servers, pairs, only }.run(&out)
        }
        (Some(Command::Restart { peers, binaries, out, clients, fewer, rate, upgrades }), _) => {
            let servers = Servers { peers, binaries, runtime_dir: out.join("run") };
            Plan { servers, clients, rate, upgrades }.run(fewer, &out)
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

#[allow(clippy::print_stderr, reason = "for the one who started it")]
fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
