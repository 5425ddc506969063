//! Deliveries: what many connections get, over several slices of time if need be.

use std::cell::OnceCell;

use bytes::Bytes;

use super::{channels::Channels, drain::Drain};
use crate::{
    codec::CloseReason,
    connection::{ConnectionConfig, Outcome, outbox::Round},
    connections::{Connections, Slot, subscription_list::LocalChannelId},
    encoded::PublicationRun,
    mailbox::ChannelReset,
    notice::ShutdownNotice,
    protocol::{Form, Outgoing},
    stats::Stats,
};

/// Connections between two readings of the clock, one of which costs about a hundredth of a write.
const CONNECTIONS_PER_CLOCK_READ: usize = 32;

/// Bytes between two readings of the clock: what takes longer than the writes themselves is to copy them.
const BYTES_PER_CLOCK_READ: usize = 256 << 10;

/// Something that many connections get, and how many have got it.
#[derive(Debug)]
pub(super) struct Delivery {
    content: Content,
    /// The next slot or, for what concerns a channel, the next index among its members.
    next: usize,
    /// Connections that have got it since the clock was read.
    connections: usize,
    /// Bytes that they have got.
    bytes: usize,
}

#[derive(Debug)]
pub(super) enum Content {
    /// Publications, for the members of their channel.
    Publications(RunDelivery),
    /// A loss, for the members of its channel.
    Reset(Box<ChannelReset>),
    /// The first shutdown notice, which all clients get.
    Notice(ShutdownNotice),
    /// A later shutdown notice, for clients that have no output queued.
    Reminder(ShutdownNotice),
    /// The start of the closing handshake.
    Close(CloseReason),
}

/// The connections that get a delivery.
#[derive(Debug, Clone, Copy)]
pub(super) enum Recipients {
    All,
    Members(LocalChannelId),
}

impl Delivery {
    pub(super) fn new(content: Content) -> Self {
        Self { content, next: 0, connections: 0, bytes: 0 }
    }

    pub(super) fn is_notice(&self) -> bool {
        matches!(self.content, Content::Notice(_) | Content::Reminder(_))
    }

    /// Returns who gets it; `None`: nobody any more. To be asked in each slice, as the last member may have
    /// left meanwhile.
    pub(super) fn recipients(&self, channels: &Channels) -> Option<Recipients> {
        let channel = match &self.content {
            Content::Publications(publications) => &publications.run.channel,
            Content::Reset(reset) => &reset.channel,
            Content::Notice(_) | Content::Reminder(_) | Content::Close(_) => return Some(Recipients::All),
        };
        channels.find(channel).map(Recipients::Members)
    }

    /// Returns the slot of the next connection that gets it; `None`: all have got it.
    pub(super) fn next(
        &mut self,
        recipients: Recipients,
        channels: &Channels,
        connections: &Connections,
    ) -> Option<usize> {
        let (index, slot) = match recipients {
            Recipients::All => {
                let slot = (self.next..connections.slots()).find(|slot| connections.get(*slot).is_some())?;
                (slot, slot)
            }
            // The channel is gone once its last member has left during this very slice.
            Recipients::Members(channel) => channels.next_member(channel, self.next)?,
        };
        self.next = index + 1;
        Some(slot)
    }

    /// Sends it to a connection.
    pub(super) fn send(
        &mut self,
        entry: &mut Slot,
        recipients: Recipients,
        config: &ConnectionConfig,
        drain: &Drain,
        stats: &mut Stats,
    ) -> Outcome {
        self.connections += 1;
        let Slot { connection, subscriptions, .. } = entry;
        if !connection.is_open() {
            return Outcome::Unchanged;
        }
        match (&self.content, recipients) {
            (Content::Publications(publications), Recipients::Members(channel)) => {
                let RunDelivery { run, round, .. } = publications;
                let outcome = match subscriptions.positions(channel) {
                    None => {
                        let bytes = publications.alone(connection.form);
                        self.bytes += bytes.len();
                        connection.send(bytes, *round, config)
                    }
                    Some((positions, index)) => {
                        let around = positions.around(index);
                        let (outcome, encoded) = connection.send_among(run, around.into(), *round, config);
                        self.bytes += encoded;
                        if let Some(last) = run.publications.last() {
                            positions.set(index, &last.position().to_string());
                        }
                        outcome
                    }
                };
                if outcome == Outcome::Unchanged {
                    stats.messages_sent += run.publications.len() as u64;
                }
                outcome
            }
            (Content::Reset(reset), Recipients::Members(channel)) => {
                let ChannelReset { channel: name, top } = &**reset;
                let message = Outgoing::Reset { channel: name, position: *top };
                let bytes = match subscriptions.positions(channel) {
                    None => connection.form.encode(&message),
                    Some((positions, index)) => {
                        positions.set(index, &top.to_string());
                        connection.form.encode_among(&message, positions.around(index).into())
                    }
                };
                self.bytes += bytes.len();
                stats.not_recovered += 1;
                connection.send_unbounded(&bytes)
            }
            (Content::Reminder(_), _) if connection.has_output() => Outcome::Unchanged,
            (Content::Notice(notice) | Content::Reminder(notice), _) => {
                let notice = connection.form.encode(&notice.message(connection.id, false));
                connection.send_unbounded(&notice)
            }
            (Content::Close(reason), _) => drain.close(connection, *reason),
            // What concerns a channel is for its members.
            (Content::Publications(_) | Content::Reset(_), Recipients::All) => Outcome::Unchanged,
        }
    }

    /// Returns true from time to time: the clock is to be read.
    pub(super) fn is_clock_due(&mut self) -> bool {
        let is_due = self.connections >= CONNECTIONS_PER_CLOCK_READ || self.bytes >= BYTES_PER_CLOCK_READ;
        if is_due {
            (self.connections, self.bytes) = (0, 0);
        }
        is_due
    }
}

/// Publications of a channel, joined in each form when the first member needs it.
#[derive(Debug)]
pub(super) struct RunDelivery {
    run: PublicationRun,
    /// The round in which the loop has taken them.
    round: Round,
    frames: OnceCell<Bytes>,
    chunk: OnceCell<Bytes>,
    /// The content of the chunks.
    events: OnceCell<Bytes>,
}

static NOTHING: Bytes = Bytes::new();

impl RunDelivery {
    pub(super) fn new(run: PublicationRun, round: Round) -> Self {
        Self { run, round, frames: OnceCell::new(), chunk: OnceCell::new(), events: OnceCell::new() }
    }

    /// Returns the publications as all members with this form get them that have no other channel.
    fn alone(&self, form: Form) -> &Bytes {
        match form {
            Form::WebSocket => self.frames.get_or_init(|| self.run.frames()),
            Form::EventStream => self.chunk.get_or_init(|| self.run.events(form)),
            Form::UnchunkedEventStream => self.events.get_or_init(|| self.run.events(form)),
            Form::Echo => &NOTHING,
        }
    }
}
