//! `[csv]`: whose CSV evidence counts. Hygon's root is not built in, and its certificates of chips are not fetched.
//!
//! ```toml
//! [csv]
//! root = "/etc/kata-cc-kbs/csv/hrk.cert"
//! chips = ["/etc/kata-cc-kbs/csv/KPA64911240507.cert"]
//! ```

use std::path::PathBuf;

use serde::Deserialize;

/// Trusted chips of Hygon.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Csv {
    /// Certificate of Hygon's root key (HRK).
    pub root: PathBuf,
    /// Certificates of chips (HSK and CEK in one file, as Hygon serves them), for guests that do not send them.
    #[serde(default)]
    pub chips: Vec<PathBuf>,
}
