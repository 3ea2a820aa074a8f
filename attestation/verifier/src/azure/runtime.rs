//! The runtime data of an HCL report: a JWK set with the TPM's keys, and what the paravisor says of the VM.
//!
//! Read only once a hardware report with their digest was verified: before that they are anybody's words.

use super::error::AzureError;
use crate::tpm::AttestationKey;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;
use serde_json::Value;

/// Name of the attestation key in the set.
const ATTESTATION_KEY: &str = "HCLAkPub";

/// What of the runtime data is looked at.
#[derive(Deserialize)]
pub(super) struct RuntimeData {
    keys: Vec<Jwk>,
    /// How the VM is set up, Secure Boot and console among it.
    #[serde(rename = "vm-configuration", default)]
    pub(super) vm_configuration: Value,
    /// 64 bytes that the guest may have written before the report was made.
    #[serde(rename = "user-data", default)]
    pub(super) user_data: Option<String>,
}

#[derive(Deserialize)]
struct Jwk {
    kid: String,
    kty: String,
    n: Option<String>,
    e: Option<String>,
}

impl RuntimeData {
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, AzureError> {
        serde_json::from_slice(bytes).map_err(|error| AzureError::Runtime { reason: format!("not JSON as expected: {error}") })
    }

    /// The key that the TPM signs quotes with.
    pub(super) fn attestation_key(&self) -> Result<AttestationKey, AzureError> {
        let refused = |reason: &str| AzureError::Runtime { reason: format!("{reason} {ATTESTATION_KEY}") };
        let mut named = self.keys.iter().filter(|key| key.kid == ATTESTATION_KEY);
        let key = named.next().ok_or_else(|| refused("there is no key"))?;
        if named.next().is_some() {
            return Err(refused("there is more than one key"));
        }
        if key.kty != "RSA" {
            return Err(refused("no RSA key is"));
        }
        let number = |text: &Option<String>| text.as_ref().and_then(|text| URL_SAFE_NO_PAD.decode(text).ok());
        let (n, e) = number(&key.n).zip(number(&key.e)).ok_or_else(|| refused("no usable numbers has the key"))?;
        Ok(AttestationKey::new(&n, &e)?)
    }
}
