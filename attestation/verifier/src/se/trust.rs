//! What is trusted of Secure Execution, and how it is exchanged for newer: revocation lists are good for weeks, a verifier runs for months.

use std::sync::{Arc, PoisonError, RwLock};

use kata_cc_evidence::se::ImageTags;

use super::host_key::Documents;
use super::seal::SealingKey;

/// What is trusted.
#[derive(Clone, Debug)]
pub struct SeTrust {
    /// Host-key documents, with roots, certificates and revocation lists.
    pub documents: Documents,
    /// Headers' tags of the images that may run.
    pub images: Vec<ImageTags>,
    /// For the memory of requests.
    pub sealing_key: SealingKey,
    /// Longest time between request and evidence, in seconds.
    pub max_age: u64,
}

/// What is trusted now. Clones are the same one.
#[derive(Clone, Debug)]
pub struct CurrentTrust(Arc<RwLock<Arc<SeTrust>>>);

impl CurrentTrust {
    /// As of now. It stays what it is while it is used, whatever replaces it.
    #[must_use]
    pub fn get(&self) -> Arc<SeTrust> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Replaces it, for requests and evidence from now on. A request that is out can be answered if sealing key, image and host key are still there.
    pub fn replace(&self, trust: SeTrust) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(trust);
    }
}

impl From<SeTrust> for CurrentTrust {
    fn from(trust: SeTrust) -> Self {
        Self(Arc::new(RwLock::new(Arc::new(trust))))
    }
}
