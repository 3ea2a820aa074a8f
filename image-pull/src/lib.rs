//! From an image reference to the directories of a root file system, inside the guest.
//!
//! The way of one pull: reference (by digest) → manifest → signature policy → configuration → layer keys → layers, several side by side. A plain
//! layer is streamed: digest, decompression and unpacking run at once, on two threads. An encrypted one is first held back as ciphertext until its
//! MAC is known, and only then decrypted.
//! The same crate holds the author's side (encrypt, sign, push), since both sides must agree on one format.
//!
//! What it is not: it mounts nothing, runs nothing, and keeps no key. The caller mounts what [`overlay_options`] says.
//!
//! **Invariant:** a directory under `layers/` of a [`LayerStore`] exists only if blob digest, MAC (when encrypted) and diffID of what was
//! unpacked there were right; anything less was unpacked under `tmp/` and is gone.
//! **Invariant:** no byte of an encrypted layer is decrypted before the MAC of the whole of it was right.
//! **Invariant:** the signature policy is asked for every reference, before any cache is.
//! **Invariant:** the host's blob cache is given nothing that the host could not read anyway, and nothing depends on what it gives.
//! **Invariant:** nothing a registry says decides where a byte is written, which host gets a credential, or which key is asked for
//! beyond what the manifest, pinned by its digest, names.
//!
//! Formats: OCI image-spec 1.1, OCI distribution-spec 1.1, ocicrypt, containers-policy.json(5), cosign key signatures.

pub mod beneath;
pub mod blob_cache;
pub mod compress;
pub mod cosign;
pub mod digest;
pub mod encrypt;
mod identity;
pub mod layer;
pub mod layout;
pub mod limits;
pub mod manifest;
pub mod ocicrypt;
mod overlay;
pub mod policy;
pub mod publish;
pub mod pull;
pub mod reference;
pub mod registry;
pub mod secret;
mod spool;
pub mod store;
pub mod tar;
pub mod unpack;

pub use blob_cache::{BlobCache, CacheError, Filling};
pub use digest::Digest;
pub use limits::Limits;
pub use overlay::overlay_options;
pub use policy::SignaturePolicy;
pub use pull::{LayerDir, Phase, PullConfig, PullError, PulledImage, Puller, TimelineEvent, Timings};
pub use reference::Reference;
pub use secret::{ResourceUri, Secret, SecretError, Secrets};
pub use store::LayerStore;
pub use unpack::Ownership;

#[cfg(test)]
mod attack_tests;
#[cfg(test)]
mod blob_cache_tests;
#[cfg(test)]
mod layer_tests;
#[cfg(test)]
mod pull_tests;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod unpack_tests;
#[cfg(test)]
mod vector_tests;
