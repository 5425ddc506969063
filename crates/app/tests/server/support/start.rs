//! How a server, or a command, is started: the real binary, as its users run it.

use std::{
    ffi::{OsStr, OsString},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    process::Stdio,
};

use tempfile::TempDir;
use tokio::process::Command;

use super::{Server, folder, own_address, process::ProcessGroup, soon};

/// How to start a server.
pub(crate) struct Start {
    command: Command,
    dir: TempDir,
}

/// What a process printed and how it ended.
pub(crate) struct Ended {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// Has the processes that are started handle signals: under nohup, or as a background job of a script, this
/// one was started with some of them ignored, which is inherited.
fn handle_signals() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        for signal in [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT] {
            #[expect(unsafe_code, reason = "the system call has no safe form")]
            // SAFETY: the default action needs no handler.
            unsafe {
                libc::signal(signal, libc::SIG_DFL);
            }
        }
    });
}

impl Default for Start {
    fn default() -> Self {
        handle_signals();
        let dir = folder();
        let mut command = Command::new(env!("CARGO_BIN_EXE_lastcall"));
        // Nothing of the tester's own environment or folder reaches the server.
        command.env_clear().env("PORT", "0").env("LOG_FORMAT", "json").current_dir(dir.path());
        command.env("RUNTIME_DIR", dir.path().join("run"));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.process_group(0).kill_on_drop(true);
        Self { command, dir }
    }
}

impl Start {
    /// Runs this program instead.
    pub(crate) fn program(mut self, program: &Path) -> Self {
        self.command = copy_of(&self.command, program, &[]);
        self
    }

    pub(crate) fn env(mut self, name: &str, value: impl ToString) -> Self {
        self.command.env(name, value.to_string());
        self
    }

    pub(crate) fn env_remove(mut self, name: &str) -> Self {
        self.command.env_remove(name);
        self
    }

    pub(crate) fn args(mut self, args: &[&str]) -> Self {
        self.command.args(args);
        self
    }

    /// Adds arguments that need not be UTF-8.
    pub(crate) fn os_args(mut self, args: &[OsString]) -> Self {
        self.command.args(args);
        self
    }

    /// Sets a variable to what need not be UTF-8.
    pub(crate) fn os_env(mut self, name: &str, value: &OsStr) -> Self {
        self.command.env(name, value);
        self
    }

    /// Starts it in this folder.
    pub(crate) fn in_folder(mut self, folder: &Path) -> Self {
        self.command.current_dir(folder);
        self
    }

    /// Has this program start it.
    pub(crate) fn under(mut self, parent: &Path, args: &[&str]) -> Self {
        let args = [args, &[env!("CARGO_BIN_EXE_lastcall")]].concat();
        self.command = copy_of(&self.command, parent, &args);
        self
    }

    /// Returns the folder in which it is started.
    pub(crate) fn folder(&self) -> &Path {
        self.dir.path()
    }

    /// Has it listen on an address of this machine that nothing else uses, so that a port of it which is free
    /// stays so.
    pub(crate) fn own_address(self) -> Self {
        self.env("HOST", own_address())
    }

    /// Lets it have no more than this many open files.
    pub(crate) fn open_files(mut self, most: usize) -> Self {
        // By a shell, which becomes the server: a limit cannot be set between fork and exec without unsafe
        // code.
        let limit = format!("ulimit -n {most} && exec \"$0\" \"$@\"");
        let command =
            copy_of(&self.command, Path::new("sh"), &["-c", &limit, env!("CARGO_BIN_EXE_lastcall")]);
        self.command = command;
        self
    }

    /// Runs it as this user if the test is root, as root may start more processes than any limit says.
    pub(crate) fn user(mut self, id: u32) -> Self {
        if rustix::process::getuid().is_root() {
            // The folder of the build may be closed to others. By `cp`: a file that this process has open for
            // writing cannot be executed, and a process that another test starts meanwhile has it open, too.
            let program = self.dir.path().join("lastcall");
            let copied =
                std::process::Command::new("cp").arg(env!("CARGO_BIN_EXE_lastcall")).arg(&program).status();
            assert!(copied.unwrap().success());
            std::os::unix::fs::chown(self.dir.path(), Some(id), Some(id)).unwrap();
            self.command = copy_of(&self.command, &program, &[]);
            self.command.uid(id).gid(id);
        }
        self
    }

    /// Runs `setup` in a shell with namespaces of its own (unshare(1), by its options), which then becomes
    /// the server.
    pub(crate) fn in_namespaces(mut self, kinds: &[&str], setup: &str) -> Self {
        let script = format!("{setup} && exec \"$0\" \"$@\"");
        let shell = ["sh", "-c", &script, env!("CARGO_BIN_EXE_lastcall")];
        let arguments = [&["--map-root-user"], kinds, &shell].concat();
        self.command = copy_of(&self.command, Path::new("unshare"), &arguments);
        self
    }

    /// Has it told what it does at this socket, by a service manager that is this process and follows the
    /// main one.
    pub(crate) fn watched_by_this_process(self, socket: impl ToString) -> Self {
        self.env("NOTIFY_SOCKET", socket).env("MANAGERPID", std::process::id())
    }

    /// Returns the path of a file in the folder that the server starts in.
    pub(crate) fn path(&self, path: &str) -> PathBuf {
        self.dir.path().join(path)
    }

    /// Has it find this socket where systemd passes one: descriptor 3, and a variable with its own number.
    pub(crate) fn listen_on(mut self, listener: impl Into<OwnedFd>) -> Self {
        let activate = "exec 3<&0 </dev/null; LISTEN_FDS=1 LISTEN_PID=$$ exec \"$0\" \"$@\"";
        let program = env!("CARGO_BIN_EXE_lastcall");
        self.command = copy_of(&self.command, Path::new("sh"), &["-c", activate, program]);
        self.command.stdin(listener.into());
        self
    }

    /// Writes a file into the folder that the server starts in.
    pub(crate) fn file(self, path: &str, text: &str) -> Self {
        let path = self.dir.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
        self
    }

    /// Starts it and waits until it listens. There are no periodic notifications and no pings, which come in
    /// between at any moment, unless they are set in the environment.
    pub(crate) async fn serve(mut self) -> Server {
        for setting in ["NOTIFICATION_INTERVAL", "PING_INTERVAL"] {
            if self.command.as_std().get_envs().all(|(name, _)| name != setting) {
                self.command.env(setting, "0");
            }
        }
        self.command.stderr(Stdio::inherit());
        Server::listening(self.command.spawn().unwrap(), self.dir).await
    }

    /// Returns the command that starts it, and the folder in which it does.
    pub(crate) fn into_command(self) -> (Command, TempDir) {
        (self.command, self.dir)
    }

    /// Runs it to its end, which has to come by itself.
    pub(crate) async fn end(mut self) -> Ended {
        let child = self.command.spawn().unwrap();
        let _processes = ProcessGroup::of(&child);
        let output = soon("the end of the process", child.wait_with_output()).await.unwrap();
        Ended {
            code: output.status.code(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

/// The same command, but of another program, with other arguments first.
fn copy_of(command: &Command, program: &Path, first: &[&str]) -> Command {
    let original = command.as_std();
    let mut copy = Command::new(program);
    copy.args(first).args(original.get_args()).env_clear();
    for (name, value) in original.get_envs() {
        copy.env(name, value.unwrap_or_default());
    }
    copy.current_dir(original.get_current_dir().unwrap());
    copy.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    copy.process_group(0).kill_on_drop(true);
    copy
}
