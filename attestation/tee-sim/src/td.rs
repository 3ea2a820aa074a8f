//! The simulated TD: what was launched in registers and an event log, quotes, and the TD's report of itself.
//!
//! | register | a machine measures | measured here |
//! |---|---|---|
//! | MRTD | the pages that the firmware's metadata name | the firmware file |
//! | RTMR0 | what the host tells the firmware of the machine | the text `vcpus=N` |
//! | RTMR1 | the kernel: the Authenticode digest of its PE image | the kernel file |
//! | RTMR2 | command line, then initrd, by Linux's EFI stub | the same |
//! | RTMR3 | nothing; the guest extends it while it runs | nothing, and nobody can extend it |
//!
//! All by SHA-384. So another file, command line or number of CPUs is another launch here too, but the values are not those that hardware would
//! give: the simulated firmware is no TDVF, and no EFI stub runs under it.
//!
//! **Invariant:** the guest chooses the report data, nothing else.

use std::path::{Path, PathBuf};

use kata_cc_evidence::eventlog::{EventDigest, EventType, HashAlgorithm, encode_event, encode_header};
use kata_cc_evidence::tdx::{Body, Header, INTEL_QE_VENDOR_ID, QuoteError, TdAttributes, TdReport};
use kata_cc_evidence::{MrConfigId, ReportData, TdMeasurement};

use crate::intel::{Identity, TEE_TCB_SVN};

/// SEPT_VE_DISABLE and nothing else.
pub const ATTRIBUTES: TdAttributes = TdAttributes(1 << 28);
/// x87, SSE, AVX, AVX-512, PKRU and AMX, as real TDs have.
pub const XFAM: u64 = 0x0006_02e7;

const ALGORITHM: HashAlgorithm = HashAlgorithm::SHA384;
/// `LOAD_OPTIONS_EVENT_TAG_ID` and `INITRD_EVENT_TAG_ID` of Linux's EFI stub.
const LOAD_OPTIONS: u32 = 0x8f3b_22ed;
const INITRD: u32 = 0x8f3b_22ec;

/// What a TD is launched with.
#[derive(Debug, Clone)]
pub struct Launch {
    /// Firmware image.
    pub firmware: PathBuf,
    /// Kernel image.
    pub kernel: PathBuf,
    /// Initrd.
    pub initrd: PathBuf,
    /// Kernel command line.
    pub append: String,
    /// Number of vCPUs.
    pub vcpus: u32,
    /// Where the initdata digest goes.
    pub mr_config_id: MrConfigId,
}

/// A file that was launched cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("cannot read {}", path.display())]
pub struct LaunchError {
    path: PathBuf,
    source: std::io::Error,
}

/// What was fixed when the TD was launched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Launched {
    /// MRTD.
    pub mr_td: TdMeasurement,
    /// RTMR0 to RTMR3.
    pub rtmr: [TdMeasurement; 4],
    /// MRCONFIGID.
    pub mr_config_id: MrConfigId,
    /// The event log that replays to the RTMRs, as firmware and EFI stub would leave it.
    pub event_log: Vec<u8>,
}

impl Launch {
    /// Reads the files and measures them.
    ///
    /// # Errors
    /// When one cannot be read.
    pub fn measure(&self) -> Result<Launched, LaunchError> {
        let (firmware, kernel, initrd) = (read(&self.firmware)?, read(&self.kernel)?, read(&self.initrd)?);
        let mut td = Measuring { rtmr: [[0; 48]; 4], events: Vec::new() };
        let machine = format!("vcpus={}", self.vcpus);
        td.extend(0, EventType::PLATFORM_CONFIG_FLAGS, machine.as_bytes(), machine.as_bytes());
        td.extend(1, EventType::EFI_BOOT_SERVICES_APPLICATION, &kernel, &image_load_event());
        td.extend(2, EventType::EVENT_TAG, &load_options(&self.append), &tagged(LOAD_OPTIONS, b"LOADED_IMAGE::LoadOptions\0"));
        td.extend(2, EventType::EVENT_TAG, &initrd, &tagged(INITRD, b"Linux initrd\0"));
        Ok(Launched {
            mr_td: TdMeasurement(sha384(&[&firmware])),
            rtmr: td.rtmr.map(TdMeasurement),
            mr_config_id: self.mr_config_id,
            event_log: [encode_header(&[ALGORITHM]), td.events].concat(),
        })
    }
}

impl Launched {
    /// A quote over this report data.
    ///
    /// # Errors
    /// Never for the quotes made here.
    pub fn quote(&self, identity: &Identity, report_data: ReportData) -> Result<Vec<u8>, QuoteError> {
        let header = Header { version: 4, reserved: [0; 4], qe_vendor_id: INTEL_QE_VENDOR_ID, user_data: [0; 20] };
        let body = Body {
            tee_tcb_svn: TEE_TCB_SVN,
            td_attributes: ATTRIBUTES,
            xfam: XFAM,
            mr_td: self.mr_td,
            mr_config_id: self.mr_config_id,
            rtmr: self.rtmr,
            report_data,
            ..Body::default()
        };
        kata_cc_sim_intel::quote(header, body, &identity.signer())?.to_bytes()
    }

    /// The TD's report of itself over this report data. Its MAC is zero: nobody but the TD sees it, and a TD does not check it.
    #[must_use]
    pub fn td_report(&self, report_data: ReportData) -> [u8; TdReport::LEN] {
        let report = TdReport {
            report_data,
            td_attributes: ATTRIBUTES,
            xfam: XFAM,
            mr_td: self.mr_td,
            mr_config_id: self.mr_config_id,
            mr_owner: TdMeasurement::ZERO,
            mr_owner_config: TdMeasurement::ZERO,
            rtmr: self.rtmr,
        };
        report.to_unsigned_bytes()
    }
}

struct Measuring {
    rtmr: [[u8; 48]; 4],
    events: Vec<u8>,
}

impl Default for Launched {
    /// Zeros, for tests.
    fn default() -> Self {
        Self {
            mr_td: TdMeasurement::ZERO,
            rtmr: [TdMeasurement::ZERO; 4],
            mr_config_id: MrConfigId::ZERO,
            event_log: encode_header(&[ALGORITHM]),
        }
    }
}

impl Measuring {
    /// Extends a register by what was measured, and logs it under a payload.
    fn extend(&mut self, register: u32, kind: EventType, measured: &[u8], payload: &[u8]) {
        let digest = sha384(&[measured]);
        if let Some(value) = usize::try_from(register).ok().and_then(|register| self.rtmr.get_mut(register)) {
            *value = sha384(&[value.as_slice(), &digest]);
        }
        // In a log, RTMR0 is register 1.
        let digest = EventDigest { algorithm: ALGORITHM, bytes: digest.to_vec() };
        self.events.extend(encode_event(register.saturating_add(1), kind, digest, payload));
    }
}

fn sha384(parts: &[&[u8]]) -> [u8; 48] {
    let digest = ALGORITHM.hash(parts).expect("SHA-384 is known");
    digest.try_into().expect("SHA-384 has 48 bytes")
}

fn read(path: &Path) -> Result<Vec<u8>, LaunchError> {
    std::fs::read(path).map_err(|source| LaunchError { path: path.into(), source })
}

/// A command line as EFI hands it to Linux: UTF-16 with its end.
fn load_options(append: &str) -> Vec<u8> {
    append.encode_utf16().chain([0]).flat_map(u16::to_le_bytes).collect()
}

/// `TCG_PCClientTaggedEvent`.
fn tagged(id: u32, text: &[u8]) -> Vec<u8> {
    let len = u32::try_from(text.len()).expect("short");
    [&id.to_le_bytes(), &len.to_le_bytes(), text].concat()
}

/// `UEFI_IMAGE_LOAD_EVENT` of the kernel that the VMM handed over: no place in memory, and the device path `File(kernel)`.
fn image_load_event() -> Vec<u8> {
    let name = load_options("kernel");
    let len = u16::try_from(name.len()).expect("short").saturating_add(4);
    let path = [&[4, 4][..], &len.to_le_bytes(), &name, &[0x7f, 0xff, 4, 0]].concat();
    [&[0; 24][..], &u64::try_from(path.len()).expect("short").to_le_bytes(), &path].concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use kata_cc_evidence::eventlog::{EventLog, Registers};

    fn launch(dir: &Path) -> Launch {
        let file = |name: &str| {
            let path = dir.join(name);
            std::fs::write(&path, name).unwrap();
            path
        };
        Launch {
            firmware: file("firmware"),
            kernel: file("kernel"),
            initrd: file("initrd"),
            append: "console=ttyS0".into(),
            vcpus: 1,
            mr_config_id: MrConfigId([7; 48]),
        }
    }

    #[test]
    fn the_log_replays_to_the_registers_and_has_no_findings() {
        let dir = tempfile::tempdir().unwrap();
        let launched = launch(dir.path()).measure().unwrap();
        let log = EventLog::parse(&launched.event_log).unwrap();
        let values = log.replay(Registers::Cc, ALGORITHM).unwrap();
        for (value, register) in values.values().zip(launched.rtmr) {
            assert_eq!(value.as_slice(), register.0);
        }
        assert_eq!(log.findings(Registers::Cc), []);
        assert_eq!((launched.rtmr[3], launched.mr_config_id), (TdMeasurement::ZERO, MrConfigId([7; 48])));
    }

    #[test]
    fn everything_that_is_launched_has_its_register() {
        let dir = tempfile::tempdir().unwrap();
        let first = launch(dir.path()).measure().unwrap();
        let all = |launched: &Launched| [launched.mr_td, launched.rtmr[0], launched.rtmr[1], launched.rtmr[2]];
        let differs = |change: &dyn Fn(&mut Launch)| {
            let mut launch = launch(dir.path());
            change(&mut launch);
            let now = launch.measure().unwrap();
            all(&first).iter().zip(all(&now)).map(|(before, now)| *before != now).collect::<Vec<_>>()
        };
        let other = dir.path().join("other");
        std::fs::write(&other, "other").unwrap();
        assert_eq!(differs(&|_| ()), [false; 4]);
        assert_eq!(differs(&|launch| launch.firmware = other.clone()), [true, false, false, false]);
        assert_eq!(differs(&|launch| launch.vcpus = 2), [false, true, false, false]);
        assert_eq!(differs(&|launch| launch.kernel = other.clone()), [false, false, true, false]);
        assert_eq!(differs(&|launch| launch.initrd = other.clone()), [false, false, false, true]);
        assert_eq!(differs(&|launch| launch.append.push(' ')), [false, false, false, true]);
        assert!(Launch { kernel: dir.path().join("none"), ..launch(dir.path()) }.measure().is_err());
    }

    #[test]
    fn the_td_learns_what_it_was_launched_with() {
        let dir = tempfile::tempdir().unwrap();
        let launched = launch(dir.path()).measure().unwrap();
        let report = TdReport::parse(&launched.td_report(ReportData([3; 64]))).unwrap();
        assert_eq!((report.mr_config_id, report.mr_td, report.rtmr), (launched.mr_config_id, launched.mr_td, launched.rtmr));
        assert_eq!(report.report_data, ReportData([3; 64]));
    }
}
