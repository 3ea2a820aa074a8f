//! Whether a secret may go to a guest: the resource policy over its token.
//!
//! **Invariant:** only a [`VerifiedToken`] is ever judged, and only the policy's literal `true` is a yes.

use crate::rego::{self, PolicyError};
use kata_cc_kbs_protocol::ear::Status;
use kata_cc_kbs_protocol::{ResourcePath, VerifiedToken};
use serde_json::json;

/// The policy in force while no administrator has set another.
pub const DEFAULT_POLICY: &str = include_str!("../policies/default-resource.rego");

/// Runs the policy.
pub fn allowed(
    rego: &str,
    token: &VerifiedToken,
    path: &ResourcePath,
    query: &serde_json::Map<String, serde_json::Value>,
) -> Result<bool, PolicyError> {
    let data = json!({
        "plugin": "resource",
        "resource-path": [path.repository(), path.kind(), path.tag()],
        "query": query,
    });
    rego::allows(rego, token.claims(), &data)
}

/// What a guest is told of a refusal: names of the claims that do not affirm, no values.
pub fn failing_claims(token: &VerifiedToken) -> Vec<String> {
    let mut names = Vec::new();
    for (submod, appraisal) in &token.ear().submods {
        for (name, value) in appraisal.trust_vector.claims() {
            if Status::of_claim(value) > Status::Affirming {
                names.push(format!("{submod}/{name}"));
            }
        }
    }
    names
}
