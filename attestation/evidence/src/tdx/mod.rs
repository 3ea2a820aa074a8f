//! Intel TDX: the quote in its versions 4 and 5, CoCo's JSON form of it, and the TD report that a TD gets of itself.
//!
//! Field names are those of Intel's "TDX DCAP Quoting Library API", appendix "Quote Formats" (versions 4 and 5), and, for the TD report inside,
//! of the "TDX Module ABI Specification", TDREPORT_STRUCT. All integers are little-endian.

mod attributes;
mod body;
mod cursor;
mod enclave;
mod evidence;
mod quote;
mod signature;
mod td_report;

pub use attributes::TdAttributes;
pub use body::{Body, Extension15, Extension15Ex};
pub use enclave::EnclaveReport;
pub use evidence::{Evidence, EvidenceError};
pub use quote::{BodyType, Header, INTEL_QE_VENDOR_ID, Quote, QuoteError};
pub use signature::{CertificationData, CertificationDataType, QeCertification, SignatureData};
pub use td_report::{TdReport, TdReportError};
