//! Confidential VMs of Azure: the report of the host compatibility layer (HCL), and CoCo's JSON forms of evidence with it.
//!
//! The guest never speaks with the hardware. Firmware below it (the HCL, a paravisor) has the hardware's report, made at launch, whose
//! report data are a digest over keys; one of those keys is of a TPM that the HCL plays for the guest, and that TPM's quotes answer
//! challenges.
//!
//! ```text
//! hardware report -> digest -> runtime data {attestation key} -> TPM quote -> extra data, PCRs
//! ```
//! The format is described in Microsoft's documentation, "Guest attestation for confidential virtual machines", sections on the
//! attestation report. Integers of the HCL report are little-endian.

mod evidence;
mod hcl;

pub use evidence::{EvidenceError, SnpEvidence, TdxEvidence};
pub use hcl::{HardwareReport, HclReport};
