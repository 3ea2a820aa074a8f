//! The node's cache of layer blobs: what one guest has downloaded, the next one gets from here.
//!
//! Guests do not believe it: each compares what it gets with the digest in the manifest, which it has from the registry, and asks the registry when they differ.
//! Nor are guests believed: what one gives is kept only if it has the digest it was given under. What is in here the host may know: guests give encrypted layers,
//! and layers that anybody gets from the registry.
//!
//! `store` keeps blobs, `service` is the interface (HTTP/1.1, one request a connection), `listen` has the sockets and bounds who comes.

mod digest;
mod idle;
pub(crate) mod listen;
mod service;
pub(crate) mod size;
pub(crate) mod store;

#[cfg(test)]
mod tests;
