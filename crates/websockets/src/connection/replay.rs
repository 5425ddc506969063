//! A replay: the publications that a client has missed of a channel, on their way to the client.

use std::{sync::Arc, vec};

use bytes::Bytes;
use lastcall_core::{ChannelName, Epoch, Publication};
use serde::{Deserialize, Serialize};

use crate::{
    codec::write_text_frame,
    encoded::estimated_size,
    protocol::{Form, Outgoing, chunk::ChunkWriter, event_stream, plain},
};

/// About how many bytes are encoded at once: as much as a socket usually takes, so that a client that does
/// not read costs little memory.
const PAGE: usize = 16 << 10;

/// Publications that are encoded as the socket takes them. Until then, each costs one pointer: its memory is
/// shared with the history and with other replays.
#[derive(Debug, Clone)]
pub(crate) struct Replay {
    pub(crate) channel: ChannelName,
    pub(crate) epoch: Epoch,
    missed: vec::IntoIter<Arc<Publication>>,
    pub(crate) form: ReplayForm,
}

/// The encoding of the publications of a replay.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ReplayForm {
    /// As frames.
    #[serde(rename = "websocket")]
    WebSocket,
    /// As events. The id of each has this before and after the position.
    EventStream {
        /// The form of the connection.
        form: Form,
        /// The positions of the channels before this one.
        before: String,
        /// Those of the channels after it.
        after: String,
    },
}

impl ReplayForm {
    /// Returns that of a connection whose events have these positions before and after that of the channel.
    pub(crate) fn new(form: Form, before: String, after: String) -> Self {
        match form {
            Form::WebSocket | Form::Echo => Self::WebSocket,
            Form::EventStream | Form::UnchunkedEventStream => Self::EventStream { form, before, after },
        }
    }
}

impl Replay {
    /// Returns the replay of these publications, in their order.
    pub(crate) fn new(
        channel: ChannelName,
        epoch: Epoch,
        missed: Vec<Arc<Publication>>,
        form: ReplayForm,
    ) -> Self {
        Self { channel, epoch, missed: missed.into_iter(), form }
    }

    /// Encodes the next publications as whole messages, and returns their number, too; `None`: none is left.
    pub(crate) fn next_page(&mut self) -> Option<(Bytes, usize)> {
        let before = self.missed.len();
        let page = self.encode(PAGE)?;
        Some((page, before - self.missed.len()))
    }

    /// Returns true if it holds publications that the history has dropped.
    pub(crate) fn pins_history(&self) -> bool {
        // The oldest is dropped first.
        self.missed.as_slice().first().is_some_and(|publication| publication.is_pinned())
    }

    /// Returns the publications that are left.
    pub(crate) fn missed(&self) -> &[Arc<Publication>] {
        self.missed.as_slice()
    }

    /// Returns all that is left, encoded.
    pub(crate) fn rest(&self) -> Bytes {
        self.clone().encode(usize::MAX).unwrap_or_default()
    }

    fn encode(&mut self, max: usize) -> Option<Bytes> {
        let first = self.missed.as_slice().first()?;
        let about = self.missed.len().saturating_mul(estimated_size(&self.channel, first));
        let mut page = ChunkWriter::with_capacity(about.min(PAGE + PAGE / 8));
        let mut json = Vec::new();
        while page.len() < max
            && let Some(publication) = self.missed.next()
        {
            let message = Outgoing::Publication {
                channel: &self.channel,
                epoch: self.epoch,
                publication: &publication,
            };
            match &self.form {
                ReplayForm::WebSocket => {
                    json.clear();
                    plain::write_json(&mut json, &message);
                    write_text_frame(page.content(), &json);
                }
                ReplayForm::EventStream { before, after, .. } => {
                    event_stream::write(page.content(), &message, [before, after]);
                }
            }
        }
        Some(match &self.form {
            ReplayForm::WebSocket => page.into_content(),
            ReplayForm::EventStream { form, .. } => form.of_chunk(page.finish()),
        })
    }
}
