//! `verify evidence` on real reports, where the vectors are at hand.

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
        tee: Tee::Snp,
        evidence: dir.join("test-report.bin"),
        certs: Some(certs.to_owned()),
        report_data: None,
        host_data: None,
        initdata: None,
        measurement: Vec::new(),
        simulated_root: Vec::new(),
        now: Some(parse_time("2025-01-01T00:00:00Z").unwrap()),
    }
}

/// Statuses by name.
fn statuses(args: &Args) -> Vec<(&'static str, Status)> {
    let evidence = read_evidence(&args.evidence).unwrap();
    let (endorsements, _) = read_certs(args.certs.as_deref().unwrap()).unwrap();
    let roots = RootSet::amd();
    let now = args.now.unwrap().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let options = SnpOptions { roots: &roots, now_unix: now, endorsements: &endorsements };
    let report_data = args.report_data.unwrap_or(evidence.report().report_data);
    let verdict = verify(&evidence, &report_data, args.host_data.as_ref(), &options);
    checks(evidence.report(), args.report_data, args.host_data, now, &verdict).into_iter().map(|c| (c.name, c.status)).collect()
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
    let all = statuses(&args(&dir, certs.path()));
    assert!(all.iter().take(10).all(|(_, s)| *s == Status::Pass), "{all:?}");
    assert_eq!(all[10..], [("report data", Status::NotCompared), ("host data", Status::NotCompared)]);
    assert_eq!(run(&Command::Evidence(args(&dir, certs.path())), Format::Json).unwrap(), Outcome::Done);
}

#[test]
fn a_wrong_expectation_fails_its_own_check() {
    let Some(dir) = vectors() else { return };
    let certs = with_vcek(&dir);
    let wrong = Args { report_data: Some(ReportData([1; 64])), ..args(&dir, certs.path()) };
    let all = statuses(&wrong);
    assert_eq!(all[10..], [("report data", Status::Fail), ("host data", Status::NotReached)]);
    assert_eq!(run(&Command::Evidence(wrong), Format::Json).unwrap(), Outcome::No);
    let wrong = Args { host_data: Some(HostData([1; 32])), ..args(&dir, certs.path()) };
    assert_eq!(statuses(&wrong)[11], ("host data", Status::Fail));
    let wrong = Args { measurement: vec![LaunchDigest([1; 48])], ..args(&dir, certs.path()) };
    assert_eq!(run(&Command::Evidence(wrong), Format::Json).unwrap(), Outcome::No);
    let late = Args { now: Some(parse_time("2099-01-01T00:00:00Z").unwrap()), ..args(&dir, certs.path()) };
    assert_eq!(statuses(&late)[3], ("chain", Status::Fail));
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
    let all = statuses(&Args { evidence: changed, ..args(&dir, certs.path()) });
    assert_eq!(all[7], ("report signature", Status::Fail));
}

#[test]
fn without_the_certificate_nothing_is_verified() {
    let Some(dir) = vectors() else { return };
    let certs = tempfile::tempdir().unwrap();
    fs::copy(dir.join("test-vcek-invalid-new.der"), certs.path().join("vcek.der")).unwrap();
    assert!(statuses(&args(&dir, certs.path())).iter().any(|(_, s)| *s == Status::Fail));
    assert!(read_certs(tempfile::tempdir().unwrap().path()).is_err());
}

#[test]
fn arguments_of_another_form_are_refused() {
    assert!(parse_root("lab").is_err());
    assert_eq!(parse_root("lab=a=b").unwrap(), ("lab".to_owned(), PathBuf::from("a=b")));
    for bad in ["2025-01-01", "yesterday", "1735689600"] {
        assert!(parse_time(bad).is_err(), "{bad}");
    }
}
