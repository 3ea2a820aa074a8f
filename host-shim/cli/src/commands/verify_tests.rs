//! `verify evidence` on real reports, where the vectors are at hand.

use kata_cc_verifier::checks::Outcome as Ended;

use super::*;

/// A real Milan report and its VCEK; `None`, loudly, where the vectors are not.
fn vectors() -> Option<PathBuf> {
    let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/vectors");
    let root = std::env::var_os("KATA_CC_VECTORS").map_or(beside, PathBuf::from);
    let dir = root.join("confidential-containers/trustee/deps/verifier/test_data/snp");
    if dir.join("test-report.bin").exists() {
        return Some(dir);
    }
    eprintln!("SKIPPED: no evidence vectors at {}; set KATA_CC_VECTORS", dir.display());
    None
}

fn args(dir: &Path, certs: &Path) -> Args {
    Args {
        tee: TeeType::Snp,
        evidence: dir.join("test-report.bin"),
        certs: Some(certs.to_owned()),
        collateral: None,
        amd_kds: None,
        intel_pcs: None,
        attestation_key: Vec::new(),
        cca_trust_anchors: None,
        csv_root: None,
        csv_chip: Vec::new(),
        nvidia_root: None,
        allow_sept_ve: false,
        report_data: None,
        host_data: None,
        initdata: None,
        measurement: Vec::new(),
        simulated_root: Vec::new(),
        now: Some(parse_time("2025-01-01T00:00:00Z").unwrap()),
    }
}

/// How each check ended, by name.
fn outcomes(args: &Args) -> Vec<(&'static str, Ended)> {
    verify(args).unwrap().checks.all().iter().map(|check| (check.name, check.outcome)).collect()
}

fn with_vcek(dir: &Path) -> tempfile::TempDir {
    let certs = tempfile::tempdir().unwrap();
    fs::copy(dir.join("test-vcek.der"), certs.path().join("vcek.der")).unwrap();
    certs
}

#[test]
fn a_real_report_passes_and_what_was_not_compared_says_so() {
    let Some(dir) = vectors() else { return };
    let certs = with_vcek(&dir);
    let told = verify(&args(&dir, certs.path())).unwrap();
    let open: Vec<_> = told.checks.all().iter().filter(|c| c.outcome == Ended::NotCompared).map(|c| c.name).collect();
    assert_eq!(open, ["revocation", "report data", "host data", "measurement"]);
    assert!(told.checks.all().iter().all(|c| c.outcome != Ended::Fail));
    assert!(told.text().contains("verified as genuine; not compared: revocation, report data, host data, measurement"));
    let json = told.json();
    assert_eq!((&json["verified"], &json["tee"], &json["checks"][0]["status"]), (&true.into(), &"snp".into(), &"pass".into()));
    assert_eq!(json["claims"]["simulated"], false);
    assert_eq!(run(&Command::Evidence(Box::new(args(&dir, certs.path()))), Format::Json).unwrap(), Outcome::Done);
}

#[test]
fn a_report_in_json_is_taken_like_a_raw_one() {
    let Some(dir) = vectors() else { return };
    let certs = with_vcek(&dir);
    let raw = args(&dir, certs.path());
    let verifiers = Verifiers::new(trust(&raw).unwrap());
    let evidence = read_evidence(&raw.evidence, verifiers.get(TeeType::Snp).unwrap()).unwrap();
    let file = certs.path().join("evidence.json");
    fs::write(&file, serde_json::to_vec_pretty(&evidence).unwrap()).unwrap();
    let json = Args { evidence: file, ..args(&dir, certs.path()) };
    assert_eq!(outcomes(&json), outcomes(&raw));
    // Cut, it is neither.
    let cut = certs.path().join("cut.bin");
    fs::write(&cut, &fs::read(&raw.evidence).unwrap()[..1000]).unwrap();
    let error = format!("{:#}", verify(&Args { evidence: cut, ..raw }).err().unwrap());
    assert!(error.contains("neither evidence in JSON nor raw") && error.contains("1184"), "{error}");
}

#[test]
fn a_wrong_expectation_fails_its_own_check_and_ends_there() {
    let Some(dir) = vectors() else { return };
    let certs = with_vcek(&dir);
    let last = |args: &Args| outcomes(args).pop().unwrap();
    let wrong = Args { report_data: Some(ReportData([1; 64])), ..args(&dir, certs.path()) };
    assert_eq!(last(&wrong), ("report data", Ended::Fail));
    assert!(verify(&wrong).unwrap().text().contains("checks after the failed one were not reached"));
    assert_eq!(run(&Command::Evidence(Box::new(wrong)), Format::Json).unwrap(), Outcome::No);
    let wrong = Args { host_data: Some(Digest(vec![1; 32])), ..args(&dir, certs.path()) };
    assert_eq!(last(&wrong), ("host data", Ended::Fail));
    let wrong = Args { measurement: vec![LaunchDigest([1; 48])], ..args(&dir, certs.path()) };
    assert_eq!(last(&wrong), ("measurement", Ended::Fail));
    // Genuine all the same: what it is may be seen.
    assert_eq!(verify(&wrong).unwrap().json()["claims"]["guest_svn"], 4);
    assert_eq!(run(&Command::Evidence(Box::new(wrong)), Format::Json).unwrap(), Outcome::No);
    let late = Args { now: Some(parse_time("2099-01-01T00:00:00Z").unwrap()), ..args(&dir, certs.path()) };
    assert_eq!(last(&late), ("validity", Ended::Fail));
}

#[test]
fn a_measurement_that_is_one_of_those_given_passes() {
    let found = "ab".repeat(48);
    let mut checks = Checks::default();
    check_measurement(Some(&found), &[LaunchDigest([1; 48]), LaunchDigest([0xab; 48])], &mut checks).unwrap();
    assert_eq!(checks.all()[0].outcome, Ended::Pass);
    assert!(check_measurement(None, &[LaunchDigest([1; 48])], &mut checks).is_err());
}

#[test]
fn a_changed_report_fails_the_signature() {
    let Some(dir) = vectors() else { return };
    let certs = with_vcek(&dir);
    let mut bytes = fs::read(dir.join("test-report.bin")).unwrap();
    // A byte of the measurement.
    bytes[0x90] ^= 1;
    let changed = certs.path().join("report.bin");
    fs::write(&changed, bytes).unwrap();
    let all = outcomes(&Args { evidence: changed, ..args(&dir, certs.path()) });
    assert_eq!(all.last(), Some(&("report signature", Ended::Fail)));
}

#[test]
fn without_the_certificate_nothing_is_verified() {
    let Some(dir) = vectors() else { return };
    let certs = tempfile::tempdir().unwrap();
    fs::copy(dir.join("test-vcek-invalid-new.der"), certs.path().join("vcek.der")).unwrap();
    assert_eq!(outcomes(&args(&dir, certs.path())).last(), Some(&("endorsement", Ended::Fail)));
    assert!(read_certs(tempfile::tempdir().unwrap().path()).is_err());
}

#[test]
fn a_kind_without_a_verifier_is_refused_by_name() {
    let nowhere = Path::new("/nonexistent");
    for tee in [TeeType::Sample, TeeType::Csv] {
        let error = verify(&Args { tee, certs: None, ..args(nowhere, nowhere) }).err().unwrap().to_string();
        assert!(error.contains(tee.as_str()), "{error}");
    }
}

#[test]
fn arguments_of_another_form_are_refused() {
    assert!(parse_root("lab").is_err());
    assert_eq!(parse_root("lab=a=b").unwrap(), ("lab".to_owned(), PathBuf::from("a=b")));
    assert_eq!(parse_digest(&"01".repeat(48)).unwrap(), Digest(vec![1; 48]));
    assert!(parse_digest("0101").is_err() && parse_digest("zz").is_err());
    for bad in ["2025-01-01", "yesterday", "1735689600"] {
        assert!(parse_time(bad).is_err(), "{bad}");
    }
}

#[test]
fn a_real_td_quote_is_shown_up_to_the_collateral_it_wants() {
    let Some(dir) = vectors() else { return };
    let quote = Args {
        tee: TeeType::Tdx,
        evidence: dir.join("../tdx_quote_6.dat"),
        certs: None,
        now: Some(parse_time("2026-01-01T00:00:00Z").unwrap()),
        ..args(&dir, &dir)
    };
    let told = verify(&quote).unwrap();
    let passed: Vec<_> = told.checks.all().iter().filter(|c| c.outcome == Ended::Pass).map(|c| c.name).collect();
    assert_eq!(passed, ["quote", "QE vendor", "PCK chain", "PCK extensions", "QE report", "attestation key", "quote signature"]);
    let error = told.error.unwrap();
    assert!(error.contains("tdx/certification/v4/tcb?fmspc=") && error.contains("rootcacrl"), "{error}");
    // Where some of it lies in a directory, the rest is named.
    let files = tempfile::tempdir().unwrap();
    std::fs::write(files.path().join("intel-pcs_sgx_certification_v4_rootcacrl"), b"x").unwrap();
    let error = verify(&Args { collateral: Some(files.path().into()), ..quote }).unwrap().error.unwrap();
    assert!(error.contains("tdx/certification/v4/tcb?fmspc=") && !error.contains("rootcacrl"), "{error}");
}

#[test]
fn a_quote_of_a_tpm_passes_under_a_key_that_is_named_and_under_no_other() {
    let Some(dir) = vectors() else { return };
    let keys = tempfile::tempdir().unwrap();
    let evidence = dir.join("../tpm_evidence.json");
    let json: Value = serde_json::from_slice(&fs::read(&evidence).unwrap()).unwrap();
    let pem = format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n", wrapped(json["ak_public"].as_str().unwrap()));
    let key = keys.path().join("ak.pem");
    fs::write(&key, pem).unwrap();
    let of_tpm = |attestation_key| Args { tee: TeeType::Tpm, certs: None, evidence: evidence.clone(), attestation_key, ..args(&dir, &dir) };
    let told = verify(&of_tpm(vec![key.clone()])).unwrap();
    assert!(told.passed(), "{}", told.text());
    assert_eq!(told.json()["claims"]["attestation_key"], key.display().to_string());
    let error = verify(&of_tpm(Vec::new())).err().unwrap().to_string();
    assert!(error.contains("--attestation-key"), "{error}");
    let error = format!("{:#}", verify(&of_tpm(vec![dir.join("test-vcek.der")])).err().unwrap());
    assert!(error.contains("test-vcek.der"), "{error}");
}

/// PEM has 64 characters a line.
fn wrapped(text: &str) -> String {
    text.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).unwrap()).collect::<Vec<_>>().join("\n")
}

#[test]
fn evidence_of_an_azure_vm_passes() {
    let Some(dir) = vectors() else { return };
    let evidence = dir.join("../az-snp-vtpm/evidence-v1.json");
    let mut challenge = [0; 64];
    challenge[..9].copy_from_slice(b"challenge");
    let now = Some(parse_time("2025-06-01T00:00:00Z").unwrap());
    let azure =
        |report_data| Args { tee: TeeType::AzSnpVtpm, certs: None, evidence: evidence.clone(), report_data, now, ..args(&dir, &dir) };
    let told = verify(&azure(Some(ReportData(challenge)))).unwrap();
    assert!(told.passed(), "{}", told.text());
    assert_eq!(outcomes(&azure(Some(ReportData([1; 64])))).pop(), Some(("extra data", Ended::Fail)));
}

#[test]
fn a_cca_token_passes_under_a_store_that_is_named() {
    let Some(dir) = vectors() else { return };
    let (token, store) = (dir.join("../cca/misc/cca-example-token.cbor"), dir.join("../cca/conf/tastore.json"));
    let cca = |store| Args { tee: TeeType::Cca, certs: None, evidence: token.clone(), cca_trust_anchors: store, ..args(&dir, &dir) };
    let told = verify(&cca(Some(store))).unwrap();
    assert!(told.passed(), "{}", told.text());
    assert!(verify(&cca(None)).err().unwrap().to_string().contains("--cca-trust-anchors"));
}

#[test]
fn a_csv_report_says_that_its_chips_certificates_are_missing() {
    let Some(dir) = vectors() else { return };
    let (evidence, root) = (dir.join("../csv_evidence.json"), dir.join("../../src/csv/hrk.cert"));
    let csv = |root| Args { tee: TeeType::Csv, certs: None, evidence: evidence.clone(), csv_root: root, ..args(&dir, &dir) };
    assert_eq!(outcomes(&csv(Some(root))), [("HSK and CEK", Ended::Fail)]);
    assert!(verify(&csv(None)).err().unwrap().to_string().contains("--csv-root"));
}
