//! Intel's signed JSON: `{"<name>": <body>, "signature": "<hex of R ‖ S>"}`, the signature over the body's very bytes.
//!
//! Intel, "SGX and TDX Provisioning Certification Service", API v4, "Get TDX TCB Info" and "Get TD QE Identity".

use serde::de::Error as _;
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;
use std::str::FromStr as _;

/// The two parts of such a document.
pub(super) struct SignedJson<'a> {
    /// What is signed, byte for byte.
    pub(super) body: &'a str,
    pub(super) signature: [u8; 64],
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TcbInfoDocument<'a> {
    #[serde(borrow, rename = "tcbInfo")]
    body: &'a RawValue,
    signature: Hex<64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct EnclaveIdentityDocument<'a> {
    #[serde(borrow, rename = "enclaveIdentity")]
    body: &'a RawValue,
    signature: Hex<64>,
}

impl<'a> SignedJson<'a> {
    pub(super) fn tcb_info(document: &'a [u8]) -> Result<Self, serde_json::Error> {
        let document: TcbInfoDocument<'a> = serde_json::from_slice(document)?;
        Ok(Self { body: document.body.get(), signature: document.signature.0 })
    }

    pub(super) fn enclave_identity(document: &'a [u8]) -> Result<Self, serde_json::Error> {
        let document: EnclaveIdentityDocument<'a> = serde_json::from_slice(document)?;
        Ok(Self { body: document.body.get(), signature: document.signature.0 })
    }
}

/// `N` bytes in hexadecimal of either case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Hex<const N: usize>(pub(super) [u8; N]);

impl<'de, const N: usize> Deserialize<'de> for Hex<N> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let mut bytes = [0; N];
        hex::decode_to_slice(&text, &mut bytes).map_err(|_| D::Error::custom(format!("expected {N} bytes in hexadecimal")))?;
        Ok(Self(bytes))
    }
}

/// A point in time such as `2026-02-01T14:49:26Z`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Time {
    pub(super) text: String,
    pub(super) unix: u64,
}

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let time = der::DateTime::from_str(&text).map_err(|_| D::Error::custom("expected a time such as 2026-02-01T14:49:26Z"))?;
        Ok(Self { unix: time.unix_duration().as_secs(), text })
    }
}
