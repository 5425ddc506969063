//! What another process on this machine has used (proc(5)).

use std::{fs, time::Duration};

use anyhow::Context;
use serde::Serialize;

/// A process that is measured.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Process(pub(crate) u32);

/// What it has used up to a moment.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Usage {
    /// CPU time of all its threads.
    pub(crate) cpu: Duration,
    /// Resident memory, in bytes.
    pub(crate) memory: u64,
}

impl Process {
    pub(crate) fn usage(self) -> anyhow::Result<Usage> {
        Ok(Usage { cpu: self.cpu()?, memory: self.memory()? })
    }

    /// Returns its resident memory in bytes, with its part of what it shares with other processes.
    pub(crate) fn proportional_memory(self) -> anyhow::Result<u64> {
        let path = format!("/proc/{}/smaps_rollup", self.0);
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
        let line = text.lines().find_map(|line| line.strip_prefix("Pss:"));
        let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok());
        Ok(1024 * kib.with_context(|| format!("no Pss in {path}"))?)
    }

    /// Returns its child processes.
    pub(crate) fn children(self) -> anyhow::Result<Vec<Self>> {
        let path = format!("/proc/{0}/task/{0}/children", self.0);
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
        text.split_whitespace()
            .map(|pid| pid.parse().map(Self).with_context(|| format!("{path} has another format: {text}")))
            .collect()
    }

    /// Files that it has open.
    pub(crate) fn open_files(self) -> anyhow::Result<usize> {
        let folder = format!("/proc/{}/fd", self.0);
        Ok(fs::read_dir(&folder).with_context(|| format!("cannot read {folder}"))?.count())
    }

    /// From schedstat, in nanoseconds: /proc/PID/stat only counts ticks of 10 ms. Threads that ended in
    /// between are not in it; servers do not end threads while they serve.
    pub(crate) fn cpu(self) -> anyhow::Result<Duration> {
        let tasks = format!("/proc/{}/task", self.0);
        let mut nanos = 0;
        for task in fs::read_dir(&tasks).with_context(|| format!("no process {}: {tasks}", self.0))? {
            let path = task?.path().join("schedstat");
            let text =
                fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
            let on_cpu = text.split_whitespace().next().and_then(|nanos| nanos.parse::<u64>().ok());
            nanos += on_cpu.with_context(|| format!("{} has another format: {text}", path.display()))?;
        }
        Ok(Duration::from_nanos(nanos))
    }

    fn memory(self) -> anyhow::Result<u64> {
        let path = format!("/proc/{}/status", self.0);
        let status = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = resident.and_then(|line| line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok());
        Ok(1024 * kib.with_context(|| format!("no VmRSS in {path}"))?)
    }
}

/// Returns how often a connection was dropped because a listen queue was full, on the whole machine.
pub(crate) fn listen_overflows() -> anyhow::Result<u64> {
    let text = fs::read_to_string("/proc/net/netstat").context("cannot read /proc/net/netstat")?;
    let mut rows = text.lines().filter(|line| line.starts_with("TcpExt:")).map(str::split_whitespace);
    let (Some(names), Some(values)) = (rows.next(), rows.next()) else {
        anyhow::bail!("/proc/net/netstat has no TcpExt");
    };
    let count = names.zip(values).find(|(name, _)| *name == "ListenOverflows").map(|(_, value)| value);
    count.context("no ListenOverflows in /proc/net/netstat")?.parse().context("ListenOverflows is no number")
}
