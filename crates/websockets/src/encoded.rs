//! Publications on their way to clients.

use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use lastcall_core::{ChannelName, Epoch, Position, Publication};

use crate::{
    codec::Frame,
    protocol::{
        Outgoing,
        chunk::{self, ChunkWriter},
        event_stream, plain,
    },
};

/// About how many bytes a message has beside its data and the name of its channel.
const ENVELOPE: usize = 150;

/// A publication, and its encodings: each is made when the first client needs it, and shared.
#[derive(Debug)]
pub(crate) struct EncodedPublication {
    epoch: Epoch,
    publication: Arc<Publication>,
    frame: OnceLock<Frame>,
    event: OnceLock<Event>,
}

/// A publication as a server-sent event.
#[derive(Debug)]
pub(crate) struct Event {
    /// With its position as its id, in a chunk: for clients of its channel alone.
    pub(crate) chunk: Bytes,
    /// The position, as text.
    pub(crate) position: Bytes,
    /// The rest, after the line of the id.
    pub(crate) body: Bytes,
}

impl EncodedPublication {
    pub(crate) fn new(epoch: Epoch, publication: Arc<Publication>) -> Self {
        Self { epoch, publication, frame: OnceLock::new(), event: OnceLock::new() }
    }

    /// Returns the position in its channel.
    pub(crate) fn position(&self) -> Position {
        Position { epoch: self.epoch, offset: self.publication.offset }
    }

    /// Returns the frame for WebSockets. `channel` is the one that it was published in.
    pub(crate) fn frame(&self, channel: &ChannelName) -> &Frame {
        self.frame.get_or_init(|| plain::frame(&self.message(channel)))
    }

    /// Returns the server-sent event.
    pub(crate) fn event(&self, channel: &ChannelName) -> &Event {
        self.event.get_or_init(|| {
            let mut chunk = ChunkWriter::with_capacity(self.size(channel));
            let position = self.position().to_string();
            event_stream::write_id(chunk.content(), [b"", position.as_bytes(), b""]);
            let id_end = chunk.len();
            event_stream::write_body(chunk.content(), &self.message(channel));
            let chunk = chunk.finish();
            let content = chunk::content(&chunk);
            let position = content.slice_ref(&content[id_end - 1 - position.len()..id_end - 1]);
            Event { position, body: content.slice(id_end..), chunk }
        })
    }

    fn message<'a>(&'a self, channel: &'a ChannelName) -> Outgoing<'a> {
        Outgoing::Publication { channel, epoch: self.epoch, publication: &self.publication }
    }

    /// Returns about how many bytes an encoding has.
    pub(crate) fn size(&self, channel: &ChannelName) -> usize {
        estimated_size(channel, &self.publication)
    }
}

/// Publications of one channel that a loop writes together, in their order.
#[derive(Debug)]
pub(crate) struct PublicationRun {
    pub(crate) channel: ChannelName,
    pub(crate) publications: Vec<Arc<EncodedPublication>>,
}

impl PublicationRun {
    /// Returns the frames, without a copy if there is only one.
    pub(crate) fn frames(&self) -> Bytes {
        if let [publication] = &self.publications[..] {
            return publication.frame(&self.channel).bytes().clone();
        }
        let frames = self.publications.iter().map(|publication| publication.frame(&self.channel).bytes());
        let mut joined = Vec::with_capacity(frames.clone().map(Bytes::len).sum());
        frames.for_each(|frame| joined.extend_from_slice(frame));
        joined.into()
    }

    /// Returns the events in one chunk, without a copy if there is only one.
    pub(crate) fn chunk(&self) -> Bytes {
        match &self.publications[..] {
            [publication] => publication.event(&self.channel).chunk.clone(),
            _ => self.chunk_among(["", ""]),
        }
    }

    /// Returns the events in one chunk. The id of each has these positions before and after its own.
    pub(crate) fn chunk_among(&self, [before, after]: [&str; 2]) -> Bytes {
        let events = self.publications.iter().map(|publication| publication.event(&self.channel));
        let size = |event: &Event| event.chunk.len() + before.len() + after.len();
        let mut chunk = ChunkWriter::with_capacity(events.clone().map(size).sum());
        for event in events {
            event_stream::write_id(chunk.content(), [before.as_bytes(), &event.position, after.as_bytes()]);
            chunk.content().extend_from_slice(&event.body);
        }
        chunk.finish()
    }
}

/// Returns about how many bytes the encoding of a publication has.
pub(crate) fn estimated_size(channel: &ChannelName, publication: &Publication) -> usize {
    ENVELOPE + channel.as_str().len() + publication.size()
}

#[cfg(test)]
impl EncodedPublication {
    /// Returns a publication whose frame is this text alone.
    pub(crate) fn of_text(text: &str) -> Self {
        let data = serde_json::value::to_raw_value(text).unwrap();
        let publication = Publication::new(lastcall_core::Publisher::Server, data);
        let frame = OnceLock::from(Frame::text(text));
        Self { epoch: Epoch::default(), publication: Arc::new(publication), frame, event: OnceLock::new() }
    }
}
