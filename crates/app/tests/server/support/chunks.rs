//! A body in chunks (RFC 9112, section 7.1), read strictly.

/// The bytes that were read of a body in chunks.
#[derive(Debug, Default)]
pub(crate) struct Chunks {
    /// Bytes that are no whole chunk yet.
    rest: Vec<u8>,
    has_ended: bool,
}

impl Chunks {
    /// Adds bytes as they come, and returns the contents of the chunks that are whole now.
    pub(crate) fn read(&mut self, bytes: &[u8]) -> Vec<Vec<u8>> {
        self.rest.extend_from_slice(bytes);
        let mut contents = Vec::new();
        let mut at = 0;
        while let Some(content) = self.whole_chunk(&mut at) {
            assert!(!self.has_ended, "more after the last chunk");
            self.has_ended = content.is_empty();
            contents.push(content);
        }
        self.rest.drain(..at);
        assert!(!self.has_ended || self.rest.is_empty(), "{:?} after the last chunk", self.rest);
        contents.retain(|content| !content.is_empty());
        contents
    }

    /// Returns true if the last chunk has come.
    pub(crate) fn has_ended(&self) -> bool {
        self.has_ended
    }

    /// Returns the content of the chunk at `at`, which is moved behind it, if it is whole.
    fn whole_chunk(&self, at: &mut usize) -> Option<Vec<u8>> {
        let rest = &self.rest[*at..];
        let digits = rest.iter().position(|byte| *byte == b'\n')?;
        let digits = rest[..digits].strip_suffix(b"\r").expect("CRLF after the length");
        assert!(!digits.is_empty() && digits.iter().all(u8::is_ascii_hexdigit), "a length, not {digits:?}");
        assert!(digits == b"0" || digits[0] != b'0', "a length without leading zeros");
        let length = usize::from_str_radix(std::str::from_utf8(digits).unwrap(), 16).unwrap();
        let content = digits.len() + 2;
        let end = content + length;
        let line_end = rest.get(end..end + 2)?;
        assert_eq!(line_end, b"\r\n", "CRLF after the content");
        *at += end + 2;
        Some(rest[content..end].to_vec())
    }
}
