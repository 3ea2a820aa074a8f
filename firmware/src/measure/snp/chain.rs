//! The digest chain: one PAGE_INFO after the other (AMD 56860, section 8.17.2, table 67).
//!
//! It knows pages, not firmware. Addresses and sizes come checked from [`super::firmware`].

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use sha2::{Digest, Sha384};

use crate::footer::PAGE_LEN;

/// An SEV-SNP launch digest: what MEASUREMENT in the attestation report holds.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LaunchDigest([u8; 48]);

impl LaunchDigest {
    /// A digest somebody else computed.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 48]) -> Self {
        Self(bytes)
    }

    /// Its 48 bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 48] {
        &self.0
    }
}

impl fmt::Display for LaunchDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for LaunchDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LaunchDigest({self})")
    }
}

impl serde::Serialize for LaunchDigest {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for LaunchDigest {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = Cow::<'de, str>::deserialize(from)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// A text that is no launch digest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expected a launch digest of 96 hex digits, found {found} characters that are not that")]
pub struct NotADigest {
    found: usize,
}

impl FromStr for LaunchDigest {
    type Err = NotADigest;

    fn from_str(text: &str) -> Result<Self, NotADigest> {
        let mut bytes = [0; 48];
        hex::decode_to_slice(text, &mut bytes).map_err(|_| NotADigest { found: text.chars().count() })?;
        Ok(Self(bytes))
    }
}

/// PAGE_TYPE of SNP_LAUNCH_UPDATE (AMD 56860, table 65) of pages without measured content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum PageType {
    /// The hardware clears the page.
    Zero = 3,
    /// The content is the host's; only that the page is there is measured.
    Unmeasured = 4,
    /// The firmware writes the VM communication keys into it.
    Secrets = 5,
    /// Checked against the hardware by the firmware; the content is not in the digest.
    Cpuid = 6,
}

const NORMAL: u8 = 1;
const VMSA: u8 = 2;

/// VMSA pages are entered under address −1, with the bits inside a page and above bit 47 cleared.
const VMSA_GPA: u64 = 0xffff_ffff_f000;

/// The digest so far.
#[derive(Debug, Clone)]
pub(super) struct Chain(LaunchDigest);

impl Chain {
    /// A guest of which nothing has been launched.
    pub(super) const fn new() -> Self {
        Self(LaunchDigest([0; 48]))
    }

    pub(super) const fn continued(from: LaunchDigest) -> Self {
        Self(from)
    }

    pub(super) const fn digest(&self) -> LaunchDigest {
        self.0
    }

    fn page(&mut self, kind: u8, gpa: u64, content: &[u8; 48]) {
        let info = Sha384::new()
            .chain_update(self.0.0)
            .chain_update(content)
            // Length of PAGE_INFO (0x70), page type; then IMI_PAGE, the permissions of VMPL 3 to 1 and a reserved byte.
            .chain_update([0x70, 0, kind, 0, 0, 0, 0, 0])
            .chain_update(gpa.to_le_bytes());
        self.0 = LaunchDigest(info.finalize().into());
    }

    /// Pages with content, from `gpa` on. Whole pages: the caller has checked the length.
    pub(super) fn normal(&mut self, gpa: u64, content: &[u8]) {
        for (address, page) in (gpa..).step_by(PAGE_LEN).zip(content.chunks(PAGE_LEN)) {
            self.page(NORMAL, address, &Sha384::digest(page).into());
        }
    }

    /// `size` bytes of pages without measured content.
    pub(super) fn pages(&mut self, kind: PageType, gpa: u64, size: u64) {
        for offset in (0..size).step_by(PAGE_LEN) {
            self.page(kind as u8, gpa + offset, &[0; 48]);
        }
    }

    /// The initial state of one vCPU, by the hash of its page: all but the first are alike.
    pub(super) fn vmsa(&mut self, hash: &[u8; 48]) {
        self.page(VMSA, VMSA_GPA, hash);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digest_text_and_json_round_trip() {
        let digest = LaunchDigest([7; 48]);
        assert_eq!(digest.to_string().parse(), Ok(digest));
        let json = serde_json::to_string(&digest).unwrap();
        assert_eq!(serde_json::from_str::<LaunchDigest>(&json).unwrap(), digest);
    }

    #[test]
    fn refuses_a_digest_of_another_length() {
        assert_eq!("00".repeat(47).parse::<LaunchDigest>(), Err(NotADigest { found: 94 }));
        assert!("zz".repeat(48).parse::<LaunchDigest>().is_err());
    }

    #[test]
    fn each_part_of_a_page_changes_the_digest() {
        let of = |change: &dyn Fn(&mut Chain)| {
            let mut chain = Chain::new();
            change(&mut chain);
            chain.digest()
        };
        let all = [
            of(&|c| c.normal(0, &[0; 4096])),
            of(&|c| c.normal(0x1000, &[0; 4096])),
            of(&|c| c.normal(0, &[1; 4096])),
            of(&|c| c.normal(0, &[0; 8192])),
            of(&|c| c.pages(PageType::Zero, 0, 4096)),
            of(&|c| c.pages(PageType::Zero, 0, 8192)),
            of(&|c| c.pages(PageType::Unmeasured, 0, 4096)),
            of(&|c| c.pages(PageType::Secrets, 0, 4096)),
            of(&|c| c.pages(PageType::Cpuid, 0, 4096)),
            of(&|c| c.vmsa(&[0; 48])),
        ];
        let distinct: std::collections::BTreeSet<_> = all.iter().collect();
        assert_eq!(distinct.len(), all.len());
    }
}
