//! lastcall beside other servers, in one run.
//!
//! Machines drift, shared ones most of all: so the floor runs directly before and after each measured
//! server, and what counts is the ratio of the two, its median over many such pairs, and its spread.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    path::Path,
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::Context;
use indicatif::{ProgressBar, ProgressStyle};
use url::Url;

use crate::{
    chart,
    contestant::{
        Contestant::{self, Bun, Fastapi, Floor, Lastcall, Socketify, Ws},
        Mode, Servers,
    },
    echo, fair,
    load::{self, Load},
    measured::{Measured, Row},
    process::{Process, listen_overflows},
    stuck,
};

/// A comparison to be made.
pub(crate) struct Suite {
    pub(crate) servers: Servers,
    pub(crate) pairs: usize,
    pub(crate) only: String,
}

/// What is done with a server.
#[derive(Debug, Clone, Copy)]
enum Work {
    /// Clients, publications a second, bytes, texts at once, seconds.
    Load { clients: usize, rate: f64, payload: usize, burst: usize, seconds: f64 },
    /// Clients that dial at once.
    Dial { clients: usize },
    /// Clients that listen, and one that wants something meanwhile.
    Fair { clients: usize },
    /// Clients that read, and clients that stopped.
    Stuck { clients: usize, stuck: usize },
    /// Clients that bounce texts.
    Echo { clients: usize },
}

/// One table.
struct Table {
    name: &'static str,
    work: Work,
    contestants: &'static [Contestant],
}

const ALL: &[Contestant] = &[Lastcall, Bun, Socketify, Ws, Fastapi];
const FAST: &[Contestant] = &[Lastcall, Bun, Socketify];

const TABLES: &[Table] = &[
    Table { name: "64 bytes to 1,000 clients", work: fan_out(1000, 60.0, 64, 1, 2.0), contestants: ALL },
    Table { name: "512 bytes to 1,000 clients", work: fan_out(1000, 60.0, 512, 1, 2.0), contestants: FAST },
    Table { name: "64 bytes to 10,000 clients", work: fan_out(10_000, 5.0, 64, 1, 3.0), contestants: FAST },
    Table { name: "512 bytes to 10,000 clients", work: fan_out(10_000, 5.0, 512, 1, 3.0), contestants: FAST },
    Table {
        name: "16 messages at once, 1,000 clients",
        work: fan_out(1000, 10.0, 64, 16, 2.0),
        contestants: FAST,
    },
    Table {
        name: "64 messages at once, 1,000 clients",
        work: fan_out(1000, 4.0, 64, 64, 2.0),
        contestants: FAST,
    },
    Table { name: "10,000 clients dial at once", work: Work::Dial { clients: 10_000 }, contestants: FAST },
    Table {
        name: "full speed, 10 of 1,000 clients stopped reading",
        work: Work::Stuck { clients: 990, stuck: 10 },
        contestants: &[Lastcall],
    },
    Table {
        name: "one client's wait while 10,000 are served and one floods",
        work: Work::Fair { clients: 10_000 },
        contestants: &[Lastcall, Bun],
    },
    Table { name: "echo, 1 client", work: Work::Echo { clients: 1 }, contestants: FAST },
    Table { name: "echo, 256 clients", work: Work::Echo { clients: 256 }, contestants: FAST },
];

const fn fan_out(clients: usize, rate: f64, payload: usize, burst: usize, seconds: f64) -> Work {
    Work::Load { clients, rate, payload, burst, seconds }
}

/// Returns the names of the tables that have this in their name.
pub(crate) fn names(only: &str) -> impl Iterator<Item = &'static str> {
    TABLES.iter().map(|table| table.name).filter(move |name| name.contains(only))
}

/// Parses a part of a table's name: a text that is in at least one.
pub(crate) fn part_of_a_name(text: &str) -> Result<String, String> {
    if names(text).next().is_some() {
        return Ok(text.to_owned());
    }
    let all: Vec<_> = names("").collect();
    Err(format!("no table has this in its name; the tables are:\n  {}", all.join("\n  ")))
}

/// What was measured of one server, once: figures by name.
type Figures = BTreeMap<&'static str, f64>;

impl Suite {
    #[allow(clippy::print_stdout, reason = "the result of a command")]
    pub(crate) fn run(&self, out: &Path) -> anyhow::Result<()> {
        fs::create_dir_all(out).with_context(|| format!("cannot make {}", out.display()))?;
        let write = |name: &str, text: &str| {
            let path = out.join(name);
            fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
        };
        let mut all = Vec::new();
        for table in TABLES.iter().filter(|table| table.name.contains(&self.only)) {
            let measured = self.measure(table)?;
            println!("{}", markdown(&measured)?);
            all.push(measured);
            // After each table: a run that is cut short has not been for nothing.
            write("benchmarks.json", &serde_json::to_string_pretty(&all)?)?;
            write("benchmarks.svg", &chart::draw(&all)?)?;
        }
        Ok(())
    }

    fn measure(&self, table: &Table) -> anyhow::Result<Measured> {
        let bar = ProgressBar::new((self.pairs * table.contestants.len()) as u64);
        bar.set_style(ProgressStyle::with_template("{msg:36} {bar:30} {pos}/{len} {eta}")?);
        bar.set_message(table.name);
        let mut values: BTreeMap<(Contestant, &'static str), Vec<f64>> = BTreeMap::new();
        let mut ratios = values.clone();
        // FastAPI and Node are far away from the floor: a third of the pairs tells as much.
        let mut before = self.once(table.work, Floor)?;
        for pair in 0..self.pairs {
            for &contestant in table.contestants {
                bar.inc(1);
                if matches!(contestant, Ws | Fastapi) && pair % 3 != 0 {
                    continue;
                }
                let figures = self.once(table.work, contestant)?;
                let after = self.once(table.work, Floor)?;
                for (figure, value) in figures {
                    values.entry((contestant, figure)).or_default().push(value);
                    if let (Some(before), Some(after)) = (before.get(figure), after.get(figure))
                        && before + after > 0.0
                    {
                        ratios.entry((contestant, figure)).or_default().push(2.0 * value / (before + after));
                    }
                }
                for (figure, value) in &after {
                    values.entry((Floor, figure)).or_default().push(*value);
                }
                before = after;
            }
        }
        bar.finish_and_clear();
        let rows = values
            .into_iter()
            .map(|((server, figure), values)| {
                let ratio = ratios.get(&(server, figure)).map(|ratios| spread(ratios));
                Row { server, figure, value: spread(&values), ratio }
            })
            .collect();
        Ok(Measured { name: table.name, rows })
    }

    /// Starts a server, loads it once, and ends it.
    fn once(&self, work: Work, contestant: Contestant) -> anyhow::Result<Figures> {
        let mode = if matches!(work, Work::Echo { .. }) { Mode::Echo } else { Mode::Broadcast };
        let running = self.servers.start(contestant, mode, 0)?;
        let process = running.process();
        let measured = match work {
            Work::Load { clients, rate, payload, burst, seconds } => {
                let pid = Some(process.0);
                let load = Load { clients, at_once: 512, rate, payload, burst, seconds, server_pid: pid };
                let outcome = load::run(&running.url, &load, false)?;
                let mut figures = Figures::from([
                    ("CPU per delivery, µs", outcome.cpu_per_delivery_us.unwrap_or(f64::NAN)),
                    ("CPU when idle, % of a core", 100.0 * outcome.idle_cpu.unwrap_or(f64::NAN)),
                    ("latency p50, ms", outcome.latency_us.p50 / 1e3),
                    ("latency p99, ms", outcome.latency_us.p99 / 1e3),
                    ("memory per client, KiB", outcome.memory_per_client.unwrap_or(f64::NAN) / 1024.0),
                ]);
                if outcome.missing > 0 || outcome.gone > 0 {
                    figures.insert("deliveries missing", outcome.missing as f64);
                }
                Ok(figures)
            }
            Work::Dial { clients } => dial(&running.url, clients, process),
            // The floor answers no pings.
            Work::Fair { .. } if contestant == Floor => Ok(Figures::new()),
            Work::Fair { clients } => {
                let waits = fair::run(&running.url, clients, 4.0, Duration::from_secs(4))?;
                Ok(Figures::from([
                    ("ping p99, ms", waits.ping[0]),
                    ("ping longest, ms", waits.ping[1]),
                    ("handshake p99, ms", waits.handshake[0]),
                    ("handshake longest, ms", waits.handshake[1]),
                ]))
            }
            // The floor has no queue: it would wait for clients that stopped reading.
            Work::Stuck { .. } if contestant == Floor => Ok(Figures::new()),
            Work::Stuck { clients, stuck } => {
                let time = Duration::from_secs(3);
                let without = stuck::run(&running.url, clients, 0, time, process)?;
                let with = stuck::run(&running.url, clients, stuck, time, process)?;
                Ok(Figures::from([
                    ("deliveries/s, all read", without.deliveries_per_second),
                    ("deliveries/s, 10 do not", with.deliveries_per_second),
                    (
                        "slowed down by, %",
                        100.0 * (1.0 - with.deliveries_per_second / without.deliveries_per_second),
                    ),
                    ("memory grew by, MiB", with.memory / 1048576.0),
                ]))
            }
            Work::Echo { clients } => {
                let echo = echo::run(&running.url, clients, Duration::from_millis(1500), process)?;
                Ok(Figures::from([
                    ("round trips/s", echo.per_second),
                    ("CPU per round trip, µs", echo.cpu_us),
                ]))
            }
        };
        measured.with_context(|| format!("while {} was measured", contestant.name()))
    }
}

fn dial(url: &Url, clients: usize, process: Process) -> anyhow::Result<Figures> {
    load::warm_up(url)?;
    let (before, overflows) = (process.usage()?, listen_overflows()?);
    let started = Instant::now();
    let fleet = crate::fleet::Fleet::connect(url, clients, clients, false)?;
    let seconds = started.elapsed().as_secs_f64();
    sleep(Duration::from_millis(500));
    let after = process.usage()?;
    let refused = fleet.refused as f64;
    drop(fleet);
    let cpu = (after.cpu - before.cpu).as_secs_f64();
    Ok(Figures::from([
        ("handshakes/s", clients as f64 / seconds),
        ("CPU per handshake, µs", cpu * 1e6 / clients as f64),
        ("listen overflows", (listen_overflows()? - overflows) as f64),
        ("refused, dialled again", refused),
        ("memory per client, KiB", (after.memory as f64 - before.memory as f64) / 1024.0 / clients as f64),
    ]))
}

/// Median, least and most.
pub(crate) fn spread(values: &[f64]) -> [f64; 3] {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.as_slice() {
        [] => [f64::NAN; 3],
        [first, .., last] => [sorted[sorted.len() / 2], *first, *last],
        [only] => [*only; 3],
    }
}

/// Returns one Markdown table for each figure.
fn markdown(measured: &Measured) -> anyhow::Result<String> {
    let mut text = String::new();
    let mut figures: Vec<_> = measured.rows.iter().map(|row| row.figure).collect();
    figures.sort_unstable();
    figures.dedup();
    for figure in figures {
        writeln!(
            text,
            "**{}: {figure}**\n\n| server | median | least – most | × floor | least – most |",
            measured.name
        )?;
        writeln!(text, "|---|---|---|---|---|")?;
        for row in measured.rows.iter().filter(|row| row.figure == figure) {
            let [median, least, most] = row.value.map(number);
            let ratio = match row.ratio {
                Some([median, least, most]) => format!("{median:.2} | {least:.2} – {most:.2}"),
                None => "1 | ".to_owned(),
            };
            writeln!(text, "| {} | {median} | {least} – {most} | {ratio} |", row.server.name())?;
        }
        writeln!(text)?;
    }
    Ok(text)
}

/// Three digits that matter.
pub(crate) fn number(value: f64) -> String {
    match value.abs() {
        large if large >= 100.0 => format!("{value:.0}"),
        medium if medium >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spread_is_the_median_the_least_and_the_most() {
        assert_eq!(spread(&[3.0, 1.0, 2.0]), [2.0, 1.0, 3.0]);
        assert_eq!(spread(&[5.0]), [5.0; 3]);
    }
}
