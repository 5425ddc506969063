//! Any bytes, cut in two anywhere, mean what they mean in one piece; and nothing panics.
//!
//! `just fuzz decoder` runs it for ten minutes.
#![no_main]

use lastcall_websockets::fuzzing::decode;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (u16, &[u8])| {
    let (cut, bytes) = input;
    let cut = usize::from(cut).min(bytes.len());
    assert_eq!(decode(&[bytes]), decode(&[&bytes[..cut], &bytes[cut..]]));
});
