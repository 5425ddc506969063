//! What comes from the mailboxes: commands, and what is written to everyone.

use std::time::Instant;

use bytes::Bytes;
use tokio::sync::mpsc;

use super::{EventLoop, SLICE};
use crate::{
    close_schedule::CloseSchedule, codec::CloseReason, connection::Connection, mailbox::LoopCommand,
    notice::ShutdownNotice, snapshot::FrozenLoop, stats::Stats,
};

/// Clients between two looks at the clock, which costs about as much as a hundredth of a write.
const CLOCK_EVERY: usize = 32;

/// What is being written to everyone; a broadcast to many takes several turns.
pub(super) struct Fanout {
    kind: FanoutKind,
    /// Slot of the next client.
    next: usize,
}

enum FanoutKind {
    /// Publications as one run of bytes, and how many these are.
    Frames(Bytes, usize),
    /// The first notice, which every client gets.
    Notice(ShutdownNotice),
    /// The same again, for those that have nothing waiting.
    Reminder(ShutdownNotice),
    Close(CloseReason),
}

impl EventLoop {
    /// Goes on with the fan-out, then takes what gathered in the inbox meanwhile.
    pub(super) fn process_mailbox(&mut self) {
        let started = Instant::now();
        // A new connection does not wait for the end of a fan-out. It comes into it if there is a slot for it further on;
        // its greeting goes first either way. Only the notice it has with the greeting, and must not have twice.
        let notice = |fanout: &Fanout| matches!(fanout.kind, FanoutKind::Notice(_) | FanoutKind::Reminder(_));
        if self.more && self.fanout.as_ref().is_some_and(|fanout| !notice(fanout)) {
            for connection in self.mailboxes.take_new_connections(self.config.index) {
                self.register(connection);
            }
        }
        loop {
            if self.fanout.is_some() {
                if !self.fan_out(started) {
                    return;
                }
            } else if let Some(command) = self.then.take() {
                self.handle_command(command);
            } else if self.more && started.elapsed() < SLICE {
                let (taken, more) = self.mailboxes.take(self.config.index);
                self.more = more;
                for connection in taken.new_connections {
                    self.register(connection);
                }
                self.then = taken.command;
                if !taken.frames.is_empty() && !self.config.rules.is_echo() {
                    self.fanout =
                        Some(Fanout { kind: FanoutKind::Frames(taken.frames, taken.messages), next: 0 });
                }
            } else {
                return;
            }
        }
    }

    /// Starts what a command asks for.
    fn handle_command(&mut self, command: LoopCommand) {
        let kind = match command {
            LoopCommand::Publish(frame) => FanoutKind::Frames(frame.bytes().clone(), 1),
            LoopCommand::BeginDrain(notice) => {
                let first = self.notice.replace(notice).is_none();
                if self.config.rules.is_echo() {
                    return;
                }
                if first { FanoutKind::Notice(notice) } else { FanoutKind::Reminder(notice) }
            }
            LoopCommand::CloseGradually(reason, until) => {
                let open = self.connections.iter().filter(|(_, connection)| connection.is_open());
                let open = open.map(|(slot, connection)| (slot, connection.id));
                self.close_schedule = Some((CloseSchedule::new(open, Instant::now(), until), reason));
                return;
            }
            LoopCommand::CloseAll(reason) => {
                self.close_reason = Some(reason);
                if let Some(notice) = &mut self.notice {
                    // A drain that is cut short ends now.
                    notice.deadline = notice.deadline.min(Instant::now());
                }
                FanoutKind::Close(reason)
            }
            LoopCommand::Disconnect(id, reason) => {
                let found = self.connections.iter().find(|(_, connection)| connection.id == id);
                if let Some((slot, _)) = found {
                    self.close(slot, reason);
                }
                return;
            }
            LoopCommand::CollectStats(reply) => {
                // Whoever asked may have gone.
                let _ = reply.try_send(self.collect_stats());
                return;
            }
            LoopCommand::PauseReads(reply) => {
                self.reads_paused = true;
                let _ = reply.try_send(());
                return;
            }
            LoopCommand::ResumeReads => {
                self.reads_paused = false;
                return;
            }
            LoopCommand::Freeze(reply) => return self.freeze(&reply),
            LoopCommand::Stop => {
                self.stopped = true;
                return;
            }
            #[cfg(test)]
            LoopCommand::Panic => panic!("as a test wants it"),
        };
        self.fanout = Some(Fanout { kind, next: 0 });
    }

    fn collect_stats(&self) -> Stats {
        let mut stats = self.stats.clone();
        for (_, connection) in self.connections.iter().filter(|(_, connection)| connection.has_output()) {
            stats.queued_clients += 1;
            stats.queued_bytes += connection.queued() as u64;
        }
        let throttled = self.connections.iter().filter(|(_, connection)| connection.is_throttled);
        stats.throttled_clients = throttled.count() as u64;
        stats
    }

    /// Lets go of the clients, and stands still until they come back. If they do not, they are another
    /// process's, and this loop has nothing more to do.
    fn freeze(&mut self, reply: &mpsc::Sender<FrozenLoop>) {
        let clients = std::mem::take(&mut self.connections);
        let now = self.clock.read(Instant::now());
        let closing = self.closing.iter().filter(|(_, slot, id)| {
            clients.get(*slot).is_some_and(|connection: &Connection| connection.id == *id)
        });
        let left =
            closing.map(|(deadline, slot, _)| (*slot, deadline.saturating_duration_since(now))).collect();
        let (frozen, returned) = FrozenLoop::new(clients, left, self.stats.clone());
        // If nobody waits for it any more, it is dropped here, and comes back at once.
        drop(reply.try_send(frozen));
        match returned.recv() {
            Ok(clients) => self.connections = clients,
            Err(_) => self.stopped = true,
        }
        self.clock.skip(Instant::now());
    }

    /// Goes on from client to client until the slice is over; whether all have had it.
    fn fan_out(&mut self, started: Instant) -> bool {
        let Some(mut fanout) = self.fanout.take() else { return true };
        while fanout.next < self.connections.capacity() {
            let slot = fanout.next;
            fanout.next += 1;
            self.deliver(slot, &fanout.kind);
            if fanout.next.is_multiple_of(CLOCK_EVERY) && started.elapsed() > SLICE {
                self.fanout = Some(fanout);
                return false;
            }
        }
        true
    }

    /// Gives one client its part of a fan-out.
    fn deliver(&mut self, slot: usize, kind: &FanoutKind) {
        let Some(connection) = self.connections.get_mut(slot) else { return };
        let outcome = match kind {
            FanoutKind::Frames(frames, messages) => {
                if connection.is_open() {
                    self.stats.messages_sent += *messages as u64;
                    self.stats.bytes_sent += frames.len() as u64;
                }
                connection.send(frames, &self.config.rules)
            }
            FanoutKind::Reminder(_) if connection.has_output() => return,
            FanoutKind::Notice(notice) | FanoutKind::Reminder(notice) => {
                connection.send_unbounded(notice.frame(connection.id).bytes())
            }
            FanoutKind::Close(reason) => return self.close(slot, *reason),
        };
        self.apply_outcome(slot, outcome);
    }
}
