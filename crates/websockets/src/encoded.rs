//! A publication on its way to clients.

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
