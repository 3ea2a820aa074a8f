//! `/dev/tdx_guest` by FUSE: one file, mounted on a file, that answers the driver's one ioctl (Linux `include/uapi/linux/tdx-guest.h`).
//!
//! A character device would take CUSE, which guest kernels have no other use for. It need not be one: FUSE passes on ioctls of regular files
//! too, where the number tells how much is read and written, and the number of `TDX_CMD_GET_REPORT0` does.

use super::fs::errno;
use super::tsm::Refusal;
use fuser::{
    Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, INodeNo, IoctlFlags, OpenFlags, ReplyAttr, ReplyIoctl, ReplyOpen,
    Request,
};
use kata_cc_evidence::tdx::TdReport;
use std::time::{Duration, UNIX_EPOCH};

/// `TDX_CMD_GET_REPORT0`: `_IOWR('T', 1, struct tdx_report_req)`.
pub const GET_REPORT0: u32 = (3 << 30) | ((REQUEST_LEN as u32) << 16) | (0x54 << 8) | 1;
/// `struct tdx_report_req`: 64 bytes in, then the report.
const REQUEST_LEN: usize = 64 + TdReport::LEN;

/// Where a TD's reports of itself come from.
pub trait TdReports {
    /// A report over `report_data`. Any failure is EIO to the caller; the implementation logs why.
    fn td_report(&self, report_data: &[u8; 64]) -> Result<Vec<u8>, Refusal>;
}

/// The device as a FUSE file system of one file.
#[derive(Debug)]
pub struct TdxGuest<T> {
    reports: T,
}

impl<T: TdReports> TdxGuest<T> {
    /// A device over these reports.
    pub fn new(reports: T) -> Self {
        Self { reports }
    }

    /// Answers an ioctl with the whole structure.
    fn answer(&self, command: u32, request: &[u8]) -> Result<Vec<u8>, Errno> {
        if command != GET_REPORT0 {
            return Err(Errno::ENOTTY);
        }
        let report_data = request.first_chunk::<64>().filter(|_| request.len() == REQUEST_LEN).ok_or(Errno::EFAULT)?;
        let report = self.reports.td_report(report_data).map_err(errno)?;
        if report.len() != TdReport::LEN {
            return Err(Errno::EIO);
        }
        Ok([report_data.as_slice(), &report].concat())
    }
}

fn attr() -> FileAttr {
    FileAttr {
        ino: INodeNo(1),
        size: 0,
        blocks: 0,
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind: FileType::RegularFile,
        perm: 0o600,
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

impl<T: TdReports + Send + Sync + 'static> Filesystem for TdxGuest<T> {
    fn getattr(&self, _req: &Request, _ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&Duration::ZERO, &attr());
    }

    fn open(&self, _req: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        reply.opened(FileHandle(0), FopenFlags::FOPEN_DIRECT_IO);
    }

    fn ioctl(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _flags: IoctlFlags,
        cmd: u32,
        in_data: &[u8],
        _out_size: u32,
        reply: ReplyIoctl,
    ) {
        match self.answer(cmd, in_data) {
            Ok(answer) => reply.ioctl(0, &answer),
            Err(e) => reply.error(e),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Echo(usize);
    impl TdReports for Echo {
        fn td_report(&self, report_data: &[u8; 64]) -> Result<Vec<u8>, Refusal> {
            Ok(vec![report_data[0]; self.0])
        }
    }

    #[test]
    fn answers_the_drivers_ioctl_and_no_other() {
        let device = TdxGuest::new(Echo(1024));
        let answer = device.answer(GET_REPORT0, &[7; 1088]).unwrap();
        assert_eq!((answer.len(), answer[1087]), (1088, 7));
        assert_eq!(device.answer(GET_REPORT0 + 1, &[7; 1088]).unwrap_err().code(), Errno::ENOTTY.code());
        assert_eq!(device.answer(GET_REPORT0, &[7; 64]).unwrap_err().code(), Errno::EFAULT.code());
        assert_eq!(TdxGuest::new(Echo(10)).answer(GET_REPORT0, &[7; 1088]).unwrap_err().code(), Errno::EIO.code());
        assert_eq!(GET_REPORT0, 0xc440_5401);
    }
}
