//! The simulation is the same plan with the TEE part replaced, and nothing else: what differs between the command lines of one pod under the
//! simulated TEE and under SNP is listed here, so that a new difference is a decision.

#![allow(clippy::unwrap_used)] // helpers of tests: to panic is to fail

use kata_cc_vmm::config::Config;
use kata_cc_vmm::plan::plan;
use kata_cc_vmm::qemu;
use kata_cc_vmm::request::{CpuLimit, Host, InitdataDigest, PodRequest};

/// QEMU's options of a pod under a class of these lines, each with its value.
fn options(class: &str, host: Host) -> Vec<String> {
    let files = "firmware = \"/f\"\nkernel = \"/k\"\ninitrd = \"/i\"\nkernel_params = \"console=ttyS0 quiet\"\n";
    let request = PodRequest {
        sandbox_id: "pod-1".parse().unwrap(),
        annotations: std::collections::BTreeMap::new(),
        cpu_limits: vec![CpuLimit { quota: 150_000, period: 100_000 }],
        memory_limits: vec![256 << 20],
        initdata_digest: Some(InitdataDigest::new(&[0xab; 32]).unwrap()),
        nics: vec!["02:42:ac:11:00:02".parse().unwrap()],
        id_block: None,
        host,
    };
    let words = qemu::command(&plan(&Config::parse(&format!("{files}{class}")).unwrap(), &request).unwrap()).unwrap();
    let mut options: Vec<String> = Vec::new();
    for word in words.into_iter().map(|word| word.into_string().unwrap()) {
        match options.last_mut() {
            Some(option) if !word.starts_with('-') => *option += &format!(" {word}"),
            _ => options.push(word),
        }
    }
    options
}

/// What only the simulation has, and what only SNP has.
fn differences(common: &str, host: Host) -> (Vec<String>, Vec<String>) {
    let simulated = options(&format!("{common}tee = \"sim\"\n[simulation]\nkeys = \"/keys\"\n"), host);
    let protected = options(&format!("{common}tee = \"snp\"\n"), host);
    let only = |these: &[String], those: &[String]| these.iter().filter(|option| !those.contains(option)).cloned().collect();
    // Options beside each other mean the same only in the same order.
    let both = |these: &[String], those: &[String]| these.iter().filter(|option| those.contains(option)).cloned().collect::<Vec<_>>();
    assert_eq!(both(&simulated, &protected), both(&protected, &simulated));
    (only(&simulated, &protected), only(&protected, &simulated))
}

/// Machine, processor and memory under the simulation.
const SIMULATED: [&str; 3] = [
    "-machine q35,accel=tcg,memory-backend=mem,smm=off,usb=off,vmport=off",
    "-cpu max",
    "-object memory-backend-memfd,id=mem,size=768M,share=on",
];
/// The same under SNP, with its protection.
const PROTECTED: [&str; 4] = [
    "-machine q35,accel=kvm,kernel_irqchip=split,memory-backend=mem,confidential-guest-support=snp,smm=off,usb=off,vmport=off",
    "-cpu EPYC-v4,pmu=off",
    "-object memory-backend-ram,id=mem,size=768M",
    "-object sev-snp-guest,id=snp,cbitpos=51,reduced-phys-bits=1,kernel-hashes=on,policy=0x30000,\
     host-data=q6urq6urq6urq6urq6urq6urq6urq6urq6urq6urq6s=",
];
/// Every device of SNP has it: DMA only through memory that the guest shares on purpose.
const SHARED_DMA: &str = ",disable-legacy=on,iommu_platform=on";

#[test]
fn the_simulation_differs_from_snp_in_the_tee_part_alone() {
    let (simulated, protected) = differences("vsock = \"kernel\"\n", Host { vsock_cid: Some(77), vhost_net: false });
    let devices = [
        "-device virtio-rng-pci,rng=rng0",
        "-device vhost-vsock-pci,vhostfd=102,guest-cid=77",
        "-device virtio-blk-pci,drive=initdata,serial=initdata",
        "-device virtio-net-pci,netdev=net0,mac=02:42:ac:11:00:02,romfile=",
    ];
    assert_eq!(simulated, [&SIMULATED[..], &devices[..]].concat());
    let devices: Vec<String> = devices.iter().map(|device| format!("{device}{SHARED_DMA}")).collect();
    assert_eq!(protected, [PROTECTED.map(str::to_owned).to_vec(), devices].concat());
}

/// A developer's machine need not have the kernel's vsock and vhost-net, so by default the simulation does without, and in nothing else.
#[test]
fn by_default_the_simulation_also_does_without_two_drivers_of_the_hosts_kernel() {
    let (simulated, protected) = differences("", Host { vsock_cid: Some(77), vhost_net: true });
    let devices = [
        "-device virtio-rng-pci,rng=rng0",
        "-chardev socket,id=vsock,fd=102",
        "-device vhost-user-vsock-pci,chardev=vsock,event_idx=off",
        "-device virtio-blk-pci,drive=initdata,serial=initdata",
        "-netdev tap,id=net0,fd=103",
        "-device virtio-net-pci,netdev=net0,mac=02:42:ac:11:00:02,romfile=",
    ];
    assert_eq!(simulated, [&SIMULATED[..], &devices[..]].concat());
    let devices = [
        "-device virtio-rng-pci,rng=rng0,disable-legacy=on,iommu_platform=on",
        "-device vhost-vsock-pci,vhostfd=102,guest-cid=77,disable-legacy=on,iommu_platform=on",
        "-device virtio-blk-pci,drive=initdata,serial=initdata,disable-legacy=on,iommu_platform=on",
        "-netdev tap,id=net0,fd=103,vhost=on,vhostfd=104",
        "-device virtio-net-pci,netdev=net0,mac=02:42:ac:11:00:02,romfile=,disable-legacy=on,iommu_platform=on",
    ];
    assert_eq!(protected, [&PROTECTED[..], &devices[..]].concat());
}
