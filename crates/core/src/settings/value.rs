//! From what was written to what is meant. Each reads one kind of value, or says what would be right.

use std::{path::PathBuf, time::Duration};

use bytesize::ByteSize;
use figment::value::Value;
use tracing_subscriber::EnvFilter;

use super::{AllowedOrigins, ApiKey, ClientMessages, LogFormat, web_origin::web_origin};

/// What would be right.
pub(super) type Expected = String;

/// A duration that nobody means.
const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);

/// Shorter keys can be guessed.
const SHORTEST_KEY: usize = 16;

/// The value as it was written.
pub(super) fn shown(value: &Value) -> String {
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
        Value::Array(_, items) => format!("[{}]", items.iter().map(shown).collect::<Vec<_>>().join(", ")),
    }
}

/// A string or a number, as text.
fn text(value: &Value) -> Option<String> {
    match value {
        Value::String(_, text) => Some(text.trim().to_owned()),
        Value::Num(..) => Some(shown(value)),
        _ => None,
    }
}

fn filled(value: &Value) -> Option<String> {
    text(value).filter(|text| !text.is_empty())
}

pub(super) fn host(value: &Value) -> Result<String, Expected> {
    filled(value)
        .filter(|host| !host.contains(|c: char| c.is_whitespace() || c == '/'))
        .ok_or_else(|| "a host name or an address, such as 127.0.0.1".into())
}

pub(super) fn port(value: &Value) -> Result<u16, Expected> {
    text(value)
        .and_then(|text| text.parse().ok())
        .ok_or_else(|| "a whole number from 0 to 65535, such as 8000".into())
}

pub(super) fn connections(value: &Value, (most, limit): (usize, usize)) -> Result<usize, Expected> {
    text(value).and_then(|text| text.parse().ok()).filter(|n| (1..=most).contains(n)).ok_or_else(|| {
        format!(
            "a whole number from 1 to {most}, which the limit of {limit} open files (ulimit -n) leaves for clients"
        )
    })
}

pub(super) fn duration(value: &Value) -> Result<Duration, Expected> {
    let expected = || "a number of seconds, such as 10 or 0.5, or words, such as 30m or 1h 30m".to_owned();
    let text = text(value).ok_or_else(expected)?;
    let duration = match text.parse::<f64>() {
        Ok(seconds) => Duration::try_from_secs_f64(seconds).map_err(|_| expected())?,
        Err(_) => humantime::parse_duration(&text).map_err(|_| expected())?,
    };
    if duration > YEAR {
        return Err(format!("at most 365 days: {}", expected()));
    }
    Ok(duration)
}

/// A duration, or `auto`.
pub(super) fn pace(value: &Value) -> Result<Option<Duration>, Expected> {
    match text(value).as_deref() {
        Some("auto") => Ok(None),
        _ => duration(value).map(Some).map_err(|expected| format!("auto, or {expected}")),
    }
}

/// A duration that must not be 0.
pub(super) fn some_time(value: &Value) -> Result<Duration, Expected> {
    duration(value).and_then(|duration| {
        if duration.is_zero() { Err("more than 0 seconds".into()) } else { Ok(duration) }
    })
}

/// A duration where 0 means off.
pub(super) fn interval(value: &Value) -> Result<Option<Duration>, Expected> {
    match duration(value)? {
        Duration::ZERO => Ok(None),
        short if short < Duration::from_millis(10) => Err("0, or at least 0.01 seconds".into()),
        duration => Ok(Some(duration)),
    }
}

pub(super) fn size(value: &Value) -> Result<usize, Expected> {
    filled(value)
        .and_then(|text| text.parse::<ByteSize>().ok())
        .and_then(|size| usize::try_from(size.as_u64()).ok())
        .filter(|size| (1..=1 << 30).contains(size))
        .ok_or_else(|| {
            "from 1 byte to 1GiB: a number of bytes, such as 65536, or a size, such as 64KiB".into()
        })
}

/// A TOML array of strings, or strings with commas between them.
fn list(value: &Value) -> Option<Vec<String>> {
    match value {
        Value::Array(_, items) => items.iter().map(filled).collect(),
        other => text(other).map(|text| {
            text.split(',').map(str::trim).filter(|one| !one.is_empty()).map(str::to_owned).collect()
        }),
    }
}

pub(super) fn origins(value: &Value) -> Result<AllowedOrigins, Expected> {
    let expected =
        || "origins, such as https://example.org or http://localhost:3000 (no path), or * alone".to_owned();
    let list = list(value).ok_or_else(expected)?;
    match list.as_slice() {
        [] => Ok(AllowedOrigins::SameHost),
        [one] if one == "*" => Ok(AllowedOrigins::Any),
        list => {
            let read = |one: &String| web_origin(one).map_err(|why| format!("{}; {one} {why}", expected()));
            list.iter().map(read).collect::<Result<_, _>>().map(AllowedOrigins::List)
        }
    }
}

pub(super) fn keys(value: &Value) -> Result<Vec<ApiKey>, Expected> {
    list(value)
        .filter(|keys| {
            keys.iter().all(|key| key.len() >= SHORTEST_KEY && key.bytes().all(|byte| byte.is_ascii_graphic()))
        })
        .map(|keys| keys.into_iter().map(ApiKey::new).collect())
        .ok_or_else(|| {
            format!(
                "keys of {SHORTEST_KEY} or more visible ASCII characters each, without spaces or commas, such as \
                 `openssl rand -hex 16` makes"
            )
        })
}

pub(super) fn client_messages(value: &Value) -> Result<ClientMessages, Expected> {
    match text(value).as_deref() {
        Some("broadcast") => Ok(ClientMessages::Broadcast),
        Some("ignore") => Ok(ClientMessages::Ignore),
        Some("echo") => Ok(ClientMessages::Echo),
        _ => Err("broadcast, ignore or echo".into()),
    }
}

pub(super) fn log_format(value: &Value) -> Result<LogFormat, Expected> {
    match text(value).as_deref() {
        Some("auto") => Ok(LogFormat::Auto),
        Some("pretty") => Ok(LogFormat::Pretty),
        Some("json") => Ok(LogFormat::Json),
        _ => Err("auto, pretty or json".into()),
    }
}

/// Levels, directives with a level, and our own crates without one. Any other lone word would count as a
/// target and turn everything else off, which is hardly what a misspelt level is meant to do.
pub(super) fn log_level(value: &Value) -> Result<String, Expected> {
    filled(value)
        .filter(|text| {
            let levels = ["off", "error", "warn", "info", "debug", "trace"];
            let is_level = |word: &str| levels.iter().any(|level| word.trim().eq_ignore_ascii_case(level));
            let is_directive = |part: &str| match part.rsplit_once('=') {
                Some((_, level)) => is_level(level),
                None => is_level(part) || part.trim().starts_with("lastcall"),
            };
            text.split(',').all(is_directive) && EnvFilter::builder().parse(text).is_ok()
        })
        .ok_or_else(|| {
            "error, warn, info, debug or trace, or directives, such as info,lastcall_websockets=debug".into()
        })
}

pub(super) fn folder(value: &Value) -> Result<Option<PathBuf>, Expected> {
    match value {
        Value::String(_, path) if path.trim().is_empty() => Ok(None),
        Value::String(_, path) => Ok(Some(PathBuf::from(path))),
        _ => Err("the path of a folder".into()),
    }
}
