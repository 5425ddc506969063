//! The text of a value, as it was written.

use figment::value::Value;

/// What would be right, in words that follow "expected".
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

/// Refuses a text with quotes around it, which some programs remove from a variable's value and others do not.
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
pub(super) fn word(value: &Value) -> Option<&str> {
    match value {
        Value::String(_, text) => Some(text.trim_ascii()).filter(|text| !text.is_empty()),
        _ => None,
    }
}

/// Returns a text, or a number as text.
pub(super) fn word_or_number(value: &Value) -> Option<String> {
    match value {
        Value::Num(..) => Some(display(value)),
        _ => word(value).map(str::to_owned),
    }
}

/// Returns a whole number: digits, without a sign or zeros before it, which mean octal to some programs.
pub(super) fn whole_number(value: &Value) -> Option<u64> {
    match value {
        Value::Num(_, number) => number.to_i128().and_then(|number| number.try_into().ok()),
        _ => word(value).filter(|text| is_whole(text))?.parse().ok(),
    }
}

pub(super) fn is_whole(text: &str) -> bool {
    !text.is_empty()
        && text.bytes().all(|byte| byte.is_ascii_digit())
        && (text == "0" || !text.starts_with('0'))
}

/// How a list is written.
const LIST_FORMAT: &str = "one or more, with commas between them, and without brackets, quotes and gaps";

/// Returns a TOML array of strings, or a string with commas between its members, and perhaps one at its end.
pub(super) fn list(value: &Value) -> Result<Vec<String>, Expected> {
    let members: Vec<&str> = match value {
        Value::Array(_, items) => items.iter().map(word).collect::<Option<_>>(),
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
