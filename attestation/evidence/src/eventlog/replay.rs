//! What registers hold after the events of a log: `new = H(old || digest)` for each, from zeros.

use std::collections::BTreeMap;

use super::{EventLog, EventType, HashAlgorithm};

/// What the register numbers of a log mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Registers {
    /// CC measurement registers (UEFI 2.10, §38.4.1): 0 is MRTD, which nothing extends, 1 to 4 are RTMR0 to RTMR3.
    Cc,
    /// PCRs of a TPM, 0 to 23.
    Pcr,
}

/// Highest PCR.
const MAX_PCR: u32 = 23;

/// `EFI_TCG2_EVENT` that says from which locality the firmware started the TPM, which PCR 0 begins with (PFP 1.06, §10.4.5.3).
const STARTUP_LOCALITY: &[u8; 16] = b"StartupLocality\0";

/// Why a log cannot be replayed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReplayError {
    /// There is no such register, or nothing can extend it.
    #[error("event at offset {offset} is for register {found}, expected {expected}")]
    Register {
        /// Where the entry begins.
        offset: usize,
        /// Its register.
        found: u32,
        /// What would do.
        expected: &'static str,
    },
    /// An event has no digest by the algorithm.
    #[error("event at offset {offset} has no {algorithm} digest")]
    NoDigest {
        /// Where the entry begins.
        offset: usize,
        /// Which.
        algorithm: HashAlgorithm,
    },
    /// The algorithm is not there.
    #[error("{algorithm} cannot be computed here; logs are replayed in SHA-1, SHA-256, SHA-384 and SHA-512")]
    Algorithm {
        /// Which.
        algorithm: HashAlgorithm,
    },
}

impl EventLog {
    /// What each register holds by this log. CC measurement registers 1 to 4 are always there; PCRs only if something extended them.
    ///
    /// # Errors
    /// When an event is for a register that cannot be extended, or a digest is missing or cannot be computed.
    pub fn replay(&self, registers: Registers, algorithm: HashAlgorithm) -> Result<BTreeMap<u32, Vec<u8>>, ReplayError> {
        let unknown = ReplayError::Algorithm { algorithm };
        let length = algorithm.hash(&[]).ok_or(unknown.clone())?.len();
        let mut values: BTreeMap<u32, Vec<u8>> = match registers {
            Registers::Cc => (1..=4).map(|index| (index, vec![0; length])).collect(),
            Registers::Pcr => BTreeMap::new(),
        };
        for event in self.events() {
            let offset = event.offset;
            if event.kind == EventType::NO_ACTION {
                if registers == Registers::Pcr
                    && event.index == 0
                    && let Some([locality]) = event.data.strip_prefix(STARTUP_LOCALITY)
                {
                    let mut start = vec![0; length];
                    start.iter_mut().rev().take(1).for_each(|last| *last = *locality);
                    values.entry(0).or_insert(start);
                }
                continue;
            }
            let expected = match registers {
                Registers::Cc => "1 to 4 (RTMR0 to RTMR3)",
                Registers::Pcr => "0 to 23",
            };
            let value = match registers {
                Registers::Cc => values.get_mut(&event.index),
                Registers::Pcr if event.index <= MAX_PCR => Some(values.entry(event.index).or_insert_with(|| vec![0; length])),
                Registers::Pcr => None,
            };
            let value = value.ok_or(ReplayError::Register { offset, found: event.index, expected })?;
            let digest = event.digest(algorithm).ok_or(ReplayError::NoDigest { offset, algorithm })?;
            *value = algorithm.hash(&[value, digest]).ok_or(unknown.clone())?;
        }
        Ok(values)
    }
}
