//! AMD SEV-SNP: the attestation report, the certificate table beside it, and CoCo's JSON form of both.
//!
//! Field names are those of AMD 56860, "SEV Secure Nested Paging Firmware ABI Specification", table ATTESTATION_REPORT
//! structure; the certificate table is AMD 56421, "SEV-ES Guest-Hypervisor Communication Block", section on SNP Extended
//! Guest Request.

mod cert_table;
mod evidence;
mod fields;
mod json;
mod report;

pub use cert_table::{CertEntry, CertKind, CertTable, CertTableError, Guid};
pub use evidence::{Evidence, EvidenceError};
pub use fields::{Cpuid, FirmwareVersion, Generation, KeyInfo, PlatformInfo, Policy, Signature, SigningKey, TcbLayout, TcbVersion};
pub use report::{Report, ReportError, SIGNATURE_ALGO_ECDSA_P384_SHA384};
