//! The firmware of the simulated TEE: qboot, with the tables that make an SEV-SNP launch measurable.
//!
//! The image boots under QEMU without any TEE, and the same bytes have a launch digest that every SNP measuring tool
//! agrees on. It is for development only: qboot does not check the kernel hash table. In the simulation that is done
//! by whoever signs the report, which reads the very files the VM was launched with.
//!
//! qboot keeps its reset code and descriptor table where OVMF's footer table belongs. Both are moved into the padding
//! below it: the descriptor table as it is, the reset code written anew, since it holds absolute addresses.
//!
//! Invariant: an image that is not byte for byte as expected around the places changed is refused.

use crate::footer::{Footer, SEV_ES_RESET, SEV_HASH_TABLE, SEV_METADATA};
use crate::measure::snp::SectionKind;

/// qboot is one real-mode segment, mapped below 4 GiB and copied to 0xf0000 when it runs.
const IMAGE_LEN: usize = 0x1_0000;
/// Where the image is mapped; also its 32-bit entry point.
const IMAGE_BASE: u32 = 0xffff_0000;

// qboot's own layout.
const RESET_CODE: usize = 0xff80;
const GDT: std::ops::Range<usize> = 0xffc1..0xffe9;
const GDT_POINTER: std::ops::Range<usize> = 0xffe9..0xffef;
const RESET_VECTOR: usize = 0xfff0;
/// Start of the reset code: clear the segment registers, set up a stack, clear the cache-disable bits, enter protected mode.
const RESET_CODE_BYTES: [u8; 0x1d] = [
    0x31, 0xc0, 0x8e, 0xd8, 0x8e, 0xc0, 0x8e, 0xe0, 0x8e, 0xe8, 0x8e, 0xd0, 0xbc, 0x00, 0x7c, 0x0f, 0x20, 0xc0, 0x66, 0x25, 0xff, 0xff,
    0xff, 0x9f, 0x0c, 0x01, 0x0f, 0x22, 0xc0,
];
/// `jmp` to the reset code.
const RESET_VECTOR_BYTES: [u8; 3] = [0xe9, 0x8d, 0xff];
/// Limit and address of the descriptor table.
const GDT_POINTER_BYTES: [u8; 6] = [0x27, 0x00, 0xc1, 0xff, 0xff, 0xff];

// Where we put things: in the zeroes between qboot's data and its reset code, at the far end from the data.
const PADDING: std::ops::Range<usize> = 0xfc00..RESET_CODE;
const NEW_GDT: usize = 0xfe00;
const NEW_GDT_POINTER: usize = 0xfe28;
const NEW_RESET_CODE: usize = 0xfe40;
const METADATA: usize = 0xff00;

/// What the guest has at launch besides the firmware: addresses in the style of OVMF's, in memory qboot leaves alone.
const SECTIONS: [(SectionKind, u32, u32); 5] = [
    (SectionKind::SecMem, 0x0080_0000, 0x9000),
    (SectionKind::SecMem, 0x0080_a000, 0x3000),
    (SectionKind::Secrets, 0x0080_d000, 0x1000),
    (SectionKind::Cpuid, 0x0080_e000, 0x1000),
    (SectionKind::KernelHashes, 0x0081_0000, 0x1000),
];
/// Address and size of the hash table inside its page; not at the start of it, as in OVMF.
const HASH_TABLE: (u32, u32) = (0x0081_0c00, 0x400);

/// The firmware image of the simulated TEE, made of Debian's `qboot.rom` (package `qemu-system-data`).
///
/// # Errors
/// When the input is not the qboot this code knows.
pub fn sim_firmware(qboot: &[u8]) -> Result<Vec<u8>, SimFirmwareError> {
    if qboot.len() != IMAGE_LEN {
        return Err(SimFirmwareError::Length { found: qboot.len() });
    }
    let mut image = qboot.to_vec();
    for (what, at, expected) in [
        ("reset code", RESET_CODE, &RESET_CODE_BYTES[..]),
        ("reset vector", RESET_VECTOR, &RESET_VECTOR_BYTES[..]),
        ("descriptor table pointer", GDT_POINTER.start, &GDT_POINTER_BYTES[..]),
    ] {
        if !image[at..].starts_with(expected) {
            return Err(SimFirmwareError::Unknown { what, at });
        }
    }
    if let Some(at) = PADDING.clone().find(|at| image[*at] != 0) {
        return Err(SimFirmwareError::NotPadding { at });
    }

    image.copy_within(GDT, NEW_GDT);
    image[RESET_CODE..RESET_VECTOR].fill(0);
    let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    put(NEW_GDT_POINTER, &gdt_pointer());
    put(NEW_RESET_CODE, &reset_code());
    put(METADATA, &metadata());
    put(RESET_VECTOR, &jump(RESET_VECTOR, NEW_RESET_CODE));
    let from_end = (IMAGE_LEN - METADATA) as u32;
    let table = Footer::build(&[
        (SEV_HASH_TABLE, &[HASH_TABLE.0, HASH_TABLE.1].map(u32::to_le_bytes).concat()),
        (SEV_METADATA, &from_end.to_le_bytes()),
        (SEV_ES_RESET, &address(RESET_VECTOR).to_le_bytes()),
    ]);
    let place = Footer::place(IMAGE_LEN, &table).expect("the image is larger than the table");
    put(place.start, &table);
    Ok(image)
}

/// The linear address of an offset in the image.
const fn address(offset: usize) -> u32 {
    IMAGE_BASE + offset as u32
}

/// A 16-bit near jump.
fn jump(from: usize, to: usize) -> [u8; 3] {
    let distance = (to as u16).wrapping_sub(from as u16 + 3).to_le_bytes();
    [0xe9, distance[0], distance[1]]
}

fn gdt_pointer() -> Vec<u8> {
    let mut pointer = GDT_POINTER_BYTES[..2].to_vec();
    pointer.extend(address(NEW_GDT).to_le_bytes());
    pointer
}

/// From real mode at the reset vector to qboot's 32-bit entry point, in the state qboot's own reset code leaves.
fn reset_code() -> Vec<u8> {
    let mut code = RESET_CODE_BYTES[..0x0f].to_vec(); // segment registers and sp
    code.extend([0x2e, 0x66, 0x0f, 0x01, 0x16]); // lgdtl %cs:…
    code.extend((NEW_GDT_POINTER as u16).to_le_bytes());
    code.extend(&RESET_CODE_BYTES[0x0f..]); // cr0: caches on, protection on
    code.extend([0x66, 0xea]); // ljmpl to the next instruction, now 32-bit
    code.extend(address(NEW_RESET_CODE + code.len() + 6).to_le_bytes());
    code.extend([0x08, 0x00]);
    code.extend([0x66, 0xb8, 0x10, 0x00]); // mov $0x10, %ax: flat data in all of ds, es, fs, gs, ss
    code.extend([0x8e, 0xd8, 0x8e, 0xc0, 0x8e, 0xe0, 0x8e, 0xe8, 0x8e, 0xd0]);
    code.push(0xea); // ljmp to the entry point
    code.extend(IMAGE_BASE.to_le_bytes());
    code.extend([0x08, 0x00]);
    code
}

fn metadata() -> Vec<u8> {
    let count = SECTIONS.len() as u32;
    let mut bytes = b"ASEV".to_vec();
    bytes.extend([16 + 12 * count, 1, count].map(u32::to_le_bytes).concat());
    for (kind, gpa, size) in SECTIONS {
        bytes.extend([gpa, size, kind.to_wire()].map(u32::to_le_bytes).concat());
    }
    bytes
}

/// Why an image cannot become the simulation's firmware.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SimFirmwareError {
    /// qboot is exactly 64 KiB.
    #[error("expected qboot's image of {IMAGE_LEN} bytes, found {found} bytes; use qboot.rom of QEMU")]
    Length {
        /// Its length.
        found: usize,
    },
    /// Bytes we know how to move are not there.
    #[error("the {what} at offset {at:#x} is not that of the qboot known here; a new version of it needs new code here")]
    Unknown {
        /// Which bytes.
        what: &'static str,
        /// Where.
        at: usize,
    },
    /// The place for the tables is taken.
    #[error("expected zeroes from {:#x} to {:#x}, found something at {at:#x}", PADDING.start, PADDING.end)]
    NotPadding {
        /// Where.
        at: usize,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::measure::snp::{KernelHashes, SnpFirmware, SnpLaunch, Vmm};

    /// Everything of qboot that this code looks at.
    fn qboot() -> Vec<u8> {
        let mut image = vec![0; IMAGE_LEN];
        image[..PADDING.start].fill(0x90);
        image[RESET_CODE..][..RESET_CODE_BYTES.len()].copy_from_slice(&RESET_CODE_BYTES);
        image[GDT].fill(0x47);
        image[GDT_POINTER].copy_from_slice(&GDT_POINTER_BYTES);
        image[RESET_VECTOR..][..3].copy_from_slice(&RESET_VECTOR_BYTES);
        image
    }

    #[test]
    fn image_is_one_that_snp_can_launch_with_kernel_hashes() {
        let image = sim_firmware(&qboot()).unwrap();
        let firmware = SnpFirmware::parse(&image).unwrap();
        assert!(firmware.checks_kernel());
        assert_eq!(firmware.sections().len(), SECTIONS.len());
        let of = |append: &str| {
            let kernel = Some(KernelHashes::of(b"k", Some(b"i"), append));
            let vcpu_type = "EPYC-v4".parse().unwrap();
            SnpLaunch { firmware: &image, kernel, vcpus: 2, vcpu_type, guest_features: 1, vmm: Vmm::Qemu }.digest().unwrap()
        };
        assert_ne!(of("quiet"), of("quiet debug"));
    }

    #[test]
    fn nothing_is_changed_outside_padding_and_reset_code() {
        let (before, after) = (qboot(), sim_firmware(&qboot()).unwrap());
        assert_eq!(before[..NEW_GDT], after[..NEW_GDT]);
        assert_eq!(before[GDT], after[NEW_GDT..NEW_GDT + GDT.len()]);
        assert_eq!(before[RESET_VECTOR + 3..], after[RESET_VECTOR + 3..]);
    }

    #[test]
    fn parts_do_not_overlap() {
        let table_start = IMAGE_LEN - 32 - 88;
        const { assert!(NEW_GDT + (GDT.end - GDT.start) <= NEW_GDT_POINTER) };
        const { assert!(NEW_GDT_POINTER + 6 <= NEW_RESET_CODE) };
        assert!(NEW_RESET_CODE + reset_code().len() <= METADATA);
        assert!(METADATA + metadata().len() <= table_start);
    }

    #[test]
    fn reset_vector_jumps_to_the_reset_code() {
        let bytes = jump(RESET_VECTOR, NEW_RESET_CODE);
        let distance = i16::from_le_bytes([bytes[1], bytes[2]]);
        assert_eq!(RESET_VECTOR as i32 + 3 + i32::from(distance), NEW_RESET_CODE as i32);
        assert_eq!(jump(RESET_VECTOR, RESET_CODE), RESET_VECTOR_BYTES);
    }

    #[test]
    fn refuses_what_is_not_the_qboot_it_knows() {
        assert_eq!(sim_firmware(&[0; 100]), Err(SimFirmwareError::Length { found: 100 }));
        for (at, what) in [(RESET_CODE, "reset code"), (RESET_VECTOR, "reset vector"), (GDT_POINTER.start, "descriptor table pointer")] {
            let mut bad = qboot();
            bad[at] ^= 1;
            assert_eq!(sim_firmware(&bad), Err(SimFirmwareError::Unknown { what, at }));
        }
        let mut taken = qboot();
        taken[NEW_GDT] = 1;
        assert_eq!(sim_firmware(&taken), Err(SimFirmwareError::NotPadding { at: NEW_GDT }));
    }
}
