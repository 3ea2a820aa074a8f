//! What a confidential guest is made of and what that measures to.
//!
//! - [`measure`]: launch measurement, pure: bytes in, digest out.
//! - [`footer`]: the GUIDed table at the end of an OVMF-style firmware image: reader and writer.
//! - [`ready`]: firmware builds that are known by their digest.
//! - [`sim`]: the firmware image of the simulated TEE, which boots without any TEE and measures like one with it.
//! - [`initrd`]: the initial RAM file system archive: deterministic writer and strict reader.
//! - [`kernel`]: the guest kernel's configuration and the check that a build kept to it.
//!
//! It starts nothing, talks to nobody and knows no TEE device: whoever measures a guest must not need one.

pub mod footer;
pub mod initrd;
pub mod kernel;
pub mod measure;
pub mod ready;
pub mod sim;

pub use sim::sim_firmware;
