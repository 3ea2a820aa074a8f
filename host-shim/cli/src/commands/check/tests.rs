//! Hosts of every kind (`tests/fixtures/hosts`), and changes to them of which each makes exactly one check fail.

use std::fs;

use super::host::{Registers, Seen, parse_version};
use super::*;
use kata_cc_firmware::footer::{Footer, Guid, SEV_ES_RESET, SEV_HASH_TABLE, SEV_METADATA, TDX_METADATA};

/// A recorded host, unpacked into a directory.
struct Recorded {
    dir: tempfile::TempDir,
    cpuid: Vec<(u32, Registers)>,
    args: Args,
}

/// One change to a host.
enum Change {
    Remove(&'static str),
    Write(&'static str, &'static str),
    /// Something is there that can be opened by nobody, root included, as what it should be.
    Directory(&'static str),
    Cpuid(Option<Registers>),
}

use Change::{Cpuid, Directory, Remove, Write};

impl Recorded {
    fn of(name: &str, tee: impl Into<Option<Tee>>) -> Self {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/hosts").join(name).with_extension("txt");
        let text = fs::read_to_string(&file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
        let (head, sections) = text.split_once("=== ").expect("a host has sections");
        assert!(
            head.lines().all(|line| line.starts_with('#')) && head.contains("No such machine was at hand"),
            "{name} says where it is from"
        );
        let dir = tempfile::tempdir().unwrap();
        let mut cpuid = Vec::new();
        for section in format!("\n=== {sections}").split("\n=== ").skip(1) {
            let (path, content) = section.split_once('\n').unwrap_or((section, ""));
            match path {
                "cpuid" => cpuid.extend(content.lines().map(leaf)),
                path => put(&dir.path().join(path.strip_prefix('/').expect("absolute")), content.as_bytes()),
            }
        }
        let address = "/run/containerd/containerd.sock".into();
        Self { dir, cpuid, args: Args { tee: tee.into(), config: None, qemu: None, containerd_address: address, labels: false } }
    }

    fn at(&self, path: &str) -> PathBuf {
        self.dir.path().join(path.trim_start_matches('/'))
    }

    fn but(mut self, change: &Change) -> Self {
        match change {
            Remove(path) => fs::remove_file(self.at(path)).unwrap(),
            Write(path, text) => put(&self.at(path), text.as_bytes()),
            Directory(path) => {
                fs::remove_file(self.at(path)).unwrap();
                fs::create_dir(self.at(path)).unwrap();
            }
            Cpuid(registers) => self.cpuid = registers.iter().map(|r| (0x8000_001f, *r)).collect(),
        }
        self
    }

    /// With the configuration of a class at the default place, and the files it names.
    fn with_class(self, tee: &str, more: &str, firmware: &[u8]) -> Self {
        let files = "firmware = \"/g/fw\"\nkernel = \"/g/vmlinuz\"\ninitrd = \"/g/initrd\"\nqemu = \"/usr/bin/qemu-system-x86_64\"";
        put(&self.at(DEFAULT_PATH), format!("tee = \"{tee}\"\n{files}\n{more}").as_bytes());
        put(&self.at("/g/fw"), firmware);
        put(&self.at("/g/vmlinuz"), b"kernel");
        put(&self.at("/g/initrd"), b"initrd");
        self
    }

    fn see<T>(&self, look: impl FnOnce(&Host<'_>) -> T) -> T {
        // Recorded programs hold what they print.
        let version = |program: &Path| fs::read_to_string(program).ok()?.lines().next().map(str::to_owned);
        let cpuid = |leaf| self.cpuid.iter().find(|(l, _)| *l == leaf).map(|(_, registers)| *registers);
        look(&Host { root: self.dir.path().to_owned(), path: Some(self.at("/usr/bin").into()), version: &version, cpuid: &cpuid })
    }

    fn report(&self) -> Report {
        self.see(|host| Report::of(host, &self.args))
    }

    fn failing(&self) -> Vec<&'static str> {
        let report = self.report();
        for check in report.checks.iter().filter(|c| c.status == Status::Fail) {
            assert!(check.hint.as_ref().is_some_and(|hint| !hint.is_empty()), "{} has no hint", check.name);
        }
        let failing: Vec<_> = report.checks.iter().filter(|c| c.status == Status::Fail).map(|c| c.name).collect();
        assert_eq!(report.ready, failing.is_empty());
        failing
    }

    fn check(&self, name: &str) -> Check {
        self.report().checks.into_iter().find(|c| c.name == name).unwrap_or_else(|| panic!("no check {name}"))
    }

    /// Labels by the last part of their names.
    fn labels(&self) -> Vec<String> {
        let labels = self.report().labels;
        labels.iter().map(|(n, v)| format!("{}={v}", n.strip_prefix("feature.node.kubernetes.io/cpu-security.").unwrap())).collect()
    }
}

/// `LEAF eax=0x… ebx=0x… ecx=0x… edx=0x…`
fn leaf(line: &str) -> (u32, Registers) {
    let words: Vec<_> = line.split_whitespace().collect();
    let hex = |text: &str| u32::from_str_radix(text, 16).unwrap();
    let register = |n: usize, name: &str| hex(words[n].strip_prefix(name).unwrap().strip_prefix("=0x").unwrap());
    (hex(words[0]), [register(1, "eax"), register(2, "ebx"), register(3, "ecx"), register(4, "edx")])
}

fn put(path: &Path, content: &[u8]) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, content).unwrap();
}

#[track_caller]
fn each_fails_alone(name: &str, tee: Tee, changes: &[(Change, &str, Option<&str>)]) {
    assert!(Recorded::of(name, tee).failing().is_empty(), "{name} is complete");
    for (number, (change, check, fix)) in changes.iter().enumerate() {
        let host = Recorded::of(name, tee).but(change);
        assert_eq!(host.failing(), [*check], "change {number} to {name}");
        assert_eq!(host.check(check).fix.as_deref(), *fix, "change {number} to {name}");
    }
}

#[test]
fn each_thing_that_snp_needs_fails_its_own_check() {
    const PARAMETER: &str = "/sys/module/kvm_amd/parameters/sev_snp";
    const CAPACITY: &str = "/sys/fs/cgroup/misc.capacity";
    let reload = Some("modprobe -r kvm_amd && modprobe kvm_amd sev=1 sev_es=1 sev_snp=1");
    each_fails_alone(
        "milan-snp",
        Tee::Snp,
        &[
            (Write("/proc/cpuinfo", "flags : svm sev sev_es"), "snp-cpu", None),
            (Write("/proc/cpuinfo", "flags : svm sev_snp_not\nvmx flags : sev_snp\nname : sev_snp"), "snp-cpu", None),
            (Cpuid(None), "snp-cpu", None),
            (Cpuid(Some([!0x10, 0x4173, 509, 1])), "snp-cpu", None),
            (Write(PARAMETER, "N\n"), "snp-kvm", reload),
            (Directory(PARAMETER), "snp-kvm", reload),
            (Remove(PARAMETER), "snp-kvm", None),
            (Remove("/dev/sev"), "snp-device", Some("modprobe ccp")),
            (Directory("/dev/sev"), "snp-device", None),
            (Write(CAPACITY, "sev 410\n"), "snp-asids", None),
            (Write(CAPACITY, "sev 410\nsev_es 0\n"), "snp-asids", None),
            (Write(CAPACITY, "sev_es many\n"), "snp-asids", None),
            (Directory(CAPACITY), "snp-asids", None),
            (Write("/proc/sys/kernel/osrelease", "6.10.9"), "kernel", None),
            (Write("/usr/bin/qemu-system-x86_64", "QEMU emulator version 9.0.4"), "qemu", None),
        ],
    );
    // A kernel of cgroup version 1 does not tell how many.
    let uncounted = Recorded::of("milan-snp", Tee::Snp).but(&Remove(CAPACITY));
    assert_eq!((uncounted.failing(), uncounted.check("snp-asids").status), (vec![], Status::Skip));
}

#[test]
fn each_thing_that_every_pod_needs_fails_its_own_check() {
    each_fails_alone(
        "milan-snp",
        Tee::Snp,
        &[
            (Remove("/dev/kvm"), "kvm", Some("modprobe kvm_amd")),
            (Directory("/dev/kvm"), "kvm", Some("usermod -aG kvm \"$USER\"")),
            (Remove("/dev/vhost-vsock"), "vsock", Some("modprobe vhost_vsock")),
            (Remove("/dev/net/tun"), "network", Some("modprobe tun")),
            (Remove("/sys/fs/cgroup/cgroup.controllers"), "cgroup", Some("mount -t cgroup2 none /sys/fs/cgroup")),
            (Remove("/proc/meminfo"), "memory", Some("mount -t proc proc /proc")),
            (Directory("/proc/meminfo"), "memory", None),
            (Write("/proc/meminfo", "MemTotal: 9999999 kB\n"), "memory", None),
            (Write("/proc/meminfo", "MemAvailable: 524287 kB\n"), "memory", None),
            (Remove("/proc/sys/kernel/osrelease"), "kernel", Some("mount -t proc proc /proc")),
            (Directory("/proc/sys/kernel/osrelease"), "kernel", None),
            (Write("/proc/sys/kernel/osrelease", "rolling"), "kernel", None),
            (Remove("/usr/bin/qemu-system-x86_64"), "qemu", None),
            (Write("/usr/bin/qemu-system-x86_64", "no version"), "qemu", None),
            (Remove("/usr/bin/containerd"), "containerd", None),
            (Write("/usr/bin/containerd", ""), "containerd", None),
            (Write("/usr/bin/containerd", "containerd 1.5.18"), "containerd", None),
            (Remove("/run/containerd/containerd.sock"), "containerd", Some("systemctl start containerd")),
            (Remove("/usr/bin/containerd-shim-kata-cc-v2"), "shim", None),
            (Remove("/usr/bin/kata-cc-node"), "node", None),
        ],
    );
}

#[test]
fn each_thing_that_tdx_needs_fails_its_own_check() {
    const PARAMETER: &str = "/sys/module/kvm_intel/parameters/tdx";
    let reload = Some("modprobe -r kvm_intel && modprobe kvm_intel tdx=1");
    each_fails_alone(
        "xeon-tdx",
        Tee::Tdx,
        &[
            (Write("/proc/cpuinfo", "flags : vmx tdx_guest"), "tdx-cpu", None),
            (Write(PARAMETER, "N"), "tdx-kvm", reload),
            (Directory(PARAMETER), "tdx-kvm", reload),
            (Remove(PARAMETER), "tdx-kvm", None),
            (Write("/sys/fs/cgroup/misc.capacity", ""), "tdx-keys", None),
            (Write("/sys/fs/cgroup/misc.capacity", "tdx 0"), "tdx-keys", None),
            (Directory("/sys/fs/cgroup/misc.capacity"), "tdx-keys", None),
            (Remove("/var/run/tdx-qgs/qgs.socket"), "tdx-quotes", Some("systemctl start qgsd")),
            (Write("/proc/sys/kernel/osrelease", "6.15.0"), "kernel", None),
            (Write("/usr/bin/qemu-system-x86_64", "QEMU emulator version 10.0.2"), "qemu", None),
            (Remove("/dev/kvm"), "kvm", Some("modprobe kvm_intel")),
        ],
    );
}

#[test]
fn each_thing_that_secure_execution_needs_fails_its_own_check() {
    const HOST: &str = "/sys/firmware/uv/prot_virt_host";
    each_fails_alone(
        "z16-se",
        Tee::Se,
        &[
            (Write("/proc/cpuinfo", "facilities : 15 1 8 157 159 1580"), "se-cpu", None),
            (Write(HOST, "0"), "se-host", None),
            (Write(HOST, "10"), "se-host", None),
            (Remove(HOST), "se-host", None),
            (Directory(HOST), "se-host", None),
            (Remove("/usr/bin/qemu-system-s390x"), "qemu", None),
            (Write("/usr/bin/qemu-system-s390x", "QEMU emulator version 7.1.0"), "qemu", None),
            (Remove("/dev/kvm"), "kvm", Some("modprobe kvm")),
        ],
    );
}

#[test]
fn each_thing_that_the_simulated_tee_needs_fails_its_own_check() {
    let install = Some("cargo install vhost-device-vsock --version 0.3.0 --locked");
    each_fails_alone(
        "cloud-vm-without-kvm",
        Tee::Sim,
        &[
            (Remove("/usr/bin/kata-cc-tee-sim"), "tee-sim", None),
            (Remove("/usr/bin/vhost-device-vsock"), "vsock", install),
            (Write("/usr/bin/qemu-system-x86_64", "QEMU emulator version 7.1.0"), "qemu", None),
        ],
    );
}

#[test]
fn hosts_that_lack_something_say_what() {
    for (name, tee, expected) in [
        ("genoa-snp-off-in-bios", Tee::Snp, &["snp-cpu", "snp-kvm"][..]),
        ("epyc-snp-parameter-off", Tee::Snp, &["snp-kvm"]),
        ("xeon-old-kernel", Tee::Tdx, &["qemu", "kernel", "tdx-kvm", "tdx-keys"]),
        ("z15-without-se", Tee::Se, &["se-cpu", "se-host"]),
        ("cloud-vm-without-kvm", Tee::Snp, &["qemu", "kernel", "kvm", "vsock", "snp-cpu", "snp-kvm", "snp-device", "snp-asids"]),
        ("milan-snp", Tee::Tdx, &["kernel", "qemu", "tdx-cpu", "tdx-kvm", "tdx-keys", "tdx-quotes"]),
    ] {
        let (mut found, mut expected) = (Recorded::of(name, tee).failing(), expected.to_vec());
        found.sort_unstable();
        expected.sort_unstable();
        assert_eq!(found, expected, "{name}");
    }
    // The kernel's switch is no help while the machine's firmware has it off.
    assert_eq!(Recorded::of("genoa-snp-off-in-bios", Tee::Snp).check("snp-kvm").fix, None);
    assert_eq!(Recorded::of("cloud-vm-without-kvm", Tee::Snp).check("kvm").fix, None);
    assert_eq!(Recorded::of("cloud-vm-without-kvm", Tee::Snp).check("snp-kvm").fix.as_deref(), Some("modprobe kvm_amd"));
}

#[test]
fn hardware_that_was_not_asked_for_is_reported_and_not_required() {
    for name in ["milan-snp", "genoa-snp-off-in-bios", "xeon-tdx", "xeon-old-kernel", "z16-se", "z15-without-se", "cloud-vm-without-kvm"] {
        assert!(Recorded::of(name, None).failing().is_empty(), "{name}");
    }
    assert_eq!(Recorded::of("milan-snp", None).check("snp-cpu").status, Status::Pass);
    assert_eq!(Recorded::of("xeon-tdx", None).check("snp-cpu").status, Status::Skip);
    assert_eq!(Recorded::of("z16-se", None).check("tdx-cpu").status, Status::Skip);
}

#[test]
fn labels_are_those_of_what_is_on() {
    for (name, labels) in [
        (
            "milan-snp",
            &["sev.asids=410", "sev.enabled=true", "sev.encrypted_state_ids=99", "sev.es.enabled=true", "sev.snp.enabled=true"][..],
        ),
        ("epyc-snp-parameter-off", &["sev.asids=493", "sev.enabled=true", "sev.encrypted_state_ids=16", "sev.es.enabled=true"]),
        ("xeon-tdx", &["tdx.enabled=true", "tdx.total_keys=63"]),
        ("xeon-old-kernel", &[]),
        ("z16-se", &["se.enabled=true"]),
        ("z15-without-se", &[]),
        ("cloud-vm-without-kvm", &[]),
    ] {
        assert_eq!(Recorded::of(name, None).labels(), labels, "{name}");
    }
    let off = Recorded::of("milan-snp", None).but(&Write("/sys/module/kvm_amd/parameters/sev", "N"));
    assert!(!off.labels().iter().any(|label| label.starts_with("sev.enabled") || label.starts_with("sev.asids")));
}

/// An image of two pages: a table of sections at its start, and a footer that says so.
fn image(signature: &[u8], descriptors: &[Vec<u8>], place: Guid, entries: &[(Guid, &[u8])]) -> Vec<u8> {
    let mut image = vec![0x90; 8192];
    let descriptors_len = descriptors.concat().len() as u32;
    let table =
        [signature, &[16 + descriptors_len, 1, descriptors.len() as u32].map(u32::to_le_bytes).concat(), &descriptors.concat()].concat();
    image[..table.len()].copy_from_slice(&table);
    let footer = Footer::build(&[entries, &[(place, &8192_u32.to_le_bytes())]].concat());
    let range = Footer::place(image.len(), &footer).unwrap();
    image[range].copy_from_slice(&footer);
    image
}

/// With or without a section for the kernel's hashes.
fn snp_image(hashes: bool) -> Vec<u8> {
    let sections: &[[u32; 3]] = if hashes { &[[0x1000, 0x1000, 0x10]] } else { &[[0x1000, 0x1000, 1]] };
    let descriptors: Vec<_> = sections.iter().map(|words| words.map(u32::to_le_bytes).concat()).collect();
    let table = [0x1000_u32, 0x400].map(u32::to_le_bytes).concat();
    image(b"ASEV", &descriptors, SEV_METADATA, &[(SEV_ES_RESET, &[0x10, 0, 0, 0]), (SEV_HASH_TABLE, &table)])
}

fn tdx_image() -> Vec<u8> {
    let section = |offset: u32, length: u32, gpa: u64, size: u64, kind: u32, attributes: u32| {
        let words = [[offset, length], [kind, attributes]].map(|pair| pair.map(u32::to_le_bytes).concat());
        [&words[0][..], &[gpa, size].map(u64::to_le_bytes).concat(), &words[1]].concat()
    };
    let sections = [section(0x1000, 0x1000, 0xffff_f000, 0x1000, 0, 1), section(0, 0, 0x3000, 0x2000, 2, 0)];
    image(b"TDVF", &sections, TDX_METADATA, &[])
}

#[test]
fn a_class_says_which_tee_is_required() {
    let snp = Recorded::of("milan-snp", None).with_class("snp", "", &snp_image(true));
    assert_eq!((snp.failing(), snp.report().tee), (vec![], Some(Tee::Snp)));
    for name in ["config", "config-files", "config-firmware", "config-cpuid", "snp-cpu"] {
        assert_eq!(snp.check(name).status, Status::Pass, "{name}");
    }
    assert_eq!(snp.but(&Remove("/dev/sev")).failing(), ["snp-device"]);
    let tdx = Recorded::of("xeon-tdx", None).with_class("tdx", "", &tdx_image());
    assert_eq!((tdx.failing(), tdx.report().tee), (vec![], Some(Tee::Tdx)));
    assert_eq!(tdx.check("config-firmware").status, Status::Pass);
}

#[test]
fn each_fault_of_a_class_fails_its_own_check() {
    let snp = |more: &str, firmware: &[u8]| Recorded::of("milan-snp", None).with_class("snp", more, firmware);
    let good = snp_image(true);
    assert_eq!(snp("", &good).but(&Remove("/g/vmlinuz")).failing(), ["config-files"]);
    assert_eq!(snp("", &good).but(&Remove("/g/fw")).failing(), ["config-files"]);
    assert_eq!(snp("", &good).but(&Write("/g/initrd", "")).failing(), ["config-files"]);
    assert_eq!(snp("", &good).but(&Directory("/g/initrd")).failing(), ["config-files"]);
    assert_eq!(snp("", &snp_image(false)).failing(), ["config-firmware"]);
    assert!(snp("", &snp_image(false)).check("config-firmware").found.contains("SNP_KERNEL_HASHES"));
    assert_eq!(snp("", &tdx_image()).failing(), ["config-firmware"]);
    assert_eq!(snp("[snp]\ncbitpos = 47", &good).failing(), ["config-cpuid"]);
    assert_eq!(snp("[snp]\nreduced_phys_bits = 0", &good).failing(), ["config-cpuid"]);
    assert_eq!(snp("[snp]\nreduced_phys_bits = 64", &good).failing(), ["config-cpuid"]);
    // QEMU gives a guest one bit less whatever the processor has.
    assert!(snp("[snp]\nreduced_phys_bits = 5", &good).failing().is_empty());
    let tdx = |more: &str, firmware: &[u8]| Recorded::of("xeon-tdx", None).with_class("tdx", more, firmware);
    assert_eq!(tdx("", &snp_image(true)).failing(), ["config-firmware"]);
    assert_eq!(tdx("[tdx]\nquote_generation_socket = \"/run/other\"", &tdx_image()).failing(), ["tdx-quotes"]);
    let far = tdx("[tdx]\nquote_generation_socket = \"vsock:2:4050\"", &tdx_image());
    assert_eq!((far.failing(), far.check("tdx-quotes").status), (vec![], Status::Skip));
    // A firmware nobody would read whole.
    let huge = snp("", &good);
    fs::File::options().write(true).open(huge.at("/g/fw")).unwrap().set_len((64 << 20) + 1).unwrap();
    assert_eq!(huge.failing(), ["config-firmware"]);
}

#[test]
fn the_class_names_qemu() {
    let host = Recorded::of("milan-snp", None).with_class("snp", "", &snp_image(true));
    let text = fs::read_to_string(host.at(DEFAULT_PATH)).unwrap();
    fs::write(host.at(DEFAULT_PATH), text.replace("/usr/bin/qemu-system-x86_64", "/opt/qemu")).unwrap();
    assert_eq!(host.failing(), ["qemu"]);
    assert!(host.but(&Write("/opt/qemu", "QEMU emulator version 10.2.0")).failing().is_empty());
}

#[test]
fn a_configuration_that_cannot_be_used_is_not_taken_for_none() {
    let host = || Recorded::of("milan-snp", Tee::Snp);
    assert_eq!(host().check("config").status, Status::Skip);
    assert_eq!(host().but(&Write(DEFAULT_PATH, "tee = \"none\"\n")).failing(), ["config"]);
    assert_eq!(host().but(&Write(DEFAULT_PATH, "")).but(&Directory(DEFAULT_PATH)).failing(), ["config"]);
    let mut absent = host();
    absent.args.config = Some("/etc/kata-cc/snp.toml".into());
    assert_eq!(absent.failing(), ["config"]);
    // The default is perhaps another class's; what somebody names is to be for what they ask.
    let mut other = Recorded::of("milan-snp", Tee::Snp).with_class("tdx", "", &tdx_image());
    assert_eq!((other.failing(), other.check("config-files").status), (vec![], Status::Skip));
    other.args.config = Some(DEFAULT_PATH.into());
    assert_eq!(other.failing(), ["config"]);
}

#[test]
fn the_simulated_tees_vsock_is_as_its_class_says() {
    let more = |vsock: &str| {
        format!("vsock = \"{vsock}\"\nvhost_device_vsock = \"/usr/bin/vhost-device-vsock\"\n[simulation]\nkeys = \"/keys\"\n")
    };
    let class = |vsock: &str| Recorded::of("cloud-vm-without-kvm", None).with_class("sim", &more(vsock), b"sim");
    assert!(class("auto").failing().is_empty());
    assert_eq!(class("auto").but(&Remove("/usr/bin/vhost-device-vsock")).failing(), ["vsock"]);
    assert_eq!(class("kernel").failing(), ["vsock"]);
    assert!(class("kernel").but(&Write("/dev/vhost-vsock", "")).failing().is_empty());
}

#[test]
fn text_and_json_name_hint_and_command() {
    let host = Recorded::of("milan-snp", Tee::Snp).but(&Remove("/dev/vhost-vsock"));
    let text = host.report().text();
    assert!(text.contains("FAIL  vsock ") && text.contains("-> load the kernel module vhost_vsock\n"), "{text}");
    assert!(
        text.contains("fix: modprobe vhost_vsock\n") && text.ends_with("checks failed\n") && !text.contains("modprobe kvm_intel"),
        "{text}"
    );
    let json = serde_json::to_value(host.report()).unwrap();
    assert_eq!((&json["tee"], &json["ready"]), (&"snp".into(), &false.into()));
    assert_eq!(json["labels"]["feature.node.kubernetes.io/cpu-security.sev.snp.enabled"], "true");
    let vsock = json["checks"].as_array().unwrap().iter().find(|c| c["name"] == "vsock").unwrap();
    assert_eq!((&vsock["status"], &vsock["fix"]), (&"fail".into(), &"modprobe vhost_vsock".into()));
    assert!(Recorded::of("milan-snp", Tee::Snp).report().text().ends_with("ready\n"));
}

#[test]
fn the_bits_of_encrypted_memory_are_the_manuals() {
    let host = Recorded::of("milan-snp", None);
    let found = host.see(amd::EncryptedMemory::of).unwrap();
    assert_eq!(found, amd::EncryptedMemory { snp: true, cbitpos: 51, reduced_phys_bits: 5, guests: 509 });
}

#[test]
fn what_cannot_be_read_is_neither_there_nor_absent() {
    let host = Recorded::of("milan-snp", None);
    host.see(|host| {
        assert_eq!(host.text("/no/such"), Seen::Absent);
        assert!(matches!(host.text("/proc"), Seen::Unreadable(_)));
        assert_eq!(host.text("/dev/sev"), Seen::Is(String::new()));
        assert_eq!(host.bytes("/sys/fs/cgroup/misc.capacity", 17), Seen::Is(b"sev 410\nsev_es 99".to_vec()));
        assert!(matches!(host.bytes("/sys/fs/cgroup/misc.capacity", 16), Seen::Unreadable(_)));
    });
    put(&host.at("/proc/version"), &[0xff]);
    assert!(matches!(host.see(|host| host.text("/proc/version")), Seen::Unreadable(_)));
}

#[test]
fn versions_are_found_in_what_programs_print() {
    assert_eq!(parse_version("QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7)"), Some((7, 2)));
    assert_eq!(parse_version("containerd github.com/containerd/containerd/v2 2.1.4"), Some((2, 1)));
    assert_eq!(parse_version("6.11.0-19-generic"), Some((6, 11)));
    assert_eq!(parse_version("no numbers here"), None);
}
