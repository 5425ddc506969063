//! Publications of a channel that the members of the channel get in one write.

use std::cell::OnceCell;

use bytes::Bytes;
use lastcall_core::ChannelName;

use crate::{
    connection::outbox::Round,
    connections::stream_positions::StreamPositions,
    encoded::Event,
    mailbox::Run,
    protocol::Form,
    protocol::{
        chunk::{self, ChunkWriter},
        event_stream,
    },
};

static NOTHING: Bytes = Bytes::new();

/// Publications of a channel, encoded and joined in each form when the first member needs it.
#[derive(Debug)]
pub(super) struct RunFanout {
    run: Run,
    /// The round in which the loop has taken them.
    pub(super) round: Round,
    frames: OnceCell<Bytes>,
    /// A chunk with all of them.
    chunk: OnceCell<Bytes>,
    /// Its content.
    events: OnceCell<Bytes>,
}

impl RunFanout {
    pub(super) fn new(run: Run, round: Round) -> Self {
        Self { run, round, frames: OnceCell::new(), chunk: OnceCell::new(), events: OnceCell::new() }
    }

    pub(super) fn channel(&self) -> &ChannelName {
        &self.run.channel
    }

    /// Returns how many publications these are.
    pub(super) fn count(&self) -> usize {
        self.run.publications.len()
    }

    /// Returns the publications as all members with this form get them that have no other channel.
    pub(super) fn joined(&self, form: Form) -> &Bytes {
        match form {
            Form::WebSocket => self.frames.get_or_init(|| self.join_frames()),
            Form::EventStream => self.chunk.get_or_init(|| self.join_events()),
            Form::Echo => &NOTHING,
            Form::UnchunkedEventStream => {
                self.events.get_or_init(|| chunk::content(self.joined(Form::EventStream)))
            }
        }
    }

    /// Joins the frames, without a copy if there is only one.
    fn join_frames(&self) -> Bytes {
        let Run { channel, publications } = &self.run;
        if let [publication] = &publications[..] {
            return publication.frame(channel).bytes().clone();
        }
        let frames = publications.iter().map(|publication| publication.frame(channel).bytes());
        let mut joined = Vec::with_capacity(frames.clone().map(Bytes::len).sum());
        frames.for_each(|frame| joined.extend_from_slice(frame));
        joined.into()
    }

    /// Joins the events in one chunk, without a copy if there is only one.
    fn join_events(&self) -> Bytes {
        let Run { channel, publications } = &self.run;
        if let [publication] = &publications[..] {
            return publication.event(channel).chunk.clone();
        }
        let events = publications.iter().map(|publication| publication.event(channel));
        let mut joined = ChunkWriter::with_capacity(events.clone().map(|event| event.chunk.len()).sum());
        for event in events {
            event_stream::write_id(joined.content(), [b"", &event.position, b""]);
            joined.content().extend_from_slice(&event.body);
        }
        joined.finish()
    }

    /// Returns a chunk with the publications as events for a member with several channels, whose number `index` is this one.
    pub(super) fn chunk_for(&self, positions: &mut StreamPositions, index: usize) -> Bytes {
        let (before, after) = positions.around(index);
        let events = self.run.publications.iter().map(|publication| publication.event(&self.run.channel));
        let size = |event: &Event| event.chunk.len() + before.len() + after.len();
        let mut chunk = ChunkWriter::with_capacity(events.clone().map(size).sum());
        for event in events.clone() {
            event_stream::write_id(chunk.content(), [before.as_bytes(), &event.position, after.as_bytes()]);
            chunk.content().extend_from_slice(&event.body);
        }
        if let Some(last) = self.run.publications.last() {
            positions.set(index, &last.position().to_string());
        }
        chunk.finish()
    }
}
