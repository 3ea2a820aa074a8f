//! Quotes of the simulated TD in front of the real verifier, with the collateral that `init` leaves for a broker: accepted under a configured
//! simulated root only.

#![allow(clippy::unwrap_used)] // helpers of tests: to panic is to fail

use kata_cc_collateral::directory::Directory;
use kata_cc_evidence::{MrConfigId, ReportData, TdMeasurement, TeeType, tdx};
use kata_cc_tee_sim::identity::{self, TDX_DIR};
use kata_cc_tee_sim::intel::{self, COLLATERAL_DIR, ROOT_FILE};
use kata_cc_tee_sim::td::{Launch, Launched};
use kata_cc_verifier::checks::Checks;
use kata_cc_verifier::tdx::{RootSet, TdxError};
use kata_cc_verifier::{Expected, Trust, Verifiers, VerifyError};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

const NOW: u64 = 1_800_000_000;
const REPORT_DATA: ReportData = ReportData([0x52; 64]);
const DIGEST: [u8; 32] = [0x48; 32];

fn launched(dir: &Path) -> Launched {
    let file = |name: &str| {
        let path = dir.join(name);
        std::fs::write(&path, name).unwrap();
        path
    };
    let launch = Launch {
        firmware: file("firmware"),
        kernel: file("kernel"),
        initrd: file("initrd"),
        append: "console=ttyS0".into(),
        vcpus: 1,
        mr_config_id: MrConfigId::from_digest(&DIGEST),
    };
    launch.measure().unwrap()
}

fn evidence(td: &Launched, identity: &intel::Identity, log: Option<&[u8]>) -> serde_json::Value {
    let quote = td.quote(identity, REPORT_DATA).unwrap();
    serde_json::to_value(tdx::Evidence::from_raw(&quote, log).unwrap()).unwrap()
}

#[test]
fn quotes_verify_under_a_configured_simulated_root_and_nowhere_else() {
    let dir = tempfile::tempdir().unwrap();
    let keys = dir.path().join("keys");
    identity::init(&keys, 2048, NOW).unwrap();
    let machine = keys.join(TDX_DIR);
    for name in ["root.key", "pck-ca.key", "tcb-signing.key", "pck.key", "attestation.key"] {
        assert_eq!(std::fs::metadata(machine.join(name)).unwrap().permissions().mode() & 0o777, 0o600, "{name}");
    }
    let identity = intel::load(&machine).unwrap();
    let td = launched(dir.path());
    let root = std::fs::read(machine.join(ROOT_FILE)).unwrap();
    let trust = || Trust { tdx: RootSet::intel().with_simulated("lab", &root).unwrap().into(), ..Trust::hardware() };
    let verify = |trust: Trust, evidence: &serde_json::Value, report_data: &ReportData, digest: &[u8], now_unix: u64| {
        let verifiers = Verifiers::new(trust);
        let verifier = verifiers.get(TeeType::Tdx).unwrap();
        let collateral = Directory::new(machine.join(COLLATERAL_DIR)).collect(&verifier.needs(evidence));
        let expected = Expected { report_data: Some(report_data), initdata_digest: Some(digest), now_unix };
        verifier.verify(evidence, &expected, &collateral, &mut Checks::default())
    };

    let good = evidence(&td, &identity, Some(&td.event_log));
    let verified = verify(trust(), &good, &REPORT_DATA, &DIGEST, NOW).unwrap();
    assert_eq!(verified.simulated_root(), Some("lab"));
    let claims = verified.claims();
    assert_eq!((&claims["simulated"], &claims["tcb_status"]), (&true.into(), &"UpToDate".into()));
    assert_eq!(claims["mr_td"], td.mr_td.to_string());
    assert_eq!(claims["xfam"], "e702060000000000");
    // The log tells what was booted, as that of a directly booted kernel does.
    for name in ["kernel", "kernel_parameters", "initrd"] {
        assert!(claims["boot"][name].is_string(), "{name}: {}", claims["boot"]);
    }
    // Long after, too: nobody finds anything out about a simulation.
    assert!(verify(trust(), &good, &REPORT_DATA, &DIGEST, NOW + 15 * 365 * 86_400).is_ok());
    assert!(verify(trust(), &evidence(&td, &identity, None), &REPORT_DATA, &DIGEST, NOW).is_ok());

    let refused = verify(Trust::hardware(), &good, &REPORT_DATA, &DIGEST, NOW).unwrap_err();
    assert!(matches!(refused, VerifyError::Tdx(TdxError::UnknownRoot { .. })), "{refused}");
    assert!(verify(trust(), &good, &ReportData([0; 64]), &DIGEST, NOW).is_err());
    assert!(verify(trust(), &good, &REPORT_DATA, &[0; 32], NOW).is_err());
    let other = Launched { rtmr: [TdMeasurement([1; 48]); 4], ..td.clone() };
    assert!(verify(trust(), &evidence(&other, &identity, Some(&td.event_log)), &REPORT_DATA, &DIGEST, NOW).is_err());

    // Another machine's keys under this root's collateral.
    let stranger = intel::Machine::generate(NOW);
    assert!(verify(trust(), &evidence(&td, &stranger.identity, None), &REPORT_DATA, &DIGEST, NOW).is_err());
}

#[test]
fn a_machine_is_made_once_beside_an_older_one_of_the_other_kind() {
    let dir = tempfile::tempdir().unwrap();
    assert!(intel::load(&dir.path().join(TDX_DIR)).is_err());
    identity::init(dir.path(), 2048, NOW).unwrap();
    let chain = || std::fs::read(dir.path().join(TDX_DIR).join("pck-chain.pem")).unwrap();
    let (first, chip) = (chain(), identity::load(dir.path()).unwrap().platform);
    assert_eq!(identity::init(dir.path(), 2048, NOW).unwrap(), identity::InitOutcome::AlreadyThere);
    assert_eq!(chain(), first);
    // As an earlier version left it.
    std::fs::remove_dir_all(dir.path().join(TDX_DIR)).unwrap();
    assert_eq!(identity::init(dir.path(), 2048, NOW).unwrap(), identity::InitOutcome::Made);
    assert_ne!(chain(), first);
    assert_eq!(identity::load(dir.path()).unwrap().platform, chip);

    std::fs::write(dir.path().join(TDX_DIR).join("pck.key"), b"no key").unwrap();
    assert!(matches!(intel::load(&dir.path().join(TDX_DIR)), Err(identity::IdentityError::Malformed { .. })));
}
