//! Fuzzes what a broker does with the first bytes of a stranger: prefix, verifier, every field.
//!
//! The input is taken twice: as a stream that starts with a frame, and as metadata alone with the right
//! identifier, which spares the fuzzer the lengths. Invariants: nothing panics or reads outside the
//! input; a prefix that is accepted describes a frame inside the limit; metadata that is accepted can be
//! read to its last field (the `Debug` output touches them all).
#![no_main]

use libfuzzer_sys::fuzz_target;
use schema::frame::{self, Aligned, PREFIX_BYTES, Prefix};
use std::fmt::Write;

const FRAME_LENGTH_LIMIT: usize = 64 << 10;
const TABLES_MAX: usize = 256;
/// Tables may share their vectors, so a small buffer can print long; more of it shows nothing new.
const PRINTED_BYTES_MAX: usize = 1 << 20;

/// Takes text and forgets it.
struct Sink(usize);

impl Write for Sink {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        self.0 += std::hint::black_box(text).len();
        if self.0 > PRINTED_BYTES_MAX { Err(std::fmt::Error) } else { Ok(()) }
    }
}

fn walk(message: &impl std::fmt::Debug) {
    let _ = write!(Sink(0), "{message:?}");
}

fuzz_target!(|data: &[u8]| {
    let mut aligned = Aligned::default();
    if let Some((prefix, rest)) = data.split_first_chunk::<PREFIX_BYTES>()
        && let Ok(prefix) = Prefix::decode(*prefix, FRAME_LENGTH_LIMIT)
    {
        assert!(prefix.frame_bytes <= FRAME_LENGTH_LIMIT + 4);
        assert_eq!(prefix.body_start() + prefix.body_bytes(), prefix.frame_bytes);
        assert!(PREFIX_BYTES + prefix.metadata_bytes <= prefix.body_start());
        if let Some(metadata) = rest.get(..prefix.metadata_bytes)
            && let Ok(request) = frame::request(aligned.align(metadata), TABLES_MAX)
        {
            walk(&request);
        }
    }

    if data.len() >= 8 {
        let mut metadata = data.to_vec();
        metadata[4..8].copy_from_slice(schema::wire::REQUEST_IDENTIFIER.as_bytes());
        if let Ok(request) = frame::request(aligned.align(&metadata), TABLES_MAX) {
            walk(&request);
        }
        metadata[4..8].copy_from_slice(frame::RESPONSE_IDENTIFIER.as_bytes());
        if let Ok(response) = frame::response(aligned.align(&metadata), TABLES_MAX) {
            walk(&response);
        }
    }
});
