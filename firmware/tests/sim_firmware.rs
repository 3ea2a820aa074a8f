//! The simulation's firmware made of the qboot that this machine's QEMU brings.

use std::path::PathBuf;

use kata_cc_firmware::measure::snp::{KernelHashes, SnpLaunch, Vmm};
use kata_cc_firmware::sim_firmware;

fn qboot() -> Option<Vec<u8>> {
    let path = std::env::var_os("KATA_CC_QBOOT").map_or_else(|| PathBuf::from("/usr/share/qemu/qboot.rom"), PathBuf::from);
    let bytes = std::fs::read(&path);
    if bytes.is_err() {
        eprintln!("SKIPPED: sim_firmware: no qboot at {} (package qemu-system-data; KATA_CC_QBOOT names another)", path.display());
    }
    bytes.ok()
}

#[test]
fn this_machines_qboot_can_be_made_measurable() {
    let Some(qboot) = qboot() else { return };
    let image = sim_firmware(&qboot).unwrap();
    assert_eq!(image, sim_firmware(&qboot).unwrap());
    assert_eq!(image.len(), qboot.len());
    let launch = |append: &str, vcpus| {
        let kernel = Some(KernelHashes::of(b"kernel", Some(b"initrd"), append));
        let vcpu_type = "EPYC-v4".parse().unwrap();
        SnpLaunch { firmware: &image, kernel, vcpus, vcpu_type, guest_features: 1, vmm: Vmm::Qemu }.digest().unwrap()
    };
    assert_ne!(launch("quiet", 1), launch("quiet", 2));
    assert_ne!(launch("quiet", 1), launch("debug", 1));
}

#[test]
fn every_byte_of_the_image_is_measured() {
    let Some(qboot) = qboot() else { return };
    let image = sim_firmware(&qboot).unwrap();
    let digest = |image: &[u8]| {
        let vcpu_type = "EPYC-v4".parse().unwrap();
        SnpLaunch { firmware: image, kernel: None, vcpus: 1, vcpu_type, guest_features: 1, vmm: Vmm::Qemu }.digest()
    };
    let good = digest(&image).unwrap();
    for at in (0..image.len()).step_by(509) {
        let mut bad = image.clone();
        bad[at] ^= 0x10;
        // Refused, where the change hits the tables; measured to something else everywhere else.
        assert!(digest(&bad).is_ok_and(|d| d != good) || digest(&bad).is_err(), "byte {at:#x}");
    }
}
