//! Publications of a channel that the members of the channel get in one write.

use std::{cell::OnceCell, sync::Arc};

use bytes::Bytes;
use lastcall_core::{ChannelName, Position};

use super::stream_positions::StreamPositions;
use crate::{
    connection::outbox::Round, encoded::EncodedPublication, mailbox::Run, protocol::event_stream,
    wire_form::WireForm,
};

/// Publications of a channel, encoded and joined in each form when the first member needs it.
#[derive(Debug)]
pub(super) struct RunFanout {
    run: Run,
    /// The round in which the loop has taken them.
    pub(super) round: Round,
    frames: OnceCell<Bytes>,
    events: OnceCell<Bytes>,
}

impl RunFanout {
    pub(super) fn new(run: Run, round: Round) -> Self {
        Self { run, round, frames: OnceCell::new(), events: OnceCell::new() }
    }

    pub(super) fn channel(&self) -> &ChannelName {
        &self.run.channel
    }

    /// Returns how many publications these are.
    pub(super) fn count(&self) -> usize {
        self.run.publications.len()
    }

    /// Returns the position of the last publication.
    pub(super) fn top(&self) -> Option<Position> {
        self.run.publications.last().map(|publication| publication.position())
    }

    /// Returns the publications as all members with this form get them that have no other channel.
    pub(super) fn joined(&self, form: WireForm) -> &Bytes {
        let Run { channel, publications } = &self.run;
        match form {
            WireForm::WebSocket => {
                self.frames.get_or_init(|| join(publications, |one| one.frame(channel).bytes()))
            }
            WireForm::EventStream => self.events.get_or_init(|| join(publications, |one| one.event(channel))),
        }
    }

    /// Returns the publications as events for a member with several channels, whose number `index` is this one.
    pub(super) fn events_of(&self, positions: &mut StreamPositions, index: usize) -> Bytes {
        let mut events = Vec::new();
        for publication in &self.run.publications {
            positions.set(index, publication.position());
            event_stream::write_id(&mut events, positions);
            events.extend_from_slice(publication.event_body(&self.run.channel));
        }
        events.into()
    }
}

/// Joins the encodings, without a copy if there is only one.
fn join<'a>(
    publications: &'a [Arc<EncodedPublication>],
    encoded: impl Fn(&'a EncodedPublication) -> &'a Bytes,
) -> Bytes {
    if let [publication] = publications {
        return encoded(publication).clone();
    }
    let encodings = publications.iter().map(|publication| encoded(publication));
    let mut joined = Vec::with_capacity(encodings.clone().map(Bytes::len).sum());
    encodings.for_each(|encoding| joined.extend_from_slice(encoding));
    joined.into()
}
