//! Whether a secret may go to a guest: the resource policy over its token.
//!
//! **Invariant:** only a [`VerifiedToken`] is ever judged, and only the policy's literal `true` is a yes.

use crate::rego::{Kind, Policies, PolicyError};
use kata_cc_kbs_protocol::ear::Status;
use kata_cc_kbs_protocol::{ResourcePath, VerifiedToken};
use serde_json::json;

/// The policy in force while no administrator has set another.
pub const DEFAULT_POLICY: &str = include_str!("../policies/default-resource.rego");

/// Runs the policy.
pub fn allowed(
    policies: &Policies,
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
    policies.get(Kind::Resource, rego)?.allows(token.claims(), &data)
}

/// What a guest is told of a refusal: the claims that do not affirm and their tier, which its own token says too, but no values.
pub fn failing_claims(token: &VerifiedToken) -> Vec<String> {
    let mut names = Vec::new();
    for (submod, appraisal) in &token.ear().submods {
        for (name, value) in appraisal.trust_vector.claims() {
            let tier = Status::of_claim(value);
            if tier > Status::Affirming {
                let tier = serde_json::to_value(tier).unwrap_or_default();
                names.push(format!("{submod}/{name} {}", tier.as_str().unwrap_or_default()));
            }
        }
    }
    names
}
