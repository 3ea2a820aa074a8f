//! `/dev/sev-guest`: reports on kernels without configfs-tsm (Linux `include/uapi/linux/sev-guest.h`).
//!
//! Two requests of that header and no more. The `virtee/sev` library has them too, but walks the certificate table, which the
//! *host* writes, through raw pointers; here it is bytes until [`kata_cc_evidence::snp::CertTable`] has parsed it.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd as _, RawFd};
use std::path::Path;

use kata_cc_evidence::ReportData;
use kata_cc_evidence::snp::Report;
use nix::errno::Errno;

/// Why the device gave no report.
#[derive(Debug, thiserror::Error)]
pub enum SevGuestError {
    /// The device cannot be opened.
    #[error("SEV guest device cannot be opened")]
    Open(#[source] io::Error),
    /// The request failed.
    #[error("SEV guest device refused the report (firmware error {firmware:#x}, hypervisor error {hypervisor:#x})")]
    Request {
        /// Error of the secure processor.
        firmware: u32,
        /// Error of the host.
        hypervisor: u32,
        /// What the kernel says.
        #[source]
        source: Errno,
    },
    /// The firmware's answer is malformed or says failure.
    #[error("SEV guest device: report response has status {status:#x} and {size} bytes, expected 0 and {expected}", expected = Report::LEN)]
    Response {
        /// Status word.
        status: u32,
        /// Size word.
        size: u32,
    },
}

/// `struct snp_report_req`.
#[repr(C)]
struct ReportReq {
    user_data: [u8; 64],
    vmpl: u32,
    reserved: [u8; 28],
}

/// `struct snp_ext_report_req`.
#[repr(C)]
struct ExtReportReq {
    data: ReportReq,
    certs_address: u64,
    certs_len: u32,
}

/// `struct snp_report_resp`: room for MSG_REPORT_RSP (AMD 56860): status, size, 24 reserved bytes, report.
#[repr(C)]
struct ReportResp {
    data: [u8; 4000],
}

/// `struct snp_guest_request_ioctl`.
#[repr(C)]
struct GuestRequest {
    msg_version: u8,
    req_data: u64,
    resp_data: u64,
    /// Low half: firmware's error; high half: the hypervisor's.
    exitinfo2: u64,
}

const _: () = {
    assert!(size_of::<ReportReq>() == 96);
    assert!(size_of::<ExtReportReq>() == 112);
    assert!(size_of::<ReportResp>() == 4000);
    assert!(size_of::<GuestRequest>() == 32);
};

/// Largest certificate table the kernel passes on (`SEV_FW_BLOB_MAX_SIZE`).
const CERTS_LEN: u32 = 16 * 1024;

mod ioctl {
    nix::ioctl_readwrite!(snp_get_report, b'S', 0x0, super::GuestRequest);
    nix::ioctl_readwrite!(snp_get_ext_report, b'S', 0x2, super::GuestRequest);
}

/// Raw report and raw certificate table, empty where the host gives none.
pub(crate) fn report(device: &Path, report_data: &ReportData) -> Result<(Vec<u8>, Vec<u8>), SevGuestError> {
    let file = File::open(device).map_err(SevGuestError::Open)?;
    match extended_report(file.as_raw_fd(), report_data) {
        Ok(found) => Ok(found),
        // The host's part (certificates) went wrong, not the firmware's: the report alone may still be had.
        Err(SevGuestError::Request { firmware: 0, hypervisor, .. }) if hypervisor != 0 => {
            plain_report(file.as_raw_fd(), report_data).map(|report| (report, Vec::new()))
        }
        Err(error) => Err(error),
    }
}

fn report_req(report_data: &ReportData) -> ReportReq {
    ReportReq { user_data: report_data.0, vmpl: 0, reserved: [0; 28] }
}

fn plain_report(fd: RawFd, report_data: &ReportData) -> Result<Vec<u8>, SevGuestError> {
    let mut req = report_req(report_data);
    let mut resp = ReportResp { data: [0; 4000] };
    let mut request = GuestRequest { msg_version: 1, req_data: (&raw mut req) as u64, resp_data: (&raw mut resp) as u64, exitinfo2: 0 };
    // SAFETY: `fd` is open for the duration of the call. `request` has the kernel's layout (sizes asserted above), and its two addresses
    // point to `req` and `resp`, which live and are borrowed by nobody else until the call returns. The kernel reads 96 bytes of
    // the first and writes at most 4000 to the second.
    #[expect(unsafe_code, reason = "ioctl(2) on the SEV guest device")]
    let result = unsafe { ioctl::snp_get_report(fd, &raw mut request) };
    outcome(result, &request)?;
    parse_response(&resp)
}

fn extended_report(fd: RawFd, report_data: &ReportData) -> Result<(Vec<u8>, Vec<u8>), SevGuestError> {
    let mut certs = vec![0_u8; CERTS_LEN as usize];
    let mut req = ExtReportReq { data: report_req(report_data), certs_address: certs.as_mut_ptr() as u64, certs_len: CERTS_LEN };
    let mut resp = ReportResp { data: [0; 4000] };
    let mut request = GuestRequest { msg_version: 1, req_data: (&raw mut req) as u64, resp_data: (&raw mut resp) as u64, exitinfo2: 0 };
    // SAFETY: as in `plain_report`; in addition `certs_address` points to `certs_len` bytes of `certs`, which live and are borrowed by
    // nobody else until the call returns, and the kernel writes no more than `certs_len` bytes there.
    #[expect(unsafe_code, reason = "ioctl(2) on the SEV guest device")]
    let result = unsafe { ioctl::snp_get_ext_report(fd, &raw mut request) };
    outcome(result, &request)?;
    // No certificates: the buffer is still all zeros, which is an empty table.
    Ok((parse_response(&resp)?, certs))
}

fn outcome(result: nix::Result<i32>, request: &GuestRequest) -> Result<(), SevGuestError> {
    let [f0, f1, f2, f3, h0, h1, h2, h3] = request.exitinfo2.to_le_bytes();
    let (firmware, hypervisor) = (u32::from_le_bytes([f0, f1, f2, f3]), u32::from_le_bytes([h0, h1, h2, h3]));
    match result {
        // Some kernels answer success and leave the error in the structure.
        Ok(_) if firmware == 0 && hypervisor == 0 => Ok(()),
        Ok(_) => Err(SevGuestError::Request { firmware, hypervisor, source: Errno::EIO }),
        Err(source) => Err(SevGuestError::Request { firmware, hypervisor, source }),
    }
}

fn parse_response(resp: &ReportResp) -> Result<Vec<u8>, SevGuestError> {
    let word = |offset: usize| {
        resp.data.get(offset..).and_then(|rest| rest.first_chunk::<4>()).map_or(u32::MAX, |bytes| u32::from_le_bytes(*bytes))
    };
    let (status, size) = (word(0), word(4));
    let report = resp.data.get(32..).and_then(|rest| rest.get(..Report::LEN));
    match report {
        Some(report) if status == 0 && usize::try_from(size) == Ok(Report::LEN) => Ok(report.to_vec()),
        _ => Err(SevGuestError::Response { status, size }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn response(status: u32, size: u32) -> ReportResp {
        let mut resp = ReportResp { data: [0; 4000] };
        resp.data[..4].copy_from_slice(&status.to_le_bytes());
        resp.data[4..8].copy_from_slice(&size.to_le_bytes());
        resp.data[32] = 2;
        resp
    }

    #[test]
    fn response_gives_the_report_behind_its_header() {
        let report = parse_response(&response(0, 1184)).expect("well formed");
        assert_eq!((report.len(), report[0]), (Report::LEN, 2));
    }

    #[test]
    fn refuses_responses_of_other_status_or_size() {
        for (status, size) in [(0x16, 1184), (0, 0), (0, 1183), (0, u32::MAX)] {
            assert!(matches!(parse_response(&response(status, size)), Err(SevGuestError::Response { .. })));
        }
    }

    #[test]
    fn errors_in_the_structure_count_even_when_the_call_succeeds() {
        let request = |exitinfo2| GuestRequest { msg_version: 1, req_data: 0, resp_data: 0, exitinfo2 };
        assert!(outcome(Ok(0), &request(0)).is_ok());
        assert!(matches!(outcome(Ok(0), &request(1 << 32)), Err(SevGuestError::Request { firmware: 0, hypervisor: 1, .. })));
        assert!(matches!(outcome(Err(Errno::EIO), &request(7)), Err(SevGuestError::Request { firmware: 7, hypervisor: 0, .. })));
    }

    #[test]
    fn a_file_that_is_no_device_is_refused() {
        let file = tempfile::NamedTempFile::new().expect("temporary file");
        let refused = report(file.path(), &ReportData([7; 64])).expect_err("no device");
        assert!(matches!(refused, SevGuestError::Request { source: Errno::ENOTTY, .. }));
    }
}
