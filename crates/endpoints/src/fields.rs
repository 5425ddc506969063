//! Header fields: names that HTTP itself does not define, and fields that are lists.

use axum::http::{HeaderMap, HeaderName};

/// A key with which a caller may send a request again (draft-ietf-httpapi-idempotency-key-header).
pub(crate) const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// The id of the last event, from a client that comes back (HTML Standard, section 9.2.4).
pub(crate) const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");

/// Returns the members of a field that is a list: all of its lines together, without the empty members (RFC
/// 9110 sections 5.3 and 5.6.1).
pub(crate) fn list<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a [u8]> {
    headers
        .get_all(name)
        .into_iter()
        .flat_map(|line| line.as_bytes().split(|byte| *byte == b','))
        .map(<[u8]>::trim_ascii)
        .filter(|member| !member.is_empty())
}

/// Returns true if a list has this member, in any case.
pub(crate) fn has_member(headers: &HeaderMap, name: &HeaderName, member: &str) -> bool {
    list(headers, name).any(|one| one.eq_ignore_ascii_case(member.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_has_the_members_of_all_its_lines() {
        let mut headers = HeaderMap::new();
        for line in ["keep-alive ,\tUpgrade\t,", ",,", "", "close"] {
            headers.append("connection", line.parse().unwrap());
        }
        let members: Vec<_> = list(&headers, &axum::http::header::CONNECTION).collect();
        assert_eq!(members, [&b"keep-alive"[..], b"Upgrade", b"close"]);
        assert!(has_member(&headers, &axum::http::header::CONNECTION, "upgrade"));
        assert!(!has_member(&headers, &axum::http::header::CONNECTION, "keep"));
    }
}
