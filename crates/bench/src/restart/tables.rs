//! The outcomes as tables in Markdown.

use super::{Outcome, record::Message};

/// Returns a row for each upgrade, and the sums.
pub(super) fn upgrades(full: &Outcome) -> String {
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
        "| none | {:.0} | | | | |\n\n{} disconnects, {} deliveries lost, {} duplicated or out of order, of {}. Longest \
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

/// Returns a row for each server.
pub(super) fn beside(beside: &[Outcome]) -> String {
    let mut text =
        "| server | clients | cut off | messages lost, per client | duplicated or out of order | longest \
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
