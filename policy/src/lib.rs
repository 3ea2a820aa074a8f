//! Agent policy: which requests of the untrusted host the guest agent carries out, and what the pod's owner wrote down about it.
//!
//! - [`initdata`]: the text the owner attaches to a pod and the hardware measures; [`guest_config`]: what the agent reads from it.
//! - [`keys`] and [`dsse`]: signed documents; [`envelope`]: signed policies. A [`envelope::VerifiedPolicy`] exists only if a key named in initdata signed it.
//! - [`binding`]: the signature covers the other documents of initdata too; only a [`binding::BoundPolicy`] opens the gate.
//! - [`reference`]: signed manifests of what guest images measure to.
//! - [`request`], [`engine`], [`gate`]: a request becomes an [`request::Allowed`] one only by the policy saying so.
//! - [`evaluate`]: the same evaluation without any proof, for command lines and tests.
//! - [`template`]: writes a strict policy for a list of expected containers.
//!
//! This crate does no I/O, reads no clock except for the evaluation budget, and holds no key but those given to it for signing.
//!
//! **Invariant:** there is no way to an `Allowed<R>` but through a policy that was verified, bound to initdata, and that evaluated to
//! true. What is absent, undefined, of another type, over budget or in error is a denial.
//!
//! **Invariant:** no error, log line or `Debug` output of this crate contains a value from a request (arguments, environment).

pub mod binding;
pub mod dsse;
pub mod engine;
pub mod envelope;
pub mod evaluate;
pub mod gate;
pub mod guest_config;
pub mod initdata;
pub mod keys;
mod pem;
mod recursion;
pub mod reference;
pub mod request;
mod state;
pub mod template;

pub use binding::{BindError, BoundPolicy, DocumentDigests};
pub use engine::{ClosedDoor, PolicyEngine};
pub use envelope::{SignedPolicy, VerifiedPolicy};
pub use gate::{Gate, GateError, Pending, Undo};
pub use guest_config::GuestConfig;
pub use initdata::{Initdata, InitdataDigest, InitdataError};
pub use keys::{KeyId, PublicKey, SigningKey, TrustedKeys};
pub use reference::{Manifest, SignedManifest, VerifiedManifest};
pub use request::{Allowed, Denied, PolicyRequest};
