//! Clients that a text is sent to again and again while the server restarts, and that connect again.

use std::time::{Duration, Instant};

use anyhow::ensure;

use super::{Outcome, Restart, record::Record};
use crate::{
    client::{State, text_frame},
    contestant::{Contestant, Running},
    fleet::Fleet,
};

/// How long clients may take to be back and to have every text after the last restart.
const RECOVERY_TIMEOUT: Duration = Duration::from_secs(40);

/// Clients, and what they have seen.
pub(super) struct Watch {
    fleet: Fleet,
    host: String,
    path: String,
    pub(super) epoch: Instant,
    seen: Record,
}

impl Watch {
    pub(super) fn start(running: &Running, clients: usize) -> anyhow::Result<Self> {
        let fleet = Fleet::connect(&running.url, clients, 512, false)?;
        let epoch = Instant::now() + Duration::from_millis(500);
        let seen = Record::new(epoch, clients);
        let host = format!("127.0.0.1:{}", running.port);
        let mut watch = Self { fleet, host, path: running.url.path().to_owned(), epoch, seen };
        // Greetings are read, and the server settles.
        watch.run_until(epoch)?;
        Ok(watch)
    }

    /// Attends to the clients until the next text is due, and sends it.
    pub(super) fn tick(&mut self, rate: f64) -> anyhow::Result<()> {
        let number = self.seen.messages.len();
        self.run_until(self.epoch + Duration::from_secs_f64(number as f64 / rate))?;
        let text = self.seen.next_text();
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
    pub(super) fn recover(&mut self, rate: f64) -> anyhow::Result<()> {
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

    pub(super) fn outcome(self, server: Contestant, restarts: Vec<Restart>) -> Outcome {
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
