//! The TD HOB: the list by which QEMU tells the firmware what memory there is (UEFI Platform Initialization 1.8, volume 3, chapters 4
//! and 5; Intel TDX Virtual Firmware Design Guide, section 4.2). The firmware measures it into RTMR0.
//!
//! It depends on the amount of memory and on where the firmware's sections are; the number of vCPUs is not in it.

use super::memory::GuestMemory;
use super::metadata::{SectionKind, TdxFirmware};

const HANDOFF: u16 = 1;
const RESOURCE: u16 = 3;
const HANDOFF_LEN: u16 = 56;
const RESOURCE_LEN: u16 = 48;
/// Bytes of the entry that ends the list. It is there, and not measured.
const END_LEN: u64 = 8;
/// `EFI_HOB_HANDOFF_TABLE_VERSION`.
const VERSION: u32 = 9;
/// Present, initialised, tested.
const ATTRIBUTES: u32 = 7;

/// What a range of memory is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Resource {
    /// Added before the TD starts.
    System = 0,
    /// To be accepted by the TD.
    Unaccepted = 7,
}

/// Why there is no such list.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TdHobError {
    /// The firmware wants memory that is not there.
    #[error("the firmware has a {kind:?} section at {gpa:#x}, {size:#x} bytes, where a guest of this size has no memory; give it more")]
    NoMemory {
        /// What for.
        kind: SectionKind,
        /// Where.
        gpa: u64,
        /// Bytes.
        size: u64,
    },
    /// The list is longer than its section.
    #[error("the list of memory is {found} bytes long, and the firmware's TdHob section has {expected}")]
    Overrun {
        /// Bytes of the list.
        found: u64,
        /// Bytes of the section.
        expected: u64,
    },
}

impl TdxFirmware<'_> {
    /// The measured bytes of the TD HOB that QEMU makes on a q35 with this much memory: all but the entry that ends the list.
    ///
    /// # Errors
    /// When the memory is too little for the firmware.
    pub fn td_hob_content(&self, memory: GuestMemory) -> Result<Vec<u8>, TdHobError> {
        let ranges = self.ranges(memory)?;
        let length = u64::from(HANDOFF_LEN) + u64::from(RESOURCE_LEN) * ranges.len() as u64 + END_LEN;
        let section = self.td_hob();
        if length > section.size() {
            return Err(TdHobError::Overrun { found: length, expected: section.size() });
        }
        let mut list = header(HANDOFF, HANDOFF_LEN).to_vec();
        list.extend(VERSION.to_le_bytes());
        // Boot mode; then four limits of memory that QEMU leaves open.
        list.extend([0; 4 + 4 * 8]);
        list.extend((section.gpa() + length).to_le_bytes());
        for (start, size, resource) in ranges {
            list.extend(header(RESOURCE, RESOURCE_LEN));
            // The owner: nobody.
            list.extend([0; 16]);
            list.extend([resource as u32, ATTRIBUTES].map(u32::to_le_bytes).concat());
            list.extend([start, size].map(u64::to_le_bytes).concat());
        }
        Ok(list)
    }

    /// All memory by address, with what the firmware has at its start cut out of it.
    fn ranges(&self, memory: GuestMemory) -> Result<Vec<(u64, u64, Resource)>, TdHobError> {
        let mut ranges: Vec<_> = memory.ranges().map(|(start, size)| (start, size, Resource::Unaccepted)).collect();
        for section in self.sections() {
            // Volumes are in the flash below 4 GiB, which is no memory.
            if !matches!(section.kind(), SectionKind::TdHob | SectionKind::TemporaryMemory) {
                continue;
            }
            let (gpa, end) = (section.gpa(), section.gpa() + section.size());
            let around =
                |(start, size, resource): &(u64, u64, Resource)| *resource == Resource::Unaccepted && *start <= gpa && end <= start + size;
            let at = ranges.iter().position(around);
            let Some((start, size, _)) = at.map(|at| ranges.swap_remove(at)) else {
                return Err(TdHobError::NoMemory { kind: section.kind(), gpa, size: section.size() });
            };
            ranges.push((gpa, section.size(), Resource::System));
            let rest = [(start, gpa - start), (end, start + size - end)];
            ranges.extend(rest.into_iter().filter(|(_, size)| *size > 0).map(|(start, size)| (start, size, Resource::Unaccepted)));
        }
        ranges.sort_unstable_by_key(|(start, ..)| *start);
        Ok(ranges)
    }
}

/// `EFI_HOB_GENERIC_HEADER`: type, length, reserved.
fn header(kind: u16, length: u16) -> [u8; 8] {
    let ([a, b], [c, d]) = (kind.to_le_bytes(), length.to_le_bytes());
    [a, b, c, d, 0, 0, 0, 0]
}
