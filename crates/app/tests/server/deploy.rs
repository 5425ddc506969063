//! What is deployed agrees with itself: nobody is killed while clients still have time.

use std::time::Duration;

use crate::support::Start;

fn read(path: &str) -> String {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap();
    std::fs::read_to_string(root.join("deploy").join(path)).unwrap()
}

/// The settings that these variables make, as the server itself understands them.
async fn durations(variables: &[(String, String)]) -> Duration {
    let mut total = Duration::ZERO;
    let start = variables.iter().fold(Start::default(), |start, (name, value)| start.env(name, value));
    let ended = start.args(&["config"]).end().await;
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    for key in ["shutdown_delay", "shutdown_timeout", "close_timeout"] {
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
async fn systemd_waits_long_enough() {
    let unit = read("systemd/lastcall.service");
    let line = |key: &str| {
        let line = unit.lines().find_map(|line| line.strip_prefix(&format!("{key}=")));
        line.unwrap_or_else(|| panic!("no {key}")).to_owned()
    };
    let variables = line("Environment");
    let variables = variables.split(' ').map(|one| one.split_once('=').unwrap());
    let variables: Vec<_> = variables.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    let waits = humantime::parse_duration(&line("TimeoutStopSec")).unwrap();
    let needs = durations(&variables).await;
    assert!(waits >= needs + Duration::from_secs(10), "{waits:?} for {needs:?}");
    assert_eq!(line("RuntimeDirectory"), "lastcall");
    assert!(line("ExecReload").contains(" upgrade "));
    assert_eq!(line("Type"), "notify");
    assert!(read("systemd/lastcall.socket").contains("\nListenStream=8000\n"));
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
    assert_eq!(variables.len(), 5, "{variables:?}");
    let (waits, needs) = (Duration::from_secs(grace), durations(&variables).await);
    assert!(waits >= needs + Duration::from_secs(10), "{waits:?} for {needs:?}");
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

#[test]
fn the_container_runs_the_program_itself() {
    let file = read("Dockerfile");
    assert!(file.contains("ENTRYPOINT [\"/usr/local/bin/lastcall\"]"), "signals must reach it");
}
