//! What channels, publications and history cost the server.

mod layout;
mod table;

use std::{
    collections::BTreeMap,
    fs,
    net::SocketAddr,
    path::Path,
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::Context;
use indicatif::{ProgressBar, ProgressStyle};
use url::Url;

use self::layout::{Layout, name};
use crate::{
    client::text_frame,
    contestant::{Contestant, Mode, Running, Servers},
    fleet::Fleet,
    load,
    process::Process,
    publisher::Publisher,
    restart,
};

/// Clients of each measurement.
const CLIENTS: usize = 10_000;

/// Channels of each client, in measurements with several.
const CHANNELS_PER_CLIENT: usize = 10;

/// Requests in one measurement.
const REQUESTS: usize = 20_000;

/// Connections of the publisher.
const CONNECTIONS: usize = 16;

/// Texts that the floor is sent together: it reads them in one call, so that only its writes count.
const FLOOR_TEXTS: usize = 50;

/// The longest that their deliveries may take.
const FLOOR_TIMEOUT: Duration = Duration::from_secs(10);

/// Publications in a batch.
const BATCH: usize = 100;

/// Batches in one measurement.
const BATCHES: usize = 2000;

/// Publications whose memory is measured.
const KEPT: usize = 200_000;

/// The channels that they are spread over.
const KEPT_CHANNELS: usize = 100;

/// Bytes of history that an upgrade hands over.
const HISTORY: usize = 64 << 20;

/// How long a server has to settle before its memory is read.
const SETTLE: Duration = Duration::from_millis(500);

/// What is measured.
pub(crate) struct Plan {
    pub(crate) servers: Servers,
    pub(crate) rounds: usize,
    /// Only the measurements whose name contains this.
    pub(crate) only: String,
}

/// Figures by name, from each round.
type Figures = BTreeMap<String, Vec<f64>>;

type Measure = fn(&Plan, &mut Figures) -> anyhow::Result<()>;

/// The measurements, by name.
const MEASUREMENTS: &[(&str, Measure)] = &[
    ("memory", Plan::measure_memory),
    ("one of many channels", Plan::measure_one_of_many),
    ("publish", Plan::measure_publish),
    ("history", Plan::measure_history),
    ("upgrade", Plan::measure_upgrade),
];

/// Returns the names of the measurements that have this in their name.
pub(crate) fn names(only: &str) -> impl Iterator<Item = &'static str> {
    MEASUREMENTS.iter().map(|(name, _)| *name).filter(move |name| name.contains(only))
}

/// Parses a part of a measurement's name: a text that is in at least one.
pub(crate) fn part_of_a_name(text: &str) -> Result<String, String> {
    if names(text).next().is_some() {
        return Ok(text.to_owned());
    }
    let all: Vec<_> = names("").collect();
    Err(format!("no measurement has this in its name; the measurements are:\n  {}", all.join("\n  ")))
}

impl Plan {
    /// Measures, and writes the figures.
    #[allow(clippy::print_stdout, reason = "the result of a command")]
    pub(crate) fn run(&self, out: &Path) -> anyhow::Result<()> {
        fs::create_dir_all(out).with_context(|| format!("cannot make {}", out.display()))?;
        let chosen: Vec<_> = MEASUREMENTS.iter().filter(|(name, _)| name.contains(&self.only)).collect();
        let bar = ProgressBar::new((self.rounds * chosen.len()) as u64);
        bar.set_style(ProgressStyle::with_template("{msg:24} {bar:30} {pos}/{len} {eta}")?);
        let mut figures = Figures::new();
        for _ in 0..self.rounds {
            for (name, measure) in &chosen {
                bar.set_message(*name);
                measure(self, &mut figures).with_context(|| format!("while {name} was measured"))?;
                bar.inc(1);
            }
        }
        bar.finish_and_clear();
        println!("{}", table::markdown(&figures)?);
        let path = out.join("channels.json");
        let json = serde_json::to_string_pretty(&figures)?;
        fs::write(&path, json).with_context(|| format!("cannot write {}", path.display()))
    }

    /// Memory of clients, channels and subscriptions.
    fn measure_memory(&self, figures: &mut Figures) -> anyhow::Result<()> {
        let one =
            self.memory_per_client(Layout { clients: CLIENTS, channels_per_client: 1, shared: true })?;
        let layout = Layout { clients: CLIENTS, channels_per_client: CHANNELS_PER_CLIENT, shared: true };
        let shared = self.memory_per_client(layout)?;
        let own = self.memory_per_client(Layout { shared: false, ..layout })?;
        add(figures, "memory of an idle client with one subscription, bytes", one);
        let further = (CHANNELS_PER_CLIENT - 1) as f64;
        add(figures, "memory of a further subscription, bytes", (shared - one) / further);
        // The clients themselves are not in it, but one subscription of each is.
        add(
            figures,
            "memory of a channel with one subscriber, bytes",
            (own - one) / CHANNELS_PER_CLIENT as f64,
        );
        Ok(())
    }

    /// Returns the memory that each further client costs, after some that have connected as many at once:
    /// what the server keeps after such a burst is not memory of its clients.
    fn memory_per_client(&self, layout: Layout) -> anyhow::Result<f64> {
        let running = self.start(&[])?;
        let first = layout.clients * 3 / 10;
        let fleet = layout.connect_part(&running.url, 0..first)?;
        let before = running.process().usage()?.memory;
        let rest = layout.connect_part(&running.url, first..layout.clients)?;
        let after = running.process().usage()?.memory;
        drop((fleet, rest));
        Ok((after as f64 - before as f64) / (layout.clients - first) as f64)
    }

    /// A publication to a channel with one subscriber, alone and among many.
    fn measure_one_of_many(&self, figures: &mut Figures) -> anyhow::Result<()> {
        for (name, clients, channels_per_client) in [
            ("1 client, 1 channel", 1, 1),
            ("10,000 clients, 10,000 channels", CLIENTS, 1),
            ("10,000 clients, 100,000 channels", CLIENTS, CHANNELS_PER_CLIENT),
        ] {
            let layout = Layout { clients, channels_per_client, shared: false };
            let (floor, cost) = (self.floor(clients)?, self.publication_to_one(layout)?);
            for (what, value) in [
                ("CPU of a request that is delivered to no client, µs", cost.request),
                ("CPU of a delivery, µs", cost.delivery),
                ("CPU of a delivery, × floor's write", cost.delivery / floor),
                ("CPU of the floor's write, µs", floor),
            ] {
                add(figures, format!("{name}: {what}"), value);
            }
        }
        Ok(())
    }

    /// Returns the floor's CPU time for a write to one of its clients, in microseconds.
    fn floor(&self, clients: usize) -> anyhow::Result<f64> {
        let running = self.servers.start(Contestant::Floor, Mode::One, 0)?;
        let mut fleet = Fleet::connect(&running.url, clients, 512, false)?;
        fleet.receive(Instant::now() + SETTLE, |_, _| false)?;
        let texts = text_frame(&[b'x'; 64]).repeat(FLOOR_TEXTS);
        let before = running.process().usage()?.cpu;
        for _ in 0..REQUESTS / FLOOR_TEXTS {
            fleet.send(0, &texts)?;
            let mut received = 0;
            fleet.receive(Instant::now() + FLOOR_TIMEOUT, |_, _| {
                received += 1;
                received == FLOOR_TEXTS
            })?;
            anyhow::ensure!(received == FLOOR_TEXTS, "{received} of {FLOOR_TEXTS} texts came");
        }
        Ok(micros(running.process().usage()?.cpu - before, REQUESTS))
    }

    fn publication_to_one(&self, layout: Layout) -> anyhow::Result<Cost> {
        let running = self.start(&[])?;
        load::warm_up(&running.url)?;
        let mut fleet = layout.connect(&running.url)?;
        let mut publisher = Publisher::connect(address(&running.url)?, CONNECTIONS)?;
        let process = running.process();
        let channels = layout.channels();
        // As many channels, but without subscribers.
        let undelivered =
            self.publish(process, &mut publisher, |n| format!("without-{:06}", n * 7919 % channels))?;
        let delivered = self.publish(process, &mut publisher, |n| name(n * 7919 % channels))?;
        let mut received = 0;
        fleet.receive(Instant::now() + SETTLE, |_, text| {
            received += usize::from(text.windows(14).any(|bytes| bytes == br#""notification""#));
            received == REQUESTS
        })?;
        anyhow::ensure!(received == REQUESTS, "{received} of {REQUESTS} publications came");
        Ok(Cost { request: undelivered, delivery: delivered - undelivered })
    }

    /// Publishes, and returns the CPU time of each publication, in microseconds.
    fn publish(
        &self,
        process: Process,
        publisher: &mut Publisher,
        channel: impl Fn(usize) -> String,
    ) -> anyhow::Result<f64> {
        let body = |n| format!(r#"{{"channel":"{}","data":"{}"}}"#, channel(n), "x".repeat(64));
        publisher
            .post("/api/publish", (0..REQUESTS / 10).map(|_| body(0).replace("channel-", "warm-up-")))?;
        let before = process.usage()?.cpu;
        publisher.post("/api/publish", (0..REQUESTS).map(body))?;
        Ok(micros(process.usage()?.cpu - before, REQUESTS))
    }

    /// Publications by requests of one, and in batches.
    fn measure_publish(&self, figures: &mut Figures) -> anyhow::Result<()> {
        let running = self.start(&[])?;
        let mut publisher = Publisher::connect(address(&running.url)?, CONNECTIONS)?;
        let process = running.process();
        let cost = self.publish(process, &mut publisher, |n| name(n % KEPT_CHANNELS))?;
        add(figures, "publications per second of CPU time, one in each request", 1e6 / cost);
        let batch = |n| batch((0..BATCH).map(|_| n % KEPT_CHANNELS), 64);
        publisher.post("/api/publish/batch", (0..BATCHES / 10).map(batch))?;
        let (before, started) = (process.usage()?.cpu, Instant::now());
        publisher.post("/api/publish/batch", (0..BATCHES).map(batch))?;
        let seconds = started.elapsed().as_secs_f64();
        let cost = micros(process.usage()?.cpu - before, BATCHES * BATCH);
        add(figures, "publications per second of CPU time, in batches of 100", 1e6 / cost);
        add(figures, "publications per second, in batches of 100", (BATCHES * BATCH) as f64 / seconds);
        Ok(())
    }

    /// Memory of what is kept.
    fn measure_history(&self, figures: &mut Figures) -> anyhow::Result<()> {
        for (payload, figure) in [
            (100, "memory of a kept publication of 100 bytes, bytes"),
            (1000, "memory of a kept publication of 1,000 bytes, bytes"),
        ] {
            let running = self.start(&[("HISTORY_SIZE", "1000000"), ("HISTORY_BYTES", "4GiB")])?;
            let mut publisher = Publisher::connect(address(&running.url)?, CONNECTIONS)?;
            publisher.post("/api/publish/batch", (0..100).map(|n| batch([n], payload)))?;
            sleep(SETTLE);
            let before = running.process().usage()?.memory;
            let batch = |_| batch((0..BATCH).map(|n| n % KEPT_CHANNELS), payload);
            publisher.post("/api/publish/batch", (0..KEPT / BATCH).map(batch))?;
            sleep(SETTLE);
            let after = running.process().usage()?.memory;
            add(figures, figure, (after as f64 - before as f64) / KEPT as f64);
        }
        Ok(())
    }

    /// The pause of an upgrade with many clients and a full history.
    fn measure_upgrade(&self, figures: &mut Figures) -> anyhow::Result<()> {
        let running = self.start(&[("HISTORY_SIZE", "1000000"), ("HISTORY_BYTES", "64MiB")])?;
        let fleet =
            Layout { clients: CLIENTS, channels_per_client: 1, shared: true }.connect(&running.url)?;
        let mut publisher = Publisher::connect(address(&running.url)?, CONNECTIONS)?;
        // The 100 bytes beside the data are counted, too: this is a little more than fits. The clients have
        // other channels.
        let publications = HISTORY / (400 + 100) + 1000;
        let batch = |_| batch((0..BATCH).map(|n| 1000 + n % KEPT_CHANNELS), 400);
        publisher.post("/api/publish/batch", (0..publications / BATCH).map(batch))?;
        drop(publisher);
        let (running, upgrade) = restart::upgrade(&self.servers, running, Instant::now())?;
        let paused = upgrade.paused_ms.context("the command has not said how long the pause was")?;
        add(figures, "pause of an upgrade with 10,000 clients and 64 MiB of history, ms", paused);
        add(figures, "the whole upgrade, ms", (upgrade.to - upgrade.from) * 1e3);
        drop((fleet, running));
        Ok(())
    }

    fn start(&self, variables: &[(&str, &str)]) -> anyhow::Result<Running> {
        self.servers.start_with(Contestant::Lastcall, Mode::Broadcast, 0, variables)
    }
}

/// What a publication costs, in microseconds of CPU time.
struct Cost {
    /// A request that publishes in a channel without subscribers.
    request: f64,
    /// What is more if there is one subscriber.
    delivery: f64,
}

/// Returns the body of a batch with one publication for each of these channels, of so many bytes.
fn batch(channels: impl IntoIterator<Item = usize>, payload: usize) -> String {
    // The quotation marks are a part of the JSON that is kept.
    let data = "x".repeat(payload - 2);
    let publications: Vec<_> = channels
        .into_iter()
        .map(|channel| format!(r#"{{"channel":"{}","data":"{data}"}}"#, name(channel)))
        .collect();
    format!(r#"{{"publications":[{}]}}"#, publications.join(","))
}

fn add(figures: &mut Figures, name: impl Into<String>, value: f64) {
    figures.entry(name.into()).or_default().push(value);
}

fn micros(cpu: Duration, count: usize) -> f64 {
    cpu.as_secs_f64() * 1e6 / count.max(1) as f64
}

fn address(url: &Url) -> anyhow::Result<SocketAddr> {
    url.socket_addrs(|| None)?.first().copied().context("the URL has no address")
}
