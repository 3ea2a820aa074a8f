//! VMs of Azure from a made-up root to claims, each link bent. Real evidence is in the module's own tests.

mod claims_page;
mod tdx_world;
mod tpm_world;
mod world;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use kata_cc_evidence::azure::{HclReport, SnpEvidence, TdxEvidence};
use kata_cc_evidence::snp::CertKind;
use kata_cc_evidence::{ReportData, TeeType, snp, tdx};
use kata_cc_verifier::azure::AzureError;
use kata_cc_verifier::checks::{Checks, Outcome};
use kata_cc_verifier::collateral::Collateral;
use kata_cc_verifier::snp::{SnpError, SnpTrust};
use kata_cc_verifier::tdx::{TdxError, TdxTrust};
use kata_cc_verifier::tpm::TpmError;
use kata_cc_verifier::{Expected, Trust, Verifiers, VerifyError};
use serde_json::{Value, json};
use tpm_world::{INITDATA_DIGEST, REPORT_DATA, Tpm, numbers};

const NOW: u64 = 1_800_000_000;

/// What a test may bend beside hardware and TPM.
struct Hcl {
    /// 2 is SNP, 4 is TDX.
    kind: u32,
    runtime: Value,
    /// The runtime data in the report, where they are to be others than those the hardware vouches for.
    shown: Option<Value>,
}

impl Hcl {
    fn new(kind: u32) -> Self {
        let (n, e) = numbers("root");
        let encode = |number: Vec<u8>| URL_SAFE_NO_PAD.encode(number);
        let key = json!({"kid": "HCLAkPub", "kty": "RSA", "n": encode(n), "e": encode(e)});
        Self { kind, runtime: json!({"keys": [key], "vm-configuration": {"secure-boot": true}, "user-data": "00"}), shown: None }
    }

    fn report_data(&self) -> ReportData {
        let digest = ring::digest::digest(&ring::digest::SHA256, self.runtime.to_string().as_bytes());
        ReportData::from_digest(digest.as_ref())
    }

    fn report(&self, hardware: &[u8]) -> HclReport {
        let runtime = self.shown.as_ref().unwrap_or(&self.runtime).to_string();
        let len = u32::try_from(runtime.len()).expect("short");
        let mut bytes = [b"HCLA".as_slice(), &[1, 0, 0, 0], &[0; 24], hardware].concat();
        bytes.resize(1216, 0);
        for field in [len + 20, 1, self.kind, 1, len] {
            bytes.extend(field.to_le_bytes());
        }
        bytes.extend(runtime.bytes());
        bytes.resize(bytes.len() + 100, 0);
        HclReport::parse(&bytes).expect("an HCL report")
    }
}

fn verify(tee: TeeType, evidence: &Value, trust: Trust, collateral: &Collateral) -> Result<Value, VerifyError> {
    let verifiers = Verifiers::new(trust);
    let expected = Expected { report_data: Some(&REPORT_DATA), initdata_digest: Some(&INITDATA_DIGEST), now_unix: NOW };
    let mut checks = Checks::default();
    let verified = verifiers.get(tee).expect("listed").verify(evidence, &expected, collateral, &mut checks);
    // Whatever the verdict, the record tells the same: a refusal is the last check, and the only one that failed.
    if !matches!(verified, Err(VerifyError::Malformed { .. })) {
        let failed: Vec<_> = checks.all().iter().map(|check| check.outcome == Outcome::Fail).collect();
        assert_eq!(failed.last(), Some(&verified.is_err()), "{checks:?}");
        assert!(!failed.iter().rev().skip(1).any(|failed| *failed), "{checks:?}");
    }
    verified.map(|verified| verified.claims().clone())
}

struct Snp {
    world: world::World,
    hcl: Hcl,
    tpm: Tpm,
}

impl Snp {
    fn check(bend: impl FnOnce(&mut Self)) -> Result<Value, VerifyError> {
        let mut made = Self { world: world::World::new(), hcl: Hcl::new(2), tpm: Tpm::new() };
        made.world.report.report_data = made.hcl.report_data();
        bend(&mut made);
        let report: snp::Evidence = made.world.evidence();
        let vcek = report.certs().and_then(|table| table.get(CertKind::Vcek)).map(<[u8]>::to_vec);
        let evidence = SnpEvidence { quote: made.tpm.quote(), hcl: made.hcl.report(&report.report_bytes()), vcek };
        let ask = made.world.ask.signed_by(&made.world.root_key);
        let pem = world::pem(&made.world.root_der()) + &world::pem(&ask);
        let roots = kata_cc_verifier::snp::RootSet::amd().with_simulated("lab", pem.as_bytes()).expect("a root");
        let trust = Trust { snp: SnpTrust { rules: made.world.rules.clone(), ..roots.into() }, ..Trust::hardware() };
        verify(TeeType::AzSnpVtpm, &serde_json::to_value(evidence).expect("serialises"), trust, &Collateral::none())
    }

    #[track_caller]
    fn refusal(bend: impl FnOnce(&mut Self)) -> AzureError {
        match Self::check(bend) {
            Err(VerifyError::Azure(error)) => error,
            other => panic!("{other:?}"),
        }
    }
}

struct Tdx {
    world: tdx_world::World,
    hcl: Hcl,
    tpm: Tpm,
}

impl Tdx {
    fn check(bend: impl FnOnce(&mut Self)) -> Result<Value, VerifyError> {
        let mut made = Self { world: tdx_world::World::new(), hcl: Hcl::new(4), tpm: Tpm::new() };
        made.world.body.report_data = made.hcl.report_data();
        bend(&mut made);
        let quote = made.world.quote().to_bytes().expect("serialises");
        let evidence = TdxEvidence {
            quote: made.tpm.quote(),
            hcl: made.hcl.report(&[0x81; 1024]),
            td_quote: tdx::Evidence::from_raw(&quote, None).expect("a quote"),
        };
        let trust = Trust { tdx: TdxTrust { roots: made.world.roots(), rules: made.world.rules.clone() }, ..Trust::hardware() };
        verify(TeeType::AzTdxVtpm, &serde_json::to_value(evidence).expect("serialises"), trust, &made.world.collateral())
    }

    #[track_caller]
    fn refusal(bend: impl FnOnce(&mut Self)) -> AzureError {
        match Self::check(bend) {
            Err(VerifyError::Azure(error)) => error,
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn made_up_vms_verify_with_claims_of_hardware_and_tpm() {
    for claims in [Snp::check(|_| ()).expect("verifies"), Tdx::check(|_| ()).expect("verifies")] {
        assert_eq!(claims["init_data"], hex::encode(INITDATA_DIGEST));
        assert_eq!(claims["tpm"]["report_data"], REPORT_DATA.to_string());
        assert_eq!(claims["tpm"]["pcr23"], "17".repeat(32));
        assert_eq!(claims["report_data"], Hcl::new(2).report_data().to_string());
        assert_eq!((&claims["vm_configuration"], &claims["user_data"]), (&json!({"secure-boot": true}), &json!("00")));
        assert_eq!((&claims["simulated"], &claims["root"]), (&json!(true), &json!("lab")));
    }
}

#[test]
fn every_claim_is_on_the_page_of_claims() {
    let [snp, tdx] = [Snp::check(|_| ()), Tdx::check(|_| ())].map(|claims| claims.expect("verifies"));
    claims_page::compare("Azure's confidential VMs", &["SNP", "TDX"], &[&snp, &tdx]);
    // One kind alone does not make all of them.
    assert!(std::panic::catch_unwind(|| claims_page::compare("Azure's confidential VMs", &["SNP"], &[&snp])).is_err());
}

#[test]
fn the_hardware_must_be_of_the_kind() {
    let error = Snp::refusal(|made| made.hcl.kind = 4);
    assert_eq!(error, AzureError::Hardware { found: "TDX", expected: "SNP" });
    let error = Tdx::refusal(|made| made.hcl.kind = 2);
    assert_eq!((&error, error.rule()), (&AzureError::Hardware { found: "SNP", expected: "TDX" }, "hcl-report"));
}

#[test]
fn what_is_no_snp_report_is_refused() {
    let hcl = Hcl::new(2).report(&[0xff; 1184]);
    let evidence = SnpEvidence { quote: Tpm::new().quote(), hcl, vcek: None };
    let json = serde_json::to_value(evidence).expect("serialises");
    let refused = verify(TeeType::AzSnpVtpm, &json, Trust::hardware(), &Collateral::none());
    assert!(matches!(refused, Err(VerifyError::Azure(AzureError::Report(_)))), "{refused:?}");
    assert_eq!(Verifiers::new(Trust::hardware()).get(TeeType::AzSnpVtpm).expect("listed").needs(&json), []);
}

#[test]
fn the_hardware_must_vouch_for_the_runtime_data() {
    let other = json!({"keys": []});
    for error in [Snp::refusal(|made| made.hcl.shown = Some(other.clone())), Tdx::refusal(|made| made.hcl.shown = Some(other.clone()))] {
        assert!(matches!(error, AzureError::RuntimeData { .. }) && error.rule() == "hcl-runtime-data", "{error}");
    }
    // Half of the field is not enough.
    let error = Snp::refusal(|made| made.world.report.report_data.0[63] = 1);
    assert!(matches!(error, AzureError::RuntimeData { .. }), "{error}");
}

#[test]
fn runtime_data_without_the_key_are_refused() {
    let none = json!({"keys": []});
    let error = Snp::refusal(|made| {
        made.hcl.runtime = none.clone();
        made.world.report.report_data = made.hcl.report_data();
    });
    assert!(matches!(error, AzureError::Runtime { .. }), "{error}");
    let error = Tdx::refusal(|made| {
        made.hcl.runtime = none;
        made.world.body.report_data = made.hcl.report_data();
    });
    assert!(matches!(error, AzureError::Runtime { .. }), "{error}");
}

#[test]
fn the_hardwares_own_checks_are_made() {
    let error = Snp::refusal(|made| made.world.report.vmpl = 2);
    assert_eq!(error, AzureError::Snp(SnpError::Vmpl { found: 2 }));
    let error = Snp::refusal(|made| made.world.report.chip_id[0] ^= 1);
    assert!(matches!(error, AzureError::Snp(SnpError::ChipId { .. })), "{error}");
    let error = Snp::refusal(|made| made.world.leaf_key = world::ec_key(&ring::signature::ECDSA_P384_SHA384_FIXED_SIGNING));
    assert_eq!(error, AzureError::Snp(SnpError::ReportSignature));
    let error = Tdx::refusal(|made| made.world.body.td_attributes.0 |= 1);
    assert!(matches!(error, AzureError::Tdx(TdxError::Debug { .. })), "{error}");
}

#[test]
fn tds_as_azure_launches_them_pass_only_where_the_rule_is_turned_off() {
    let error = Tdx::refusal(|made| made.world.body.td_attributes.0 = 0);
    assert!(matches!(error, AzureError::Tdx(TdxError::SeptVe { .. })), "{error}");
    let claims = Tdx::check(|made| {
        made.world.body.td_attributes.0 = 0;
        made.world.rules.require_sept_ve_disable = false;
    });
    assert_eq!(claims.expect("verifies")["td_attributes"]["septve_disable"], false);
}

#[test]
fn the_tpm_must_answer_with_the_key_the_hardware_vouches_for() {
    let other = [Snp::refusal(|made| made.tpm.key = "intermediate"), Tdx::refusal(|made| made.tpm.key = "intermediate")];
    assert!(other.iter().all(|error| *error == AzureError::Tpm(TpmError::Signature)), "{other:?}");
    let replayed = [Snp::refusal(|made| made.tpm.extra_data = vec![1; 64]), Tdx::refusal(|made| made.tpm.extra_data = vec![1; 64])];
    assert!(replayed.iter().all(|error| matches!(error, AzureError::Tpm(TpmError::ReportData { .. }))), "{replayed:?}");
    let without = [Snp::refusal(|made| made.tpm.pcrs[8] = [0; 32]), Tdx::refusal(|made| made.tpm.pcrs[8] = [0; 32])];
    assert!(without.iter().all(|error| matches!(error, AzureError::Tpm(TpmError::InitData { .. }))), "{without:?}");
}

#[test]
fn malformed_evidence_is_refused_by_name() {
    for tee in [TeeType::AzSnpVtpm, TeeType::AzTdxVtpm] {
        for evidence in [Value::Null, json!({}), json!({"version": 3})] {
            let refused = verify(tee, &evidence, Trust::hardware(), &Collateral::none()).expect_err("refused");
            assert!(matches!(refused, VerifyError::Malformed { .. }) && refused.rule() == "evidence-form", "{refused}");
        }
    }
}
