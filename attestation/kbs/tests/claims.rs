//! docs/claims.md says of each claim what the default policy makes of it: none is missing, and none is there that no verifier makes.
//! The kinds that no default policy is about are held by the verifiers' own tests.

#![allow(clippy::unwrap_used)] // helpers of tests: to panic is to fail

mod broker;
mod http;

use broker::{MACHINE, NOW, evidence};
use kata_cc_evidence::se::{Challenge, ImageTags};
use kata_cc_evidence::{MrConfigId, ReportData, TdMeasurement, TeeType, tdx};
use kata_cc_sim_uv::{Machine, Vendor};
use kata_cc_tee_sim::identity;
use kata_cc_tee_sim::intel::{self, Machine as IntelMachine};
use kata_cc_tee_sim::td::Launched;
use kata_cc_verifier::checks::Checks;
use kata_cc_verifier::collateral::{Collateral, Item, Need, Source};
use kata_cc_verifier::se::{Documents, File, SeTrust, SealingKey};
use kata_cc_verifier::snp::RootSet;
use kata_cc_verifier::{Expected, Trust, Verifiers};
use serde_json::{Value, json};
use std::collections::BTreeSet;

const PAGE: &str = include_str!("../../../docs/claims.md");
const REPORT_DATA: ReportData = ReportData([0x5a; 64]);
/// Claims that come to a kind's own after verification, those of an event log, which comes with evidence or does not, and those of Turin's reports.
const LATER: [&str; 9] = [
    "runtime_events",
    "left_out",
    "uefi_event_logs",
    "event_log_findings",
    "boot",
    "reported_tcb_fmc",
    "launch_tcb_fmc",
    "current_tcb_fmc",
    "committed_tcb_fmc",
];

/// Names in the first column of the tables below a heading.
fn listed(heading: &str) -> BTreeSet<String> {
    let section = PAGE.split("\n## ").find(|section| section.starts_with(heading)).unwrap();
    let cells = section.lines().filter_map(|line| line.strip_prefix("| `")?.split(" | ").next());
    // The first backtick is gone: what is at even places stands between two.
    let names = |cell: &str| -> Vec<String> { cell.split('`').step_by(2).filter(|name| !name.is_empty()).map(str::to_owned).collect() };
    cells.flat_map(names).collect()
}

fn claims(trust: Trust, tee: TeeType, evidence: &Value, collateral: &Collateral) -> Value {
    let verifiers = Verifiers::new(trust);
    let expected = Expected { report_data: Some(&REPORT_DATA), initdata_digest: None, now_unix: NOW };
    verifiers.get(tee).unwrap().verify(evidence, &expected, collateral, &mut Checks::default()).unwrap().claims().clone()
}

#[track_caller]
fn compare(heading: &str, claims: &Value) {
    let listed = listed(heading);
    let made: BTreeSet<&str> = claims.as_object().unwrap().keys().map(String::as_str).collect();
    // A claim with parts is listed by itself or by its parts.
    let is_listed = |name: &&&str| listed.iter().any(|entry| entry.split(['.', ' ']).next() == Some(**name));
    let missing: Vec<_> = made.iter().filter(|name| !is_listed(name)).collect();
    assert!(missing.is_empty(), "docs/claims.md does not list {missing:?} under {heading}");
    let is_made =
        |entry: &&String| LATER.contains(&entry.as_str()) || entry.split(['.', ' ']).next().is_some_and(|name| made.contains(name));
    let left: Vec<_> = listed.iter().filter(|entry| !is_made(entry)).collect();
    assert!(left.is_empty(), "docs/claims.md lists {left:?} under {heading}, which no verifier makes");
}

#[test]
fn every_claim_of_snp_is_listed() {
    let roots = RootSet::amd().with_simulated("lab", identity::pem(&MACHINE.ark).unwrap().as_bytes()).unwrap();
    let trust = Trust { snp: roots.into(), ..Trust::hardware() };
    compare("SNP", &claims(trust, TeeType::Snp, &evidence(REPORT_DATA.0), &Collateral::none()));
}

#[test]
fn every_claim_of_tdx_is_listed() {
    let machine: IntelMachine = intel::Machine::generate(NOW);
    let td = Launched { mr_td: TdMeasurement([1; 48]), mr_config_id: MrConfigId([2; 48]), ..Launched::default() };
    let quote = td.quote(&machine.identity, REPORT_DATA).unwrap();
    let evidence = serde_json::to_value(tdx::Evidence::from_raw(&quote, None).unwrap()).unwrap();
    let mut collateral = Collateral::none();
    for piece in &machine.pieces {
        let need = Need { source: Source::IntelPcs, path: piece.path.clone() };
        collateral.insert(need, Item { body: piece.body.clone(), issuer_chain: piece.issuer_chain.clone() });
    }
    let roots = kata_cc_verifier::tdx::RootSet::intel().with_simulated("lab", &machine.root).unwrap();
    compare("TDX", &claims(Trust { tdx: roots.into(), ..Trust::hardware() }, TeeType::Tdx, &evidence, &collateral));
}

#[test]
fn every_claim_of_secure_execution_is_listed() {
    const IMAGE: ImageTags = ImageTags { pld: [1; 64], ald: [2; 64], tld: [3; 64], tag: [4; 16] };
    let (vendor, machine) = (Vendor::new(NOW), Machine::new());
    let [root, signing, lists, document] = [vendor.root(), vendor.signing_service(), vendor.lists(&[]), vendor.document(&machine, 10)];
    let file = |text: &'static str| [File { name: "a file", bytes: text.as_bytes() }];
    let leak = |text: String| -> &'static str { text.leak() };
    let documents = Documents::parse(&file(leak(root)), &file(leak(signing)), &file(leak(lists)), &file(leak(document))).unwrap();
    let trust = SeTrust { documents, images: vec![IMAGE], sealing_key: SealingKey::new([7; 32]), max_age: 300 };
    let trust = Trust { se: Some(trust.into()), ..Trust::hardware() };
    let asked = Verifiers::new(trust.clone()).get(TeeType::Se).unwrap().challenge(NOW).unwrap().unwrap();
    let asked: Challenge = serde_json::from_value(asked).unwrap();
    let answer = serde_json::to_value(machine.answer(&asked, &IMAGE, REPORT_DATA.as_bytes()).unwrap()).unwrap();
    compare("IBM Secure Execution", &claims(trust, TeeType::Se, &answer, &Collateral::none()));
}

#[test]
fn a_claim_that_is_missing_and_one_that_is_not_made_are_found() {
    let refused = |claims: Value| std::panic::catch_unwind(|| compare("IBM Secure Execution", &claims)).is_err();
    assert!(refused(json!({"tag": "", "brand_new": ""})) && refused(json!({"tag": ""})));
}
