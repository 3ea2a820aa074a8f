//! A real report whose chain ends at the platform's key, and made-up chains each link of which is broken.

use super::trust::is_signed;
use super::*;
use crate::checks::Outcome;
use crate::vectors::{read, vectors};
use crate::{Trust, Verifiers};
use kata_cc_evidence::ReportData;
use kata_cc_evidence::csv::{CaCertificate, Certificate, CertificateChain, ChipChain};
use sm2::SecretKey;
use sm2::dsa::SigningKey;
use sm2::dsa::signature::Signer as _;
use sm2::elliptic_curve::sec1::ToEncodedPoint as _;

const TRUSTEE: &str = "confidential-containers/trustee/deps/verifier";
const REPORT_DATA: ReportData = ReportData([0x51; 64]);

/// A key with the name it signs under.
#[derive(Clone)]
struct Key {
    secret: SecretKey,
    name: &'static str,
}

impl Key {
    fn new(seed: u8, name: &'static str) -> Self {
        Self { secret: SecretKey::from_slice(&[seed; 32]).expect("below the order"), name }
    }

    /// A field of 72 bytes, little-endian.
    fn field(number: &[u8]) -> Vec<u8> {
        number.iter().rev().copied().chain([0; 40]).collect()
    }

    /// Curve and point.
    fn public(&self) -> Vec<u8> {
        let point = self.secret.public_key().to_encoded_point(false);
        [3_u32.to_le_bytes().to_vec(), Self::field(&point.as_bytes()[1..33]), Self::field(&point.as_bytes()[33..])].concat()
    }

    fn name(&self) -> Vec<u8> {
        let mut name = u16::try_from(self.name.len()).expect("short").to_le_bytes().to_vec();
        name.extend(self.name.bytes());
        name.resize(256, 0);
        name
    }

    fn sign(&self, message: &[u8]) -> Vec<u8> {
        let signature = SigningKey::new(self.name, &self.secret).expect("a key").sign(message).to_bytes();
        [Self::field(&signature[..32]), Self::field(&signature[32..])].concat()
    }
}

/// A made-up Hygon with a chip, a platform and a guest: everything a test may want to bend.
struct Made {
    hrk: Key,
    hsk: Key,
    cek: Key,
    pek: Key,
    /// Who really signs HSK, CEK, PEK and report.
    signers: [Key; 4],
    /// Usages of HSK, CEK and PEK.
    usages: [u32; 3],
    /// Usages that the signatures of CEK and PEK state.
    signed_for: [u32; 2],
    /// The number by which the HSK names its signer.
    signer_id: [u8; 16],
    policy: u32,
    report_data: ReportData,
    version: Version,
    anonce: [u8; 4],
    with_chip: bool,
}

fn authority(key: &Key, ids: [[u8; 16]; 2], usage: u32, signer: &Key) -> CaCertificate {
    let mut raw = [1_u32.to_le_bytes().to_vec(), ids.concat(), usage.to_le_bytes().to_vec(), vec![0; 24]].concat();
    raw.extend([key.public(), key.name(), vec![0; 108]].concat());
    let signature = signer.sign(&raw);
    raw.extend([signature, vec![0; 112]].concat());
    CaCertificate::parse(&raw).expect("a certificate")
}

fn certificate(key: &Key, usage: u32, signer: &Key, signed_for: u32) -> Certificate {
    let mut raw = [1, 3, usage, 4].map(u32::to_le_bytes).concat();
    raw.extend([key.public(), key.name(), vec![0; 624]].concat());
    let signature = signer.sign(&raw);
    raw.extend([signed_for.to_le_bytes(), 4_u32.to_le_bytes()].concat());
    raw.extend([signature, vec![0; 368], vec![0; 520]].concat());
    Certificate::parse(&raw).expect("a certificate")
}

impl Made {
    fn new() -> Self {
        let (hrk, hsk) = (Key::new(1, "HYGON-SSD-HRK"), Key::new(2, "HYGON-SSD-HSK"));
        let (cek, pek) = (Key::new(3, "HYGON-SSD-CEK"), Key::new(4, "HYGON-SSD-PEK"));
        Self {
            signers: [hrk.clone(), hsk.clone(), cek.clone(), pek.clone()],
            hrk,
            hsk,
            cek,
            pek,
            usages: [0x13, 0x1004, 0x1002],
            signed_for: [0x13, 0x1004],
            signer_id: [1; 16],
            policy: 0x0301_2145,
            report_data: REPORT_DATA,
            version: Version::V1,
            anonce: [0x26, 0xd7, 0xc7, 0x5d],
            with_chip: true,
        }
    }

    fn root(&self) -> CaCertificate {
        authority(&self.hrk, [[1; 16]; 2], 0, &self.hrk)
    }

    fn chip(&self) -> ChipChain {
        ChipChain {
            hsk: authority(&self.hsk, [[2; 16], self.signer_id], self.usages[0], &self.signers[0]),
            cek: certificate(&self.cek, self.usages[1], &self.signers[1], self.signed_for[0]),
        }
    }

    fn report(&self) -> Report {
        let mut raw = [[7; 32].as_slice(), &[8; 16], &[9; 16], self.report_data.as_bytes(), &[10; 16], &[11; 32]].concat();
        raw.extend([self.policy, 0x1002, 4].map(u32::to_le_bytes).concat());
        if self.version == Version::V1 {
            raw.iter_mut().zip(self.anonce.into_iter().cycle()).for_each(|(byte, nonce)| *byte ^= nonce);
            let signature = self.signers[3].sign(&raw[..0xb4]);
            raw.extend(self.anonce);
            raw.extend(signature);
        } else {
            raw.extend(2_000_u32.to_le_bytes());
            raw.extend([1, 0]);
            raw.extend([0; 14]);
            (0..5).for_each(|register| raw.extend([0x20 + register; 32]));
            raw.extend([0; 656]);
            let signature = self.signers[3].sign(&raw);
            raw.extend(signature);
        }
        raw.resize(Report::LEN, 0);
        Report::parse(&raw, self.version).expect("a report")
    }

    fn evidence(&self) -> Evidence {
        let pek = certificate(&self.pek, self.usages[2], &self.signers[2], self.signed_for[1]);
        Evidence { report: self.report(), chain: CertificateChain { chip: self.with_chip.then(|| self.chip()), pek } }
    }

    fn check_under(&self, trust: &CsvTrust, initdata_digest: Option<&[u8]>) -> Result<Value, CsvError> {
        let expected = Expected { report_data: Some(&REPORT_DATA), initdata_digest, now_unix: 0 };
        let mut checks = Checks::default();
        let verified = verify(&self.evidence(), &expected, trust, &mut checks);
        // Whatever the verdict, the record tells the same: a refusal is the last check, and the only one that failed.
        let failed: Vec<_> = checks.all().iter().map(|check| check.outcome == Outcome::Fail).collect();
        assert_eq!(failed.last(), Some(&verified.is_err()), "{checks:?}");
        assert!(!failed.iter().rev().skip(1).any(|failed| *failed), "{checks:?}");
        verified
    }

    fn trust(&self) -> CsvTrust {
        CsvTrust::default().with_root("lab", Made::new().root().as_bytes()).expect("a root")
    }

    fn check(&self) -> Result<Value, CsvError> {
        self.check_under(&self.trust(), None)
    }
}

#[track_caller]
fn refusal(bend: impl FnOnce(&mut Made)) -> CsvError {
    let mut made = Made::new();
    bend(&mut made);
    made.check().expect_err("refused")
}

#[test]
fn every_claim_is_on_the_page_of_claims() {
    let of = |version| Made { version, ..Made::new() }.check().expect("verifies");
    crate::claims_page::compare("Hygon CSV", &[], &[&of(Version::V1), &of(Version::V2)]);
    // The list is held against what is there: with a claim more, or one less, it fails.
    for bend in
        [|claims: &mut Value| claims["brand_new"] = 1.into(), |claims: &mut Value| drop(claims.as_object_mut().map(|c| c.remove("mnonce")))]
    {
        let mut claims = of(Version::V2);
        bend(&mut claims);
        assert!(std::panic::catch_unwind(|| crate::claims_page::compare("Hygon CSV", &[], &[&claims])).is_err());
    }
}

fn real(dir: &std::path::Path) -> Value {
    serde_json::from_slice(&read(dir, &format!("{TRUSTEE}/test_data/csv_evidence.json"))).expect("JSON")
}

#[test]
fn a_real_report_is_signed_by_its_platform_whose_chip_is_not_there() {
    let Some(dir) = vectors() else { return };
    let hrk = read(&dir, &format!("{TRUSTEE}/src/csv/hrk.cert"));
    let trust = Trust { csv: CsvTrust::default().with_root("Hygon", &hrk).expect("a root"), ..Trust::hardware() };
    let verifiers = Verifiers::new(trust);
    let verifier = verifiers.get(TeeType::Csv).expect("listed");
    let expected = Expected { report_data: None, initdata_digest: None, now_unix: 0 };
    let json = real(&dir);
    let refused = verifier.verify(&json, &expected, &Collateral::none(), &mut Checks::default());
    assert!(matches!(refused, Err(VerifyError::Csv(CsvError::NoChip { configured: 0 }))), "{refused:?}");

    let evidence = Evidence::deserialize(&json).expect("reads");
    let Evidence { report, chain } = &evidence;
    assert!(is_signed(&chain.pek.key, report.signed_bytes(), &report.signature));
    assert_eq!((report.version, report.report_data, report.policy.no_debug()), (Version::V1, ReportData::ZERO, true));
    assert_eq!((chain.pek.key.user_id.as_str(), chain.pek.signatures.len()), ("HYGON-SSD-PEK", 2));
    // The report carries the platform's certificate too.
    assert_eq!(&report.as_bytes()[0x150..0x150 + Certificate::LEN], chain.pek.as_bytes());
    // What is signed counts, byte for byte.
    for offset in 0..0xb4 {
        let mut bytes = report.as_bytes().to_vec();
        bytes[offset] ^= 1;
        let bent = Report::parse(&bytes, Version::V1).expect("a report");
        assert!(!is_signed(&chain.pek.key, bent.signed_bytes(), &bent.signature), "byte {offset} does not matter");
    }
}

#[test]
fn certificates_in_json_are_those_in_bytes() {
    let Some(dir) = vectors() else { return };
    let hrk = read(&dir, &format!("{TRUSTEE}/src/csv/hrk.cert"));
    let mut json = real(&dir);
    // Hygon's root in the place of its signing key.
    let numbers = |at: std::ops::Range<usize>| Value::from(hrk[at].to_vec());
    let key = json!({"g": 3, "x": numbers(68..140), "y": numbers(140..212)});
    let data = json!({"kid": numbers(4..20), "sid": numbers(20..36), "usage": 0, "reserved": numbers(40..64)});
    let body = json!({"preamble": {"ver": 1, "data": data}, "pubkey": key, "uid_size": 13, "user_id": numbers(214..468),
        "reserved": numbers(468..576)});
    let hsk = json!({"body": body, "signature": {"r": numbers(576..648), "s": numbers(648..720)}, "_reserved": numbers(720..832)});
    json["cert_chain"]["hsk_cek"] = json!({"hsk": hsk, "cek": json["cert_chain"]["pek"]});
    let chip = Evidence::deserialize(&json).expect("reads").chain.chip.expect("there");
    assert_eq!(chip.hsk.as_bytes(), hrk);

    let refused = |bend: &dyn Fn(&mut Value)| {
        let mut json = json.clone();
        bend(&mut json);
        Evidence::deserialize(&json).expect_err("refused").to_string()
    };
    assert!(refused(&|json| json["attestation_report"]["magic"][0] = 1.into()).contains("flags"));
    assert!(refused(&|json| json["attestation_report"]["data"] = json!([1])).contains("size of the CSV report"));
    assert!(refused(&|json| json["cert_chain"]["pek"]["body"]["ver"] = 2.into()).contains("version"));
    assert!(refused(&|json| json["cert_chain"]["pek"]["body"]["data"]["user_id"] = json!([1])).contains("user_id"));
    assert!(refused(&|json| json["cert_chain"]["pek"]["body"]["data"]["uid_size"] = 255.into()).contains("name"));
    assert!(refused(&|json| json["cert_chain"]["pek"]["body"]["data"]["pubkey"]["algo"] = 5.into()).contains("algorithm"));
    assert!(refused(&|json| json["cert_chain"]["pek"]["body"]["data"]["pubkey"]["key"]["g"] = 2.into()).contains("curve"));
    assert!(refused(&|json| json["cert_chain"]["pek"]["body"]["data"]["pubkey"]["key"]["x"][71] = 1.into()).contains("32 bytes"));
    assert!(refused(&|json| json["cert_chain"]["hsk_cek"]["hsk"]["_reserved"] = json!([])).contains("_reserved"));
}

#[test]
fn made_up_guests_verify_in_both_versions() {
    let claims = Made::new().check().expect("verifies");
    assert_eq!((&claims["version"], &claims["measure"], &claims["root"]), (&json!("1"), &json!("0b".repeat(32)), &json!("lab")));
    assert_eq!((&claims["anonce"], &claims["sig_usage"]), (&json!("26d7c75d"), &json!("02100000")));
    let policy = ["nodbg", "noks", "es", "csv3", "hsk_version", "cek_version", "api_major", "api_minor"];
    assert_eq!(policy.map(|name| claims["policy"][name].as_u64().expect("a number")), [1, 0, 1, 1, 1, 2, 1, 3]);
    let claims = Made { version: Version::V2, ..Made::new() }.check().expect("verifies");
    assert_eq!((&claims["version"], &claims["rtmr4"], &claims["build"]), (&json!("2"), &json!("24".repeat(32)), &json!(2_000)));
    assert_eq!(claims.get("anonce"), None);
}

#[test]
fn the_chips_certificates_may_be_known_beforehand() {
    let without = Made { with_chip: false, ..Made::new() };
    assert_eq!(without.check(), Err(CsvError::NoChip { configured: 0 }));
    let file = |chip: ChipChain| [chip.hsk.as_bytes(), chip.cek.as_bytes()].concat();
    let known = without.trust().with_chip(&file(without.chip())).expect("certificates");
    assert!(without.check_under(&known, None).is_ok());
    // Of another chip.
    let other = Made { cek: Key::new(9, "HYGON-SSD-CEK"), ..Made::new() };
    let known = without.trust().with_chip(&file(other.chip())).expect("certificates");
    assert_eq!(without.check_under(&known, None), Err(CsvError::NoChip { configured: 1 }));
    assert!(matches!(CsvTrust::default().with_chip(&[0; 100]), Err(CsvError::Form(_))));
}

#[test]
fn every_link_of_the_chain_is_checked() {
    for (link, part) in ["HSK", "CEK", "PEK"].into_iter().enumerate() {
        let error = refusal(|made| made.signers[link] = Key::new(9, made.signers[link].name));
        assert!(matches!(error, CsvError::ChainSignature { part: found, .. } if found == part), "{error}");
        // The same key under another name signs something else.
        let error = refusal(|made| made.signers[link].name = "HYGON-SSD-XXX");
        assert!(matches!(error, CsvError::ChainSignature { part: found, .. } if found == part), "{error}");
        let error = refusal(|made| made.usages[link] = 0x1001);
        assert!(matches!(error, CsvError::Usage { part: found, found: 0x1001, .. } if found == part), "{error}");
    }
    assert!(matches!(refusal(|made| made.signed_for[0] = 0), CsvError::ChainSignature { part: "CEK", .. }));
    assert!(matches!(refusal(|made| made.signed_for[1] = 0x1001), CsvError::ChainSignature { part: "PEK", .. }));
    assert!(matches!(refusal(|made| made.signer_id = [9; 16]), CsvError::ChainSignature { part: "HSK", .. }));
    for version in [Version::V1, Version::V2] {
        let error = refusal(|made| (made.version, made.signers[3]) = (version, Key::new(9, "HYGON-SSD-PEK")));
        assert_eq!(error, CsvError::ReportSignature);
    }
}

#[test]
fn what_the_report_says_is_checked() {
    assert_eq!(refusal(|made| made.policy = 0x44), CsvError::Debug);
    assert!(matches!(refusal(|made| made.report_data = ReportData([1; 64])), CsvError::ReportData { .. }));
    let made = Made::new();
    assert_eq!(made.check_under(&made.trust(), Some(&[0; 32])), Err(CsvError::InitData));
}

#[test]
fn a_root_is_one_that_signs_itself() {
    let made = Made::new();
    let trust = |root: CaCertificate| CsvTrust::default().with_root("lab", root.as_bytes()).map(|_| ());
    assert_eq!(trust(made.root()), Ok(()));
    assert_eq!(trust(authority(&made.hrk, [[1; 16]; 2], 0, &made.hsk)), Err(CsvError::NotARoot));
    assert_eq!(trust(authority(&made.hrk, [[1; 16]; 2], 0x13, &made.hrk)), Err(CsvError::NotARoot));
    assert_eq!(trust(authority(&made.hrk, [[1; 16], [2; 16]], 0, &made.hrk)), Err(CsvError::NotARoot));
    assert!(matches!(CsvTrust::default().with_root("lab", b"x"), Err(CsvError::Form(_))));
    // Without a root the kind is refused.
    assert!(matches!(Verifiers::new(Trust::hardware()).get(TeeType::Csv), Err(VerifyError::Unsupported { .. })));
}
