//! NVIDIA GPUs: the attestation report, which is an SPDM exchange, and CoCo's JSON form of it.
//!
//! Formats: DMTF DSP0274 (SPDM 1.1), sections GET_MEASUREMENTS and MEASUREMENTS; NVIDIA's own is what stands in the opaque data, described
//! by NVIDIA's `nvtrust`. All integers are little-endian.

mod evidence;
mod report;

pub use evidence::{Device, Evidence, EvidenceError};
pub use report::Report;
