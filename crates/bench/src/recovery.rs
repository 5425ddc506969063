//! Clients that go, miss publications, and come back together.

mod delivery_log;
mod nginx;
mod stream_parser;
mod subject;
mod subscribers;
mod watchers;

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, sleep},
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use indicatif::{ProgressBar, ProgressStyle};

use self::{
    nginx::NginxFiles,
    subject::{Processes, Subject},
    subscribers::Subscribers,
    watchers::Watchers,
};
use crate::{
    compare::{number, spread},
    contestant::Servers,
    publisher::Publisher,
};

/// Publications in each channel that come while all clients are connected, and that they miss.
const LIVE: u32 = 25;
const MISSED: u32 = 100;

/// The time over which the publications are spread that come while all clients are connected: with 10,000
/// clients, 50,000 deliveries a second, which keep no core busy.
const LIVE_SPREAD: Duration = Duration::from_secs(5);

/// Channels that are published to at once meanwhile.
const AT_A_TIME: usize = 5;

/// The time over which the clients come back.
const SPREAD: Duration = Duration::from_secs(2);

/// How long only the others are published to.
const QUIET: Duration = Duration::from_secs(2);

/// How long everything may take that is waited for.
const TIMEOUT: Duration = Duration::from_secs(60);

/// How long the server has to settle between two steps.
const SETTLE: Duration = Duration::from_secs(1);

/// Clients that connect at once in the beginning.
const AT_ONCE: usize = 512;

/// Connections of the publisher.
const CONNECTIONS: usize = 8;

/// Time between two samples of the server's memory.
const SAMPLE: Duration = Duration::from_millis(20);

/// What is measured.
pub(crate) struct Plan {
    pub(crate) servers: Servers,
    pub(crate) clients: usize,
    pub(crate) channels: usize,
    pub(crate) rounds: usize,
}

type Figures = BTreeMap<(&'static str, Subject), Vec<f64>>;

/// Checks that the other servers are installed.
///
/// # Errors
/// Says what is missing.
pub(crate) fn check_programs() -> anyhow::Result<()> {
    NginxFiles::find().map(|_| ())
}

impl Plan {
    /// Measures each server in each round, and writes the figures.
    #[allow(clippy::print_stdout, reason = "the result of a command")]
    pub(crate) fn run(&self, out: &Path) -> anyhow::Result<()> {
        check_programs()?;
        fs::create_dir_all(out).with_context(|| format!("cannot make {}", out.display()))?;
        let bar = ProgressBar::new((self.rounds * Subject::ALL.len()) as u64);
        bar.set_style(ProgressStyle::with_template("{msg:24} {bar:30} {pos}/{len} {eta}")?);
        let mut figures = Figures::new();
        for _ in 0..self.rounds {
            for subject in Subject::ALL {
                bar.set_message(subject.name());
                let measured = self.once(subject, out);
                for (figure, value) in
                    measured.with_context(|| format!("while {} was measured", subject.name()))?
                {
                    figures.entry((figure, subject)).or_default().push(value);
                }
                bar.inc(1);
            }
        }
        bar.finish_and_clear();
        println!("{}", markdown(&figures)?);
        let rows: Vec<_> =
            figures.iter().map(|((figure, subject), values)| (figure, subject, values)).collect();
        let path = out.join("recovery.json");
        fs::write(&path, serde_json::to_string_pretty(&rows)?)
            .with_context(|| format!("cannot write {}", path.display()))
    }

    /// Connects the clients, publishes to them, lets them miss some and come back.
    fn once(&self, subject: Subject, out: &Path) -> anyhow::Result<Vec<(&'static str, f64)>> {
        let server = subject.start(&self.servers, out)?;
        let (address, processes) = (server.address(), server.processes()?);
        let start = Instant::now();
        let channels: Vec<_> = (0..self.channels).map(|channel| format!("channel{channel:05}")).collect();
        let each = channels.iter().cloned().cycle().take(self.clients);
        let mut subscribers = Subscribers::new(subject, address, each)?;
        let mut publisher = Publisher::connect(address, CONNECTIONS)?;
        let watchers = Watchers::start(subject, address, start)?;

        let (cpu, connecting) = (processes.cpu()?, Instant::now());
        connect(&mut subscribers)?;
        let connect_seconds = connecting.elapsed().as_secs_f64();
        let connect_cpu = processes.cpu()? - cpu;
        subscribers.run_until(Instant::now() + SETTLE, |_| false)?;

        let quiet = start.elapsed();
        subscribers.run_until(Instant::now() + QUIET, |_| false)?;
        let live = start.elapsed();
        let (cpu, publishing) = (processes.cpu()?, Instant::now());
        let steps: Vec<_> = (1..=LIVE)
            .flat_map(|sequence| channels.chunks(AT_A_TIME).map(move |some| (sequence, some)))
            .collect();
        for (step, (sequence, some)) in (1..).zip(&steps) {
            publisher.post_each(subject.publications(some, *sequence, start.elapsed()))?;
            let next = publishing + LIVE_SPREAD.mul_f64(f64::from(step) / steps.len() as f64);
            subscribers.run_until(next, |_| false)?;
        }
        let deadline = Instant::now() + TIMEOUT;
        subscribers.run_until(deadline, |all| all.served(LIVE) == all.len())?;
        let live = (live, start.elapsed(), processes.cpu()? - cpu);

        subscribers.leave();
        sleep(SETTLE);
        for sequence in LIVE + 1..=LIVE + MISSED {
            publisher.post_each(subject.publications(&channels, sequence, start.elapsed()))?;
        }
        sleep(SETTLE);

        let memory = MemorySampler::start(processes.clone())?;
        let (cpu, back) = (processes.cpu()?, start.elapsed());
        let seconds = come_back(&mut subscribers, LIVE + MISSED)?;
        let back = (back, start.elapsed(), processes.cpu()? - cpu);
        let grown = memory.stop()?;
        // What comes twice comes late.
        subscribers.run_until(Instant::now() + SETTLE, |_| false)?;
        let (lost, repeated) = subscribers.lost_and_repeated(LIVE + MISSED);
        let deliveries = watchers.stop()?;
        let quiet = deliveries.p99(quiet, live.0)?;
        let (while_live, while_back) = (deliveries.p99(live.0, live.1)?, deliveries.p99(back.0, back.1)?);
        let count = f64::from(LIVE) * self.clients as f64;
        let micros = |cpu: Duration, count: f64| cpu.as_secs_f64() * 1e6 / count;
        Ok(vec![
            ("connect: seconds for all", connect_seconds),
            ("connect: CPU of each, µs", micros(connect_cpu, self.clients as f64)),
            ("live: CPU of each delivery, µs", micros(live.2, count)),
            ("live: seconds for all publications", (live.1 - live.0).as_secs_f64()),
            ("live: p99 of 100 others, ms", while_live),
            ("come back: seconds until all are served", seconds),
            ("come back: CPU of each client, µs", micros(back.2, self.clients as f64)),
            ("come back: memory grows by, MiB", grown as f64 / 1_048_576.0),
            ("come back: p99 of 100 others, ms", while_back),
            ("come back: p99 of 100 others, × live", while_back / while_live),
            ("come back: p99 of 100 others, × quiet", while_back / quiet),
            ("publications lost", lost as f64),
            ("publications that came again", repeated as f64),
            ("clients that were told of a loss", subscribers.counts.not_recovered as f64),
            ("connections that the server ended", subscribers.counts.cut as f64),
            ("quiet: p99 of 100 others, ms", quiet),
        ])
    }
}

/// Connects all subscribers, some at a time.
fn connect(subscribers: &mut Subscribers) -> anyhow::Result<()> {
    let deadline = Instant::now() + TIMEOUT;
    let mut dialled = 0;
    while subscribers.counts.open < subscribers.len() {
        while dialled < subscribers.len() && dialled - subscribers.counts.open < AT_ONCE {
            subscribers.dial(dialled)?;
            dialled += 1;
        }
        subscribers.turn(Duration::from_millis(20), |_| {})?;
        let Subscribers { counts, .. } = subscribers;
        ensure!(counts.cut == 0, "the server has ended {} connections", counts.cut);
        ensure!(Instant::now() < deadline, "only {} clients are connected after {TIMEOUT:?}", counts.open);
    }
    Ok(())
}

/// Connects all subscribers again, spread over [`SPREAD`]. Returns after how many seconds all have the
/// publication with the number `last`, or have waited for it for too long.
fn come_back(subscribers: &mut Subscribers, last: u32) -> anyhow::Result<f64> {
    let started = Instant::now();
    let all = subscribers.len();
    let (mut dialled, mut served) = (0, 0);
    while served < all && started.elapsed() < TIMEOUT {
        let due = all.min((started.elapsed().as_secs_f64() / SPREAD.as_secs_f64() * all as f64) as usize);
        while dialled < due {
            subscribers.dial(dialled)?;
            dialled += 1;
        }
        subscribers
            .turn(Duration::from_millis(2), |arrival| served += usize::from(arrival.sequence == last))?;
    }
    Ok(started.elapsed().as_secs_f64())
}

/// Watches how much memory a server takes.
struct MemorySampler {
    done: Arc<AtomicBool>,
    sampling: thread::JoinHandle<anyhow::Result<u64>>,
}

impl MemorySampler {
    fn start(processes: Processes) -> anyhow::Result<Self> {
        let before = processes.memory()?;
        let done = Arc::new(AtomicBool::new(false));
        let sampling = thread::spawn({
            let done = Arc::clone(&done);
            move || {
                let mut most = before;
                while !done.load(Ordering::Relaxed) {
                    most = most.max(processes.memory()?);
                    sleep(SAMPLE);
                }
                Ok(most.max(processes.memory()?) - before)
            }
        });
        Ok(Self { done, sampling })
    }

    /// Returns by how many bytes the memory has grown at most.
    fn stop(self) -> anyhow::Result<u64> {
        self.done.store(true, Ordering::Relaxed);
        self.sampling.join().map_err(|_| anyhow::anyhow!("the thread that reads the memory has panicked"))?
    }
}

/// Returns a Markdown table with a column for each server.
fn markdown(figures: &Figures) -> Result<String, std::fmt::Error> {
    let names = Subject::ALL.map(Subject::name).join(" | ");
    let mut text = format!("| | {names} |\n|---|---|---|---|---|\n");
    let mut rows: Vec<_> = figures.keys().map(|(figure, _)| *figure).collect();
    rows.dedup();
    for figure in rows {
        write!(text, "| {figure} |")?;
        for subject in Subject::ALL {
            let values = figures.get(&(figure, subject)).map(Vec::as_slice).unwrap_or_default();
            let [median, least, most] = spread(values).map(number);
            write!(text, " {median} ({least}–{most}) |")?;
        }
        writeln!(text)?;
    }
    Ok(text)
}
