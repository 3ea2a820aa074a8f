//! What QEMU does to the header of a Linux kernel before the firmware measures it (Linux x86 boot protocol,
//! Documentation/arch/x86/boot.rst).
//!
//! QEMU up to 10.1 fills in what a boot loader is to fill in: also where the initrd would be, which depends on the guest's memory. From
//! 10.2 on it leaves the kernel of a confidential guest alone (QEMU, commit a7542a38f399).

use super::memory::GuestMemory;

const MAGIC: &[u8] = b"HdrS";
const MAGIC_AT: usize = 0x202;
const PROTOCOL_AT: usize = 0x206;
const LOADER_AT: usize = 0x210;
const FLAGS_AT: usize = 0x211;
const INITRD_AT: usize = 0x218;
const INITRD_SIZE_AT: usize = 0x21c;
const HEAP_END_AT: usize = 0x224;
const CMDLINE_AT: usize = 0x228;
const INITRD_MAX_AT: usize = 0x22c;
const XFLAGS_AT: usize = 0x236;

/// QEMU, first version.
const LOADER: u8 = 0xb0;
const LOADED_HIGH: u8 = 1;
const CAN_USE_HEAP: u8 = 0x80;
const ABOVE_4_GIB: u16 = 2;
/// Where QEMU says that the command line is, and the end of the heap below it.
const CMDLINE: u32 = 0x2_0000;
const HEAP_END: u16 = 0xfe00;
/// What q35 keeps free for ACPI tables at the end of the memory below 4 GiB.
const ACPI_DATA: u64 = 0x2_8000;

/// The kernel that the firmware is handed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KernelHeader {
    /// As it is in the file: QEMU from 10.2 on.
    AsInFile,
    /// With the header that QEMU up to 10.1 makes for a guest of this much memory.
    FilledIn(GuestMemory),
}

/// Why QEMU would not start a kernel, or not as described here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KernelHeaderError {
    /// Not a bzImage, or an ancient one.
    #[error("the kernel has no header of the x86 boot protocol, 2.03 or later, loaded high; expected a bzImage")]
    NotLinux,
    /// No room for the initrd.
    #[error("the initrd has {found} bytes, and in a guest of this size there is room for less than {limit}")]
    InitrdTooLarge {
        /// Bytes of the initrd.
        found: u64,
        /// Where it would have to end.
        limit: u64,
    },
    /// Makes QEMU fill in a field more.
    #[error("the command line has vga=, by which QEMU changes the kernel's header in a way that is not predicted; leave it out")]
    VideoMode,
}

/// Fills in the header of a kernel.
pub(super) fn fill_in(kernel: &mut [u8], memory: GuestMemory, initrd: Option<u64>, append: &str) -> Result<(), KernelHeaderError> {
    let u16_at = |kernel: &[u8], at: usize| kernel.get(at..)?.first_chunk().map(|b| u16::from_le_bytes(*b));
    let u32_at = |kernel: &[u8], at: usize| kernel.get(at..)?.first_chunk().map(|b| u32::from_le_bytes(*b));
    let (Some(protocol), Some(flags), Some(initrd_max), Some(xflags)) =
        (u16_at(kernel, PROTOCOL_AT), kernel.get(FLAGS_AT).copied(), u32_at(kernel, INITRD_MAX_AT), u16_at(kernel, XFLAGS_AT))
    else {
        return Err(KernelHeaderError::NotLinux);
    };
    if kernel.get(MAGIC_AT..MAGIC_AT + MAGIC.len()) != Some(MAGIC) || protocol < 0x203 || flags & LOADED_HIGH == 0 {
        return Err(KernelHeaderError::NotLinux);
    }
    if append.contains("vga=") {
        return Err(KernelHeaderError::VideoMode);
    }
    let mut put = |at: usize, bytes: &[u8]| {
        for (to, from) in kernel.iter_mut().skip(at).zip(bytes) {
            *to = *from;
        }
    };
    put(LOADER_AT, &[LOADER]);
    put(FLAGS_AT, &[flags | CAN_USE_HEAP]);
    put(HEAP_END_AT, &HEAP_END.to_le_bytes());
    put(CMDLINE_AT, &CMDLINE.to_le_bytes());
    if let Some(size) = initrd {
        let by_kernel = if protocol >= 0x20c && xflags & ABOVE_4_GIB != 0 { u32::MAX } else { initrd_max };
        let by_memory = memory.low().saturating_sub(ACPI_DATA);
        let limit = if u64::from(by_kernel) >= by_memory { by_memory.saturating_sub(1) } else { u64::from(by_kernel) };
        let too_large = KernelHeaderError::InitrdTooLarge { found: size, limit };
        let address = limit.checked_sub(size).filter(|room| *room > 0).ok_or(too_large.clone())? & !0xfff;
        // Both are below the limit, which has 32 bits.
        put(INITRD_AT, &u32::try_from(address).map_err(|_| too_large.clone())?.to_le_bytes());
        put(INITRD_SIZE_AT, &u32::try_from(size).map_err(|_| too_large)?.to_le_bytes());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kernel(protocol: u16, xflags: u16) -> Vec<u8> {
        let mut kernel = vec![0x55; 0x1000];
        kernel[MAGIC_AT..MAGIC_AT + 4].copy_from_slice(MAGIC);
        kernel[PROTOCOL_AT..PROTOCOL_AT + 2].copy_from_slice(&protocol.to_le_bytes());
        kernel[FLAGS_AT] = 1;
        kernel[INITRD_MAX_AT..INITRD_MAX_AT + 4].copy_from_slice(&0x7fff_ffff_u32.to_le_bytes());
        kernel[XFLAGS_AT..XFLAGS_AT + 2].copy_from_slice(&xflags.to_le_bytes());
        kernel
    }

    fn memory(mib: u64) -> GuestMemory {
        GuestMemory::from_mib(mib).unwrap()
    }

    /// Offsets and bytes that differ, in runs.
    fn changed(before: &[u8], after: &[u8]) -> Vec<(usize, Vec<u8>)> {
        let mut runs: Vec<(usize, Vec<u8>)> = Vec::new();
        for (at, (_, new)) in before.iter().zip(after).enumerate().filter(|(_, (old, new))| old != new) {
            match runs.last_mut() {
                Some((start, bytes)) if *start + bytes.len() == at => bytes.push(*new),
                _ => runs.push((at, vec![*new])),
            }
        }
        runs
    }

    /// The addresses by hand: (2 GiB - 0x28000 - 1 - 0x12345) rounded down to pages, and the same in a guest of 512 MiB.
    #[test]
    fn fills_in_what_a_boot_loader_does() {
        for (mib, address) in [(2048, 0x7ffc_5000_u32), (10240, 0x7ffc_5000), (512, 0x1ffc_5000)] {
            let before = kernel(0x20f, 2);
            let mut after = before.clone();
            fill_in(&mut after, memory(mib), Some(0x1_2345), "quiet").unwrap();
            let placed = [address.to_le_bytes(), 0x1_2345_u32.to_le_bytes()].concat();
            let expected = [(0x210, vec![0xb0, 0x81]), (0x218, placed), (0x224, vec![0x00, 0xfe]), (0x228, vec![0x00, 0x00, 0x02, 0x00])];
            assert_eq!(changed(&before, &after), expected);
        }
    }

    /// What QEMU 9 was seen to write for an initrd of 11 MB, by another project that compared the images.
    #[test]
    fn places_the_initrd_where_qemu_was_seen_to() {
        let mut filled = kernel(0x20f, 2);
        fill_in(&mut filled, memory(4096), Some(0xa9_62c0), "").unwrap();
        assert_eq!(filled[INITRD_AT..INITRD_AT + 8], [0x00, 0x10, 0x54, 0x7f, 0xc0, 0x62, 0xa9, 0x00]);
    }

    #[test]
    fn without_an_initrd_its_fields_stay() {
        let before = kernel(0x20f, 2);
        let mut after = before.clone();
        fill_in(&mut after, memory(2048), None, "").unwrap();
        assert_eq!(changed(&before, &after).iter().map(|(at, _)| *at).collect::<Vec<_>>(), [0x210, 0x224, 0x228]);
    }

    #[test]
    fn the_kernels_own_limit_of_the_initrd_counts_where_it_is_lower() {
        for (protocol, xflags) in [(0x20f, 0), (0x20b, 2)] {
            let mut old = kernel(protocol, xflags);
            old[INITRD_MAX_AT..INITRD_MAX_AT + 4].copy_from_slice(&0x37ff_ffff_u32.to_le_bytes());
            fill_in(&mut old, memory(2048), Some(0x1000), "").unwrap();
            assert_eq!(old[INITRD_AT..INITRD_AT + 4], 0x37ff_e000_u32.to_le_bytes());
        }
    }

    #[test]
    fn refuses_what_it_would_get_wrong() {
        let refused = |mut kernel: Vec<u8>, size, append: &str| fill_in(&mut kernel, memory(16), Some(size), append).unwrap_err();
        assert_eq!(refused(vec![0; 0x1000], 1, ""), KernelHeaderError::NotLinux);
        assert_eq!(refused(kernel(0x20f, 2)[..0x230].to_vec(), 1, ""), KernelHeaderError::NotLinux);
        assert_eq!(refused(kernel(0x202, 2), 1, ""), KernelHeaderError::NotLinux);
        let mut low = kernel(0x20f, 2);
        low[FLAGS_AT] = 0;
        assert_eq!(refused(low, 1, ""), KernelHeaderError::NotLinux);
        assert_eq!(refused(kernel(0x20f, 2), 1, "quiet vga=normal"), KernelHeaderError::VideoMode);
        let limit = (16 << 20) - 0x2_8000 - 1;
        assert_eq!(refused(kernel(0x20f, 2), limit, ""), KernelHeaderError::InitrdTooLarge { found: limit, limit });
        assert_eq!(refused(kernel(0x20f, 2), u64::MAX, ""), KernelHeaderError::InitrdTooLarge { found: u64::MAX, limit });
    }
}
