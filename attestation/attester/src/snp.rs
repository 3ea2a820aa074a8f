//! SNP reports, from whichever interface the kernel has.

use std::path::PathBuf;

use kata_cc_evidence::ReportData;
use kata_cc_evidence::snp::{Evidence, EvidenceError};

use crate::tsm::{Provider, ReportInterface};
use crate::{AttestError, MalformedEvidence, over, sev_guest};

/// Where reports come from.
#[derive(Debug)]
pub(crate) enum SnpReports {
    /// configfs-tsm.
    Tsm(ReportInterface),
    /// `/dev/sev-guest`, on kernels older than that.
    Device(PathBuf),
}

impl SnpReports {
    /// A report over `report_data`, with the host's certificates if it gives any.
    pub(crate) fn evidence(&self, report_data: &ReportData) -> Result<Evidence, AttestError> {
        let (report, certs) = match self {
            Self::Tsm(interface) => {
                let blobs = interface.report(Provider::SevGuest, report_data)?;
                (blobs.out, blobs.aux)
            }
            Self::Device(device) => sev_guest::report(device, report_data)?,
        };
        let evidence = match Evidence::from_raw(&report, &certs) {
            // The host writes the certificates. Garbage there must not keep the guest from using the report: the broker may know them.
            Err(EvidenceError::Certificates(error)) => {
                tracing::warn!(%error, "host's certificate table is malformed and left out");
                Evidence::from_raw(&report, &[])
            }
            other => other,
        };
        let evidence = evidence.map_err(MalformedEvidence::from)?;
        over(report_data, &evidence.report().report_data)?;
        Ok(evidence)
    }
}
