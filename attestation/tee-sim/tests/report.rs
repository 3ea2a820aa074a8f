//! Reports as a guest gets them from the server, in front of the real verifier: accepted under a configured simulated root only.

use kata_cc_evidence::{HostData, LaunchDigest, ReportData, snp};
use kata_cc_tee_sim::identity::{self, Hierarchy, InitOutcome};
use kata_cc_tee_sim::report::Launched;
use kata_cc_tee_sim::serve::{Machine, Socket, serve};
use kata_cc_tee_sim::wire::{Blobs, ReportRequest, WireError, read_response};
use kata_cc_verifier::checks::Checks;
use kata_cc_verifier::collateral::Collateral;
use kata_cc_verifier::snp::{RootSet, SnpExpected, SnpTrust, verify};
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::Path;

const NOW: u64 = 1_800_000_000;
/// AMD's keys have 4096 bits; finding such primes takes minutes in a debug build.
const TEST_RSA_BITS: usize = 2048;

fn launched() -> Launched {
    Launched { measurement: LaunchDigest([0x4d; 48]), host_data: HostData([0x48; 32]), report_id: [1; 32] }
}

fn ask(socket: &Path, request: &ReportRequest) -> Result<Blobs, WireError> {
    let mut stream = UnixStream::connect(socket)?;
    request.write_to(&mut stream)?;
    read_response(&mut stream)
}

#[test]
fn reports_verify_under_a_configured_simulated_root_and_nowhere_else() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tee.sock");
    let identity = Hierarchy::generate(TEST_RSA_BITS, NOW).unwrap().identity;
    let ark = identity::pem(&identity.ark).unwrap();
    let platform = identity.platform.clone();
    let socket = Socket::bind(&path).unwrap();
    std::thread::spawn(move || serve(&socket, Machine::Snp(Box::new(identity), launched())));

    let request = ReportRequest { report_data: [0x52; 64], vmpl: 0 };
    let blobs = ask(&path, &request).unwrap();
    let evidence = snp::Evidence::from_raw(&blobs.outblob, &blobs.auxblob).unwrap();
    let report = evidence.report();
    assert_eq!(report.measurement, launched().measurement);
    assert_eq!((report.version, report.vmpl, report.policy.0), (3, 0, 0x3_0000));

    let report_data = ReportData(request.report_data);
    let host_data = launched().host_data;
    let verify = |evidence: &snp::Evidence, report_data: &ReportData, host_data: &HostData, trust: &SnpTrust| {
        let expected = SnpExpected { report_data: Some(report_data), host_data: Some(host_data), now_unix: NOW };
        verify(evidence, &expected, trust, &Collateral::none(), &mut Checks::default())
    };
    let refused = verify(&evidence, &report_data, &host_data, &RootSet::amd().into());
    assert!(refused.is_err(), "a simulated report must not verify under AMD's roots");

    let trust = RootSet::amd().with_simulated("lab", ark.as_bytes()).unwrap().into();
    let claims = verify(&evidence, &report_data, &host_data, &trust).unwrap().claims();
    assert_eq!(claims["simulated"], true);
    assert_eq!(claims["measurement"], "4d".repeat(48));
    assert_eq!(claims["reported_tcb_microcode"], platform.microcode);

    assert!(verify(&evidence, &ReportData([0; 64]), &host_data, &trust).is_err());
    assert!(verify(&evidence, &report_data, &HostData([0; 32]), &trust).is_err());

    // The guest may ask for another level but the report says so, and the verifier refuses it.
    let lower = ask(&path, &ReportRequest { vmpl: 1, ..request.clone() }).unwrap();
    let lower = snp::Evidence::from_raw(&lower.outblob, &lower.auxblob).unwrap();
    assert!(verify(&lower, &report_data, &host_data, &trust).is_err());
    assert!(matches!(ask(&path, &ReportRequest { vmpl: 4, ..request.clone() }), Err(WireError::Refused(_))));

    // Nonsense closes the connection and disturbs nobody else.
    let mut nonsense = UnixStream::connect(&path).unwrap();
    nonsense.write_all(&[0xff; 16]).unwrap();
    assert!(read_response(&mut nonsense).is_err());
    ask(&path, &request).unwrap();
}

#[test]
fn a_socket_left_by_a_dead_server_is_replaced_and_a_live_one_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tee.sock");
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let socket = Socket::bind(&path).unwrap();
    assert!(Socket::bind(&path).is_err());
    drop(socket);
    assert!(!path.exists());
    std::fs::write(&path, "a file").unwrap();
    assert!(Socket::bind(&path).is_err());
}

#[test]
fn init_makes_an_identity_once() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    assert!(identity::load(dir.path()).is_err());
    assert_eq!(identity::init(dir.path(), TEST_RSA_BITS, NOW).unwrap(), InitOutcome::Made);
    let first = identity::load(dir.path()).unwrap();
    assert_eq!(identity::init(dir.path(), TEST_RSA_BITS, NOW).unwrap(), InitOutcome::AlreadyThere);
    assert_eq!(identity::load(dir.path()).unwrap().platform, first.platform);
    for key in ["ark.key", "ask.key", "vcek.key"] {
        assert_eq!(std::fs::metadata(dir.path().join(key)).unwrap().permissions().mode() & 0o777, 0o600, "{key}");
    }
}
