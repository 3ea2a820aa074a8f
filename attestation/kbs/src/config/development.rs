//! `[development]`: what makes trying things possible, and no broker with real secrets allows.
//!
//! ```toml
//! [development]
//! sample_evidence = true
//! ```

use serde::Deserialize;

/// Settings for development.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Development {
    /// Look at CoCo's `sample` evidence, which anybody can make, to try CoCo's clients with. The default policies affirm nothing of it.
    pub sample_evidence: bool,
}
