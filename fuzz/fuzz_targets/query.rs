//! Any query and any `Last-Event-ID` mean to `/ws` and `/events` what the contract says; and nothing panics.
//!
//! `just fuzz query` runs it for ten minutes.
#![no_main]

use lastcall_endpoints::fuzzing::check_query;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (Option<&[u8]>, &str)| {
    let (last_event_id, query) = input;
    check_query(query, last_event_id);
});
