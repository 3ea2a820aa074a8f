//! SNP evidence as it travels to the broker: report and certificates, in CoCo's JSON form.
//!
//! **Invariant:** an [`Evidence`] always has a raw form: its report was parsed from 1184 bytes or rebuilt to them.

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::cert_table::{CertTable, CertTableError};
use super::json::WireEvidence;
use super::report::{Report, ReportError};

/// Why evidence is malformed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EvidenceError {
    /// The report is malformed.
    #[error(transparent)]
    Report(#[from] ReportError),
    /// The certificate table is malformed.
    #[error(transparent)]
    Certificates(#[from] CertTableError),
    /// Only some of family, model and stepping are given.
    #[error("cpuid_fam_id, cpuid_mod_id and cpuid_step must be given together or not at all")]
    PartialCpuid,
    /// Too many certificates.
    #[error("cert_chain has {found} entries, at most {max} are accepted", max = CertTable::MAX_ENTRIES)]
    TooManyCertificates {
        /// How many there were.
        found: usize,
    },
    /// A certificate is too large.
    #[error("a certificate of cert_chain has {found} bytes, at most {max} are accepted", max = CertTable::MAX_LEN)]
    CertificateTooLarge {
        /// Its size.
        found: usize,
    },
}

/// A report with the certificates the host offered for it. Parsed, **not verified**.
///
/// Serialises to and from CoCo's `{"attestation_report":{…},"cert_chain":[…]|null}`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Evidence {
    report: Report,
    certs: Option<CertTable>,
}

impl Evidence {
    /// From a raw report and the raw certificate table beside it (empty: no certificates).
    ///
    /// # Errors
    /// When either is malformed.
    pub fn from_raw(report: &[u8], cert_table: &[u8]) -> Result<Self, EvidenceError> {
        let table = CertTable::parse(cert_table)?;
        Ok(Self { report: Report::parse(report)?, certs: (!table.entries.is_empty()).then_some(table) })
    }

    /// From parts.
    ///
    /// # Errors
    /// When the report's fields do not make a raw report.
    pub fn new(report: Report, certs: Option<CertTable>) -> Result<Self, EvidenceError> {
        report.to_bytes()?;
        Ok(Self { report, certs })
    }

    /// The report.
    #[must_use]
    pub fn report(&self) -> &Report {
        &self.report
    }

    /// The certificates, if the host gave any.
    #[must_use]
    pub fn certs(&self) -> Option<&CertTable> {
        self.certs.as_ref()
    }

    /// The raw report.
    #[must_use]
    pub fn report_bytes(&self) -> [u8; Report::LEN] {
        #[expect(clippy::expect_used, reason = "both constructors and the deserialiser have made these bytes before")]
        self.report.to_bytes().expect("an Evidence holds only reports that serialise")
    }
}

impl Serialize for Evidence {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        WireEvidence::from_parts(&self.report, self.certs.as_ref()).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Evidence {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let (report, certs) = WireEvidence::deserialize(deserializer)?.into_parts().map_err(serde::de::Error::custom)?;
        Ok(Self { report, certs })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snp::{CertEntry, CertKind, Cpuid, Guid, Signature};

    fn sample() -> Evidence {
        let report = Report {
            version: 3,
            cpuid: Some(Cpuid { family: 0x19, model: 0x11, stepping: 1 }),
            signature: Signature { r: [1; 72], s: [2; 72] },
            ..Report::default()
        };
        let entries = vec![
            CertEntry { kind: CertKind::Vcek, data: vec![1, 2, 3] },
            CertEntry { kind: CertKind::Other(Guid([7; 16])), data: vec![4] },
        ];
        Evidence::new(report, Some(CertTable { entries })).expect("well formed")
    }

    #[test]
    fn json_round_trips() {
        let text = serde_json::to_string(&sample()).expect("serialises");
        assert_eq!(serde_json::from_str::<Evidence>(&text).expect("parses"), sample());
    }

    #[test]
    fn json_has_cocos_form() {
        let json = serde_json::to_value(sample()).expect("serialises");
        let report = &json["attestation_report"];
        assert_eq!(report["policy"], 0);
        assert_eq!(report["report_data"].as_array().map(Vec::len), Some(64));
        assert_eq!(report["signature"]["r"][0], 1);
        assert_eq!(report["current_tcb"]["fmc"], serde_json::Value::Null);
        assert_eq!(report["current"]["major"], 0);
        assert_eq!(report["launch_mit_vector"], serde_json::Value::Null);
        assert_eq!(json["cert_chain"][0]["cert_type"], "VCEK");
        assert_eq!(json["cert_chain"][0]["data"], serde_json::json!([1, 2, 3]));
        assert_eq!(json["cert_chain"][1]["cert_type"]["OTHER"], "07070707-0707-0707-0707-070707070707");
    }

    #[test]
    fn absent_certificates_are_null() {
        let evidence = Evidence::new(Report::default(), None).expect("well formed");
        let json = serde_json::to_value(&evidence).expect("serialises");
        assert!(json["cert_chain"].is_null());
        assert_eq!(serde_json::from_value::<Evidence>(json).expect("parses"), evidence);
    }

    #[test]
    fn refuses_json_that_makes_no_report() {
        let good = serde_json::to_value(sample()).expect("serialises");
        let refused = |change: &dyn Fn(&mut serde_json::Value)| {
            let mut json = good.clone();
            change(&mut json);
            serde_json::from_value::<Evidence>(json).is_err()
        };
        assert!(!refused(&|_| ()));
        assert!(refused(&|j| j["attestation_report"]["version"] = 4.into()));
        assert!(refused(&|j| j["attestation_report"]["cpuid_step"] = serde_json::Value::Null));
        assert!(refused(&|j| j["attestation_report"]["current_tcb"]["fmc"] = 1.into()));
        assert!(refused(&|j| j["attestation_report"]["measurement"].as_array_mut().expect("array").push(0.into())));
        assert!(refused(&|j| j["attestation_report"]["measurement"] = serde_json::json!([1, 2])));
        assert!(refused(&|j| j["attestation_report"]["measurement"][0] = 256.into()));
        assert!(refused(&|j| j["cert_chain"][0]["cert_type"] = "XYZ".into()));
        let cert = good["cert_chain"][0].clone();
        assert!(refused(&|j| j["cert_chain"] = vec![cert.clone(); 17].into()));
    }
}
