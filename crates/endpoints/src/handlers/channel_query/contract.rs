//! The contract of queries in `docs/protocol.md`, in other words than the parser: for generated queries, and
//! for the fuzzer. Both decode with the same library, which has tests of its own.

use lastcall_websockets::{ChannelRequest, Since};
use url::form_urlencoded;

use super::{parse, parse_for_events};

/// Most channels of a client.
const MAX_CHANNELS: usize = 128;

/// Most bytes of a query with a position for each channel.
const MAX_BYTES: usize = 16 * 1024;

/// Parses a query as `/ws` and `/events` do, the latter with this header field `Last-Event-ID`. Panics if
/// that is not what the contract says.
pub(crate) fn check(query: &str, field: Option<&[u8]>) {
    let pairs = pairs(query);
    let values = |wanted: &str| -> Vec<&str> {
        pairs.iter().filter(|(key, _)| key == wanted).map(|(_, value)| value.as_str()).collect()
    };
    let (mut names, sinces) = (values("channel"), values("since"));
    if names.is_empty() && !sinces.is_empty() {
        names.push("broadcast");
    }
    let mut distinct = names.clone();
    distinct.sort_unstable();
    distinct.dedup();
    // Other spellings of them.
    let is_other = |key: &str| {
        let lower = key.to_ascii_lowercase();
        let spellings = ["channel", "channels", "chanel", "chanels", "topic", "topics", "since"];
        !["channel", "since"].contains(&key)
            && spellings.iter().any(|one| lower == *one || lower.starts_with(&format!("{one}[")))
    };
    let is_allowed = names.iter().all(|name| is_name(name))
        && !pairs.iter().any(|(key, _)| is_other(key))
        && bytes(query, names.len()) <= MAX_BYTES
        && (sinces.is_empty() || sinces.len() == names.len())
        && distinct.len() <= MAX_CHANNELS;
    let (for_websocket, for_events) = (parse(query), parse_for_events(query, field));
    assert_eq!((for_websocket.is_ok(), for_events.is_ok()), (is_allowed, is_allowed), "{query:?}");
    let (Ok(channels), Ok(of_events)) = (for_websocket, for_events) else { return };

    assert!(channels.len() <= MAX_CHANNELS && channels.len() == distinct.len(), "each once: {query:?}");
    // Where each is named first.
    let mut firsts = Vec::new();
    for ChannelRequest { name, since } in &channels {
        let first = names.iter().position(|one| *one == name.as_str()).expect("a channel that is named");
        assert_eq!(*since, meaning(sinces.get(first).unwrap_or(&"")), "{name} in {query:?}");
        firsts.push(first);
    }
    assert!(firsts.is_sorted(), "in their order: {query:?}");
    let encoded = encode(&channels);
    if bytes(&encoded, channels.len()) <= MAX_BYTES {
        assert_eq!(parse(&encoded).ok().as_ref(), Some(&channels), "{query:?}");
    }

    let mut expected = channels;
    if expected.is_empty() {
        expected.push(ChannelRequest { name: "broadcast".parse().expect("a name"), since: Since::Now });
    }
    let id = match field {
        Some(field) => String::from_utf8_lossy(field).into_owned(),
        None => {
            let plain = |key: &str| key.replace(['-', '_'], "").to_ascii_lowercase();
            let id = pairs.iter().rfind(|(key, _)| plain(key) == "lasteventid");
            id.map(|(_, id)| id.clone()).unwrap_or_default()
        }
    };
    if !id.is_empty() {
        let ids: Vec<_> = id.split(',').collect();
        let is_for_these = ids.len() == expected.len();
        for (index, channel) in expected.iter_mut().enumerate() {
            channel.since = if is_for_these { meaning(ids[index]) } else { Since::Invalid };
        }
    }
    assert_eq!(of_events, expected, "{query:?} with {field:?}");
}

/// Returns the bytes of a query that has `&since=` with 37 bytes for each channel, and else what it has now.
fn bytes(query: &str, channels: usize) -> usize {
    let is_position = |pair: &str| {
        pairs(pair).first().is_some_and(|(key, _)| {
            key == "since" || key.replace(['-', '_'], "").eq_ignore_ascii_case("lasteventid")
        })
    };
    let others: usize = query.split('&').filter(|pair| !is_position(pair)).map(|pair| pair.len() + 1).sum();
    others + channels.max(1) * 44
}

/// Returns true if a text may be the name of a channel.
fn is_name(text: &str) -> bool {
    (1..=255).contains(&text.len())
        && text.chars().all(|letter| ('!'..='~').contains(&letter) && !",*&\\".contains(letter))
}

/// Returns what a client means by an id.
fn meaning(id: &str) -> Since {
    match (id, id.parse()) {
        ("", _) => Since::Now,
        (_, Ok(position)) => Since::Position(position),
        (_, Err(_)) => Since::Invalid,
    }
}

/// Returns the parameters of a query, decoded.
fn pairs(query: &str) -> Vec<(String, String)> {
    form_urlencoded::parse(query.as_bytes()).into_owned().collect()
}

/// Returns a query that names these channels, with every letter of a name escaped.
fn encode(channels: &[ChannelRequest]) -> String {
    let mut query = String::new();
    for ChannelRequest { name, since } in channels {
        let name: String = name.as_str().bytes().map(|byte| format!("%{byte:02X}")).collect();
        let since = match since {
            Since::Now => String::new(),
            Since::Position(position) => position.to_string(),
            Since::Invalid => "invalid".to_owned(),
        };
        query += &format!("&channel={name}&since={since}");
    }
    query
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn name() -> impl Strategy<Value = String> {
        prop_oneof![
            // A few come again and again.
            3 => prop::sample::select(vec!["a", "b", "broadcast", "chat:room"]).prop_map(str::to_owned),
            // All that is allowed.
            3 => "[!-~&&[^,*&\\\\]]{1,8}",
        ]
    }

    fn id() -> impl Strategy<Value = String> {
        prop_oneof![
            Just(String::new()),
            (any::<u64>(), any::<u64>()).prop_map(|(epoch, offset)| format!("{epoch:016x}-{offset}")),
            "[0-9a-f,+ -]{0,20}",
        ]
    }

    /// A name or an id that may be neither.
    fn any_value() -> impl Strategy<Value = String> {
        prop_oneof![
            name(),
            id(),
            (254..258_usize).prop_map(|length| "n".repeat(length)),
            "[ -~]{0,4}",
            any::<String>()
        ]
    }

    /// Two of the ways to write a text in a query.
    fn escaped(text: &str, way: bool) -> String {
        match way {
            true => form_urlencoded::byte_serialize(text.as_bytes()).collect(),
            false => text.bytes().map(|byte| format!("%{byte:02x}")).collect(),
        }
    }

    fn parameter() -> impl Strategy<Value = String> {
        let key = prop_oneof![
            6 => Just("channel"),
            3 => Just("since"),
            1 => prop::sample::select(vec!["last_event_id", "lastEventId", "Last-Event-ID"]),
            1 => prop::sample::select(vec![
                "ch%61nnel", "channels", "Channel", "channel[]", "topic", "since%5B%5D", "token", ""
            ]),
        ];
        // What is not escaped may have a meaning in a query.
        let value = (any_value(), any::<Option<bool>>())
            .prop_map(|(value, way)| way.map_or_else(|| value.clone(), |way| escaped(&value, way)));
        prop_oneof![
            8 => (key, value).prop_map(|(key, value)| format!("{key}={value}")),
            1 => any::<String>(),
        ]
    }

    fn channels() -> impl Strategy<Value = Vec<(String, String, bool)>> {
        let few = prop::collection::vec(name(), 0..6);
        // About as many as there may be, some of them twice.
        let many = (MAX_CHANNELS - 1..MAX_CHANNELS + 2, 0..3_usize).prop_map(|(count, twice)| {
            (0..count).chain(0..twice).map(|number| format!("c{number}")).collect::<Vec<_>>()
        });
        let names = prop_oneof![4 => few, 1 => many.prop_shuffle()];
        names.prop_flat_map(|names| {
            let others = prop::collection::vec((id(), any::<bool>()), names.len());
            others.prop_map(move |others| {
                names.iter().cloned().zip(others).map(|(name, (id, way))| (name, id, way)).collect()
            })
        })
    }

    fn field() -> impl Strategy<Value = Option<Vec<u8>>> {
        prop_oneof![
            Just(None),
            prop::collection::vec(id(), 0..4).prop_map(|ids| Some(ids.join(",").into_bytes())),
            prop::collection::vec(any::<u8>(), 0..20).prop_map(Some),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1000))]

        #[test]
        fn any_query_means_what_the_contract_says(
            query in any::<String>(),
            field in field(),
        ) {
            check(&query, field.as_deref());
        }

        #[test]
        fn any_parameters_mean_what_the_contract_says(
            parameters in prop::collection::vec(parameter(), 0..6),
            field in field(),
        ) {
            check(&parameters.join("&"), field.as_deref());
        }

        #[test]
        fn channels_are_read_as_they_were_written(
            channels in channels(),
            with_since in any::<bool>(),
        ) {
            let mut query = Vec::new();
            let mut expected: Vec<ChannelRequest> = Vec::new();
            for (name, id, way) in &channels {
                query.push(format!("channel={}", escaped(name, *way)));
                if with_since {
                    query.push(format!("since={}", escaped(id, *way)));
                }
                if !expected.iter().any(|one| one.name.as_str() == name) {
                    let since = if with_since { meaning(id) } else { Since::Now };
                    expected.push(ChannelRequest { name: name.parse().unwrap(), since });
                }
            }
            let read = parse(&query.join("&")).ok();
            prop_assert_eq!(read, Some(expected).filter(|expected| expected.len() <= MAX_CHANNELS));
        }
    }
}
