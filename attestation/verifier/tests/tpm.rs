//! TPMs from a registered key to claims: a real quote, and a made-up TPM each part of which is bent.

mod claims_page;
mod tpm_world;
#[path = "../src/vectors.rs"]
mod vectors;
mod world;

use der::Encode as _;
use kata_cc_evidence::tpm::Evidence;
use kata_cc_evidence::{ReportData, TeeType};
use kata_cc_verifier::checks::{Checks, Outcome};
use kata_cc_verifier::collateral::Collateral;
use kata_cc_verifier::tpm::{TpmError, TpmTrust};
use kata_cc_verifier::{Expected, Trust, Verifiers, VerifyError};
use serde_json::{Value, json};
use tpm_world::{INITDATA_DIGEST, REPORT_DATA, Tpm, extend, pair};
use vectors::{read, vectors};

fn spki(name: &str) -> Vec<u8> {
    world::rsa_spki(&pair(name)).to_der().expect("encodes")
}

fn evidence(tpm: &Tpm, named: &str) -> Value {
    serde_json::to_value(Evidence { quote: tpm.quote(), ak_public: spki(named) }).expect("serialises")
}

fn verify(evidence: &Value, trusted: &[u8], report_data: &ReportData, digest: Option<&[u8]>) -> Result<Value, VerifyError> {
    let trust = Trust { tpm: TpmTrust::default().with_key("rack 7", trusted).expect("a key"), ..Trust::hardware() };
    let verifiers = Verifiers::new(trust);
    let verifier = verifiers.get(TeeType::Tpm).expect("listed");
    let expected = Expected { report_data: Some(report_data), initdata_digest: digest, now_unix: 0 };
    let mut checks = Checks::default();
    let verified = verifier.verify(evidence, &expected, &Collateral::none(), &mut checks);
    // Whatever the verdict, the record tells the same: a refusal is the last check, and the only one that failed.
    if !matches!(verified, Err(VerifyError::Malformed { .. })) {
        let failed: Vec<_> = checks.all().iter().map(|check| check.outcome == Outcome::Fail).collect();
        assert_eq!(failed.last(), Some(&verified.is_err()), "{checks:?}");
        assert!(!failed.iter().rev().skip(1).any(|failed| *failed), "{checks:?}");
    }
    verified.map(|verified| verified.claims().clone())
}

fn check(tpm: &Tpm) -> Result<Value, VerifyError> {
    verify(&evidence(tpm, tpm.key), &spki("root"), &REPORT_DATA, Some(&INITDATA_DIGEST))
}

#[track_caller]
fn refusal(bend: impl FnOnce(&mut Tpm)) -> TpmError {
    let mut tpm = Tpm::new();
    bend(&mut tpm);
    match check(&tpm) {
        Err(VerifyError::Tpm(error)) => error,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_real_quote_verifies_under_its_key_alone() {
    let Some(dir) = vectors() else { return };
    let path = "confidential-containers/trustee/deps/verifier/test_data/tpm_evidence.json";
    let json: Value = serde_json::from_slice(&read(&dir, path)).expect("JSON");
    let parsed: Evidence = serde_json::from_value(json.clone()).expect("reads");
    let report_data = ReportData::try_from(parsed.quote.attest.extra_data()).expect("64 bytes");
    let claims = verify(&json, &parsed.ak_public, &report_data, None).expect("verifies");
    assert_eq!(claims.as_object().expect("an object").keys().filter(|key| key.starts_with("pcr")).count(), 24);
    assert_eq!((&claims["attestation_key"], &claims["init_data"]), (&json!("rack 7"), &Value::Null));
    assert_eq!(claims["report_data"], report_data.to_string());
    claims_page::compare("TPM", &[], &[&claims]);

    let refused = verify(&json, &spki("root"), &report_data, None);
    assert!(matches!(refused, Err(VerifyError::Tpm(TpmError::Untrusted { trusted: 1 }))), "{refused:?}");
    let refused = verify(&json, &parsed.ak_public, &REPORT_DATA, None);
    assert!(matches!(refused, Err(VerifyError::Tpm(TpmError::ReportData { .. }))), "{refused:?}");
}

#[test]
fn a_made_up_tpm_verifies_with_its_initdata() {
    let claims = check(&Tpm::new()).expect("verifies");
    assert_eq!(claims["init_data"], hex::encode(INITDATA_DIGEST));
    assert_eq!(claims["pcr23"], "17".repeat(32));
    let said = ["firmware_version", "reset_count", "restart_count", "simulated"].map(|name| claims[name].clone());
    assert_eq!(said, [json!("0000000001020304"), json!(2), json!(3), json!(false)]);
}

#[test]
fn keys_are_trusted_by_configuration_alone() {
    assert_eq!(refusal(|tpm| tpm.key = "intermediate"), TpmError::Untrusted { trusted: 1 });
    // It names the trusted key, but another has signed.
    let forged = evidence(&Tpm { key: "intermediate", ..Tpm::new() }, "root");
    let refused = verify(&forged, &spki("root"), &REPORT_DATA, None);
    assert!(matches!(refused, Err(VerifyError::Tpm(TpmError::Signature))), "{refused:?}");
    let mut unusable = evidence(&Tpm::new(), "root");
    unusable["ak_public"] = json!("AAAA");
    let refused = verify(&unusable, &spki("root"), &REPORT_DATA, None);
    assert!(matches!(refused, Err(VerifyError::Tpm(TpmError::Key { .. }))), "{refused:?}");
}

#[test]
fn registers_are_those_that_were_quoted() {
    for index in [0, 8, 23] {
        let error = refusal(|tpm| {
            let mut shown = tpm.pcrs.clone();
            shown[index][31] ^= 1;
            tpm.shown = Some(shown);
        });
        assert!(matches!(error, TpmError::PcrDigest { .. }), "PCR {index}: {error}");
    }
    // What was not quoted is nobody's word, and is no claim.
    let mut tpm = Tpm { mask: 0x0000_0101, ..Tpm::new() };
    let mut shown = tpm.pcrs.clone();
    shown[7] = [0xee; 32];
    tpm.shown = Some(shown);
    let claims = check(&tpm).expect("verifies");
    let registers: Vec<_> = claims.as_object().expect("an object").keys().filter(|key| key.starts_with("pcr")).collect();
    assert_eq!(registers, ["pcr00", "pcr08"]);
}

#[test]
fn report_data_are_those_of_the_exchange() {
    for other in [vec![0x51; 63], vec![0x51; 65], vec![0x51; 66], vec![0x50; 64], Vec::new()] {
        let error = refusal(|tpm| tpm.extra_data = other);
        assert!(matches!(error, TpmError::ReportData { .. }), "{error}");
    }
    // A digest that is shorter than the field, with the padding and without.
    let digest = ReportData::from_digest(&[0x51; 48]);
    for extra_data in [vec![0x51; 48], digest.as_bytes().to_vec()] {
        let tpm = Tpm { extra_data, ..Tpm::new() };
        assert!(verify(&evidence(&tpm, "root"), &spki("root"), &digest, None).is_ok());
    }
}

#[test]
fn initdata_are_extended_once_into_a_register_that_is_quoted() {
    let again = |tpm: &mut Tpm| tpm.pcrs[8] = extend(tpm.pcrs[8], &[1; 32]);
    let bends: [fn(&mut Tpm); 3] =
        [|tpm| tpm.pcrs[8] = INITDATA_DIGEST, |tpm| tpm.pcrs[8] = [0; 32], |tpm| tpm.pcrs[8] = extend([1; 32], &INITDATA_DIGEST)];
    assert!(matches!(refusal(again), TpmError::InitData { .. }));
    for bend in bends {
        assert!(matches!(refusal(bend), TpmError::InitData { .. }));
    }
    assert!(matches!(refusal(|tpm| tpm.mask = 0x00ff_feff), TpmError::InitData { found, .. } if found == "not quoted"));
    let refused = verify(&evidence(&Tpm::new(), "root"), &spki("root"), &REPORT_DATA, Some(&[0x52; 48]));
    assert!(matches!(refused, Err(VerifyError::Tpm(TpmError::InitDataDigest { found: 48 }))), "{refused:?}");
}

#[test]
fn malformed_evidence_is_refused_by_name() {
    for evidence in [Value::Null, json!({}), json!({"ak_public": "", "tpm_quote": {"signature": "", "message": "", "pcrs": []}})] {
        let refused = verify(&evidence, &spki("root"), &REPORT_DATA, None).expect_err("refused");
        assert!(matches!(refused, VerifyError::Malformed { tee: TeeType::Tpm, .. }) && refused.rule() == "evidence-form", "{refused}");
    }
}
