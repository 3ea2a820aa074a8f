//! The guest's side of attestation: get a report from the hardware, and hold it against the initdata this guest was given.
//!
//! Reports come from the kernel's configfs-tsm interface, or, on kernels without it, from `/dev/sev-guest`. There is no third way: a guest
//! without a TEE gets an error, never evidence of a weaker kind.
//!
//! Not here: sending evidence anywhere, verifying it, deciding what to do when there is none.

#![deny(clippy::indexing_slicing, clippy::panic)]
#![cfg_attr(test, allow(clippy::indexing_slicing, clippy::panic))]

mod initdata;
mod sev_guest;
pub mod tsm;

use std::path::{Path, PathBuf};

pub use initdata::{InitdataError, check_initdata_bound};
use kata_cc_evidence::snp::{Evidence, EvidenceError};
use kata_cc_evidence::{ReportData, TeeType};
pub use sev_guest::SevGuestError;

/// Why there is no evidence.
#[derive(Debug, thiserror::Error)]
pub enum AttestError {
    /// Neither interface is there.
    #[error(
        "this guest has no TEE: no report provider at {} and no device {}; it must be launched as a SEV-SNP guest",
        tsm.display(),
        device.display()
    )]
    NoTee {
        /// Where configfs-tsm was looked for.
        tsm: PathBuf,
        /// Which device was looked for.
        device: PathBuf,
    },
    /// configfs-tsm failed.
    #[error(transparent)]
    Tsm(#[from] tsm::TsmError),
    /// The device failed.
    #[error(transparent)]
    Device(#[from] SevGuestError),
    /// What came is not a report.
    #[error("the report interface gave malformed evidence")]
    Evidence(#[from] EvidenceError),
    /// The report is not over the data it was asked for.
    #[error("report data is {found}, asked for was {expected}: the report is somebody else's")]
    ReportData {
        /// What was asked for.
        expected: Box<ReportData>,
        /// What the report has.
        found: Box<ReportData>,
    },
}

/// Where to look for the hardware.
#[derive(Clone, Debug)]
pub struct Paths {
    /// configfs-tsm's report directory.
    pub tsm_report: PathBuf,
    /// The SEV guest device.
    pub sev_guest: PathBuf,
}

impl Default for Paths {
    fn default() -> Self {
        Self { tsm_report: tsm::DEFAULT_PATH.into(), sev_guest: "/dev/sev-guest".into() }
    }
}

/// The hardware of this guest, found once at start.
#[derive(Debug)]
pub struct Attester {
    source: Source,
}

#[derive(Debug)]
enum Source {
    Tsm(tsm::ReportInterface),
    SevGuest(PathBuf),
}

impl Attester {
    /// Finds the TEE at the usual places.
    ///
    /// # Errors
    /// When there is none, or one this agent has no attester for.
    pub fn detect() -> Result<Self, AttestError> {
        Self::detect_at(&Paths::default())
    }

    /// Finds the TEE at given places.
    ///
    /// # Errors
    /// As [`Attester::detect`].
    pub fn detect_at(paths: &Paths) -> Result<Self, AttestError> {
        let interface = tsm::ReportInterface::at(&paths.tsm_report);
        // The device is for kernels older than configfs-tsm only: a provider that is there but fails, or is another TEE's, is an error.
        if interface.probe()? {
            return Ok(Self { source: Source::Tsm(interface) });
        }
        if paths.sev_guest.exists() {
            return Ok(Self { source: Source::SevGuest(paths.sev_guest.clone()) });
        }
        Err(AttestError::NoTee { tsm: paths.tsm_report.clone(), device: paths.sev_guest.clone() })
    }

    /// Kind of TEE, as named to the broker.
    #[must_use]
    pub fn tee(&self) -> TeeType {
        TeeType::Snp
    }

    /// Gets evidence over `report_data`. Blocking: the secure processor answers within milliseconds, and the kernel gives up after a
    /// minute when the host does not let it.
    ///
    /// # Errors
    /// When the interface fails or what it gives is not a report over `report_data`.
    pub fn evidence(&self, report_data: &ReportData) -> Result<Evidence, AttestError> {
        let (report, certs) = match &self.source {
            Source::Tsm(interface) => {
                let blobs = interface.report(report_data)?;
                (blobs.out, blobs.aux)
            }
            Source::SevGuest(device) => sev_guest::report(device as &Path, report_data)?,
        };
        let evidence = match Evidence::from_raw(&report, &certs) {
            // The host writes the certificates. Garbage there must not keep the guest from using the report: the broker may know them.
            Err(EvidenceError::Certificates(error)) => {
                tracing::warn!(%error, "host's certificate table is malformed and left out");
                Evidence::from_raw(&report, &[])?
            }
            other => other?,
        };
        let found = evidence.report().report_data;
        if found != *report_data {
            return Err(AttestError::ReportData { expected: Box::new(*report_data), found: Box::new(found) });
        }
        Ok(evidence)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_without_tee_gets_an_error_and_nothing_else() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let paths = Paths { tsm_report: dir.path().join("report"), sev_guest: dir.path().join("sev-guest") };
        let refused = Attester::detect_at(&paths).expect_err("nothing is there");
        assert!(matches!(refused, AttestError::NoTee { .. }));
        assert!(refused.to_string().contains("SEV-SNP"));
    }

    #[test]
    fn a_directory_that_is_no_report_interface_is_not_taken_for_one() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let paths = Paths { tsm_report: dir.path().into(), sev_guest: dir.path().join("sev-guest") };
        assert!(matches!(Attester::detect_at(&paths), Err(AttestError::Tsm(_))));
        // Nor is anything left behind.
        assert_eq!(std::fs::read_dir(dir.path()).expect("readable").count(), 0);
    }
}
