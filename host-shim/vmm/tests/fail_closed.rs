//! No class boots without its protection, whatever is missing or asked for: every combination gives an error, or a command line with the
//! protection's object and nothing that opens the guest to the host.

#![allow(clippy::unwrap_used)] // helpers of tests: to panic is to fail

use std::collections::BTreeMap;

use kata_cc_vmm::config::Config;
use kata_cc_vmm::plan::{HYPERVISOR_PREFIX, INITDATA_ANNOTATION, plan};
use kata_cc_vmm::qemu;
use kata_cc_vmm::request::{Host, InitdataDigest, PodRequest};

/// Each protection and what of it must be on the command line.
const PROTECTIONS: [(&str, &[&str]); 3] = [
    ("snp", &["confidential-guest-support=snp", "sev-snp-guest,id=snp,", "kernel-hashes=on", "host-data=q6urq6ur"]),
    ("tdx", &["confidential-guest-support=tdx", "\"qom-type\":\"tdx-guest\"", "\"sept-ve-disable\":true", "\"mrconfigid\":\"q6urq6ur"]),
    ("se", &["confidential-guest-support=pv0", "s390-pv-guest,id=pv0"]),
];

/// Options by which a host could look into a guest or take part in it, and no plan has.
const NEVER: [&str; 14] =
    ["-gdb", "-s", "-qmp", "-monitor", "-d", "-D", "-trace", "-incoming", "-loadvm", "-drive", "-virtfs", "-fsdev", "-plugin", "-vnc"];
/// Parts of arguments that no plan of a real TEE has.
const NEVER_WITHIN: [&str; 13] = [
    "share=on",
    "accel=tcg",
    "vfio",
    "ivshmem",
    "virtio-9p",
    "vhost-user",
    "pvpanic",
    "isa-debug",
    "debug",
    "x-igd",
    "pc-dimm",
    "pmem",
    "nvdimm",
];

const FILES: [(&str, &str); 3] = [("firmware", "/f"), ("kernel", "/k"), ("initrd", "/i")];

fn request(host: Host, initdata: bool, annotations: &[(&str, &str)]) -> PodRequest {
    PodRequest {
        sandbox_id: "pod-1".parse().unwrap(),
        annotations: annotations.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect::<BTreeMap<_, _>>(),
        cpu_limits: Vec::new(),
        memory_limits: Vec::new(),
        initdata_digest: initdata.then(|| InitdataDigest::new(&[0xab; 32]).unwrap()),
        nics: vec!["02:42:ac:11:00:02".parse().unwrap()],
        id_block: None,
        host,
    }
}

/// The arguments of a class for a pod, or why there are none.
fn arguments(class: &str, request: &PodRequest) -> Result<Vec<String>, String> {
    let config = Config::parse(class).map_err(|error| error.to_string())?;
    let plan = plan(&config, request).map_err(|error| error.to_string())?;
    let words = qemu::command(&plan).map_err(|error| error.to_string())?;
    Ok(words.into_iter().map(|word| word.into_string().unwrap()).collect())
}

#[track_caller]
fn assert_protected(tee: &str, needed: &[&str], words: &[String], case: &str) {
    let line = words.join(" ");
    for part in needed {
        assert!(line.contains(part), "{tee}, {case}: no {part} in {line}");
    }
    for word in words {
        assert!(!NEVER.contains(&word.as_str()), "{tee}, {case}: {word}");
        assert!(NEVER_WITHIN.iter().all(|part| !word.contains(part)), "{tee}, {case}: {word}");
    }
    assert_eq!(words.iter().filter(|word| *word == "-machine").count(), 1, "{tee}, {case}: {line}");
    // AC-14, AC-15: there is no root image and no hash of one; the one disk has the initdata, and nobody writes to it.
    let disks: Vec<_> = words.windows(2).filter(|pair| pair[0] == "-blockdev").map(|pair| pair[1].as_str()).collect();
    assert!(
        !disks.is_empty() && disks.iter().all(|disk| disk.contains("initdata") && disk.contains("read-only=on")),
        "{tee}, {case}: {line}"
    );
    // The only monitor is ours, on a descriptor that nobody else can open.
    let monitors: Vec<_> = words.windows(2).filter(|pair| pair[0] == "-mon").map(|pair| pair[1].as_str()).collect();
    assert_eq!(monitors, ["chardev=qmp,mode=control"], "{tee}, {case}: {line}");
    assert!(line.contains("socket,id=qmp,fd="), "{tee}, {case}: {line}");
}

#[test]
fn every_combination_is_an_error_or_a_protected_machine() {
    let (mut planned, mut refused) = (0, 0);
    for (tee, needed) in PROTECTIONS {
        for files in 0..1_usize << FILES.len() {
            let given = |index: usize| files >> index & 1 == 1;
            let lines = FILES.iter().enumerate().filter(|(index, _)| given(*index)).map(|(_, (key, path))| format!("{key} = \"{path}\"\n"));
            let lines: String = lines.collect();
            for more in ["", "vsock = \"kernel\"", "vsock = \"vhost-user\"", "[simulation]\nkeys = \"/keys\"", "[snp]", "[tdx]", "[se]"] {
                for vsock_cid in [None, Some(77)] {
                    for initdata in [false, true] {
                        let class = format!("tee = \"{tee}\"\n{lines}{more}\n");
                        let host = Host { vsock_cid, vhost_net: initdata };
                        let case = format!("{class:?}, vsock {vsock_cid:?}, initdata {initdata}");
                        let right_files = if tee == "se" { files == 0b010 } else { files == 0b111 };
                        let right_section = matches!(more, "" | "vsock = \"kernel\"") || more == format!("[{tee}]");
                        let expected = right_files && right_section && vsock_cid.is_some() && initdata;
                        match arguments(&class, &request(host, initdata, &[])) {
                            Ok(words) => {
                                assert!(expected, "{case} was planned");
                                assert_protected(tee, needed, &words, &case);
                                planned += 1;
                            }
                            Err(why) => {
                                assert!(!expected, "{case} was refused: {why}");
                                refused += 1;
                            }
                        }
                    }
                }
            }
        }
    }
    // Three classes with three ways to say the same.
    assert_eq!((planned, refused), (9, 3 * 8 * 7 * 4 - 9));
}

/// A class that boots, for the tests of one change to it.
fn class(tee: &str, more: &str) -> String {
    let files = if tee == "se" { "kernel = \"/k\"" } else { "firmware = \"/f\"\nkernel = \"/k\"\ninitrd = \"/i\"" };
    format!("{more}\ntee = \"{tee}\"\n{files}\n")
}

const HOST: Host = Host { vsock_cid: Some(77), vhost_net: true };

#[test]
fn unknown_protections_keys_and_ways_of_carrying_vsock_are_errors() {
    for tee in ["none", "sev", "sev-es", "SNP", "", "tdx-debug"] {
        assert!(arguments(&class(tee, ""), &request(HOST, true, &[])).is_err(), "{tee:?}");
    }
    for (tee, _) in PROTECTIONS {
        for key in
            ["debug = true", "gdb = 1234", "confidential_guest = false", "devices = []", "vsock = \"none\"", "disks = [\"/dev/sda\"]"]
        {
            assert!(arguments(&class(tee, key), &request(HOST, true, &[])).is_err(), "{tee}: {key}");
        }
    }
}

/// AC-06, AC-66, AC-70, AC-71: what a pod says changes sizes, where permitted, and nothing else of the machine.
#[test]
fn ac_06_ac_66_ac_70_ac_71_annotations_add_no_parameter_disk_or_device() {
    for (tee, needed) in PROTECTIONS {
        let permitted = class(tee, "allowed_annotations = [\"default_vcpus\", \"default_memory\"]");
        let plain = arguments(&permitted, &request(HOST, true, &[])).unwrap();
        for name in [
            "kernel_params",
            "kernel",
            "initrd",
            "image",
            "firmware",
            "path",
            "machine_type",
            "machine_accelerators",
            "cpu_features",
            "vfio_mode",
            "hot_plug_vfio",
            "cold_plug_vfio",
            "pcie_root_port",
            "block_device_driver",
            "shared_fs",
            "virtio_fs_daemon",
            "file_mem_backend",
            "enable_debug",
            "guest_hook_path",
            "rootfs_type",
            "confidential_guest",
            "sev_snp_guest",
            "snp_guest_policy",
        ] {
            let annotation = format!("{HYPERVISOR_PREFIX}{name}");
            assert!(arguments(&permitted, &request(HOST, true, &[(&annotation, "x")])).is_err(), "{tee}: {name}");
        }
        // What others read is none of the machine's business.
        let others = [
            (INITDATA_ANNOTATION, "x"),
            ("cdi.k8s.io/vfio", "nvidia.com/gpu=0"),
            ("io.kubernetes.cri.image-name", ""),
            ("kernel_params", "init=/bin/sh"),
        ];
        assert_eq!(arguments(&permitted, &request(HOST, true, &others)).unwrap(), plain, "{tee}");
        // Sizes, and nothing beside them.
        let (cpus, memory) = (format!("{HYPERVISOR_PREFIX}default_vcpus"), format!("{HYPERVISOR_PREFIX}default_memory"));
        let sized = arguments(&permitted, &request(HOST, true, &[(&cpus, "3"), (&memory, "1024")])).unwrap();
        assert_protected(tee, needed, &sized, "sized");
        let changed: Vec<_> = plain.iter().zip(&sized).filter(|(before, after)| before != after).collect();
        assert_eq!(plain.len(), sized.len(), "{tee}");
        assert_eq!(changed.len(), 3, "{tee}: {changed:?}");
        for (annotation, value) in [(&cpus, "1 -s"), (&cpus, "1,maxcpus=9"), (&memory, "1024M"), (&memory, "1,x=y")] {
            assert!(arguments(&permitted, &request(HOST, true, &[(annotation, value)])).is_err(), "{tee}: {value}");
        }
    }
}
