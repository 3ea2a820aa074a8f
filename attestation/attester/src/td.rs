//! A TD: its quotes, and its report of itself.

use std::path::PathBuf;

use kata_cc_evidence::ReportData;
use kata_cc_evidence::tdx::{Evidence, TdReport};

use crate::runtime_log::RuntimeLog;
use crate::tsm::{Provider, ReportInterface};
use crate::{AttestError, MalformedEvidence, over, tdx_guest};

/// The interfaces of the kernel.
#[derive(Debug)]
pub(crate) struct Td {
    /// Quotes, by way of the host's quoting service.
    pub(crate) quotes: ReportInterface,
    /// Reports of the TDX module, which no host takes part in.
    pub(crate) device: PathBuf,
}

impl Td {
    /// What the TDX module tells this TD of itself.
    pub(crate) fn own_report(&self) -> Result<TdReport, AttestError> {
        Ok(tdx_guest::report(&self.device, &ReportData::ZERO)?)
    }

    /// A quote over `report_data`, with the log that replays to its RTMRs.
    pub(crate) fn evidence(&self, report_data: &ReportData, log: &RuntimeLog) -> Result<Evidence, AttestError> {
        let quote = self.quotes.report(Provider::TdxGuest, report_data)?.out;
        // The driver passes on neither the host's error nor, in some versions, that it waited in vain.
        if quote.is_empty() {
            return Err(AttestError::NoQuote);
        }
        let evidence = Evidence::from_raw(&quote, None).map_err(MalformedEvidence::from)?;
        let body = &evidence.quote().body;
        over(report_data, &body.report_data)?;
        let [.., rtmr3] = &body.rtmr;
        let log = log.beside_quote(rtmr3.as_bytes())?;
        Ok(Evidence::from_raw(&quote, log.as_deref()).map_err(MalformedEvidence::from)?)
    }
}
