//! What a client has sent, for the log.

/// Returns the beginning of a text: about `most` bytes of it, on one line, without characters that act on a terminal or
/// cannot be seen.
pub(super) fn printable(bytes: &[u8], most: usize) -> String {
    // Whatever is cut off is not looked at: a head may have thousands of bytes.
    let start = &bytes[..bytes.len().min(most)];
    let mut text = String::new();
    for c in String::from_utf8_lossy(start).chars() {
        if text.len() >= most {
            return text + "…";
        }
        if c.is_ascii_graphic() || c == ' ' || c.is_alphanumeric() || c == '…' {
            text.push(c);
        } else {
            text.extend(c.escape_default());
        }
    }
    if start.len() < bytes.len() { text + "…" } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_bounded_and_cannot_act_on_a_terminal() {
        assert_eq!(printable(b"http://localhost:5173", 100), "http://localhost:5173");
        assert_eq!(printable("a \"b\" `c` ü".as_bytes(), 100), "a \"b\" `c` ü");
        assert_eq!(printable(b"\x1b[2J\r\nlevel=ERROR", 100), "\\u{1b}[2J\\r\\nlevel=ERROR");
        // Overrides the direction of what follows; a C1 control character; not UTF-8.
        assert_eq!(printable("\u{202e}\u{9b}".as_bytes(), 100), "\\u{202e}\\u{9b}");
        assert_eq!(printable(b"\xff", 100), "\\u{fffd}");
        assert_eq!(printable(&[b'x'; 5000], 8), "xxxxxxxx…");
        let worst = printable(&[0xff; 5000], 200);
        assert!(worst.len() < 220, "{worst}");
    }
}
