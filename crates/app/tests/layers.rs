//! What each crate must never know (docs/ARCHITECTURE.md): a change that breaks a layer fails here.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::{fs, path::Path};

use serde_json::Value;

/// One crate and its rules.
struct Layer {
    package: &'static str,
    folder: &'static str,
    /// Crates of ours that it may use.
    may_use: &'static [&'static str],
    /// Crates of others that it must not depend on.
    no_dependency: &'static [&'static str],
    /// What its source must not mention.
    no_mention: &'static [&'static str],
}

const HTTP: [&str; 6] = ["axum", "hyper", "hyper-util", "tower", "http", "minijinja"];

const LAYERS: [Layer; 7] = [
    Layer {
        package: "lastcall-core",
        folder: "crates/core",
        may_use: &[],
        no_dependency: &["tokio", "mio", "tungstenite", "axum", "hyper", "tower"],
        no_mention: &[
            // Addresses are data; sockets are not.
            "TcpStream",
            "TcpListener",
            "UdpSocket",
            "UnixStream",
            "tokio::",
            "lastcall_websockets::",
            "lastcall_endpoints::",
            "lastcall_lifecycle::",
        ],
    },
    Layer {
        package: "lastcall-websockets",
        folder: "crates/websockets",
        may_use: &["lastcall-core"],
        no_dependency: &HTTP,
        no_mention: &[
            "axum::",
            "hyper::",
            "tower::",
            "tokio::signal",
            "lastcall_endpoints",
            "lastcall_lifecycle",
        ],
    },
    Layer {
        package: "lastcall-endpoints",
        folder: "crates/endpoints",
        may_use: &["lastcall-core", "lastcall-websockets"],
        no_dependency: &["signal-hook", "nix", "libc", "ctrlc"],
        no_mention: &["tokio::signal", "rustix::process", "SIGTERM", "SIGINT", "lastcall_lifecycle"],
    },
    Layer {
        package: "lastcall-lifecycle",
        folder: "crates/lifecycle",
        may_use: &["lastcall-core", "lastcall-websockets"],
        no_dependency: &HTTP,
        no_mention: &["axum::", "hyper::", "Router", "lastcall_endpoints"],
    },
    Layer {
        package: "lastcall-handover",
        folder: "crates/handover",
        may_use: &[],
        no_dependency: &["tokio", "mio", "tungstenite", "axum", "hyper", "tower"],
        no_mention: &["WebSocket", "TcpListener", "TcpStream", "tokio::", "lastcall_"],
    },
    Layer {
        package: "lastcall",
        folder: "crates/app",
        may_use: &[
            "lastcall-core",
            "lastcall-websockets",
            "lastcall-endpoints",
            "lastcall-handover",
            "lastcall-lifecycle",
        ],
        no_dependency: &[],
        no_mention: &[],
    },
    Layer {
        package: "lastcall-bench",
        folder: "crates/bench",
        may_use: &[],
        no_dependency: &[],
        no_mention: &["lastcall_"],
    },
];

impl Layer {
    /// Dependencies that break the rules.
    fn wrong_dependencies<'a>(&self, dependencies: impl IntoIterator<Item = &'a str>) -> Vec<String> {
        let forbidden = |name: &str| {
            let ours = name.starts_with("lastcall");
            (ours && !self.may_use.contains(&name)) || self.no_dependency.contains(&name)
        };
        let wrong = dependencies.into_iter().filter(|name| forbidden(name));
        wrong.map(|name| format!("{} must not depend on {name}", self.package)).collect()
    }

    /// Lines that break the rules, comments aside.
    fn wrong_lines(&self, file: &str, source: &str) -> Vec<String> {
        let mut wrong = Vec::new();
        for (line, code) in statements(source) {
            for word in self.no_mention.iter().filter(|word| code.contains(**word)) {
                wrong.push(format!("{file}:{line}: {} must not know {word}: {code}", self.package));
            }
        }
        wrong
    }
}

/// The code line by line, comments aside; of a `use` over several lines or with braces, each path in full
/// (`use a::{b, c::d}` is `use a::b` and `use a::c::d`), with the line on which it starts.
fn statements(source: &str) -> Vec<(usize, String)> {
    let mut statements = Vec::new();
    let mut open: Option<(usize, String)> = None;
    for (index, line) in source.lines().enumerate() {
        let code = line.split("//").next().unwrap_or("").trim();
        let starts_use = code.starts_with("use ") || (code.starts_with("pub") && code.contains(" use "));
        let (start, text) = match open.take() {
            Some((start, text)) => (start, text + code),
            None if starts_use => (index + 1, code.to_owned()),
            None => {
                statements.push((index + 1, code.to_owned()));
                continue;
            }
        };
        if text.ends_with(';') {
            statements.extend(expand(text.trim_end_matches(';')).into_iter().map(|path| (start, path)));
        } else {
            open = Some((start, text));
        }
    }
    statements
}

/// The paths that a tree of a `use` stands for.
fn expand(tree: &str) -> Vec<String> {
    let Some((prefix, rest)) = tree.split_once('{') else { return vec![tree.trim().to_owned()] };
    let mut depth = 0;
    let branches = rest.strip_suffix('}').unwrap_or(rest).split(|letter| {
        depth += match letter {
            '{' => 1,
            '}' => -1,
            _ => 0,
        };
        letter == ',' && depth == 0
    });
    let branches = branches.map(str::trim).filter(|branch| !branch.is_empty());
    branches.flat_map(|branch| expand(&format!("{}{branch}", prefix.trim()))).collect()
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap()
}

fn sources(folder: &Path, visit: &mut impl FnMut(&str, &str)) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, visit);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            visit(
                &path.strip_prefix(root()).unwrap().display().to_string(),
                &fs::read_to_string(&path).unwrap(),
            );
        }
    }
}

#[test]
fn no_crate_depends_on_what_it_must_not_know() {
    // The one that runs the tests, if it is not the one that built them.
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| env!("CARGO").into());
    let output = std::process::Command::new(cargo)
        .args(["metadata", "--format-version", "1", "--no-deps", "--offline"])
        .current_dir(root())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let members =
        metadata["packages"].as_array().unwrap().iter().map(|package| package["name"].as_str().unwrap());
    let unruled: Vec<_> = members.filter(|name| LAYERS.iter().all(|layer| layer.package != *name)).collect();
    assert!(unruled.is_empty(), "no rules for {unruled:?}: add them to LAYERS");
    let mut wrong = Vec::new();
    for layer in &LAYERS {
        let package =
            metadata["packages"].as_array().unwrap().iter().find(|package| package["name"] == layer.package);
        let dependencies = package.unwrap_or_else(|| panic!("no package {}", layer.package))["dependencies"]
            .as_array()
            .unwrap();
        let normal = dependencies.iter().filter(|dependency| dependency["kind"].is_null());
        wrong.extend(layer.wrong_dependencies(normal.map(|dependency| dependency["name"].as_str().unwrap())));
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn no_source_mentions_what_its_crate_must_not_know() {
    let mut wrong = Vec::new();
    for layer in &LAYERS {
        let mut files = 0;
        sources(&root().join(layer.folder).join("src"), &mut |file, source| {
            files += 1;
            wrong.extend(layer.wrong_lines(file, source));
        });
        assert!(files > 1, "{} has sources", layer.folder);
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn a_broken_rule_would_be_found() {
    let websockets = &LAYERS[1];
    assert_eq!(
        websockets.wrong_dependencies(["axum", "bytes", "lastcall-core", "lastcall-endpoints"]).len(),
        2
    );
    let source = "use bytes::Bytes;\nuse axum::Router;\n// axum::Router is not for us\n";
    let wrong = websockets.wrong_lines("src/x.rs", source);
    assert_eq!(wrong, ["src/x.rs:2: lastcall-websockets must not know axum::: use axum::Router"]);

    let endpoints = &LAYERS[2];
    let source = "use tokio::{\n    net::TcpStream,\n    signal::unix::{SignalKind, signal},\n};\n";
    assert_eq!(
        endpoints.wrong_lines("src/x.rs", source)[0],
        "src/x.rs:1: lastcall-endpoints must not know tokio::signal: use tokio::signal::unix::SignalKind"
    );
    assert_eq!(LAYERS[0].wrong_lines("src/x.rs", "use std::{io, net::TcpListener};\n").len(), 1);
}
