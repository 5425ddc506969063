//! What each crate must never know (docs/ARCHITECTURE.md). Cargo itself refuses a crate that is not among the
//! dependencies; checked here are the dependencies, and words for what every crate has: the standard library,
//! and features of tokio that another crate of the workspace turns on.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::{fs, path::Path, process::Command};

use serde_json::Value;

/// One crate and its rules.
struct Layer {
    package: &'static str,
    folder: &'static str,
    /// Crates of ours that it may use.
    may_use: &'static [&'static str],
    /// Crates of others that it must not depend on.
    no_dependency: &'static [&'static str],
    /// What its code must not mention.
    no_word: &'static [&'static str],
}

const HTTP: &[&str] = &["axum", "hyper", "hyper-util", "tower", "http", "minijinja"];
const NETWORK: &[&str] = &["tokio", "mio", "tungstenite", "axum", "hyper", "tower"];
/// Whatever handles signals with tokio mentions one of these.
const SIGNALS: &[&str] = &["SignalKind", "ctrl_c"];

const LAYERS: [Layer; 8] = [
    Layer {
        package: "lastcall-core",
        folder: "crates/core",
        may_use: &[],
        no_dependency: NETWORK,
        // Addresses are data; sockets are not.
        no_word: &["TcpStream", "TcpListener", "UdpSocket", "UnixStream"],
    },
    Layer {
        package: "lastcall-broker",
        folder: "crates/broker",
        may_use: &["lastcall-core"],
        no_dependency: NETWORK,
        no_word: &["TcpStream", "TcpListener", "WebSocket"],
    },
    Layer {
        package: "lastcall-websockets",
        folder: "crates/websockets",
        may_use: &["lastcall-core", "lastcall-broker"],
        no_dependency: HTTP,
        no_word: SIGNALS,
    },
    Layer {
        package: "lastcall-endpoints",
        folder: "crates/endpoints",
        may_use: &["lastcall-core", "lastcall-broker", "lastcall-websockets"],
        no_dependency: &["signal-hook", "nix", "ctrlc"],
        no_word: SIGNALS,
    },
    Layer {
        package: "lastcall-lifecycle",
        folder: "crates/lifecycle",
        may_use: &["lastcall-core", "lastcall-websockets"],
        no_dependency: HTTP,
        no_word: &[],
    },
    Layer {
        package: "lastcall-handover",
        folder: "crates/handover",
        may_use: &[],
        no_dependency: NETWORK,
        no_word: &["TcpStream", "TcpListener", "WebSocket"],
    },
    Layer {
        package: "lastcall",
        folder: "crates/app",
        may_use: &[
            "lastcall-core",
            "lastcall-broker",
            "lastcall-websockets",
            "lastcall-endpoints",
            "lastcall-handover",
            "lastcall-lifecycle",
        ],
        no_dependency: &[],
        no_word: &[],
    },
    Layer {
        package: "lastcall-bench",
        folder: "crates/bench",
        may_use: &[],
        no_dependency: &[],
        no_word: &[],
    },
];

impl Layer {
    /// Returns the dependencies that break the rules.
    fn wrong_dependencies<'a>(&self, dependencies: impl IntoIterator<Item = &'a str>) -> Vec<&'a str> {
        let is_wrong = |name: &&str| {
            let is_ours = name.starts_with("lastcall");
            (is_ours && !self.may_use.contains(name)) || self.no_dependency.contains(name)
        };
        dependencies.into_iter().filter(is_wrong).collect()
    }

    /// Returns the lines that break the rules, by their numbers; comments do not.
    fn wrong_lines(&self, source: &str) -> Vec<usize> {
        let code = source.lines().map(|line| line.split("//").next().unwrap_or(""));
        let lines = code.zip(1..).filter(|(code, _)| self.no_word.iter().any(|word| code.contains(word)));
        lines.map(|(_, number)| number).collect()
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap()
}

/// Returns the packages of the workspace, as cargo describes them.
fn packages() -> Vec<Value> {
    let arguments = ["metadata", "--format-version=1", "--no-deps", "--offline"];
    let output = Command::new(env!("CARGO")).args(arguments).current_dir(root()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    metadata["packages"].as_array().unwrap().clone()
}

/// Returns the dependencies of a package without those for tests. An optional one is for tests, too: no
/// feature that would turn it on is in a program, as a test below says.
fn dependencies(package: &Value) -> impl Iterator<Item = &Value> {
    let dependencies = package["dependencies"].as_array().unwrap().iter();
    dependencies.filter(|dependency| dependency["kind"].is_null() && dependency["optional"] == false)
}

fn visit_sources(folder: &Path, visit: &mut impl FnMut(&Path, &str)) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            visit_sources(&path, visit);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            visit(&path, &fs::read_to_string(&path).unwrap());
        }
    }
}

#[test]
fn no_crate_depends_on_what_it_must_not_know() {
    for package in packages() {
        let name = package["name"].as_str().unwrap();
        let layer = LAYERS.iter().find(|layer| layer.package == name);
        let layer = layer.unwrap_or_else(|| panic!("no rules for {name}: add them to LAYERS"));
        let names = dependencies(&package).map(|dependency| dependency["name"].as_str().unwrap());
        let wrong = layer.wrong_dependencies(names);
        assert!(wrong.is_empty(), "{name} must not depend on {wrong:?}");
    }
}

#[test]
fn no_code_mentions_what_its_crate_must_not_know() {
    let mut wrong = Vec::new();
    for layer in &LAYERS {
        visit_sources(&root().join(layer.folder).join("src"), &mut |path, source| {
            wrong.extend(layer.wrong_lines(source).iter().map(|line| format!("{}:{line}", path.display())));
        });
    }
    assert!(wrong.is_empty(), "these lines mention what their crate must not know:\n{}", wrong.join("\n"));
}

#[test]
fn a_broken_rule_is_found() {
    let websockets = &LAYERS[2];
    let dependencies = ["axum", "bytes", "lastcall-core", "lastcall-endpoints"];
    assert_eq!(websockets.wrong_dependencies(dependencies), ["axum", "lastcall-endpoints"]);
    let source = "use tokio::{\n    signal::unix::{SignalKind, signal},\n};\n// not ctrl_c\n";
    assert_eq!(websockets.wrong_lines(source), [2]);
}

/// The tests' own dependency turns them on, and cargo leaves that out wherever it builds no tests.
#[test]
fn the_program_has_failpoints_and_faults_in_its_tests_only() {
    for package in packages() {
        assert!(package["features"]["default"].is_null(), "{} has default features", package["name"]);
        let has_features = |dependency: &&Value| {
            ["lastcall-handover", "lastcall-broker"].iter().any(|name| dependency["name"] == *name)
        };
        for dependency in dependencies(&package).filter(has_features) {
            assert_eq!(dependency["features"], serde_json::json!([]), "of {}", package["name"]);
        }
    }
}
