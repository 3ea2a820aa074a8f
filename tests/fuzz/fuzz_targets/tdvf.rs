//! The TDX metadata of a firmware image: no panic, and what is accepted is what the parser promises of it.
#![no_main]

use kata_cc_firmware::measure::tdx::{SectionKind, TdxFirmware};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|image: &[u8]| {
    let Ok(firmware) = TdxFirmware::parse(image) else { return };
    let sections = firmware.sections();
    for (n, section) in sections.iter().enumerate() {
        let end = section.gpa() + section.size();
        assert!(section.size() > 0 && section.gpa() % 4096 == 0 && section.size() % 4096 == 0 && end <= 1 << 32);
        assert!(sections[n + 1..].iter().all(|other| other.gpa() >= end || other.gpa() + other.size() <= section.gpa()));
        assert!(section.content().is_none_or(|content| content.len() as u64 == section.size()));
        match section.kind() {
            SectionKind::BootVolume => assert!(section.measured().is_some()),
            SectionKind::ConfigurationVolume => assert!(section.content().is_some()),
            SectionKind::TdHob | SectionKind::TemporaryMemory => assert!(section.content().is_none()),
        }
    }
    assert!(sections.iter().any(|section| section.measured().is_some() && section.gpa() + section.size() == 1 << 32));
    assert_eq!(sections.iter().filter(|section| section.kind() == SectionKind::TdHob).count(), 1);
});
