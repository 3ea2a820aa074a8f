//! Launch digests other implementations agree on: `snp-launch-measurement-cases.json` and the images beside it.
//!
//! The vectors are not part of the repository. `KATA_CC_VECTORS` names their folder; without it, `shared/vectors` beside
//! the checkout is tried.

use std::path::{Path, PathBuf};

use kata_cc_firmware::measure::snp::{CpuModel, SnpFiles, SnpLaunch};
use kata_cc_firmware::measure::snp::{KernelHashes, LaunchDigest, SnpFirmware, SnpVcpus, Vmm, measure_files};
use serde::Deserialize;

#[derive(Deserialize)]
struct Cases {
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    test: String,
    mode: String,
    vcpus: u32,
    vcpu_type: Option<String>,
    ovmf: PathBuf,
    kernel: Option<PathBuf>,
    initrd: Option<PathBuf>,
    append: Option<String>,
    guest_features: u64,
    snp_ovmf_hash: Option<LaunchDigest>,
    #[serde(default)]
    vmm_type: Option<String>,
    expected_digest: Option<LaunchDigest>,
    expected_error: Option<String>,
}

fn vectors() -> Option<PathBuf> {
    let path = match std::env::var_os("KATA_CC_VECTORS") {
        Some(path) => path.into(),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/vectors"),
    };
    path.join("snp-launch-measurement-cases.json").exists().then_some(path)
}

/// What can go wrong before anything is measured.
type Setup<T> = Result<T, Box<dyn std::error::Error>>;

impl Case {
    /// The digest, or the text of the error.
    fn measure(&self, folder: &Path) -> Setup<Result<LaunchDigest, String>> {
        let vmm: Vmm = self.vmm_type.as_deref().unwrap_or("qemu").parse()?;
        let vcpu_type: CpuModel = self.vcpu_type.as_deref().unwrap_or("EPYC").parse()?;
        let path = folder.join(&self.ovmf);
        let firmware = std::fs::read(&path)?;
        let kernel = match &self.kernel {
            None => None,
            Some(kernel) => {
                let initrd = self.initrd.as_deref().map(std::fs::read).transpose()?;
                Some(KernelHashes::of(&std::fs::read(kernel)?, initrd.as_deref(), self.append.as_deref().unwrap_or("")))
            }
        };
        let (vcpus, guest_features) = (self.vcpus, self.guest_features);
        if let Some(hash) = self.snp_ovmf_hash {
            let vcpus = SnpVcpus { kernel: kernel.as_ref(), vcpus, vcpu_type, guest_features, vmm };
            return Ok(SnpFirmware::with_image_digest(&firmware, hash)?.digest(&vcpus).map_err(|e| e.to_string()));
        }
        let (initrd, append) = (self.initrd.as_deref(), self.append.as_deref());
        let files = SnpFiles { firmware: &path, kernel: self.kernel.as_deref(), initrd, append, vcpus, vcpu_type, guest_features, vmm };
        let by_file = measure_files(&files).map_err(|e| e.to_string());
        let launch = SnpLaunch { firmware: &firmware, kernel, vcpus, vcpu_type, guest_features, vmm };
        let by_bytes = launch.digest().map_err(|e| e.to_string());
        assert_eq!(by_file, by_bytes, "{}", self.test);
        Ok(by_bytes)
    }
}

#[test]
fn agrees_with_every_recorded_launch_digest() {
    let Some(folder) = vectors() else {
        eprintln!("SKIPPED: agrees_with_every_recorded_launch_digest: no vectors (set KATA_CC_VECTORS)");
        return;
    };
    let cases = std::fs::read(folder.join("snp-launch-measurement-cases.json")).unwrap();
    let cases: Cases = serde_json::from_slice(&cases).unwrap();
    assert!(cases.cases.len() >= 15);
    let images = folder.join("virtee/sev-snp-measure");
    for case in &cases.cases {
        if case.mode != "SEV_SNP" || case.vmm_type.as_deref() == Some("ec2") {
            eprintln!("SKIPPED: {}: mode {}, VMM {:?}: implementations disagree or not SNP", case.test, case.mode, case.vmm_type);
            continue;
        }
        match (case.measure(&images).unwrap(), case.expected_digest, case.expected_error.as_deref()) {
            (Ok(found), Some(expected), None) => assert_eq!(found, expected, "{}", case.test),
            (Err(found), None, Some(expected)) => assert_eq!(found.split(':').next(), expected.split(':').next(), "{}", case.test),
            (found, digest, error) => panic!("{}: expected {digest:?} or error {error:?}, found {found:?}", case.test),
        }
    }
}

#[test]
fn digests_per_vcpu_count_are_those_of_each_count() {
    let Some(folder) = vectors() else {
        eprintln!("SKIPPED: digests_per_vcpu_count_are_those_of_each_count: no vectors (set KATA_CC_VECTORS)");
        return;
    };
    let firmware = SnpFirmware::read(&folder.join("virtee/sev-snp-measure/tests/fixtures/ovmf_AmdSev_suffix.bin")).unwrap();
    let kernel = KernelHashes::of(b"kernel", Some(b"initrd"), "quiet");
    let of = |vcpus| SnpVcpus { kernel: Some(&kernel), vcpus, vcpu_type: "EPYC-Milan".parse().unwrap(), guest_features: 1, vmm: Vmm::Qemu };
    let all = firmware.digests_per_vcpu_count(&of(5)).unwrap();
    let each: Vec<_> = (1..=5).map(|n| firmware.digest(&of(n)).unwrap()).collect();
    assert_eq!(all, each);
    assert!(firmware.digest(&of(0)).is_err());
    assert!(firmware.digest(&of(4097)).is_err());
}
