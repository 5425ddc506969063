//! The command line.

use std::{env, path::PathBuf};

use clap::{Arg, ArgMatches, Command, value_parser};
use lastcall_core::settings::{Effective, Loaded, SPECS, Sources, Spec};

use crate::{program, version};

const ABOUT: &str =
    "A WebSocket server that notifies everyone connected, and closes without hurting anyone connected.";

const AFTER: &str = "\
Settings come from, lowest to highest: the defaults, config/lastcall.toml (or --config), .env,
environment variables (PORT, or LASTCALL_PORT, which wins) and the command line.
Durations: a number of seconds (10, 0.5) or units (30m, \"1h 30m\"): d, h, m, s, ms. Sizes: bytes or
units (64KiB): KiB, MiB and GiB are powers of 1024, kB, MB and GB of 1000.

SIGTERM or Ctrl+C: gives notice, waits for the clients to leave, closes those who stay.
A second one closes them now, a third one exits at once.
SIGUSR2, SIGHUP or lastcall upgrade: a new process of this program takes over, with every connection.";

/// What was asked for.
pub(crate) enum Action {
    Serve,
    ShowConfig,
    Upgrade,
    Status,
}

/// The command line, understood.
pub(crate) struct Invocation {
    pub(crate) sources: Sources,
    pub(crate) action: Action,
}

/// Reads the command line and the environment. Ends the process where clap does: after `--help`,
/// `--version`, or with code 2 when the command line is wrong.
pub(crate) fn parse() -> Invocation {
    let matches = command().get_matches();
    let (action, matches) = match matches.subcommand() {
        Some(("upgrade", matches)) => (Action::Upgrade, matches),
        Some(("status", matches)) => (Action::Status, matches),
        Some((_, matches)) => (Action::ShowConfig, matches),
        None => (Action::Serve, &matches),
    };
    let sources = Sources {
        // Relative paths work from anywhere the process may be; a folder that is gone has no files.
        working_dir: program::working_dir().unwrap_or_default(),
        config_file: matches.get_one::<PathBuf>("config").cloned(),
        environment: env::vars_os().collect(),
        command_line: command_line(matches),
    };
    Invocation { sources, action }
}

fn command_line(matches: &ArgMatches) -> Vec<(&'static str, String)> {
    let value = |spec: &Spec| matches.get_one::<String>(spec.key).map(|value| (spec.key, value.clone()));
    SPECS.iter().filter_map(value).collect()
}

fn command() -> Command {
    let config = Arg::new("config")
        .long("config")
        .value_name("FILE")
        .value_parser(value_parser!(PathBuf))
        .global(true)
        .help("Read settings from this file instead of config/lastcall.toml");
    Command::new("lastcall")
        .version(version::full())
        .about(ABOUT)
        .after_help(AFTER)
        .max_term_width(100)
        .disable_help_subcommand(true)
        .arg(config)
        .args(SPECS.iter().map(arg))
        .subcommand(
            Command::new("config")
                .about("Show the settings in force and where each comes from")
                .hide_possible_values(true),
        )
        .subcommand(
            Command::new("upgrade")
                .about("Replace the server that runs by a new process, which keeps every connection"),
        )
        .subcommand(
            Command::new("status")
                .about("Show how the server that runs is doing; follows a drain to its end"),
        )
}

fn arg(spec: &Spec) -> Arg {
    let default = spec.default.map(|default| format!(" [default: {}]", default.trim_matches('"')));
    let warning = if spec.secret {
        ". Others on this machine can see a command line: better use a variable"
    } else {
        ""
    };
    Arg::new(spec.key)
        .long(spec.flag())
        .value_name(spec.placeholder)
        .allow_hyphen_values(true)
        .global(true)
        .help_heading(spec.group.0)
        .help(format!("{}{warning}\n[env: {}]{}", spec.help, spec.variable(), default.unwrap_or_default()))
}

/// The settings in force as a table.
pub(crate) fn show_config(loaded: &Loaded) -> String {
    let width = |text: fn(&Effective) -> &str| {
        loaded.effective.iter().map(|one| text(one).chars().count()).max().unwrap_or(0)
    };
    let (keys, values) = (width(|one| one.key), width(|one| &one.value));
    let line = |one: &Effective| format!("{:keys$}  {:values$}  {}\n", one.key, one.value, one.origin);
    loaded.effective.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use lastcall_core::settings::Settings;

    use super::*;

    fn flags(line: &[&str]) -> Vec<(&'static str, String)> {
        let matches = command().try_get_matches_from(line).unwrap();
        let matches = matches.subcommand().map_or(&matches, |(_, matches)| matches);
        command_line(matches)
    }

    #[test]
    fn the_command_line_is_sound() {
        command().debug_assert();
    }

    #[test]
    fn every_setting_has_a_flag_with_or_without_the_subcommand() {
        for spec in SPECS {
            let flag = format!("--{}", spec.flag());
            let expected = vec![(spec.key, "-5".to_owned())];
            assert_eq!(flags(&["lastcall", &flag, "-5"]), expected);
            assert_eq!(flags(&["lastcall", "config", &flag, "-5"]), expected);
            assert_eq!(flags(&["lastcall", &flag, "-5", "config"]), expected);
        }
    }

    #[test]
    fn the_table_is_aligned_and_hides_keys() {
        let sources = Sources {
            working_dir: env!("CARGO_MANIFEST_DIR").into(),
            environment: vec![("API_KEYS".into(), "0123456789abcdef".into())],
            command_line: vec![("host", "::1".into())],
            ..Sources::default()
        };
        let table = show_config(&Settings::load(&sources).unwrap());
        assert_eq!(table.lines().count(), SPECS.len());
        let row = |key: &str| table.lines().find(|line| line.starts_with(key)).unwrap();
        let starts = ["default", "command line", "environment"];
        let columns: Vec<_> = ["port ", "host", "api_keys"]
            .iter()
            .zip(starts)
            .map(|(key, origin)| row(key).find(origin))
            .collect();
        assert!(columns[0].is_some() && columns.iter().all(|column| *column == columns[0]), "{table}");
        assert!(row("api_keys").contains("(1 hidden)") && !table.contains("0123456789abcdef"), "{table}");
    }

    #[test]
    fn help_fits_a_terminal_and_names_every_default() {
        let help = command().term_width(100).render_help().to_string();
        assert!(help.lines().all(|line| line.chars().count() <= 100), "{help}");
        for spec in SPECS {
            assert!(help.contains(&format!("--{} <", spec.flag())), "{}", spec.key);
            assert!(help.contains(&format!("[env: {}]", spec.variable())), "{}", spec.key);
        }
        assert!(help.contains("[default: 1800]") && help.contains("[default: broadcast]"));
    }
}
