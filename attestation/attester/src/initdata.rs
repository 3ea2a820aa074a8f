//! Is the initdata this guest was handed the initdata it was launched with?
//!
//! The host hands initdata over on a disk and could hand over any. What it cannot change is the field of the report that it had to fill in
//! before the first instruction of the guest ran: HOST_DATA of SNP, MRCONFIGID of TDX.

use std::fmt;

use kata_cc_evidence::{HostData, MrConfigId};

/// The field of this guest's own report that the host filled in at launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LaunchField {
    /// HOST_DATA of SEV-SNP: the first 32 bytes of the digest.
    HostData(HostData),
    /// MRCONFIGID of TDX: the first 48 bytes of the digest, a shorter one padded with zeros.
    MrConfigId(MrConfigId),
}

impl LaunchField {
    /// What the field must be for a digest.
    fn expected(self, digest: &[u8]) -> Self {
        match self {
            Self::HostData(_) => Self::HostData(HostData::from_digest(digest)),
            Self::MrConfigId(_) => Self::MrConfigId(MrConfigId::from_digest(digest)),
        }
    }
}

impl fmt::Display for LaunchField {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::HostData(value) => write!(f, "{value} (HOST_DATA)"),
            Self::MrConfigId(value) => write!(f, "{value} (MRCONFIGID)"),
        }
    }
}

/// The initdata is not the one the hardware measured.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InitdataError {
    /// The digest is too short to mean anything.
    #[error("initdata digest has {found} bytes, expected 32 (sha256), 48 (sha384) or 64 (sha512)")]
    DigestLength {
        /// Its length.
        found: usize,
    },
    /// The digests differ.
    #[error("this guest was launched with initdata {found}, but was handed initdata {expected}: the host exchanged it")]
    NotBound {
        /// By the initdata handed over.
        expected: LaunchField,
        /// As the hardware has it.
        found: LaunchField,
    },
}

/// Checks that the field, got by this guest itself, carries the digest of the initdata.
///
/// # Errors
/// When it does not. The caller must not go on.
pub fn check_initdata_bound(found: LaunchField, digest: &[u8]) -> Result<(), InitdataError> {
    if !matches!(digest.len(), 32 | 48 | 64) {
        return Err(InitdataError::DigestLength { found: digest.len() });
    }
    let expected = found.expected(digest);
    if found == expected { Ok(()) } else { Err(InitdataError::NotBound { expected, found }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SNP: LaunchField = LaunchField::HostData(HostData([7; 32]));
    const TDX: LaunchField = LaunchField::MrConfigId(MrConfigId([7; 48]));

    #[test]
    fn accepts_the_digest_the_guest_was_launched_with() {
        for len in [32, 48, 64] {
            assert_eq!(check_initdata_bound(SNP, &vec![7; len]), Ok(()));
        }
        for len in [48, 64] {
            assert_eq!(check_initdata_bound(TDX, &vec![7; len]), Ok(()));
        }
        let padded = LaunchField::MrConfigId(MrConfigId::from_digest(&[7; 32]));
        assert_eq!(check_initdata_bound(padded, &[7; 32]), Ok(()));
        // What pads the digest counts.
        assert!(check_initdata_bound(TDX, &[7; 32]).is_err());
    }

    #[test]
    fn refuses_any_other_digest() {
        for (field, len) in [(SNP, 32), (TDX, 48)] {
            for index in 0..len {
                let mut digest = vec![7; len];
                digest[index] ^= 1;
                assert!(matches!(check_initdata_bound(field, &digest), Err(InitdataError::NotBound { .. })));
            }
        }
    }

    #[test]
    fn refuses_a_guest_launched_without_initdata() {
        for field in [LaunchField::HostData(HostData::ZERO), LaunchField::MrConfigId(MrConfigId::ZERO)] {
            assert!(matches!(check_initdata_bound(field, &[7; 32]), Err(InitdataError::NotBound { .. })));
            // An empty digest would match such a guest.
            assert_eq!(check_initdata_bound(field, &[]), Err(InitdataError::DigestLength { found: 0 }));
            assert_eq!(check_initdata_bound(field, &[0; 20]), Err(InitdataError::DigestLength { found: 20 }));
        }
    }
}
