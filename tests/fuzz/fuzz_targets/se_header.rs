//! Headers and boot images of IBM Secure Execution. No panic; what parses is written back to the same bytes, and the broker reads the same
//! tags from it.
#![no_main]

use std::io::Cursor;

use kata_cc_evidence::se::ImageTags;
use kata_cc_firmware::measure::se::header::Header;
use kata_cc_firmware::measure::se::image::find_header;
use libfuzzer_sys::fuzz_target;

/// Where images have their metadata. Everything before it means nothing, so inputs have it left out.
const METADATA: usize = 0xc000;

fuzz_target!(|bytes: &[u8]| {
    if let Ok((header, rest)) = Header::parse_first(bytes) {
        let (header_bytes, _) = bytes.split_at(bytes.len() - rest.len());
        assert_eq!(header.to_bytes().as_deref(), Ok(header_bytes));
        assert_eq!(Header::parse(header_bytes).as_ref(), Ok(&header));
        assert_eq!(ImageTags::from_header(header_bytes).as_ref(), Ok(&header.tags()));
        assert_eq!(find_header(&mut Cursor::new(bytes)).ok(), Some(header));
    }
    let mut image = vec![0; METADATA];
    image.extend(bytes);
    if let Ok(header) = find_header(&mut Cursor::new(image)) {
        let written = header.to_bytes().expect("a parsed header is written");
        assert!(bytes.windows(written.len()).any(|window| window == written));
    }
});
