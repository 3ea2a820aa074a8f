//! Is the initdata this guest was handed the initdata it was launched with?
//!
//! The host hands initdata over on a disk and could hand over any. What it cannot change is HOST_DATA, which it had to commit to before the
//! first instruction of the guest ran.

use kata_cc_evidence::HostData;
use kata_cc_evidence::snp::Report;

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
        expected: HostData,
        /// HOST_DATA of the report.
        found: HostData,
    },
}

/// Checks that `report`, got by this guest itself, carries the digest of the initdata: the first 32 bytes of it.
///
/// # Errors
/// When it does not. The caller must not go on.
pub fn check_initdata_bound(report: &Report, digest: &[u8]) -> Result<(), InitdataError> {
    if !matches!(digest.len(), 32 | 48 | 64) {
        return Err(InitdataError::DigestLength { found: digest.len() });
    }
    let expected = HostData::from_digest(digest);
    if report.host_data != expected {
        return Err(InitdataError::NotBound { expected, found: report.host_data });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepts_the_digest_the_guest_was_launched_with() {
        let report = Report { host_data: HostData([7; 32]), ..Report::default() };
        for len in [32, 48, 64] {
            assert_eq!(check_initdata_bound(&report, &vec![7; len]), Ok(()));
        }
    }

    #[test]
    fn refuses_any_other_digest() {
        let report = Report { host_data: HostData([7; 32]), ..Report::default() };
        for index in 0..32 {
            let mut digest = [7; 32];
            digest[index] ^= 1;
            assert!(matches!(check_initdata_bound(&report, &digest), Err(InitdataError::NotBound { .. })));
        }
    }

    #[test]
    fn refuses_a_guest_launched_without_host_data() {
        assert!(matches!(check_initdata_bound(&Report::default(), &[7; 32]), Err(InitdataError::NotBound { .. })));
        // An empty digest would match a guest launched without host data.
        assert_eq!(check_initdata_bound(&Report::default(), &[]), Err(InitdataError::DigestLength { found: 0 }));
        assert_eq!(check_initdata_bound(&Report::default(), &[0; 20]), Err(InitdataError::DigestLength { found: 20 }));
    }
}
