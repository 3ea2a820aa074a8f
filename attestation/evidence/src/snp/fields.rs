//! The structured fields of an SNP attestation report: policy, platform, key information, TCB versions, signature.
//!
//! Bit sets are newtypes over the integer with accessors, so that a bit this crate does not know is kept and shown, never
//! dropped.

use serde::{Deserialize, Serialize};

/// Guest policy (AMD 56860, table "Guest Policy").
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Policy(pub u64);

impl Policy {
    const fn bit(self, bit: u32) -> bool {
        self.0 & (1 << bit) != 0
    }
    /// Minimum firmware ABI, minor.
    #[must_use]
    pub const fn abi_minor(self) -> u8 {
        self.0.to_le_bytes()[0]
    }
    /// Minimum firmware ABI, major.
    #[must_use]
    pub const fn abi_major(self) -> u8 {
        self.0.to_le_bytes()[1]
    }
    /// The guest may run with simultaneous multithreading.
    #[must_use]
    pub const fn smt_allowed(self) -> bool {
        self.bit(16)
    }
    /// Association with a migration agent is allowed.
    #[must_use]
    pub const fn migrate_ma_allowed(self) -> bool {
        self.bit(18)
    }
    /// The host may decrypt the guest's memory for debugging.
    #[must_use]
    pub const fn debug_allowed(self) -> bool {
        self.bit(19)
    }
    /// The guest may be activated on one socket only.
    #[must_use]
    pub const fn single_socket_required(self) -> bool {
        self.bit(20)
    }
    /// CXL devices may be populated.
    #[must_use]
    pub const fn cxl_allowed(self) -> bool {
        self.bit(21)
    }
    /// AES-256-XTS memory encryption is required.
    #[must_use]
    pub const fn mem_aes_256_xts(self) -> bool {
        self.bit(22)
    }
    /// RAPL must be disabled.
    #[must_use]
    pub const fn rapl_disabled(self) -> bool {
        self.bit(23)
    }
    /// Ciphertext hiding of DRAM must be enabled.
    #[must_use]
    pub const fn ciphertext_hiding(self) -> bool {
        self.bit(24)
    }
    /// Page move and swap commands are disabled for the guest.
    #[must_use]
    pub const fn page_swap_disabled(self) -> bool {
        self.bit(25)
    }
}

/// Platform information (AMD 56860, table "PLATFORM_INFO").
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PlatformInfo(pub u64);

impl PlatformInfo {
    const fn bit(self, bit: u32) -> bool {
        self.0 & (1 << bit) != 0
    }
    /// Simultaneous multithreading is on.
    #[must_use]
    pub const fn smt_enabled(self) -> bool {
        self.bit(0)
    }
    /// Transparent SME is on.
    #[must_use]
    pub const fn tsme_enabled(self) -> bool {
        self.bit(1)
    }
    /// The memory has ECC.
    #[must_use]
    pub const fn ecc_enabled(self) -> bool {
        self.bit(2)
    }
    /// RAPL is off.
    #[must_use]
    pub const fn rapl_disabled(self) -> bool {
        self.bit(3)
    }
    /// Ciphertext hiding is on.
    #[must_use]
    pub const fn ciphertext_hiding_enabled(self) -> bool {
        self.bit(4)
    }
    /// Memory alias detection ran since the last reset and found none.
    #[must_use]
    pub const fn alias_check_complete(self) -> bool {
        self.bit(5)
    }
    /// SEV-TIO is on.
    #[must_use]
    pub const fn tio_enabled(self) -> bool {
        self.bit(7)
    }
}

/// Which key signed a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SigningKey {
    /// Versioned Chip Endorsement Key.
    Vcek,
    /// Versioned Loaded Endorsement Key.
    Vlek,
    /// The report is not signed.
    None,
    /// A code AMD has reserved.
    Reserved(u8),
}

/// The word at offset 0x48 of a report (SIGNING_KEY, MASK_CHIP_KEY, AUTHOR_KEY_EN).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct KeyInfo(pub u32);

impl KeyInfo {
    /// The digest of the author key is present.
    #[must_use]
    pub const fn author_key_enabled(self) -> bool {
        self.0 & 1 != 0
    }
    /// The firmware writes zeros instead of a signature.
    #[must_use]
    pub const fn mask_chip_key(self) -> bool {
        self.0 & 2 != 0
    }
    /// Which key signed.
    #[must_use]
    pub const fn signing_key(self) -> SigningKey {
        match (self.0 >> 2) & 7 {
            0 => SigningKey::Vcek,
            1 => SigningKey::Vlek,
            7 => SigningKey::None,
            other => SigningKey::Reserved(other as u8),
        }
    }
}

/// Processor generation, which decides the layout of TCB versions and the root key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Generation {
    /// EPYC 7003.
    Milan,
    /// EPYC 9004, 8004, 97x4.
    Genoa,
    /// EPYC 9005.
    Turin,
}

impl Generation {
    /// Every generation, oldest first.
    pub const ALL: [Self; 3] = [Self::Milan, Self::Genoa, Self::Turin];

    /// Generation by combined CPUID family and model, `None` where this crate does not know the processor.
    #[must_use]
    pub const fn from_cpuid(family: u8, model: u8) -> Option<Self> {
        match (family, model) {
            (0x19, 0x00..=0x0f) => Some(Self::Milan),
            (0x19, 0x10..=0x1f | 0xa0..=0xaf) => Some(Self::Genoa),
            (0x1a, 0x00..=0x11) => Some(Self::Turin),
            _ => None,
        }
    }

    /// AMD's product name, as it appears in certificates and in the key distribution service.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Milan => "Milan",
            Self::Genoa => "Genoa",
            Self::Turin => "Turin",
        }
    }

    /// How TCB versions of this generation are laid out.
    #[must_use]
    pub const fn tcb_layout(self) -> TcbLayout {
        match self {
            Self::Milan | Self::Genoa => TcbLayout::Legacy,
            Self::Turin => TcbLayout::Turin,
        }
    }
}

/// CPUID of the processor, in reports of version 3 and later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cpuid {
    /// Combined extended family and family.
    pub family: u8,
    /// Combined extended model and model.
    pub model: u8,
    /// Stepping.
    pub stepping: u8,
}

/// Firmware version: build, minor and major are one byte each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FirmwareVersion {
    /// Major.
    pub major: u8,
    /// Minor.
    pub minor: u8,
    /// Build.
    pub build: u8,
}

/// The two layouts of TCB_VERSION (AMD 56860, tables "TCB_VERSION" for Milan and Genoa, and for Turin).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TcbLayout {
    /// Bootloader, TEE, four reserved bytes, SNP, microcode.
    Legacy,
    /// FMC, bootloader, TEE, SNP, three reserved bytes, microcode.
    Turin,
}

/// Security version numbers of the platform's firmware parts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TcbVersion {
    /// FMC firmware; present from Turin on.
    #[serde(default)]
    pub fmc: Option<u8>,
    /// Bootloader of the secure processor.
    pub bootloader: u8,
    /// Operating system of the secure processor.
    pub tee: u8,
    /// SNP firmware.
    pub snp: u8,
    /// Lowest microcode patch level of all cores.
    pub microcode: u8,
}

impl TcbVersion {
    /// Reads eight bytes; `None` when a reserved byte is not zero.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 8], layout: TcbLayout) -> Option<Self> {
        match (layout, bytes) {
            (TcbLayout::Legacy, [bootloader, tee, 0, 0, 0, 0, snp, microcode]) => Some(Self { fmc: None, bootloader, tee, snp, microcode }),
            (TcbLayout::Turin, [fmc, bootloader, tee, snp, 0, 0, 0, microcode]) => {
                Some(Self { fmc: Some(fmc), bootloader, tee, snp, microcode })
            }
            _ => None,
        }
    }

    /// The eight bytes; `None` when FMC is given where the layout has none, or missing where it has one.
    #[must_use]
    pub const fn to_bytes(self, layout: TcbLayout) -> Option<[u8; 8]> {
        match (layout, self.fmc) {
            (TcbLayout::Legacy, None) => Some([self.bootloader, self.tee, 0, 0, 0, 0, self.snp, self.microcode]),
            (TcbLayout::Turin, Some(fmc)) => Some([fmc, self.bootloader, self.tee, self.snp, 0, 0, 0, self.microcode]),
            _ => None,
        }
    }

    /// True when every part is at least that of `floor`. A missing FMC counts as below any given one.
    #[must_use]
    pub fn at_least(self, floor: Self) -> bool {
        self.fmc >= floor.fmc
            && self.bootloader >= floor.bootloader
            && self.tee >= floor.tee
            && self.snp >= floor.snp
            && self.microcode >= floor.microcode
    }
}

/// For people.
impl std::fmt::Display for TcbVersion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if let Some(fmc) = self.fmc {
            write!(f, "FMC {fmc}, ")?;
        }
        write!(f, "boot loader {}, TEE {}, SNP {}, microcode {}", self.bootloader, self.tee, self.snp, self.microcode)
    }
}

/// ECDSA signature as the firmware writes it: R and S, each 72 bytes **little-endian**, of which P-384 uses 48.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Signature {
    /// R.
    pub r: [u8; 72],
    /// S.
    pub s: [u8; 72],
}

impl Signature {
    /// From big-endian R ‖ S of 48 bytes each, as ECDSA libraries give it.
    #[must_use]
    pub fn from_p384_fixed(fixed: &[u8; 96]) -> Self {
        let (r, s) = fixed.split_at(48);
        let place = |half: &[u8]| {
            let mut le = [0; 72];
            le.iter_mut().zip(half.iter().rev()).for_each(|(to, from)| *to = *from);
            le
        };
        Self { r: place(r), s: place(s) }
    }

    /// Big-endian R ‖ S of 48 bytes each; `None` when either number is longer than P-384 allows.
    #[must_use]
    pub fn to_p384_fixed(&self) -> Option<[u8; 96]> {
        let mut fixed = [0; 96];
        let (r, s) = fixed.split_at_mut(48);
        for (half, le) in [(r, &self.r), (s, &self.s)] {
            let (used, rest) = le.split_at(48);
            if rest.iter().any(|byte| *byte != 0) {
                return None;
            }
            half.iter_mut().zip(used.iter().rev()).for_each(|(to, from)| *to = *from);
        }
        Some(fixed)
    }
}

impl Default for Signature {
    fn default() -> Self {
        Self { r: [0; 72], s: [0; 72] }
    }
}

impl std::fmt::Debug for Signature {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Signature(r: {}, s: {})", hex::encode(self.r), hex::encode(self.s))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tcb_layouts_round_trip_and_refuse_reserved_bytes() {
        for layout in [TcbLayout::Legacy, TcbLayout::Turin] {
            let bytes = match layout {
                TcbLayout::Legacy => [3, 1, 0, 0, 0, 0, 8, 0x73],
                TcbLayout::Turin => [1, 3, 1, 8, 0, 0, 0, 0x73],
            };
            let tcb = TcbVersion::from_bytes(bytes, layout).expect("well formed");
            assert_eq!(tcb.to_bytes(layout), Some(bytes));
            assert_eq!((tcb.bootloader, tcb.tee, tcb.snp, tcb.microcode), (3, 1, 8, 0x73));
            let mut reserved = bytes;
            reserved[5] = 1;
            assert_eq!(TcbVersion::from_bytes(reserved, layout), None);
        }
        assert_eq!(TcbVersion { fmc: Some(1), ..TcbVersion::default() }.to_bytes(TcbLayout::Legacy), None);
        assert_eq!(TcbVersion::default().to_bytes(TcbLayout::Turin), None);
    }

    #[test]
    fn tcb_floor_looks_at_every_part() {
        let base = TcbVersion { fmc: Some(1), bootloader: 1, tee: 1, snp: 1, microcode: 1 };
        assert!(base.at_least(base));
        for higher in [
            TcbVersion { fmc: Some(2), ..base },
            TcbVersion { bootloader: 2, ..base },
            TcbVersion { tee: 2, ..base },
            TcbVersion { snp: 2, ..base },
            TcbVersion { microcode: 2, ..base },
        ] {
            assert!(!base.at_least(higher));
            assert!(higher.at_least(base));
        }
        assert!(!TcbVersion { fmc: None, ..base }.at_least(base));
    }

    #[test]
    fn signature_numbers_are_little_endian() {
        let fixed: [u8; 96] = std::array::from_fn(|i| i as u8);
        let signature = Signature::from_p384_fixed(&fixed);
        assert_eq!((signature.r[0], signature.r[47], signature.r[48]), (47, 0, 0));
        assert_eq!(signature.to_p384_fixed(), Some(fixed));
        let too_long = Signature { r: [1; 72], ..signature };
        assert_eq!(too_long.to_p384_fixed(), None);
    }

    #[test]
    fn generations_follow_family_and_model() {
        assert_eq!(Generation::from_cpuid(0x19, 1), Some(Generation::Milan));
        assert_eq!(Generation::from_cpuid(0x19, 0x11), Some(Generation::Genoa));
        assert_eq!(Generation::from_cpuid(0x19, 0xa0), Some(Generation::Genoa));
        assert_eq!(Generation::from_cpuid(0x1a, 2), Some(Generation::Turin));
        assert_eq!(Generation::from_cpuid(0x19, 0x20), None);
        assert_eq!(Generation::from_cpuid(0x1b, 0), None);
    }

    #[test]
    fn policy_bits_are_where_the_table_puts_them() {
        let policy = Policy(0x3_001f);
        assert_eq!((policy.abi_major(), policy.abi_minor(), policy.smt_allowed(), policy.debug_allowed()), (0, 0x1f, true, false));
        assert!(Policy(1 << 19).debug_allowed());
        assert_eq!(KeyInfo(4).signing_key(), SigningKey::Vlek);
        assert_eq!(KeyInfo(0x1c).signing_key(), SigningKey::None);
    }
}
