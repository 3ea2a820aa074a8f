//! `[se]`: IBM's host keys and the images that may run on their machines.
//!
//! ```toml
//! [se]
//! roots = ["/etc/kata-cc-kbs/se/DigiCertCA.crt"]
//! certificates = ["/etc/kata-cc-kbs/se/ibm-z-host-key-signing.crt"]
//! revocation_lists = ["/etc/kata-cc-kbs/se/lists"]
//! host_keys = ["/etc/kata-cc-kbs/se/host-keys"]
//! images = ["/etc/kata-cc-kbs/se/guest.hdr"]
//! ```
//! Each entry is a file, or a directory for all files in it.

use super::ConfigError;
use serde::Deserialize;
use std::path::PathBuf;

/// Files of Secure Execution.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Se {
    /// Certificates of those who may vouch for IBM, each in a file of its own. No root is built in.
    pub roots: Vec<PathBuf>,
    /// IBM's key signing service, and what is between it and a root.
    pub certificates: Vec<PathBuf>,
    /// Revocation lists of everybody who signed a certificate; they may also stand in the other files.
    #[serde(default)]
    pub revocation_lists: Vec<PathBuf>,
    /// Host-key documents of the machines.
    pub host_keys: Vec<PathBuf>,
    /// Headers of the images, as `pvextract-hdr` takes them out.
    pub images: Vec<PathBuf>,
}

impl Se {
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        let needed =
            [("roots", &self.roots), ("certificates", &self.certificates), ("host_keys", &self.host_keys), ("images", &self.images)];
        match needed.into_iter().find(|(_, paths)| paths.is_empty()) {
            Some((name, _)) => Err(ConfigError::Invalid(format!("`se.{name}` is empty: expected files or directories"))),
            None => Ok(()),
        }
    }
}
