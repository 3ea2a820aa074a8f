//! What a pod asks for, in types that hold nothing a plan could not use.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::plan::PlanError;
use crate::tee::snp::id_block::SignedIdBlock;

/// A pod sandbox's identifier, safe as a file name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
#[serde(transparent)]
pub struct SandboxId(String);

impl SandboxId {
    /// The identifier as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for SandboxId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for SandboxId {
    type Err = PlanError;

    fn from_str(text: &str) -> Result<Self, PlanError> {
        let plain = |byte: u8| byte.is_ascii_alphanumeric();
        let edges = text.bytes().next().is_some_and(plain) && text.bytes().last().is_some_and(plain);
        if !edges || text.len() > 76 || !text.bytes().all(|byte| plain(byte) || matches!(byte, b'.' | b'_' | b'-')) || text.contains("..") {
            return Err(PlanError::Id(text.chars().take(80).collect()));
        }
        Ok(Self(text.to_owned()))
    }
}

impl<'de> Deserialize<'de> for SandboxId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// The digest of the pod's initdata, before it is fitted to a TEE's field.
#[derive(Clone, PartialEq, Eq)]
pub struct InitdataDigest(Vec<u8>);

impl InitdataDigest {
    /// A SHA-256, SHA-384 or SHA-512 digest.
    pub fn new(bytes: &[u8]) -> Result<Self, PlanError> {
        if matches!(bytes.len(), 32 | 48 | 64) { Ok(Self(bytes.to_vec())) } else { Err(PlanError::DigestLength(bytes.len())) }
    }

    /// Cut or zero-padded to the width of a TEE's field.
    #[must_use]
    pub fn padded<const N: usize>(&self) -> [u8; N] {
        let mut field = [0; N];
        for (to, from) in field.iter_mut().zip(&self.0) {
            *to = *from;
        }
        field
    }
}

impl fmt::Debug for InitdataDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "InitdataDigest({})", hex::encode(&self.0))
    }
}

impl Serialize for InitdataDigest {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&hex::encode(&self.0))
    }
}

impl<'de> Deserialize<'de> for InitdataDigest {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let bytes = hex::decode(String::deserialize(deserializer)?).map_err(serde::de::Error::custom)?;
        Self::new(&bytes).map_err(serde::de::Error::custom)
    }
}

/// An Ethernet address.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Mac(pub [u8; 6]);

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Mac {
    type Err = PlanError;

    fn from_str(text: &str) -> Result<Self, PlanError> {
        let error = || PlanError::Mac(text.chars().take(32).collect());
        let mut bytes = [0; 6];
        hex::decode_to_slice(text.replace(':', ""), &mut bytes).map_err(|_| error())?;
        let mac = Self(bytes);
        if mac.to_string() == text.to_ascii_lowercase() { Ok(mac) } else { Err(error()) }
    }
}

impl Serialize for Mac {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Mac {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// A CPU limit in the kernel's terms.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CpuLimit {
    /// Microseconds of processor time …
    pub quota: i64,
    /// … in each period of so many microseconds.
    pub period: u64,
}

/// What a pod asks for, and what the host found out for it.
#[derive(Debug, Clone)]
pub struct PodRequest {
    /// The pod.
    pub sandbox_id: SandboxId,
    /// Every annotation of the pod.
    pub annotations: BTreeMap<String, String>,
    /// CPU limits; they are summed.
    pub cpu_limits: Vec<CpuLimit>,
    /// Memory limits in bytes; they are summed.
    pub memory_limits: Vec<u64>,
    /// Digest of the pod's initdata. A pod without initdata has no policy and cannot start.
    pub initdata_digest: Option<InitdataDigest>,
    /// Addresses of the pod's interfaces, in order.
    pub nics: Vec<Mac>,
    /// The ID block that the class names, as [`Config::read_id_block`] read it.
    pub id_block: Option<SignedIdBlock>,
    /// What the host offers for vsock.
    pub host: Host,
}

/// What the host offers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Host {
    /// A guest address reserved at `/dev/vhost-vsock`, where the host has it.
    pub vsock_cid: Option<u32>,
    /// Whether `/dev/vhost-net` is there.
    pub vhost_net: bool,
}
