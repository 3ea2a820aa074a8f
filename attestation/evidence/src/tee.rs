//! The kinds of TEE the key-broker protocol names, and their strings.
//!
//! Knowing a name is not supporting it: which kinds have a verifier is decided in one place in the verifier crate.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A TEE kind as named in the `tee` field of an RCAR request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum TeeType {
    /// AMD SEV-SNP behind Azure's vTPM.
    AzSnpVtpm,
    /// Intel TDX behind Azure's vTPM.
    AzTdxVtpm,
    /// AMD SEV-SNP.
    Snp,
    /// Intel TDX.
    Tdx,
    /// Intel SGX.
    Sgx,
    /// Arm CCA.
    Cca,
    /// Hygon CSV.
    Csv,
    /// IBM Secure Execution.
    Se,
    /// A TPM without a TEE.
    Tpm,
    /// NVIDIA GPU (a device, never the primary evidence).
    Nvidia,
    /// NVIDIA DPU (a device).
    NvidiaDpu,
    /// Hygon DCU (a device).
    HygonDcu,
    /// Evidence anybody can make. Known so that it can be refused by name.
    Sample,
    /// Device evidence anybody can make. Known so that it can be refused by name.
    SampleDevice,
}

/// A `tee` string the protocol does not define.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown TEE kind {found:?}: expected one of the protocol's names, such as \"snp\"")]
pub struct UnknownTee {
    /// What was found, cut to 32 characters.
    pub found: String,
}

impl TeeType {
    /// Every kind, in the order of the protocol's documentation.
    pub const ALL: [Self; 14] = [
        Self::AzSnpVtpm,
        Self::AzTdxVtpm,
        Self::Snp,
        Self::Tdx,
        Self::Sgx,
        Self::Cca,
        Self::Csv,
        Self::Se,
        Self::Tpm,
        Self::Nvidia,
        Self::NvidiaDpu,
        Self::HygonDcu,
        Self::Sample,
        Self::SampleDevice,
    ];

    /// The string on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::AzSnpVtpm => "az-snp-vtpm",
            Self::AzTdxVtpm => "az-tdx-vtpm",
            Self::Snp => "snp",
            Self::Tdx => "tdx",
            Self::Sgx => "sgx",
            Self::Cca => "cca",
            Self::Csv => "csv",
            Self::Se => "se",
            Self::Tpm => "tpm",
            Self::Nvidia => "nvidia",
            Self::NvidiaDpu => "nvidia-dpu",
            Self::HygonDcu => "hygondcu",
            Self::Sample => "sample",
            Self::SampleDevice => "sampledevice",
        }
    }
}

impl fmt::Display for TeeType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for TeeType {
    type Err = UnknownTee;

    fn from_str(text: &str) -> Result<Self, UnknownTee> {
        Self::ALL.into_iter().find(|tee| tee.as_str() == text).ok_or_else(|| UnknownTee { found: text.chars().take(32).collect() })
    }
}

impl Serialize for TeeType {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for TeeType {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_round_trips_through_its_name() {
        for tee in TeeType::ALL {
            assert_eq!(tee.as_str().parse(), Ok(tee));
            let json = serde_json::to_string(&tee).expect("a string serialises");
            assert_eq!(serde_json::from_str::<TeeType>(&json).expect("parses"), tee);
        }
    }

    #[test]
    fn refuses_a_kind_it_does_not_know() {
        assert!("SNP".parse::<TeeType>().is_err());
        assert!("".parse::<TeeType>().is_err());
        let long = "x".repeat(1000);
        assert_eq!(long.parse::<TeeType>().map_err(|e| e.found.len()), Err(32));
    }
}
