//! The real binary, as its users run it.

use std::{
    net::{SocketAddr, TcpListener},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    process::Stdio,
};

use rustix::process::{Pid, WaitOptions, kill_process, waitpid};
use serde_json::Value;
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    process::{Child, Command},
    task::spawn_blocking,
};
use tokio_tungstenite::tungstenite::{self, http::Response};

use super::{
    Answer, Client, Signal,
    client::{dial, refusal_of},
    folder,
    log::{Log, message},
    own_address,
    process::ProcessGroup,
    soon,
};

/// How to start a server.
pub(crate) struct Start {
    command: Command,
    dir: TempDir,
}

/// A server that runs: a process of its own, in a folder of its own.
pub(crate) struct Server {
    child: Child,
    /// The process that serves, once another one has taken over.
    serving: Option<Pid>,
    /// Whether the process that was started has ended since: a service manager follows the new ones.
    followed: bool,
    /// Both, and what they have started.
    _processes: ProcessGroup,
    pub(crate) address: SocketAddr,
    pub(crate) dir: TempDir,
    log: Log,
}

/// What a process printed and how it ended.
pub(crate) struct Ended {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// Has the processes that are started handle signals: under nohup, or as a background job of a script, this one was
/// started with some of them ignored, which is inherited.
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

    /// Has this program start it.
    pub(crate) fn under(mut self, parent: &Path, args: &[&str]) -> Self {
        let args = [args, &[env!("CARGO_BIN_EXE_lastcall")]].concat();
        self.command = copy_of(&self.command, parent, &args);
        self
    }

    /// The folder in which it is started.
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
        // By a shell, which becomes the server: a limit cannot be set between fork and exec without unsafe code.
        let limit = format!("ulimit -n {most} && exec \"$0\" \"$@\"");
        let command =
            copy_of(&self.command, Path::new("sh"), &["-c", &limit, env!("CARGO_BIN_EXE_lastcall")]);
        self.command = command;
        self
    }

    /// Runs it as this user, where the test is root, who may start more processes than any limit says.
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

    /// Runs `setup` in a shell with namespaces of its own (unshare(1), by its options), which then becomes the server.
    pub(crate) fn in_namespaces(mut self, kinds: &[&str], setup: &str) -> Self {
        let script = format!("{setup} && exec \"$0\" \"$@\"");
        let shell = ["sh", "-c", &script, env!("CARGO_BIN_EXE_lastcall")];
        let arguments = [&["--map-root-user"], kinds, &shell].concat();
        self.command = copy_of(&self.command, Path::new("unshare"), &arguments);
        self
    }

    /// The path of a file in the folder that the server starts in.
    pub(crate) fn path(&self, path: &str) -> PathBuf {
        self.dir.path().join(path)
    }

    /// Has it find this socket where systemd passes one: descriptor 3, and a variable with its own number.
    pub(crate) fn listen_on(mut self, listener: TcpListener) -> Self {
        let activate = "exec 3<&0 </dev/null; LISTEN_FDS=1 LISTEN_PID=$$ exec \"$0\" \"$@\"";
        let program = env!("CARGO_BIN_EXE_lastcall");
        self.command = copy_of(&self.command, Path::new("sh"), &["-c", activate, program]);
        self.command.stdin(OwnedFd::from(listener));
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
        let mut child = self.command.spawn().unwrap();
        let processes = ProcessGroup::of(&child);
        let log = Log::read(child.stdout.take().unwrap());
        let listening = log.line(|line| message(line).starts_with("listening on http://")).await;
        let address = message(&listening).trim_start_matches("listening on http://").parse().unwrap();
        Server { child, serving: None, followed: false, _processes: processes, address, dir: self.dir, log }
    }

    /// The command that starts it, and the folder in which it does.
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

/// Processes that outlive the one that started them become children of this one, which can wait for them.
pub(crate) fn adopt_orphans() {
    rustix::process::set_child_subreaper(Some(rustix::process::getpid())).unwrap();
}

/// Waits for a process that is no child of tokio's; its exit code.
async fn wait_for(pid: Pid) -> i32 {
    let ended = spawn_blocking(move || waitpid(Some(pid), WaitOptions::empty()).unwrap());
    let (_, status) = soon("the end of a process", ended).await.unwrap().unwrap();
    status.exit_status().expect("it was not killed")
}

impl Server {
    /// The process that serves.
    pub(crate) fn pid(&self) -> Pid {
        self.serving.unwrap_or_else(|| self.started_pid())
    }

    /// The process that was started.
    pub(crate) fn started_pid(&self) -> Pid {
        Pid::from_raw(self.child.id().expect("it runs").cast_signed()).unwrap()
    }

    /// The process to which an operator sends signals.
    fn main_pid(&self) -> Pid {
        if self.followed { self.pid() } else { self.started_pid() }
    }

    /// The process of the server that was started, where another program started that.
    pub(crate) fn first_server(&self) -> Pid {
        let mut pids = vec![self.started_pid().as_raw_nonzero().get()];
        loop {
            let pid = pids.pop().expect("one of its descendants is a server");
            let program = std::fs::read_link(format!("/proc/{pid}/exe")).unwrap();
            if program == Path::new(env!("CARGO_BIN_EXE_lastcall")) {
                return Pid::from_raw(pid).unwrap();
            }
            let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
            pids.extend(children.split_whitespace().map(|pid| pid.parse::<i32>().unwrap()));
        }
    }

    /// Runs a subcommand against this server.
    pub(crate) async fn run(&self, subcommand: &str) -> Ended {
        self.command(subcommand).end().await
    }

    /// A subcommand against this server, to be run.
    pub(crate) fn command(&self, subcommand: &str) -> Start {
        let (host, port) = (self.address.ip().to_string(), self.address.port().to_string());
        Start::default()
            .args(&[subcommand, "--host", &host, "--port", &port])
            .env("RUNTIME_DIR", self.dir.path().join("run").display())
    }

    /// The path of the control socket.
    pub(crate) fn control_socket(&self) -> std::path::PathBuf {
        self.dir.path().join("run").join(format!("lastcall-{}.sock", self.address))
    }

    /// `lastcall upgrade`: a new process takes over. What the command says.
    pub(crate) async fn upgrade(&mut self) -> String {
        let ended = self.run("upgrade").await;
        assert_eq!(ended.code, Some(0), "{}{}", ended.stdout, ended.stderr);
        let line = ended.stdout.lines().find(|line| line.contains(" has taken over "));
        let pid = line.and_then(|line| line.split(' ').nth(1)).and_then(|pid| pid.parse().ok());
        self.serving = Pid::from_raw(pid.unwrap_or_else(|| panic!("{}", ended.stdout)));
        ended.stdout
    }

    /// Another process has taken over, and the old one ends with code 0: a service manager follows it.
    pub(crate) async fn followed_by(&mut self, pid: i32) {
        let code = match self.serving {
            None => soon("the end of the old process", self.child.wait()).await.unwrap().code(),
            Some(old) => Some(wait_for(old).await),
        };
        (self.serving, self.followed) = (Pid::from_raw(pid), true);
        assert_eq!(code, Some(0));
    }

    /// `lastcall upgrade`, which must fail: what it says.
    pub(crate) async fn failed_upgrade(&self) -> String {
        let ended = self.run("upgrade").await;
        assert_eq!(ended.code, Some(1), "{}{}", ended.stdout, ended.stderr);
        ended.stderr
    }

    pub(crate) async fn start() -> Self {
        Start::default().serve().await
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub(crate) fn ws_url(&self) -> String {
        format!("ws://{}/ws", self.address)
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(self.main_pid(), signal).unwrap();
    }

    /// Files that the process has open.
    pub(crate) fn open_files(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.pid().as_raw_nonzero())).unwrap().count()
    }

    /// Memory that the process has, in bytes.
    pub(crate) fn memory(&self) -> usize {
        let status = format!("/proc/{}/status", self.pid().as_raw_nonzero());
        let status = std::fs::read_to_string(status).unwrap();
        let resident =
            status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB"));
        resident.unwrap().trim().parse::<usize>().unwrap() * 1024
    }

    /// Its log, also while an upgrade is awaited.
    pub(crate) fn log(&self) -> Log {
        self.log.clone()
    }

    /// The first log line, past or to come, whose message starts so.
    pub(crate) async fn logged(&self, start: &str) -> Value {
        self.log.line(|line| message(line).starts_with(start)).await
    }

    /// All log lines so far whose message starts so.
    pub(crate) fn log_lines(&self, start: &str) -> Vec<Value> {
        self.log.lines().into_iter().filter(|line| message(line).starts_with(start)).collect()
    }

    /// Waits until the process ends and its log is complete; its exit code.
    pub(crate) async fn exit_code(&mut self) -> i32 {
        let code = match self.serving.take() {
            Some(serving) if self.followed => wait_for(serving).await,
            _ => {
                let status = soon("the end of the server", self.child.wait()).await.unwrap();
                status.code().expect("it was not killed")
            }
        };
        self.log.ended().await;
        code
    }

    /// Kills the process that was started, before any upgrade; its port is free then.
    pub(crate) async fn kill(mut self) {
        assert!(self.serving.is_none(), "another process serves");
        soon("the end of the server", self.child.kill()).await.unwrap();
    }

    /// Waits until the log is complete: no process writes it any more.
    pub(crate) async fn log_ended(&self) {
        self.log.ended().await;
    }

    pub(crate) async fn client(&self) -> Client {
        let (mut client, _) = self.dial(&[]).await.expect("to be let in");
        let welcome = client.next().await;
        assert_eq!(welcome["type"], "welcome", "welcome comes first");
        client.id = welcome["client"].as_str().unwrap().to_owned();
        client
    }

    pub(crate) async fn clients(&self, count: usize) -> Vec<Client> {
        let mut clients = Vec::new();
        for _ in 0..count {
            clients.push(self.client().await);
        }
        clients
    }

    /// Shakes hands, with these headers too.
    pub(crate) async fn dial(
        &self,
        headers: &[(&'static str, &str)],
    ) -> Result<(Client, Response<Option<Vec<u8>>>), tungstenite::Error> {
        dial(&self.ws_url(), headers).await
    }

    /// How a handshake was refused: the status, `Retry-After`, and the body.
    pub(crate) async fn refusal(&self, headers: &[(&'static str, &str)]) -> Answer {
        refusal_of(self.dial(headers).await)
    }

    /// A client that shook hands and then is just a TCP connection, with a small receive buffer.
    pub(crate) async fn raw_client(&self) -> TcpStream {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4096).unwrap();
        let mut stream = socket.connect(self.address).await.unwrap();
        let request = format!(
            "GET /ws HTTP/1.1\r\nHost: {}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
            self.address
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(soon("the answer to a handshake", stream.read_u8()).await.unwrap());
        }
        // RFC 6455 section 1.3 has this key and its answer.
        assert!(head.windows(28).any(|bytes| bytes == b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="));
        stream
    }
}
