//! The guest's side of attestation: get evidence from the hardware, and hold it against the initdata this guest was given.
//!
//! Evidence comes from the kernel's configfs-tsm interface, or, on kernels without it, SNP's from `/dev/sev-guest`; a TD's report of itself from
//! `/dev/tdx_guest`; that of Secure Execution from `/dev/uv`. There is no other way: a guest without a TEE gets an error, never evidence of a weaker
//! kind.
//!
//! ```text
//! detect -> Attester --launched_with(digest of the initdata)-------> () or stop
//!                    --evidence(report data, nonce, runtime log)---> Evidence
//! ```
//! Not here: sending evidence anywhere, verifying it, deciding what to do when there is none.

#![deny(clippy::indexing_slicing, clippy::panic)]
#![cfg_attr(test, allow(clippy::indexing_slicing, clippy::panic))]

mod evidence;
mod initdata;
pub mod runtime_log;
mod sev_guest;
mod snp;
mod td;
mod tdx_guest;
#[cfg(test)]
mod tests;
pub mod tsm;
mod uv;

use std::path::{Path, PathBuf};

pub use evidence::{Evidence, MalformedEvidence};
pub use initdata::{InitdataError, LaunchField, check_initdata_bound};
use kata_cc_evidence::{ReportData, TeeType};
use runtime_log::{RuntimeLog, RuntimeLogError};
pub use sev_guest::SevGuestError;
use snp::SnpReports;
use td::Td;
pub use tdx_guest::TdxGuestError;
use tsm::Provider;
use uv::SeGuest;
pub use uv::UvError;

/// Why there is no evidence.
#[derive(Debug, thiserror::Error)]
pub enum AttestError {
    /// No interface is there.
    #[error(
        "this guest has no TEE: no report provider at {} and no device {}; it must be launched as a SEV-SNP guest, a TD or a guest of Secure \
         Execution, with a kernel that has CONFIG_TSM_REPORTS (on s390x: CONFIG_S390_UV_UAPI)",
        tsm.display(),
        device.display()
    )]
    NoTee {
        /// Where configfs-tsm was looked for.
        tsm: PathBuf,
        /// Which device was looked for.
        device: PathBuf,
    },
    /// Interfaces of two kinds of TEE are there.
    #[error(
        "this guest seems to be of two kinds: {device} is there, but reports are those of {provider}; a guest is one kind of TEE, \
         so something else made one of them"
    )]
    Several {
        /// The device that should not be there.
        device: String,
        /// Whose reports there are.
        provider: &'static str,
    },
    /// configfs-tsm failed.
    #[error(transparent)]
    Tsm(#[from] tsm::TsmError),
    /// SNP's device failed.
    #[error(transparent)]
    SevGuest(#[from] SevGuestError),
    /// TDX's device failed.
    #[error(transparent)]
    TdxGuest(#[from] TdxGuestError),
    /// The ultravisor gave nothing.
    #[error(transparent)]
    Uv(#[from] UvError),
    /// The host made no quote.
    #[error(
        "the host made no quote of this TD within 30 s or failed to: its VMM must have a quote generation service that answers (QEMU: \
         tdx-guest's quote-generation-socket)"
    )]
    NoQuote,
    /// What came is not evidence.
    #[error("the report interface gave malformed evidence")]
    Evidence(#[from] MalformedEvidence),
    /// The evidence is not over the data it was asked for.
    #[error("report data is {found}, asked for was {expected}: the report is somebody else's")]
    ReportData {
        /// What was asked for.
        expected: Box<ReportData>,
        /// What the evidence has.
        found: Box<ReportData>,
    },
    /// The runtime event log is in doubt, and so is what its register holds.
    #[error("the runtime event log")]
    Log(#[from] RuntimeLogError),
    /// The initdata is not what this guest was launched with.
    #[error(transparent)]
    Initdata(#[from] InitdataError),
}

/// Where to look for the hardware.
#[derive(Clone, Debug)]
pub struct Paths {
    /// configfs-tsm's report directory.
    pub tsm_report: PathBuf,
    /// The SEV guest device.
    pub sev_guest: PathBuf,
    /// The TDX guest device.
    pub tdx_guest: PathBuf,
    /// Where the kernel says whether this is a guest of Secure Execution.
    pub prot_virt_guest: PathBuf,
    /// The ultravisor device.
    pub uv: PathBuf,
}

impl Default for Paths {
    fn default() -> Self {
        Self {
            tsm_report: tsm::DEFAULT_PATH.into(),
            sev_guest: "/dev/sev-guest".into(),
            tdx_guest: "/dev/tdx_guest".into(),
            prot_virt_guest: uv::PROT_VIRT_GUEST.into(),
            uv: "/dev/uv".into(),
        }
    }
}

/// The hardware of this guest, found once at start.
#[derive(Debug)]
pub struct Attester {
    source: Source,
}

#[derive(Debug)]
enum Source {
    Snp(SnpReports),
    Tdx(Td),
    Se(SeGuest),
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
        Self::detect_with(tsm::ReportInterface::at(&paths.tsm_report), paths)
    }

    fn detect_with(interface: tsm::ReportInterface, paths: &Paths) -> Result<Self, AttestError> {
        let not_beside = |device: &Path, provider: Provider| match device.exists() {
            true => Err(AttestError::Several { device: device.display().to_string(), provider: provider.name() }),
            false => Ok(()),
        };
        if uv::is_guest(&paths.prot_virt_guest) {
            if let Some(device) = [&paths.sev_guest, &paths.tdx_guest].into_iter().find(|device| device.exists()) {
                return Err(AttestError::Several { device: device.display().to_string(), provider: "Secure Execution" });
            }
            if let Some(provider) = interface.probe()? {
                return Err(AttestError::Several { device: paths.prot_virt_guest.display().to_string(), provider: provider.name() });
            }
            return Ok(Self { source: Source::Se(SeGuest::new(&paths.uv)) });
        }
        // SNP's device is for kernels older than configfs-tsm only: a provider that is there but fails, or is unknown, is an error.
        let source = match interface.probe()? {
            Some(Provider::SevGuest) => {
                not_beside(&paths.tdx_guest, Provider::SevGuest)?;
                Source::Snp(SnpReports::Tsm(interface))
            }
            Some(Provider::TdxGuest) => {
                not_beside(&paths.sev_guest, Provider::TdxGuest)?;
                Source::Tdx(Td { quotes: interface, device: paths.tdx_guest.clone() })
            }
            None if paths.sev_guest.exists() => {
                not_beside(&paths.tdx_guest, Provider::SevGuest)?;
                Source::Snp(SnpReports::Device(paths.sev_guest.clone()))
            }
            None => return Err(AttestError::NoTee { tsm: paths.tsm_report.clone(), device: paths.sev_guest.clone() }),
        };
        Ok(Self { source })
    }

    /// Kind of TEE, as named to the broker.
    #[must_use]
    pub fn tee(&self) -> TeeType {
        match self.source {
            Source::Snp(_) => TeeType::Snp,
            Source::Tdx(_) => TeeType::Tdx,
            Source::Se(_) => TeeType::Se,
        }
    }

    /// Checks that this guest was launched with the initdata of this digest. Blocking, for milliseconds.
    ///
    /// The report comes from our own hardware through our own kernel: nobody could replay one, so no nonce is needed. Secure Execution has no field
    /// to compare: there the digest is put into all evidence from now on, and whoever verifies that compares it.
    ///
    /// # Errors
    /// When it was not, or the hardware does not say. The guest must not go on.
    pub fn launched_with(&self, digest: &[u8]) -> Result<(), AttestError> {
        let found = match &self.source {
            Source::Snp(reports) => LaunchField::HostData(reports.evidence(&ReportData::ZERO)?.report().host_data),
            Source::Tdx(td) => LaunchField::MrConfigId(td.own_report()?.mr_config_id),
            Source::Se(guest) => return Ok(guest.given(digest)?),
        };
        Ok(check_initdata_bound(found, digest)?)
    }

    /// Gets evidence over `report_data`. Blocking: SNP's secure processor answers within milliseconds, and the kernel gives up after a
    /// minute when the host does not let it. A quote takes what the host's quoting service takes, in steps of a second: Linux's driver
    /// looks for the answer that often, and 30 times at most.
    ///
    /// `nonce` is the broker's, where there is one: for Secure Execution its request is in it, and without a request there is no evidence. Other
    /// kinds do not look at it; it is in the report data.
    ///
    /// Evidence of a TD has the event log with it that replays to the RTMRs of its quote, `log` with it where that is extended into RTMR3.
    ///
    /// # Errors
    /// When the interface fails, what it gives is not evidence over `report_data`, or the log is in doubt.
    pub fn evidence(&self, report_data: &ReportData, nonce: Option<&str>, log: &RuntimeLog) -> Result<Evidence, AttestError> {
        match &self.source {
            Source::Snp(reports) => {
                let evidence = reports.evidence(report_data)?;
                // After the report: one made while the log went into doubt is not given out either.
                log.check()?;
                Ok(Evidence::Snp(Box::new(evidence)))
            }
            Source::Tdx(td) => Ok(Evidence::Tdx(Box::new(td.evidence(report_data, log)?))),
            Source::Se(guest) => {
                let evidence = guest.evidence(report_data, nonce)?;
                log.check()?;
                Ok(Evidence::Se(Box::new(evidence)))
            }
        }
    }
}

/// Whether evidence is over the data it was asked for.
fn over(expected: &ReportData, found: &ReportData) -> Result<(), AttestError> {
    if found == expected {
        return Ok(());
    }
    Err(AttestError::ReportData { expected: Box::new(*expected), found: Box::new(*found) })
}
