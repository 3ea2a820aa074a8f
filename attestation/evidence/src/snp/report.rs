//! The 1184-byte SNP attestation report: raw bytes to fields and back, without loss.
//!
//! Not here: any judgement about what the fields say. Versions 2, 3 and 5 of the structure are known (AMD 56860, table
//! ATTESTATION_REPORT); 4 was never issued. Every reserved byte must be zero: the JSON form of evidence carries fields only, so a
//! report with data in a reserved place could not be rebuilt for the signature check.

use super::fields::{Cpuid, FirmwareVersion, Generation, KeyInfo, PlatformInfo, Policy, Signature, TcbLayout, TcbVersion};
use crate::values::{HostData, LaunchDigest, ReportData};

/// SIGNATURE_ALGO: ECDSA P-384 with SHA-384 (AMD 56860, table "Encoding for the signature algorithm").
pub const SIGNATURE_ALGO_ECDSA_P384_SHA384: u32 = 1;

/// Why bytes are not an SNP report, or fields do not make one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReportError {
    /// Wrong number of bytes.
    #[error("an SNP report has {expected} bytes, found {found}", expected = Report::LEN)]
    Length {
        /// How many bytes there were.
        found: usize,
    },
    /// A structure version this crate does not know.
    #[error("SNP report version {found}: expected 2, 3 or 5")]
    Version {
        /// The version found.
        found: u32,
    },
    /// A reserved byte is not zero.
    #[error("SNP report: reserved bytes at {offset:#x} are not zero; a newer report version may use them")]
    Reserved {
        /// Where the reserved field starts.
        offset: usize,
    },
    /// The processor is not one whose TCB layout is known.
    #[error("SNP report: processor family {family:#x} model {model:#x} is not a known generation (Milan, Genoa, Turin)")]
    UnknownProcessor {
        /// Combined family.
        family: u8,
        /// Combined model.
        model: u8,
    },
    /// The fields do not fit the report's version or generation.
    #[error("SNP report: field {field} does not fit a report of version {version}")]
    FieldMismatch {
        /// Which field.
        field: &'static str,
        /// Version of the report.
        version: u32,
    },
}

/// An SNP attestation report, field by field. Parsed, **not verified**.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// VERSION of this structure.
    pub version: u32,
    /// GUEST_SVN.
    pub guest_svn: u32,
    /// POLICY.
    pub policy: Policy,
    /// FAMILY_ID from the ID block.
    pub family_id: [u8; 16],
    /// IMAGE_ID from the ID block.
    pub image_id: [u8; 16],
    /// VMPL the report was asked for.
    pub vmpl: u32,
    /// SIGNATURE_ALGO.
    pub signature_algo: u32,
    /// CURRENT_TCB.
    pub current_tcb: TcbVersion,
    /// PLATFORM_INFO.
    pub platform_info: PlatformInfo,
    /// SIGNING_KEY, MASK_CHIP_KEY, AUTHOR_KEY_EN.
    pub key_info: KeyInfo,
    /// REPORT_DATA.
    pub report_data: ReportData,
    /// MEASUREMENT.
    pub measurement: LaunchDigest,
    /// HOST_DATA.
    pub host_data: HostData,
    /// ID_KEY_DIGEST.
    pub id_key_digest: [u8; 48],
    /// AUTHOR_KEY_DIGEST.
    pub author_key_digest: [u8; 48],
    /// REPORT_ID.
    pub report_id: [u8; 32],
    /// REPORT_ID_MA.
    pub report_id_ma: [u8; 32],
    /// REPORTED_TCB, the one the signing key is derived for.
    pub reported_tcb: TcbVersion,
    /// CPUID family, model and stepping; from version 3 on.
    pub cpuid: Option<Cpuid>,
    /// CHIP_ID, zero when masked.
    pub chip_id: [u8; 64],
    /// COMMITTED_TCB.
    pub committed_tcb: TcbVersion,
    /// CURRENT_MAJOR, CURRENT_MINOR, CURRENT_BUILD.
    pub current: FirmwareVersion,
    /// COMMITTED_MAJOR, COMMITTED_MINOR, COMMITTED_BUILD.
    pub committed: FirmwareVersion,
    /// LAUNCH_TCB.
    pub launch_tcb: TcbVersion,
    /// LAUNCH_MIT_VECTOR; from version 5 on.
    pub launch_mit_vector: Option<u64>,
    /// CURRENT_MIT_VECTOR; from version 5 on.
    pub current_mit_vector: Option<u64>,
    /// SIGNATURE over bytes 0 to 0x29F.
    pub signature: Signature,
}

impl Default for Report {
    /// A version 2 report of zeros, for building one field by field.
    fn default() -> Self {
        Self {
            version: 2,
            guest_svn: 0,
            policy: Policy::default(),
            family_id: [0; 16],
            image_id: [0; 16],
            vmpl: 0,
            signature_algo: SIGNATURE_ALGO_ECDSA_P384_SHA384,
            current_tcb: TcbVersion::default(),
            platform_info: PlatformInfo::default(),
            key_info: KeyInfo::default(),
            report_data: ReportData::ZERO,
            measurement: LaunchDigest::ZERO,
            host_data: HostData::ZERO,
            id_key_digest: [0; 48],
            author_key_digest: [0; 48],
            report_id: [0; 32],
            report_id_ma: [0; 32],
            reported_tcb: TcbVersion::default(),
            cpuid: None,
            chip_id: [0; 64],
            committed_tcb: TcbVersion::default(),
            current: FirmwareVersion::default(),
            committed: FirmwareVersion::default(),
            launch_tcb: TcbVersion::default(),
            launch_mit_vector: None,
            current_mit_vector: None,
            signature: Signature::default(),
        }
    }
}

impl Report {
    /// Size of every version of the structure.
    pub const LEN: usize = 1184;
    /// The signature covers this many bytes from the start (0 to 0x29F).
    pub const SIGNED_LEN: usize = 0x2a0;

    /// Parses exactly [`Report::LEN`] bytes.
    ///
    /// # Errors
    /// When the length, the version, a reserved byte or the processor is not as AMD's table has it.
    pub fn parse(bytes: &[u8]) -> Result<Self, ReportError> {
        if bytes.len() != Self::LEN {
            return Err(ReportError::Length { found: bytes.len() });
        }
        let mut r = Reader { rest: bytes, total: bytes.len() };
        let version = r.u32()?;
        if !matches!(version, 2 | 3 | 5) {
            return Err(ReportError::Version { found: version });
        }
        let layout = Self::layout_of(version, bytes)?;

        let guest_svn = r.u32()?;
        let policy = Policy(r.u64()?);
        let family_id = r.array()?;
        let image_id = r.array()?;
        let vmpl = r.u32()?;
        let signature_algo = r.u32()?;
        let current_tcb = r.tcb(layout)?;
        let platform_info = PlatformInfo(r.u64()?);
        let key_info = KeyInfo(r.u32()?);
        r.zeros(4)?;
        let report_data = ReportData(r.array()?);
        let measurement = LaunchDigest(r.array()?);
        let host_data = HostData(r.array()?);
        let id_key_digest = r.array()?;
        let author_key_digest = r.array()?;
        let report_id = r.array()?;
        let report_id_ma = r.array()?;
        let reported_tcb = r.tcb(layout)?;
        let cpuid = if version == 2 {
            r.zeros(24)?;
            None
        } else {
            let [family, model, stepping] = r.array()?;
            r.zeros(21)?;
            Some(Cpuid { family, model, stepping })
        };
        let chip_id = r.array()?;
        let committed_tcb = r.tcb(layout)?;
        let current = r.firmware_version()?;
        let committed = r.firmware_version()?;
        let launch_tcb = r.tcb(layout)?;
        let (launch_mit_vector, current_mit_vector) = if version >= 5 {
            let vectors = (Some(r.u64()?), Some(r.u64()?));
            r.zeros(152)?;
            vectors
        } else {
            r.zeros(168)?;
            (None, None)
        };
        let signature = Signature { r: r.array()?, s: r.array()? };
        r.zeros(368)?;

        Ok(Self {
            version,
            guest_svn,
            policy,
            family_id,
            image_id,
            vmpl,
            signature_algo,
            current_tcb,
            platform_info,
            key_info,
            report_data,
            measurement,
            host_data,
            id_key_digest,
            author_key_digest,
            report_id,
            report_id_ma,
            reported_tcb,
            cpuid,
            chip_id,
            committed_tcb,
            current,
            committed,
            launch_tcb,
            launch_mit_vector,
            current_mit_vector,
            signature,
        })
    }

    /// Serialises to the raw structure; the inverse of [`Report::parse`].
    ///
    /// # Errors
    /// When a field is present that the version has not, or missing where it must be, so that the result would not parse back.
    pub fn to_bytes(&self) -> Result<[u8; Self::LEN], ReportError> {
        let mismatch = |field| ReportError::FieldMismatch { field, version: self.version };
        let layout = self.tcb_layout()?;
        let tcb = |value: TcbVersion, field| value.to_bytes(layout).ok_or(mismatch(field));

        let mut w = Writer { bytes: Vec::with_capacity(Self::LEN) };
        w.put(&self.version.to_le_bytes());
        w.put(&self.guest_svn.to_le_bytes());
        w.put(&self.policy.0.to_le_bytes());
        w.put(&self.family_id);
        w.put(&self.image_id);
        w.put(&self.vmpl.to_le_bytes());
        w.put(&self.signature_algo.to_le_bytes());
        w.put(&tcb(self.current_tcb, "CURRENT_TCB")?);
        w.put(&self.platform_info.0.to_le_bytes());
        w.put(&self.key_info.0.to_le_bytes());
        w.zeros(4);
        w.put(&self.report_data.0);
        w.put(&self.measurement.0);
        w.put(&self.host_data.0);
        w.put(&self.id_key_digest);
        w.put(&self.author_key_digest);
        w.put(&self.report_id);
        w.put(&self.report_id_ma);
        w.put(&tcb(self.reported_tcb, "REPORTED_TCB")?);
        match (self.version, self.cpuid) {
            (2, None) => w.zeros(24),
            (3 | 5, Some(cpuid)) => {
                w.put(&[cpuid.family, cpuid.model, cpuid.stepping]);
                w.zeros(21);
            }
            _ => return Err(mismatch("CPUID_FAM_ID")),
        }
        w.put(&self.chip_id);
        w.put(&tcb(self.committed_tcb, "COMMITTED_TCB")?);
        for version in [self.current, self.committed] {
            w.put(&[version.build, version.minor, version.major, 0]);
        }
        w.put(&tcb(self.launch_tcb, "LAUNCH_TCB")?);
        match (self.version, self.launch_mit_vector, self.current_mit_vector) {
            (5, Some(launch), Some(current)) => {
                w.put(&launch.to_le_bytes());
                w.put(&current.to_le_bytes());
                w.zeros(152);
            }
            (2 | 3, None, None) => w.zeros(168),
            _ => return Err(mismatch("LAUNCH_MIT_VECTOR")),
        }
        w.put(&self.signature.r);
        w.put(&self.signature.s);
        w.zeros(368);
        let found = w.bytes.len();
        w.bytes.try_into().map_err(|_| ReportError::Length { found })
    }

    /// The bytes the signature is over, for whoever signs or verifies.
    ///
    /// # Errors
    /// As [`Report::to_bytes`].
    pub fn signed_bytes(&self) -> Result<[u8; Self::SIGNED_LEN], ReportError> {
        let bytes = self.to_bytes()?;
        bytes.first_chunk().copied().ok_or(ReportError::Length { found: bytes.len() })
    }

    /// The processor generation, where the report says (from version 3 on).
    #[must_use]
    pub fn generation(&self) -> Option<Generation> {
        self.cpuid.and_then(|cpuid| Generation::from_cpuid(cpuid.family, cpuid.model))
    }

    /// How this report's TCB versions are laid out.
    fn tcb_layout(&self) -> Result<TcbLayout, ReportError> {
        match (self.version, self.cpuid) {
            (2, None) => Ok(layout_by_chip_id(&self.chip_id)),
            (3 | 5, Some(Cpuid { family, model, .. })) => {
                Generation::from_cpuid(family, model).map(Generation::tcb_layout).ok_or(ReportError::UnknownProcessor { family, model })
            }
            (2 | 3 | 5, _) => Err(ReportError::FieldMismatch { field: "CPUID_FAM_ID", version: self.version }),
            (found, _) => Err(ReportError::Version { found }),
        }
    }

    fn layout_of(version: u32, bytes: &[u8]) -> Result<TcbLayout, ReportError> {
        let short = ReportError::Length { found: bytes.len() };
        if version == 2 {
            let chip_id = bytes.get(0x1a0..0x1e0).and_then(|slice| slice.first_chunk::<64>()).ok_or(short)?;
            return Ok(layout_by_chip_id(chip_id));
        }
        let [family, model] = bytes.get(0x188..0x18a).and_then(|slice| slice.first_chunk::<2>()).copied().ok_or(short)?;
        Generation::from_cpuid(family, model).map(Generation::tcb_layout).ok_or(ReportError::UnknownProcessor { family, model })
    }
}

/// Version 2 does not name the processor. From Turin on the chip id is eight bytes followed by zeros; before, 64 random bytes.
/// A masked (zero) id says nothing and is read as the layout version 2 was made for.
fn layout_by_chip_id(chip_id: &[u8; 64]) -> TcbLayout {
    let (id, rest) = chip_id.split_at(8);
    if id.iter().any(|byte| *byte != 0) && rest.iter().all(|byte| *byte == 0) { TcbLayout::Turin } else { TcbLayout::Legacy }
}

/// Takes fields off the front; every step is bounds-checked, and a failed step names its offset.
struct Reader<'a> {
    rest: &'a [u8],
    total: usize,
}

impl Reader<'_> {
    fn offset(&self) -> usize {
        self.total.saturating_sub(self.rest.len())
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], ReportError> {
        let (head, rest) = self.rest.split_first_chunk::<N>().ok_or(ReportError::Length { found: self.total })?;
        self.rest = rest;
        Ok(*head)
    }

    fn u32(&mut self) -> Result<u32, ReportError> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, ReportError> {
        self.array().map(u64::from_le_bytes)
    }

    fn tcb(&mut self, layout: TcbLayout) -> Result<TcbVersion, ReportError> {
        let offset = self.offset();
        TcbVersion::from_bytes(self.array()?, layout).ok_or(ReportError::Reserved { offset })
    }

    fn firmware_version(&mut self) -> Result<FirmwareVersion, ReportError> {
        let [build, minor, major] = self.array()?;
        self.zeros(1)?;
        Ok(FirmwareVersion { major, minor, build })
    }

    fn zeros(&mut self, count: usize) -> Result<(), ReportError> {
        let offset = self.offset();
        let (head, rest) = self.rest.split_at_checked(count).ok_or(ReportError::Length { found: self.total })?;
        if head.iter().any(|byte| *byte != 0) {
            return Err(ReportError::Reserved { offset });
        }
        self.rest = rest;
        Ok(())
    }
}

struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    fn put(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    fn zeros(&mut self, count: usize) {
        self.bytes.resize(self.bytes.len().saturating_add(count), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A report in which every byte of every field differs from its neighbours, so that a swapped or shifted field shows.
    fn full(version: u32, family: u8) -> Report {
        let tcb = |seed| TcbVersion {
            fmc: (family == 0x1a).then_some(seed),
            bootloader: seed + 1,
            tee: seed + 2,
            snp: seed + 3,
            microcode: seed + 4,
        };
        Report {
            version,
            guest_svn: 0x0102_0304,
            policy: Policy(0x3_001f),
            family_id: std::array::from_fn(|i| i as u8),
            image_id: std::array::from_fn(|i| 0x20 + i as u8),
            vmpl: 0,
            current_tcb: tcb(10),
            platform_info: PlatformInfo(0x27),
            key_info: KeyInfo(4),
            report_data: ReportData([0x31; 64]),
            measurement: LaunchDigest([0x32; 48]),
            host_data: HostData([0x33; 32]),
            id_key_digest: [0x34; 48],
            author_key_digest: [0x35; 48],
            report_id: [0x36; 32],
            report_id_ma: [0x37; 32],
            reported_tcb: tcb(20),
            cpuid: (version > 2).then_some(Cpuid { family, model: 1, stepping: 2 }),
            chip_id: if family == 0x1a { std::array::from_fn(|i| if i < 8 { 9 } else { 0 }) } else { [0x38; 64] },
            committed_tcb: tcb(30),
            current: FirmwareVersion { major: 1, minor: 55, build: 29 },
            committed: FirmwareVersion { major: 1, minor: 54, build: 28 },
            launch_tcb: tcb(40),
            launch_mit_vector: (version == 5).then_some(5),
            current_mit_vector: (version == 5).then_some(6),
            signature: Signature { r: [0x41; 72], s: [0x42; 72] },
            ..Report::default()
        }
    }

    #[test]
    fn every_version_and_layout_round_trips() {
        for version in [2, 3, 5] {
            for family in [0x19, 0x1a] {
                let report = full(version, family);
                let bytes = report.to_bytes().expect("serialises");
                assert_eq!(Report::parse(&bytes).expect("parses"), report, "version {version} family {family:#x}");
            }
        }
    }

    #[test]
    fn fields_are_at_amds_offsets() {
        let bytes = full(3, 0x19).to_bytes().expect("serialises");
        for (offset, byte) in [(0x50, 0x31), (0x90, 0x32), (0xc0, 0x33), (0xe0, 0x34), (0x110, 0x35), (0x140, 0x36), (0x160, 0x37)] {
            assert_eq!(bytes[offset], byte, "at {offset:#x}");
            assert_ne!(bytes[offset - 1], byte, "before {offset:#x}");
        }
        assert_eq!(bytes[0x188], 0x19);
        assert_eq!(bytes[0x1a0], 0x38);
        assert_eq!(bytes[0x1e8..0x1eb], [29, 55, 1]);
        assert_eq!(bytes[0x2a0], 0x41);
        assert_eq!(bytes[0x2a0 + 72], 0x42);
    }

    #[test]
    fn refuses_any_other_length() {
        let bytes = full(3, 0x19).to_bytes().expect("serialises");
        for len in 0..Report::LEN {
            assert_eq!(Report::parse(&bytes[..len]), Err(ReportError::Length { found: len }));
        }
        let mut longer = bytes.to_vec();
        longer.push(0);
        assert_eq!(Report::parse(&longer), Err(ReportError::Length { found: 1185 }));
    }

    #[test]
    fn refuses_versions_it_does_not_know() {
        let mut bytes = full(3, 0x19).to_bytes().expect("serialises");
        for version in [0, 1, 4, 6, 255] {
            bytes[0] = version;
            assert_eq!(Report::parse(&bytes), Err(ReportError::Version { found: u32::from(version) }));
        }
    }

    #[test]
    fn every_byte_is_either_kept_or_refused() {
        for version in [2, 3, 5] {
            for family in [0x19, 0x1a] {
                let good = full(version, family).to_bytes().expect("serialises");
                for offset in 0..Report::LEN {
                    for flip in [1, 0x80] {
                        let mut bytes = good;
                        bytes[offset] ^= flip;
                        if let Ok(report) = Report::parse(&bytes) {
                            assert_eq!(report.to_bytes().expect("serialises"), bytes, "offset {offset:#x} was lost");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn refuses_an_unknown_processor() {
        let mut bytes = full(3, 0x19).to_bytes().expect("serialises");
        bytes[0x189] = 0x60;
        assert_eq!(Report::parse(&bytes), Err(ReportError::UnknownProcessor { family: 0x19, model: 0x60 }));
    }

    #[test]
    fn refuses_to_build_what_would_not_parse_back() {
        let report = Report { cpuid: None, ..full(3, 0x19) };
        assert!(report.to_bytes().is_err());
        let report = Report { launch_mit_vector: Some(1), ..full(3, 0x19) };
        assert!(report.to_bytes().is_err());
        let report = Report { version: 4, ..full(3, 0x19) };
        assert!(report.to_bytes().is_err());
    }
}
