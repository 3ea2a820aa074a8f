//! EAR (EAT Attestation Result) claims and the AR4SI trustworthiness vector.
//!
//! draft-ietf-rats-ear and draft-ietf-rats-ar4si section 2.3; claim names as CoCo's Trustee writes them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// `eat_profile` of the tokens we issue and accept.
pub const EAT_PROFILE: &str = "tag:github.com,2024:confidential-containers/Trustee";

/// AR4SI tier of a claim, and the overall status of an appraisal. Ordered from no statement to worst.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Nothing is claimed.
    None,
    /// The appraisal found what it expected.
    Affirming,
    /// Something is off.
    Warning,
    /// The evidence speaks against trust.
    Contraindicated,
}

impl Status {
    /// Tier of one claim value.
    #[must_use]
    pub const fn of_claim(value: i8) -> Self {
        match value {
            -1..=1 => Self::None,
            2..=31 | -32..=-2 => Self::Affirming,
            32..=95 | -96..=-33 => Self::Warning,
            96..=127 | -128..=-97 => Self::Contraindicated,
        }
    }
}

/// The eight AR4SI claims. A claim that is absent is 0: nothing is said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default, deny_unknown_fields)]
pub struct TrustVector {
    /// Who the attester is.
    pub instance_identity: i8,
    /// How it is configured.
    pub configuration: i8,
    /// What code was loaded.
    pub executables: i8,
    /// Its file systems.
    pub file_system: i8,
    /// The hardware and its firmware.
    pub hardware: i8,
    /// Secrecy of memory at run time.
    pub runtime_opaque: i8,
    /// Secrecy of storage.
    pub storage_opaque: i8,
    /// Data the attester was given.
    pub sourced_data: i8,
}

impl TrustVector {
    /// All claims, in the order of the draft.
    #[must_use]
    pub const fn claims(&self) -> [(&'static str, i8); 8] {
        [
            ("instance-identity", self.instance_identity),
            ("configuration", self.configuration),
            ("executables", self.executables),
            ("file-system", self.file_system),
            ("hardware", self.hardware),
            ("runtime-opaque", self.runtime_opaque),
            ("storage-opaque", self.storage_opaque),
            ("sourced-data", self.sourced_data),
        ]
    }

    /// The worst tier of all claims.
    #[must_use]
    pub fn status(&self) -> Status {
        self.claims().into_iter().map(|(_, value)| Status::of_claim(value)).max().unwrap_or(Status::None)
    }
}

/// Who verified.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerifierId {
    /// Who made the verifier.
    pub developer: String,
    /// Name and version.
    pub build: String,
}

/// Result for one submodule (`cpu0`).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Appraisal {
    /// Overall status.
    #[serde(rename = "ear.status")]
    pub status: Status,
    /// The claims.
    #[serde(rename = "ear.trustworthiness-vector", default)]
    pub trust_vector: TrustVector,
    /// Which policy appraised.
    #[serde(rename = "ear.appraisal-policy-id", default, skip_serializing_if = "Option::is_none")]
    pub policy_id: Option<String>,
    /// What the verifier found: `{<tee>: {claims}, report_data, init_data, runtime_data_claims, init_data_claims}`.
    #[serde(rename = "ear.veraison.annotated-evidence", default, skip_serializing_if = "Value::is_null")]
    pub annotated_evidence: Value,
    /// Extensions a policy adds.
    #[serde(flatten)]
    pub extensions: Map<String, Value>,
}

impl Appraisal {
    /// An appraisal whose status is that of its vector, so that the two cannot disagree.
    #[must_use]
    pub fn new(trust_vector: TrustVector, policy_id: impl Into<String>, annotated_evidence: Value) -> Self {
        Self { status: trust_vector.status(), trust_vector, policy_id: Some(policy_id.into()), annotated_evidence, extensions: Map::new() }
    }
}

/// Claims of an attestation token. Times are seconds since the epoch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Ear {
    /// [`EAT_PROFILE`].
    pub eat_profile: String,
    /// Issued at.
    pub iat: u64,
    /// Expires at.
    pub exp: u64,
    /// Issuer.
    #[serde(default)]
    pub iss: String,
    /// Who verified.
    #[serde(rename = "ear.verifier-id")]
    pub verifier_id: VerifierId,
    /// Result by submodule.
    pub submods: BTreeMap<String, Appraisal>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn claim_values_fall_into_the_drafts_tiers() {
        for (value, tier) in [
            (0, Status::None),
            (1, Status::None),
            (-1, Status::None),
            (2, Status::Affirming),
            (31, Status::Affirming),
            (-32, Status::Affirming),
            (32, Status::Warning),
            (95, Status::Warning),
            (-33, Status::Warning),
            (96, Status::Contraindicated),
            (127, Status::Contraindicated),
            (-128, Status::Contraindicated),
        ] {
            assert_eq!(Status::of_claim(value), tier, "{value}");
        }
    }

    #[test]
    fn the_worst_claim_decides() {
        let good = TrustVector { hardware: 2, executables: 3, configuration: 2, ..TrustVector::default() };
        assert_eq!(good.status(), Status::Affirming);
        assert_eq!(TrustVector { executables: 33, ..good }.status(), Status::Warning);
        assert_eq!(TrustVector { hardware: 97, executables: 33, ..good }.status(), Status::Contraindicated);
        assert_eq!(TrustVector::default().status(), Status::None);
    }

    #[test]
    fn vector_parses_from_a_policys_map_and_refuses_unknown_names() {
        let vector: TrustVector = serde_json::from_str(r#"{"executables": 3, "file-system": 0, "hardware": 2}"#).expect("parses");
        assert_eq!((vector.executables, vector.hardware), (3, 2));
        assert!(serde_json::from_str::<TrustVector>(r#"{"executable": 3}"#).is_err());
        assert!(serde_json::from_str::<TrustVector>(r#"{"executables": 200}"#).is_err());
    }
}
