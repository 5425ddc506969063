//! Programs that a test writes, to have a server run them.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use tempfile::TempDir;

/// Returns a folder in which programs can be run: beside those that cargo built, as `/tmp` may be mounted
/// `noexec`; in `/tmp` if another user has built them.
pub(crate) fn folder_for_programs() -> TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).or_else(|_| tempfile::tempdir()).unwrap()
}

/// Puts a copy of the server's program at this path, in the place of whatever is there.
pub(crate) fn install_server(at: &Path) {
    install(Path::new(env!("CARGO_BIN_EXE_lastcall")), at);
}

/// Puts a shell script at this path, in the place of whatever is there.
pub(crate) fn install_script(at: &Path, script: &str) {
    let text: PathBuf = at.with_extension("text");
    fs::write(&text, format!("#!/bin/sh\n{script}\n")).unwrap();
    install(&text, at);
    fs::remove_file(&text).unwrap();
}

/// By another process, which starts none itself. Were the file open for writing in this one, then a process
/// that another test starts at that moment would have it open, too, until its own execve(2); and running
/// the program meanwhile fails with ETXTBSY.
fn install(from: &Path, at: &Path) {
    if at.exists() {
        fs::remove_file(at).unwrap();
    }
    let status = Command::new("install").args(["-m", "755"]).args([from, at]).status();
    let status = status.expect("the tests need `install`, which coreutils and BusyBox have");
    assert!(status.success(), "install {} {}: {status}", from.display(), at.display());
}

/// A Python that has this package, or `None` if none is installed. Where all programs have to be, that is a
/// failure.
pub(crate) fn python_with(package: &str) -> Option<PathBuf> {
    // A package of the system is for the system's Python, which may not be the first on the PATH.
    let candidates =
        [installed("python3"), Some("/usr/bin/python3".into()).filter(|path: &PathBuf| path.is_file())];
    let import = ["-c", &format!("import {package}.version")];
    let has_it = |python: &PathBuf| {
        let output = Command::new(python).args(import).current_dir("/").output();
        output.is_ok_and(|output| output.status.success())
    };
    let found = candidates.into_iter().flatten().find(has_it);
    if found.is_none() {
        assert!(std::env::var_os("CI").is_none(), "no Python has the package {package}");
        eprintln!("no Python has the package {package}: not tested with it");
    }
    found
}

/// The path of a program of the system, or `None` if it is not installed. Where all of them have to be, as in
/// CI, that is a failure.
pub(crate) fn installed(name: &str) -> Option<PathBuf> {
    let found = find(name);
    assert!(found.is_some() || std::env::var_os("CI").is_none(), "{name} is not installed");
    found
}

/// Returns the path of a program of the system that need not be installed anywhere.
pub(crate) fn find(name: &str) -> Option<PathBuf> {
    let folders = std::env::var_os("PATH").unwrap_or_default();
    // Programs of the administrator, which a user's PATH does not have on Debian.
    let folders = std::env::split_paths(&folders).chain(["/usr/local/sbin".into(), "/usr/sbin".into()]);
    let found = folders.map(|folder| folder.join(name)).find(|path| path.is_file());
    if found.is_none() {
        eprintln!("{name} is not installed: not tested with it");
    }
    found
}
