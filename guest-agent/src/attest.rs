//! The hardware's word about this guest, fetched off the async threads since the secure processor may take its time.

use std::sync::Arc;

use kata_cc_attester::runtime_log::{RuntimeLog, RuntimeLogError};
use kata_cc_evidence::{ReportData, TeeType};
use kata_cc_policy::Initdata;
use thiserror::Error;

/// Why there is no evidence, or it speaks against this guest.
#[derive(Debug, Error)]
pub(crate) enum AttestError {
    /// The TEE gives none.
    #[error("the TEE gives no evidence")]
    Tee(#[source] kata_cc_attester::AttestError),
    /// Initdata is not what this guest was launched with.
    #[error(transparent)]
    Initdata(kata_cc_attester::InitdataError),
    /// The runtime event log cannot be begun, or its register is in doubt.
    #[error("the runtime event log")]
    Log(#[from] RuntimeLogError),
    /// Evidence cannot be written as JSON.
    #[error("evidence cannot be written as JSON")]
    Json(#[from] serde_json::Error),
    /// A task of ours died.
    #[error("internal error: the task that asks the TEE died")]
    Died,
}

impl From<kata_cc_attester::AttestError> for AttestError {
    fn from(error: kata_cc_attester::AttestError) -> Self {
        match error {
            kata_cc_attester::AttestError::Initdata(error) => Self::Initdata(error),
            kata_cc_attester::AttestError::Log(error) => Self::Log(error),
            other => Self::Tee(other),
        }
    }
}

/// The TEE this guest runs in.
#[derive(Debug, Clone)]
pub(crate) struct Attester {
    tee: Arc<kata_cc_attester::Attester>,
    log: Arc<RuntimeLog>,
}

impl Attester {
    /// Finds the TEE. There is no substitute for one.
    ///
    /// # Errors
    /// When there is none, or its runtime register holds what no event log explains.
    pub(crate) fn detect() -> Result<Self, AttestError> {
        Ok(Self { tee: Arc::new(kata_cc_attester::Attester::detect()?), log: Arc::new(RuntimeLog::open()?) })
    }

    /// The log of what happens in this guest.
    #[must_use]
    pub(crate) fn log(&self) -> &RuntimeLog {
        &self.log
    }

    /// The log as it is, where no register of the hardware holds it: for evidence to bind it by its report data.
    ///
    /// # Errors
    /// When the log is in doubt.
    pub(crate) fn unregistered_log(&self) -> Result<Option<Vec<u8>>, AttestError> {
        if self.log.has_register() { Ok(None) } else { Ok(Some(self.log.snapshot()?)) }
    }

    /// A TEE that answers nothing, for tests of what needs none.
    #[cfg(test)]
    pub(crate) fn mute() -> Self {
        let paths = kata_cc_attester::Paths {
            tsm_report: "/dev/null/none".into(),
            sev_guest: "/dev/null".into(),
            tdx_guest: "/dev/null/none".into(),
            prot_virt_guest: "/dev/null/none".into(),
            uv: "/dev/null/none".into(),
        };
        let nowhere = kata_cc_attester::runtime_log::RuntimePaths { register: "/nowhere/rtmr3".into(), firmware: "/nowhere/CCEL".into() };
        Self {
            tee: Arc::new(kata_cc_attester::Attester::detect_at(&paths).unwrap()),
            log: Arc::new(RuntimeLog::open_at(&nowhere).unwrap()),
        }
    }

    /// Which kind it is.
    #[must_use]
    pub(crate) fn kind(&self) -> TeeType {
        self.tee.tee()
    }

    async fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&kata_cc_attester::Attester, &RuntimeLog) -> Result<T, kata_cc_attester::AttestError> + Send + 'static,
    ) -> Result<T, AttestError> {
        let Self { tee, log } = self.clone();
        let answer = tokio::task::spawn_blocking(move || question(&tee, &log)).await;
        Ok(answer.map_err(|_| AttestError::Died)??)
    }

    /// Evidence over `report_data`, in the form brokers take; `nonce` is the broker's, where one asked.
    ///
    /// # Errors
    /// When the TEE gives none, or nobody knows what its runtime register holds.
    pub(crate) async fn evidence(&self, report_data: [u8; 64], nonce: Option<&str>) -> Result<serde_json::Value, AttestError> {
        let nonce = nonce.map(str::to_owned);
        let evidence = self.ask(move |tee, log| tee.evidence(&ReportData(report_data), nonce.as_deref(), log)).await?;
        Ok(serde_json::to_value(evidence)?)
    }

    /// Checks that this guest was launched with exactly this initdata.
    ///
    /// # Errors
    /// When it was not. The guest must not go on.
    pub(crate) async fn check_bound(&self, initdata: &Initdata) -> Result<(), AttestError> {
        let digest = initdata.digest().as_bytes().to_vec();
        self.ask(move |tee, _| tee.launched_with(&digest)).await
    }
}
