//! Real evidence of public test suites: every recorded outcome is reproduced here. What cannot be bent in real evidence is in
//! `tests/azure.rs`.

use super::*;
use crate::checks::Outcome;
use crate::snp::{RootSet, SnpError};
use crate::tpm::{AttestationKey, TpmError};
use crate::vectors::{read, vectors};
use crate::{Trust, Verifiers};
use kata_cc_evidence::tpm::{Attest, RsaSignature};
use serde_json::json;
use std::path::Path;

const TRUSTEE: &str = "confidential-containers/trustee/deps/verifier/test_data";
/// 2024-06-01, when the VCEK of the pieces was valid.
const IN_2024: u64 = 1_717_200_000;
/// 2025-06-01, when that of the whole evidence was.
const IN_2025: u64 = 1_748_736_000;
/// What the guests of the vectors were asked: not padded, as CoCo's attesters hand it on.
const CHALLENGE: &[u8] = b"challenge";

/// The TPM's part in the form of `quote.bin`: signature, message and PCRs, each behind its 64-bit length.
fn pieces(bytes: &[u8]) -> Quote {
    let (signature, message, pcrs) = (&bytes[8..264], &bytes[272..394], &bytes[402..]);
    Quote {
        attest: Attest::parse(message).expect("a quote"),
        signature: RsaSignature::from_bare(signature).expect("fits"),
        pcrs: Box::new(std::array::from_fn(|index| pcrs[index * 32..][..32].try_into().expect("32 bytes"))),
    }
}

fn snp_evidence(dir: &Path, hcl: &[u8], quote: Quote) -> SnpEvidence {
    // The file holds the whole chain; the first certificate is the VCEK.
    let pem = read(dir, &format!("{TRUSTEE}/az-snp-vtpm/vcek.pem"));
    let end = pem.windows(25).position(|window| window == b"-----END CERTIFICATE-----").expect("PEM") + 25;
    SnpEvidence { quote, hcl: HclReport::parse(hcl).expect("an HCL report"), vcek: Some(pem[..end].to_vec()) }
}

fn real(dir: &Path) -> (Vec<u8>, Vec<u8>) {
    (read(dir, &format!("{TRUSTEE}/az-snp-vtpm/hcl-report.bin")), read(dir, &format!("{TRUSTEE}/az-snp-vtpm/quote.bin")))
}

fn check_as(evidence: &SnpEvidence, report_data: &ReportData, initdata_digest: Option<&[u8]>) -> Result<Value, AzureError> {
    let verifier = AzureSnpVerifier { trust: RootSet::amd().into() };
    let expected = Expected { report_data: Some(report_data), initdata_digest, now_unix: IN_2024 };
    verifier.check(evidence, &expected, &Collateral::none(), &mut Checks::default()).map(|verified| verified.claims().clone())
}

fn check(evidence: &SnpEvidence) -> Result<Value, AzureError> {
    check_as(evidence, &ReportData::from_digest(CHALLENGE), None)
}

/// Claims that are on the page and of TDX alone: no real evidence of it verifies here, since nobody kept the collateral. `tests/azure.rs` has all
/// that a made-up one makes.
fn of_tdx_alone() -> Value {
    json!({"mr_td": "", "mr_config_id": ""})
}

#[test]
fn evidence_of_snp_in_both_forms_verifies() {
    let Some(dir) = vectors() else { return };
    let verifiers = Verifiers::new(Trust::hardware());
    let verifier = verifiers.get(TeeType::AzSnpVtpm).expect("listed");
    let report_data = ReportData::from_digest(CHALLENGE);
    for name in ["evidence-v0.json", "evidence-v1.json"] {
        let evidence: Value = serde_json::from_slice(&read(&dir, &format!("{TRUSTEE}/az-snp-vtpm/{name}"))).expect("JSON");
        let expected = Expected { report_data: Some(&report_data), initdata_digest: None, now_unix: IN_2025 };
        let mut checks = Checks::default();
        let verified = verifier.verify(&evidence, &expected, &Collateral::none(), &mut checks).expect("verifies");
        let claims = verified.claims();
        crate::claims_page::compare("Azure's confidential VMs", &["SNP", "TDX"], &[claims, &of_tdx_alone()]);
        let pcr00 = claims["tpm"]["pcr00"].as_str().expect("text");
        assert!(pcr00.starts_with("e15c4479") && pcr00.ends_with("dced"), "{name}: {pcr00}");
        assert_eq!(claims["tpm"].as_object().expect("an object").keys().filter(|key| key.starts_with("pcr")).count(), 24);
        assert_eq!(claims["tpm"]["report_data"], hex::encode(CHALLENGE));
        assert_eq!((&claims["init_data"], &claims["vm_configuration"]["secure-boot"]), (&Value::Null, &json!(true)));
        assert_eq!(verifier.measurement(claims), claims["measurement"].as_str());
        assert_eq!((verified.tee(), verified.simulated_root()), (TeeType::AzSnpVtpm, None));
        let not_compared: Vec<_> = checks.all().iter().filter(|check| check.outcome == Outcome::NotCompared).map(|c| c.name).collect();
        assert!(not_compared.contains(&"PCR 8 (initdata)") && not_compared.contains(&"host data"), "{not_compared:?}");
        assert!(!verifier.needs(&evidence).is_empty());
    }
}

#[test]
fn the_pieces_verify_and_recorded_tampers_of_the_hcl_report_fail() {
    let Some(dir) = vectors() else { return };
    let (hcl, quote) = real(&dir);
    let bent = |offset: usize, byte: u8| {
        let mut bytes = hcl.clone();
        bytes[offset] = byte;
        check(&snp_evidence(&dir, &bytes, pieces(&quote)))
    };
    assert!(check(&snp_evidence(&dir, &hcl, pieces(&quote))).is_ok());
    assert!(matches!(bent(0x1a6, 0), Err(AzureError::Snp(SnpError::Tcb { .. }))));
    assert!(matches!(bent(0x6e0, hcl[0x6e0] + 1), Err(AzureError::RuntimeData { .. })));
    // Recorded as a key that cannot be read. It is not looked at before the hardware has vouched for it, so this is found first.
    assert!(matches!(bent(0x540, 0), Err(AzureError::RuntimeData { .. })));
    assert!(matches!(RuntimeData::parse(&[&hcl[1236..0x540], &[0], &hcl[0x541..2346]].concat()), Err(AzureError::Runtime { .. })));
}

#[test]
fn recorded_tampers_of_the_quote_fail() {
    let Some(dir) = vectors() else { return };
    let (hcl, quote) = real(&dir);
    let bent = |offset: usize| {
        let mut bytes = quote.clone();
        bytes[offset] ^= 1;
        check(&snp_evidence(&dir, &hcl, pieces(&bytes))).expect_err("refused")
    };
    assert_eq!(bent(0x030), AzureError::Tpm(TpmError::Signature));
    // Recorded as a mismatch of PCRs. The byte is of the digest's size, without which it is no quote at all.
    let mut message = quote[272..394].to_vec();
    message[0x169 - 272] = 0;
    assert!(Attest::parse(&message).is_err());
    // The digest itself is signed.
    assert_eq!(bent(0x170), AzureError::Tpm(TpmError::Signature));
    assert!(matches!(bent(402), AzureError::Tpm(TpmError::PcrDigest { .. })));

    let good = snp_evidence(&dir, &hcl, pieces(&quote));
    let mut reversed = CHALLENGE.to_vec();
    reversed.reverse();
    let refused = check_as(&good, &ReportData::from_digest(&reversed), None);
    assert!(matches!(refused, Err(AzureError::Tpm(TpmError::ReportData { .. }))), "{refused:?}");
    let report_data = ReportData::from_digest(CHALLENGE);
    let refused = check_as(&good, &report_data, Some(&[0; 32]));
    assert!(matches!(refused, Err(AzureError::Tpm(TpmError::InitData { .. }))), "{refused:?}");
    let refused = check_as(&good, &report_data, Some(&[0; 48]));
    assert_eq!(refused, Err(AzureError::Tpm(TpmError::InitDataDigest { found: 48 })));
}

#[test]
fn every_byte_of_quote_registers_and_runtime_data_counts() {
    let Some(dir) = vectors() else { return };
    let (hcl, quote) = real(&dir);
    let good = snp_evidence(&dir, &hcl, pieces(&quote));
    let key = RuntimeData::parse(good.hcl.runtime_data()).and_then(|runtime| runtime.attestation_key()).expect("a key");
    let refuses = |quote: &Quote| {
        let expected = Expected { report_data: None, initdata_digest: None, now_unix: IN_2024 };
        verify_quote(quote, &key, &expected, &mut Checks::default()).is_err()
    };
    assert!(!refuses(&good.quote));
    for offset in (8..264).chain(402..quote.len()) {
        let mut bytes = quote.clone();
        bytes[offset] ^= 0x80;
        assert!(refuses(&pieces(&bytes)), "byte {offset} does not matter");
    }
    for offset in 272..394 {
        let mut message = quote[272..394].to_vec();
        message[offset - 272] ^= 0x80;
        let Ok(attest) = Attest::parse(&message) else { continue };
        assert!(refuses(&Quote { attest, ..good.quote.clone() }), "byte {offset} does not matter");
    }
    for offset in 1236..1236 + good.hcl.runtime_data().len() {
        let mut bytes = hcl.clone();
        bytes[offset] ^= 0x80;
        let bent = HclReport::parse(&bytes).expect("the runtime data are not looked at");
        assert_ne!(runtime_digest(&bent), runtime_digest(&good.hcl), "byte {offset} does not matter");
    }
}

#[test]
fn evidence_of_tdx_verifies_but_for_collateral_that_is_gone() {
    let Some(dir) = vectors() else { return };
    let json: Value = serde_json::from_slice(&read(&dir, &format!("{TRUSTEE}/az-tdx-vtpm/evidence-v0.json"))).expect("JSON");
    let evidence = TdxEvidence::deserialize(&json).expect("reads");
    let verifier = AzureTdxVerifier { trust: tdx::RootSet::intel().into() };
    assert_eq!(verifier.needs(&json).len(), 4);
    let report_data = ReportData::from_digest(CHALLENGE);
    let expected = Expected { report_data: Some(&report_data), initdata_digest: None, now_unix: 1_750_800_000 };
    let mut checks = Checks::default();
    let refused = verifier.check(&evidence, &expected, &Collateral::none(), &mut checks).map(|_| ());
    assert!(matches!(refused, Err(AzureError::Tdx(tdx::TdxError::Missing(_)))), "{refused:?}");
    // All that the quote proves by itself.
    assert!(checks.all().iter().any(|check| check.name == "quote signature" && check.outcome == Outcome::Pass));

    // The rest of the way: hardware and runtime data belong together, and the TPM's part verifies.
    assert_eq!(evidence.td_quote.quote().body.report_data, runtime_digest(&evidence.hcl));
    // Without SEPT_VE_DISABLE, so it would need `require_sept_ve_disable = false`.
    assert!(!evidence.td_quote.quote().body.td_attributes.sept_ve_disable());
    let claims = check_tpm(&evidence.hcl, &evidence.quote, &expected, json!({}), &mut checks).expect("verifies");
    let pcr00 = claims["tpm"]["pcr00"].as_str().expect("text");
    assert!(pcr00.starts_with("782b20b1") && pcr00.ends_with("a273"), "{pcr00}");
}

#[test]
fn pieces_of_tdx_belong_together_and_the_recorded_tamper_parts_them() {
    let Some(dir) = vectors() else { return };
    let base = format!("{TRUSTEE}/az-tdx-vtpm");
    let td_quote = kata_cc_evidence::tdx::Evidence::from_raw(&read(&dir, &format!("{base}/td-quote.bin")), None).expect("a quote");
    let mut hcl = read(&dir, &format!("{base}/hcl-report.bin"));
    let report_data = td_quote.quote().body.report_data;
    assert_eq!(report_data, runtime_digest(&HclReport::parse(&hcl).expect("reads")));
    assert!(report_data.to_string().starts_with("9734504f"));
    let parsed = HclReport::parse(&hcl).expect("reads");
    let key = RuntimeData::parse(parsed.runtime_data()).and_then(|runtime| runtime.attestation_key()).expect("a key");
    let challenge = ReportData::from_digest(CHALLENGE);
    let expected = Expected { report_data: Some(&challenge), initdata_digest: None, now_unix: 0 };
    let quote = pieces(&read(&dir, &format!("{base}/quote.bin")));
    assert!(verify_quote(&quote, &key, &expected, &mut Checks::default()).is_ok());

    hcl[0x880] += 1;
    assert_ne!(report_data, runtime_digest(&HclReport::parse(&hcl).expect("reads")));
}

#[test]
fn the_attestation_key_is_the_one_of_that_name_and_there_is_one() {
    let number = "_".repeat(341) + "w";
    let number = number.as_str();
    let key = |kid: &str, kty: &str| json!({"kid": kid, "kty": kty, "n": number, "e": "AQAB", "key_ops": ["sign"]});
    let read = |keys: Value| {
        let runtime = json!({"keys": keys}).to_string();
        RuntimeData::parse(runtime.as_bytes()).and_then(|runtime| runtime.attestation_key())
    };
    let good = key("HCLAkPub", "RSA");
    let found = read(json!([key("HCLEkPub", "RSA"), good])).expect("a key");
    assert_eq!(AttestationKey::new(&[0xff; 256], &[1, 0, 1]), Ok(found));
    for refused in [
        json!([]),
        json!([key("HCLEkPub", "RSA")]),
        json!([good, good]),
        json!([key("HCLAkPub", "EC")]),
        json!([{"kid": "HCLAkPub", "kty": "RSA", "e": "AQAB"}]),
        json!([{"kid": "HCLAkPub", "kty": "RSA", "e": "AQAB", "n": "+/"}]),
        json!({}),
    ] {
        assert!(matches!(read(refused.clone()), Err(AzureError::Runtime { .. })), "{refused}");
    }
    for (n, e) in [("AQAB", "AQAB"), (number, "AA"), (number, "AQAAAAAB"), (number, "")] {
        let refused = read(json!([{"kid": "HCLAkPub", "kty": "RSA", "e": e, "n": n}]));
        assert!(matches!(refused, Err(AzureError::Tpm(TpmError::Key { .. }))), "{n} {e}");
    }
}
