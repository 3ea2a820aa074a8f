//! Who may do what over HTTP: 401 for strangers, 403 for those whose role is another one.

#![allow(clippy::unwrap_used)] // helpers of tests: to panic is to fail

mod broker;
mod http;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use broker::{TestBroker, body, refused};
use http::call;
use kata_cc_kbs::admin::Admins;
use serde_json::json;

#[test]
fn a_role_does_what_it_is_for_and_nothing_else() {
    let broker = TestBroker::start().ready();
    let status = |role: &str, method: &str, path: &str, body: &[u8]| broker.as_role(role, method, path, body).status;
    let values = json!({"id": "x", "values": ["1"]}).to_string();
    let policy = json!({"policy": "cGFja2FnZSBwb2xpY3kKYWxsb3cgOj0gZmFsc2U"}).to_string();
    for (method, path, body, auditor, provisioner) in [
        ("POST", "/kbs/v0/resource/default/key/2", "secret", 403, 200),
        ("DELETE", "/kbs/v0/resource/default/key/2", "", 403, 200),
        ("POST", "/kbs/v0/reference-value", values.as_str(), 403, 200),
        ("GET", "/kbs/v0/reference-value/x", "", 200, 200),
        ("GET", "/kbs/v0/resource-policy", "", 200, 403),
        ("POST", "/kbs/v0/resource-policy", policy.as_str(), 403, 403),
        ("GET", "/kbs/v0/attestation-policy/default_cpu", "", 200, 403),
        ("GET", "/kbs/v0/audit", "", 200, 403),
    ] {
        assert_eq!(status("auditor", method, path, body.as_bytes()), auditor, "auditor {method} {path}");
        assert_eq!(status("provisioner", method, path, body.as_bytes()), provisioner, "provisioner {method} {path}");
        assert_eq!(status("nobody", method, path, body.as_bytes()), 403, "nobody {method} {path}");
        assert_eq!(call(broker.address, method, path, &[], body.as_bytes()).status, 401, "a stranger {method} {path}");
    }
    refused(&broker.as_role("auditor", "DELETE", "/kbs/v0/resource/default/key/1", &[]), 403, "resource:delete");
}

#[test]
fn the_audit_log_says_which_administrator_it_was() {
    let broker = TestBroker::start().ready();
    assert_eq!(broker.as_role("provisioner", "POST", "/kbs/v0/resource/default/key/9", b"x").status, 200);
    let audit = broker.audit("limit=1");
    let by = audit[0]["by"].as_str().unwrap();
    assert!(by.starts_with("key ") && by.ends_with(" as provisioner"), "{by}");
}

#[test]
fn with_nobody_to_administer_it_nothing_is_served() {
    let broker = TestBroker::with(|parts| parts.admins = Admins::default());
    assert_eq!(broker.get("/healthz").status, 200);
    refused(&broker.get("/readyz"), 503, "administrator's key");
    for (method, path) in [("GET", "/kbs/v0/audit"), ("POST", "/kbs/v0/resource/a/b/c"), ("POST", "/kbs/v0/resource-policy")] {
        assert_eq!(broker.admin(method, path, b"x").status, 401, "{path}");
    }
}

#[test]
fn the_audit_log_is_asked_by_time_action_and_outcome() {
    let broker = TestBroker::start().ready();
    broker.attest();
    let sent = std::cell::RefCell::new(json!(null));
    let forged = broker.attest_with(|report_data| {
        let mut evidence = broker::evidence(report_data);
        evidence["attestation_report"]["guest_svn"] = json!(9);
        *sent.borrow_mut() = evidence.clone();
        evidence
    });
    refused(&forged.unwrap_err(), 401, "report-signature");
    let refusals = broker.audit("action=attest&allowed=false");
    assert_eq!(refusals.len(), 1);
    assert_eq!(refusals[0]["rule"], "report-signature");
    let digest = ring::digest::digest(&ring::digest::SHA256, sent.borrow().to_string().as_bytes());
    assert_eq!(refusals[0]["evidence_sha256"], hex::encode(digest), "the evidence can be found again");
    assert_eq!(broker.audit("action=attest&allowed=true").len(), 1);
    assert!(broker.audit(&format!("since={}", broker.now() + 1)).is_empty());
    let one = broker.admin("GET", &format!("/kbs/v0/audit/{}", refusals[0]["id"]), &[]);
    assert_eq!(serde_json::from_slice::<serde_json::Value>(&one.body).unwrap(), refusals[0]);
    refused(&broker.admin("GET", "/kbs/v0/audit/999999", &[]), 404, "999999");
    refused(&broker.admin("GET", "/kbs/v0/audit/x", &[]), 400, "number");
    for bad in ["limit=x", "action=dance", "allowed=maybe", "until=1"] {
        refused(&broker.admin("GET", &format!("/kbs/v0/audit?{bad}"), &[]), 400, "expected");
    }
}

#[test]
fn strangers_at_the_administrators_door_are_counted() {
    let broker = TestBroker::start().ready();
    for i in 0..20 {
        assert_eq!(broker.get(&format!("/kbs/v0/audit?limit={i}")).status, 401);
    }
    let seen = broker.audit("action=admin-refused");
    assert_eq!((seen.len(), &seen[0]["times"]), (1, &json!(20)));
}

#[test]
fn what_a_refused_guest_is_told_is_the_resource_policys_to_say() {
    let broker = TestBroker::start().ready();
    // Evidence that the default policy contraindicates.
    assert_eq!(broker.admin("DELETE", "/kbs/v0/attestation-policy/default_cpu", &[]).status, 200);
    let attested = broker.attest();
    let told = |disclose: &str| {
        let policy = format!("package policy\nimport rego.v1\ndefault allow := false\n{disclose}\n");
        let message = json!({"policy": URL_SAFE_NO_PAD.encode(policy)}).to_string();
        assert_eq!(broker.admin("POST", "/kbs/v0/resource-policy", message.as_bytes()).status, 200);
        let response = broker.send(&attested.get_resource(&"default/key/1".parse().unwrap()));
        assert_eq!(response.status, 403);
        body(&response)
    };
    let names = told("");
    assert!(names.contains("cpu0/hardware contraindicated") && !names.contains("97"), "{names}");
    assert!(told("disclose := \"values\"").contains("cpu0/hardware contraindicated (97)"));
    let nothing = told("disclose := \"nothing\"");
    assert!(nothing.contains("default/key/1") && !nothing.contains("cpu0"), "{nothing}");
    // A rule that is wrong discloses nothing, and the administrator sees why.
    assert!(!told("disclose := \"all\"").contains("cpu0"));
    let audit = broker.audit("action=read-resource");
    assert!(audit[0]["detail"].as_str().unwrap().contains("data.policy.disclose"), "{}", audit[0]);
}
