//! A measurement as a table.

use std::fmt::Write;

use crate::load::Outcome;

/// For a terminal.
pub(crate) fn table(outcome: &Outcome) -> String {
    let mut table = String::new();
    let mut row = |name: &str, value: String| {
        // Writing to a String cannot fail.
        let _ = writeln!(table, "{name:<24}{value:>16}");
    };
    row("clients", outcome.clients.to_string());
    row("deliveries", outcome.deliveries.to_string());
    row("  missing", outcome.missing.to_string());
    row("  clients gone", outcome.gone.to_string());
    row("deliveries/s", format!("{:.0}", outcome.deliveries_per_second));
    row("latency p50", format!("{:.2} ms", outcome.latency_us.p50 / 1e3));
    row("latency p99", format!("{:.2} ms", outcome.latency_us.p99 / 1e3));
    row("latency p99.9", format!("{:.2} ms", outcome.latency_us.p999 / 1e3));
    row("latency max", format!("{:.2} ms", outcome.latency_us.max / 1e3));
    row("handshakes/s", format!("{:.0}", outcome.handshakes_per_second));
    let mut of_server = |name: &str, value: Option<f64>, unit: &str, scale: f64| {
        row(name, value.map_or("(--server-pid)".into(), |value| format!("{:.2} {unit}", value / scale)));
    };
    of_server("CPU when idle", outcome.idle_cpu.map(|share| 100.0 * share), "%", 1.0);
    of_server("CPU per delivery", outcome.cpu_per_delivery_us, "µs", 1.0);
    of_server("CPU per handshake", outcome.cpu_per_handshake_us, "µs", 1.0);
    of_server("memory per client", outcome.memory_per_client, "KiB", 1024.0);
    table
}
