//! The `Date` of responses.
//!
//! hyper would add one, and one from the future for as long as the clock was set back.

use std::cell::RefCell;

use hyper::header::HeaderValue;
use jiff::fmt::rfc2822::DateTimePrinter;
use lastcall_core::clock;

const FIRST: HeaderValue = HeaderValue::from_static("Thu, 01 Jan 1970 00:00:00 GMT");

thread_local! {
    /// The last one that was made, with its second.
    static LAST: RefCell<(i64, HeaderValue)> = const { RefCell::new((0, FIRST)) };
}

/// Returns the date for a response that is sent now.
pub(super) fn date() -> HeaderValue {
    let now = clock::timestamp();
    LAST.with_borrow_mut(|(second, date)| {
        if *second != now.as_second() {
            let text = DateTimePrinter::new().timestamp_to_rfc9110_string(&now).ok();
            let made = text.and_then(|text| HeaderValue::try_from(text).ok());
            // There is a date for every time that the clock returns.
            (*second, *date) = (now.as_second(), made.unwrap_or(FIRST));
        }
        date.clone()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_date_is_that_of_now_as_http_writes_it() {
        let before = clock::timestamp().as_second();
        let text = date();
        let text = text.to_str().unwrap();
        assert!(text.ends_with(" GMT") && text.len() == FIRST.len(), "{text}");
        let read = jiff::fmt::rfc2822::parse(text).unwrap().timestamp().as_second();
        assert!((before..=clock::timestamp().as_second()).contains(&read), "{text}");
    }
}
