//! Publications on their way to clients.

use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use lastcall_core::{ChannelName, Epoch, Position, Publication};

use crate::{
    codec::Frame,
    protocol::{
        Form, Outgoing,
        chunk::{self, ChunkWriter},
        event_stream, plain,
    },
};

/// About how many bytes a message has beside its data and the name of its channel.
const ENVELOPE: usize = 150;

/// About how many bytes a chunk of events for one client has: what a socket takes of it in part is kept whole.
const CHUNK: usize = 16 << 10;

/// About how many bytes of events are encoded for one client before its socket is given them: it may take no
/// more.
const AT_ONCE: usize = 64 << 10;

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

    pub(crate) fn publication(&self) -> &Arc<Publication> {
        &self.publication
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

    /// Appends the event. Its id has these positions before and after its own.
    pub(crate) fn write_event(&self, to: &mut Vec<u8>, channel: &ChannelName, [before, after]: [&str; 2]) {
        let event = self.event(channel);
        event_stream::write_id(to, [before.as_bytes(), &event.position, after.as_bytes()]);
        to.extend_from_slice(&event.body);
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

    /// Returns the events in chunks, without a copy if there is only one.
    pub(crate) fn events(&self, form: Form) -> Bytes {
        if let [publication] = &self.publications[..] {
            return form.of_chunk(publication.event(&self.channel).chunk.clone());
        }
        let (mut first, mut joined) = (0, Vec::new());
        while first < self.publications.len() {
            let (chunk, count) = self.chunk_among(first, CHUNK, ["", ""]);
            joined.extend_from_slice(&form.of_chunk(chunk));
            first += count;
        }
        joined.into()
    }

    /// Returns the events from this one on in one chunk, which ends at about so many bytes, and their number.
    /// The id of each has these positions before and after its own.
    fn chunk_among(&self, first: usize, most: usize, positions: [&str; 2]) -> (Bytes, usize) {
        let others = positions[0].len() + positions[1].len();
        let mut size = 0;
        let fits = |publication: &&Arc<EncodedPublication>| {
            let fits = size < most;
            size += publication.event(&self.channel).chunk.len() + others;
            fits
        };
        let publications = &self.publications[first..];
        let count = publications.iter().take_while(fits).count();
        let mut chunk = ChunkWriter::with_capacity(size);
        for publication in &publications[..count] {
            publication.write_event(chunk.content(), &self.channel, positions);
        }
        (chunk.finish(), count)
    }

    /// Returns events from this one on in chunks that a socket may take at once, with the number of events in
    /// each. The id of each event has these positions before and after its own.
    pub(crate) fn chunks_among(
        &self,
        mut first: usize,
        positions: [&str; 2],
        form: Form,
    ) -> Vec<(Bytes, usize)> {
        let (mut chunks, mut bytes) = (Vec::with_capacity(1), 0);
        while bytes < AT_ONCE && first < self.publications.len() {
            let (chunk, count) = self.chunk_among(first, CHUNK, positions);
            first += count;
            bytes += chunk.len();
            chunks.push((form.of_chunk(chunk), count));
        }
        chunks
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
