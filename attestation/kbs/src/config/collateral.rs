//! `[collateral]`: where certificates, revocation lists and TCB levels come from that evidence does not bring.
//!
//! ```toml
//! [collateral]
//! directory = "/etc/kata-cc-kbs/collateral"             # files put there by hand or by `kata-cc collateral fetch`
//! amd_kds = "https://kdsintf.amd.com"                   # or a mirror
//! intel_pcs = "https://api.trustedservices.intel.com"   # or a PCCS
//! ```
//! Without this table the broker asks nobody, and TDX evidence, which never brings its collateral, is refused.

use kata_cc_collateral::{BaseUrl, Collector, SetupError, Sources};
use serde::{Deserialize, Deserializer};
use std::path::{Path, PathBuf};

/// Sources of collateral.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Collateral {
    /// Files; asked first.
    pub directory: Option<PathBuf>,
    /// AMD's key distribution service.
    #[serde(deserialize_with = "url")]
    pub amd_kds: Option<BaseUrl>,
    /// Intel's provisioning certification service.
    #[serde(deserialize_with = "url")]
    pub intel_pcs: Option<BaseUrl>,
}

fn url<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<BaseUrl>, D::Error> {
    String::deserialize(deserializer)?.parse().map(Some).map_err(serde::de::Error::custom)
}

impl Collateral {
    /// The collector for these sources. What services answer is kept in `data_dir/collateral`.
    pub fn collector(&self, data_dir: &Path) -> Result<Collector, SetupError> {
        let fetches = self.amd_kds.is_some() || self.intel_pcs.is_some();
        let cache_directory = fetches.then(|| data_dir.join("collateral"));
        if let Some(path) = &cache_directory {
            let made = std::fs::create_dir_all(path);
            made.map_err(|source| SetupError::Directory { what: "cache directory", path: path.clone(), source })?;
        }
        let Self { directory, amd_kds, intel_pcs } = self.clone();
        Collector::new(Sources { directory, amd_kds, intel_pcs, cache_directory })
    }
}
