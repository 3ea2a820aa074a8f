//! A made-up Intel: root, PCK CA, platform, quoting enclave, TCB Signing, and a TD. Everything a test may want to bend is a field.

#![allow(dead_code, unused_imports, reason = "each test program uses its part")]

use kata_cc_evidence::tdx::{Body, EnclaveReport, Evidence, Header, INTEL_QE_VENDOR_ID, Quote, TdAttributes};
use kata_cc_evidence::{MrConfigId, ReportData, TdMeasurement};
use kata_cc_sim_intel::{self as intel, Platform, Signer, ecdsa, qe_identity, signed_json, tcb_info};
pub(crate) use kata_cc_sim_intel::{Draft, Key, List, constraints, extension, level, oid, pem};
use kata_cc_verifier::checks::Checks;
use kata_cc_verifier::collateral::{Collateral, Item, Need, Source};
use kata_cc_verifier::tdx::{RootSet, TdxError, TdxExpected, TdxRules, TdxTrust, VerifiedTdx, verify};
use serde_json::{Value, json};
use x509_cert::Certificate;

/// 2027-01-15T08:00:00Z.
pub(crate) const NOW: u64 = 1_800_000_000;
pub(crate) const DAY: u64 = 86_400;
pub(crate) const REPORT_DATA: ReportData = ReportData([0x51; 64]);
pub(crate) const INITDATA_DIGEST: [u8; 32] = [0x52; 32];
pub(crate) const FMSPC: &str = "50806f000000";

pub(crate) const TCB_INFO: &str = "tdx/certification/v4/tcb?fmspc=50806f000000";
pub(crate) const QE_IDENTITY: &str = "tdx/certification/v4/qe/identity";
pub(crate) const PCK_CRL: &str = "sgx/certification/v4/pckcrl?ca=platform&encoding=der";
pub(crate) const ROOT_CRL: &str = "sgx/certification/v4/rootcacrl";

fn draft(subject: &'static str, issuer: &'static str, serial: u8, ca: bool) -> Draft<'static> {
    Draft::new(subject, issuer, serial, ca, NOW - 100 * DAY, NOW + 500 * DAY)
}

fn list(issuer: &'static str) -> List<'static> {
    // A stranger is revoked, so that the list is not empty.
    List { issuer, revoked: vec![99], this_update: NOW - DAY, next_update: Some(NOW + 20 * DAY) }
}

/// What Intel's extensions of a PCK certificate say.
pub(crate) struct PlatformDraft {
    pub(crate) components: [u8; 16],
    pub(crate) pce_svn: u8,
    pub(crate) fmspc: [u8; 6],
    /// Drops the pair with this OID below Intel's, to see it missed.
    pub(crate) without: Option<&'static str>,
    /// Writes it twice.
    pub(crate) twice: Option<&'static str>,
}

impl PlatformDraft {
    fn extension(&self) -> x509_cert::ext::Extension {
        let Self { components, pce_svn, fmspc, without, twice } = *self;
        let times = |arcs: &str| if without == Some(arcs) { 0 } else { 1 + usize::from(twice == Some(arcs)) };
        Platform { components, pce_svn, fmspc }.extension(times)
    }
}

pub(crate) struct World {
    pub(crate) root_key: Key,
    pub(crate) ca_key: Key,
    pub(crate) pck_key: Key,
    pub(crate) signer_key: Key,
    pub(crate) attestation_key: Key,
    pub(crate) root: Draft<'static>,
    pub(crate) ca: Draft<'static>,
    pub(crate) pck: Draft<'static>,
    pub(crate) signer: Draft<'static>,
    pub(crate) platform: PlatformDraft,
    pub(crate) root_crl: List<'static>,
    pub(crate) pck_crl: List<'static>,
    pub(crate) tcb_info: Value,
    pub(crate) qe_identity: Value,
    pub(crate) report: EnclaveReport,
    pub(crate) header: Header,
    pub(crate) body: Body,
    pub(crate) rules: TdxRules,
    pub(crate) now: u64,
}

impl World {
    pub(crate) fn new() -> Self {
        let module_levels = json!([
            {"tcb": {"isvsvn": 5}, "tcbDate": "2026-08-01T00:00:00Z", "tcbStatus": "UpToDate"},
            {"tcb": {"isvsvn": 3}, "tcbDate": "2025-02-01T00:00:00Z", "tcbStatus": "OutOfDate", "advisoryIDs": ["INTEL-SA-7"]},
            {"tcb": {"isvsvn": 2}, "tcbDate": "2024-02-01T00:00:00Z", "tcbStatus": "Revoked", "advisoryIDs": ["INTEL-SA-8"]},
        ]);
        let levels = json!([
            level(&[5, 5, 2], 11, &[9, 9, 5], "UpToDate", &[]),
            level(&[4, 5, 2], 11, &[9, 9, 5], "SWHardeningNeeded", &["INTEL-SA-1"]),
            level(&[3, 5, 2], 11, &[9, 9, 5], "ConfigurationNeeded", &["INTEL-SA-2"]),
            level(&[2, 5, 2], 11, &[0, 0, 4], "OutOfDate", &["INTEL-SA-3"]),
            level(&[1, 5, 2], 5, &[0, 0, 4], "Revoked", &["INTEL-SA-4"]),
        ]);
        let enclave_levels = json!([
            {"tcb": {"isvsvn": 4}, "tcbDate": "2026-07-01T00:00:00Z", "tcbStatus": "UpToDate"},
            {"tcb": {"isvsvn": 3}, "tcbDate": "2025-07-01T00:00:00Z", "tcbStatus": "OutOfDate", "advisoryIDs": ["INTEL-SA-5"]},
            {"tcb": {"isvsvn": 2}, "tcbDate": "2024-07-01T00:00:00Z", "tcbStatus": "Revoked", "advisoryIDs": ["INTEL-SA-6"]},
        ]);
        let fmspc = [0x50, 0x80, 0x6f, 0, 0, 0];
        let mut platform_components = [0; 16];
        platform_components[..3].copy_from_slice(&[5, 5, 2]);
        let mut attributes = [0; 16];
        attributes[0] = 0x15;
        let mut tee_tcb_svn = [0; 16];
        tee_tcb_svn[..3].copy_from_slice(&[5, 1, 5]);
        Self {
            root_key: Key::new(),
            ca_key: Key::new(),
            pck_key: Key::new(),
            signer_key: Key::new(),
            attestation_key: Key::new(),
            root: draft("Lab Root CA", "Lab Root CA", 1, true),
            ca: draft("Lab PCK Platform CA", "Lab Root CA", 2, true),
            pck: draft("Lab PCK Certificate", "Lab PCK Platform CA", 3, false),
            signer: draft("Lab TCB Signing", "Lab Root CA", 4, false),
            platform: PlatformDraft { components: platform_components, pce_svn: 11, fmspc, without: None, twice: None },
            root_crl: list("Lab Root CA"),
            pck_crl: list("Lab PCK Platform CA"),
            tcb_info: tcb_info(&fmspc, "2027-01-10T00:00:00Z", "2027-02-09T00:00:00Z", &levels, &module_levels),
            qe_identity: qe_identity(&[0xdc; 32], "2027-01-11T00:00:00Z", "2027-02-10T00:00:00Z", &enclave_levels),
            report: EnclaveReport { mr_signer: [0xdc; 32], isv_prod_id: 2, isv_svn: 4, attributes, ..EnclaveReport::default() },
            header: Header { version: 4, reserved: [0; 4], qe_vendor_id: INTEL_QE_VENDOR_ID, user_data: [7; 20] },
            body: Body {
                tee_tcb_svn,
                td_attributes: TdAttributes(0x1000_0000),
                xfam: 0x0006_02e7,
                mr_td: TdMeasurement([0x21; 48]),
                mr_config_id: MrConfigId::from_digest(&INITDATA_DIGEST),
                rtmr: [0x30, 0x31, 0x32, 0].map(|byte| TdMeasurement([byte; 48])),
                report_data: REPORT_DATA,
                ..Body::default()
            },
            rules: TdxRules::default(),
            now: NOW,
        }
    }

    pub(crate) fn root_cert(&self) -> Certificate {
        self.root.signed(&self.root_key, &self.root_key)
    }

    pub(crate) fn pck_cert(&self) -> Certificate {
        let mut draft = Draft { extensions: self.pck.extensions.clone(), algorithm: ecdsa(), ..self.pck };
        draft.extensions.push(self.platform.extension());
        draft.signed(&self.pck_key, &self.ca_key)
    }

    pub(crate) fn ca_cert(&self) -> Certificate {
        self.ca.signed(&self.ca_key, &self.root_key)
    }

    pub(crate) fn signer_cert(&self) -> Certificate {
        self.signer.signed(&self.signer_key, &self.root_key)
    }

    /// The quote, with this chain in it.
    pub(crate) fn quote_with(&self, chain: Vec<u8>) -> Quote {
        let signer = Signer { enclave: &self.report, attestation_key: &self.attestation_key, pck_key: &self.pck_key, chain: &chain };
        intel::quote(self.header, self.body.clone(), &signer).expect("fits")
    }

    pub(crate) fn quote(&self) -> Quote {
        let mut chain = pem(&[&self.pck_cert(), &self.ca_cert(), &self.root_cert()]);
        // As quoting enclaves do.
        chain.push(0);
        self.quote_with(chain)
    }

    /// A piece of signed JSON.
    pub(crate) fn signed(&self, name: &str, body: &Value) -> Item {
        Item { body: signed_json(name, body, &self.signer_key), issuer_chain: pem(&[&self.signer_cert(), &self.root_cert()]) }
    }

    pub(crate) fn pieces(&self) -> Vec<(&'static str, Item)> {
        let list = |body| Item { body, issuer_chain: Vec::new() };
        vec![
            (TCB_INFO, self.signed("tcbInfo", &self.tcb_info)),
            (QE_IDENTITY, self.signed("enclaveIdentity", &self.qe_identity)),
            (PCK_CRL, list(self.pck_crl.signed(&self.ca_key))),
            (ROOT_CRL, list(self.root_crl.signed(&self.root_key))),
        ]
    }

    pub(crate) fn collateral(&self) -> Collateral {
        collateral(self.pieces())
    }

    pub(crate) fn roots(&self) -> RootSet {
        RootSet::intel().with_simulated("lab", &pem(&[&self.root_cert()])).expect("a root")
    }

    pub(crate) fn check_all(
        &self,
        quote: &Quote,
        collateral: &Collateral,
        roots: RootSet,
        checks: &mut Checks,
    ) -> Result<VerifiedTdx, TdxError> {
        self.check_evidence(quote, None, collateral, roots, checks)
    }

    /// With an event log beside the quote.
    pub(crate) fn check_evidence(
        &self,
        quote: &Quote,
        log: Option<&[u8]>,
        collateral: &Collateral,
        roots: RootSet,
        checks: &mut Checks,
    ) -> Result<VerifiedTdx, TdxError> {
        let evidence = Evidence::from_raw(&quote.to_bytes().expect("serialises"), log).expect("well formed");
        let mr_config_id = MrConfigId::from_digest(&INITDATA_DIGEST);
        let expected = TdxExpected { report_data: Some(&REPORT_DATA), mr_config_id: Some(&mr_config_id), now_unix: self.now };
        verify(&evidence, &expected, &TdxTrust { roots, rules: self.rules.clone() }, collateral, checks)
    }

    pub(crate) fn check_quote(&self, quote: &Quote) -> Result<VerifiedTdx, TdxError> {
        self.check_all(quote, &self.collateral(), self.roots(), &mut Checks::default())
    }

    pub(crate) fn check(&self) -> Result<VerifiedTdx, TdxError> {
        self.check_quote(&self.quote())
    }
}

pub(crate) fn need(path: &str) -> Need {
    Need { source: Source::IntelPcs, path: path.into() }
}

pub(crate) fn collateral(pieces: Vec<(&'static str, Item)>) -> Collateral {
    let mut collateral = Collateral::none();
    for (path, item) in pieces {
        collateral.insert(need(path), item);
    }
    collateral
}
