//! The commit that the build script finds, in a repository and elsewhere.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap()
}

/// Returns the folders of all crates of the workspace.
fn crates() -> Vec<String> {
    let folders = fs::read_dir(workspace().join("crates")).unwrap();
    folders.map(|folder| folder.unwrap().file_name().into_string().unwrap()).collect()
}

/// The build script, compiled, in a folder that has the layout of the repository.
struct Tree {
    dir: tempfile::TempDir,
    script: PathBuf,
}

impl Tree {
    fn new() -> Self {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let script = dir.path().join("script");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("build.rs");
        let rustc = env::var_os("RUSTC").unwrap_or("rustc".into());
        let compiled =
            Command::new(rustc).args(["--edition", "2024", "-o"]).arg(&script).arg(source).status();
        assert!(compiled.unwrap().success());
        let tree = Self { dir, script };
        for crate_of_ours in crates() {
            let folder = tree.root().join("crates").join(crate_of_ours);
            fs::create_dir_all(folder.join("src")).unwrap();
            fs::write(folder.join("Cargo.toml"), "[package]\n").unwrap();
            fs::write(folder.join("src/lib.rs"), "fn main() {}").unwrap();
        }
        fs::create_dir(tree.root().join("templates")).unwrap();
        fs::copy(workspace().join("Cargo.toml"), tree.root().join("Cargo.toml")).unwrap();
        for file in ["Cargo.lock", "README.md", "templates/index.html", "crates/app/build.rs"] {
            fs::write(tree.root().join(file), "").unwrap();
        }
        tree
    }

    fn root(&self) -> PathBuf {
        self.dir.path().join("outer/lastcall")
    }

    fn git(&self, at: &Path, arguments: &[&str]) -> String {
        let identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"];
        let output = Command::new("git").arg("-C").arg(at).args(identity).args(arguments).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    /// Returns what the build script says to cargo.
    fn output(&self, environment: &[(&str, &str)]) -> String {
        let mut command = Command::new(&self.script);
        command.env_clear().env("PATH", env::var_os("PATH").unwrap_or_default());
        // No repository above the folder of this test counts.
        command.env("GIT_CEILING_DIRECTORIES", self.dir.path());
        command.env("CARGO_MANIFEST_DIR", self.root().join("crates/app"));
        let output = command.envs(environment.iter().copied()).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Returns the commit that a build in this tree would have.
    fn commit(&self, environment: &[(&str, &str)]) -> Option<String> {
        let output = self.output(environment);
        output.lines().find_map(|line| line.strip_prefix("cargo::rustc-env=COMMIT=")).map(str::to_owned)
    }
}

#[test]
fn an_archive_is_built_without_a_commit_or_with_the_one_that_is_given() {
    let tree = Tree::new();
    assert_eq!(tree.commit(&[]), None);
    assert_eq!(tree.commit(&[("SOURCE_COMMIT", "0123456789ab")]).as_deref(), Some("0123456789ab"));
    for no_commit in ["", "a b", "a\nb"] {
        assert_eq!(tree.commit(&[("SOURCE_COMMIT", no_commit)]), None, "{no_commit:?}");
    }
    assert_eq!(tree.commit(&[("PATH", "")]), None, "there is no git");
}

#[test]
fn a_repository_tells_its_commit_and_whether_the_sources_differ_from_it() {
    let tree = Tree::new();
    let (root, outer) = (tree.root(), tree.dir.path().join("outer"));
    // An archive that was unpacked in another repository.
    for arguments in [&["init", "-q"][..], &["commit", "-q", "--allow-empty", "-m", "another"]] {
        tree.git(&outer, arguments);
    }
    assert_eq!(tree.commit(&[]), None);
    for arguments in [&["init", "-q"][..], &["add", "."], &["commit", "-q", "-m", "first"]] {
        tree.git(&root, arguments);
    }
    let first = tree.git(&root, &["rev-parse", "HEAD"])[..12].to_owned();
    assert_eq!(tree.commit(&[]), Some(first.clone()));
    let mut parts = ["Cargo.toml", "Cargo.lock", "templates/index.html", "crates/app/build.rs"]
        .map(String::from)
        .to_vec();
    for name in crates().iter().filter(|name| *name != "bench") {
        parts.extend(["Cargo.toml", "src/lib.rs"].map(|file| format!("crates/{name}/{file}")));
    }
    for part in parts {
        let path = root.join(&part);
        let is_watched =
            |line: &str| line.strip_prefix("cargo::rerun-if-changed=").is_some_and(|at| path.starts_with(at));
        assert!(tree.output(&[]).lines().any(is_watched), "cargo looks at {part}");
        fs::write(root.join(&part), "changed").unwrap();
        assert_eq!(tree.commit(&[]), Some(format!("{first}-dirty")), "{part}");
        tree.git(&root, &["checkout", "-q", "--", &part]);
    }
    for other in ["README.md", "crates/bench/src/lib.rs"] {
        fs::write(root.join(other), "changed").unwrap();
        assert_eq!(tree.commit(&[]), Some(first.clone()), "{other} is no part of the program");
    }
    tree.git(&root, &["commit", "-q", "-a", "-m", "second"]);
    let second = tree.commit(&[]).unwrap();
    assert!(second != first && !second.contains("dirty"), "{second}");
}
