//! The command line.

use std::path::PathBuf;

use clap::{Arg, ArgMatches, Command, value_parser};
use lastcall_core::settings::{EffectiveSetting, Loaded, SPECS, Sources, Spec};

use crate::{upgrade, variables, version};

const ABOUT: &str = "A WebSocket notification server with graceful drain and live upgrades.";

const AFTER: &str = "\
Settings come from, lowest to highest: the defaults, config/lastcall.toml (or --config), .env,
environment variables (PORT, or LASTCALL_PORT, which wins) and the command line.
[[namespace]] tables have settings for the channels of a prefix; they are in the settings file only.
Durations: a number of seconds (10, 0.5) or units (30m, \"1h 30m\"): d, h, m, s, ms. Sizes: bytes or
units (64KiB): KiB, MiB and GiB are powers of 1024, kB, MB and GB of 1000.

SIGTERM or Ctrl+C: gives notice, waits for the clients to leave, closes the remaining ones.
A second one closes them now, a third one exits at once.
SIGUSR2, SIGHUP or lastcall upgrade: a new process of this program takes over, with every connection.

Exit codes: 0: it ended in order; 1: a failure, with its reason in the log or on stderr;
2: a setting is wrong, or cannot be used on this machine; 128 + the number of a third signal.";

const AFTER_UPGRADE: &str = "\
The server is the one that listens at the host and port of the settings. It reads its own settings anew.
Exit codes: 0: the new process serves; 1: the upgrade failed, for the reason on stderr; 2: a setting is wrong.";

const AFTER_STATUS: &str = "\
The server is the one whose control socket, in a folder of its own, is in the runtime_dir of the settings; else the one
that listens at their host and port.
Exit codes: 0: it serves; 1: it does not answer; 2: a setting is wrong; 3: it is shutting down.";

/// The command that was asked for.
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
    let action = match matches.subcommand_name() {
        Some("upgrade") => Action::Upgrade,
        Some("status") => Action::Status,
        Some(_) => Action::ShowConfig,
        None => Action::Serve,
    };
    let sources = Sources {
        // Relative paths work from anywhere the process may be; a folder that is gone has no files.
        working_dir: upgrade::working_dir().unwrap_or_default(),
        config_file: matches.get_one::<PathBuf>("config").cloned(),
        environment: variables::other_variables(),
        command_line: command_line(&matches),
    };
    Invocation { sources, action }
}

/// Returns the settings on the command line, before and after a subcommand.
fn command_line(matches: &ArgMatches) -> Vec<(&'static str, String)> {
    let after = matches.subcommand().map(|(_, matches)| matches);
    let value = |spec: &Spec| {
        let value = after.and_then(|after| after.get_one::<String>(spec.key)).or(matches.get_one(spec.key));
        value.map(|value| (spec.key, value.clone()))
    };
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
            subcommand("config", &[])
                .about("Show the settings in force and where each comes from")
                .hide_possible_values(true),
        )
        .subcommand(
            subcommand("upgrade", &["host", "port", "runtime_dir"])
                .about("Replace the server that runs by a new process, which keeps every connection")
                .after_help(AFTER_UPGRADE),
        )
        .subcommand(
            subcommand("status", &["host", "port", "runtime_dir"])
                .about(
                    "Show how the server that runs is doing. On a terminal, it follows a shutdown to its end",
                )
                .after_help(AFTER_STATUS),
        )
}

/// A command that reads all settings, as the server does. The help shows the ones that it `uses`; all if
/// there are none.
fn subcommand(name: &'static str, uses: &[&str]) -> Command {
    let shown = |spec: &Spec| uses.is_empty() || uses.contains(&spec.key);
    Command::new(name).args(SPECS.iter().map(|spec| arg(spec).hide(!shown(spec))))
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
        .help_heading(spec.group.0)
        .help(format!("{}{warning}\n[env: {}]{}", spec.help, spec.variable(), default.unwrap_or_default()))
}

/// Returns the settings in force as a table.
pub(crate) fn show_config(loaded: &Loaded) -> String {
    let width = |text: fn(&EffectiveSetting) -> &str| {
        loaded.effective.iter().map(|one| text(one).chars().count()).max().unwrap_or(0)
    };
    let (keys, values) = (width(|one| &one.key), width(|one| &one.value));
    let line = |one: &EffectiveSetting| format!("{:keys$}  {:values$}  {}\n", one.key, one.value, one.source);
    loaded.effective.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use lastcall_core::settings::Settings;

    use super::*;

    fn flags(line: &[&str]) -> Vec<(&'static str, String)> {
        command_line(&command().try_get_matches_from(line).unwrap())
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
            assert_eq!(flags(&["lastcall", &flag, "-4", "status", &flag, "-5"]), expected);
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
    fn a_command_s_help_shows_only_the_settings_that_it_uses() {
        for (name, flags) in [("status", 3), ("upgrade", 3), ("config", SPECS.len())] {
            let mut command = command();
            let help = command.find_subcommand_mut(name).unwrap().render_help().to_string();
            assert_eq!(help.matches("[env: ").count(), flags, "{help}");
            assert_eq!(help.contains("Exit codes"), name != "config", "{help}");
        }
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
