//! What a log says against itself: payloads that are not what was measured, and events where none may come (AC-56).
//!
//! Registers are not looked at here. A log without findings that does not replay is worth nothing.

use super::payload::Payload;
use super::{Event, EventLog, EventType, Registers};

/// What the digest of an event is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Measured<'a> {
    /// These bytes of the payload: what they say was measured.
    Payload(&'a [u8]),
    /// Either of these: the specification has changed.
    Either(&'a [u8], &'a [u8]),
    /// Something that is not in the log, such as a file. The payload is a label that nothing vouches for.
    Elsewhere,
}

/// Whether payload and digest belong together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PayloadCheck {
    /// They do.
    Matches,
    /// They do not.
    Differs,
    /// The digest is of something else (see [`Measured::Elsewhere`]).
    Elsewhere,
    /// None of the event's hash algorithms can be computed here.
    NotComputable,
}

/// What is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FindingKind {
    /// The payload is not what was measured.
    PayloadDiffers,
    /// The payload is not of its kind's form.
    Malformed,
    /// An event of the time before the operating system, after the separator that ended it.
    AfterSeparator,
    /// More separators than the register has.
    ExtraSeparator,
    /// A separator by which the firmware tells of an error.
    ErrorSeparator,
}

/// Something wrong in a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Number of the event in the log, from zero.
    pub event: usize,
    /// Where it begins, in bytes.
    pub offset: usize,
    /// Its register.
    pub index: u32,
    /// Its kind.
    pub kind: EventType,
    /// What is wrong.
    pub what: FindingKind,
}

impl std::fmt::Display for Finding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let what = match self.what {
            FindingKind::PayloadDiffers => "its digest is not that of its payload",
            FindingKind::Malformed => "its payload is malformed",
            FindingKind::AfterSeparator => "it comes after the separator that ends such events",
            FindingKind::ExtraSeparator => "it is one separator more than its register has",
            FindingKind::ErrorSeparator => "its value is neither 0 nor 0xffffffff: the firmware met an error",
        };
        write!(f, "event {} at offset {}, register {}, {}: {what}", self.event, self.offset, self.index, self.kind)
    }
}

/// What GRUB puts before the text that it measures, of two generations.
const GRUB: [&[u8]; 4] = [b"grub_cmd: ", b"grub_cmd ", b"kernel_cmdline: ", b"grub_kernel_cmdline "];

/// GRUB measures its commands with the NUL at their end, and the kernel's command line without. What is behind the NUL was not measured.
fn grub_text(text: &[u8]) -> Measured<'_> {
    let length = text.iter().position(|byte| *byte == 0).unwrap_or(text.len());
    let terminated = text.get(..=length).unwrap_or(text);
    Measured::Either(text.get(..length).unwrap_or(text), terminated)
}

impl Event {
    /// What the event's digest is of.
    #[must_use]
    pub fn measured(&self) -> Measured<'_> {
        let data = self.data.as_slice();
        match (self.kind, self.payload()) {
            (
                EventType::SEPARATOR
                | EventType::ACTION
                | EventType::EFI_ACTION
                | EventType::S_CRTM_VERSION
                | EventType::EFI_VARIABLE_DRIVER_CONFIG
                | EventType::EFI_VARIABLE_BOOT2
                | EventType::EFI_VARIABLE_AUTHORITY
                | EventType::EFI_GPT_EVENT
                | EventType::EFI_GPT_EVENT2,
                _,
            ) => Measured::Payload(data),
            // EDK II measures the contents alone, older firmware name and contents.
            (EventType::EFI_VARIABLE_BOOT, Ok(Payload::Variable(variable))) => Measured::Either(variable.data, data),
            (EventType::EVENT_TAG, Ok(Payload::Aael(_))) => Measured::Payload(data),
            (EventType::PLATFORM_CONFIG_FLAGS, Ok(Payload::TdShim { data, .. })) => Measured::Payload(data),
            (EventType::IPL, _) => GRUB.iter().find_map(|prefix| data.strip_prefix(*prefix)).map_or(Measured::Elsewhere, grub_text),
            _ => Measured::Elsewhere,
        }
    }

    /// Whether every digest that can be computed here is that of `bytes`; `None` if none can.
    #[must_use]
    pub fn is_digest_of(&self, bytes: &[u8]) -> Option<bool> {
        let mut checks = self.digests.iter().filter_map(|digest| Some(digest.algorithm.hash(&[bytes])? == digest.bytes)).peekable();
        checks.peek().is_some().then(|| checks.all(|right| right))
    }

    /// Holds the payload against the digests.
    #[must_use]
    pub fn check_payload(&self) -> PayloadCheck {
        let right = match self.measured() {
            _ if self.kind == EventType::NO_ACTION => return PayloadCheck::Elsewhere,
            Measured::Elsewhere => return PayloadCheck::Elsewhere,
            Measured::Payload(bytes) => self.is_digest_of(bytes),
            Measured::Either(one, other) => self.is_digest_of(one).map(|right| right || self.is_digest_of(other) == Some(true)),
        };
        match right {
            Some(true) => PayloadCheck::Matches,
            Some(false) => PayloadCheck::Differs,
            None => PayloadCheck::NotComputable,
        }
    }

    /// Made by firmware while it sets the machine up, and by nothing else.
    fn is_before_boot(&self) -> bool {
        matches!(
            self.kind,
            EventType::POST_CODE
                | EventType::POST_CODE2
                | EventType::S_CRTM_CONTENTS
                | EventType::S_CRTM_VERSION
                | EventType::CPU_MICROCODE
                | EventType::PLATFORM_CONFIG_FLAGS
                | EventType::TABLE_OF_DEVICES
                | EventType::NONHOST_CODE
                | EventType::NONHOST_CONFIG
                | EventType::NONHOST_INFO
                | EventType::EFI_VARIABLE_DRIVER_CONFIG
                | EventType::EFI_VARIABLE_BOOT
                | EventType::EFI_VARIABLE_BOOT2
                | EventType::EFI_RUNTIME_SERVICES_DRIVER
                | EventType::EFI_PLATFORM_FIRMWARE_BLOB
                | EventType::EFI_PLATFORM_FIRMWARE_BLOB2
                | EventType::EFI_HANDOFF_TABLES
                | EventType::EFI_HANDOFF_TABLES2
        )
    }

    /// The state of Secure Boot, which is measured before PCR 7's separator and never again.
    fn is_secure_boot_state(&self) -> bool {
        self.kind == EventType::EFI_VARIABLE_DRIVER_CONFIG
            && matches!(self.payload(), Ok(Payload::Variable(variable))
                if matches!(variable.name.as_str(), "SecureBoot" | "PK" | "KEK" | "db" | "dbx"))
    }
}

/// How many separators a register has: one for each PCR that it stands for. `None` where the firmware ends nothing.
fn separators(registers: Registers, index: u32) -> Option<usize> {
    match (registers, index) {
        // PCRs 1 and 7.
        (Registers::Cc, 1) => Some(2),
        // PCRs 2 to 6.
        (Registers::Cc, 2) => Some(5),
        (Registers::Pcr, 0..=7) => Some(1),
        _ => None,
    }
}

impl EventLog {
    /// Everything that is wrong in the log, in order.
    #[must_use]
    pub fn findings(&self, registers: Registers) -> Vec<Finding> {
        let mut findings = Vec::new();
        let mut seen = std::collections::BTreeMap::<u32, usize>::new();
        for (number, event) in self.events().iter().enumerate() {
            let mut find = |what| {
                findings.push(Finding { event: number, offset: event.offset, index: event.index, kind: event.kind, what });
            };
            match (event.check_payload(), event.payload()) {
                (PayloadCheck::Differs, _) => find(FindingKind::PayloadDiffers),
                (_, Err(_)) => find(FindingKind::Malformed),
                (_, Ok(Payload::Separator(1..=0xffff_fffe))) => find(FindingKind::ErrorSeparator),
                _ => {}
            }
            let Some(limit) = separators(registers, event.index) else { continue };
            let seen = seen.entry(event.index).or_default();
            if event.kind == EventType::SEPARATOR {
                *seen = seen.saturating_add(1);
                if *seen > limit {
                    find(FindingKind::ExtraSeparator);
                }
            } else if (*seen >= limit && event.is_before_boot()) || (*seen > 0 && event.is_secure_boot_state()) {
                find(FindingKind::AfterSeparator);
            }
        }
        findings
    }
}
