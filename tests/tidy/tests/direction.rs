//! Rule: dependencies point one way (ARCHITECTURE.md, "Dependency direction").
//!
//! The table below is the rule. A new crate or arrow is added here on purpose or not at all: host code must not reach into the guest,
//! the guest must not carry simulation or host code, and the verifier must not depend on what it verifies.

use std::collections::BTreeMap;

use kata_cc_tidy::{Crate, crates, none};

/// Crate, what it may be built from, what its tests may use besides. Names without the `kata-cc-` in front.
const ALLOWED: &[(&str, &[&str], &[&str])] = &[
    ("evidence", &[], &[]),
    // Its tests hold the logs it makes against what reads them.
    ("attester", &["evidence"], &["verifier"]),
    // Its tests bend each part of what a made-up Intel signs.
    ("verifier", &["evidence"], &["sim-intel", "sim-uv"]),
    ("collateral", &["verifier"], &[]),
    ("kbs-protocol", &["evidence"], &[]),
    // Its tests have a guest to talk to: one with simulated evidence.
    // Of `policy` it has the signed documents: one code for envelopes, whoever opens them.
    ("kbs", &["collateral", "evidence", "kbs-protocol", "policy", "verifier"], &["sim-uv", "tee-sim"]),
    ("sim-intel", &["evidence"], &[]),
    ("sim-uv", &["evidence"], &[]),
    ("tee-sim", &["evidence", "firmware", "sim-intel"], &["collateral", "verifier"]),
    ("image-pull", &["evidence"], &[]),
    ("policy", &["evidence"], &[]),
    ("firmware", &["evidence"], &[]),
    ("agent-protocol", &[], &[]),
    ("agent", &["agent-protocol", "attester", "evidence", "image-pull", "kbs-protocol", "policy"], &[]),
    // Under libcontainer.
    ("nc", &[], &[]),
    ("vmm", &["evidence"], &[]),
    ("shim", &["agent-protocol", "evidence", "firmware", "policy", "vmm"], &[]),
    ("node", &[], &[]),
    // Its tests have host-key documents to encrypt an image to.
    ("cli", &["collateral", "evidence", "firmware", "image-pull", "kbs-protocol", "policy", "verifier", "vmm"], &["sim-uv"]),
    // Starts the products as programs; links none of them.
    ("lab", &["evidence", "firmware"], &[]),
    // A guest to the broker's eyes: signs evidence, and verifies it too to know what that costs.
    ("kbs-bench", &["evidence", "kbs-protocol", "tee-sim", "verifier"], &[]),
    // Pulls as the guest does, and encrypts and pushes what is pulled as the author does.
    ("pull-bench", &["image-pull"], &[]),
    ("bare-init", &[], &[]),
    ("tidy", &[], &[]),
    ("xtask", &["firmware"], &[]),
];

fn short(name: &str) -> Option<&str> {
    match name {
        "xtask" => Some("xtask"),
        // The name of the crate that it stands in for.
        "nc" => Some("nc"),
        // The shim's name is given by containerd's convention.
        "containerd-shim-kata-cc-v2" => Some("shim"),
        _ => name.strip_prefix("kata-cc-"),
    }
}

fn findings(crates: &[Crate]) -> Vec<String> {
    let table: BTreeMap<_, _> = ALLOWED.iter().map(|(name, normal, dev)| (*name, (*normal, *dev))).collect();
    let mut findings = Vec::new();
    for member in crates {
        let Some((normal, dev)) = short(&member.name).and_then(|name| table.get(name)) else {
            findings.push(format!("{} has no row in the table of this test", member.name));
            continue;
        };
        let arrows = |names: &[String]| {
            names.iter().filter_map(|n| short(n).filter(|s| table.contains_key(s))).map(str::to_owned).collect::<Vec<_>>()
        };
        for to in arrows(&member.dependencies).into_iter().chain(arrows(&member.build_dependencies)) {
            if !normal.contains(&to.as_str()) {
                findings.push(format!("{} -> kata-cc-{to} is not an arrow of ours", member.name));
            }
        }
        for to in arrows(&member.dev_dependencies) {
            if !normal.contains(&to.as_str()) && !dev.contains(&to.as_str()) {
                findings.push(format!("{} -> kata-cc-{to} (tests) is not an arrow of ours", member.name));
            }
        }
    }
    findings
}

#[test]
fn dependencies_point_one_way() {
    none("an arrow points elsewhere", &findings(&crates()));
}

#[test]
fn an_arrow_from_the_guest_to_the_simulation_is_found() {
    let mut crates = crates();
    let agent = crates.iter_mut().find(|c| c.name == "kata-cc-agent").expect("there is an agent");
    agent.dependencies.push("kata-cc-tee-sim".to_owned());
    assert!(findings(&crates).iter().any(|f| f.contains("kata-cc-agent -> kata-cc-tee-sim")));
}

#[test]
fn an_arrow_in_tests_and_a_crate_without_a_row_are_found() {
    let of = |name: &str, dev: &[&str]| Crate {
        name: name.to_owned(),
        folder: "x".into(),
        dependencies: Vec::new(),
        optional: Vec::new(),
        build_dependencies: Vec::new(),
        dev_dependencies: dev.iter().map(|d| d.to_string()).collect(),
    };
    assert_eq!(findings(&[of("kata-cc-verifier", &["kata-cc-tee-sim"])]).len(), 1);
    assert_eq!(findings(&[of("kata-cc-utils", &[])]).len(), 1);
    assert_eq!(findings(&[of("kata-cc-tee-sim", &["kata-cc-verifier"])]).len(), 0);
}
