//! A real report with its chain, every recorded outcome of it, and made-up chains each part of which is bent.

use super::*;
use crate::checks::Outcome;
use crate::vectors::{read, vectors};
use crate::{Trust, Verifiers};
use der::asn1::{Any, BitString, ObjectIdentifier, OctetString, UtcTime};
use der::{Encode as _, EncodePem as _};
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P384_SHA384_ASN1_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, EcdsaSigningAlgorithm, KeyPair as _};
use std::path::Path;
use std::str::FromStr as _;
use std::time::Duration;
use x509_cert::Certificate;
use x509_cert::certificate::{TbsCertificate, Version};
use x509_cert::ext::Extension;
use x509_cert::ext::pkix::BasicConstraints;
use x509_cert::name::Name;
use x509_cert::serial_number::SerialNumber;
use x509_cert::spki::{AlgorithmIdentifierOwned, SubjectPublicKeyInfoOwned};
use x509_cert::time::{Time, Validity};

const TRUSTEE: &str = "confidential-containers/trustee/deps/verifier";
const NONCE: &str = "931d8dd0add203ac3d8b4fbde75e115278eefcdceac5b87671a748f32364dfcb";
/// 2024-06-01, and 2022-02-01, when an authority of the real chain was not valid yet.
const IN_2024: u64 = 1_717_200_000;
const IN_2022: u64 = 1_643_673_600;

fn real(dir: &Path, chain: u8) -> Device {
    let report = read(dir, &format!("{TRUSTEE}/test_data/nvidia/hopperAttestationReport.txt"));
    let report = hex::decode(report.trim_ascii()).expect("hexadecimal");
    Device {
        report: Report::parse(&report).expect("a report"),
        certificates: read(dir, &format!("{TRUSTEE}/test_data/nvidia/hopper_cert_chain_case{chain}.txt")),
    }
}

fn nvidia(dir: &Path) -> NvidiaTrust {
    let root = read(dir, &format!("{TRUSTEE}/src/nvidia/nvidia_device_root.pem"));
    NvidiaTrust::default().with_root("NVIDIA", &root).expect("a root")
}

fn report_data() -> ReportData {
    // What follows the first 32 bytes has no place in the report.
    ReportData::from_digest(&[hex::decode(NONCE).expect("hexadecimal").as_slice(), &[0xee; 32]].concat())
}

fn check(device: &Device, trust: &NvidiaTrust, report_data: &ReportData, now_unix: u64) -> Result<Value, NvidiaError> {
    let expected = Expected { report_data: Some(report_data), initdata_digest: None, now_unix };
    let mut checks = Checks::default();
    let verified = verify(device, &expected, trust, &mut checks);
    // Whatever the verdict, the record tells the same: a refusal is the last check, and the only one that failed.
    let failed: Vec<_> = checks.all().iter().map(|check| check.outcome == Outcome::Fail).collect();
    assert_eq!(failed.last(), Some(&verified.is_err()), "{checks:?}");
    assert!(!failed.iter().rev().skip(1).any(|failed| *failed), "{checks:?}");
    verified
}

#[test]
fn a_real_report_verifies_with_the_recorded_claims() {
    let Some(dir) = vectors() else { return };
    let verifiers = Verifiers::new(Trust { nvidia: nvidia(&dir), ..Trust::hardware() });
    let verifier = verifiers.get(TeeType::Nvidia).expect("listed");
    let json = serde_json::to_value(Evidence { devices: vec![real(&dir, 1)] }).expect("serialises");
    let report_data = report_data();
    let expected = Expected { report_data: Some(&report_data), initdata_digest: None, now_unix: IN_2024 };
    let verified = verifier.verify(&json, &expected, &Collateral::none(), &mut Checks::default()).expect("verifies");
    let claims = &verified.claims()["devices"][0];
    crate::claims_page::compare("NVIDIA GPUs", &[], &[claims]);
    let recorded = read(&dir, &format!("{TRUSTEE}/test_data/nvidia/hopperAttestationReport-claims.txt"));
    let recorded: Value = serde_json::from_slice(&recorded).expect("JSON");
    assert_eq!(claims["measurements"], recorded["measurements"]);
    assert_eq!(claims["arch"], recorded["arch"]);
    for (name, value) in recorded["config"].as_object().expect("claims") {
        // CoCo showed these as a letter then, of which 0x55 is one.
        let value = match name.as_str() {
            "nvdec0_status" => json!("disabled"),
            "protected_pcie_status" => json!("55"),
            _ => value.clone(),
        };
        assert_eq!(claims["config"][name], value, "{name}");
    }

    let digest = [0; 32];
    let expected = Expected { initdata_digest: Some(&digest), ..expected };
    let refused = verifier.verify(&json, &expected, &Collateral::none(), &mut Checks::default());
    assert!(matches!(refused, Err(VerifyError::Nvidia(NvidiaError::InitData))), "{refused:?}");
    // One device that is refused is enough.
    let mixed = serde_json::to_value(Evidence { devices: vec![real(&dir, 1), real(&dir, 3)] }).expect("serialises");
    let expected = Expected { initdata_digest: None, ..expected };
    assert!(verifier.verify(&mixed, &expected, &Collateral::none(), &mut Checks::default()).is_err());
    // Without a root the kind is refused, as brokers do.
    assert!(matches!(Verifiers::new(Trust::hardware()).get(TeeType::Nvidia), Err(VerifyError::Unsupported { .. })));
}

#[test]
fn recorded_chains_fail_as_recorded() {
    let Some(dir) = vectors() else { return };
    let refused = |case, now| check(&real(&dir, case), &nvidia(&dir), &report_data(), now).expect_err("refused");
    assert_eq!(refused(2, IN_2024), NvidiaError::Length { found: 1 });
    assert_eq!(refused(3, IN_2024), NvidiaError::Certificate { index: 1, reason: "not signed by the next" });
    assert!(matches!(refused(4, IN_2024), NvidiaError::Certificate { index: 0, reason } if reason.contains("2.23.133.5.4.1")));
    assert_eq!(refused(1, IN_2022), NvidiaError::Certificate { index: 2, reason: "not valid now" });
    let refused = check(&real(&dir, 1), &nvidia(&dir), &ReportData([1; 64]), IN_2024);
    assert!(matches!(refused, Err(NvidiaError::Nonce { found, .. }) if found == NONCE));
    let refused = check(&real(&dir, 1), &Made::new().trust(), &report_data(), IN_2024);
    assert_eq!(refused, Err(NvidiaError::UnknownRoot { trusted: 1 }));
}

#[test]
fn every_byte_of_a_real_report_counts() {
    let Some(dir) = vectors() else { return };
    let device = real(&dir, 1);
    let key = &chain::parse(&device.certificates).expect("a chain")[0];
    assert!(key.has_signed_report(device.report.signed_bytes(), &device.report.signature));
    for offset in 0..device.report.as_bytes().len() {
        let mut bytes = device.report.as_bytes().to_vec();
        bytes[offset] ^= 1;
        let Ok(bent) = Report::parse(&bytes) else { continue };
        assert!(!key.has_signed_report(bent.signed_bytes(), &bent.signature), "byte {offset} does not matter");
    }
    for len in 0..device.report.as_bytes().len() {
        assert!(Report::parse(&device.report.as_bytes()[..len]).is_err(), "{len} bytes");
    }
}

fn oid(text: &str) -> ObjectIdentifier {
    ObjectIdentifier::new(text).expect("an object identifier")
}

/// The same key for certificates, whose signatures are in ASN.1, and for reports.
fn pair(pkcs8: &[u8], algorithm: &'static EcdsaSigningAlgorithm) -> EcdsaKeyPair {
    EcdsaKeyPair::from_pkcs8(algorithm, pkcs8, &SystemRandom::new()).expect("a key")
}

fn key() -> Vec<u8> {
    EcdsaKeyPair::generate_pkcs8(&ECDSA_P384_SHA384_FIXED_SIGNING, &SystemRandom::new()).expect("random").as_ref().to_vec()
}

fn extension(id: &str, critical: bool, value: Vec<u8>) -> Extension {
    Extension { extn_id: oid(id), critical, extn_value: OctetString::new(value).expect("octets") }
}

fn constraints(ca: bool, path_len_constraint: Option<u8>) -> Extension {
    extension("2.5.29.19", true, BasicConstraints { ca, path_len_constraint }.to_der().expect("encodes"))
}

/// digitalSignature is 0x80, keyCertSign is 0x04.
fn usage(bits: u8) -> Extension {
    extension("2.5.29.15", true, vec![3, 2, 2, bits])
}

/// A certificate to be.
struct Draft {
    subject: &'static str,
    issuer: &'static str,
    key: Vec<u8>,
    signer: Vec<u8>,
    algorithm: &'static str,
    curve: &'static str,
    extensions: Vec<Extension>,
}

impl Draft {
    fn sign(&self) -> String {
        let name = |name| Name::from_str(&format!("CN={name}")).expect("a name");
        let time = |seconds| Time::UtcTime(UtcTime::from_unix_duration(Duration::from_secs(seconds)).expect("before 2050"));
        let algorithm = AlgorithmIdentifierOwned { oid: oid(self.algorithm), parameters: None };
        let public = pair(&self.key, &ECDSA_P384_SHA384_ASN1_SIGNING).public_key().as_ref().to_vec();
        let curve = Some(Any::encode_from(&oid(self.curve)).expect("encodes"));
        let tbs_certificate = TbsCertificate {
            version: Version::V3,
            serial_number: SerialNumber::new(&[1]).expect("a number"),
            signature: algorithm.clone(),
            issuer: name(self.issuer),
            validity: Validity { not_before: time(IN_2022), not_after: time(IN_2024) },
            subject: name(self.subject),
            subject_public_key_info: SubjectPublicKeyInfoOwned {
                algorithm: AlgorithmIdentifierOwned { oid: oid("1.2.840.10045.2.1"), parameters: curve },
                subject_public_key: BitString::from_bytes(&public).expect("bits"),
            },
            issuer_unique_id: None,
            subject_unique_id: None,
            extensions: Some(self.extensions.clone()),
        };
        let signer = pair(&self.signer, &ECDSA_P384_SHA384_ASN1_SIGNING);
        let signature = signer.sign(&SystemRandom::new(), &tbs_certificate.to_der().expect("encodes")).expect("signs");
        let signature = BitString::from_bytes(signature.as_ref()).expect("bits");
        let certificate = Certificate { tbs_certificate, signature_algorithm: algorithm, signature };
        certificate.to_pem(der::pem::LineEnding::LF).expect("PEM")
    }
}

/// A made-up NVIDIA with one device.
struct Made {
    device: Draft,
    authority: Draft,
    root: Draft,
    signer: Vec<u8>,
    firmware: Option<[u8; 48]>,
    now: u64,
}

impl Made {
    fn new() -> Self {
        let (root, authority, device) = (key(), key(), key());
        let draft = |subject, issuer, key: &[u8], signer: &[u8], extensions| Draft {
            subject,
            issuer,
            key: key.to_vec(),
            signer: signer.to_vec(),
            algorithm: "1.2.840.10045.4.3.3",
            curve: "1.3.132.0.34",
            extensions,
        };
        let firmware = [[4, 0x30].as_slice(), &[7; 48]].concat();
        Self {
            device: draft("device", "authority", &device, &authority, vec![usage(0x80), extension("2.23.133.5.4.1", false, firmware)]),
            authority: draft("authority", "root", &authority, &root, vec![usage(0x04), constraints(true, Some(0))]),
            root: draft("root", "root", &root, &root, vec![usage(0x04), constraints(true, None)]),
            signer: device,
            firmware: Some([7; 48]),
            now: IN_2022,
        }
    }

    fn trust(&self) -> NvidiaTrust {
        NvidiaTrust::default().with_root("lab", self.root.sign().as_bytes()).expect("a root")
    }

    fn device(&self, root: &str) -> Device {
        let mut report = [[0x11, 0xe0, 1, 0xff].as_slice(), &[0x51; 32], &[0]].concat();
        report.extend([0x11, 0x60, 0, 0, 1, 9, 0, 0, 1, 1, 5, 0, 1, 2, 0, 0xaa, 0xbb]);
        report.extend([0x77; 32]);
        let opaque = self.firmware.map(|firmware| [[20, 0, 48, 0].as_slice(), &firmware].concat()).unwrap_or_default();
        report.extend(u16::try_from(opaque.len()).expect("short").to_le_bytes());
        report.extend(opaque);
        let signer = pair(&self.signer, &ECDSA_P384_SHA384_FIXED_SIGNING);
        let signature = signer.sign(&SystemRandom::new(), &report).expect("signs");
        report.extend(signature.as_ref());
        let certificates = self.device.sign() + &self.authority.sign() + root;
        Device { report: Report::parse(&report).expect("a report"), certificates: certificates.into_bytes() }
    }

    fn check(&self) -> Result<Value, NvidiaError> {
        // The signature in a certificate is random: the root in the chain must be the trusted one to the byte.
        let root = self.root.sign();
        let trust = NvidiaTrust::default().with_root("lab", root.as_bytes())?;
        check(&self.device(&root), &trust, &ReportData([0x51; 64]), self.now)
    }
}

#[track_caller]
fn refusal(bend: impl FnOnce(&mut Made)) -> NvidiaError {
    let mut made = Made::new();
    bend(&mut made);
    made.check().expect_err("refused")
}

#[test]
fn a_made_up_device_verifies_and_each_part_of_it_counts() {
    let claims = Made::new().check().expect("verifies");
    assert_eq!((&claims["measurements"]["1"], &claims["root"]), (&json!("aabb"), &json!("lab")));
    assert_eq!(refusal(|made| made.signer = key()), NvidiaError::ReportSignature);
    assert!(matches!(refusal(|made| made.firmware = Some([8; 48])), NvidiaError::Firmware { .. }));
    assert!(matches!(refusal(|made| made.firmware = None), NvidiaError::Firmware { report, .. } if report == "none"));
    for now in [IN_2022 - 1, IN_2024 + 1] {
        assert_eq!(refusal(|made| made.now = now), NvidiaError::Certificate { index: 0, reason: "not valid now" });
    }
}

#[test]
fn each_certificate_must_be_what_it_is_used_for() {
    let reason = |bend: fn(&mut Made)| match refusal(bend) {
        NvidiaError::Certificate { index, reason } => (index, reason),
        other => panic!("{other}"),
    };
    assert_eq!(reason(|made| made.device.signer = key()), (0, "not signed by the next"));
    assert_eq!(reason(|made| made.device.issuer = "another"), (0, "not signed by the next"));
    assert_eq!(reason(|made| made.authority.signer = key()), (1, "not signed by the next"));
    assert_eq!(reason(|made| made.device.extensions[0] = usage(0x04)), (0, "may not sign reports"));
    assert_eq!(reason(|made| made.authority.extensions[0] = usage(0x80)), (1, "may not issue certificates"));
    assert_eq!(reason(|made| made.authority.extensions[1] = constraints(false, None)), (1, "may not issue certificates"));
    assert_eq!(reason(|made| made.authority.extensions.truncate(1)), (1, "may not issue certificates"));
    assert_eq!(reason(|made| made.authority.extensions.push(constraints(true, None))), (1, "may not issue certificates"));
    assert_eq!(reason(|made| made.root.extensions[1] = constraints(true, Some(0))), (2, "may not issue certificates"));
    assert_eq!(reason(|made| made.authority.curve = "1.2.840.10045.3.1.7"), (0, "not signed by the next"));
    let (index, why) = reason(|made| made.authority.algorithm = "1.2.840.10045.4.3.2");
    assert_eq!((index, why), (1, "not signed by ECDSA with SHA-384"));
    let (index, why) = reason(|made| made.device.extensions.push(extension("2.5.29.30", true, vec![])));
    assert!(index == 0 && why.contains("critical"), "{why}");
    let (index, why) = reason(|made| made.device.extensions.truncate(1));
    assert!(index == 0 && why.contains("firmware id"), "{why}");
    let (index, why) = reason(|made| made.device.extensions[1] = extension("2.23.133.5.4.1", false, vec![4; 60]));
    assert!(index == 0 && why.contains("firmware id"), "{why}");
}

#[test]
fn a_root_is_one_that_signs_itself_and_is_trusted_to_the_byte() {
    let made = Made::new();
    let refused = |pem: String| NvidiaTrust::default().with_root("lab", pem.as_bytes()).map(|_| ());
    assert!(refused(made.root.sign()).is_ok());
    for pem in [made.authority.sign(), made.device.sign(), String::new(), made.root.sign() + &made.root.sign()] {
        assert!(matches!(refused(pem), Err(NvidiaError::Certificate { index: 0, .. })));
    }
    // The same name and another key.
    let unknown = check(&made.device(&made.root.sign()), &Made::new().trust(), &ReportData([0x51; 64]), IN_2022);
    assert_eq!(unknown, Err(NvidiaError::UnknownRoot { trusted: 1 }));
    // More certificates than any chain has.
    let mut long = made.device(&made.root.sign());
    long.certificates = long.certificates.repeat(3);
    assert_eq!(check(&long, &made.trust(), &ReportData([0x51; 64]), IN_2022), Err(NvidiaError::Length { found: 9 }));
}

#[test]
fn evidence_of_another_form_is_refused() {
    let made = Made::new();
    let good = serde_json::to_value(Evidence { devices: vec![made.device(&made.root.sign())] }).expect("serialises");
    let refused = |bend: &dyn Fn(&mut Value)| {
        let mut json = good.clone();
        bend(&mut json);
        Evidence::deserialize(&json).expect_err("refused").to_string()
    };
    assert!(refused(&|json| json["device_evidence_list"] = json!([])).contains("0 devices"));
    let device = good["device_evidence_list"][0].clone();
    assert!(refused(&|json| json["device_evidence_list"] = vec![device.clone(); 33].into()).contains("33 devices"));
    assert!(refused(&|json| json["device_evidence_list"][0]["arch"] = "BLACKWELL".into()).contains("BLACKWELL"));
    assert!(refused(&|json| json["device_evidence_list"][0]["evidence"] = "*".into()).contains("base64"));
    assert!(refused(&|json| json["device_evidence_list"][0]["certificate"] = "*".into()).contains("base64"));
    assert!(refused(&|json| json["device_evidence_list"][0]["certificate"] = "AAAA".repeat(21_846).into()).contains("at most"));
    let raw = made.device("").report.as_bytes().to_vec();
    let field = |at: usize, byte: u8| {
        let mut bytes = raw.clone();
        bytes[at] = byte;
        Report::parse(&bytes).expect_err("refused").to_string()
    };
    for (at, says) in [(0, "SPDM version"), (1, "code"), (37, "SPDM version"), (38, "code"), (46, "specification"), (47, "cut off")] {
        assert!(field(at, 0x55).contains(says), "byte {at}");
    }
    // A measurement or a type that is there twice.
    let mut twice = raw[..45].to_vec();
    twice[41] = 2;
    twice[42] = 18;
    twice.extend([&raw[45..54], &raw[45..]].concat());
    assert!(Report::parse(&twice).expect_err("refused").to_string().contains("each index once"));
    let at = 54 + 32;
    let mut twice = raw[..at].to_vec();
    twice.extend(104_u16.to_le_bytes());
    twice.extend([&raw[at + 2..at + 54], &raw[at + 2..]].concat());
    assert!(Report::parse(&twice).expect_err("refused").to_string().contains("each type once"));
}
