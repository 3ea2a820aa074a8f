//! Initdata as text, as annotation and as disk: no panic, the three forms carry the same bytes, and the guest's reading of it does not panic.
#![no_main]

use kata_cc_policy::{GuestConfig, Initdata};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(initdata) = Initdata::parse(bytes) {
        assert_eq!(initdata.raw(), bytes);
        let annotation = Initdata::from_annotation(&initdata.to_annotation()).expect("its own annotation parses");
        assert_eq!(annotation.digest(), initdata.digest());
        let disk = Initdata::from_disk_image(&initdata.to_disk_image()).expect("its own disk parses");
        assert_eq!(disk.raw(), bytes);
        let _ = GuestConfig::from_initdata(&initdata);
    }
    let _ = Initdata::from_disk_image(bytes);
    if let Ok(text) = std::str::from_utf8(bytes) {
        let _ = Initdata::from_annotation(text);
    }
});
