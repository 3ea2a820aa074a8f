//! IBM Secure Execution: the attestation request, the tags of an image's header, and CoCo's JSON forms of challenge and evidence.
//!
//! Unlike a report, a measurement is nobody's signature: it is a MAC under a key that the verifier made and sent, wrapped to host keys, inside the
//! request. So the verifier speaks first, and only who made the request can check the answer.
//!
//! ```text
//! verifier: request (measurement key, nonce; encrypted to host keys) -> guest -> ultravisor
//! ultravisor: HMAC-SHA-512(key, image tags, configuration id, user data, nonce, additional data) -> guest -> verifier
//! ```
//! Field names follow IBM, "IBM Secure Execution for Linux", and `linux/arch/s390/include/uapi/asm/uvdevice.h`. All integers are big-endian.

mod additional;
mod evidence;
mod header;
mod request;

pub use crate::cursor::FormError;
pub use additional::{Additional, Flags};
pub use evidence::{Challenge, Evidence, EvidenceError, MAX_USER_DATA};
pub use header::ImageTags;
pub use request::{AuthenticatedHead, KeySlot, MEASUREMENT_SIZE, Request};
