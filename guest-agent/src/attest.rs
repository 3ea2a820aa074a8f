//! The hardware's word about this guest, fetched off the async threads since the secure processor may take its time.

use std::sync::Arc;

use kata_cc_evidence::snp::Evidence;
use kata_cc_evidence::{ReportData, TeeType};
use kata_cc_policy::Initdata;
use thiserror::Error;

/// Why there is no evidence, or it speaks against this guest.
#[derive(Debug, Error)]
pub(crate) enum AttestError {
    /// The TEE gives none.
    #[error("the TEE gives no evidence")]
    Tee(#[from] kata_cc_attester::AttestError),
    /// Initdata is not what this guest was launched with.
    #[error(transparent)]
    Initdata(#[from] kata_cc_attester::InitdataError),
    /// Evidence cannot be written as JSON.
    #[error("evidence cannot be written as JSON")]
    Json(#[from] serde_json::Error),
    /// A task of ours died.
    #[error("internal error: the task that asks the TEE died")]
    Died,
}

/// The TEE this guest runs in.
#[derive(Debug, Clone)]
pub(crate) struct Attester {
    tee: Arc<kata_cc_attester::Attester>,
}

impl Attester {
    /// Finds the TEE. There is no substitute for one.
    ///
    /// # Errors
    /// When there is none.
    pub(crate) fn detect() -> Result<Self, AttestError> {
        Ok(Self { tee: Arc::new(kata_cc_attester::Attester::detect()?) })
    }

    /// A TEE that answers nothing, for tests of what needs none.
    #[cfg(test)]
    pub(crate) fn mute() -> Self {
        let paths = kata_cc_attester::Paths { tsm_report: "/dev/null/none".into(), sev_guest: "/dev/null".into() };
        Self { tee: Arc::new(kata_cc_attester::Attester::detect_at(&paths).unwrap()) }
    }

    /// Which kind it is.
    #[must_use]
    pub(crate) fn kind(&self) -> TeeType {
        self.tee.tee()
    }

    async fn report(&self, report_data: ReportData) -> Result<Evidence, AttestError> {
        let tee = Arc::clone(&self.tee);
        let report = tokio::task::spawn_blocking(move || tee.evidence(&report_data)).await;
        Ok(report.map_err(|_| AttestError::Died)??)
    }

    /// Evidence over `report_data`, in the form brokers take.
    ///
    /// # Errors
    /// When the TEE gives none.
    pub(crate) async fn evidence(&self, report_data: [u8; 64]) -> Result<serde_json::Value, AttestError> {
        Ok(serde_json::to_value(self.report(ReportData(report_data)).await?)?)
    }

    /// Checks that this guest was launched with exactly this initdata.
    ///
    /// # Errors
    /// When it was not. The guest must not go on.
    pub(crate) async fn check_bound(&self, initdata: &Initdata) -> Result<(), AttestError> {
        // The report comes from our own hardware through our own kernel: nobody could replay one, so no nonce is needed.
        let evidence = self.report(ReportData::ZERO).await?;
        kata_cc_attester::check_initdata_bound(evidence.report(), initdata.digest().as_bytes())?;
        Ok(())
    }
}
