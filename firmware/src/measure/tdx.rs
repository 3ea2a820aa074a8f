//! What the TDX module measures of a TD that QEMU starts with OVMF's TDVF, and what that firmware then measures of its guest.
//!
//! MRTD is of the pages that are there before the first instruction, and so of the firmware alone. RTMR0 to RTMR2 are extended
//! by the firmware and by Linux's EFI stub, event by event, and start at zero.
//!
//! [`metadata`] reads firmware images and [`mrtd`] measures their pages; [`register`] is what is measured into. [`boot`] has the events
//! of a direct boot, with the kernel's digest by [`authenticode`] and what QEMU does to it by [`kernel_header`]. [`machine`] has those
//! of the machine, with [`memory`] and [`td_hob`], as far as anybody can know them who does not have the machine.
//!
//! Invariant: an image that QEMU could not launch as described is refused, not measured to something plausible.

pub mod authenticode;
pub mod boot;
pub mod kernel_header;
pub mod machine;
pub mod memory;
pub mod metadata;
pub mod mrtd;
pub mod register;
pub mod td_hob;

pub use authenticode::PeError;
pub use boot::{BootError, DirectBoot, Edk2, Event, Initrd};
pub use kernel_header::{KernelHeader, KernelHeaderError};
pub use machine::{AcpiTables, MachineDigests, MachineError};
pub use memory::{GuestMemory, MemorySizeError};
pub use metadata::{Section, SectionKind, TdxFirmware, TdxFirmwareError};
pub use mrtd::PageOrder;
pub use register::{Digest, Register};
pub use td_hob::TdHobError;
