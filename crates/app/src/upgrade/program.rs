//! The way in which this process was started, so that a new process can be started in the same way.

use std::{
    env,
    ffi::{OsStr, OsString},
    fs::{self, Metadata},
    os::unix::{ffi::OsStrExt, fs::MetadataExt},
    path::{Component, Path, PathBuf},
    process::Command,
};

use anyhow::{Context, bail};
use rustix::fs::{Access, access};

/// The way in which the file of the program is found.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Lookup {
    /// At this absolute path. Symbolic links in it are followed anew each time: they lead to the current
    /// release.
    Path(PathBuf),
    /// By this name, in the folders of PATH, as a shell does.
    Name(OsString),
}

/// The program, its arguments, and the working directory that this process was started with.
#[derive(Debug, Clone)]
pub(crate) struct Program {
    lookup: Lookup,
    /// The name by which the process was started: a new process gets the same one.
    name: OsString,
    arguments: Vec<OsString>,
    working_dir: PathBuf,
}

impl Program {
    /// Returns the program of this process. To be called early: once the file is replaced, the system does
    /// not know its path any more.
    ///
    /// # Errors
    /// When /proc is not mounted, or the working directory is gone.
    pub(crate) fn current() -> anyhow::Result<Self> {
        let executable =
            env::current_exe().context("cannot tell which program this is: is /proc mounted?")?;
        let working_dir = working_dir().context("the working directory is gone")?;
        let mut arguments = env::args_os();
        let name = arguments.next().unwrap_or_default();
        let lookup = lookup(&name, &executable, &working_dir);
        Ok(Self { lookup, name, arguments: arguments.collect(), working_dir })
    }

    /// Returns the file that a new process would run now.
    ///
    /// # Errors
    /// When the name is in no folder of PATH.
    pub(crate) fn path(&self) -> anyhow::Result<PathBuf> {
        match &self.lookup {
            Lookup::Path(path) => Ok(path.clone()),
            Lookup::Name(name) => {
                search_path(name).with_context(|| format!("there is no program {} in PATH", name.display()))
            }
        }
    }

    /// Returns a command that starts `path` as this process was started: with the same arguments, in the
    /// working directory that has the same path now.
    ///
    /// # Errors
    /// When the working directory is gone.
    pub(crate) fn command(&self, path: &Path) -> anyhow::Result<Command> {
        use std::os::unix::process::CommandExt;

        let dir = &self.working_dir;
        if !dir.is_dir() {
            bail!(
                "the working directory {} is gone, and with it the settings files there: make it again, or restart \
                 the server elsewhere",
                dir.display()
            );
        }
        let mut command = Command::new(path);
        // PWD is how the new process knows the path, which may have symbolic links in it.
        command.arg0(&self.name).args(&self.arguments).current_dir(dir).env("PWD", dir);
        Ok(command)
    }
}

/// Returns the path of the working directory: as a shell sets it in PWD, with its symbolic links, if that is
/// true.
///
/// # Errors
/// When the working directory is gone.
pub(crate) fn working_dir() -> std::io::Result<PathBuf> {
    let actual = env::current_dir()?;
    let said = env::var_os("PWD").map(PathBuf::from).filter(|said| {
        // POSIX, "Environment Variables", PWD: absolute, and without . or .. in it.
        said.is_absolute()
            && said.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)))
            && is_same_file(said, &actual)
    });
    Ok(said.unwrap_or(actual))
}

fn lookup(name: &OsStr, executable: &Path, working_dir: &Path) -> Lookup {
    let by_name = if name.as_bytes().contains(&b'/') {
        // Joined part by part: `./` is left out.
        Some(Lookup::Path(working_dir.join(name).components().collect()))
    } else if search_path(name).is_some_and(|path| is_same_file(&path, executable)) {
        Some(Lookup::Name(name.to_owned()))
    } else {
        None
    };
    match by_name {
        Some(Lookup::Path(path)) if !is_same_file(&path, executable) => {
            Lookup::Path(strip_deleted_suffix(executable))
        }
        Some(lookup) => lookup,
        // The name was made up, as that of a login shell is.
        None => Lookup::Path(strip_deleted_suffix(executable)),
    }
}

/// Returns the first executable file of this name in PATH.
fn search_path(name: &OsStr) -> Option<PathBuf> {
    if name.is_empty() {
        return None;
    }
    let folders = env::var_os("PATH")?;
    env::split_paths(&folders)
        .map(|folder| folder.join(name))
        .find(|path| path.is_file() && access(path, Access::EXEC_OK).is_ok())
}

/// Removes the mark that the kernel adds to the path of a file that was removed: proc(5), /proc/pid/exe.
fn strip_deleted_suffix(executable: &Path) -> PathBuf {
    let bytes = executable.as_os_str().as_bytes();
    match bytes.strip_suffix(b" (deleted)") {
        Some(path) if !executable.exists() => PathBuf::from(OsStr::from_bytes(path)),
        _ => executable.to_owned(),
    }
}

/// Returns true if both paths lead to the same file.
fn is_same_file(one: &Path, other: &Path) -> bool {
    let id = |file: Metadata| (file.dev(), file.ino());
    matches!((fs::metadata(one).map(id), fs::metadata(other).map(id)), (Ok(one), Ok(other)) if one == other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_keeps_its_links_and_a_made_up_name_is_not_believed() {
        let folder = tempfile::tempdir().unwrap();
        let (release, link) = (folder.path().join("one"), folder.path().join("current"));
        fs::create_dir(&release).unwrap();
        let program = release.join("server");
        fs::write(&program, "").unwrap();
        std::os::unix::fs::symlink(&release, &link).unwrap();
        let found = |name: &str| lookup(OsStr::new(name), &program, &link);
        assert_eq!(found("./server"), Lookup::Path(link.join("server")));
        assert_eq!(found(link.join("server").to_str().unwrap()), Lookup::Path(link.join("server")));
        for made_up in ["server", "-server", "", "./other", "/bin/sh"] {
            assert_eq!(found(made_up), Lookup::Path(program.clone()), "{made_up:?}");
        }
        fs::remove_file(&program).unwrap();
        let marked = PathBuf::from(format!("{} (deleted)", program.display()));
        assert_eq!(strip_deleted_suffix(&marked), program);
    }

    #[test]
    fn a_name_is_looked_up_in_the_path_as_a_shell_does() {
        let shell = search_path(OsStr::new("sh")).unwrap();
        assert!(shell.is_absolute() && shell.is_file(), "{}", shell.display());
        assert_eq!(lookup(OsStr::new("sh"), &shell, Path::new("/")), Lookup::Name("sh".into()));
        assert_eq!(search_path(OsStr::new("no such program")), None);
        // A folder is no program.
        assert_eq!(search_path(OsStr::new("")), None);
    }
}
