//! `/dev/tdx_guest`: a TD's report of itself (Linux `include/uapi/linux/tdx-guest.h`).
//!
//! The TDX module answers at once and nobody else is asked, whereas a quote is made by a service of the host, for which the driver behind
//! configfs-tsm waits in steps of a second. So this is how a guest learns what it was launched with.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;
use std::path::Path;

use kata_cc_evidence::ReportData;
use kata_cc_evidence::tdx::{TdReport, TdReportError};
use nix::errno::Errno;

/// Why the device gave no report.
#[derive(Debug, thiserror::Error)]
pub enum TdxGuestError {
    /// The device cannot be opened.
    #[error("TDX guest device cannot be opened")]
    Open(#[source] io::Error),
    /// The request failed.
    #[error("TDX guest device refused the TD report")]
    Request(#[source] Errno),
    /// The answer is malformed.
    #[error("TDX guest device")]
    Report(#[from] TdReportError),
    /// The report is not over the data it was asked for.
    #[error("TDX guest device: the TD report is over {found}, expected {expected}")]
    ReportData {
        /// What was asked for.
        expected: Box<ReportData>,
        /// What the report has.
        found: Box<ReportData>,
    },
}

/// `struct tdx_report_req`.
#[repr(C)]
struct ReportRequest {
    report_data: [u8; ReportData::LEN],
    td_report: [u8; TdReport::LEN],
}

const _: () = assert!(size_of::<ReportRequest>() == 1088);

mod ioctl {
    nix::ioctl_readwrite!(tdx_get_report0, b'T', 0x1, super::ReportRequest);
}

/// The TD's report of itself over `report_data`.
pub(crate) fn report(device: &Path, report_data: &ReportData) -> Result<TdReport, TdxGuestError> {
    let file = File::open(device).map_err(TdxGuestError::Open)?;
    let mut request = ReportRequest { report_data: report_data.0, td_report: [0; TdReport::LEN] };
    // SAFETY: the file is open for the duration of the call. `request` has the kernel's layout (size asserted above), lives and is borrowed by
    // nobody else until the call returns; the kernel reads and writes no more than it.
    #[expect(unsafe_code, reason = "ioctl(2) on the TDX guest device")]
    unsafe { ioctl::tdx_get_report0(file.as_raw_fd(), &raw mut request) }.map_err(TdxGuestError::Request)?;
    checked(&request.td_report, report_data)
}

fn checked(td_report: &[u8], report_data: &ReportData) -> Result<TdReport, TdxGuestError> {
    let report = TdReport::parse(td_report)?;
    if report.report_data != *report_data {
        return Err(TdxGuestError::ReportData { expected: Box::new(*report_data), found: Box::new(report.report_data) });
    }
    Ok(report)
}

#[cfg(test)]
mod tests {
    use super::*;
    use kata_cc_evidence::tdx::TdAttributes;
    use kata_cc_evidence::{MrConfigId, TdMeasurement};

    #[test]
    fn takes_the_report_over_its_own_data_and_no_other() {
        let made = TdReport {
            report_data: ReportData([7; 64]),
            td_attributes: TdAttributes::default(),
            xfam: 0,
            mr_td: TdMeasurement::ZERO,
            mr_config_id: MrConfigId([3; 48]),
            mr_owner: TdMeasurement::ZERO,
            mr_owner_config: TdMeasurement::ZERO,
            rtmr: [TdMeasurement::ZERO; 4],
        };
        let bytes = made.to_unsigned_bytes();
        assert_eq!(checked(&bytes, &ReportData([7; 64])).expect("its own").mr_config_id, MrConfigId([3; 48]));
        assert!(matches!(checked(&bytes, &ReportData([8; 64])), Err(TdxGuestError::ReportData { .. })));
        assert!(matches!(checked(&[0; 1024], &ReportData::ZERO), Err(TdxGuestError::Report(_))));
    }

    #[test]
    fn a_file_that_is_no_device_is_refused() {
        let file = tempfile::NamedTempFile::new().expect("temporary file");
        assert!(matches!(report(file.path(), &ReportData::ZERO), Err(TdxGuestError::Request(Errno::ENOTTY))));
        assert!(matches!(report(Path::new("/nowhere/tdx_guest"), &ReportData::ZERO), Err(TdxGuestError::Open(_))));
    }
}
