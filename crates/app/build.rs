//! Tells the program which commit it is built from, in the variable `COMMIT`: its first digits, with `-dirty`
//! if the sources differ from it. Without a git repository, as in a source archive, there is no such
//! variable; SOURCE_COMMIT can say it there.

use std::{env, fs, iter, path::Path, process::Command};

/// Where git notes which commit is checked out. A file that is not there would be taken for changed each
/// time.
const STATE: [&str; 3] = ["HEAD", "logs/HEAD", "packed-refs"];

fn main() {
    println!("cargo::rerun-if-env-changed=SOURCE_COMMIT");
    println!("cargo::rerun-if-changed=build.rs");
    let given = env::var("SOURCE_COMMIT").ok().filter(|commit| is_commit(commit));
    if let Some(commit) = given.or_else(commit) {
        println!("cargo::rustc-env=COMMIT={commit}");
    }
}

fn is_commit(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= 64
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b))
}

/// Returns the commit that is checked out here.
fn commit() -> Option<String> {
    let package = env::var_os("CARGO_MANIFEST_DIR")?;
    let root = Path::new(&package).ancestors().nth(2)?;
    // The archive may have been unpacked within another repository, whose commit says nothing of this
    // program.
    let top = git(root, &["rev-parse", "--show-toplevel"])?;
    if Path::new(&top).canonicalize().ok()? != root.canonicalize().ok()? {
        return None;
    }
    let commit = git(root, &["rev-parse", "--short=12", "HEAD"])?;
    let branch = git(root, &["symbolic-ref", "--quiet", "HEAD"]);
    for file in STATE.into_iter().chain(branch.as_deref()) {
        if let Some(path) = git(root, &["rev-parse", "--git-path", file]).map(|path| root.join(path))
            && path.exists()
        {
            println!("cargo::rerun-if-changed={}", path.display());
        }
    }
    let sources = sources(root)?;
    for source in &sources {
        println!("cargo::rerun-if-changed={}", root.join(source).display());
    }
    let mut status = vec!["--no-optional-locks", "status", "--porcelain", "--untracked-files=no", "--"];
    status.extend(sources.iter().map(String::as_str));
    let changes = git(root, &status)?;
    Some(if changes.is_empty() { commit } else { format!("{commit}-dirty") })
}

/// Returns what the program is made from, relative to the root of the repository: this crate, and those that
/// the workspace has as dependencies.
fn sources(root: &Path) -> Option<Vec<String>> {
    let manifest = fs::read_to_string(root.join("Cargo.toml")).ok()?;
    let paths = manifest.lines().filter_map(|line| line.split_once("path = \"crates/")?.1.split('"').next());
    let mut sources =
        ["Cargo.lock", "Cargo.toml", "templates", "crates/app/build.rs"].map(String::from).to_vec();
    for folder in iter::once("app").chain(paths) {
        sources.extend(["Cargo.toml", "src"].map(|part| format!("crates/{folder}/{part}")));
    }
    Some(sources)
}

/// Returns what git prints, if it succeeds.
fn git(root: &Path, arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").arg("-C").arg(root).args(arguments).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim().to_owned())
}
