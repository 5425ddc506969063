//! A replay: publications of a channel on their way to a client that has missed them, or has not taken them.

use std::{sync::Arc, vec};

use bytes::Bytes;
use lastcall_core::{ChannelName, Epoch, Publication};
use serde::{Deserialize, Serialize};

use crate::{
    codec::write_text_frame,
    encoded::{EncodedPublication, PublicationRun, estimated_size},
    protocol::{Form, Outgoing, chunk::ChunkWriter, event_stream, plain},
};

/// About how many bytes are encoded at once: as much as a socket usually takes, so that a client that does
/// not read costs little memory.
pub(super) const PAGE: usize = 16 << 10;

/// The cost of a publication beside what clients share.
const PUBLICATION: usize = size_of::<Arc<Publication>>();

/// Publications that are encoded as the socket takes them. Until then, each costs one pointer: its memory is
/// shared with the history and with other replays.
#[derive(Debug, Clone)]
pub(crate) struct Replay {
    pub(crate) channel: ChannelName,
    pub(crate) epoch: Epoch,
    publications: Publications,
    pub(crate) form: ReplayForm,
    /// The cost of what is left, as a part of the client's queue. 0 for what a client has missed.
    cost: usize,
}

/// The publications that are left of a replay.
#[derive(Debug, Clone)]
enum Publications {
    /// Those that a client has missed before it subscribed.
    Missed(vec::IntoIter<Arc<Publication>>),
    /// Those that were published since, and that its socket has not taken.
    Live(vec::IntoIter<Arc<EncodedPublication>>),
}

impl Publications {
    fn first(&self) -> Option<&Arc<Publication>> {
        match self {
            Self::Missed(missed) => missed.as_slice().first(),
            Self::Live(live) => live.as_slice().first().map(|one| one.publication()),
        }
    }

    fn len(&self) -> usize {
        match self {
            Self::Missed(missed) => missed.len(),
            Self::Live(live) => live.len(),
        }
    }
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

    /// Returns how many bytes its texts have.
    pub(crate) fn size(&self) -> usize {
        match self {
            Self::WebSocket => 0,
            Self::EventStream { before, after, .. } => before.len() + after.len(),
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
        Self { channel, epoch, publications: Publications::Missed(missed.into_iter()), form, cost: 0 }
    }

    /// Returns those of a run from this publication on: one, unless their positions do not follow one another.
    /// They count as a part of the client's queue.
    pub(crate) fn of_run(
        run: &PublicationRun,
        first: usize,
        form: &ReplayForm,
    ) -> impl Iterator<Item = Self> {
        let follows = |one: &Arc<EncodedPublication>, next: &Arc<EncodedPublication>| {
            let (one, next) = (one.position(), next.position());
            one.epoch == next.epoch && one.offset + 1 == next.offset
        };
        run.publications[first..].chunk_by(follows).map(|publications| {
            let epoch = publications[0].position().epoch;
            Self::live(run.channel.clone(), epoch, publications.to_vec(), form.clone())
        })
    }

    /// Returns one of publications that were just published, whose positions follow one another.
    pub(super) fn live(
        channel: ChannelName,
        epoch: Epoch,
        publications: Vec<Arc<EncodedPublication>>,
        form: ReplayForm,
    ) -> Self {
        let shared =
            publications.iter().map(|one| estimated_size(&channel, one.publication())).sum::<usize>();
        let publications = Publications::Live(publications.into_iter());
        let live = Self { channel, epoch, publications, form, cost: 0 };
        Self { cost: live.own_bytes() + shared, ..live }
    }

    /// Returns true if the client has subscribed since these were published, and false if they are live.
    pub(crate) fn is_missed(&self) -> bool {
        matches!(self.publications, Publications::Missed(_))
    }

    /// Returns about how many bytes it has for this client alone.
    pub(crate) fn own_bytes(&self) -> usize {
        2 * size_of::<Self>() + self.form.size() + self.len() * PUBLICATION
    }

    /// Returns what it costs as a part of the client's queue.
    pub(crate) fn cost(&self) -> usize {
        self.cost
    }

    /// Encodes the next publications as whole messages, and returns their number, too; `None`: none is left.
    pub(crate) fn next_page(&mut self) -> Option<(Bytes, usize)> {
        let before = self.publications.len();
        let page = self.encode(PAGE)?;
        Some((page, before - self.publications.len()))
    }

    /// Returns true if it holds publications that the history has dropped.
    pub(crate) fn pins_history(&self) -> bool {
        // The oldest is dropped first.
        self.publications.first().is_some_and(|publication| publication.is_pinned())
    }

    /// Returns the number of publications that are left.
    pub(crate) fn len(&self) -> usize {
        self.publications.len()
    }

    /// Returns the publications that are left.
    pub(crate) fn publications(&self) -> impl Iterator<Item = &Arc<Publication>> {
        let (missed, live): (&[_], &[_]) = match &self.publications {
            Publications::Missed(missed) => (missed.as_slice(), &[]),
            Publications::Live(live) => (&[], live.as_slice()),
        };
        missed.iter().chain(live.iter().map(|one| one.publication()))
    }

    /// Returns all that is left, encoded.
    pub(crate) fn rest(&self) -> Bytes {
        self.clone().encode(usize::MAX).unwrap_or_default()
    }

    fn encode(&mut self, max: usize) -> Option<Bytes> {
        let Self { channel, epoch, publications, form, cost } = self;
        let about =
            publications.len().saturating_mul(estimated_size(channel, publications.first()?) + form.size());
        let mut page = ChunkWriter::with_capacity(about.min(PAGE + PAGE / 8));
        let mut json = Vec::new();
        while page.len() < max {
            let (missed, live) = match publications {
                Publications::Missed(missed) => (missed.next(), None),
                Publications::Live(live) => (None, live.next()),
            };
            let Some(publication) = missed.as_ref().or(live.as_ref().map(|one| one.publication())) else {
                break;
            };
            match (&*form, &live) {
                (ReplayForm::EventStream { before, after, .. }, Some(live)) => {
                    live.write_event(page.content(), channel, [before, after]);
                }
                (ReplayForm::EventStream { before, after, .. }, None) => {
                    let message = Outgoing::Publication { channel, epoch: *epoch, publication };
                    event_stream::write(page.content(), &message, [before, after]);
                }
                (ReplayForm::WebSocket, _) => {
                    json.clear();
                    plain::write_json(
                        &mut json,
                        &Outgoing::Publication { channel, epoch: *epoch, publication },
                    );
                    write_text_frame(page.content(), &json);
                }
            }
            if live.is_some() {
                *cost = cost.saturating_sub(PUBLICATION + estimated_size(channel, publication));
            }
        }
        Some(match form {
            ReplayForm::WebSocket => page.into_content(),
            ReplayForm::EventStream { form, .. } => form.of_chunk(page.finish()),
        })
    }
}
