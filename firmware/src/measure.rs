//! Launch measurement: what the hardware will say about a guest, computed from the bytes it is launched from.
//!
//! Invariant: a digest is a function of its inputs alone. No clock, no environment, no device.

pub mod se;
pub mod sections;
pub mod snp;
mod stream;
pub mod tdx;
