//! CoCo's `sample` evidence, which nobody signs: `{"svn", "report_data"}`. Anybody can make it, so it says nothing about the guest. It is known so that
//! CoCo's own clients can be tried against the broker, and for that alone.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use kata_cc_evidence::{ReportData, TeeType};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::checks::Checks;
use crate::collateral::Collateral;
use crate::{Expected, Verified, Verifier, VerifyError};

/// Why such evidence is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SampleError {
    /// Not base64, or not of a length that binds an exchange.
    #[error("report_data is not 32 to 64 bytes in standard base64")]
    Form,
    /// Of another exchange.
    #[error("report data is {found}, expected {expected}: the evidence is of another exchange")]
    ReportData {
        /// What binds nonce and key.
        expected: Box<ReportData>,
        /// What was found, zero padded.
        found: Box<ReportData>,
    },
}

impl SampleError {
    /// Name of the check that failed, without values: what a guest may know.
    #[must_use]
    pub fn rule(&self) -> &'static str {
        match self {
            Self::Form => "evidence-form",
            Self::ReportData { .. } => "report-data",
        }
    }
}

#[derive(Deserialize)]
struct Evidence {
    svn: String,
    report_data: String,
}

/// The digest as it came, in the field's size: CoCo's attester writes it without padding.
fn report_data(text: &str) -> Result<ReportData, SampleError> {
    let bytes = STANDARD.decode(text).map_err(|_| SampleError::Form)?;
    if !(32..=ReportData::LEN).contains(&bytes.len()) {
        return Err(SampleError::Form);
    }
    let mut padded = [0; ReportData::LEN];
    padded.iter_mut().zip(bytes).for_each(|(to, from)| *to = from);
    Ok(ReportData(padded))
}

/// Takes sample evidence for what it says. Among the verifiers only where [`crate::Trust::sample`] says so.
pub(crate) struct SampleVerifier;

impl Verifier for SampleVerifier {
    fn tee(&self) -> TeeType {
        TeeType::Sample
    }

    fn measurement<'a>(&self, _: &'a Value) -> Option<&'a str> {
        None
    }

    fn verify(&self, evidence: &Value, expected: &Expected<'_>, _: &Collateral, checks: &mut Checks) -> Result<Verified, VerifyError> {
        let evidence = Evidence::deserialize(evidence).map_err(|source| VerifyError::Malformed { tee: TeeType::Sample, source })?;
        let found = report_data(&evidence.report_data)?;
        match expected.report_data {
            Some(expected) => {
                let mismatch = || SampleError::ReportData { expected: Box::new(*expected), found: Box::new(found) };
                checks.record("report data", found, expected, (found == *expected).then_some(()).ok_or_else(mismatch))?;
            }
            None => checks.not_compared("report data", found.to_string()),
        }
        // There is no field for initdata.
        let claims = json!({"svn": evidence.svn, "report_data": found, "simulated": true});
        Ok(Verified { tee: TeeType::Sample, claims, simulated_root: Some("sample: nobody".into()) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Trust, Verifiers};

    const REPORT_DATA: ReportData = ReportData([7; 64]);

    fn verify(evidence: &Value, report_data: &ReportData) -> Result<Verified, VerifyError> {
        let verifiers = Verifiers::new(Trust { sample: true, ..Trust::hardware() });
        let expected = Expected { report_data: Some(report_data), initdata_digest: None, now_unix: 0 };
        verifiers.get(TeeType::Sample)?.verify(evidence, &expected, &Collateral::none(), &mut Checks::default())
    }

    fn evidence(bytes: &[u8]) -> Value {
        json!({"svn": "1", "report_data": STANDARD.encode(bytes)})
    }

    #[test]
    fn is_marked_and_bound_to_its_exchange() {
        let verified = verify(&evidence(&REPORT_DATA.0), &REPORT_DATA).expect("verifies");
        assert_eq!((&verified.claims()["simulated"], verified.simulated_root().is_some()), (&json!(true), true));
        // A digest of 48 bytes, as CoCo's attester has it.
        let mut padded = [0; 64];
        padded[..48].fill(9);
        assert!(verify(&evidence(&[9; 48]), &ReportData(padded)).is_ok());
        assert!(matches!(verify(&evidence(&[9; 48]), &REPORT_DATA), Err(VerifyError::Sample(SampleError::ReportData { .. }))));
    }

    #[test]
    fn malformed_evidence_is_refused() {
        // An empty one would match a client that binds nothing.
        for bytes in [&[][..], &[7; 31], &[7; 65]] {
            assert!(matches!(verify(&evidence(bytes), &REPORT_DATA), Err(VerifyError::Sample(SampleError::Form))));
        }
        assert!(matches!(verify(&json!({"svn": "1", "report_data": "%"}), &REPORT_DATA), Err(VerifyError::Sample(SampleError::Form))));
        assert!(matches!(verify(&json!({"svn": 1}), &REPORT_DATA), Err(VerifyError::Malformed { .. })));
    }
}
