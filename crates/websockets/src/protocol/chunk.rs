//! Chunks: how a response is sent whose length is not known (RFC 9112, section 7.1).

use bytes::Bytes;

const LINE_END: &[u8] = b"\r\n";

/// Room for the line before the content: its length in hexadecimal digits.
const HEAD: usize = 2 * size_of::<usize>() + LINE_END.len();

/// The chunk that ends a response. Without it, a response is not whole.
pub(crate) const LAST_CHUNK: Bytes = Bytes::from_static(b"0\r\n\r\n");

/// A chunk whose content is being written.
pub(crate) struct ChunkWriter(Vec<u8>);

impl ChunkWriter {
    /// Returns one with room for a content of so many bytes.
    pub(crate) fn with_capacity(content: usize) -> Self {
        let mut bytes = Vec::with_capacity(HEAD + content + LINE_END.len());
        bytes.resize(HEAD, 0);
        Self(bytes)
    }

    /// Returns where the content is appended. Bytes before it are not to be touched.
    pub(crate) fn content(&mut self) -> &mut Vec<u8> {
        &mut self.0
    }

    /// Returns how many bytes the content has.
    pub(crate) fn len(&self) -> usize {
        self.0.len() - HEAD
    }

    /// Returns the chunk, whose content must not be empty: that would be the end of the response.
    pub(crate) fn finish(mut self) -> Bytes {
        debug_assert!(self.len() > 0, "an empty chunk is the last one");
        let head = format!("{:x}\r\n", self.len());
        let start = HEAD - head.len();
        self.0[start..HEAD].copy_from_slice(head.as_bytes());
        self.0.extend_from_slice(LINE_END);
        Bytes::from(self.0).slice(start..)
    }

    /// Returns the content alone.
    pub(crate) fn into_content(self) -> Bytes {
        Bytes::from(self.0).slice(HEAD..)
    }
}

/// Returns the content of one chunk, without a copy.
pub(crate) fn content(chunk: &Bytes) -> Bytes {
    let (head, content) = read_head(chunk).unwrap_or((0, chunk.len()));
    chunk.slice(head..head + content)
}

/// Returns the start of the first chunk at or after byte `at` of chunks; their end if there is none, or if
/// these are no chunks.
pub(crate) fn next_boundary(chunks: &[u8], at: usize) -> usize {
    let mut start = 0;
    while start < at {
        let rest = chunks.get(start..).unwrap_or_default();
        let Some((head, content)) = read_head(rest) else { return chunks.len() };
        start = start.saturating_add(head).saturating_add(content).saturating_add(LINE_END.len());
    }
    start.min(chunks.len())
}

/// Returns how many bytes the first line of a chunk has, and how many the content after it.
fn read_head(chunk: &[u8]) -> Option<(usize, usize)> {
    let line = &chunk[..chunk.len().min(HEAD)];
    let digits = line.windows(LINE_END.len()).position(|pair| pair == LINE_END)?;
    let length = usize::from_str_radix(std::str::from_utf8(&line[..digits]).ok()?, 16).ok()?;
    Some((digits + LINE_END.len(), length))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunk(content: &[u8]) -> Bytes {
        let mut writer = ChunkWriter::with_capacity(0);
        writer.content().extend_from_slice(content);
        assert_eq!(writer.len(), content.len());
        writer.finish()
    }

    #[test]
    fn a_chunk_has_its_length_its_content_and_a_line_end() {
        assert_eq!(chunk(b":\n"), &b"2\r\n:\n\r\n"[..]);
        let long = [b'x'; 0x1234];
        assert_eq!(chunk(&long), [b"1234\r\n", &long[..], b"\r\n"].concat());
        for content in [&b"\r\n"[..], b"a\r\nb", &long] {
            assert_eq!(super::content(&chunk(content)), content);
        }
        assert_eq!(content(&LAST_CHUNK), "");
    }

    #[test]
    fn the_next_chunk_begins_after_the_content_and_its_line_end() {
        let chunks = [&chunk(b"a\n\n")[..], &chunk(b"\r\n0\r\n\r\n"), &LAST_CHUNK].concat();
        let ends = [0, 8, 20, 25];
        for at in 0..=chunks.len() {
            let expected = *ends.iter().find(|end| **end >= at).unwrap();
            assert_eq!(next_boundary(&chunks, at), expected, "{at}");
        }
        for (wrong, at) in
            [(&b"abc"[..], 1), (b"g\r\n", 1), (b"", 1), (b"ffffffffffffffff\r\n", 1), (b"3\r\na", 4)]
        {
            assert_eq!(next_boundary(wrong, at), wrong.len(), "{wrong:?}");
        }
    }
}
