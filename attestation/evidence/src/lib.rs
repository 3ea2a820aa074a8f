//! Wire types of hardware evidence: bytes in, checked types out.
//!
//! This crate knows how evidence is laid out. It does not know whether evidence is *true*: signatures, chains and
//! appraisal live in the verifier.
//!
//! **Invariant:** no I/O, no clock, no panic on any input. Parsing fails with an error or gives a value that serialises
//! back to exactly the bytes it came from.

#![deny(clippy::indexing_slicing, clippy::unwrap_used, clippy::arithmetic_side_effects, clippy::panic)]
#![cfg_attr(test, allow(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::panic))]

pub mod azure;
pub mod cca;
pub mod csv;
mod cursor;
pub mod eventlog;
pub mod nvidia;
pub mod se;
pub mod snp;
pub mod tdx;
mod tee;
pub mod tpm;
mod values;

pub use cursor::FormError;
pub use tee::{TeeType, UnknownTee};
pub use values::{HostData, LaunchDigest, MrConfigId, Nonce, ReportData, TdMeasurement, ValueError};
