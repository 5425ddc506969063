//! Refused requests: each is counted by its code, and logged at a bounded rate, so that no client can fill
//! the log.

mod request_summary;

use std::{
    borrow::Cow,
    collections::BTreeMap,
    mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use axum::{http::header::ACCESS_CONTROL_ALLOW_ORIGIN, response::Response};
use tokio::time::Instant;
use tracing::{debug, field::display, info, warn};

pub(crate) use self::request_summary::RequestSummary;
use self::request_summary::printable;
use crate::{
    error::{ApiError, ErrorCode},
    line_rate::LineRate,
};

/// Refusals by code.
pub type RefusalCounts = BTreeMap<Cow<'static, str>, u64>;

/// Codes of refusals that are not in [`ErrorCode`]: hyper answers without a body.
const WITHOUT_BODY: [&str; 2] = ["malformed_request", "head_too_large"];

/// Longest text of a refusal in the log, in bytes.
const MAX_MESSAGE: usize = 400;

/// All refusals since the start. Clones are handles to the same ones.
#[derive(Debug, Clone, Default)]
pub struct Refusals(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    counts: RefusalCounts,
    lines: BTreeMap<Kind, Line>,
}

/// Refusals of one kind have their lines in common. A code has two kinds, as requests that are logged for
/// debugging only must not use up the lines of the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Kind {
    reason: &'static str,
    level: Level,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Level {
    Debug,
    Info,
    Warn,
}

/// The lines of one kind.
#[derive(Debug, Default)]
struct Line {
    rate: LineRate,
    /// Refusals that have no line.
    suppressed: u64,
    /// The last of them.
    latest: Option<Refusal>,
}

/// One refusal.
#[derive(Debug, Clone)]
pub(crate) struct Refusal {
    /// The code that it is counted as.
    pub(crate) code: &'static str,
    /// A sentence that says what was wrong.
    pub(crate) message: Cow<'static, str>,
    pub(crate) request: RequestSummary,
}

impl Refusal {
    /// Returns what a response refuses, if it does.
    pub(crate) fn of(response: &Response, request: RequestSummary) -> Option<Self> {
        if let Some(error) = response.extensions().get() {
            return Some(Self::new(error, request));
        }
        // A browser that is not told that the page may does not send the page's request.
        let is_refused =
            request.is_preflight() && !response.headers().contains_key(ACCESS_CONTROL_ALLOW_ORIGIN);
        let message = "The page's browser asks whether the page may send a request, and it may not: add its origin \
                       to `allowed_origins` on the server.";
        is_refused.then(|| Self::new(&ApiError::new(ErrorCode::OriginNotAllowed, message), request))
    }

    fn new(error: &ApiError, request: RequestSummary) -> Self {
        Self { code: error.code().name(), message: error.shared_message(), request }
    }

    fn kind(&self) -> Kind {
        let level = if [ErrorCode::Full, ErrorCode::Overloaded].iter().any(|code| code.name() == self.code) {
            Level::Warn
        } else if self.request.is_for_clients() {
            Level::Info
        } else {
            Level::Debug
        };
        Kind { reason: self.code, level }
    }
}

impl Refusals {
    /// Adds the counts of an old process. Sums saturate.
    pub fn add(&self, counts: &RefusalCounts) {
        let mut state = self.lock();
        for (code, count) in counts {
            let sum = state.counts.entry(code.clone()).or_default();
            *sum = sum.saturating_add(*count);
        }
    }

    /// Returns the counts of all codes, including codes that only an old process knew.
    pub fn counts(&self) -> RefusalCounts {
        let known = ErrorCode::ALL.iter().map(|code| code.name()).chain(WITHOUT_BODY);
        let mut counts: RefusalCounts = known.map(|code| (Cow::Borrowed(code), 0)).collect();
        counts.extend(self.lock().counts.clone());
        counts
    }

    /// Counts a refusal, and logs it if its kind may have a line now. The next line of that kind has the
    /// number of those without one.
    pub(crate) fn note(&self, refusal: Refusal) {
        let kind = refusal.kind();
        let mut state = self.lock();
        *state.counts.entry(Cow::Borrowed(refusal.code)).or_default() += 1;
        let line = state.lines.entry(kind).or_default();
        if line.rate.try_acquire(Instant::now()).is_err() {
            line.suppressed += 1;
            line.latest = Some(refusal);
            return;
        }
        let suppressed = mem::take(&mut line.suppressed);
        line.latest = None;
        drop(state);
        log(kind.level, &refusal, suppressed);
    }

    /// Logs the latest refusal of each kind that has had no line yet, with the number of the others: for a
    /// process that ends, or stops accepting.
    pub(crate) fn flush(&self) {
        let mut left = Vec::new();
        for (kind, line) in &mut self.lock().lines {
            let suppressed = mem::take(&mut line.suppressed);
            left.extend(line.latest.take().map(|latest| (kind.level, latest, suppressed.saturating_sub(1))));
        }
        for (level, refusal, others) in left {
            log(level, &refusal, others);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing that holds it can panic.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Writes a line. `suppressed`: other refusals of this kind since the last one.
fn log(level: Level, refusal: &Refusal, suppressed: u64) {
    let Refusal { code, message, request } = refusal;
    let message = printable(message.as_bytes(), MAX_MESSAGE);
    let what = request.what();
    let others = match suppressed {
        0 => String::new(),
        others => format!(" ({others} more like this one since the last such line)"),
    };
    let (origin, host, line) = (request.origin(), request.host(), request.request_line());
    let (origin, host, line) = (origin.map(display), host.map(display), line.map(display));
    // tracing fixes the level of a line when it is compiled.
    macro_rules! line {
        ($level:ident) => {
            $level!(
                code,
                peer = request.peer.map(display),
                request = line,
                origin,
                host,
                suppressed,
                "{what} was refused: {message}{others}"
            )
        };
    }
    match level {
        Level::Debug => line!(debug),
        Level::Info => line!(info),
        Level::Warn => line!(warn),
    }
}

#[cfg(test)]
mod tests {
    use axum::http::Request;
    use tokio::time::advance;

    use super::*;

    fn refusal(code: ErrorCode, uri: &str) -> Refusal {
        let request = Request::builder().uri(uri).body(()).unwrap();
        let (head, ()) = request.into_parts();
        let summary = RequestSummary::new("127.0.0.1:5".parse().unwrap(), &head);
        Refusal::new(&ApiError::new(code, "No."), summary)
    }

    fn suppressed(refusals: &Refusals, code: ErrorCode) -> u64 {
        let state = refusals.lock();
        let lines = state.lines.iter().filter(|(kind, _)| kind.reason == code.name());
        lines.map(|(_, line)| line.suppressed).sum()
    }

    #[tokio::test(start_paused = true)]
    async fn a_flood_has_few_lines_and_every_refusal_is_in_one_of_them() {
        let refusals = Refusals::default();
        for _ in 0..1000 {
            refusals.note(refusal(ErrorCode::Full, "/ws"));
        }
        assert_eq!(refusals.counts()["full"], 1000);
        assert_eq!(suppressed(&refusals, ErrorCode::Full), 1000 - u64::from(LineRate::BURST));
        advance(LineRate::REFILL).await;
        refusals.note(refusal(ErrorCode::Full, "/ws"));
        assert_eq!(suppressed(&refusals, ErrorCode::Full), 0, "the next line has their number");
        refusals.note(refusal(ErrorCode::Full, "/ws"));
        assert_eq!(suppressed(&refusals, ErrorCode::Full), 1, "that line has used the minute up");
        refusals.note(refusal(ErrorCode::Draining, "/ws"));
        assert_eq!(suppressed(&refusals, ErrorCode::Draining), 0, "another code has its own");
        refusals.flush();
        assert_eq!(suppressed(&refusals, ErrorCode::Full), 0, "at the end, the rest has a line");
    }

    #[tokio::test]
    async fn what_is_not_for_clients_takes_no_lines_from_what_is() {
        let refusals = Refusals::default();
        for _ in 0..100 {
            refusals.note(refusal(ErrorCode::NotFound, "/favicon.ico"));
        }
        let kinds = |refusals: &Refusals| refusals.lock().lines.keys().copied().collect::<Vec<_>>();
        assert_eq!(kinds(&refusals), [Kind { reason: "not_found", level: Level::Debug }]);
        refusals.note(refusal(ErrorCode::NotFound, "/api/pubish"));
        assert_eq!(kinds(&refusals)[1], Kind { reason: "not_found", level: Level::Info });
        assert!(
            refusals
                .lock()
                .lines
                .iter()
                .any(|(kind, line)| kind.level == Level::Info && line.suppressed == 0)
        );
    }

    #[test]
    fn counts_of_an_old_process_are_added_also_of_codes_that_are_new_here() {
        let refusals = Refusals::default();
        refusals.add(&RefusalCounts::from([("full".into(), 3), ("newer".into(), u64::MAX)]));
        refusals.add(&RefusalCounts::from([("full".into(), 4), ("newer".into(), 1)]));
        let counts = refusals.counts();
        assert_eq!((counts["full"], counts["newer"], counts["unauthorized"]), (7, u64::MAX, 0));
    }
}
