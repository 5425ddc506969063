//! The servers that are measured, and how each is started and ended.

use std::{
    net::TcpStream,
    path::PathBuf,
    process::{Child, Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use rustix::process::{Pid, Signal, kill_process};
use serde::Serialize;
use url::Url;

use crate::process::Process;

/// How long a server may take to listen.
const START_TIMEOUT: Duration = Duration::from_secs(20);

/// A server that is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Contestant {
    Floor,
    Lastcall,
    Bun,
    Socketify,
    Ws,
    Fastapi,
}

use Contestant::{Bun, Fastapi, Floor, Lastcall, Socketify, Ws};

impl Contestant {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Floor => "floor",
            Lastcall => "lastcall",
            Bun => "uWebSockets (Bun)",
            Socketify => "uWebSockets (socketify)",
            Ws => "Node ws",
            Fastapi => "FastAPI + uvicorn",
        }
    }
}

/// What a server does with a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    Broadcast,
    Echo,
    /// Each text goes to one client. Only for the floor.
    One,
}

/// Where the servers are.
#[derive(Debug, Clone)]
pub(crate) struct Servers {
    pub(crate) peers: PathBuf,
    pub(crate) binaries: PathBuf,
    /// The folder of lastcall's control socket.
    pub(crate) runtime_dir: PathBuf,
}

/// A server that runs; it ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Running {
    child: Child,
    /// The new process, once there was an upgrade.
    new_process: Option<u32>,
    pub(crate) port: u16,
    pub(crate) url: Url,
}

impl Running {
    /// Returns the process that serves.
    pub(crate) fn process(&self) -> Process {
        Process(self.new_process.unwrap_or_else(|| self.child.id()))
    }

    /// Another process serves from now on.
    pub(crate) fn replaced_by(&mut self, pid: u32) {
        self.new_process = Some(pid);
    }

    /// Sends a signal to the process that serves.
    fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        let pid = i32::try_from(self.process().0).ok().and_then(Pid::from_raw).context("no process")?;
        kill_process(pid, signal).context("cannot send a signal")
    }

    /// Asks it to end, and waits until it has.
    pub(crate) fn terminate(mut self) -> anyhow::Result<()> {
        self.signal(Signal::TERM)?;
        self.child.wait().context("cannot wait for the server")?;
        Ok(())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself; either way it is gone then.
        if self.new_process.is_some() {
            let _ = self.signal(Signal::KILL);
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Servers {
    /// Starts a server and waits until it listens; port 0: one that is free.
    pub(crate) fn start(&self, contestant: Contestant, mode: Mode, port: u16) -> anyhow::Result<Running> {
        self.start_with(contestant, mode, port, &[])
    }

    /// Starts a server like [`Servers::start`], with more environment variables.
    pub(crate) fn start_with(
        &self,
        contestant: Contestant,
        mode: Mode,
        port: u16,
        variables: &[(&str, &str)],
    ) -> anyhow::Result<Running> {
        // A port that is free now; the server binds it right after.
        let port = match port {
            0 => std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port(),
            port => port,
        };
        let peer = |program: &str, script: &str| {
            let mut command = Command::new(self.peers.join(program));
            command.arg(self.peers.join(script));
            command
        };
        let mut command = match contestant {
            Floor => Command::new(self.binaries.join("floor")),
            Lastcall => Command::new(self.binaries.join("lastcall")),
            Bun => peer("node_modules/.bin/bun", "bun.js"),
            Socketify => peer("venv/bin/python", "socketify_server.py"),
            Fastapi => peer("venv/bin/python", "fastapi_server.py"),
            Ws => {
                let mut command = Command::new("node");
                command.arg(self.peers.join("ws.js"));
                command
            }
        };
        if contestant == Lastcall {
            command.env("PORT", port.to_string()).env("NOTIFICATION_INTERVAL", "0").env("PING_INTERVAL", "0");
            command.env("CLIENT_MESSAGES", if mode == Mode::Echo { "echo" } else { "broadcast" });
            command.env("RUNTIME_DIR", &self.runtime_dir);
            // No other server limits what clients send.
            command.env("MAX_CLIENT_RATE", "0").env("MAX_TOTAL_RATE", "0");
        } else {
            command.arg(port.to_string());
            match mode {
                Mode::Broadcast => {}
                Mode::Echo => drop(command.arg("echo")),
                Mode::One => drop(command.arg("one")),
            }
        }
        command.envs(variables.iter().copied()).stdin(Stdio::null()).stdout(Stdio::null());
        let child = command.spawn().with_context(|| format!("cannot start {}", contestant.name()))?;
        let mut running =
            Running { child, new_process: None, port, url: format!("ws://127.0.0.1:{port}/ws").parse()? };
        let started = Instant::now();
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            if let Some(status) = running.child.try_wait()? {
                bail!("{} ended at once: {status}", contestant.name());
            }
            if started.elapsed() > START_TIMEOUT {
                bail!("{} does not listen after {START_TIMEOUT:?}", contestant.name());
            }
            sleep(Duration::from_millis(20));
        }
        // The server frees what the connection above needed: its memory is measured before its clients
        // connect.
        sleep(Duration::from_millis(150));
        Ok(running)
    }
}
