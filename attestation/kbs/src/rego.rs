//! Runs policies: Rego text, an input, an answer, within a time limit. What the answers mean is decided by the callers.
//!
//! **Invariant:** a policy that fails, runs too long or answers with anything else than what is asked for is an error, never a yes.

use crate::audit::Comparison;
use crate::store::ReferenceValues;
use regorus::utils::limits::ExecutionTimerConfig;
use regorus::{Engine, Value};
use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Longest policy an administrator may set.
pub const MAX_POLICY: usize = 256 * 1024;
const TIME_LIMIT: Duration = Duration::from_secs(2);
const CHECK_INTERVAL: NonZeroU32 = NonZeroU32::new(64).expect("64 is not zero");
const TRUST_CLAIMS: &str = "data.policy.trust_claims";
const ALLOW: &str = "data.policy.allow";

/// Why a policy gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    /// Too long, wrong package or not Rego.
    #[error("not a usable policy: {0}")]
    Invalid(String),
    /// It failed while it ran.
    #[error("the policy failed: {0}")]
    Failed(String),
    /// It answered with something else.
    #[error("the policy answered {found}, expected {expected}")]
    Answer {
        /// Which answer is needed.
        expected: &'static str,
        /// What came.
        found: String,
    },
}

/// An appraisal's answer and what it asked for on the way.
#[derive(Debug, Clone)]
pub struct Appraised {
    /// AR4SI claim names to values.
    pub claims: BTreeMap<String, i64>,
    /// Ids of reference values the policy asked for, with what there was.
    pub queried: ReferenceValues,
}

/// Which kind of policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Must define `trust_claims`.
    Attestation,
    /// Must define `allow`.
    Resource,
}

/// Refuses what is not a policy of this kind, before it is stored.
pub fn check(kind: Kind, rego: &str) -> Result<(), PolicyError> {
    let mut engine = load(rego)?;
    let rule = match kind {
        Kind::Attestation => {
            add_references(&mut engine, ReferenceValues::new())?;
            TRUST_CLAIMS
        }
        Kind::Resource => ALLOW,
    };
    engine.set_input(Value::new_object());
    // Values cannot be judged without an input; that the rule exists can. A policy may well fail on an empty input.
    match engine.eval_rule(rule.into()) {
        Err(e) if e.to_string().contains("not a valid rule path") => Err(PolicyError::Invalid(format!("it does not define {rule}"))),
        _ => Ok(()),
    }
}

/// Appraises: `data.policy.trust_claims` over the claims, with `query_reference_value(id)`.
pub fn trust_claims(rego: &str, input: &serde_json::Value, references: ReferenceValues) -> Result<Appraised, PolicyError> {
    let mut engine = load(rego)?;
    let queried = add_references(&mut engine, references)?;
    engine.set_input(Value::from(input.clone()));
    let answer = eval(&mut engine, TRUST_CLAIMS)?;
    let claims = serde_json::from_value(answer.clone())
        .map_err(|_| PolicyError::Answer { expected: "an object of AR4SI names to whole numbers", found: brief(&answer) })?;
    let queried = queried.lock().unwrap_or_else(PoisonError::into_inner).clone();
    Ok(Appraised { claims, queried })
}

/// Decides: `data.policy.allow` over a token's claims and the request.
pub fn allows(rego: &str, input: &serde_json::Value, data: &serde_json::Value) -> Result<bool, PolicyError> {
    let mut engine = load(rego)?;
    engine.add_data(Value::from(data.clone())).map_err(|e| PolicyError::Failed(e.to_string()))?;
    engine.set_input(Value::from(input.clone()));
    match eval(&mut engine, ALLOW)? {
        serde_json::Value::Bool(answer) => Ok(answer),
        other => Err(PolicyError::Answer { expected: "true or false", found: brief(&other) }),
    }
}

/// What a policy compared, for the audit log: each reference value it asked for beside the claim that is named like it.
/// `claims` are the TEE's, `input` is all that the policy saw.
pub fn comparisons(queried: &ReferenceValues, claims: &serde_json::Value, input: &serde_json::Value) -> Vec<Comparison> {
    queried
        .iter()
        .map(|(id, expected)| Comparison { claim: id.clone(), expected: expected.clone(), found: claim_for(id, claims, input) })
        .collect()
}

/// Reference value ids of the default policies and the claims they are about.
fn claim_for(id: &str, claims: &serde_json::Value, input: &serde_json::Value) -> serde_json::Value {
    let of_initdata = |pointer| input.pointer(pointer).cloned().unwrap_or_default();
    let name = match id {
        "init_data" => return of_initdata("/init_data"),
        "policy_trusted_keys" => return of_initdata("/init_data_claims/kata-cc.toml/policy/trusted_keys"),
        "policy_min_version" => return of_initdata("/init_data_claims/policy.dsse.json/version"),
        "snp_launch_measurement" => "measurement",
        "snp_bootloader" => "reported_tcb_bootloader",
        "snp_tee_svn" => "reported_tcb_tee",
        "snp_snp_svn" => "reported_tcb_snp",
        "snp_microcode" => "reported_tcb_microcode",
        other => other.split_once('_').map_or(other, |(_, name)| name),
    };
    claims.get(name).cloned().unwrap_or(serde_json::Value::Null)
}

fn load(rego: &str) -> Result<Engine, PolicyError> {
    if rego.len() > MAX_POLICY {
        return Err(PolicyError::Invalid(format!("{} bytes, expected at most {MAX_POLICY}", rego.len())));
    }
    let mut engine = Engine::new();
    engine.set_execution_timer_config(ExecutionTimerConfig { limit: TIME_LIMIT, check_interval: CHECK_INTERVAL });
    let package = engine.add_policy("policy.rego".into(), rego.into()).map_err(|e| PolicyError::Invalid(e.to_string()))?;
    if package != "data.policy" {
        return Err(PolicyError::Invalid(format!("package {package}, expected `package policy`")));
    }
    Ok(engine)
}

fn add_references(engine: &mut Engine, references: ReferenceValues) -> Result<Arc<Mutex<ReferenceValues>>, PolicyError> {
    let queried = Arc::new(Mutex::new(ReferenceValues::new()));
    let log = Arc::clone(&queried);
    let references = Arc::new(references);
    let extension = move |arguments: Vec<Value>| -> anyhow::Result<Value> {
        let id = arguments.first().map(Value::as_string).transpose()?.map(ToString::to_string).unwrap_or_default();
        // Nothing registered is an empty list: in it, nothing is found.
        let value = references.get(&id).cloned().unwrap_or_else(|| serde_json::Value::Array(Vec::new()));
        log.lock().unwrap_or_else(PoisonError::into_inner).insert(id, value.clone());
        Ok(Value::from(value))
    };
    engine.add_extension("query_reference_value".into(), 1, Box::new(extension)).map_err(|e| PolicyError::Failed(e.to_string()))?;
    Ok(queried)
}

fn eval(engine: &mut Engine, rule: &str) -> Result<serde_json::Value, PolicyError> {
    let value = engine.eval_rule(rule.into()).map_err(|e| PolicyError::Failed(e.to_string()))?;
    if value == Value::Undefined {
        return Err(PolicyError::Answer { expected: "a value", found: format!("nothing for {rule}") });
    }
    serde_json::to_value(&value).map_err(|e| PolicyError::Failed(e.to_string()))
}

fn brief(value: &serde_json::Value) -> String {
    value.to_string().chars().take(100).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const ATTESTATION: &str = include_str!("../policies/default-attestation.rego");
    const SIMULATED: &str = include_str!("../policies/simulated-attestation.rego");
    const RESOURCE: &str = include_str!("../policies/default-resource.rego");

    fn references() -> ReferenceValues {
        ReferenceValues::from([
            ("snp_launch_measurement".into(), json!(["aa", "bb"])),
            ("snp_bootloader".into(), json!([4])),
            ("snp_tee_svn".into(), json!([0])),
            ("snp_snp_svn".into(), json!([20])),
            ("snp_microcode".into(), json!([200])),
            ("init_data".into(), json!(["1d"])),
        ])
    }

    fn genuine() -> serde_json::Value {
        json!({"init_data": "1d", "snp": {
            "simulated": false, "measurement": "bb", "policy_debug_allowed": false, "policy_migrate_ma": false,
            "reported_tcb_bootloader": 4, "reported_tcb_tee": 0, "reported_tcb_snp": 24, "reported_tcb_microcode": 219,
        }})
    }

    fn with(key: &str, value: serde_json::Value) -> serde_json::Value {
        let mut input = genuine();
        input["snp"][key] = value;
        input
    }

    #[track_caller]
    fn claim(rego: &str, input: &serde_json::Value, references: ReferenceValues, name: &str) -> i64 {
        trust_claims(rego, input, references).unwrap().claims[name]
    }

    #[test]
    fn default_attestation_affirms_a_known_guest_on_patched_hardware() {
        let claims = trust_claims(ATTESTATION, &genuine(), references()).unwrap().claims;
        assert_eq!((claims["executables"], claims["hardware"], claims["configuration"]), (3, 2, 3));
        assert_eq!(claims.len(), 8);
    }

    #[test]
    fn default_attestation_without_reference_values_affirms_nothing() {
        assert_eq!(claim(ATTESTATION, &genuine(), ReferenceValues::new(), "executables"), 33);
        assert_eq!(claim(ATTESTATION, &genuine(), ReferenceValues::new(), "hardware"), 97);
        assert_eq!(claim(ATTESTATION, &json!({}), references(), "configuration"), 36);
        assert_eq!(claim(ATTESTATION, &json!({}), references(), "hardware"), 97);
    }

    #[test]
    fn default_attestation_notices_each_deviation() {
        assert_eq!(claim(ATTESTATION, &with("measurement", json!("cc")), references(), "executables"), 33);
        for (key, value) in [
            ("reported_tcb_bootloader", json!(3)),
            ("reported_tcb_snp", json!(19)),
            ("reported_tcb_microcode", json!(199)),
            ("reported_tcb_microcode", json!("219")),
            ("reported_tcb_tee", serde_json::Value::Null),
        ] {
            assert_eq!(claim(ATTESTATION, &with(key, value), references(), "hardware"), 97, "{key}");
        }
        assert_eq!(claim(ATTESTATION, &with("policy_debug_allowed", json!(true)), references(), "configuration"), 97);
        assert_eq!(claim(ATTESTATION, &with("policy_migrate_ma", json!(true)), references(), "configuration"), 36);
    }

    #[test]
    fn default_attestation_wants_the_owners_initdata() {
        let mut other = genuine();
        other["init_data"] = json!("1e");
        for policy in [ATTESTATION, SIMULATED] {
            assert_eq!(claim(policy, &genuine(), references(), "configuration"), 3);
            assert_eq!(claim(policy, &other, references(), "configuration"), 36);
        }
    }

    /// Initdata that is not registered itself, but whose keys may be.
    fn owned(keys: serde_json::Value, version: serde_json::Value) -> serde_json::Value {
        let mut input = genuine();
        input["init_data"] = json!("1e");
        input["init_data_claims"] = json!({"kata-cc.toml": {"policy": {"trusted_keys": keys}}, "policy.dsse.json": {"version": version}});
        input
    }

    fn keyed(id: &str, value: serde_json::Value) -> ReferenceValues {
        let mut references = references();
        references.insert("policy_trusted_keys".into(), json!(["owner"]));
        references.insert(id.into(), value);
        references
    }

    #[test]
    fn default_attestation_takes_initdata_by_the_keys_that_sign_it() {
        let references = || keyed("policy_trusted_keys", json!(["owner"]));
        for policy in [ATTESTATION, SIMULATED] {
            assert_eq!(claim(policy, &owned(json!(["owner"]), json!(1)), references(), "configuration"), 3);
            for keys in [json!(["host"]), json!(["owner", "host"]), json!([]), json!("owner"), serde_json::Value::Null] {
                assert_eq!(claim(policy, &owned(keys.clone(), json!(1)), references(), "configuration"), 36, "{keys}");
            }
            // No policy whose signature covers the other documents: the keys say nothing about them.
            let mut unbound = owned(json!(["owner"]), json!(1));
            unbound["init_data_claims"].as_object_mut().unwrap().remove("policy.dsse.json");
            assert_eq!(claim(policy, &unbound, references(), "configuration"), 36);
        }
    }

    #[test]
    fn default_attestation_wants_the_lowest_policy_version_that_is_registered() {
        for policy in [ATTESTATION, SIMULATED] {
            let configuration = |floor: serde_json::Value, version: serde_json::Value| {
                claim(policy, &owned(json!(["owner"]), version), keyed("policy_min_version", floor), "configuration")
            };
            for (floor, version) in [(json!([3]), 3), (json!([3]), 4), (json!(3), 3), (json!([1, 3]), 3)] {
                assert_eq!(configuration(floor.clone(), json!(version)), 3, "{floor} {version}");
            }
            for (floor, version) in [
                (json!([3]), json!(2)),
                (json!(3), json!(2)),
                // Of several floors, all hold.
                (json!([1, 3]), json!(2)),
                (json!([3]), json!("3")),
                (json!([3]), serde_json::Value::Null),
                // A floor that is no number, such as one registered without --as-json, is not ignored.
                (json!(["3"]), json!(9)),
                (json!("3"), json!(9)),
                (json!([true]), json!(9)),
            ] {
                assert_eq!(configuration(floor.clone(), version.clone()), 36, "{floor} {version}");
            }
            // Initdata that is registered itself is wanted as it is.
            let mut itself = owned(json!(["owner"]), json!(2));
            itself["init_data"] = json!("1d");
            assert_eq!(claim(policy, &itself, keyed("policy_min_version", json!([3])), "configuration"), 3);
        }
    }

    #[test]
    fn default_attestation_never_affirms_a_simulation() {
        for value in [json!(true), serde_json::Value::Null, json!("no")] {
            assert_eq!(claim(ATTESTATION, &with("simulated", value.clone()), references(), "hardware"), 97);
            assert_eq!(claim(ATTESTATION, &with("simulated", value), references(), "executables"), 33);
        }
    }

    #[test]
    fn simulated_attestation_still_wants_the_measurement() {
        let input = with("simulated", json!(true));
        assert_eq!(claim(SIMULATED, &input, references(), "hardware"), 2);
        assert_eq!(claim(SIMULATED, &input, references(), "executables"), 3);
        assert_eq!(claim(SIMULATED, &input, ReferenceValues::new(), "executables"), 33);
        assert_eq!(claim(SIMULATED, &genuine(), references(), "hardware"), 97);
    }

    #[test]
    fn audit_shows_what_was_expected_and_found() {
        let appraised = trust_claims(ATTESTATION, &with("measurement", json!("cc")), references()).unwrap();
        let input = with("measurement", json!("cc"));
        let shown = comparisons(&appraised.queried, &input["snp"], &input);
        assert!(shown.contains(&Comparison { claim: "init_data".into(), expected: json!(["1d"]), found: json!("1d") }));
        assert!(shown.contains(&Comparison { claim: "snp_launch_measurement".into(), expected: json!(["aa", "bb"]), found: json!("cc") }));
    }

    fn token(status: &str, executables: i64) -> serde_json::Value {
        json!({"submods": {"cpu0": {"ear.status": status, "ear.trustworthiness-vector": {"executables": executables}}}})
    }

    #[test]
    fn default_resource_policy_wants_affirming_and_measured() {
        let data = json!({"plugin": "resource", "resource-path": ["a", "b", "c"], "query": {}});
        assert!(allows(RESOURCE, &token("affirming", 3), &data).unwrap());
        assert!(!allows(RESOURCE, &token("warning", 3), &data).unwrap());
        assert!(!allows(RESOURCE, &token("contraindicated", 3), &data).unwrap());
        assert!(!allows(RESOURCE, &token("affirming", 0), &data).unwrap());
        assert!(!allows(RESOURCE, &token("affirming", 33), &data).unwrap());
        assert!(!allows(RESOURCE, &json!({}), &data).unwrap());
        assert!(!allows(RESOURCE, &json!({"submods": {}}), &data).unwrap());
        assert!(!allows(RESOURCE, &token("affirming", 3), &json!({"plugin": "other"})).unwrap());
    }

    #[test]
    fn refuses_what_is_not_a_policy() {
        assert!(check(Kind::Attestation, ATTESTATION).is_ok());
        assert!(check(Kind::Attestation, SIMULATED).is_ok());
        assert!(check(Kind::Resource, RESOURCE).is_ok());
        assert!(check(Kind::Resource, "package policy\nallow {").is_err());
        assert!(check(Kind::Resource, "package other\nallow := true").is_err());
        assert!(check(Kind::Resource, "package policy\nalow := true").is_err());
        assert!(check(Kind::Attestation, RESOURCE).is_err());
        assert!(check(Kind::Resource, &"#".repeat(MAX_POLICY + 1)).is_err());
    }

    #[test]
    fn an_answer_of_another_kind_is_an_error() {
        assert!(allows("package policy\nallow := \"yes\"", &json!({}), &json!({})).is_err());
        assert!(allows("package policy\nallow if input.x", &json!({}), &json!({})).is_err());
        assert!(trust_claims("package policy\ntrust_claims := {\"hardware\": \"2\"}", &json!({}), ReferenceValues::new()).is_err());
        assert!(trust_claims("package policy\ntrust_claims := [2]", &json!({}), ReferenceValues::new()).is_err());
    }

    #[test]
    fn a_policy_that_does_not_end_is_stopped() {
        let endless = "package policy\nimport rego.v1\nallow if { some i in numbers.range(1, 3000); some j in numbers.range(1, 3000); some k in numbers.range(1, 3000); i * j * k < 0 }";
        let started = std::time::Instant::now();
        assert!(allows(endless, &json!({}), &json!({})).is_err());
        assert!(started.elapsed() < TIME_LIMIT * 10);
    }
}
