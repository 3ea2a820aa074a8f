//! The TD report itself (TDREPORT_STRUCT of the "TDX Module ABI Specification"): what the TDX module tells a TD of itself.
//!
//! Its MAC can be checked by this machine alone, so it proves nothing to others; a quote is made of it for them. Within, two hashes bind what is
//! known of module and TD to what the MAC covers, and those anybody can check.

use std::ops::Range;

use ring::digest::{SHA384, digest};

use super::attributes::TdAttributes;
use crate::values::{MrConfigId, ReportData, TdMeasurement};

/// TYPE of REPORTTYPE: a TD.
const TYPE_TDX: u8 = 0x81;

/// Why bytes are not a TD report.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TdReportError {
    /// The size is another.
    #[error("TD report has {found} bytes, expected {expected}", expected = TdReport::LEN)]
    Length {
        /// How many bytes.
        found: usize,
    },
    /// It is of another TEE.
    #[error("TD report: type {found:#04x}, expected 0x81 (TDX)")]
    Type {
        /// The type found.
        found: u8,
    },
    /// A part is not what the MAC covers.
    #[error("TD report: {part} does not have the hash that the report says")]
    Hash {
        /// TEE_TCB_INFO or TDINFO.
        part: &'static str,
    },
}

/// What a TD report says of the TD. Parsed and consistent with itself, **not verified**.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TdReport {
    /// REPORTDATA.
    pub report_data: ReportData,
    /// TDATTRIBUTES.
    pub td_attributes: TdAttributes,
    /// XFAM.
    pub xfam: u64,
    /// MRTD.
    pub mr_td: TdMeasurement,
    /// MRCONFIGID: carries the digest of the initdata.
    pub mr_config_id: MrConfigId,
    /// MROWNER.
    pub mr_owner: TdMeasurement,
    /// MROWNERCONFIG.
    pub mr_owner_config: TdMeasurement,
    /// RTMR0 to RTMR3.
    pub rtmr: [TdMeasurement; 4],
}

/// Offsets in bytes.
mod at {
    use std::ops::Range;

    pub(super) const TEE_TCB_INFO_HASH: usize = 32;
    pub(super) const TEE_INFO_HASH: usize = 80;
    pub(super) const REPORT_DATA: usize = 128;
    pub(super) const TEE_TCB_INFO: Range<usize> = 256..495;
    const TDINFO_START: usize = 512;
    pub(super) const TDINFO: Range<usize> = TDINFO_START..1024;
    pub(super) const ATTRIBUTES: usize = TDINFO_START;
    pub(super) const XFAM: usize = TDINFO_START + 8;
    pub(super) const MRTD: usize = TDINFO_START + 16;
    pub(super) const MRCONFIGID: usize = MRTD + 48;
    pub(super) const MROWNER: usize = MRCONFIGID + 48;
    pub(super) const MROWNERCONFIG: usize = MROWNER + 48;
    const RTMR0: usize = MROWNERCONFIG + 48;
    pub(super) const RTMR: [usize; 4] = [RTMR0, RTMR0 + 48, RTMR0 + 96, RTMR0 + 144];
}

/// The parts that are hashed: name, where, and where the hash is.
const HASHED: [(&str, Range<usize>, usize); 2] =
    [("TEE_TCB_INFO", at::TEE_TCB_INFO, at::TEE_TCB_INFO_HASH), ("TDINFO", at::TDINFO, at::TEE_INFO_HASH)];

impl TdReport {
    /// Size in bytes.
    pub const LEN: usize = 1024;

    /// Parses exactly [`TdReport::LEN`] bytes.
    ///
    /// # Errors
    /// When the size or type is another's, or a part is not the one that is hashed.
    pub fn parse(bytes: &[u8]) -> Result<Self, TdReportError> {
        let bytes: &[u8; Self::LEN] = bytes.try_into().map_err(|_| TdReportError::Length { found: bytes.len() })?;
        let [kind, ..] = *bytes;
        if kind != TYPE_TDX {
            return Err(TdReportError::Type { found: kind });
        }
        for (part, range, hash) in HASHED {
            let expected: [u8; 48] = array(bytes, hash);
            let found = bytes.get(range).map(|part| digest(&SHA384, part));
            if found.is_none_or(|found| found.as_ref() != expected) {
                return Err(TdReportError::Hash { part });
            }
        }
        Ok(Self {
            report_data: ReportData(array(bytes, at::REPORT_DATA)),
            td_attributes: TdAttributes(u64::from_le_bytes(array(bytes, at::ATTRIBUTES))),
            xfam: u64::from_le_bytes(array(bytes, at::XFAM)),
            mr_td: TdMeasurement(array(bytes, at::MRTD)),
            mr_config_id: MrConfigId(array(bytes, at::MRCONFIGID)),
            mr_owner: TdMeasurement(array(bytes, at::MROWNER)),
            mr_owner_config: TdMeasurement(array(bytes, at::MROWNERCONFIG)),
            rtmr: at::RTMR.map(|at| TdMeasurement(array(bytes, at))),
        })
    }

    /// The report of a TD of which nothing else is known: module and TCB are zeros, and so is the MAC. For simulations and tests; no machine
    /// vouches for it.
    #[must_use]
    pub fn to_unsigned_bytes(&self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        let mut put = |at: usize, part: &[u8]| {
            bytes.iter_mut().skip(at).zip(part).for_each(|(to, from)| *to = *from);
        };
        put(0, &[TYPE_TDX, 0, 1, 0]);
        put(at::REPORT_DATA, self.report_data.as_ref());
        put(at::ATTRIBUTES, &self.td_attributes.to_bytes());
        put(at::XFAM, &self.xfam.to_le_bytes());
        put(at::MRTD, self.mr_td.as_ref());
        put(at::MRCONFIGID, self.mr_config_id.as_ref());
        put(at::MROWNER, self.mr_owner.as_ref());
        put(at::MROWNERCONFIG, self.mr_owner_config.as_ref());
        for (at, register) in at::RTMR.into_iter().zip(&self.rtmr) {
            put(at, register.as_ref());
        }
        for (_, range, hash) in HASHED {
            let found = digest(&SHA384, bytes.get(range).unwrap_or_default());
            bytes.iter_mut().skip(hash).zip(found.as_ref()).for_each(|(to, from)| *to = *from);
        }
        bytes
    }
}

/// `N` bytes from `at` on, which every caller keeps within the report.
fn array<const N: usize>(bytes: &[u8; TdReport::LEN], at: usize) -> [u8; N] {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).copied().unwrap_or([0; N])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made() -> TdReport {
        TdReport {
            report_data: ReportData([1; 64]),
            td_attributes: TdAttributes(0x1000_0000),
            xfam: 0x0006_02e7,
            mr_td: TdMeasurement([2; 48]),
            mr_config_id: MrConfigId([3; 48]),
            mr_owner: TdMeasurement([4; 48]),
            mr_owner_config: TdMeasurement([5; 48]),
            rtmr: [6, 7, 8, 9].map(|byte| TdMeasurement([byte; 48])),
        }
    }

    #[test]
    fn each_field_comes_back() {
        assert_eq!(TdReport::parse(&made().to_unsigned_bytes()), Ok(made()));
    }

    #[test]
    fn refuses_another_length_or_type_and_parts_that_are_not_those_hashed() {
        let good = made().to_unsigned_bytes();
        assert_eq!(TdReport::parse(&good[..1023]), Err(TdReportError::Length { found: 1023 }));
        let changed = |at: usize| {
            let mut bytes = good;
            bytes[at] ^= 1;
            TdReport::parse(&bytes)
        };
        assert_eq!(changed(0), Err(TdReportError::Type { found: 0x80 }));
        for at in [80, 127, 512, 528, 576, 1023] {
            assert_eq!(changed(at), Err(TdReportError::Hash { part: "TDINFO" }), "{at}");
        }
        for at in [32, 79, 256, 494] {
            assert_eq!(changed(at), Err(TdReportError::Hash { part: "TEE_TCB_INFO" }), "{at}");
        }
        // What the MAC covers and the reserved bytes behind TEE_TCB_INFO are not parts with a hash.
        assert!(changed(128).is_ok() && changed(224).is_ok() && changed(495).is_ok());
    }
}
