//! A page of a history as JSON, which is encoded as the caller takes it.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    vec,
};

use axum::body::Body;
use bytes::Bytes;
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use lastcall_core::{ChannelName, Epoch, Publication};
use lastcall_websockets::{HistoryPage, message_size, write_message};

/// The number of bytes, about, that are encoded at once: a caller that takes nothing costs no more, and HTTP
/// has one thread.
const SLICE: usize = 64 << 10;

/// The rest of a page. Its publications are shared with the history.
struct HistoryBody {
    channel: ChannelName,
    epoch: Epoch,
    publications: vec::IntoIter<Arc<Publication>>,
    /// The text before the next publication, or before the end; `None`: all is encoded.
    before: Option<String>,
    end: String,
    /// Bytes that are not encoded yet: an answer has a length.
    left: usize,
}

/// Returns the body of an answer.
pub(super) fn history_body(channel: ChannelName, page: HistoryPage) -> Body {
    let HistoryPage { top, recovered, publications, more } = page;
    // As a JSON string: it may have quotes.
    let name = serde_json::Value::from(channel.as_str());
    let before = format!(r#"{{"channel":{name},"id":"{top}","recovered":{recovered},"publications":["#);
    let end = format!(r#"],"more":{more}}}"#);
    let sizes = publications.iter().map(|publication| message_size(&channel, top.epoch, publication));
    let commas = publications.len().saturating_sub(1);
    let left = before.len() + sizes.sum::<usize>() + commas + end.len();
    let (before, publications) = (Some(before), publications.into_iter());
    Body::new(HistoryBody { channel, epoch: top.epoch, publications, before, end, left })
}

impl HistoryBody {
    fn next_slice(&mut self) -> Option<Vec<u8>> {
        let mut before = self.before.take()?;
        let mut slice = Vec::new();
        while let Some(publication) = self.publications.next() {
            slice.extend_from_slice(before.as_bytes());
            ",".clone_into(&mut before);
            write_message(&mut slice, &self.channel, self.epoch, &publication);
            if slice.len() >= SLICE && self.publications.len() > 0 {
                self.before = Some(before);
                return Some(slice);
            }
        }
        if before != "," {
            slice.extend_from_slice(before.as_bytes());
        }
        slice.extend_from_slice(self.end.as_bytes());
        Some(slice)
    }
}

impl HttpBody for HistoryBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let slice = self.next_slice();
        self.left -= slice.as_ref().map_or(0, Vec::len);
        Poll::Ready(slice.map(|slice| Ok(Frame::data(slice.into()))))
    }

    fn is_end_stream(&self) -> bool {
        self.before.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left as u64)
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;
    use hyper::body::Body as _;
    use lastcall_core::{Position, Publisher};
    use serde_json::{Value, value::RawValue};

    use super::*;

    async fn read(sizes: &[usize], more: bool) -> (Value, usize) {
        let publications = (1..).zip(sizes).map(|(offset, size)| {
            let data = RawValue::from_string(format!("\"{}\"", "x".repeat(*size))).unwrap();
            Arc::new(Publication { offset, ..Publication::new(Publisher::Api, data) })
        });
        let top = Position { epoch: Epoch(7), offset: 9 };
        let page = HistoryPage { top, recovered: true, publications: publications.collect(), more };
        let mut body = history_body("a\"b".parse().unwrap(), page);
        let (mut bytes, mut slices) = (Vec::new(), 0);
        let length = body.size_hint().exact().unwrap();
        while let Some(frame) = body.frame().await {
            bytes.extend_from_slice(&frame.unwrap().into_data().unwrap());
            slices += 1;
        }
        assert_eq!((bytes.len() as u64, body.size_hint().exact()), (length, Some(0)));
        (serde_json::from_slice(&bytes).unwrap(), slices)
    }

    #[tokio::test]
    async fn a_page_is_whole_json_in_slices() {
        let edge = SLICE - 150;
        for (sizes, most) in [
            (vec![], 1),
            (vec![1], 1),
            (vec![1, 2, 3], 1),
            (vec![SLICE], 1),
            (vec![edge, edge, edge], 2),
            (vec![SLICE, SLICE, 1], 3),
            (vec![1000; 1000], 20),
        ] {
            let (json, slices) = read(&sizes, sizes.len() > 2).await;
            let (count, first) = (sizes.len(), sizes.first());
            assert!(slices <= most, "{count} of {first:?}: {slices} slices");
            assert_eq!(json["channel"], "a\"b");
            assert_eq!(json["id"], "0000000000000007-9");
            assert_eq!((&json["recovered"], &json["more"]), (&true.into(), &(count > 2).into()));
            let publications = json["publications"].as_array().unwrap();
            let read = publications.iter().map(|one| one["data"].as_str().unwrap().len());
            assert_eq!(read.collect::<Vec<_>>(), sizes);
            assert!(publications.iter().all(|one| one["type"] == "notification" && one["channel"] == "a\"b"));
        }
    }
}
