//! Whether a secret may go to a guest: the resource policy over its token.
//!
//! **Invariant:** only a token that was verified is ever judged, and only the policy's literal `true` is a yes.

use crate::rego::{Policy, PolicyError, Request};
use crate::tokens::Shown;
use kata_cc_kbs_protocol::ear::Status;
use kata_cc_kbs_protocol::{Ear, ResourcePath};
use serde::Deserialize;

/// The policy in force while no administrator has set another.
pub const DEFAULT_POLICY: &str = include_str!("../policies/default-resource.rego");

/// What a guest is told that was refused: what the owner of the resource says, by the policy's rule `disclose`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Disclosure {
    /// That it was refused.
    Nothing,
    /// Which claims do not affirm, and their tier, which its own token says too.
    #[default]
    Names,
    /// Their values in the trustworthiness vector besides.
    Values,
}

/// What the policy says of a request.
#[derive(Debug)]
pub struct Decided {
    /// Yes or no.
    pub allowed: Result<bool, PolicyError>,
    /// What the guest may know of a no; an error where the policy has the rule and it gives none of the three.
    pub disclosure: Result<Disclosure, PolicyError>,
}

/// Runs the policy.
pub fn decide(policy: &Policy, token: &Shown, path: &ResourcePath, query: &serde_json::Map<String, serde_json::Value>) -> Decided {
    let request = Request { plugin: "resource", resource_path: [path.repository(), path.kind(), path.tag()], query };
    let allowed = policy.allows(token.policy_input(), request);
    // Of a yes nothing is disclosed.
    let disclosure = if matches!(allowed, Ok(true)) { Ok(Disclosure::Nothing) } else { policy.disclosure(token.policy_input(), request) };
    Decided { allowed, disclosure }
}

/// What a guest is told of a refusal. Never what was expected of the evidence.
pub fn refusal(ear: &Ear, path: &ResourcePath, disclosure: Disclosure) -> String {
    let failing = match disclosure {
        Disclosure::Nothing => Vec::new(),
        Disclosure::Names | Disclosure::Values => failing_claims(ear, disclosure == Disclosure::Values),
    };
    if failing.is_empty() {
        format!("the resource policy does not allow {path}")
    } else {
        format!("the resource policy does not allow {path}; expected affirming claims, found {}", failing.join(", "))
    }
}

fn failing_claims(ear: &Ear, values: bool) -> Vec<String> {
    let mut names = Vec::new();
    for (submod, appraisal) in &ear.submods {
        for (name, value) in appraisal.trust_vector.claims() {
            let tier = Status::of_claim(value);
            if tier > Status::Affirming {
                let tier = serde_json::to_value(tier).unwrap_or_default();
                let value = if values { format!(" ({value})") } else { String::new() };
                names.push(format!("{submod}/{name} {}{value}", tier.as_str().unwrap_or_default()));
            }
        }
    }
    names
}
