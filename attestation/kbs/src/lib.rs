//! The key broker: verifies evidence, appraises it, issues tokens, releases secrets.
//!
//! ```text
//!  HTTP ──> server/<verb> ──> session (RCAR state)   ──> verifier (evidence -> claims)
//!                         ──> appraise (claims -> EAR token, attestation policy)
//!                         ──> tokens (issued here, and known again)
//!                         ──> release (token -> yes or no, resource policy) ──> resources (store, sealed; or a Vault)
//!                         ──> audit (every decision, with what was expected and what was found)
//! ```
//! **Invariant:** a secret leaves [`resources`] only through [`server`]'s resource handler, after [`release`] said yes, encrypted to the key that
//! the evidence was bound to.
//! **Invariant:** whatever is missing, malformed, unknown or undecided is refused. No configuration serves anything to anybody by default.
//! **Invariant:** a guest learns which claims failed, never which values were expected; those are in the audit log, for administrators.

pub mod admin;
pub mod appraise;
pub mod audit;
pub mod config;
mod follow;
pub mod limit;
pub mod listen;
pub mod metrics;
mod pace;
pub mod reference;
pub mod rego;
pub mod release;
pub mod resources;
pub mod seal;
pub mod secure_execution;
pub mod server;
pub mod session;
pub mod store;
pub mod tls;
pub mod token_key;
pub mod tokens;
