//! Firmware builds that are known by the SHA-256 of their file: what a distribution packages, ready to be launched.
//!
//! To be known says where a file comes from and what can be measured with it, which `tests/ready_firmware.rs` holds against the packages'
//! files. It is no promise that the firmware has no faults, and nothing is refused because it is unknown. Whoever measures a guest reads
//! the metadata of the file that is there.
//!
//! Invariant: a file that differs from a known one in a single byte is unknown.

use std::fmt;

/// A build: one file of one version of a package.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReadyFirmware {
    /// Path of the file below the root directory, without a leading `/`.
    pub path: &'static str,
    /// Debian's name of the package.
    pub package: &'static str,
    /// The package's version.
    pub version: &'static str,
    /// The release that had this version when it was looked at.
    pub suite: &'static str,
    /// SHA-256 of the file, in lower-case hex.
    pub sha256: &'static str,
    /// Whether a guest of SEV-SNP can be measured with it and a kernel, which it then checks.
    pub snp: bool,
    /// Whether a guest of TDX can be measured with it.
    pub tdx: bool,
    /// What to know before it is used.
    pub note: &'static str,
}

/// All that are known.
pub const READY: &[ReadyFirmware] = &[
    ReadyFirmware {
        path: "usr/share/ovmf/OVMF.amdsev.fd",
        package: "ovmf-amdsev",
        version: "2026.08+ds-2",
        suite: "sid",
        sha256: "3e4fd0b3fe3b2dbe481c3d9e99418a034174f26cbe1f55aa212b0f18c12d2d6f",
        snp: true,
        tdx: true,
        note: "edk2's AmdSev build: the one for SEV-SNP; it has TDX metadata too, but is not made for TDX",
    },
    ReadyFirmware {
        path: "usr/share/ovmf/OVMF.inteltdx.ms.fd",
        package: "ovmf-inteltdx",
        version: "2026.08+ds-2",
        suite: "sid",
        sha256: "a265075b4147a096109e501e76196df1ec8a18659c26f7401492c597ec88f312",
        snp: false,
        tdx: true,
        note: "edk2's IntelTdx build: the one for TDX; sections of its SEV metadata are empty",
    },
    ReadyFirmware {
        path: "usr/share/ovmf/OVMF.fd",
        package: "ovmf",
        version: "2025.02-8+deb13u1",
        suite: "trixie",
        sha256: "14954040cc754ade0c625ac3470ea46d4c14318b5b1396de4ef77090203d76db",
        snp: false,
        tdx: true,
        note: "the general build: under SEV-SNP it would boot any kernel",
    },
    ReadyFirmware {
        path: "usr/share/ovmf/OVMF.fd",
        package: "ovmf",
        version: "2022.11-6+deb12u2",
        suite: "bookworm",
        sha256: "7b456907dd0786d415999e801a1ac4637b8ed4d7cf5378cfc6edbe5e574dd773",
        snp: false,
        tdx: true,
        note: "the general build: under SEV-SNP it would boot any kernel",
    },
];

impl ReadyFirmware {
    /// The file's name.
    #[must_use]
    pub fn file(&self) -> &'static str {
        self.path.rsplit('/').next().unwrap_or(self.path)
    }

    /// The build whose whole file has this SHA-256, if it is known.
    #[must_use]
    pub fn by_sha256(sha256: &[u8; 32]) -> Option<&'static Self> {
        let sha256 = hex::encode(sha256);
        READY.iter().find(|build| build.sha256 == sha256)
    }
}

/// File, package and version, for people.
impl fmt::Display for ReadyFirmware {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { package, version, suite, .. } = self;
        write!(f, "{} of Debian's {package} {version} ({suite})", self.file())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_build_is_found_by_its_digest_and_by_no_other() {
        for build in READY {
            let digest: [u8; 32] = hex::decode(build.sha256).unwrap().try_into().unwrap();
            assert_eq!(ReadyFirmware::by_sha256(&digest), Some(build));
            let mut other = digest;
            other[31] ^= 1;
            assert_eq!(ReadyFirmware::by_sha256(&other), None);
        }
    }

    #[test]
    fn each_build_can_be_measured_for_something() {
        assert!(READY.iter().all(|build| build.snp || build.tdx));
        assert_eq!(READY[0].to_string(), "OVMF.amdsev.fd of Debian's ovmf-amdsev 2026.08+ds-2 (sid)");
    }
}
