//! Hygon CSV: the attestation report in its two versions, the certificates in Hygon's own format, and CoCo's JSON form of both.
//!
//! The formats are those of Hygon's `csv-rs` and of the kernel's `csv-guest` driver. All integers are little-endian, numbers of curve
//! points and signatures too, in fields of 72 bytes of which SM2 takes 32.

mod certificate;
mod evidence;
mod report;

pub use certificate::{CaCertificate, Certificate, PublicKey, Signature, Usage};
pub use evidence::{CertificateChain, ChipChain, Evidence, EvidenceError};
pub use report::{Extension, Policy, Report, Version};
