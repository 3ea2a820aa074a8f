//! A made-up IBM and its machines: everything that is between a root and a measurement that verifies.
//!
//! ```text
//! root -> key signing service -> host-key document       root, signing service -> revocation lists
//! request --machine's host key--> measurement key -> MAC over image tags, user data, host-key hashes
//! ```
//! The machine opens requests by its private key alone, as the ultravisor does: it shares no secret with the verifier.
//! Specifications: as in the verifier's module `se`.
//!
//! **Invariant:** no I/O. No product depends on this crate.

mod cert;
mod machine;
mod vendor;

pub use cert::{Draft, List, signing_service};
pub use machine::{Machine, Unanswered};
pub use vendor::Vendor;
