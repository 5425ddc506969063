//! A server that runs.

use std::{net::SocketAddr, path::Path};

use rustix::process::{Pid, WaitOptions, kill_process, waitpid};
use serde_json::Value;
use tempfile::TempDir;
use tokio::{process::Child, task::spawn_blocking};

use super::{
    Ended, Signal, Start,
    log::{Log, message},
    process::ProcessGroup,
    soon, until,
};

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
    /// Returns the server of a process that was just started, once it listens.
    pub(super) async fn listening(mut child: Child, dir: TempDir) -> Self {
        let processes = ProcessGroup::of(&child);
        let log = Log::read(child.stdout.take().unwrap());
        let listening = log.line(|line| message(line).starts_with("listening on http://")).await;
        let address = message(&listening).trim_start_matches("listening on http://").parse().unwrap();
        Self { child, serving: None, followed: false, _processes: processes, address, dir, log }
    }

    /// Returns the process that serves.
    pub(crate) fn pid(&self) -> Pid {
        self.serving.unwrap_or_else(|| self.started_pid())
    }

    /// Returns the process that was started.
    pub(crate) fn started_pid(&self) -> Pid {
        Pid::from_raw(self.child.id().expect("it runs").cast_signed()).unwrap()
    }

    /// Returns the process to which an operator sends signals.
    fn main_pid(&self) -> Pid {
        if self.followed { self.pid() } else { self.started_pid() }
    }

    /// Returns the process of the server that was started, where another program started that.
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

    /// Returns a subcommand against this server, to be run.
    pub(crate) fn command(&self, subcommand: &str) -> Start {
        let (host, port) = (self.address.ip().to_string(), self.address.port().to_string());
        Start::default()
            .args(&[subcommand, "--host", &host, "--port", &port])
            .env("RUNTIME_DIR", self.dir.path().join("run").display())
    }

    /// Returns the path of the control socket.
    pub(crate) fn control_socket(&self) -> std::path::PathBuf {
        self.dir.path().join("run").join(format!("lastcall-{}.sock", self.address))
    }

    /// `lastcall upgrade`: a new process takes over. What the command says.
    pub(crate) async fn upgrade(&mut self) -> String {
        let ended = self.run("upgrade").await;
        assert_eq!(ended.code, Some(0), "{}{}", ended.stdout, ended.stderr);
        self.serves_as(&ended.stdout);
        ended.stdout
    }

    /// Another process serves, as `lastcall upgrade` has said.
    pub(crate) fn serves_as(&mut self, said: &str) {
        let line = said.lines().find(|line| line.contains(" has taken over "));
        let pid = line.and_then(|line| line.split(' ').nth(1)).and_then(|pid| pid.parse().ok());
        self.serving = Pid::from_raw(pid.unwrap_or_else(|| panic!("{said}")));
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

    /// Waits until the process has no more than `most` files open: sockets are closed a moment after their
    /// connections have ended.
    pub(crate) async fn open_files_at_most(&self, most: usize) {
        until(&format!("at most {most} open files"), async || self.open_files() <= most).await;
    }

    /// Memory that the process that serves has, in bytes.
    pub(crate) fn memory(&self) -> usize {
        Self::memory_of(self.pid())
    }

    /// Memory that a process has, in bytes.
    pub(crate) fn memory_of(pid: Pid) -> usize {
        let status = format!("/proc/{}/status", pid.as_raw_nonzero());
        let status = std::fs::read_to_string(status).unwrap();
        let resident =
            status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB"));
        resident.unwrap().trim().parse::<usize>().unwrap() * 1024
    }

    /// Its log, also while an upgrade is awaited.
    pub(crate) fn log(&self) -> Log {
        self.log.clone()
    }

    /// Returns the first log line, past or to come, whose message starts so.
    pub(crate) async fn logged(&self, start: &str) -> Value {
        self.log.line(|line| message(line).starts_with(start)).await
    }

    /// Returns all log lines so far whose message starts so.
    pub(crate) fn log_lines(&self, start: &str) -> Vec<Value> {
        self.log.lines().into_iter().filter(|line| message(line).starts_with(start)).collect()
    }

    /// Returns the phases that the process went through so far, in order.
    pub(crate) fn phases(&self) -> Vec<String> {
        let to = |line: &Value| line["fields"]["to"].as_str().unwrap().to_owned();
        self.log_lines("phase").iter().map(to).collect()
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
}
