//! The SEV hash table: how QEMU (`kernel-hashes=on`) tells the measured firmware which kernel, initrd and command line
//! it may boot. The page that holds it is measured, and so the three are.

use std::path::Path;

use sha2::{Digest, Sha256};

use super::MeasureError;
use crate::footer::{Guid, PAGE_LEN};
use crate::measure::stream::stream;

const HEADER: Guid = Guid::new(0x9438_d606, 0x4f22, 0x4cc9, 0xb479, 0xa793_d411_fd21);
const CMDLINE: Guid = Guid::new(0x97d0_2dd8, 0xbd20, 0x4c94, 0xaa78, 0xe771_4d36_ab2a);
const INITRD: Guid = Guid::new(0x44ba_f731, 0x3a2f, 0x4bd7, 0x9af1, 0x41e2_9169_781d);
const KERNEL: Guid = Guid::new(0x4de7_9437, 0xabd2, 0x427f, 0xb835, 0xd5b1_72d2_045b);

/// What a table has entries of, in its order.
pub(super) const ENTRIES: [Guid; 3] = [CMDLINE, INITRD, KERNEL];

const ENTRY_LEN: u16 = 16 + 2 + 32;
const TABLE_LEN: u16 = 16 + 2 + 3 * ENTRY_LEN;
/// What a VMM writes: QEMU pads the table to 16 bytes.
pub(super) const PADDED_TABLE_LEN: usize = (TABLE_LEN as usize).next_multiple_of(16);

/// SHA-256 of the three things a direct boot starts from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KernelHashes {
    kernel: [u8; 32],
    initrd: [u8; 32],
    cmdline: [u8; 32],
}

impl KernelHashes {
    /// Hashes of a kernel image, an initrd and a command line (without trailing NUL, which is hashed with it).
    /// No initrd counts as an empty one, as it does for QEMU.
    #[must_use]
    pub fn of(kernel: &[u8], initrd: Option<&[u8]>, append: &str) -> Self {
        Self::from_hashes(Sha256::digest(kernel).into(), Sha256::digest(initrd.unwrap_or_default()).into(), append)
    }

    /// The same where kernel and initrd have been hashed elsewhere.
    #[must_use]
    pub fn from_hashes(kernel: [u8; 32], initrd: [u8; 32], append: &str) -> Self {
        let cmdline = Sha256::new().chain_update(append).chain_update([0]).finalize().into();
        Self { kernel, initrd, cmdline }
    }

    /// The same from files, streamed.
    ///
    /// # Errors
    /// When one cannot be read.
    pub fn of_files(kernel: &Path, initrd: Option<&Path>, append: &str) -> Result<Self, MeasureError> {
        let initrd = match initrd {
            Some(path) => sha256_of(path)?,
            None => Sha256::digest([]).into(),
        };
        Ok(Self::from_hashes(sha256_of(kernel)?, initrd, append))
    }

    /// SHA-256 of the kernel image.
    #[must_use]
    pub const fn kernel(&self) -> &[u8; 32] {
        &self.kernel
    }

    /// SHA-256 of the initrd.
    #[must_use]
    pub const fn initrd(&self) -> &[u8; 32] {
        &self.initrd
    }

    /// SHA-256 of the command line with its trailing NUL.
    #[must_use]
    pub const fn cmdline(&self) -> &[u8; 32] {
        &self.cmdline
    }

    /// The page a VMM makes of it: zero but for the table at `offset`. `None` when it does not fit there.
    #[must_use]
    pub fn page(&self, offset: usize) -> Option<Box<[u8]>> {
        let mut page = vec![0; PAGE_LEN].into_boxed_slice();
        // The padding must fit as well.
        let room = page.get_mut(offset..)?.get_mut(..PADDED_TABLE_LEN)?;
        let mut table = Vec::with_capacity(usize::from(TABLE_LEN));
        table.extend(HEADER.to_bytes());
        table.extend(TABLE_LEN.to_le_bytes());
        // Always all three: OVMF starts a blob whose entry is missing without a check.
        for (guid, hash) in ENTRIES.into_iter().zip([&self.cmdline, &self.initrd, &self.kernel]) {
            table.extend(guid.to_bytes());
            table.extend(ENTRY_LEN.to_le_bytes());
            table.extend(hash);
        }
        room.get_mut(..table.len())?.copy_from_slice(&table);
        Some(page)
    }
}

fn sha256_of(path: &Path) -> Result<[u8; 32], MeasureError> {
    let mut hasher = Sha256::new();
    stream(path, |bytes| hasher.update(bytes)).map_err(|source| MeasureError::Read { path: path.to_owned(), source })?;
    Ok(hasher.finalize().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn absent_initrd_hashes_as_empty_and_the_command_line_with_its_nul() {
        let hashes = KernelHashes::of(b"k", None, "");
        assert_eq!(hashes, KernelHashes::of(b"k", Some(b""), ""));
        assert_eq!(hashes.cmdline(), &<[u8; 32]>::from(Sha256::digest([0])));
    }

    #[test]
    fn table_fits_the_page_or_there_is_none() {
        let hashes = KernelHashes::of(b"k", None, "");
        assert_eq!((TABLE_LEN, PADDED_TABLE_LEN), (168, 176));
        assert!(hashes.page(4096 - 176).is_some());
        assert!(hashes.page(4096 - 175).is_none());
        assert!(hashes.page(usize::MAX).is_none());
    }

    #[test]
    fn files_hash_as_their_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let (kernel, initrd) = (dir.path().join("k"), dir.path().join("i"));
        std::fs::write(&kernel, vec![3; 700_000]).unwrap();
        std::fs::write(&initrd, b"initrd").unwrap();
        let expected = KernelHashes::of(&vec![3; 700_000], Some(b"initrd"), "a b");
        assert_eq!(KernelHashes::of_files(&kernel, Some(&initrd), "a b").unwrap(), expected);
        let missing = KernelHashes::of_files(&dir.path().join("no-such-kernel"), None, "").unwrap_err();
        assert!(missing.to_string().contains("no-such-kernel"), "{missing}");
    }
}
