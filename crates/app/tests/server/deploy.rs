//! The files of `deploy/` agree with each other: no server is killed while its clients still have time.

use std::time::Duration;

use crate::support::{Start, folder, folder_for_programs, install_script, installed, soon};

fn read(path: &str) -> String {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap();
    std::fs::read_to_string(root.join("deploy").join(path)).unwrap()
}

/// The time that the server may take to end beyond what its settings say: its parts, and the last lines of
/// its log.
const MARGIN: Duration = Duration::from_secs(30);

/// The time that it may take to write the history.
const HISTORY: Duration = Duration::from_secs(30);

/// Returns the longest time that the end takes with these variables and this settings file, as the server
/// itself understands them, when no part of it hangs and there is no history to be written.
async fn longest_end(variables: &[(String, String)], settings: &str) -> Duration {
    let mut total = Duration::ZERO;
    let start = Start::default().file("config/lastcall.toml", settings);
    let start = variables.iter().fold(start, |start, (name, value)| start.env(name, value));
    let ended = start.args(&["config"]).end().await;
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    // Clients have `close_timeout`, and then requests in flight have it.
    for key in ["shutdown_delay", "shutdown_timeout", "close_timeout", "close_timeout"] {
        let line = ended.stdout.lines().find(|line| line.starts_with(&format!("{key} "))).unwrap();
        let value = line.split_whitespace().nth(1).unwrap();
        total += match value.parse() {
            Ok(seconds) => Duration::from_secs_f64(seconds),
            Err(_) => humantime::parse_duration(value).unwrap(),
        };
    }
    total
}

#[tokio::test]
async fn systemd_waits_long_enough_and_ends_before_a_reboot_is_forced() {
    let unit = read("systemd/lastcall.service");
    let line = |key: &str| {
        let line = unit.lines().find_map(|line| line.strip_prefix(&format!("{key}=")));
        line.unwrap_or_else(|| panic!("no {key}")).to_owned()
    };
    assert!(!unit.contains("\nEnvironment="), "a variable would win over the settings file");
    let waits = humantime::parse_duration(&line("TimeoutStopSec")).unwrap();
    // `history_file` may be set in that file, without a look at the unit.
    let needs = longest_end(&[], &read("systemd/lastcall.toml")).await + MARGIN + HISTORY;
    assert!(waits >= needs, "{waits:?} for {needs:?}");
    // JobTimeoutSec of reboot.target.
    assert!(waits <= Duration::from_secs(10 * 60), "{waits:?}");
    for folder in ["RuntimeDirectory", "LogsDirectory", "StateDirectory"] {
        assert_eq!(line(folder), "lastcall");
    }
    assert!(line("ExecReload").contains(" upgrade "));
    assert_eq!((line("Type"), line("NotifyAccess")), ("notify".into(), "main".into()));
    assert_eq!(line("RestartPreventExitStatus"), "2");
    assert!(!unit.contains("\nWatchdogSec="), "systemd would end a server that sends it nothing");
    assert!(read("systemd/lastcall.socket").contains("\nListenStream=127.0.0.1:8000\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn systemd_stops_the_server_with_a_drain_and_waits_for_its_end() {
    let unit = read("systemd/lastcall.service");
    let stop = unit.lines().find_map(|line| line.strip_prefix("ExecStop=/bin/sh -c '")).unwrap();
    let stop = stop.strip_suffix('\'').unwrap();
    let folder = folder();
    let history = folder.path().join("history");
    let start = Start::default().env("HISTORY_FILE", history.display()).env("SHUTDOWN_TIMEOUT", "1");
    let mut server = start.serve().await;
    let _client = server.client().await;
    let mut command = tokio::process::Command::new("/bin/sh");
    command.args(["-c", stop]).env("MAINPID", server.pid().to_string()).kill_on_drop(true);
    let of_process = std::path::PathBuf::from(format!("/proc/{}", server.pid()));
    let stopping = async {
        let ended = soon("the command to end", command.status()).await.unwrap();
        assert!(ended.success() && !of_process.exists(), "it ends after the server: {ended}");
    };
    let (code, ()) = tokio::join!(server.exit_code(), stopping);
    assert_eq!(code, 0);
    assert!(history.exists());
}

#[tokio::test]
async fn systemd_finds_the_units_right_and_well_protected() {
    let Some(analyze) = installed("systemd-analyze") else { return };
    // Where the program is not installed, it is what is wrong with the unit.
    let folder = folder();
    for name in ["lastcall.service", "lastcall.socket"] {
        let unit = read(&format!("systemd/{name}")).replace("/usr/local/bin/lastcall", "/bin/true");
        std::fs::write(folder.path().join(name), unit).unwrap();
    }
    let run = async |arguments: &[&str], unit: &str| {
        let mut command = tokio::process::Command::new(&analyze);
        let command = command.args(arguments).arg(folder.path().join(unit)).kill_on_drop(true);
        soon("systemd-analyze", command.output()).await.unwrap()
    };
    for unit in ["lastcall.service", "lastcall.socket"] {
        let output = run(&["verify", "--man=no"], unit).await;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success() && !said.contains("lastcall."), "{unit}: {said}");
    }
    let output = run(&["security", "--offline=true", "--no-pager"], "lastcall.service").await;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let exposure = said
        .lines()
        .find_map(|line| line.split("lastcall.service: ").nth(1))
        .unwrap_or_else(|| panic!("{said}"));
    let exposure: f64 = exposure.split_whitespace().next().unwrap().parse().unwrap();
    assert!(exposure <= 2.0, "{said}");
}

#[tokio::test]
async fn kubernetes_waits_long_enough() {
    let manifest = read("kubernetes/lastcall.yaml");
    let after = |text: &str| manifest.split(text).nth(1).unwrap_or_else(|| panic!("no {text}")).to_owned();
    let grace = after("terminationGracePeriodSeconds: ").lines().next().unwrap().parse().unwrap();
    let variables: Vec<_> = manifest
        .lines()
        .filter_map(|line| line.trim().strip_prefix("- {name: ")?.split_once(", value: \""))
        .map(|(name, value)| (name.to_owned(), value.trim_end_matches("\"}").to_owned()))
        .collect();
    let bytes = |name: &str| {
        let value = &variables.iter().find(|(other, _)| other == name).unwrap().1;
        let (number, unit) = value.split_at(value.find(|c: char| !c.is_ascii_digit()).unwrap_or(value.len()));
        let shift = ["", "KiB", "MiB"].iter().position(|name| *name == unit).unwrap() * 10;
        number.parse::<u64>().unwrap() << shift
    };
    let limit: u64 = after("limits: {memory: ").split("Mi}").next().unwrap().parse().unwrap();
    // During an upgrade, both processes have the history.
    let needs = bytes("MAX_CONNECTIONS") * bytes("MAX_QUEUE") + 2 * bytes("HISTORY_BYTES");
    assert!(needs <= limit * 1024 * 1024 * 3 / 4, "memory");
    assert!(!manifest.contains("HISTORY_FILE"), "it would need time, too");
    let (waits, needs) = (Duration::from_secs(grace), longest_end(&variables, "").await + MARGIN);
    assert!(waits >= needs, "{waits:?} for {needs:?}");
    let probe = after("readinessProbe:");
    let number = |key: &str| -> u64 {
        probe.split(key).nth(1).unwrap().lines().next().unwrap().trim().parse().unwrap()
    };
    let notices = Duration::from_secs(number("periodSeconds:") * number("failureThreshold:"));
    let delay = variables.iter().find(|(name, _)| name == "SHUTDOWN_DELAY").unwrap();
    let delay = humantime::parse_duration(&delay.1).unwrap();
    assert!(delay >= 2 * notices, "newcomers are served until the probe has failed: {notices:?}, {delay:?}");
    assert!(
        after("readinessProbe:").contains("/health/ready")
            && after("livenessProbe:").contains("/health/live")
    );
}

#[tokio::test]
async fn a_container_is_given_the_time_that_it_needs() {
    let file = read("Dockerfile");
    let line = file.lines().find_map(|line| line.strip_prefix("ENV ")).unwrap();
    let variables: Vec<_> = line.split(' ').map(|one| one.split_once('=').unwrap()).collect();
    let variables: Vec<_> = variables.into_iter().map(|(name, value)| (name.into(), value.into())).collect();
    // `docker stop` waits for 10 s. That is not enough when a part hangs, which is a bug.
    assert!(longest_end(&variables, "").await <= Duration::from_secs(8));

    let compose = read("compose.yaml");
    let value = |key: &str| {
        let line = compose.lines().find_map(|line| line.trim().strip_prefix(&format!("{key}: ")));
        line.unwrap_or_else(|| panic!("no {key}")).to_owned()
    };
    let variables = ["SHUTDOWN_TIMEOUT", "CLOSE_TIMEOUT"].map(|name| (name.to_owned(), value(name)));
    let waits = humantime::parse_duration(&value("stop_grace_period")).unwrap();
    assert!(waits >= longest_end(&variables, "").await + MARGIN, "{waits:?}");
}

#[test]
fn the_documentation_counts_with_the_same_times() {
    let formula = "`shutdown_delay` + `shutdown_timeout` + 2 × `close_timeout` + 30 s, and 30 s more with `history_file`";
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap();
    for file in ["README.md", "docs/continuity.md"] {
        let text = std::fs::read_to_string(root.join(file)).unwrap();
        let words: Vec<_> = text.split_whitespace().collect();
        assert!(words.join(" ").contains(formula), "{file}");
    }
}

#[test]
fn the_container_runs_the_program_itself() {
    let file = read("Dockerfile");
    assert!(file.contains("\nSTOPSIGNAL SIGTERM\n") && file.contains("\nHEALTHCHECK "));
    assert!(file.contains("ENTRYPOINT [\"/usr/local/bin/lastcall\"]"), "signals must reach it");
}

/// The instructions of the image's first stage are followed, with a cargo that checks the workspace in place
/// of building it.
#[test]
fn the_image_copies_the_manifest_and_the_sources_of_every_crate() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap();
    let (folder, programs) = (folder(), folder_for_programs());
    let cargo = programs.path().join("cargo");
    let check =
        format!("\"{}\" tree --quiet --locked --offline --package lastcall >/dev/null", env!("CARGO"));
    install_script(&cargo, &format!("echo once >>\"$0.calls\"; {check}"));
    let path = format!("{}:{}", programs.path().display(), std::env::var("PATH").unwrap());
    let run = |command: &str, arguments: &[&std::ffi::OsStr]| {
        let mut shell = std::process::Command::new("sh");
        shell.args(["-c", command, "sh"]).args(arguments).current_dir(folder.path()).env("PATH", &path);
        let output = shell.output().unwrap();
        assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    };
    let file = read("Dockerfile").replace("\\\n", "");
    let stage = file.split("\nFROM ").nth(1).unwrap();
    for line in stage.lines() {
        match line.split_once(' ') {
            Some(("COPY", paths)) => {
                let paths: Vec<_> = paths.split_whitespace().collect();
                let (to, from) = paths.split_last().unwrap();
                for path in from {
                    // As a builder does, the contents of a folder, and whatever is on the way there.
                    let to = if to.ends_with('/') { format!("{to}/.") } else { (*to).to_owned() };
                    let script = "mkdir -p \"$2\"; if [ -d \"$1\" ]; then cp -r \"$1/.\" \"$2\"; else cp \"$1\" \"$2\"; fi";
                    run(script, &[root.join(path).as_os_str(), to.as_ref()]);
                }
            }
            Some(("RUN", command)) => run(command, &[]),
            _ => {}
        }
    }
    let calls = std::fs::read_to_string(programs.path().join("cargo.calls")).unwrap();
    assert_eq!(calls.lines().count(), 2, "once for the dependencies, and once for the program");
    for name in std::fs::read_dir(root.join("crates")).unwrap().map(|entry| entry.unwrap().file_name()) {
        let manifest = format!("COPY crates/{0}/Cargo.toml crates/{0}/\n", name.display());
        assert!(stage.contains(&manifest), "{manifest}");
    }
}
