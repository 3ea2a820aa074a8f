//! A made-up hierarchy under a simulated root: everything a test may want to bend.

#![allow(dead_code, reason = "each test program uses its part")]

use std::str::FromStr as _;
use std::time::Duration;

use der::asn1::{Any, BitString, Ia5String, ObjectIdentifier, OctetString, UtcTime};
use der::{Encode as _, EncodePem as _};
use kata_cc_evidence::snp::{CertEntry, CertKind, CertTable, Cpuid, Evidence, PlatformInfo, Policy, Report, Signature, TcbVersion};
use kata_cc_evidence::{HostData, LaunchDigest, ReportData};
use kata_cc_verifier::checks::{Checks, Outcome};
use kata_cc_verifier::collateral::Collateral;
use kata_cc_verifier::snp::{RootSet, SnpError, SnpExpected, SnpRules, SnpTrust, VerifiedSnp, verify};
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, EcdsaSigningAlgorithm, KeyPair as _, RSA_PSS_SHA384, RsaKeyPair};
use x509_cert::certificate::{Certificate, TbsCertificate, Version};
use x509_cert::crl::{CertificateList, RevokedCert, TbsCertList};
use x509_cert::ext::Extension;
use x509_cert::ext::pkix::BasicConstraints;
use x509_cert::name::Name;
use x509_cert::serial_number::SerialNumber;
use x509_cert::spki::{AlgorithmIdentifierOwned, SubjectPublicKeyInfoOwned};
use x509_cert::time::{Time, Validity};

pub(crate) const NOW: u64 = 1_800_000_000;
pub(crate) const DAY: u64 = 86_400;
pub(crate) const AMD: &str = "1.3.6.1.4.1.3704.1";
pub(crate) const REPORT_DATA: ReportData = ReportData([0x51; 64]);
pub(crate) const HOST_DATA: HostData = HostData([0x52; 32]);

pub(crate) fn oid(text: &str) -> ObjectIdentifier {
    ObjectIdentifier::new(text).expect("an object identifier")
}

pub(crate) fn rsa(name: &str) -> RsaKeyPair {
    let path = format!("{}/tests/keys/{name}.pk8", env!("CARGO_MANIFEST_DIR"));
    RsaKeyPair::from_pkcs8(&std::fs::read(path).expect("key file")).expect("a key")
}

pub(crate) fn pss() -> AlgorithmIdentifierOwned {
    AlgorithmIdentifierOwned { oid: oid("1.2.840.113549.1.1.10"), parameters: None }
}

pub(crate) fn rsa_spki(key: &RsaKeyPair) -> SubjectPublicKeyInfoOwned {
    SubjectPublicKeyInfoOwned {
        algorithm: AlgorithmIdentifierOwned { oid: oid("1.2.840.113549.1.1.1"), parameters: Some(Any::null()) },
        subject_public_key: BitString::from_bytes(key.public_key().as_ref()).expect("bits"),
    }
}

pub(crate) fn ec_spki(key: &EcdsaKeyPair, curve: &str) -> SubjectPublicKeyInfoOwned {
    SubjectPublicKeyInfoOwned {
        algorithm: AlgorithmIdentifierOwned {
            oid: oid("1.2.840.10045.2.1"),
            parameters: Some(Any::encode_from(&oid(curve)).expect("encodes")),
        },
        subject_public_key: BitString::from_bytes(key.public_key().as_ref()).expect("bits"),
    }
}

pub(crate) fn sign(key: &RsaKeyPair, message: &[u8]) -> BitString {
    let mut signature = vec![0; key.public().modulus_len()];
    key.sign(&RSA_PSS_SHA384, &SystemRandom::new(), message, &mut signature).expect("signs");
    BitString::from_bytes(&signature).expect("bits")
}

/// A certificate to be: every field a test may want to bend.
#[derive(Clone)]
pub(crate) struct Draft {
    pub(crate) subject: &'static str,
    pub(crate) issuer: &'static str,
    pub(crate) serial: u8,
    pub(crate) not_before: u64,
    pub(crate) not_after: u64,
    pub(crate) spki: SubjectPublicKeyInfoOwned,
    pub(crate) extensions: Vec<Extension>,
    pub(crate) algorithm: AlgorithmIdentifierOwned,
}

impl Draft {
    pub(crate) fn new(subject: &'static str, issuer: &'static str, spki: SubjectPublicKeyInfoOwned, extensions: Vec<Extension>) -> Self {
        Self { subject, issuer, serial: 1, not_before: NOW - DAY, not_after: NOW + DAY, spki, extensions, algorithm: pss() }
    }

    pub(crate) fn signed_by(&self, key: &RsaKeyPair) -> Vec<u8> {
        let time = |seconds| Time::UtcTime(UtcTime::from_unix_duration(Duration::from_secs(seconds)).expect("before 2050"));
        let tbs = TbsCertificate {
            version: Version::V3,
            serial_number: SerialNumber::new(&[self.serial]).expect("a number"),
            signature: self.algorithm.clone(),
            issuer: name(self.issuer),
            validity: Validity { not_before: time(self.not_before), not_after: time(self.not_after) },
            subject: name(self.subject),
            subject_public_key_info: self.spki.clone(),
            issuer_unique_id: None,
            subject_unique_id: None,
            extensions: Some(self.extensions.clone()),
        };
        let signature = sign(key, &tbs.to_der().expect("encodes"));
        let cert = Certificate { tbs_certificate: tbs, signature_algorithm: self.algorithm.clone(), signature };
        cert.to_der().expect("encodes")
    }
}

pub(crate) fn name(common_name: &str) -> Name {
    Name::from_str(&format!("CN={common_name},O=Test")).expect("a name")
}

pub(crate) fn extension(id: &str, value: Vec<u8>) -> Extension {
    Extension { extn_id: oid(id), critical: false, extn_value: OctetString::new(value).expect("octets") }
}

pub(crate) fn authority(ca: bool) -> Extension {
    extension("2.5.29.19", BasicConstraints { ca, path_len_constraint: None }.to_der().expect("encodes"))
}

pub(crate) fn leaf_extensions(tcb: TcbVersion, chip: &[u8]) -> Vec<Extension> {
    let mut extensions = vec![extension(&format!("{AMD}.2"), Ia5String::new("Milan-B0").expect("text").to_der().expect("encodes"))];
    for (part, value) in [(1, tcb.bootloader), (2, tcb.tee), (3, tcb.snp), (8, tcb.microcode)] {
        extensions.push(extension(&format!("{AMD}.3.{part}"), value.to_der().expect("encodes")));
    }
    extensions.push(extension(&format!("{AMD}.4"), chip.to_vec()));
    extensions
}

/// The whole made-up world. Tests bend one thing and see what the verifier says.
pub(crate) struct World {
    pub(crate) root_key: RsaKeyPair,
    pub(crate) ask_key: RsaKeyPair,
    pub(crate) leaf_key: EcdsaKeyPair,
    pub(crate) root: Draft,
    pub(crate) ask: Draft,
    pub(crate) leaf: Draft,
    pub(crate) report: Report,
    pub(crate) kind: CertKind,
    pub(crate) with_ark: bool,
    pub(crate) rules: SnpRules,
    pub(crate) collateral: Collateral,
}

pub(crate) fn ec_key(algorithm: &'static EcdsaSigningAlgorithm) -> EcdsaKeyPair {
    let rng = SystemRandom::new();
    let pkcs8 = EcdsaKeyPair::generate_pkcs8(algorithm, &rng).expect("random");
    EcdsaKeyPair::from_pkcs8(algorithm, pkcs8.as_ref(), &rng).expect("a key")
}

impl World {
    pub(crate) fn new() -> Self {
        let (root_key, ask_key, leaf_key) = (rsa("root"), rsa("intermediate"), ec_key(&ECDSA_P384_SHA384_FIXED_SIGNING));
        let tcb = TcbVersion { fmc: None, bootloader: 4, tee: 0, snp: 24, microcode: 219 };
        let report = Report {
            version: 3,
            policy: Policy(0x3_0000),
            platform_info: PlatformInfo(1),
            current_tcb: tcb,
            reported_tcb: tcb,
            committed_tcb: tcb,
            launch_tcb: tcb,
            cpuid: Some(Cpuid { family: 0x19, model: 1, stepping: 1 }),
            chip_id: [0x61; 64],
            report_data: REPORT_DATA,
            host_data: HOST_DATA,
            measurement: LaunchDigest([0x53; 48]),
            ..Report::default()
        };
        Self {
            root: Draft::new("SIM-ARK", "SIM-ARK", rsa_spki(&root_key), vec![authority(true)]),
            ask: Draft { serial: 2, ..Draft::new("SIM-ASK", "SIM-ARK", rsa_spki(&ask_key), vec![authority(true)]) },
            leaf: Draft::new("SIM-VCEK", "SIM-ASK", ec_spki(&leaf_key, "1.3.132.0.34"), leaf_extensions(tcb, &report.chip_id)),
            root_key,
            ask_key,
            leaf_key,
            report,
            kind: CertKind::Vcek,
            with_ark: true,
            rules: SnpRules::default(),
            collateral: Collateral::none(),
        }
    }

    pub(crate) fn bent(bend: impl FnOnce(&mut Self)) -> Self {
        let mut world = Self::new();
        bend(&mut world);
        world
    }

    pub(crate) fn evidence(&self) -> Evidence {
        let mut report = self.report.clone();
        let signed = report.signed_bytes().expect("serialises");
        let fixed = self.leaf_key.sign(&SystemRandom::new(), &signed).expect("signs");
        report.signature = fixed.as_ref().try_into().map_or_else(|_| Signature::default(), Signature::from_p384_fixed);
        let mut entries = vec![
            CertEntry { kind: self.kind, data: self.leaf.signed_by(&self.ask_key) },
            CertEntry { kind: CertKind::Ask, data: self.ask.signed_by(&self.root_key) },
        ];
        if self.with_ark {
            entries.push(CertEntry { kind: CertKind::Ark, data: self.root_der() });
        }
        Evidence::new(report, Some(CertTable { entries })).expect("well formed")
    }

    pub(crate) fn root_der(&self) -> Vec<u8> {
        self.root.signed_by(&self.root_key)
    }

    pub(crate) fn roots(&self) -> RootSet {
        RootSet::amd().with_simulated("lab", pem(&self.root_der()).as_bytes()).expect("a root")
    }

    pub(crate) fn check(&self) -> Result<VerifiedSnp, SnpError> {
        self.check_evidence(&self.evidence(), &self.roots())
    }

    pub(crate) fn check_evidence(&self, evidence: &Evidence, roots: &RootSet) -> Result<VerifiedSnp, SnpError> {
        let expected = SnpExpected { report_data: Some(&REPORT_DATA), host_data: Some(&HOST_DATA), now_unix: NOW };
        let trust = SnpTrust { rules: self.rules.clone(), ..roots.clone().into() };
        let mut checks = Checks::default();
        let verdict = verify(evidence, &expected, &trust, &self.collateral, &mut checks);
        // Whatever the verdict, the record tells the same: a refusal is the last check, and the only one that failed.
        let failed: Vec<_> = checks.all().iter().map(|check| check.outcome == Outcome::Fail).collect();
        assert_eq!(failed.last(), Some(&verdict.is_err()), "{checks:?}");
        assert!(!failed.iter().rev().skip(1).any(|failed| *failed), "{checks:?}");
        verdict
    }
}

pub(crate) fn pem(der: &[u8]) -> String {
    use der::Decode as _;
    Certificate::from_der(der).expect("a certificate").to_pem(der::pem::LineEnding::LF).expect("PEM")
}

/// What a bent world is refused for.
#[track_caller]
pub(crate) fn refusal(bend: impl FnOnce(&mut World)) -> SnpError {
    let world = World::bent(bend);
    match world.check() {
        Err(error) => error,
        Ok(_) => panic!("was accepted"),
    }
}

/// A revocation list to be.
#[derive(Clone)]
pub(crate) struct ListDraft {
    pub(crate) issuer: &'static str,
    pub(crate) serials: Vec<u8>,
    pub(crate) this_update: u64,
    pub(crate) next_update: Option<u64>,
    pub(crate) extensions: Vec<Extension>,
}

impl ListDraft {
    /// A current list of the made-up root.
    pub(crate) fn of(serials: &[u8]) -> Self {
        Self { issuer: "SIM-ARK", serials: serials.into(), this_update: NOW - DAY, next_update: Some(NOW + DAY), extensions: Vec::new() }
    }

    pub(crate) fn signed_by(&self, key: &RsaKeyPair) -> Vec<u8> {
        let time = |seconds| Time::UtcTime(UtcTime::from_unix_duration(Duration::from_secs(seconds)).expect("before 2050"));
        let revoked = |serial: &u8| RevokedCert {
            serial_number: SerialNumber::new(&[*serial]).expect("a number"),
            revocation_date: time(self.this_update),
            crl_entry_extensions: None,
        };
        let tbs = TbsCertList {
            version: Version::V2,
            signature: pss(),
            issuer: name(self.issuer),
            this_update: time(self.this_update),
            next_update: self.next_update.map(time),
            revoked_certificates: (!self.serials.is_empty()).then(|| self.serials.iter().map(revoked).collect()),
            crl_extensions: (!self.extensions.is_empty()).then(|| self.extensions.clone()),
        };
        let signature = sign(key, &tbs.to_der().expect("encodes"));
        CertificateList { tbs_cert_list: tbs, signature_algorithm: pss(), signature }.to_der().expect("encodes")
    }
}
