//! TPM 2.0: the quote, the signature over it and the values of the registers beside it, in the two JSON forms of CoCo that carry them.
//!
//! A quote says little by itself: what the caller wanted said (the extra data), and one digest over the selected registers (PCRs). Their
//! values travel beside it, signed by nobody, and are worth what that digest makes of them.
//!
//! Field names are those of Trusted Computing Group, "TPM 2.0 Library", part 2 "Structures": TPMS_ATTEST with TPMS_QUOTE_INFO,
//! TPML_PCR_SELECTION, TPMT_SIGNATURE. All integers are big-endian.

mod attest;
mod evidence;
mod quote;
mod selection;
mod signature;

pub use attest::{Attest, ClockInfo};
pub(crate) use evidence::pcrs;
pub use evidence::{Evidence, EvidenceError};
pub use quote::{PCRS, Pcrs, Quote};
pub use selection::PcrSelection;
pub use signature::RsaSignature;

/// TPM_ALG_SHA256.
const ALG_SHA256: u16 = 0x000b;
