//! Makes SNP reports as the security processor does: fixed launch state, the guest's report data, a signature (AMD 56860, §7.3).
//!
//! **Invariant:** the guest chooses report data and VMPL, nothing else.

use crate::identity::Identity;
use crate::wire::{Blobs, ReportRequest};
use kata_cc_evidence::snp::{
    CertEntry, CertKind, CertTable, CertTableError, Cpuid, FirmwareVersion, KeyInfo, PlatformInfo, Policy, Report, ReportError, Signature,
    TcbVersion,
};
use kata_cc_evidence::{HostData, LaunchDigest, ReportData};
use p384::ecdsa::signature::Signer;

/// Policy of every simulated guest: the reserved bit and "SMT allowed", no debugging, no migration.
const GUEST_POLICY: u64 = 0x3_0000;
/// Third-generation EPYC, stepping B1; decides which chain and TCB layout the report has.
const CPUID: Cpuid = Cpuid { family: 0x19, model: 0x01, stepping: 0x01 };
/// SMT enabled, as on most machines.
const PLATFORM_INFO: u64 = 0x1;
const FIRMWARE: FirmwareVersion = FirmwareVersion { major: 1, minor: 55, build: 40 };
const VMPL_MAX: u8 = 3;

/// Why a report could not be made.
#[derive(Debug, thiserror::Error)]
pub enum SignError {
    /// The guest asked for a privilege level that does not exist.
    #[error("VMPL {0} does not exist, expected 0 to 3")]
    Vmpl(u8),
    /// The fields do not make a report.
    #[error(transparent)]
    Report(#[from] ReportError),
    /// The certificates do not make a table.
    #[error(transparent)]
    Certificates(#[from] CertTableError),
    /// The signature failed.
    #[error("cannot sign the report")]
    Sign(#[from] p384::ecdsa::Error),
}

/// What was fixed when the VM was launched.
#[derive(Debug, Clone)]
pub struct Launched {
    /// Digest over firmware, kernel, initrd, command line and vCPUs.
    pub measurement: LaunchDigest,
    /// Host data, where the initdata digest goes.
    pub host_data: HostData,
    /// Random identity of this VM instance.
    pub report_id: [u8; 32],
}

/// A report and its certificate table, as the kernel's interface hands them out.
pub fn report(identity: &Identity, launched: &Launched, request: &ReportRequest) -> Result<Blobs, SignError> {
    if request.vmpl > VMPL_MAX {
        return Err(SignError::Vmpl(request.vmpl));
    }
    let platform = &identity.platform;
    let tcb =
        TcbVersion { fmc: None, bootloader: platform.bootloader, tee: platform.tee, snp: platform.snp, microcode: platform.microcode };
    let mut report = Report {
        version: 3,
        policy: Policy(GUEST_POLICY),
        vmpl: u32::from(request.vmpl),
        current_tcb: tcb,
        platform_info: PlatformInfo(PLATFORM_INFO),
        key_info: KeyInfo(0),
        report_data: ReportData(request.report_data),
        measurement: launched.measurement,
        host_data: launched.host_data,
        report_id: launched.report_id,
        report_id_ma: [0xff; 32],
        reported_tcb: tcb,
        cpuid: Some(CPUID),
        chip_id: platform.chip_id,
        committed_tcb: tcb,
        current: FIRMWARE,
        committed: FIRMWARE,
        launch_tcb: tcb,
        ..Report::default()
    };
    let signature: p384::ecdsa::Signature = identity.vcek_key.try_sign(&report.signed_bytes()?)?;
    let mut fixed = [0u8; 96];
    fixed.copy_from_slice(&signature.to_bytes());
    report.signature = Signature::from_p384_fixed(&fixed);
    let table = CertTable {
        entries: vec![
            CertEntry { kind: CertKind::Ark, data: identity.ark.clone() },
            CertEntry { kind: CertKind::Ask, data: identity.ask.clone() },
            CertEntry { kind: CertKind::Vcek, data: identity.vcek.clone() },
        ],
    };
    Ok(Blobs { outblob: report.to_bytes()?.to_vec(), auxblob: table.to_bytes()? })
}
