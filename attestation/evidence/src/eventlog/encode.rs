//! From events to bytes: a log written back, and logs made up for tests.

use super::{EventDigest, EventType, HashAlgorithm};

/// The first entry of a log with these algorithms, for a guest whose firmware left no log that could be continued. Algorithms whose digests' length is not known are left out.
#[must_use]
pub fn encode_header(algorithms: &[HashAlgorithm]) -> Vec<u8> {
    let known: Vec<(HashAlgorithm, u16)> =
        algorithms.iter().filter_map(|algorithm| Some((*algorithm, u16::try_from(algorithm.digest_len()?).ok()?))).collect();
    let mut spec_id = super::parse::SIGNATURE.to_vec();
    // platformClass 0 (client), version 2.0, errata 0, uintnSize 2 (64 bits).
    spec_id.extend([0, 0, 0, 0, 0, 2, 0, 2]);
    spec_id.extend(u32::try_from(known.len()).unwrap_or_default().to_le_bytes());
    for (algorithm, length) in known {
        spec_id.extend(algorithm.0.to_le_bytes());
        spec_id.extend(length.to_le_bytes());
    }
    // No vendorInfo.
    spec_id.push(0);
    let mut bytes = vec![0; 4];
    bytes.extend(EventType::NO_ACTION.0.to_le_bytes());
    bytes.extend([0; 20]);
    bytes.extend(u32::try_from(spec_id.len()).unwrap_or_default().to_le_bytes());
    bytes.extend(spec_id);
    bytes
}

/// One entry with one digest. The caller keeps payloads within [`super::EventLog::MAX_EVENT`].
#[must_use]
pub fn encode_event(index: u32, kind: EventType, digest: EventDigest, data: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    event(&mut bytes, index, kind, &[digest], data);
    bytes
}

pub(super) fn event(bytes: &mut Vec<u8>, index: u32, kind: EventType, digests: &[EventDigest], data: &[u8]) {
    bytes.extend(index.to_le_bytes());
    bytes.extend(kind.0.to_le_bytes());
    bytes.extend(u32::try_from(digests.len()).unwrap_or(u32::MAX).to_le_bytes());
    for digest in digests {
        bytes.extend(digest.algorithm.0.to_le_bytes());
        bytes.extend(&digest.bytes);
    }
    bytes.extend(u32::try_from(data.len()).unwrap_or(u32::MAX).to_le_bytes());
    bytes.extend(data);
}
