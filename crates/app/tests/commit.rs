//! The commit that the build script finds, in a repository and elsewhere.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

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
        fs::create_dir_all(tree.root().join("crates/app/src")).unwrap();
        fs::write(tree.root().join("crates/app/src/main.rs"), "fn main() {}").unwrap();
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

    /// Returns the commit that a build in this tree would have.
    fn commit(&self, environment: &[(&str, &str)]) -> Option<String> {
        let mut command = Command::new(&self.script);
        command.env_clear().env("PATH", env::var_os("PATH").unwrap_or_default());
        // No repository above the folder of this test counts.
        command.env("GIT_CEILING_DIRECTORIES", self.dir.path());
        command.env("CARGO_MANIFEST_DIR", self.root().join("crates/app"));
        let output = command.envs(environment.iter().copied()).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        let text = String::from_utf8(output.stdout).unwrap();
        text.lines().find_map(|line| line.strip_prefix("cargo::rustc-env=COMMIT=")).map(str::to_owned)
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
    fs::write(root.join("crates/app/src/main.rs"), "fn main() { loop {} }").unwrap();
    assert_eq!(tree.commit(&[]), Some(format!("{first}-dirty")));
    tree.git(&root, &["commit", "-q", "-a", "-m", "second"]);
    let second = tree.commit(&[]).unwrap();
    assert!(second != first && !second.contains("dirty"), "{second}");
}
