//! A restart under load: how many clients are cut off, what each one misses, and how long it waits.

mod chart;
mod record;
mod tables;
mod watch;

use std::{
    fs,
    io::{BufRead, BufReader},
    path::Path,
    process::{Command, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use self::{record::Message, watch::Watch};
use crate::{
    contestant::{Contestant, Mode, Running, Servers},
    process::Process,
};

/// Time before the first restart, and between two.
const PAUSE: Duration = Duration::from_secs(2);

/// What is measured.
pub(crate) struct Plan {
    pub(crate) servers: Servers,
    pub(crate) clients: usize,
    /// Texts a second.
    pub(crate) rate: f64,
    pub(crate) upgrades: usize,
}

/// One restart.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Restart {
    /// When it was asked for and when it was done, in seconds from the start.
    pub(crate) from: f64,
    pub(crate) to: f64,
    /// What the server says: how long no client was served, in milliseconds.
    pub(crate) paused_ms: Option<f64>,
    /// From the commit to the end of the old process, in milliseconds.
    pub(crate) old_gone_ms: Option<f64>,
    /// Of the new process: open files, and resident memory in MiB.
    pub(crate) files: Option<usize>,
    pub(crate) memory_mib: Option<f64>,
}

/// What came of one server.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Outcome {
    pub(crate) server: Contestant,
    pub(crate) clients: usize,
    pub(crate) messages: Vec<Message>,
    pub(crate) restarts: Vec<Restart>,
    /// Connections that were cut off.
    pub(crate) cut: usize,
    /// Deliveries that never came, and deliveries that came twice or out of order.
    pub(crate) lost: u64,
    pub(crate) disordered: u64,
    /// From the first connection that was cut off until all clients were back, in seconds.
    pub(crate) all_back_s: Option<f64>,
}

impl Plan {
    /// Measures lastcall with all clients, and it and others with `fewer`; writes the figures and the chart.
    #[allow(clippy::print_stdout, reason = "the result of a command")]
    pub(crate) fn run(&self, fewer: usize, out: &Path) -> anyhow::Result<()> {
        fs::create_dir_all(out).with_context(|| format!("cannot make {}", out.display()))?;
        let full = self.measure(Contestant::Lastcall, self.clients, self.upgrades)?;
        let mut beside = Vec::new();
        for contestant in [Contestant::Lastcall, Contestant::Ws, Contestant::Fastapi] {
            beside.push(self.measure(contestant, fewer, 1)?);
        }
        println!("{}", tables::upgrades(&full));
        println!("{}", tables::beside(&beside));
        let chart = chart::draw(&full, &beside)?;
        let json = serde_json::to_string(&(&full, &beside))?;
        for (name, text) in [("restarts.svg", chart), ("restarts.json", json)] {
            let path = out.join(name);
            fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        }
        Ok(())
    }

    fn measure(&self, contestant: Contestant, clients: usize, restarts: usize) -> anyhow::Result<Outcome> {
        let bar = ProgressBar::new_spinner();
        bar.set_style(ProgressStyle::with_template("{spinner} {msg}")?);
        bar.enable_steady_tick(Duration::from_millis(200));
        bar.set_message(format!("{}: {clients} clients, {restarts} restarts", contestant.name()));
        let running = self.servers.start(contestant, Mode::Broadcast, 0)?;
        let mut watch = Watch::start(&running, clients)?;
        let epoch = watch.epoch;
        let (tell, told) = mpsc::channel();
        let servers = self.servers.clone();
        let restarting = thread::spawn(move || {
            let mut running = running;
            for _ in 0..restarts {
                thread::sleep(PAUSE);
                let restart;
                (running, restart) = match contestant {
                    Contestant::Lastcall => upgrade(&servers, running, epoch)?,
                    _ => replace(&servers, contestant, running, epoch)?,
                };
                // The other end goes only when the measurement has failed already.
                let _ = tell.send(restart);
            }
            thread::sleep(PAUSE);
            anyhow::Ok(running)
        });
        while !restarting.is_finished() {
            watch.tick(self.rate)?;
        }
        let Ok(ended) = restarting.join() else { bail!("the thread that restarts the server has panicked") };
        let running = ended?;
        watch.recover(self.rate)?;
        bar.finish_and_clear();
        drop(running);
        Ok(watch.outcome(contestant, told.try_iter().collect()))
    }
}

impl Outcome {
    /// Returns the longest silence of any client over this restart, and what it left to do.
    fn silence(&self, restart: &Restart) -> f64 {
        self.longest(|message| restart.touches(message), |message| message.silence_ms)
    }

    /// Returns the largest of a figure among some messages.
    pub(crate) fn longest(&self, which: impl Fn(&Message) -> bool, what: impl Fn(&Message) -> f64) -> f64 {
        self.messages.iter().filter(|message| which(message)).map(what).fold(0.0, f64::max)
    }

    /// Returns true if no restart touches this message.
    fn is_calm(&self, message: &Message) -> bool {
        !self.restarts.iter().any(|restart| restart.touches(message))
    }
}

impl Restart {
    /// Returns true if a message was on its way at some time in this restart, or in the second after it.
    fn touches(&self, message: &Message) -> bool {
        message.sent + message.longest_ms / 1e3 >= self.from && message.sent <= self.to + 1.0
    }
}

/// A process that only supervises has fewer open files than this: a few of its own, and no client's.
const MAX_SUPERVISOR_FILES: usize = 64;

/// `lastcall upgrade`: a new process takes over.
pub(crate) fn upgrade(
    servers: &Servers,
    mut running: Running,
    epoch: Instant,
) -> anyhow::Result<(Running, Restart)> {
    let old = running.process();
    let since = || epoch.elapsed().as_secs_f64();
    let from = since();
    let mut command = Command::new(servers.binaries.join("lastcall"))
        .args(["upgrade", "--port", &running.port.to_string()])
        .env("RUNTIME_DIR", &servers.runtime_dir)
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot run lastcall upgrade")?;
    let lines = BufReader::new(command.stdout.take().context("no stdout")?).lines();
    let taken_over = lines.map_while(Result::ok).filter(|line| line.contains("has taken over")).last();
    let last = taken_over.unwrap_or_default();
    let to = since();
    let done = Instant::now();
    ensure!(command.wait()?.success(), "an upgrade failed");
    // "process 123 has taken over 10000 clients, which waited 40 ms"
    let words: Vec<_> = last.split(' ').collect();
    let pid = words.get(1).and_then(|pid| pid.parse().ok()).with_context(|| format!("what is {last:?}?"))?;
    let paused_ms = words.iter().rev().nth(1).and_then(|ms| ms.parse().ok());
    // It ends; the one that was started stays, without sockets.
    while old.open_files().is_ok_and(|files| files > MAX_SUPERVISOR_FILES) {
        ensure!(done.elapsed() < Duration::from_secs(10), "the old process does not close its sockets");
        thread::sleep(Duration::from_millis(1));
    }
    let old_gone_ms = Some(done.elapsed().as_secs_f64() * 1e3);
    running.replaced_by(pid);
    let new = Process(pid);
    // By then, it has freed the memory that the handover needed.
    thread::sleep(Duration::from_secs(1));
    let restart = Restart {
        from,
        to,
        paused_ms,
        old_gone_ms,
        files: Some(new.open_files()?),
        memory_mib: Some(new.usage()?.memory as f64 / 1048576.0),
    };
    Ok((running, restart))
}

/// SIGTERM, and the same server again as soon as it has ended: what a service manager does.
fn replace(
    servers: &Servers,
    contestant: Contestant,
    running: Running,
    epoch: Instant,
) -> anyhow::Result<(Running, Restart)> {
    let since = || epoch.elapsed().as_secs_f64();
    let (from, port) = (since(), running.port);
    running.terminate()?;
    let running = servers.start(contestant, Mode::Broadcast, port)?;
    let restart =
        Restart { from, to: since(), paused_ms: None, old_gone_ms: None, files: None, memory_mib: None };
    Ok((running, restart))
}
