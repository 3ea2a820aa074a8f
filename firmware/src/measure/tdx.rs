//! What the TDX module measures of a TD that QEMU starts with OVMF's TDVF, and what that firmware then measures of its guest.
//!
//! MRTD is of the pages that are there before the first instruction, and so of the firmware alone. RTMR0 to RTMR2 are extended
//! by the firmware and by Linux's EFI stub, event by event, and start at zero.
//!
//! [`metadata`] reads firmware images and [`mrtd`] measures their pages; [`register`] is what is measured into.
//!
//! Invariant: an image that QEMU could not launch as described is refused, not measured to something plausible.

pub mod metadata;
pub mod mrtd;
pub mod register;

pub use metadata::{Section, SectionKind, TdxFirmware, TdxFirmwareError};
pub use mrtd::PageOrder;
pub use register::{Digest, Register};
