//! What an event loop does for each command.

use std::time::Instant;

use tokio::sync::mpsc;

use super::{
    EventLoop,
    jobs::{Fanout, FanoutContent},
};
use crate::{
    close_schedule::CloseSchedule,
    connection_key::ConnectionKey,
    connections::Connections,
    frozen_loop::{FrozenLoop, Returned},
    handover::CHANNELS_PER_PART,
    mailbox::LoopCommand,
    stats::Stats,
};

impl EventLoop {
    pub(super) fn handle_command(&mut self, command: LoopCommand) {
        match command {
            LoopCommand::BeginDrain(notice) => {
                self.notice = Some(notice);
                self.jobs.push_next(Fanout::new(FanoutContent::Notice(notice)));
            }
            LoopCommand::Remind => {
                if let Some(notice) = self.notice {
                    self.jobs.push_next(Fanout::new(FanoutContent::Reminder(notice)));
                }
            }
            LoopCommand::CloseGradually(reason, until) => {
                let open = self.connections.iter().filter(|(_, entry)| entry.connection.is_open());
                let open = open.map(|(slot, entry)| ConnectionKey { slot, id: entry.connection.id });
                let schedule = CloseSchedule::new(open, Instant::now(), until);
                self.timers.schedule_closes(schedule, reason);
            }
            LoopCommand::CloseAll(reason) => {
                self.close_reason = Some(reason);
                if let Some(notice) = &mut self.notice {
                    // The drain ends earlier than announced.
                    notice.deadline = notice.deadline.min(Instant::now());
                }
                self.jobs.push_next(Fanout::new(FanoutContent::Close(reason)));
            }
            LoopCommand::ContinueTexts(key) => self.continue_texts(key),
            LoopCommand::CollectStats(reply) => {
                // Fails only if the caller has stopped waiting.
                let _ = reply.try_send(self.collect_stats());
            }
            LoopCommand::ListChannels(from, reply) => {
                // Fails only if the caller has stopped waiting.
                let _ = reply.try_send(self.channels.subscriptions.list(from, CHANNELS_PER_PART));
            }
            LoopCommand::EndListing => self.channels.subscriptions.end_listing(),
            LoopCommand::MeasureUnread(reply) => {
                // Fails only if the caller has stopped waiting.
                let _ = reply.try_send(self.measure_unread());
            }
            LoopCommand::FitUnread(round, reply) => {
                self.fit_unread(&round);
                // Fails only if the caller has stopped waiting.
                let _ = reply.try_send(());
            }
            LoopCommand::AddChannels(channels, reply) => {
                self.channels.add_ahead(&channels);
                // Fails only if the caller has stopped waiting.
                let _ = reply.try_send(());
            }
            LoopCommand::EndRestoring(reply) => {
                self.channels.end_restoring();
                // Fails only if the caller has stopped waiting.
                let _ = reply.try_send(());
            }
            LoopCommand::PauseReads(reply) => {
                self.reads_paused = true;
                // Fails only if the caller has stopped waiting, and then it resumes reads.
                let _ = reply.try_send(());
            }
            LoopCommand::ResumeReads => self.reads_paused = false,
            LoopCommand::Freeze(reply) => self.freeze(reply),
            LoopCommand::Stop => self.stopped = true,
            #[cfg(test)]
            LoopCommand::Panic => panic!("as a test wants it"),
        }
    }

    fn collect_stats(&self) -> Stats {
        let mut stats = self.stats.clone();
        for (_, entry) in self.connections.iter() {
            let queued = entry.connection.queued();
            stats.queued_clients += u64::from(queued > 0);
            stats.queued_bytes += queued as u64;
            stats.throttled_clients += u64::from(entry.throttled);
        }
        stats
    }

    /// Gives the connections away, and waits until they come back. If they do not, another process has them, and this
    /// loop ends. Nothing waits for the broker: a subscription that it has not answered is asked for anew by the other process.
    fn freeze(&mut self, reply: mpsc::Sender<FrozenLoop>) {
        let timeouts = self.timers.close_timeouts(Instant::now());
        let timeouts = timeouts.filter_map(|(key, left)| Some((self.connections.slot(key)?, left))).collect();
        let channels = self.channels.subscriptions.take_changes();
        let pending = self.channels.pending(&self.connections);
        let connections = std::mem::take(&mut self.connections);
        let (total, throttled) = (connections.len(), count_throttled(&connections));
        let (index, close_timeout) = (self.mailbox.index(), self.config.close_timeout);
        let stats = self.stats.clone();
        let (frozen, returned) =
            FrozenLoop::new(index, connections, timeouts, close_timeout, channels, pending, stats);
        // If the caller has stopped waiting, the frozen loop is dropped here, which returns the connections.
        drop(reply.try_send(frozen));
        match returned.recv() {
            Ok(Returned { connections, closed, ended }) => {
                for (disconnect, reason) in ended {
                    self.stats.record_disconnect(disconnect, reason);
                }
                for key in closed {
                    self.timers.start_close_timeout(key, self.config.close_timeout, Instant::now());
                }
                (count_throttled(&connections)..throttled)
                    .for_each(|_| self.config.budget.remove_throttled());
                self.connections = connections;
                if self.connections.len() < total {
                    self.channels.end_lost(&self.connections);
                }
            }
            Err(_) => self.stopped = true,
        }
        self.timers.clock().skip(Instant::now());
    }
}

fn count_throttled(connections: &Connections) -> usize {
    connections.iter().filter(|(_, entry)| entry.throttled).count()
}
