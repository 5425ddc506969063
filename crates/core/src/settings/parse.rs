//! From what was written to what is meant: parsers of each kind of value, which return it, or say what would
//! be right.

use std::{path::PathBuf, time::Duration};

use bytesize::ByteSize;
use figment::value::Value;
use tracing_subscriber::EnvFilter;

use super::LogFormat;
use crate::{AllowedOrigins, ApiKey, ClientMessages, ListenHost, WebOrigin, process::OpenFileLimit};

/// The words for what would be right, which follow "expected".
pub(super) type Expected = String;

/// Returns the value as it was written.
pub(super) fn display(value: &Value) -> String {
    match value {
        Value::String(_, text) => format!("{text:?}"),
        Value::Char(_, c) => format!("\"{c}\""),
        Value::Bool(_, bool) => bool.to_string(),
        Value::Num(_, number) => match (number.to_i128(), number.to_u128(), number.to_f64()) {
            (Some(n), ..) => n.to_string(),
            (_, Some(n), _) => n.to_string(),
            (.., Some(n)) => n.to_string(),
            _ => "a number".into(),
        },
        Value::Empty(..) => "nothing".into(),
        Value::Dict(..) => "a table".into(),
        Value::Array(_, items) => format!("[{}]", items.iter().map(display).collect::<Vec<_>>().join(", ")),
    }
}

/// Returns the value as it was written, without the quotes of TOML.
pub(super) fn plain(value: &Value) -> String {
    match value {
        Value::String(_, text) => text.clone(),
        value => display(value),
    }
}

/// Refuses a text with quotes around it, which some programs remove from a variable's value and others do
/// not.
pub(super) fn check(value: &Value) -> Result<(), Expected> {
    match value {
        Value::String(_, text) => check_text(text),
        Value::Array(_, items) => items.iter().try_for_each(check),
        _ => Ok(()),
    }
}

fn check_text(text: &str) -> Result<(), Expected> {
    if text.trim_ascii().starts_with(is_quote) || text.trim_ascii().ends_with(is_quote) {
        return Err("the value without quotes around it: they are part of it as it stands".into());
    }
    Ok(())
}

fn is_quote(c: char) -> bool {
    matches!(c, '"' | '\'' | '`' | '“' | '”' | '‘' | '’' | '„' | '«' | '»')
}

/// Returns true if there is nothing in a value: no text, or a list without any.
pub(super) fn is_blank(value: &Value) -> bool {
    match value {
        Value::String(_, text) => text.split(',').all(|member| member.trim().is_empty()),
        Value::Array(_, items) => items.iter().all(is_blank),
        Value::Dict(_, members) => members.is_empty(),
        _ => false,
    }
}

/// Returns a text that is not empty.
pub(super) fn as_word(value: &Value) -> Option<&str> {
    match value {
        Value::String(_, text) => Some(text.trim_ascii()).filter(|text| !text.is_empty()),
        _ => None,
    }
}

/// Returns a text, or a number as text.
pub(super) fn as_word_or_number(value: &Value) -> Option<String> {
    match value {
        Value::Num(..) => Some(display(value)),
        _ => as_word(value).map(str::to_owned),
    }
}

/// Returns a whole number: digits, without a sign or zeros before it, which mean octal to some programs.
pub(super) fn as_whole_number(value: &Value) -> Option<u64> {
    match value {
        Value::Num(_, number) => number.to_i128().and_then(|number| number.try_into().ok()),
        _ => as_word(value).filter(|text| is_whole(text))?.parse().ok(),
    }
}

fn is_whole(text: &str) -> bool {
    !text.is_empty()
        && text.bytes().all(|byte| byte.is_ascii_digit())
        && (text == "0" || !text.starts_with('0'))
}

/// The form of a list.
const LIST_FORMAT: &str = "one or more, with commas between them, and without brackets, quotes and gaps";

/// Returns a TOML array of strings, or a string with commas between its members, and perhaps one at its end.
pub(super) fn parse_list(value: &Value) -> Result<Vec<String>, Expected> {
    let members: Vec<&str> = match value {
        Value::Array(_, items) => items.iter().map(as_word).collect::<Option<_>>(),
        Value::String(_, text) if text.trim_ascii().is_empty() => Some(Vec::new()),
        Value::String(_, text) if text.trim_ascii().starts_with(['[', '{']) => None,
        Value::String(_, text) => {
            let text = text.trim_ascii();
            Some(text.strip_suffix(',').unwrap_or(text).split(',').map(str::trim_ascii).collect())
        }
        _ => None,
    }
    .ok_or(LIST_FORMAT)?;
    if members.iter().any(|member| member.is_empty()) {
        return Err(LIST_FORMAT.into());
    }
    members.iter().try_for_each(|member| check_text(member))?;
    Ok(members.into_iter().map(str::to_owned).collect())
}

/// The longest duration: a longer one is a mistake.
const MAX_DURATION: Duration = Duration::from_secs(365 * 24 * 3600);

/// In characters. Shorter keys can be guessed.
const MIN_KEY_LENGTH: usize = 16;

pub(super) fn parse_host(value: &Value) -> Result<ListenHost, Expected> {
    as_word(value).and_then(|text| text.parse().ok()).ok_or_else(|| {
        "a host name or an address without its port, such as 127.0.0.1 or ::1; 0.0.0.0 for all of this machine"
            .into()
    })
}

pub(super) fn parse_port(value: &Value) -> Result<u16, Expected> {
    as_whole_number(value)
        .and_then(|number| number.try_into().ok())
        .ok_or_else(|| "a whole number from 0 to 65535, such as 8000".into())
}

/// `http` is how many HTTP connections there may be besides.
pub(super) fn parse_max_connections(
    value: &Value,
    open_files: OpenFileLimit,
    http: usize,
) -> Result<usize, Expected> {
    let limit = open_files.get();
    parse_up_to(value, open_files.max_connections(http)).map_err(|range| {
        format!(
            "{range}, which the limit of {limit} open files (ulimit -n) leaves for clients beside \
             max_http_connections, which is {http}"
        )
    })
}

pub(super) fn parse_max_http_connections(
    value: &Value,
    open_files: OpenFileLimit,
) -> Result<usize, Expected> {
    let limit = open_files.get();
    parse_up_to(value, open_files.max_http_connections()).map_err(|range| {
        format!("{range}, which the limit of {limit} open files (ulimit -n) leaves for HTTP connections")
    })
}

/// Returns a whole number from 1 to `max`, or the words for these.
fn parse_up_to(value: &Value, max: usize) -> Result<usize, Expected> {
    let number = as_whole_number(value).and_then(|number| number.try_into().ok());
    number.filter(|n| (1..=max).contains(n)).ok_or_else(|| format!("a whole number from 1 to {max}"))
}

/// Units of time. What is longer or shorter is hardly meant, and humantime's `M` is a month.
const TIME_UNITS: [&str; 5] = ["d", "h", "m", "s", "ms"];

pub(super) fn parse_duration(value: &Value) -> Result<Duration, Expected> {
    let expected = || {
        "a number of seconds, such as 10 or 0.5, or whole numbers with the units d, h, m, s and ms, such as 30m \
         or 1h 30m"
            .to_owned()
    };
    let text = as_word_or_number(value).ok_or_else(expected)?;
    let (whole, fraction) = text.split_once('.').unwrap_or((&text, "0"));
    let duration = if is_whole(whole) && !fraction.is_empty() && fraction.bytes().all(|b| b.is_ascii_digit())
    {
        let seconds = text.parse().ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
        seconds.ok_or_else(expected)?
    } else {
        let mut units = text.split(|c: char| c.is_ascii_digit() || c == ' ').filter(|unit| !unit.is_empty());
        let parsed = if units.all(|unit| TIME_UNITS.contains(&unit)) {
            humantime::parse_duration(&text).ok()
        } else {
            None
        };
        parsed.ok_or_else(expected)?
    };
    if duration > MAX_DURATION {
        return Err(format!("at most 365 days: {}", expected()));
    }
    if duration.is_zero() && text.bytes().any(|byte| (b'1'..=b'9').contains(&byte)) {
        return Err("0, or at least a nanosecond".into());
    }
    Ok(duration)
}

/// Returns a duration, or `auto`.
pub(super) fn parse_duration_or_auto(value: &Value) -> Result<Option<Duration>, Expected> {
    match as_word(value) {
        Some("auto") => Ok(None),
        _ => parse_duration(value).map(Some).map_err(|expected| format!("auto, or {expected}")),
    }
}

/// Returns a duration that must not be 0.
pub(super) fn parse_nonzero_duration(value: &Value) -> Result<Duration, Expected> {
    parse_duration(value).and_then(|duration| {
        if duration.is_zero() { Err("more than 0 seconds".into()) } else { Ok(duration) }
    })
}

/// Returns a duration where 0 means off.
pub(super) fn parse_interval(value: &Value) -> Result<Option<Duration>, Expected> {
    match parse_duration(value)? {
        Duration::ZERO => Ok(None),
        short if short < Duration::from_millis(10) => Err("0, or at least 0.01 seconds".into()),
        duration => Ok(Some(duration)),
    }
}

/// Units of size. `K` and the like are left out: they are 1000 to some programs and 1024 to others.
const SIZE_UNITS: [&str; 9] = ["", "B", "kB", "KB", "MB", "GB", "KiB", "MiB", "GiB"];

/// The form of a size.
const SIZE_FORMAT: &str = "a number of bytes, such as 65536, or a whole number with a unit, such as 64KiB: \
                           KiB, MiB and GiB are powers of 1024, kB, MB and GB of 1000";

/// Returns a number of bytes.
fn as_bytes(value: &Value) -> Option<usize> {
    let bytes = match value {
        Value::Num(..) => as_whole_number(value),
        _ => as_word(value).and_then(|text| {
            let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
            let unit = text[digits..].trim_ascii_start();
            let is_clear = is_whole(&text[..digits]) && SIZE_UNITS.contains(&unit);
            text.parse::<ByteSize>().ok().filter(|_| is_clear).map(|size| size.as_u64())
        }),
    };
    bytes.and_then(|bytes| usize::try_from(bytes).ok())
}

pub(super) fn parse_size(value: &Value) -> Result<usize, Expected> {
    as_bytes(value)
        .filter(|size| (1..=1 << 30).contains(size))
        .ok_or_else(|| format!("from 1 byte to 1GiB: {SIZE_FORMAT}"))
}

/// Most publications of one channel: more is a database's task.
const MAX_HISTORY_SIZE: usize = 1_000_000;

/// Most bytes of all history: more is hardly meant, as it is kept in memory.
const MAX_HISTORY_BYTES: u64 = 64 << 30;

pub(super) fn parse_history_size(value: &Value) -> Result<usize, Expected> {
    as_whole_number(value)
        .and_then(|number| number.try_into().ok())
        .filter(|number| *number <= MAX_HISTORY_SIZE)
        .ok_or_else(|| format!("a whole number from 0, which turns history off, to {MAX_HISTORY_SIZE}"))
}

pub(super) fn parse_history_bytes(value: &Value) -> Result<usize, Expected> {
    as_bytes(value)
        .filter(|bytes| *bytes as u64 <= MAX_HISTORY_BYTES)
        .ok_or_else(|| format!("at most 64GiB: {SIZE_FORMAT}"))
}

/// Returns bytes a second, where 0 means no bound.
pub(super) fn parse_rate(value: &Value) -> Result<Option<u64>, Expected> {
    if as_whole_number(value) == Some(0) {
        return Ok(None);
    }
    let expected = |size| format!("0 for no bound, or a size that one second may have, {size}");
    parse_size(value).map(|size| Some(size as u64)).map_err(expected)
}

pub(super) fn parse_origins(value: &Value) -> Result<AllowedOrigins, Expected> {
    let expected =
        || "origins, such as https://example.org or http://localhost:3000 (no path), or * alone".to_owned();
    let list = parse_list(value).map_err(|why| format!("{}: {why}", expected()))?;
    match list.as_slice() {
        [] => Ok(AllowedOrigins::SameHost),
        [one] if one == "*" => Ok(AllowedOrigins::Any),
        list => {
            let read = |one: &String| parse_origin(one).map_err(|why| format!("{}; {one} {why}", expected()));
            list.iter().map(read).collect::<Result<_, _>>().map(AllowedOrigins::List)
        }
    }
}

/// Reads an origin as browsers send it (RFC 6454 section 6.2).
///
/// # Errors
/// Why it could never be the origin of a page, and what to write instead: continues from the text.
fn parse_origin(text: &str) -> Result<WebOrigin, String> {
    if text.eq_ignore_ascii_case("null") {
        return Err(
            "is what pages without an origin send, such as files and sandboxed frames, and tells none of \
                    them from another: serve the page over HTTP and list its origin"
                .into(),
        );
    }
    if text == "*" {
        return Err("allows all and must stand alone".into());
    }
    if text.contains('*') {
        return Err("has a wildcard, which is not understood: list each origin by itself".into());
    }
    let Some((scheme, authority)) = text.split_once("://") else {
        return Err(format!("has no scheme: write https://{text} or http://{text}"));
    };
    match scheme.to_ascii_lowercase().as_str() {
        "file" => {
            return Err(
                "is for files, and browsers send no origin for those that could be told apart: serve the \
                        page over HTTP and list its origin"
                    .into(),
            );
        }
        "ws" | "wss" => {
            let page = scheme.to_ascii_lowercase().replacen("ws", "http", 1);
            return Err(format!(
                "is a WebSocket's address, and not that of the page that connects: write {page}://{authority}"
            ));
        }
        _ => {}
    }
    if let Some((host, _)) = authority.split_once(['/', '?', '#']) {
        return Err(format!("has more than a host and a port: write {scheme}://{host}"));
    }
    if authority.contains('@') {
        return Err("has a user name, which is no part of an origin".into());
    }
    if !authority.is_ascii() {
        return Err("is not ASCII: write the host as browsers send it, such as xn--bcher-kva.example".into());
    }
    let origin = text.parse::<WebOrigin>().map_err(|error| format!("is {error}"))?;
    if origin.host().is_address_or_domain() {
        Ok(origin)
    } else {
        Err(format!("has the host {}, which no page comes from", origin.host()))
    }
}

pub(super) fn parse_api_keys(value: &Value) -> Result<Vec<ApiKey>, Expected> {
    let expected = || {
        format!(
            "keys of {MIN_KEY_LENGTH} or more visible ASCII characters each, without spaces or commas, such as \
             `openssl rand -hex 16` makes"
        )
    };
    let keys = parse_list(value).map_err(|why| format!("{}: {why}", expected()))?;
    let is_key =
        |key: &String| key.len() >= MIN_KEY_LENGTH && key.bytes().all(|byte| byte.is_ascii_graphic());
    if keys.iter().all(is_key) { Ok(keys.into_iter().map(ApiKey::new).collect()) } else { Err(expected()) }
}

pub(super) fn parse_client_messages(value: &Value) -> Result<ClientMessages, Expected> {
    match as_word(value) {
        Some("broadcast") => Ok(ClientMessages::Broadcast),
        Some("ignore") => Ok(ClientMessages::Ignore),
        Some("echo") => Ok(ClientMessages::Echo),
        _ => Err("broadcast, ignore or echo".into()),
    }
}

pub(super) fn parse_log_format(value: &Value) -> Result<LogFormat, Expected> {
    match as_word(value) {
        Some("auto") => Ok(LogFormat::Auto),
        Some("pretty") => Ok(LogFormat::Pretty),
        Some("json") => Ok(LogFormat::Json),
        _ => Err("auto, pretty or json".into()),
    }
}

/// The beginnings of the targets of our log lines: the names of our crates.
const LOG_TARGET: &str = "lastcall";

/// Levels, directives with a level, and our own crates without one. Any other lone word would count as a
/// target and turn everything else off, which is hardly what a misspelt level is meant to do. Nor is a filter
/// meant for us that names only targets of others: it would turn all of our lines off.
pub(super) fn parse_log_level(value: &Value) -> Result<String, Expected> {
    let levels = ["off", "error", "warn", "info", "debug", "trace"];
    let is_level = |word: &str| levels.iter().any(|level| word.trim().eq_ignore_ascii_case(level));
    let is_directive = |part: &str| match part.rsplit_once('=') {
        Some((_, level)) => is_level(level),
        None => is_level(part) || part.trim().starts_with(LOG_TARGET),
    };
    // A filter takes a target for all that begin with it.
    let is_ours = |part: &str| {
        let target = part.split(['=', '[']).next().unwrap_or(part).trim();
        is_level(part)
            || target.starts_with(LOG_TARGET)
            || !target.is_empty() && LOG_TARGET.starts_with(target)
    };
    let is_filter =
        |text: &&str| text.split(',').all(is_directive) && EnvFilter::builder().parse(text).is_ok();
    let text = as_word(value)
        .filter(is_filter)
        .ok_or("error, warn, info, debug or trace, or directives, such as info,lastcall_websockets=debug")?;
    if text.split(',').any(is_ours) {
        return Ok(text.to_owned());
    }
    Err(format!(
        "a filter that names a level for {LOG_TARGET}, too, such as info,{text}: this one turns all of its lines off"
    ))
}

pub(super) fn parse_folder(value: &Value) -> Result<Option<PathBuf>, Expected> {
    parse_path(value, "folder")
}

pub(super) fn parse_file(value: &Value) -> Result<Option<PathBuf>, Expected> {
    match parse_path(value, "file")? {
        Some(path) if path.as_os_str().as_encoded_bytes().ends_with(b"/") || path.file_name().is_none() => {
            Err("the path of a file, and not of a folder".into())
        }
        path => Ok(path),
    }
}

/// Returns the path of a file or a folder, whichever `what` says; `None` if it is empty.
fn parse_path(value: &Value, what: &str) -> Result<Option<PathBuf>, Expected> {
    match value {
        Value::String(_, path) if path.trim_ascii().is_empty() => Ok(None),
        Value::String(_, path) if path.trim_ascii() != path => {
            Err(format!("the path of a {what}, without white space before and after it"))
        }
        Value::String(_, path) if path.starts_with('~') => {
            Err(format!("the whole path of a {what}: `~` is for shells, or ./~ for a {what} of that name"))
        }
        Value::String(_, path) => Ok(Some(PathBuf::from(path))),
        _ => Err(format!("the path of a {what}")),
    }
}
