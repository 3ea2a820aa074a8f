//! Event logs of measured boot: what firmware, loaders and agents say they extended into the measurement registers.
//!
//! The layout is the crypto-agile log of the TCG PC Client Platform Firmware Profile (revision 1.06, §10): one entry of the old
//! layout that lists the hash algorithms, then `TCG_PCR_EVENT2` entries. The CCEL of a TDX guest (UEFI 2.10, §38.4) is one whose
//! register numbers are those of CC measurement registers; CoCo's runtime events (AAEL) are entries of it too.
//!
//! ```text
//! bytes -> EventLog::parse -> events -> replay    what the registers must hold
//!                                    -> findings  payloads that are not what was measured, events out of place
//! ```
//! **A log proves nothing by itself.** Its digests are as good as the register that they replay to. Its *labels* (event types and
//! payloads) are as good as the digests only where [`Event::measured`] says that the digest is the payload's; anywhere else whoever
//! writes the log may name a digest as they like.
//!
//! **Invariant:** every number in a log is hostile: nothing is allocated or read by one before it was held against what is there.

mod aael;
mod algorithm;
mod consistency;
mod device_path;
mod encode;
mod event_type;
mod parse;
mod payload;
mod replay;

pub use aael::{Aael, AaelError};
pub use algorithm::HashAlgorithm;
pub use consistency::{Finding, FindingKind, Measured, PayloadCheck};
pub use encode::{encode_event, encode_header};
pub use event_type::EventType;
pub use parse::EventLogError;
pub use payload::{GptPartition, Payload, PayloadError, UefiVariable};
pub use replay::{Registers, ReplayError};

/// A digest of an event, by one of the log's algorithms.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventDigest {
    /// By which algorithm.
    pub algorithm: HashAlgorithm,
    /// Its bytes, as many as the log's header says.
    pub bytes: Vec<u8>,
}

/// One entry of a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Where in the log it begins, in bytes.
    pub offset: usize,
    /// The register it was extended into: a CC measurement register or a PCR (see [`Registers`]).
    pub index: u32,
    /// What kind of event it says it is.
    pub kind: EventType,
    /// Its digests: at least one, each by another algorithm.
    pub digests: Vec<EventDigest>,
    /// Its payload.
    pub data: Vec<u8>,
}

impl Event {
    /// The digest by an algorithm.
    #[must_use]
    pub fn digest(&self, algorithm: HashAlgorithm) -> Option<&[u8]> {
        self.digests.iter().find(|digest| digest.algorithm == algorithm).map(|digest| digest.bytes.as_slice())
    }
}

/// A log that is well-formed. Whether it is true, only a register can tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventLog {
    header: Vec<u8>,
    algorithms: Vec<(HashAlgorithm, usize)>,
    events: Vec<Event>,
    end: usize,
}

impl EventLog {
    /// Largest log accepted: td-shim reserves 1 MiB, OVMF 64 KiB, and the runtime events of an agent come on top.
    pub const MAX_LEN: usize = 2 << 20;
    /// Most events accepted. A boot by GRUB makes about a hundred; runtime events come on top.
    pub const MAX_EVENTS: usize = 8192;
    /// Largest payload of an event. The largest known, a `dbx` of revoked hashes, is below 64 KiB.
    pub const MAX_EVENT: usize = 256 << 10;

    /// Parses a log with whatever fills the area behind it (all 0x00 or all 0xFF).
    ///
    /// # Errors
    /// When it is not exactly that; the error says where.
    pub fn parse(bytes: &[u8]) -> Result<Self, EventLogError> {
        parse::log(bytes)
    }

    /// The hash algorithms of the log, with the lengths of their digests in bytes.
    #[must_use]
    pub fn algorithms(&self) -> &[(HashAlgorithm, usize)] {
        &self.algorithms
    }

    /// The events, in order.
    #[must_use]
    pub fn events(&self) -> &[Event] {
        &self.events
    }

    /// Where the last entry ends, in bytes.
    #[must_use]
    pub fn end(&self) -> usize {
        self.end
    }

    /// The log as bytes again, without what filled the area behind it.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = self.header.clone();
        for event in &self.events {
            encode::event(&mut bytes, event.index, event.kind, &event.digests, &event.data);
        }
        bytes
    }
}

#[cfg(test)]
mod tests;
