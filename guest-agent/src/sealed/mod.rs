//! Sealed secrets of a container: found in its environment and its volumes, opened, and put in their place.
//!
//! Where they are looked for, as in Kata: values of the first process's environment, and files of the volumes copied into the guest (not the
//! pod's own files such as `/etc/hosts`), that begin with `sealed.`. What they are is in [`kata_cc_kbs_protocol::sealed`].
//!
//! 1. The policy has seen the container's specification, with the sealed text in it, and allowed it. It has not seen files: contents are
//!    not shown to it, and the host chooses which volume goes where.
//! 2. The key that a secret was signed with is fetched from the broker, and the signature verified.
//! 3. The policy is asked for each of them ([`UnsealSecret`]): which container, which resource, signed with which key, for which place.
//!    So an owner's secret for one container is not opened in another, wherever the host puts it.
//! 4. What it points to is fetched, and it is opened.
//!
//! | what the policy sees | |
//! |---|---|
//! | `container_id`, `container_name` | for whom |
//! | `type` | `vault` or `envelope` |
//! | `path` | the secret at the broker, or the key of the envelope: `repository/type/tag` |
//! | `signed_by` | the key that verified the signature, likewise |
//! | `target`, `name` | `environment` and the variable's name, or `file` and its path in the container |
//!
//! **Invariant:** a container starts with all of its sealed secrets open or not at all; never with the sealed text, which a program would
//! take for the secret.
//!
//! **Invariant:** an opened secret is in the guest's memory only: in the environment of the container's processes, and in a copy of the
//! volume that is this container's own ([`volume`]). Where the host copies files to, and what it may read back, stays sealed.

pub(crate) mod volume;

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::future::try_join_all;
use kata_cc_agent_protocol::rpc::oci;
use kata_cc_agent_protocol::rpc::ttrpc::Code;
use kata_cc_kbs_protocol::sealed::{SealedError, SealedSecret, UnverifiedSecret, VerifyingKey, is_sealed};
use kata_cc_kbs_protocol::{ResourcePath, SecretBytes};
use kata_cc_policy::{Denied, Gate, PolicyRequest};
use serde_json::{Value, json};
use thiserror::Error;
use zeroize::Zeroizing;

use crate::container::ContainerId;
use crate::kbs::{Broker, BrokerError};
use volume::{Volume, VolumeError};

/// Bound on sealed secrets of one container.
const MAX_SECRETS: usize = 64;

/// Longest value of a variable, less than the kernel takes for one with its name (128 KiB, `MAX_ARG_STRLEN`).
const MAX_VALUE: usize = 120 << 10;

/// Why a container's secrets are not opened. None of it holds a value.
#[derive(Debug, Error)]
pub(crate) enum UnsealError {
    /// Too many.
    #[error("the container has {0} sealed secrets, at most {MAX_SECRETS} are taken")]
    TooMany(usize),
    /// A volume with secrets in it cannot be copied.
    #[error(transparent)]
    Volume(#[from] VolumeError),
    /// One of them is not opened.
    #[error("sealed secret in {place}")]
    Secret {
        /// Where it is.
        place: Target,
        /// Why not.
        #[source]
        source: Cause,
    },
    /// A process executed in the container has one that the container does not have.
    #[error("sealed secret in {0}: expected one of those that the container was created with")]
    NotTheContainers(Target),
}

/// Why one is not opened.
#[derive(Debug, Error)]
pub(crate) enum Cause {
    /// It is not as it must be.
    #[error(transparent)]
    Sealed(#[from] SealedError),
    /// The policy says no.
    #[error(transparent)]
    Denied(#[from] Denied),
    /// The broker does.
    #[error("{path} from the key broker")]
    Broker {
        /// What was to be read.
        path: ResourcePath,
        /// Why not.
        #[source]
        source: Box<BrokerError>,
    },
    /// No text, or one that the kernel takes for no variable.
    #[error("what is in it cannot be the value of an environment variable: expected text of at most {MAX_VALUE} bytes without a zero byte")]
    NotAValue,
}

impl UnsealError {
    /// The code the host sees.
    #[must_use]
    pub(crate) fn code(&self) -> Code {
        match self {
            Self::Secret { source: Cause::Denied(_), .. } => Code::PERMISSION_DENIED,
            Self::Secret { source: Cause::Broker { source, .. }, .. } => match source.status() {
                Some(401 | 403) => Code::PERMISSION_DENIED,
                Some(404) => Code::NOT_FOUND,
                _ => Code::UNAVAILABLE,
            },
            Self::TooMany(_) => Code::RESOURCE_EXHAUSTED,
            Self::Volume(_) | Self::Secret { .. } | Self::NotTheContainers(_) => Code::INVALID_ARGUMENT,
        }
    }
}

/// Where a secret goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Target {
    /// A variable of that name.
    Variable(String),
    /// A file, by its path in the container.
    File(String),
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Variable(name) => write!(f, "the environment variable {name:?}"),
            Self::File(path) => write!(f, "the file {path:?}"),
        }
    }
}

/// A secret is to be opened for a container.
pub(crate) struct UnsealSecret<'a> {
    container: &'a ContainerId,
    name: &'a str,
    secret: &'a SealedSecret,
    signed_by: &'a ResourcePath,
    target: &'a Target,
}

impl PolicyRequest for UnsealSecret<'_> {
    const RULE: &'static str = "UnsealSecretRequest";

    fn policy_input(&self) -> Value {
        let (target, name) = match self.target {
            Target::Variable(name) => ("environment", name),
            Target::File(path) => ("file", path),
        };
        json!({
            "container_id": self.container.as_str(),
            "container_name": self.name,
            "type": self.secret.kind(),
            "path": self.secret.resource().to_string(),
            "signed_by": self.signed_by.to_string(),
            "target": target,
            "name": name,
        })
    }
}

/// What it takes to open secrets of a container.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Unsealer<'a> {
    /// What the policy says.
    pub(crate) gate: &'a Gate,
    /// Where keys and secrets come from.
    pub(crate) broker: Option<&'a Arc<Broker>>,
    /// For whom.
    pub(crate) container: &'a ContainerId,
    /// Its name in the pod.
    pub(crate) name: &'a str,
}

/// One that was found.
struct Found {
    target: Target,
    text: Zeroizing<String>,
}

/// One of the environment's.
struct FoundVariable {
    /// Its place in the list.
    index: usize,
    name: String,
    text: Zeroizing<String>,
}

/// Sealed secrets of a container, not opened yet.
#[derive(Default)]
pub(crate) struct Sealed {
    variables: Vec<FoundVariable>,
    volumes: Vec<Volume>,
}

/// A variable's name and its value, if that is sealed.
fn sealed_variable(variable: &str) -> Option<(&str, &str)> {
    variable.split_once('=').filter(|(_, value)| is_sealed(value.as_bytes()))
}

impl Sealed {
    /// Looks for them, and gives back the process without: its variables of that kind are empty until [`Opened`] ones are put in.
    ///
    /// # Errors
    /// When there are too many, or they are in a volume that cannot be copied.
    pub(crate) fn find(spec: &oci::Spec) -> Result<(Self, oci::Spec), UnsealError> {
        let mut without = spec.clone();
        let mut variables = Vec::new();
        for (index, variable) in without.Process.as_mut().into_iter().flat_map(|process| &mut process.Env).enumerate() {
            if let Some((name, value)) = sealed_variable(variable) {
                variables.push(FoundVariable { index, name: name.to_owned(), text: Zeroizing::new(value.to_owned()) });
                *variable = format!("{name}=");
            }
        }
        let volumes = spec.Mounts.iter().filter_map(|mount| Volume::find(mount).transpose()).collect::<Result<Vec<_>, _>>()?;
        let count = variables.len() + volumes.iter().map(Volume::sealed).sum::<usize>();
        if count > MAX_SECRETS {
            return Err(UnsealError::TooMany(count));
        }
        Ok((Self { variables, volumes }, without))
    }

    /// Opens them, all or none.
    ///
    /// # Errors
    /// When one is not signed as it must be, not allowed, or not to be had.
    pub(crate) async fn open(self, unsealer: Unsealer<'_>) -> Result<Opened, UnsealError> {
        let Self { variables, volumes } = self;
        let files: Vec<Found> = volumes.iter().flat_map(Volume::found).collect();
        if variables.is_empty() && files.is_empty() {
            return Ok(Opened::default());
        }
        let in_variables = variables.iter().map(|found| Found { target: Target::Variable(found.name.clone()), text: found.text.clone() });
        let all: Vec<Found> = in_variables.chain(files).collect();
        let mut contents = unsealer.all(&all).await?.into_iter();
        let values: Vec<SecretBytes> = contents.by_ref().take(variables.len()).collect();
        let variables = variables.into_iter().zip(values).map(|(found, secret)| Variable::of(found, &secret)).collect::<Result<_, _>>()?;
        let volumes = volumes
            .into_iter()
            .map(|volume| {
                let its = contents.by_ref().take(volume.sealed()).collect();
                volume.with(its)
            })
            .collect();
        Ok(Opened { variables, volumes })
    }
}

impl Unsealer<'_> {
    /// The secrets, in the order of the sealed ones.
    async fn all(&self, all: &[Found]) -> Result<Vec<SecretBytes>, UnsealError> {
        let at = |found: &Found| {
            let place = found.target.clone();
            move |source| UnsealError::Secret { place, source }
        };
        // All of them are looked at before anybody is asked for anything.
        let mut parsed = Vec::with_capacity(all.len());
        let mut keys = BTreeMap::new();
        for found in all {
            let unverified = UnverifiedSecret::parse(&found.text).map_err(|error| at(found)(error.into()))?;
            keys.entry(unverified.kid().clone()).or_insert(found);
            parsed.push((found, unverified));
        }
        let keys = try_join_all(keys.into_iter().map(|(kid, found)| async move {
            let key = self.fetch(&kid).await.and_then(|key| Ok(VerifyingKey::from_jwk(key.expose())?));
            Ok::<_, UnsealError>((kid, key.map_err(at(found))?))
        }));
        let keys: BTreeMap<_, _> = keys.await?.into_iter().collect();
        let mut allowed = Vec::with_capacity(all.len());
        for (found, unverified) in parsed {
            let kid = unverified.kid().clone();
            let checked = self.check(unverified, &kid, keys.get(&kid), &found.target).map_err(at(found))?;
            allowed.push((found, checked));
        }
        try_join_all(allowed.into_iter().map(|(found, secret)| async move {
            let resource = self.fetch(secret.resource()).await.map_err(at(found))?;
            secret.open(resource).map_err(|error| at(found)(error.into()))
        }))
        .await
    }

    fn check(
        &self,
        unverified: UnverifiedSecret,
        kid: &ResourcePath,
        key: Option<&VerifyingKey>,
        target: &Target,
    ) -> Result<SealedSecret, Cause> {
        let secret = unverified.verify(key.ok_or(SealedError::Signature)?)?;
        self.gate.check(UnsealSecret { container: self.container, name: self.name, secret: &secret, signed_by: kid, target })?;
        Ok(secret)
    }

    async fn fetch(&self, path: &ResourcePath) -> Result<SecretBytes, Cause> {
        let failed = |source| Cause::Broker { path: path.clone(), source: Box::new(source) };
        self.broker.ok_or(failed(BrokerError::None))?.resource(path).await.map_err(failed)
    }
}

/// A variable whose secret was opened.
struct Variable {
    index: usize,
    name: String,
    /// As it was, by which it is known when a process is executed in the container.
    sealed: Zeroizing<String>,
    value: Zeroizing<String>,
}

impl Variable {
    fn of(found: FoundVariable, secret: &SecretBytes) -> Result<Self, UnsealError> {
        let FoundVariable { index, name, text: sealed } = found;
        match std::str::from_utf8(secret.expose()) {
            Ok(text) if text.len() <= MAX_VALUE && !text.contains('\0') => {
                Ok(Self { index, name, sealed, value: Zeroizing::new(text.to_owned()) })
            }
            _ => Err(UnsealError::Secret { place: Target::Variable(name), source: Cause::NotAValue }),
        }
    }
}

/// Opened secrets of a container.
#[derive(Default)]
pub(crate) struct Opened {
    variables: Vec<Variable>,
    volumes: Vec<volume::Open>,
}

impl std::fmt::Debug for Opened {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Opened({} variables, {} volumes, redacted)", self.variables.len(), self.volumes.len())
    }
}

impl Opened {
    /// Puts them into the container's specification: values where the variables are empty, and this container's own copy of a volume in
    /// place of the one with sealed files.
    ///
    /// # Errors
    /// When a copy cannot be made.
    pub(crate) fn put(&mut self, id: &ContainerId, spec: &mut oci_spec::runtime::Spec) -> Result<(), UnsealError> {
        if let Some(process) = spec.process_mut()
            && !self.variables.is_empty()
        {
            let mut env = process.env().clone().unwrap_or_default();
            for variable in &self.variables {
                // The list is the one that they were found in.
                if let Some(entry) = env.get_mut(variable.index) {
                    *entry = format!("{}={}", variable.name, variable.value.as_str());
                }
            }
            process.set_env(Some(env));
        }
        // Not kept: they are in their place then.
        for (index, volume) in std::mem::take(&mut self.volumes).into_iter().enumerate() {
            let source = volume.write(&volume::directory(id).join(index.to_string()))?;
            for mount in spec.mounts_mut().iter_mut().flatten().filter(|mount| volume.is_of(mount)) {
                mount.set_source(Some(source.clone()));
            }
        }
        Ok(())
    }

    /// The process to execute in the container, with the container's own secrets in place of their sealed forms: container runtimes hand
    /// the container's environment to what is executed in it.
    ///
    /// # Errors
    /// When it has a sealed secret that the container does not have.
    pub(crate) fn in_process(&self, process: &oci::Process) -> Result<oci::Process, UnsealError> {
        let mut opened = process.clone();
        for entry in &mut opened.Env {
            let Some((name, value)) = sealed_variable(entry) else {
                continue;
            };
            let known = self.variables.iter().find(|variable| variable.name == name && variable.sealed.as_str() == value);
            let variable = known.ok_or_else(|| UnsealError::NotTheContainers(Target::Variable(name.to_owned())))?;
            *entry = format!("{name}={}", variable.value.as_str());
        }
        Ok(opened)
    }
}

#[cfg(test)]
mod tests;
