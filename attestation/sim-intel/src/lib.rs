//! A made-up Intel: everything that is between a root and a TDX quote that verifies, under names that cannot be mistaken for Intel's.
//!
//! ```text
//! root -> PCK Platform CA -> PCK certificate -> QE report -> attestation key -> quote
//!      -> TCB Signing -> TCB info, QE identity          root, PCK CA -> revocation lists
//! ```
//! Builders, each field of which can be bent: the simulated TD is made of them, and so is what the verifier's tests refuse.
//! Specifications: as in the verifier's module `tdx`.
//!
//! **Invariant:** no I/O. No product depends on this crate.

mod cert;
mod collateral;
mod key;
mod platform;
mod quote;

pub use cert::{Draft, List, constraints, ecdsa, extension, oid, pem};
pub use collateral::{Piece, QE_IDENTITY_PATH, ROOT_CRL_PATH, level, pck_crl_path, qe_identity, signed_json, tcb_info, tcb_info_path};
pub use key::Key;
pub use platform::Platform;
pub use quote::{Signer, quote};
