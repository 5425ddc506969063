//! A restart under load: how many clients are cut off, what each one misses, and how long it waits.

use std::{
    collections::VecDeque,
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

use crate::{
    client::{State, text_frame},
    contestant::{Contestant, Mode, Running, Servers},
    fleet::{Event, Fleet},
    process::Process,
    restart_chart,
};

/// What a text starts with; its number follows, in hexadecimal.
const MARK: &[u8] = b"@lc:";
const DIGITS: usize = 16;

/// Bytes of each text.
const PAYLOAD: usize = 64;

/// How long clients that were cut off wait before they connect again. Real ones should wait longer, and each
/// another time; this is the best case for a server that cuts them.
const RECONNECT_DELAY: Duration = Duration::from_millis(50);

/// Time before the first restart, and between two.
const PAUSE: Duration = Duration::from_secs(2);

/// How long clients may take to be back and to have every text after the last restart.
const RECOVERY_TIMEOUT: Duration = Duration::from_secs(40);

/// What is measured.
pub(crate) struct Plan {
    pub(crate) servers: Servers,
    pub(crate) clients: usize,
    /// Texts a second.
    pub(crate) rate: f64,
    pub(crate) upgrades: usize,
}

/// One text and what became of it.
#[derive(Debug, Default, Clone, Copy, Serialize)]
pub(crate) struct Message {
    /// When it was sent, in seconds from the start.
    pub(crate) sent: f64,
    /// Clients that have it.
    pub(crate) got: usize,
    /// The longest and the mean time from sending to receiving it, in milliseconds.
    pub(crate) longest_ms: f64,
    pub(crate) mean_ms: f64,
    /// The longest silence of a client that ended with it, in milliseconds.
    pub(crate) silence_ms: f64,
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
        println!("{}", upgrades_table(&full));
        println!("{}", beside_table(&beside));
        let chart = restart_chart::draw(&full, &beside)?;
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

/// Clients, and what they have seen.
struct Watch {
    fleet: Fleet,
    host: String,
    path: String,
    epoch: Instant,
    seen: Record,
}

/// What all clients have seen so far.
struct Record {
    epoch: Instant,
    messages: Vec<Message>,
    clients: Vec<Listener>,
    /// Clients that connect again, and when.
    reconnects: VecDeque<(Instant, usize)>,
    down: usize,
    cut: usize,
    first_cut: Option<f64>,
    all_back: Option<f64>,
    lost: u64,
    disordered: u64,
}

/// What one client has seen.
#[derive(Debug, Clone, Copy)]
struct Listener {
    connected: bool,
    /// The number that it should hear next.
    next: usize,
    /// When it last heard one.
    heard: f64,
}

impl Watch {
    fn start(running: &Running, clients: usize) -> anyhow::Result<Self> {
        let fleet = Fleet::connect(&running.url, clients, 512, false)?;
        let epoch = Instant::now() + Duration::from_millis(500);
        let listener = Listener { connected: true, next: 0, heard: 0.0 };
        let seen = Record {
            epoch,
            messages: Vec::new(),
            clients: vec![listener; clients],
            reconnects: VecDeque::new(),
            down: 0,
            cut: 0,
            first_cut: None,
            all_back: None,
            lost: 0,
            disordered: 0,
        };
        let host = format!("127.0.0.1:{}", running.port);
        let mut watch = Self { fleet, host, path: running.url.path().to_owned(), epoch, seen };
        // Greetings are read, and the server settles.
        watch.run_until(epoch)?;
        Ok(watch)
    }

    /// Attends to the clients until the next text is due, and sends it.
    fn tick(&mut self, rate: f64) -> anyhow::Result<()> {
        let number = self.seen.messages.len();
        self.run_until(self.epoch + Duration::from_secs_f64(number as f64 / rate))?;
        let mut text = [MARK, format!("{number:016x}").as_bytes()].concat();
        text.resize(PAYLOAD, b'.');
        let sent = self.epoch.elapsed().as_secs_f64();
        self.seen.messages.push(Message { sent, ..Message::default() });
        // While the client that sends is cut off, no client gets what it would send.
        if self.fleet.clients[0].state == State::Open {
            self.fleet.send(0, &text_frame(&text))?;
        }
        Ok(())
    }

    fn run_until(&mut self, until: Instant) -> anyhow::Result<()> {
        loop {
            let next = self.seen.reconnects.front().map_or(until, |(at, _)| until.min(*at));
            let seen = &mut self.seen;
            self.fleet.run((&self.host, &self.path), next, |index, what| seen.note(index, what))?;
            let now = Instant::now();
            while self.seen.reconnects.front().is_some_and(|(at, _)| *at <= now) {
                if let Some((_, index)) = self.seen.reconnects.pop_front() {
                    self.fleet.reconnect(index)?;
                }
            }
            if now >= until {
                return Ok(());
            }
        }
    }

    /// Continues until all clients are back and have the last text.
    fn recover(&mut self, rate: f64) -> anyhow::Result<()> {
        let until = Instant::now() + RECOVERY_TIMEOUT;
        while self.seen.down > 0 {
            ensure!(Instant::now() < until, "{} clients did not come back", self.seen.down);
            self.tick(rate)?;
        }
        self.tick(rate)?;
        let last = self.seen.messages.len();
        while self.seen.clients.iter().any(|client| client.next < last) && Instant::now() < until {
            self.run_until(Instant::now() + Duration::from_millis(50))?;
        }
        Ok(())
    }

    fn outcome(self, server: Contestant, restarts: Vec<Restart>) -> Outcome {
        let seen = self.seen;
        let total = seen.messages.len();
        let unheard: u64 = seen.clients.iter().map(|client| (total - client.next) as u64).sum();
        Outcome {
            server,
            clients: seen.clients.len(),
            restarts,
            cut: seen.cut,
            lost: seen.lost + unheard,
            disordered: seen.disordered,
            all_back_s: seen.first_cut.zip(seen.all_back).map(|(cut, back)| back - cut),
            messages: seen.messages,
        }
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

    /// Returns whether no restart touches this message.
    fn is_calm(&self, message: &Message) -> bool {
        !self.restarts.iter().any(|restart| restart.touches(message))
    }
}

impl Restart {
    /// Returns whether a message was on its way at some time in this restart, or in the second after it.
    fn touches(&self, message: &Message) -> bool {
        message.sent + message.longest_ms / 1e3 >= self.from && message.sent <= self.to + 1.0
    }
}

impl Record {
    fn note(&mut self, index: usize, what: Event<'_>) {
        let now = self.epoch.elapsed().as_secs_f64();
        let client = &mut self.clients[index];
        match what {
            Event::Text(text) => {
                // Greetings have no number.
                let Some(number) = number(text).filter(|number| *number < self.messages.len()) else {
                    return;
                };
                if number < client.next {
                    self.disordered += 1;
                    return;
                }
                self.lost += (number - client.next) as u64;
                let message = &mut self.messages[number];
                if number > 0 {
                    message.silence_ms = message.silence_ms.max((now - client.heard) * 1e3);
                }
                (client.next, client.heard) = (number + 1, now);
                let ms = (now - message.sent) * 1e3;
                message.got += 1;
                message.longest_ms = message.longest_ms.max(ms);
                message.mean_ms += (ms - message.mean_ms) / message.got as f64;
            }
            Event::Gone => {
                if std::mem::replace(&mut client.connected, false) {
                    self.cut += 1;
                    self.down += 1;
                    self.first_cut.get_or_insert(now);
                }
                self.reconnects.push_back((Instant::now() + RECONNECT_DELAY, index));
            }
            Event::Open => {
                if !std::mem::replace(&mut client.connected, true) {
                    self.down -= 1;
                    self.all_back = Some(now);
                }
            }
        }
    }
}

/// Returns the number of a text, if it is one of ours.
fn number(text: &[u8]) -> Option<usize> {
    let at = text.windows(MARK.len()).position(|bytes| bytes == MARK)? + MARK.len();
    usize::from_str_radix(std::str::from_utf8(text.get(at..at + DIGITS)?).ok()?, 16).ok()
}

/// A process that only supervises has fewer open files than this: a few of its own, and no client's.
const MAX_SUPERVISOR_FILES: usize = 64;

/// `lastcall upgrade`: a new process takes over.
fn upgrade(servers: &Servers, mut running: Running, epoch: Instant) -> anyhow::Result<(Running, Restart)> {
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

fn upgrades_table(full: &Outcome) -> String {
    let mut text = format!(
        "**{} clients, {} upgrades in a row**\n\n\
         | upgrade | longest silence of a client, ms | the server's pause, ms | old process's sockets closed after, ms | \
         open files | memory, MiB |\n|---|---|---|---|---|---|\n",
        full.clients,
        full.restarts.len()
    );
    for (n, restart) in full.restarts.iter().enumerate() {
        let number = |value: Option<f64>| value.map_or("?".into(), |value| format!("{value:.1}"));
        text += &format!(
            "| {} | {:.0} | {} | {} | {} | {} |\n",
            n + 1,
            full.silence(restart),
            number(restart.paused_ms),
            number(restart.old_gone_ms),
            restart.files.unwrap_or_default(),
            number(restart.memory_mib)
        );
    }
    let calm = |message: &Message| full.is_calm(message);
    text += &format!(
        "| none | {:.0} | | | | |\n\n{} disconnects, {} deliveries lost, {} doubled or out of order, of {}. Longest \
         from sending to receipt: {:.0} ms, without an upgrade {:.0} ms.\n",
        full.longest(calm, |message| message.silence_ms),
        full.cut,
        full.lost,
        full.disordered,
        full.messages.len() * full.clients,
        full.longest(|_| true, |message| message.longest_ms),
        full.longest(calm, |message| message.longest_ms),
    );
    text
}

fn beside_table(beside: &[Outcome]) -> String {
    let mut text =
        "| server | clients | cut off | messages lost, per client | doubled or out of order | longest \
                    silence, ms | until all were back, s |\n|---|---|---|---|---|---|---|\n"
            .to_owned();
    for one in beside {
        text += &format!(
            "| {} | {} | {} | {:.1} | {} | {:.0} | {} |\n",
            one.server.name(),
            one.clients,
            one.cut,
            one.lost as f64 / one.clients as f64,
            one.disordered,
            one.longest(|_| true, |message| message.silence_ms),
            one.all_back_s.map_or("–".into(), |seconds| format!("{seconds:.2}"))
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_lost_doubled_or_late_is_counted() {
        let text = |number: usize| [MARK, format!("{number:016x}..").as_bytes()].concat();
        let mut record = Record {
            epoch: Instant::now(),
            messages: vec![Message::default(); 5],
            clients: vec![Listener { connected: true, next: 0, heard: 0.0 }; 2],
            reconnects: VecDeque::new(),
            down: 0,
            cut: 0,
            first_cut: None,
            all_back: None,
            lost: 0,
            disordered: 0,
        };
        for number in [0, 1, 4, 4] {
            record.note(0, Event::Text(&text(number)));
        }
        assert_eq!((record.lost, record.disordered), (2, 1));
        record.note(1, Event::Gone);
        record.note(1, Event::Gone);
        assert_eq!((record.cut, record.down, record.reconnects.len()), (1, 1, 2));
        record.note(1, Event::Open);
        assert_eq!((record.down, record.all_back.is_some()), (0, true));
        assert_eq!(number(b"{\"type\":\"welcome\"}"), None);
    }
}
