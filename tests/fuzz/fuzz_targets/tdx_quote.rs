//! A TDX quote: no panic, and what parses is written back to the same bytes, but for what follows the quote.
#![no_main]

use kata_cc_evidence::tdx::Quote;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok((quote, rest)) = Quote::parse(bytes) {
        let written = quote.to_bytes().expect("a parsed quote has a raw form");
        assert_eq!([written.as_slice(), rest].concat(), bytes);
    }
});
