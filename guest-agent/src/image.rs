//! Images, pulled by the guest: what initdata says about registries and signatures, joined with the broker's secrets.
//!
//! Signature policy and registry logins may be resources of the broker; they are fetched when the first image is pulled and kept.
//! Without a signature policy nothing is pulled.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use kata_cc_agent_protocol::rpc::ttrpc::Code;
use kata_cc_image_pull::secret::SecretError;
use kata_cc_image_pull::{LayerStore, Phase, PullConfig, PullError, Puller, Reference, ResourceUri, Secret, Secrets, SignaturePolicy};
use kata_cc_kbs_protocol::ResourcePath;
use kata_cc_policy::guest_config::{ImageConfig, ResourceUri as ConfigUri};
use thiserror::Error;
use tokio::sync::OnceCell;

use crate::blob_cache::NodeCache;
use crate::kbs::{Broker, BrokerError};
use crate::timeline::Timeline;

/// Where layers are unpacked.
pub(crate) const STORE: &str = "/run/kata-containers/image";

/// Why an image was not to be had.
#[derive(Debug, Error)]
pub(crate) enum ImageError {
    /// Initdata says nothing about signatures.
    #[error(
        "no image signature policy: initdata must name one as [image] image_security_policy_uri (or image_security_policy) in cdh.toml; without one no image is pulled"
    )]
    NoPolicy,
    /// The signature policy cannot be used.
    #[error("image signature policy")]
    Policy(#[from] kata_cc_image_pull::policy::PolicyError),
    /// A resource the pull needs.
    #[error("{what} from the key broker")]
    Broker {
        /// What it is for.
        what: &'static str,
        /// Why not.
        #[source]
        source: BrokerError,
    },
    /// A name that is none.
    #[error("{0}")]
    Name(String),
    /// Registries cannot be talked to as configured.
    #[error("image registry configuration")]
    Registry(#[from] kata_cc_image_pull::registry::RegistryError),
    /// The store cannot be opened.
    #[error("image store")]
    Store(#[from] kata_cc_image_pull::store::StoreError),
    /// The pull failed.
    #[error("cannot pull the image")]
    Pull(#[from] PullError),
    /// Not in time.
    #[error("the image was not pulled in {0:?}; a longer agent.image_pull_timeout is part of the launch measurement")]
    Timeout(Duration),
}

impl ImageError {
    /// The code the host sees.
    #[must_use]
    pub(crate) fn code(&self) -> Code {
        match self {
            Self::NoPolicy | Self::Policy(_) => Code::FAILED_PRECONDITION,
            Self::Name(_) => Code::INVALID_ARGUMENT,
            Self::Timeout(_) => Code::DEADLINE_EXCEEDED,
            Self::Pull(PullError::Signature(_)) => Code::PERMISSION_DENIED,
            Self::Broker { source, .. } if matches!(source.status(), Some(401 | 403)) => Code::PERMISSION_DENIED,
            Self::Broker { .. } | Self::Registry(_) => Code::UNAVAILABLE,
            Self::Store(_) | Self::Pull(_) => Code::INTERNAL,
        }
    }
}

/// The broker, as the puller asks it.
pub(crate) struct FromBroker(pub(crate) Option<Arc<Broker>>);

#[async_trait]
impl Secrets for FromBroker {
    async fn resource(&self, uri: &ResourceUri) -> Result<Secret, SecretError> {
        let path: ResourcePath = uri.path().parse()?;
        let broker = self.0.as_ref().ok_or(BrokerError::None)?;
        Ok(Secret::new(broker.resource(&path).await?.expose().to_vec()))
    }
}

/// An image in the store.
#[derive(Debug)]
pub(crate) struct Pulled {
    /// Its layers, lowest first.
    pub(crate) layers: Vec<PathBuf>,
    /// Digest of its manifest, `sha256:…`.
    pub(crate) digest: String,
}

/// Pulls images.
#[derive(Debug)]
pub(crate) struct Images {
    config: ImageConfig,
    broker: Option<Arc<Broker>>,
    timeout: Duration,
    timeline: Arc<Timeline>,
    ready: OnceCell<Ready>,
}

/// What is needed for any image.
#[derive(Debug)]
struct Ready {
    puller: Puller,
    policy: SignaturePolicy,
    store: LayerStore,
}

impl Images {
    /// Images by the rules in initdata. Nothing is fetched yet.
    #[must_use]
    pub(crate) fn new(config: ImageConfig, broker: Option<Arc<Broker>>, timeout: Duration, timeline: Arc<Timeline>) -> Self {
        Self { config, broker, timeout, timeline, ready: OnceCell::new() }
    }

    /// Pulls an image, every byte of it checked.
    ///
    /// # Errors
    /// When it is not exactly what its reference, its signature policy and its keys say, or not to be had in time.
    pub(crate) async fn pull(&self, reference: &str) -> Result<Pulled, ImageError> {
        let reference: Reference = reference.parse().map_err(|error| ImageError::Name(crate::errors::with_causes(&error)))?;
        tokio::time::timeout(self.timeout, self.pull_checked(&reference)).await.unwrap_or(Err(ImageError::Timeout(self.timeout)))
    }

    /// Fetches ahead what any image will need: attestation and signature policy, while the host is still busy with the first container.
    ///
    /// A failure is not kept: the pull that needs it meets it again and tells the host why.
    pub(crate) async fn prepare_ahead(&self) {
        let _ = self.ready.get_or_try_init(|| self.prepare()).await;
    }

    async fn pull_checked(&self, reference: &Reference) -> Result<Pulled, ImageError> {
        let ready = self.ready.get_or_try_init(|| self.prepare()).await?;
        let image = ready
            .puller
            .pull(reference, &ready.policy, &ready.store, &|event| {
                let phase = match event.phase {
                    Phase::Manifest => "manifest",
                    Phase::Signature => "signature",
                    Phase::Key => "key",
                    Phase::Layers => "layers",
                };
                self.timeline.took(phase, event.took);
            })
            .await?;
        let layers = image.layers.into_iter().map(|layer| layer.path).collect();
        Ok(Pulled { layers, digest: image.manifest_digest.to_string() })
    }

    async fn prepare(&self) -> Result<Ready, ImageError> {
        let text = match (&self.config.image_security_policy, &self.config.image_security_policy_uri) {
            (Some(text), _) => text.clone().into_bytes(),
            (None, Some(uri)) => self.fetch(uri, "the image signature policy").await?.expose().to_vec(),
            (None, None) => return Err(ImageError::NoPolicy),
        };
        let policy = SignaturePolicy::parse(&text)?;
        let credentials = match &self.config.authenticated_registry_credentials_uri {
            Some(uri) => Some(self.fetch(uri, "the registry credentials").await?),
            None => None,
        };
        let defaults = PullConfig::default();
        let parallel = self.config.max_concurrent_layer_downloads;
        let config = PullConfig {
            insecure_registries: self.config.insecure_registries.clone(),
            extra_ca: self.config.extra_root_certificates.clone(),
            credentials,
            parallel_layers: parallel.and_then(|n| usize::try_from(n).ok()).unwrap_or(defaults.parallel_layers),
            ..defaults
        };
        let puller = Puller::new(config, Arc::new(FromBroker(self.broker.clone())))?.with_cache(Arc::new(NodeCache));
        Ok(Ready { puller, policy, store: LayerStore::open(STORE)? })
    }

    async fn fetch(&self, uri: &ConfigUri, what: &'static str) -> Result<Secret, ImageError> {
        let path: ResourcePath = uri.path().parse().map_err(|error| ImageError::Name(crate::errors::with_causes(&error)))?;
        let broker = self.broker.as_ref().ok_or(ImageError::Broker { what, source: BrokerError::None })?;
        let secret = broker.resource(&path).await.map_err(|source| ImageError::Broker { what, source })?;
        Ok(Secret::new(secret.expose().to_vec()))
    }
}
