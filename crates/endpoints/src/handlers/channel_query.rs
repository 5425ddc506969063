//! The channels that a client names in the query of its URL, and the positions from which on it wants them.

#[cfg(any(test, fuzzing))]
pub(crate) mod contract;

use lastcall_core::{CHANNEL_NAME_RULE, ChannelName};
use lastcall_websockets::{ChannelRequest, MAX_CHANNELS, Since};
use url::form_urlencoded;

use crate::{
    error::{ApiError, ErrorCode},
    request::MAX_QUERY,
};

/// The length of the longest position: an epoch of 16 digits, `-`, and an offset of 20 digits.
const LONGEST_POSITION: usize = 16 + 1 + 20;

/// Returns the channels of a query such as `channel=a&channel=b&since=ID&since=`, each once, in their order.
/// Without `channel`, `since` is for `broadcast`; without both, there are none.
///
/// # Errors
/// When a name is not valid, there are too many, or `since` is not there once for each `channel`.
pub(crate) fn parse(query: &str) -> Result<Vec<ChannelRequest>, ApiError> {
    let (mut names, mut sinces) = (Vec::new(), Vec::new());
    for (key, value) in form_urlencoded::parse(query.as_bytes()) {
        match &*key {
            "channel" => names.push(value.parse().map_err(|_| bad_channel(format!("{CHANNEL_NAME_RULE}.")))?),
            "since" => sinces.push(since(&value)),
            // Unknown parameters are ignored: proxies and clients add their own.
            key => {
                if let Some(right) = other_spelling(key) {
                    return Err(bad_channel(format!(
                        "The parameter `{key}` is not known: it is `{right}`, once for each channel, as in \
                         `channel=a&channel=b`."
                    )));
                }
            }
        }
    }
    let size = size_with_positions(query, names.len().max(1));
    if size > MAX_QUERY {
        return Err(bad_channel(format!(
            "A client could not come back: with a position for each of its {} channels, the query would have {size} \
             bytes, and may have {MAX_QUERY}. Name fewer channels, or use shorter names.",
            names.len()
        )));
    }
    if names.is_empty() && !sinces.is_empty() {
        names.push(ChannelName::broadcast());
    }
    if !sinces.is_empty() && sinces.len() != names.len() {
        return Err(bad_channel(format!(
            "There must be one `since` for each `channel`, in the same order, which may be empty: there are {} for {}.",
            sinces.len(),
            names.len()
        )));
    }
    sinces.resize(names.len(), Since::Now);
    let mut channels: Vec<ChannelRequest> = Vec::new();
    for (name, since) in names.into_iter().zip(sinces) {
        if !channels.iter().any(|channel| channel.name == name) {
            channels.push(ChannelRequest { name, since });
        }
        if channels.len() > MAX_CHANNELS {
            return Err(bad_channel(format!("A connection may have at most {MAX_CHANNELS} channels.")));
        }
    }
    Ok(channels)
}

/// Returns the most bytes that a query with this number of channels may have once the client knows the
/// position of each. The positions that it has now do not count.
fn size_with_positions(query: &str, channels: usize) -> usize {
    let others = query.split('&').filter(|pair| {
        let key = form_urlencoded::parse(pair.as_bytes()).next().map(|(key, _)| key);
        !key.is_some_and(|key| key == "since" || is_last_event_id(&key))
    });
    let others: usize = others.map(|pair| pair.len() + 1).sum();
    others + channels * ("since=&".len() + LONGEST_POSITION)
}

/// Returns the parameter that a client hardly means to have ignored, as it would get too little, or other
/// channels: its name where another program has lists, a plural or a misspelling, in any case.
pub(crate) fn other_spelling(key: &str) -> Option<&'static str> {
    const OF_CHANNEL: [&str; 6] = ["channel", "channels", "chanel", "chanels", "topic", "topics"];
    let name = key.split_once('[').map_or(key, |(name, _)| name);
    if key == "channel" || key == "since" {
        None
    } else if OF_CHANNEL.iter().any(|other| name.eq_ignore_ascii_case(other)) {
        Some("channel")
    } else {
        name.eq_ignore_ascii_case("since").then_some("since")
    }
}

/// Returns true if a parameter is the id of the last event, whatever its case and its dashes: `lastEventId`
/// is what clients in JavaScript send that cannot set the header field.
fn is_last_event_id(key: &str) -> bool {
    let letters = key.bytes().filter(|byte| !b"-_".contains(byte));
    letters.map(|byte| byte.to_ascii_lowercase()).eq(*b"lasteventid")
}

/// Returns the channels of a client of `/events`: without any, `broadcast`. The id of the last event, from
/// `field` (the header field `Last-Event-ID`) or the query, wins over `since`.
///
/// # Errors
/// Those of [`parse`].
pub(crate) fn parse_for_events(query: &str, field: Option<&[u8]>) -> Result<Vec<ChannelRequest>, ApiError> {
    let mut channels = parse(query)?;
    if channels.is_empty() {
        channels.push(ChannelRequest { name: ChannelName::broadcast(), since: Since::Now });
    }
    if let Some(id) = last_event_id(query, field) {
        // A browser does not try again after an error: an id that fits nothing is one that cannot be
        // recovered.
        let ids: Vec<_> = id.split(',').collect();
        let fits = ids.len() == channels.len();
        for (index, channel) in channels.iter_mut().enumerate() {
            channel.since = if fits { since(ids[index]) } else { Since::Invalid };
        }
    }
    Ok(channels)
}

/// Returns the id of the last event that a client has. The field wins: an `EventSource` that comes back has
/// the URL with which it began.
fn last_event_id(query: &str, field: Option<&[u8]>) -> Option<String> {
    let field = field.map(|id| String::from_utf8_lossy(id).into_owned());
    let parameter = || {
        // The last one: clients that cannot set the field add theirs to the URL with which they began.
        let pairs = form_urlencoded::parse(query.as_bytes());
        pairs.filter(|(key, _)| is_last_event_id(key)).last().map(|(_, id)| id.into_owned())
    };
    field.or_else(parameter).filter(|id| !id.is_empty())
}

/// Returns what a client means by an id.
pub(crate) fn since(id: &str) -> Since {
    match id {
        "" => Since::Now,
        id => id.parse().map_or(Since::Invalid, Since::Position),
    }
}

fn bad_channel(message: String) -> ApiError {
    let mut letters = message.chars();
    let first = letters.next().map(|letter| letter.to_ascii_uppercase());
    ApiError::new(ErrorCode::BadChannel, first.into_iter().chain(letters).collect::<String>())
}

#[cfg(test)]
mod tests {
    use axum::response::IntoResponse;
    use lastcall_core::{Epoch, Position};

    use super::*;

    fn read(query: &str) -> Vec<(String, Since)> {
        let channels = parse(query).unwrap_or_else(|error| panic!("{query}: {error:?}"));
        channels.into_iter().map(|channel| (channel.name.to_string(), channel.since)).collect()
    }

    #[test]
    fn a_query_names_channels_with_their_positions() {
        let at = |offset| Since::Position(Position { epoch: Epoch(10), offset });
        for (query, expected) in [
            ("", vec![]),
            ("token=a", vec![]),
            ("channel_id=a&topical=b&my_channel=c&sinces=d&[]=e&", vec![]),
            ("channel=a", vec![("a", Since::Now)]),
            ("channel=b&channel=a&channel=b", vec![("b", Since::Now), ("a", Since::Now)]),
            ("channel=chat%3Aroom%201".trim_end_matches("%201"), vec![("chat:room", Since::Now)]),
            ("channel=a&since=000000000000000a-3", vec![("a", at(3))]),
            ("since=000000000000000a-3", vec![("broadcast", at(3))]),
            (
                "channel=a&channel=b&channel=c&since=&since=000000000000000a-3&since=x",
                vec![("a", Since::Now), ("b", at(3)), ("c", Since::Invalid)],
            ),
            // The first one counts.
            ("channel=a&channel=a&since=000000000000000a-3&since=", vec![("a", at(3))]),
        ] {
            let expected: Vec<_> =
                expected.into_iter().map(|(name, since)| (name.to_owned(), since)).collect();
            assert_eq!(read(query), expected, "{query}");
        }
        let most: Vec<_> = (0..MAX_CHANNELS).map(|number| format!("channel=c{number}")).collect();
        assert_eq!(read(&most.join("&")).len(), MAX_CHANNELS);
    }

    #[test]
    fn the_last_event_id_has_its_name_in_any_case_with_any_dashes() {
        for key in ["last_event_id", "lastEventId", "last-event-id", "Last-Event-ID", "LASTEVENTID"] {
            let channels = parse_for_events(&format!("channel=a&{key}=000000000000000a-3"), None).unwrap();
            let at = Since::Position(Position { epoch: Epoch(10), offset: 3 });
            assert_eq!(channels[0].since, at, "{key}");
        }
        let query = "channel=a&last_event_id=000000000000000a-1&lastEventId=000000000000000a-3";
        let channels = parse_for_events(query, None).unwrap();
        let at = Since::Position(Position { epoch: Epoch(10), offset: 3 });
        assert_eq!(channels[0].since, at, "what a client adds is newer than what it began with");
        for key in ["last_event", "event_id", "lastEventIds", "mylastEventId"] {
            let channels = parse_for_events(&format!("channel=a&{key}=000000000000000a-3"), None).unwrap();
            assert_eq!(channels[0].since, Since::Now, "{key}");
        }
    }

    #[test]
    fn a_query_has_the_size_that_it_has_with_the_longest_positions() {
        let longest = Position { epoch: Epoch(u64::MAX), offset: u64::MAX }.to_string();
        assert_eq!(longest.len(), LONGEST_POSITION);
        let full = format!("channel=a&channel=%62&since={longest}&token=x&since={longest}");
        for query in [
            &full,
            "channel=a&channel=%62&token=x",
            "channel=a&channel=%62&token=x&since=&since=0-1",
            "channel=a&channel=%62&token=x&lastEventId=1%2C2",
        ] {
            // With a `&` at its end.
            assert_eq!(size_with_positions(query, 2), full.len() + 1, "{query}");
        }
        // Whether a client may come back does not depend on the positions that it has.
        let name = "n".repeat(255);
        let most = |count: usize| vec![format!("channel={name}"); count].join("&");
        let count = MAX_QUERY / (format!("channel={name}&since={longest}&").len());
        for with in [String::new(), vec![format!("&since={longest}"); count].concat()] {
            assert!(parse(&(most(count) + &with)).is_ok());
        }
        assert!(parse(&most(count + 1)).is_err());
    }

    #[test]
    fn a_query_that_names_no_valid_channel_is_refused() {
        let too_many: Vec<_> = (0..=MAX_CHANNELS).map(|number| format!("channel=c{number}")).collect();
        for query in [
            "channel=",
            "channel=a+b",
            "channel=a,b",
            "channel=%C3%A9",
            "channel=%ff",
            "channel=a%00",
            "channel=a&since=&since=",
            "channel=a&channel=b&since=",
            "since=&since=",
            "channel[]=a",
            "channel%5B%5D=a&channel%5B%5D=b",
            "channel[0]=a",
            "channel=a&Channel=b",
            "channel=a&channels=b",
            "CHANNELS=a,b",
            "chanel=a",
            "topic=a",
            "topics[]=a",
            "since[]=a",
            "channel=a&Since=x",
            &too_many.join("&"),
        ] {
            let status = parse(query).unwrap_err().into_response().status();
            assert_eq!(status, axum::http::StatusCode::BAD_REQUEST, "{query}");
        }
    }
}
