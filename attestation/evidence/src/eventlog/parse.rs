//! From bytes to a log: the one place where lengths of a log are believed, after they were held against what is left.

use super::{Event, EventDigest, EventLog, EventType, HashAlgorithm};

/// `TCG_EfiSpecIDEvent.signature`.
pub(super) const SIGNATURE: &[u8; 16] = b"Spec ID Event03\0";

/// Most algorithms of a log; a TPM has at most five banks.
const MAX_ALGORITHMS: u32 = 8;

/// Longest digest: that of SHA-512.
const MAX_DIGEST: usize = 64;

/// Bytes of an entry before its digests. What is as long and all one fill byte is no entry.
const ENTRY_HEAD: usize = 12;

/// Why bytes are not an event log. Offsets are in bytes from the start of the log.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EventLogError {
    /// More bytes than any log has.
    #[error("event log of {found} bytes: at most {max} are accepted", max = EventLog::MAX_LEN)]
    TooLarge {
        /// How many there were.
        found: usize,
    },
    /// The bytes end within something.
    #[error("event log ends within {what} at offset {offset}: expected {expected} bytes, found {found}")]
    Truncated {
        /// Where that something begins.
        offset: usize,
        /// What it is.
        what: &'static str,
        /// How many bytes it has.
        expected: usize,
        /// How many there are.
        found: usize,
    },
    /// The first entry does not introduce a crypto-agile log.
    #[error("event log begins with {found}, expected EV_NO_ACTION with the signature \"Spec ID Event03\"")]
    NotSpecId {
        /// What is there.
        found: String,
    },
    /// Too few or too many algorithms.
    #[error("event log's header lists {found} hash algorithms, expected 1 to {MAX_ALGORITHMS}")]
    AlgorithmCount {
        /// How many.
        found: u32,
    },
    /// An algorithm is listed twice, or with a length that is not its own.
    #[error("event log's header gives {algorithm} digests of {found} bytes at offset {offset}, expected {expected}")]
    AlgorithmLength {
        /// Where.
        offset: usize,
        /// Which.
        algorithm: HashAlgorithm,
        /// What would do.
        expected: String,
        /// What it says.
        found: usize,
    },
    /// The header's length is not that of its parts.
    #[error("event log's header has {found} bytes, its parts have {expected}")]
    HeaderLength {
        /// Length of the parts.
        expected: usize,
        /// Length it says.
        found: usize,
    },
    /// More or fewer digests than algorithms.
    #[error("event at offset {offset} has {found} digests, expected 1 to {expected}, one for each algorithm of the log")]
    DigestCount {
        /// Where the entry begins.
        offset: usize,
        /// How many algorithms there are.
        expected: usize,
        /// How many digests it says it has.
        found: u32,
    },
    /// A digest by an algorithm that the header does not list, or a second one by the same.
    #[error("event at offset {offset} has a digest by {algorithm}, expected each algorithm of the log at most once")]
    DigestAlgorithm {
        /// Where the entry begins.
        offset: usize,
        /// Which.
        algorithm: HashAlgorithm,
    },
    /// A payload longer than any.
    #[error("event at offset {offset} has a payload of {found} bytes: at most {max} are accepted", max = EventLog::MAX_EVENT)]
    EventTooLarge {
        /// Where the entry begins.
        offset: usize,
        /// How many it says it has.
        found: u32,
    },
    /// More events than any log has.
    #[error("event log goes on at offset {offset} after {max} events, more than are accepted", max = EventLog::MAX_EVENTS)]
    TooManyEvents {
        /// Where the next one begins.
        offset: usize,
    },
    /// Something is hidden in what fills the area behind the log.
    #[error("event log ends at offset {offset}, and what follows is not the same fill byte throughout")]
    Trailing {
        /// Where the fill begins.
        offset: usize,
    },
}

/// What is left to read, and where that is in the log.
struct Reader<'a> {
    left: &'a [u8],
    offset: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize, what: &'static str) -> Result<&'a [u8], EventLogError> {
        let Some((taken, left)) = self.left.split_at_checked(length) else {
            return Err(EventLogError::Truncated { offset: self.offset, what, expected: length, found: self.left.len() });
        };
        self.left = left;
        self.offset = self.offset.saturating_add(length);
        Ok(taken)
    }

    fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], EventLogError> {
        let mut bytes = [0; N];
        bytes.copy_from_slice(self.take(N, what)?);
        Ok(bytes)
    }

    fn u8(&mut self, what: &'static str) -> Result<u8, EventLogError> {
        self.array::<1>(what).map(|[byte]| byte)
    }

    fn u16(&mut self, what: &'static str) -> Result<u16, EventLogError> {
        self.array(what).map(u16::from_le_bytes)
    }

    fn u32(&mut self, what: &'static str) -> Result<u32, EventLogError> {
        self.array(what).map(u32::from_le_bytes)
    }

    /// Whether the log is over: nothing is left, or nothing but fill.
    fn at_end(&self) -> Result<bool, EventLogError> {
        let head = self.left.get(..ENTRY_HEAD).unwrap_or(self.left);
        // An entry of such a head would have no digests (0x00) or register 4294967295 (0xFF). The rest is looked at once.
        let Some(fill) = head.first().copied().filter(|fill| matches!(fill, 0 | 0xff) && head.iter().all(|byte| byte == fill)) else {
            return Ok(head.is_empty());
        };
        if self.left.iter().all(|byte| *byte == fill) { Ok(true) } else { Err(EventLogError::Trailing { offset: self.offset }) }
    }
}

pub(super) fn log(bytes: &[u8]) -> Result<EventLog, EventLogError> {
    if bytes.len() > EventLog::MAX_LEN {
        return Err(EventLogError::TooLarge { found: bytes.len() });
    }
    let mut reader = Reader { left: bytes, offset: 0 };
    let algorithms = header(&mut reader)?;
    let header = bytes.get(..reader.offset).unwrap_or_default().to_vec();
    let mut events = Vec::new();
    while !reader.at_end()? {
        if events.len() >= EventLog::MAX_EVENTS {
            return Err(EventLogError::TooManyEvents { offset: reader.offset });
        }
        events.push(event(&mut reader, &algorithms)?);
    }
    Ok(EventLog { header, algorithms, events, end: reader.offset })
}

/// `TCG_PCClientPCREvent` around `TCG_EfiSpecIDEvent`.
fn header(reader: &mut Reader<'_>) -> Result<Vec<(HashAlgorithm, usize)>, EventLogError> {
    let what = "the header";
    // The register's number: 0 by the specification, 1 by OVMF for CC. Nothing is extended for this entry.
    reader.u32(what)?;
    let kind = EventType(reader.u32(what)?);
    if kind != EventType::NO_ACTION {
        return Err(EventLogError::NotSpecId { found: kind.to_string() });
    }
    reader.take(20, what)?;
    let length = reader.u32(what)?;
    let length = usize::try_from(length).unwrap_or(usize::MAX);
    let start = reader.offset;
    let signature: [u8; 16] = reader.array(what)?;
    if signature != *SIGNATURE {
        return Err(EventLogError::NotSpecId { found: format!("the signature {}", signature.escape_ascii()) });
    }
    // platformClass, version, errata and uintnSize say nothing about the layout.
    reader.take(8, what)?;
    let count = reader.u32(what)?;
    if !(1..=MAX_ALGORITHMS).contains(&count) {
        return Err(EventLogError::AlgorithmCount { found: count });
    }
    let mut algorithms: Vec<(HashAlgorithm, usize)> = Vec::new();
    for _ in 0..count {
        let offset = reader.offset;
        let algorithm = HashAlgorithm(reader.u16(what)?);
        let found = usize::from(reader.u16(what)?);
        let twice = algorithms.iter().any(|(other, _)| *other == algorithm);
        let expected = match algorithm.digest_len() {
            _ if twice => "each algorithm once".to_owned(),
            Some(length) if length != found => length.to_string(),
            None if !(1..=MAX_DIGEST).contains(&found) => format!("1 to {MAX_DIGEST}"),
            _ => {
                algorithms.push((algorithm, found));
                continue;
            }
        };
        return Err(EventLogError::AlgorithmLength { offset, algorithm, expected, found });
    }
    let vendor = reader.u8(what)?;
    reader.take(usize::from(vendor), what)?;
    let expected = reader.offset.saturating_sub(start);
    if expected != length {
        return Err(EventLogError::HeaderLength { expected, found: length });
    }
    Ok(algorithms)
}

/// `TCG_PCR_EVENT2`.
fn event(reader: &mut Reader<'_>, algorithms: &[(HashAlgorithm, usize)]) -> Result<Event, EventLogError> {
    let offset = reader.offset;
    let what = "an event";
    let index = reader.u32(what)?;
    let kind = EventType(reader.u32(what)?);
    let count = reader.u32(what)?;
    if count == 0 || usize::try_from(count).map_or(true, |count| count > algorithms.len()) {
        return Err(EventLogError::DigestCount { offset, expected: algorithms.len(), found: count });
    }
    let mut digests: Vec<EventDigest> = Vec::new();
    for _ in 0..count {
        let algorithm = HashAlgorithm(reader.u16(what)?);
        let listed = algorithms.iter().find(|(listed, _)| *listed == algorithm);
        let Some((_, length)) = listed.filter(|_| !digests.iter().any(|other| other.algorithm == algorithm)) else {
            return Err(EventLogError::DigestAlgorithm { offset, algorithm });
        };
        digests.push(EventDigest { algorithm, bytes: reader.take(*length, "a digest")?.to_vec() });
    }
    let length = reader.u32(what)?;
    let data = usize::try_from(length).ok().filter(|length| *length <= EventLog::MAX_EVENT);
    let data = reader.take(data.ok_or(EventLogError::EventTooLarge { offset, found: length })?, "an event's payload")?.to_vec();
    Ok(Event { offset, index, kind, digests, data })
}
