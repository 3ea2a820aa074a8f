//! Launch plans before real QEMU binaries of the releases we support, for x86_64 and s390x.
//!
//! No machine with a TEE is needed. The exact command line of a plan must get as far as the hardware that is missing: by then QEMU has
//! parsed every option, opened every file and made the protection object with all its properties. What comes after that (processors and
//! devices) is tried by the same command line without its protection, which must reach a machine that waits to be started.
//!
//! `KATA_CC_QEMU_TREES` names unpacked root directories of Debian releases, joined by `:` (`cargo xtask test` fetches them).

#![allow(clippy::unwrap_used)] // helpers of tests: to panic is to fail

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use kata_cc_vmm::config::Config;
use kata_cc_vmm::cpu_model::CpuModel;
use kata_cc_vmm::plan::{LaunchPlan, plan};
use kata_cc_vmm::qemu;
use kata_cc_vmm::qmp::Qmp;
use kata_cc_vmm::request::{Host, InitdataDigest, PodRequest};
use kata_cc_vmm::run::{Exit, Process};
use kata_cc_vmm::run_dir::RunDir;
use kata_cc_vmm::tee::TeeKind;
use kata_cc_vmm::tee::snp::id_block::{IdBlock, IdKey, SignedIdBlock};
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair};

/// A release's binaries, run with its own loader and libraries.
struct Tree {
    root: PathBuf,
    /// Major and minor version, by asking the binary.
    version: (u32, u32),
}

impl Tree {
    fn all() -> Vec<Self> {
        let trees = std::env::var_os("KATA_CC_QEMU_TREES").expect("KATA_CC_QEMU_TREES names no trees; run this by `cargo xtask test`");
        std::env::split_paths(&trees).map(Self::open).collect()
    }

    fn open(root: PathBuf) -> Self {
        let mut tree = Self { root, version: (0, 0) };
        let (loader, mut arguments) = tree.binary("x86_64");
        arguments.push("--version".into());
        let output = std::process::Command::new(loader).args(arguments).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let version = text.strip_prefix("QEMU emulator version ").unwrap_or_else(|| panic!("not a QEMU version: {text}"));
        let mut numbers = version.split('.').map(|number| number.parse().unwrap());
        tree.version = (numbers.next().unwrap(), numbers.next().unwrap());
        tree
    }

    /// The loader, and its arguments up to the binary's own.
    fn binary(&self, machine: &str) -> (PathBuf, Vec<OsString>) {
        let libraries = self.root.join("usr/lib/x86_64-linux-gnu");
        let binary = self.root.join(format!("usr/bin/qemu-system-{machine}"));
        (self.root.join("usr/lib64/ld-linux-x86-64.so.2"), vec!["--library-path".into(), libraries.into(), binary.into()])
    }

    /// Starts a command line with a socket under every descriptor number it may inherit; the first is QMP's.
    fn start(&self, machine: &str, arguments: Vec<OsString>, descriptors: usize, dir: &RunDir) -> (Process, tokio::net::UnixStream) {
        let (loader, mut all) = self.binary(machine);
        all.extend(arguments);
        let mut ours = Vec::new();
        let mut inherited: Vec<(OwnedFd, i32)> = Vec::new();
        for number in (qemu::FIRST_FD..).take(descriptors) {
            let (mine, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
            ours.push(mine);
            inherited.push((theirs.into(), number));
        }
        let process = Process::spawn("qemu", &loader, all, inherited, dir).unwrap();
        let qmp = ours.swap_remove(0);
        qmp.set_nonblocking(true).unwrap();
        (process, tokio::net::UnixStream::from_std(qmp).unwrap())
    }

    /// Runs a command line until it ends by itself.
    async fn ends(&self, machine: &str, arguments: Vec<OsString>, descriptors: usize, dir: &RunDir) -> Exit {
        let (process, _qmp) = self.start(machine, arguments, descriptors, dir);
        process.wait().await
    }
}

/// A protection, and what a QEMU without its hardware says at last.
struct Protection {
    machine: &'static str,
    /// The first version that has the protection.
    since: (u32, u32),
    /// What names the missing hardware where there is a `/dev/kvm`.
    missing: &'static str,
    /// What a QEMU before `since` names.
    unknown: &'static str,
}

/// What is said where there is no `/dev/kvm`.
const NO_KVM: &str = "Could not access KVM kernel module";

const SNP: Protection =
    Protection { machine: "x86_64", since: (9, 1), missing: "vm-type SEV-SNP not supported by KVM", unknown: "sev-snp-guest" };
const TDX: Protection = Protection { machine: "x86_64", since: (10, 1), missing: "vm-type TDX not supported by KVM", unknown: "tdx-guest" };
/// The object is compiled only into a QEMU for s390x hosts, so its absence is all that can be seen here.
const SE: Protection = Protection { machine: "s390x", since: (u32::MAX, 0), missing: "s390-pv-guest", unknown: "s390-pv-guest" };

/// A class of a protection, as its configuration.
struct Case {
    protection: Protection,
    tee: &'static str,
    options: &'static str,
}

const CASES: [Case; 6] = [
    Case { protection: SNP, tee: "snp", options: "" },
    Case { protection: TDX, tee: "tdx", options: "" },
    Case { protection: SNP, tee: "snp", options: include_str!("golden/snp-options.toml") },
    Case { protection: TDX, tee: "tdx", options: include_str!("golden/tdx-options.toml") },
    Case { protection: SE, tee: "se", options: "" },
    Case { protection: SE, tee: "se", options: include_str!("golden/se-options.toml") },
];

impl Case {
    fn class(&self) -> String {
        let files = if self.tee == "se" { "" } else { "firmware = \"/f\"\ninitrd = \"/i\"\n" };
        format!("tee = {:?}\nkernel = \"/k\"\n{files}{}", self.tee, self.options)
    }

    /// For messages.
    fn on(&self, tree: &Tree) -> String {
        format!("{}, options {:?}, on QEMU {:?}", self.tee, self.options, tree.version)
    }
}

/// The plan of a pod with a network interface, with its files in `dir`.
fn planned(case: &Case, base: &Path) -> (LaunchPlan, RunDir) {
    let config = Config::parse(&format!("run_dir = {:?}\n{}\n", base.to_str().unwrap(), case.class())).unwrap();
    let request = PodRequest {
        sandbox_id: "pod-1".parse().unwrap(),
        annotations: std::collections::BTreeMap::new(),
        cpu_limits: Vec::new(),
        memory_limits: Vec::new(),
        initdata_digest: Some(InitdataDigest::new(&[0xab; 32]).unwrap()),
        nics: vec!["02:42:ac:11:00:02".parse().unwrap()],
        id_block: None,
        host: Host { vsock_cid: Some(77), vhost_net: true },
    };
    let dir = RunDir::create(base, &request.sandbox_id).unwrap();
    dir.write("initdata.img", &[0; 4096]).unwrap();
    (plan(&config, &request).unwrap(), dir)
}

#[tokio::test]
#[ignore = "needs QEMU of other Debian releases; run by `cargo xtask test`"]
async fn exact_command_lines_get_as_far_as_the_hardware_that_is_missing() {
    for tree in Tree::all() {
        for case in &CASES {
            let base = tempfile::tempdir().unwrap();
            let (plan, dir) = planned(case, base.path());
            let exit = tree.ends(case.protection.machine, qemu::command(&plan).unwrap(), qemu::inherited(&plan).len(), &dir).await;
            let before = tree.version < case.protection.since;
            let expected = if before { vec![case.protection.unknown] } else { vec![NO_KVM, case.protection.missing] };
            let said = exit.last_words.as_str();
            assert!(expected.iter().any(|words| said.contains(words)), "{}: {exit}", case.on(&tree));
            assert!(exit.status.is_some_and(|status| !status.success()), "{}: {exit}", case.on(&tree));
        }
    }
}

/// The same line with what needs the hardware left out, so that the rest can be tried.
fn unprotected(arguments: Vec<OsString>) -> Vec<OsString> {
    let mut words = arguments.into_iter().map(|word| word.into_string().unwrap());
    let mut kept = Vec::new();
    while let Some(name) = words.next() {
        if matches!(name.as_str(), "-nodefaults" | "-no-user-config" | "-no-reboot") {
            kept.push(name);
            continue;
        }
        let mut value = words.next().unwrap();
        match name.as_str() {
            // Files of the guest, which are read when the machine is made.
            "-bios" | "-kernel" | "-initrd" | "-append" => continue,
            "-object" if value.contains("-guest") => continue,
            // The kernel's vsock needs its device; its options are looked up instead.
            "-device" if value.starts_with("vhost-vsock") => continue,
            "-machine" => {
                let parts = value.split(',').filter(|part| !part.starts_with("confidential-guest-support="));
                value = parts.collect::<Vec<_>>().join(",").replace("accel=kvm", "accel=tcg");
            }
            "-cpu" => value = value.replace("host", "max"),
            "-netdev" => value = "hubport,id=net0,hubid=0".into(),
            _ => {}
        }
        kept.extend([name, value]);
    }
    kept.push("-S".into());
    kept.into_iter().map(OsString::from).collect()
}

#[tokio::test]
#[ignore = "needs QEMU of other Debian releases; run by `cargo xtask test`"]
async fn processors_and_devices_make_a_machine_that_waits_to_be_started() {
    for tree in Tree::all() {
        for case in &CASES {
            let base = tempfile::tempdir().unwrap();
            let (plan, dir) = planned(case, base.path());
            let arguments = unprotected(qemu::command(&plan).unwrap());
            let (process, stream) = tree.start(case.protection.machine, arguments, qemu::inherited(&plan).len(), &dir);
            let status = match Qmp::open(stream).await {
                Ok(qmp) => {
                    let status = qmp.status().await.map_err(|error| error.to_string());
                    let _ = qmp.quit().await;
                    status
                }
                Err(error) => Err(error.to_string()),
            };
            let exit = process.wait().await;
            assert_eq!(status.as_deref(), Ok("prelaunch"), "{}: {exit}", case.on(&tree));
        }
    }
}

#[tokio::test]
#[ignore = "needs QEMU of other Debian releases; run by `cargo xtask test`"]
async fn the_vsock_device_has_the_properties_that_plans_give_it() {
    for tree in Tree::all() {
        for case in &CASES {
            let base = tempfile::tempdir().unwrap();
            let (plan, _dir) = planned(case, base.path());
            let words = qemu::command(&plan).unwrap();
            let device = words.iter().map(|word| word.to_str().unwrap()).find(|word| word.starts_with("vhost-vsock")).unwrap();
            let mut parts = device.split(',');
            let (loader, mut arguments) = tree.binary(case.protection.machine);
            arguments.extend(["-device".into(), format!("{},help", parts.next().unwrap()).into()]);
            let output = std::process::Command::new(loader).args(arguments).output().unwrap();
            let help = String::from_utf8(output.stdout).unwrap();
            for part in parts {
                let property = part.split('=').next().unwrap();
                assert!(help.contains(&format!("  {property}=<")), "{}: {property}\n{help}", case.on(&tree));
            }
        }
    }
}

/// Signed by keys that are made here.
fn id_block(with_author: bool) -> SignedIdBlock {
    let key = || {
        let document = EcdsaKeyPair::generate_pkcs8(&ECDSA_P384_SHA384_FIXED_SIGNING, &SystemRandom::new()).unwrap();
        IdKey::from_pkcs8(document.as_ref()).unwrap()
    };
    let block = IdBlock { launch_digest: [0xd1; 48], family_id: [1; 16], image_id: [2; 16], guest_svn: 3, policy: 0x3_0000 };
    SignedIdBlock::sign(&block, &key(), with_author.then(key).as_ref()).unwrap()
}

#[tokio::test]
#[ignore = "needs QEMU of other Debian releases; run by `cargo xtask test`"]
async fn id_blocks_get_as_far_as_the_hardware_that_is_missing_and_longer_ones_are_refused() {
    for tree in Tree::all() {
        for with_author in [false, true] {
            let base = tempfile::tempdir().unwrap();
            let (mut plan, dir) = planned(&CASES[0], base.path());
            plan.id_block = Some(id_block(with_author));
            let words = qemu::command(&plan).unwrap();
            let exit = tree.ends("x86_64", words.clone(), qemu::inherited(&plan).len(), &dir).await;
            let reached = [NO_KVM, SNP.missing].iter().any(|words| exit.last_words.contains(words));
            assert!(reached && exit.status.is_some_and(|status| !status.success()), "QEMU {:?}: {exit}", tree.version);
            for (property, refused) in [("id-block", "length of 99 not equal to 96"), ("id-auth", "ID_AUTH 4099 exceeds max of 4096")] {
                // Three bytes more than AMD's structure has.
                let longer =
                    |word: OsString| word.into_string().unwrap().replace(&format!(",{property}="), &format!(",{property}=AAAA")).into();
                let exit = tree.ends("x86_64", words.iter().cloned().map(longer).collect(), qemu::inherited(&plan).len(), &dir).await;
                assert!(exit.last_words.contains(refused), "QEMU {:?}: {exit}", tree.version);
            }
        }
    }
}

#[tokio::test]
#[ignore = "needs QEMU of other Debian releases; run by `cargo xtask test`"]
async fn a_misspelt_protection_is_refused_by_name() {
    for tree in Tree::all() {
        for (case, right, wrong) in [(&CASES[0], "kernel-hashes=", "kernel-hash="), (&CASES[1], "sept-ve-disable", "sept-ve-disabled")] {
            let base = tempfile::tempdir().unwrap();
            let (plan, dir) = planned(case, base.path());
            let words = qemu::command(&plan).unwrap();
            let words = words.into_iter().map(|word| word.into_string().unwrap().replace(right, wrong).into()).collect();
            let exit = tree.ends(case.protection.machine, words, qemu::inherited(&plan).len(), &dir).await;
            let named = if tree.version < case.protection.since { case.protection.unknown } else { wrong.trim_end_matches('=') };
            assert!(exit.last_words.contains(named), "{}: {exit}", case.on(&tree));
        }
    }
}

#[tokio::test]
#[ignore = "needs QEMU of other Debian releases; run by `cargo xtask test`"]
async fn models_of_a_class_are_those_of_qemu() {
    let listed: BTreeSet<&str> = CpuModel::all(TeeKind::Snp).iter().map(|model| model.as_str()).collect();
    let trees = Tree::all();
    let newest = trees.iter().map(|tree| tree.version).max().unwrap();
    for tree in &trees {
        let (loader, mut arguments) = tree.binary("x86_64");
        arguments.extend(["-cpu".into(), "help".into()]);
        let help = String::from_utf8(std::process::Command::new(loader).args(arguments).output().unwrap().stdout).unwrap();
        let known: BTreeSet<&str> =
            help.lines().filter_map(|line| line.split_whitespace().next()).filter(|name| name.starts_with("EPYC")).collect();
        assert!(known.contains("EPYC-v4"), "QEMU {:?}: {help}", tree.version);
        assert!(known.is_subset(&listed), "QEMU {:?}: {:?}", tree.version, known.difference(&listed));
        if tree.version == newest {
            assert_eq!(known, listed);
        }
    }
}
