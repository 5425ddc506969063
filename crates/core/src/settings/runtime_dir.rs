//! Where a process keeps what only lives as long as it does.

use std::{env, ffi::OsStr, path::PathBuf};

/// The folder of the control socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RuntimeDir {
    /// A service manager made it for this service alone (systemd.exec(5), `RuntimeDirectory=`). That it cannot be
    /// used is an error.
    Service(PathBuf),
    /// It was set. That it cannot be used is an error.
    Chosen(PathBuf),
    /// It was not set. Without it, there is no control socket.
    Default(PathBuf),
}

impl RuntimeDir {
    /// Returns the folder.
    pub fn path(&self) -> &PathBuf {
        match self {
            Self::Service(path) | Self::Chosen(path) | Self::Default(path) => path,
        }
    }

    /// XDG_RUNTIME_DIR (XDG Base Directory Specification) is the user's own and goes with the session; where
    /// there is none, as for most services, a folder that carries the user's number stands in.
    pub(super) fn default(xdg_runtime_dir: Option<&OsStr>) -> Self {
        Self::Default(match xdg_runtime_dir.map(PathBuf::from).filter(|path| path.is_absolute()) {
            Some(path) => path.join("lastcall"),
            None => env::temp_dir().join(format!("lastcall-{}", rustix::process::geteuid().as_raw())),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_choice_it_is_a_folder_of_the_users_own() {
        let of_session = RuntimeDir::default(Some(OsStr::new("/run/user/7")));
        assert_eq!(of_session, RuntimeDir::Default("/run/user/7/lastcall".into()));
        let stand_in = RuntimeDir::default(Some(OsStr::new("not/absolute")));
        assert_eq!(stand_in, RuntimeDir::default(None));
        let name = stand_in.path().file_name().unwrap().to_str().unwrap().to_owned();
        assert_eq!(name, format!("lastcall-{}", rustix::process::geteuid().as_raw()));
    }
}
