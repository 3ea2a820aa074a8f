//! Where the resources are: in the broker's store, or in a Vault. Everything else is in the store.
//!
//! **Invariant:** a broker has its resources in one place; what is not there is not looked for in the other.

mod vault;

pub use vault::{Vault, VaultError, VaultSetupError};

use crate::audit::Decision;
use crate::store::{Store, StoreError};
use axum::body::Bytes;
use kata_cc_kbs_protocol::ResourcePath;
use zeroize::Zeroizing;

/// Why a resource could not be had or changed.
#[derive(Debug, thiserror::Error)]
pub enum ResourceError {
    /// The store's reason.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The Vault's.
    #[error(transparent)]
    Vault(#[from] VaultError),
}

/// Where resources are.
#[derive(Debug)]
pub enum Resources {
    /// In the broker's store.
    Store(Store),
    /// In a Vault.
    Vault(Box<Vault>),
}

impl Resources {
    /// Whether whoever has them answers. The store is asked by itself.
    pub async fn ready(&self) -> Result<(), ResourceError> {
        match self {
            Self::Store(_) => Ok(()),
            Self::Vault(vault) => Ok(vault.ready().await?),
        }
    }

    /// See [`Store::release`]; the decision is kept in `log` wherever the secret is.
    pub async fn release<T>(
        &self,
        log: &Store,
        path: &ResourcePath,
        decision: Decision,
        meanwhile: impl FnOnce(Option<Zeroizing<Vec<u8>>>) -> T,
    ) -> Result<T, ResourceError> {
        match self {
            Self::Store(store) => Ok(store.release(path, decision, meanwhile).await?),
            Self::Vault(vault) => {
                let found = vault.get(path).await?;
                let kept = log.record(decision.of_found(found.is_some()));
                let (kept, made) = tokio::join!(kept, async { meanwhile(found) });
                Ok(kept.map(|()| made)?)
            }
        }
    }

    /// Puts a secret there. Whether there was one before.
    pub async fn put(&self, path: &ResourcePath, value: Bytes) -> Result<bool, ResourceError> {
        Ok(match self {
            Self::Store(store) => store.put_resource(path, value).await?,
            Self::Vault(vault) => vault.put(path, &value).await?,
        })
    }

    /// Deletes a secret. Whether there was one.
    pub async fn delete(&self, path: &ResourcePath) -> Result<bool, ResourceError> {
        Ok(match self {
            Self::Store(store) => store.delete_resource(path).await?,
            Self::Vault(vault) => vault.delete(path).await?,
        })
    }

    /// Names of all secrets, in order.
    pub async fn names(&self) -> Result<Vec<String>, ResourceError> {
        Ok(match self {
            Self::Store(store) => store.resource_names().await?,
            Self::Vault(vault) => vault.names().await?,
        })
    }
}
