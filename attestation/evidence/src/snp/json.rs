//! Serde forms of CoCo's SNP evidence: byte arrays as arrays of integers, field names of the `virtee/sev` library.
//!
//! Private to the crate: the public face is [`super::Evidence`].

use std::fmt;

use serde::de::{Deserializer, Error as _, SeqAccess, Visitor};
use serde::ser::Serializer;
use serde::{Deserialize, Serialize};

use super::cert_table::{CertEntry, CertKind, CertTable, Guid};
use super::evidence::EvidenceError;
use super::fields::{Cpuid, FirmwareVersion, KeyInfo, PlatformInfo, Policy, Signature, TcbVersion};
use super::report::Report;
use crate::values::{HostData, LaunchDigest, ReportData};

/// An array of `N` bytes as a JSON array of `N` integers.
struct Bytes<const N: usize>([u8; N]);

impl<const N: usize> Serialize for Bytes<N> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0)
    }
}

impl<'de, const N: usize> Deserialize<'de> for Bytes<N> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Exactly<const N: usize>;
        impl<'de, const N: usize> Visitor<'de> for Exactly<N> {
            type Value = Bytes<N>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "an array of exactly {N} bytes")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Bytes<N>, A::Error> {
                let mut bytes = [0; N];
                for (index, slot) in bytes.iter_mut().enumerate() {
                    *slot = seq.next_element()?.ok_or_else(|| A::Error::invalid_length(index, &self))?;
                }
                if seq.next_element::<u8>()?.is_some() {
                    return Err(A::Error::invalid_length(N.saturating_add(1), &self));
                }
                Ok(Bytes(bytes))
            }
        }
        deserializer.deserialize_seq(Exactly::<N>)
    }
}

#[derive(Serialize, Deserialize)]
struct WireSignature {
    r: Bytes<72>,
    s: Bytes<72>,
}

/// Unknown fields are ignored on purpose: the report is rebuilt from the known ones and its signature is checked over that, so a
/// field of a newer library that matters makes the signature fail rather than being overlooked.
#[derive(Serialize, Deserialize)]
struct WireReport {
    version: u32,
    guest_svn: u32,
    policy: Policy,
    family_id: Bytes<16>,
    image_id: Bytes<16>,
    vmpl: u32,
    sig_algo: u32,
    current_tcb: TcbVersion,
    plat_info: PlatformInfo,
    key_info: KeyInfo,
    report_data: Bytes<64>,
    measurement: Bytes<48>,
    host_data: Bytes<32>,
    id_key_digest: Bytes<48>,
    author_key_digest: Bytes<48>,
    report_id: Bytes<32>,
    report_id_ma: Bytes<32>,
    reported_tcb: TcbVersion,
    #[serde(default)]
    cpuid_fam_id: Option<u8>,
    #[serde(default)]
    cpuid_mod_id: Option<u8>,
    #[serde(default)]
    cpuid_step: Option<u8>,
    chip_id: Bytes<64>,
    committed_tcb: TcbVersion,
    current: FirmwareVersion,
    committed: FirmwareVersion,
    launch_tcb: TcbVersion,
    #[serde(default)]
    launch_mit_vector: Option<u64>,
    #[serde(default)]
    current_mit_vector: Option<u64>,
    signature: WireSignature,
}

#[derive(Serialize, Deserialize)]
enum WireKind {
    Empty,
    #[serde(rename = "ARK")]
    Ark,
    #[serde(rename = "ASK")]
    Ask,
    #[serde(rename = "VCEK")]
    Vcek,
    #[serde(rename = "VLEK")]
    Vlek,
    #[serde(rename = "CRL")]
    Crl,
    #[serde(rename = "OTHER")]
    Other(String),
}

#[derive(Serialize, Deserialize)]
struct WireCert {
    cert_type: WireKind,
    data: Vec<u8>,
}

#[derive(Serialize, Deserialize)]
pub(super) struct WireEvidence {
    attestation_report: WireReport,
    #[serde(default)]
    cert_chain: Option<Vec<WireCert>>,
}

impl WireEvidence {
    pub(super) fn from_parts(report: &Report, certs: Option<&CertTable>) -> Self {
        Self { attestation_report: report.into(), cert_chain: certs.map(|table| table.entries.iter().map(WireCert::from).collect()) }
    }

    pub(super) fn into_parts(self) -> Result<(Report, Option<CertTable>), EvidenceError> {
        let report = Report::try_from(self.attestation_report)?;
        let Some(wire) = self.cert_chain else { return Ok((report, None)) };
        if wire.len() > CertTable::MAX_ENTRIES {
            return Err(EvidenceError::TooManyCertificates { found: wire.len() });
        }
        let mut entries = Vec::with_capacity(wire.len());
        for cert in wire {
            if cert.data.len() > CertTable::MAX_LEN {
                return Err(EvidenceError::CertificateTooLarge { found: cert.data.len() });
            }
            let kind = match cert.cert_type {
                WireKind::Empty => continue,
                WireKind::Ark => CertKind::Ark,
                WireKind::Ask => CertKind::Ask,
                WireKind::Vcek => CertKind::Vcek,
                WireKind::Vlek => CertKind::Vlek,
                WireKind::Crl => CertKind::Crl,
                WireKind::Other(guid) => CertKind::Other(guid.parse::<Guid>()?),
            };
            entries.push(CertEntry { kind, data: cert.data });
        }
        Ok((report, Some(CertTable { entries })))
    }
}

impl From<&CertEntry> for WireCert {
    fn from(entry: &CertEntry) -> Self {
        let cert_type = match entry.kind {
            CertKind::Ark => WireKind::Ark,
            CertKind::Ask => WireKind::Ask,
            CertKind::Vcek => WireKind::Vcek,
            CertKind::Vlek => WireKind::Vlek,
            CertKind::Crl => WireKind::Crl,
            CertKind::Other(guid) => WireKind::Other(guid.to_string()),
        };
        Self { cert_type, data: entry.data.clone() }
    }
}

impl From<&Report> for WireReport {
    fn from(r: &Report) -> Self {
        Self {
            version: r.version,
            guest_svn: r.guest_svn,
            policy: r.policy,
            family_id: Bytes(r.family_id),
            image_id: Bytes(r.image_id),
            vmpl: r.vmpl,
            sig_algo: r.signature_algo,
            current_tcb: r.current_tcb,
            plat_info: r.platform_info,
            key_info: r.key_info,
            report_data: Bytes(r.report_data.0),
            measurement: Bytes(r.measurement.0),
            host_data: Bytes(r.host_data.0),
            id_key_digest: Bytes(r.id_key_digest),
            author_key_digest: Bytes(r.author_key_digest),
            report_id: Bytes(r.report_id),
            report_id_ma: Bytes(r.report_id_ma),
            reported_tcb: r.reported_tcb,
            cpuid_fam_id: r.cpuid.map(|cpuid| cpuid.family),
            cpuid_mod_id: r.cpuid.map(|cpuid| cpuid.model),
            cpuid_step: r.cpuid.map(|cpuid| cpuid.stepping),
            chip_id: Bytes(r.chip_id),
            committed_tcb: r.committed_tcb,
            current: r.current,
            committed: r.committed,
            launch_tcb: r.launch_tcb,
            launch_mit_vector: r.launch_mit_vector,
            current_mit_vector: r.current_mit_vector,
            signature: WireSignature { r: Bytes(r.signature.r), s: Bytes(r.signature.s) },
        }
    }
}

impl TryFrom<WireReport> for Report {
    type Error = EvidenceError;

    fn try_from(w: WireReport) -> Result<Self, EvidenceError> {
        let cpuid = match (w.cpuid_fam_id, w.cpuid_mod_id, w.cpuid_step) {
            (Some(family), Some(model), Some(stepping)) => Some(Cpuid { family, model, stepping }),
            (None, None, None) => None,
            _ => return Err(EvidenceError::PartialCpuid),
        };
        let report = Self {
            version: w.version,
            guest_svn: w.guest_svn,
            policy: w.policy,
            family_id: w.family_id.0,
            image_id: w.image_id.0,
            vmpl: w.vmpl,
            signature_algo: w.sig_algo,
            current_tcb: w.current_tcb,
            platform_info: w.plat_info,
            key_info: w.key_info,
            report_data: ReportData(w.report_data.0),
            measurement: LaunchDigest(w.measurement.0),
            host_data: HostData(w.host_data.0),
            id_key_digest: w.id_key_digest.0,
            author_key_digest: w.author_key_digest.0,
            report_id: w.report_id.0,
            report_id_ma: w.report_id_ma.0,
            reported_tcb: w.reported_tcb,
            cpuid,
            chip_id: w.chip_id.0,
            committed_tcb: w.committed_tcb,
            current: w.current,
            committed: w.committed,
            launch_tcb: w.launch_tcb,
            launch_mit_vector: w.launch_mit_vector,
            current_mit_vector: w.current_mit_vector,
            signature: Signature { r: w.signature.r.0, s: w.signature.s.0 },
        };
        // Fields that do not make a report are refused here, so that every later step may rely on the raw form existing.
        report.to_bytes()?;
        Ok(report)
    }
}
