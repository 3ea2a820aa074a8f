//! `[cca]`: whose CCA tokens count. There is no maker's root, so each platform's key is in a store.
//!
//! ```toml
//! [cca]
//! trust_anchors = "/etc/kata-cc-kbs/cca/tastore.json"
//! ```

use std::path::PathBuf;

use serde::Deserialize;

/// Trusted platforms of CCA.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cca {
    /// Store of the platforms' keys, in the form of CoCo and Veraison.
    pub trust_anchors: PathBuf,
}
