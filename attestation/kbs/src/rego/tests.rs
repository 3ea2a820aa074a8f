//! Tests of the engine, and of the policies that come with the broker: each claim they look at, bent.

use super::*;
use serde_json::json;

const ATTESTATION: &str = include_str!("../../policies/default-attestation.rego");
const SIMULATED: &str = include_str!("../../policies/simulated-attestation.rego");
const SAMPLE: &str = include_str!("../../policies/sample-attestation.rego");
const RESOURCE: &str = include_str!("../../policies/default-resource.rego");

#[test]
fn long_lists_are_shown_in_part_with_what_was_found() {
    let long: Vec<_> = (0..100).map(serde_json::Value::from).collect();
    let (queried, long) = (["x".to_owned()].into(), Lookup::from(ReferenceValues::from([("x".to_owned(), long.into())])));
    let of = |found: i64| comparisons(&queried, &long, &json!({"x": found}), &json!({}))[0].expected.clone();
    assert_eq!(of(77), json!([77, 0, 1, 2, 3, 4, 5, 6, "and 92 more"]));
    assert_eq!(of(-1), json!([0, 1, 2, 3, 4, 5, 6, 7, "and 92 more"]));
    let short = Lookup::from(ReferenceValues::from([("x".to_owned(), json!([1, 2, 3, 4, 5, 6, 7, 8]))]));
    assert_eq!(comparisons(&queried, &short, &json!({"x": 8}), &json!({}))[0].expected, short.values["x"]);
    assert_eq!(comparisons(&queried, &Lookup::default(), &json!({"x": 8}), &json!({}))[0].expected, json!([]));
}

fn trust_claims(rego: &str, input: &serde_json::Value, references: ReferenceValues) -> Result<Appraised, PolicyError> {
    Policy::read(Kind::Attestation, rego)?.trust_claims(input, &Arc::new(references.into()))
}

/// A request for `a/b/c`.
fn request<'a>(plugin: &'a str, query: &'a serde_json::Map<String, serde_json::Value>) -> Request<'a> {
    Request { plugin, resource_path: ["a", "b", "c"], query }
}

fn allows(rego: &str, token: &serde_json::Value, plugin: &str) -> Result<bool, PolicyError> {
    Policy::read(Kind::Resource, rego)?.allows(&token.clone().into(), request(plugin, &serde_json::Map::new()))
}

fn check(kind: Kind, rego: &str) -> Result<(), PolicyError> {
    Policy::read(kind, rego).map(drop)
}

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
fn default_attestation_affirms_no_kind_that_it_has_no_rules_for() {
    // Claims of a guest that would be affirmed as SNP, under the names of kinds that share them.
    for kind in ["az-snp-vtpm", "az-tdx-vtpm", "tpm", "cca", "csv", "nvidia"] {
        let mut input = genuine();
        input[kind] = input["snp"].take();
        input.as_object_mut().unwrap().remove("snp");
        let claims = trust_claims(ATTESTATION, &input, references()).unwrap().claims;
        assert_eq!((claims["executables"], claims["hardware"]), (33, 97), "{kind}");
        assert_ne!(claims["configuration"], 2, "{kind}");
    }
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
    let shown = comparisons(&appraised.queried, &references().into(), &input["snp"], &input);
    assert!(shown.contains(&Comparison { claim: "init_data".into(), expected: json!(["1d"]), found: json!("1d") }));
    assert!(shown.contains(&Comparison { claim: "snp_launch_measurement".into(), expected: json!(["aa", "bb"]), found: json!("cc") }));
}

fn td_references() -> ReferenceValues {
    ReferenceValues::from([
        ("mr_td".into(), json!(["aa", "ab"])),
        ("rtmr_0".into(), json!(["ba"])),
        ("rtmr_1".into(), json!(["ca", "cb"])),
        ("rtmr_2".into(), json!(["da"])),
        ("xfam".into(), json!(["e702060000000000"])),
        ("init_data".into(), json!(["1d"])),
    ])
}

fn genuine_td() -> serde_json::Value {
    json!({"init_data": "1d", "tdx": {
        "simulated": false, "mr_td": "ab", "rtmr_0": "ba", "rtmr_1": "ca", "rtmr_2": "da", "rtmr_3": "00".repeat(48),
        "xfam": "e702060000000000", "mr_seam": "ea", "mr_signer_seam": "00".repeat(48), "seam_attributes": "00".repeat(8),
        "mr_owner": "00".repeat(48), "mr_owner_config": "00".repeat(48), "mr_service_td": null, "cur_service_td_hash": null,
        "tcb_status": "UpToDate", "collateral_expiration_status": "0", "advisory_ids": [],
        "td_attributes": {"debug": false, "septve_disable": true, "migratable": false},
    }})
}

/// A TD with another value of one claim, given as a JSON pointer below it.
fn td_with(pointer: &str, value: serde_json::Value) -> serde_json::Value {
    let mut input = genuine_td();
    *input["tdx"].pointer_mut(pointer).unwrap() = value;
    input
}

#[test]
fn default_attestation_affirms_a_known_td_on_an_up_to_date_platform() {
    let claims = trust_claims(ATTESTATION, &genuine_td(), td_references()).unwrap().claims;
    assert_eq!((claims["executables"], claims["hardware"], claims["configuration"]), (3, 2, 3));
    for service in ["/mr_service_td", "/cur_service_td_hash"] {
        assert_eq!(claim(ATTESTATION, &td_with(service, json!("00".repeat(48))), td_references(), "configuration"), 3);
    }
}

#[test]
fn default_attestation_affirms_no_td_without_each_reference_value() {
    for (id, name, expected) in [
        ("mr_td", "executables", 33),
        ("rtmr_1", "executables", 33),
        ("rtmr_2", "executables", 33),
        ("rtmr_0", "configuration", 36),
        ("xfam", "configuration", 36),
        ("init_data", "configuration", 36),
    ] {
        let mut references = td_references();
        references.remove(id);
        assert_eq!(claim(ATTESTATION, &genuine_td(), references, name), expected, "{id}");
    }
}

#[test]
fn ac_54_default_attestation_notices_each_deviation_of_a_td() {
    let zeros = |count: usize| json!("00".repeat(count).replacen('0', "1", 1));
    for (pointer, value, name, expected) in [
        ("/mr_td", json!("ac"), "executables", 33),
        ("/rtmr_1", json!("cc"), "executables", 33),
        ("/rtmr_2", json!("db"), "executables", 33),
        ("/simulated", json!(true), "executables", 33),
        ("/simulated", json!(true), "hardware", 97),
        ("/simulated", serde_json::Value::Null, "hardware", 97),
        ("/tcb_status", json!("OutOfDate"), "hardware", 97),
        ("/tcb_status", json!("ConfigurationNeeded"), "hardware", 97),
        ("/tcb_status", json!("SWHardeningNeeded"), "hardware", 97),
        ("/tcb_status", json!("Revoked"), "hardware", 97),
        ("/tcb_status", serde_json::Value::Null, "hardware", 97),
        ("/collateral_expiration_status", json!("1"), "hardware", 97),
        ("/rtmr_0", json!("bb"), "configuration", 36),
        ("/xfam", json!("e742060000000000"), "configuration", 36),
        ("/td_attributes/debug", json!(true), "configuration", 97),
        ("/td_attributes/septve_disable", json!(false), "configuration", 36),
        ("/td_attributes/migratable", json!(true), "configuration", 36),
        ("/seam_attributes", zeros(8), "configuration", 36),
        ("/mr_signer_seam", zeros(48), "configuration", 36),
        ("/mr_owner", zeros(48), "configuration", 36),
        ("/mr_owner_config", zeros(48), "configuration", 36),
        ("/mr_service_td", zeros(48), "configuration", 36),
        ("/cur_service_td_hash", zeros(48), "configuration", 36),
    ] {
        assert_eq!(claim(ATTESTATION, &td_with(pointer, value.clone()), td_references(), name), expected, "{pointer} {value}");
    }
    let mut other = genuine_td();
    other["init_data"] = json!("1e");
    assert_eq!(claim(ATTESTATION, &other, td_references(), "configuration"), 36);
}

#[test]
fn default_attestation_takes_the_tcb_statuses_that_are_registered() {
    let with = |statuses| {
        let mut references = td_references();
        references.insert("tdx_tcb_status".into(), statuses);
        references
    };
    let hardened = td_with("/tcb_status", json!("SWHardeningNeeded"));
    let both = json!(["UpToDate", "SWHardeningNeeded"]);
    assert_eq!(claim(ATTESTATION, &hardened, with(both.clone()), "hardware"), 2);
    assert_eq!(claim(ATTESTATION, &genuine_td(), with(both.clone()), "hardware"), 2);
    assert_eq!(claim(ATTESTATION, &td_with("/tcb_status", json!("OutOfDate")), with(both), "hardware"), 97);
    // What replaces the default replaces it whole.
    assert_eq!(claim(ATTESTATION, &genuine_td(), with(json!(["SWHardeningNeeded"])), "hardware"), 97);
    assert_eq!(claim(ATTESTATION, &hardened, with(json!("SWHardeningNeeded")), "hardware"), 97);
    let revoked = td_with("/tcb_status", json!("Revoked"));
    assert_eq!(claim(ATTESTATION, &revoked, with(json!(["Revoked"])), "hardware"), 97);
}

#[test]
fn default_attestation_takes_the_tdx_modules_that_are_registered() {
    for (modules, expected) in [(json!(["ea", "eb"]), 2), (json!(["eb"]), 97), (json!([]), 2), (json!("ea"), 97)] {
        let mut references = td_references();
        references.insert("mr_seam".into(), modules.clone());
        assert_eq!(claim(ATTESTATION, &genuine_td(), references, "hardware"), expected, "{modules}");
    }
}

#[test]
fn simulated_attestation_still_wants_the_tds_registers() {
    let input = td_with("/simulated", json!(true));
    assert_eq!(claim(SIMULATED, &input, td_references(), "hardware"), 2);
    assert_eq!(claim(SIMULATED, &input, td_references(), "executables"), 3);
    assert_eq!(claim(SIMULATED, &input, td_references(), "configuration"), 3);
    assert_eq!(claim(SIMULATED, &input, ReferenceValues::new(), "executables"), 33);
    assert_eq!(claim(SIMULATED, &genuine_td(), td_references(), "hardware"), 97);
}

#[test]
fn audit_shows_what_was_expected_and_found_of_a_td() {
    let input = td_with("/mr_td", json!("ac"));
    let appraised = trust_claims(ATTESTATION, &input, td_references()).unwrap();
    let shown = comparisons(&appraised.queried, &td_references().into(), &input["tdx"], &input);
    for (claim, expected, found) in [
        ("mr_td", json!(["aa", "ab"]), json!("ac")),
        ("rtmr_0", json!(["ba"]), json!("ba")),
        ("rtmr_2", json!(["da"]), json!("da")),
        ("xfam", json!(["e702060000000000"]), json!("e702060000000000")),
        ("tdx_tcb_status", json!([]), json!("UpToDate")),
        ("mr_seam", json!([]), json!("ea")),
    ] {
        assert!(shown.contains(&Comparison { claim: claim.into(), expected, found }), "{claim}: {shown:?}");
    }
    // Of other evidence nothing is shown that is a TD's.
    let queried = trust_claims(ATTESTATION, &genuine(), references()).unwrap().queried;
    assert!(["mr_td", "mr_seam", "rtmr_0", "tdx_tcb_status"].iter().all(|id| !queried.contains(*id)), "{queried:?}");
}

fn se_references() -> ReferenceValues {
    ReferenceValues::from([("se_tag".into(), json!(["a0", "a1"])), ("init_data".into(), json!(["1d"]))])
}

fn genuine_se() -> serde_json::Value {
    json!({"init_data": "1d", "se": {"simulated": false, "tag": "a1", "image_phkh": "b0", "attestation_phkh": "b0"}})
}

fn se_with(name: &str, value: serde_json::Value) -> serde_json::Value {
    let mut input = genuine_se();
    input["se"][name] = value;
    input
}

#[test]
fn default_attestation_affirms_a_known_image_on_a_machine_of_ibm() {
    let claims = trust_claims(ATTESTATION, &genuine_se(), se_references()).unwrap().claims;
    assert_eq!((claims["executables"], claims["hardware"], claims["configuration"]), (3, 2, 3));
    for (id, name, expected) in [("se_tag", "executables", 33), ("init_data", "configuration", 36)] {
        let mut references = se_references();
        references.remove(id);
        assert_eq!(claim(ATTESTATION, &genuine_se(), references, name), expected, "{id}");
    }
}

#[test]
fn default_attestation_notices_each_deviation_of_secure_execution() {
    for (name, value, of, expected) in [
        ("tag", json!("a2"), "executables", 33),
        ("tag", serde_json::Value::Null, "executables", 33),
        ("simulated", json!(true), "executables", 33),
        ("simulated", json!(true), "hardware", 97),
        ("simulated", json!(true), "configuration", 36),
        ("simulated", serde_json::Value::Null, "hardware", 97),
    ] {
        assert_eq!(claim(ATTESTATION, &se_with(name, value.clone()), se_references(), of), expected, "{name} {value}");
    }
    let mut other = genuine_se();
    other["init_data"] = json!("1e");
    assert_eq!(claim(ATTESTATION, &other, se_references(), "configuration"), 36);
    // The simulation's policy is about SNP and TDX.
    assert_eq!(claim(SIMULATED, &se_with("simulated", json!(true)), se_references(), "hardware"), 97);
}

#[test]
fn default_attestation_takes_the_machines_that_are_registered() {
    for (machines, expected) in [(json!(["b0", "b1"]), 2), (json!(["b1"]), 97), (json!([]), 2), (json!("b0"), 97)] {
        let mut references = se_references();
        references.insert("se_image_phkh".into(), machines.clone());
        assert_eq!(claim(ATTESTATION, &genuine_se(), references, "hardware"), expected, "{machines}");
    }
}

#[test]
fn evidence_that_nobody_signed_is_affirmed_by_the_policy_for_it_alone() {
    let input = json!({"init_data": "1d", "sample": {"simulated": true, "svn": "1"}});
    assert_eq!(claim(SAMPLE, &input, ReferenceValues::new(), "executables"), 2);
    for other in [genuine(), genuine_td(), genuine_se()] {
        assert_eq!(claim(SAMPLE, &other, references(), "executables"), 97);
    }
    for policy in [ATTESTATION, SIMULATED] {
        assert_eq!(claim(policy, &input, references(), "hardware"), 97);
        assert_eq!(claim(policy, &input, references(), "executables"), 33);
    }
}

fn token(status: &str, executables: i64) -> serde_json::Value {
    json!({"submods": {"cpu0": {"ear.status": status, "ear.trustworthiness-vector": {"executables": executables}}}})
}

#[test]
fn default_resource_policy_wants_affirming_and_measured() {
    assert!(allows(RESOURCE, &token("affirming", 3), "resource").unwrap());
    assert!(!allows(RESOURCE, &token("warning", 3), "resource").unwrap());
    assert!(!allows(RESOURCE, &token("contraindicated", 3), "resource").unwrap());
    assert!(!allows(RESOURCE, &token("affirming", 0), "resource").unwrap());
    assert!(!allows(RESOURCE, &token("affirming", 33), "resource").unwrap());
    assert!(!allows(RESOURCE, &json!({}), "resource").unwrap());
    assert!(!allows(RESOURCE, &json!({"submods": {}}), "resource").unwrap());
    assert!(!allows(RESOURCE, &token("affirming", 3), "other").unwrap());
}

#[test]
fn a_resource_policy_sees_the_token_and_the_request_and_nothing_else() {
    let query = serde_json::Map::from_iter([("version".to_owned(), json!("2"))]);
    let of = |body: &str| {
        let policy = format!("package policy\nimport rego.v1\ndefault allow := false\nallow if {{ {body} }}");
        Policy::read(Kind::Resource, &policy).unwrap().allows(&json!({"iss": "x"}).into(), request("resource", &query))
    };
    for right in [
        r#"data.plugin == "resource""#,
        r#"data["resource-path"] == ["a", "b", "c"]"#,
        r#"data.query == {"version": "2"}"#,
        r#"input == {"iss": "x"}"#,
        r#"input.iss == "y" with input.iss as "y""#,
    ] {
        assert!(of(right).unwrap(), "{right}");
    }
    for wrong in [r#"data.plugin == "other""#, r#"data["resource-path"][0] == "b""#, "input.data", "input.token", "data.token"] {
        assert!(!of(wrong).unwrap(), "{wrong}");
    }
    let twice = "package policy\nimport rego.v1\nallow := true\nallow := false if input.iss";
    assert!(matches!(allows(twice, &json!({"iss": "x"}), "resource"), Err(PolicyError::Failed(_))));
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
    assert!(allows("package policy\nallow := \"yes\"", &json!({}), "resource").is_err());
    assert!(allows("package policy\nallow if input.x", &json!({}), "resource").is_err());
    assert!(trust_claims("package policy\ntrust_claims := {\"hardware\": \"2\"}", &json!({}), ReferenceValues::new()).is_err());
    assert!(trust_claims("package policy\ntrust_claims := [2]", &json!({}), ReferenceValues::new()).is_err());
}

#[test]
fn an_evaluation_leaves_nothing_for_the_next() {
    let policy = Policy::read(Kind::Attestation, ATTESTATION).unwrap();
    let executables = |references| policy.trust_claims(&genuine(), &Arc::new(Lookup::from(references))).unwrap().claims["executables"];
    assert_eq!(executables(references()), 3);
    assert_eq!(executables(ReferenceValues::new()), 33);
    let policy = Policy::read(Kind::Resource, RESOURCE).unwrap();
    let query = serde_json::Map::new();
    let of = |plugin| policy.allows(&token("affirming", 3).into(), request(plugin, &query)).unwrap();
    assert_eq!([of("resource"), of("other"), of("resource")], [true, false, true]);
}

#[test]
fn policies_are_known_by_kind_and_text() {
    let policies = Policies::default();
    let allow = |value: usize| format!("package policy\nallow := {value} > 0\ntrust_claims := {{}}");
    let first = policies.get(Kind::Resource, &allow(0)).unwrap();
    assert!(Arc::ptr_eq(&first, &policies.get(Kind::Resource, &allow(0)).unwrap()));
    assert!(!Arc::ptr_eq(&first, &policies.get(Kind::Attestation, &allow(0)).unwrap()));
    let query = serde_json::Map::new();
    let allowed = |policy: Arc<Policy>| policy.allows(&Value::new_object(), request("resource", &query)).unwrap();
    assert!(!allowed(Arc::clone(&first)));
    assert!(allowed(policies.get(Kind::Resource, &allow(1)).unwrap()));
    for other in 2..MAX_READ {
        policies.get(Kind::Resource, &allow(other)).unwrap();
    }
    assert!(!Arc::ptr_eq(&first, &policies.get(Kind::Resource, &allow(0)).unwrap()), "the one used longest ago goes first");
    assert_eq!(policies.read.lock().unwrap().len(), MAX_READ);
    assert!(policies.get(Kind::Resource, "package policy").is_err());
}

#[test]
fn quick_is_a_policy_that_was_read_and_has_answered_quickly() {
    let policies = Policies::default();
    assert!(policies.quick(Kind::Resource, RESOURCE).is_none(), "reading it takes long");
    let policy = policies.get(Kind::Resource, RESOURCE).unwrap();
    assert!(policies.quick(Kind::Resource, RESOURCE).is_none(), "nobody knows yet");
    // Also where the tests run so many at once that this takes long now and then.
    assert!((0..10_000).any(|_| {
        let _ = policy.allows(&Value::new_object(), request("resource", &serde_json::Map::new()));
        policies.quick(Kind::Resource, RESOURCE).is_some()
    }));
    let slow = "package policy\nimport rego.v1\nallow if { some i in numbers.range(1, 3000); some j in numbers.range(1, 3000); i * j < 0 }";
    let policy = policies.get(Kind::Resource, slow).unwrap();
    let _ = policy.allows(&Value::new_object(), request("resource", &serde_json::Map::new()));
    assert!(policies.quick(Kind::Resource, slow).is_none());
}

#[test]
fn a_policy_that_does_not_end_is_stopped() {
    let endless = "package policy\nimport rego.v1\nallow if { some i in numbers.range(1, 3000); some j in numbers.range(1, 3000); some k in numbers.range(1, 3000); i * j * k < 0 }";
    let started = std::time::Instant::now();
    assert!(allows(endless, &json!({}), "resource").is_err());
    assert!(started.elapsed() < TIME_LIMIT * 10);
}

#[test]
fn what_a_refused_guest_may_know_is_the_resource_policys_to_say() {
    let told = |rule: &str, kind: &str| {
        let policy = format!("package policy\nimport rego.v1\ndefault allow := false\n{rule}\n");
        let query = serde_json::Map::new();
        let request = Request { plugin: "resource", resource_path: ["a", kind, "c"], query: &query };
        Policy::read(Kind::Resource, &policy).unwrap().disclosure(&token("warning", 33).into(), request).map_err(|e| e.to_string())
    };
    assert_eq!(told("", "b"), Ok(Disclosure::Names));
    for (rule, expected) in [("nothing", Disclosure::Nothing), ("names", Disclosure::Names), ("values", Disclosure::Values)] {
        assert_eq!(told(&format!("disclose := \"{rule}\""), "b"), Ok(expected));
    }
    let by_path = "disclose := \"values\" if data[\"resource-path\"][1] == \"test\"";
    assert_eq!(told(by_path, "test"), Ok(Disclosure::Values));
    // Elsewhere the rule gives no answer, which is not the default.
    assert!(told(by_path, "b").unwrap_err().contains("data.policy.disclose"));
    for wrong in ["disclose := true", "disclose := \"everything\"", "disclose := [\"names\"]"] {
        assert!(told(wrong, "b").unwrap_err().contains("\"values\""), "{wrong}");
    }
}
