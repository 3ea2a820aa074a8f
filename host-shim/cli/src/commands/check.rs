//! `kata-cc check`: whether this host can run confidential pods.
//!
//! It only looks: it starts nothing but `--version` of programs, loads no module, changes nothing. A host is not trusted, so a green
//! check promises nothing to the owner of a pod; only evidence does. Each check passes, is skipped (not needed for what was asked)
//! or fails with a hint.

use std::ffi::OsString;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use clap::ValueEnum;
use serde::Serialize;

use crate::output::{Format, Outcome, show};

/// Arguments of `check`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// What the host is to run: `sim` is the simulated TEE for development.
    #[arg(long, value_enum)]
    tee: Option<Tee>,
    /// QEMU binary; default: qemu-system-x86_64 on PATH.
    #[arg(long, value_name = "FILE")]
    qemu: Option<PathBuf>,
    /// containerd's socket.
    #[arg(long, value_name = "PATH", default_value = "/run/containerd/containerd.sock")]
    containerd_address: PathBuf,
}

/// Kinds of TEE a host may have.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum Tee {
    Snp,
    Tdx,
    Sim,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
enum Status {
    Pass,
    Skip,
    Fail,
}

#[derive(Debug, Serialize)]
struct Check {
    name: &'static str,
    status: Status,
    found: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    hint: Option<&'static str>,
}

/// The host as the checks see it; tests put a directory in place of `/` and answers in place of programs.
struct Host<'a> {
    root: PathBuf,
    path: Option<OsString>,
    version: &'a dyn Fn(&Path) -> Option<String>,
}

impl Host<'_> {
    fn at(&self, path: impl AsRef<Path>) -> PathBuf {
        let path = path.as_ref();
        self.root.join(path.strip_prefix("/").unwrap_or(path))
    }

    fn exists(&self, path: impl AsRef<Path>) -> bool {
        self.at(path).exists()
    }

    fn text(&self, path: impl AsRef<Path>) -> String {
        let mut text = String::new();
        // An unreadable file counts as one that says nothing; /proc/cpuinfo of a large host is about 1 MiB.
        if let Ok(file) = fs::File::open(self.at(path)) {
            let _ = file.take(8 << 20).read_to_string(&mut text);
        }
        text
    }

    fn usable(&self, path: impl AsRef<Path>) -> bool {
        fs::OpenOptions::new().read(true).write(true).open(self.at(path)).is_ok()
    }

    fn program(&self, name: &str) -> Option<PathBuf> {
        let path = self.path.as_ref()?;
        std::env::split_paths(path).map(|dir| dir.join(name)).find(|file| file.is_file())
    }

    fn cpu_flag(&self, flag: &str) -> bool {
        self.text("/proc/cpuinfo").lines().find(|l| l.starts_with("flags")).is_some_and(|l| l.split_whitespace().any(|f| f == flag))
    }

    fn parameter_on(&self, module: &str, parameter: &str) -> bool {
        matches!(self.text(format!("/sys/module/{module}/parameters/{parameter}")).trim(), "Y" | "1")
    }
}

pub(crate) fn run(args: &Args, format: Format) -> anyhow::Result<Outcome> {
    let host = Host { root: "/".into(), path: std::env::var_os("PATH"), version: &version_of };
    let checks = all(&host, args);
    let failed = checks.iter().filter(|c| c.status == Status::Fail).count();
    let result = serde_json::json!({
        "tee": args.tee.map(|t| format!("{t:?}").to_lowercase()),
        "ready": failed == 0,
        "checks": checks,
    });
    show(format, "check", &result, || {
        let mut text = String::new();
        for check in &checks {
            let mark = match check.status {
                Status::Pass => "pass",
                Status::Skip => "skip",
                Status::Fail => "FAIL",
            };
            text += &format!("{mark}  {:<12} {}\n", check.name, check.found);
            if let (Status::Fail, Some(hint)) = (check.status, check.hint) {
                text += &format!("      {:<12} -> {hint}\n", "");
            }
        }
        text += &match failed {
            0 => "ready\n".to_owned(),
            n => format!("not ready: {n} of {} checks failed\n", checks.len()),
        };
        text
    })?;
    Ok(Outcome::when(failed == 0))
}

/// First line a program prints for `--version`.
fn version_of(program: &Path) -> Option<String> {
    let output = Command::new(program).arg("--version").stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout);
    text.lines().next().map(|l| l.chars().take(200).collect())
}

fn all(host: &Host<'_>, args: &Args) -> Vec<Check> {
    // Without --tee, hardware TEEs are reported but not required; with it, exactly that one is.
    let tee = args.tee;
    let hardware = matches!(tee, Some(Tee::Snp | Tee::Tdx));
    let mut checks = vec![qemu(host, args), kvm(host, hardware)];
    checks.push(required(tee == Some(Tee::Snp), snp(host)));
    checks.push(required(tee == Some(Tee::Tdx), tdx(host)));
    if tee == Some(Tee::Sim) {
        checks.push(program(host, "tee-sim", "kata-cc-tee-sim", "install kata-cc-tee-sim (development only) or choose a hardware TEE"));
    }
    checks.push(vsock(host));
    checks.push(tun(host));
    checks.push(cgroup(host));
    checks.push(memory(host));
    checks.push(containerd(host, args));
    checks.push(program(
        host,
        "shim",
        "containerd-shim-kata-cc-v2",
        "put containerd-shim-kata-cc-v2 into a directory on containerd's PATH",
    ));
    checks.push(program(host, "node", "kata-cc-node", "install kata-cc-node; without it image layers are also pulled to this host"));
    checks
}

/// A check that is not required is skipped where it would have failed.
fn required(needed: bool, mut check: Check) -> Check {
    if !needed && check.status == Status::Fail {
        check.status = Status::Skip;
    }
    check
}

fn result(name: &'static str, holds: bool, found: impl Into<String>, hint: &'static str) -> Check {
    Check { name, status: if holds { Status::Pass } else { Status::Fail }, found: found.into(), hint: (!holds).then_some(hint) }
}

/// `(major, minor)` of the first thing in a text that looks like a version.
fn parse_version(text: &str) -> Option<(u32, u32)> {
    text.split(|c: char| !(c.is_ascii_digit() || c == '.')).find_map(|word| {
        let mut parts = word.split('.');
        Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
    })
}

fn qemu(host: &Host<'_>, args: &Args) -> Check {
    const HINT: &str = "install QEMU for x86_64: 9.1 or later for SEV-SNP, 10.1 for TDX, 7.2 for the simulated TEE; or name it with --qemu";
    let need = match args.tee {
        Some(Tee::Snp) => (9, 1),
        Some(Tee::Tdx) => (10, 1),
        Some(Tee::Sim) | None => (7, 2),
    };
    let Some(binary) = args.qemu.clone().or_else(|| host.program("qemu-system-x86_64")) else {
        return result("qemu", false, "no qemu-system-x86_64 on PATH", HINT);
    };
    let Some(text) = (host.version)(&binary) else {
        return result("qemu", false, format!("{} does not answer --version", binary.display()), HINT);
    };
    match parse_version(&text) {
        Some(found) => {
            let said = format!("{} is version {}.{} (expected at least {}.{})", binary.display(), found.0, found.1, need.0, need.1);
            result("qemu", found >= need, said, HINT)
        }
        None => result("qemu", false, format!("{} says {text:?}, which holds no version", binary.display()), HINT),
    }
}

fn kvm(host: &Host<'_>, needed: bool) -> Check {
    let (holds, found) = match (host.exists("/dev/kvm"), host.usable("/dev/kvm")) {
        (true, true) => (true, "/dev/kvm can be opened"),
        (true, false) => (false, "/dev/kvm is there but this user cannot open it"),
        (false, _) => (false, "/dev/kvm is missing"),
    };
    let hint = "enable virtualisation in the firmware, load kvm_amd or kvm_intel, run as root or a member of group kvm";
    required(needed, result("kvm", holds, found, hint))
}

fn snp(host: &Host<'_>) -> Check {
    let flag = host.cpu_flag("sev_snp");
    let module = host.parameter_on("kvm_amd", "sev_snp");
    let device = host.exists("/dev/sev");
    let found = format!("CPU flag sev_snp: {}, kvm_amd sev_snp: {}, /dev/sev: {}", yes(flag), yes(module), yes(device));
    result(
        "sev-snp",
        flag && module && device,
        found,
        "needs EPYC 7003 or later, SEV-SNP and an RMP table enabled in the firmware, Linux 6.11 or later as host",
    )
}

fn tdx(host: &Host<'_>) -> Check {
    let flag = host.cpu_flag("tdx_host_platform");
    let module = host.parameter_on("kvm_intel", "tdx");
    let found = format!("CPU flag tdx_host_platform: {}, kvm_intel tdx: {}", yes(flag), yes(module));
    result("tdx", flag && module, found, "needs a Xeon with TDX enabled in the firmware, Linux 6.16 or later as host, kvm_intel.tdx=1")
}

fn yes(value: bool) -> &'static str {
    if value { "yes" } else { "no" }
}

fn vsock(host: &Host<'_>) -> Check {
    const HINT: &str =
        "load the kernel module vhost_vsock, or install vhost-device-vsock (cargo install vhost-device-vsock --version 0.3.0 --locked)";
    if host.exists("/dev/vhost-vsock") {
        return result("vsock", true, "/dev/vhost-vsock", HINT);
    }
    match host.program("vhost-device-vsock") {
        Some(helper) => result("vsock", true, format!("no /dev/vhost-vsock; {} will serve", helper.display()), HINT),
        None => result("vsock", false, "neither /dev/vhost-vsock nor vhost-device-vsock on PATH", HINT),
    }
}

fn tun(host: &Host<'_>) -> Check {
    let holds = host.exists("/dev/net/tun");
    result("network", holds, if holds { "/dev/net/tun" } else { "/dev/net/tun is missing" }, "load the kernel module tun")
}

fn cgroup(host: &Host<'_>) -> Check {
    let (holds, found) = if host.exists("/sys/fs/cgroup/cgroup.controllers") {
        (true, "version 2")
    } else if host.exists("/sys/fs/cgroup/memory") {
        (true, "version 1")
    } else {
        (false, "nothing mounted at /sys/fs/cgroup")
    };
    result("cgroup", holds, found, "mount cgroup2 at /sys/fs/cgroup")
}

fn memory(host: &Host<'_>) -> Check {
    /// A small pod: 256 MiB of guest, QEMU and the shim.
    const NEED_MIB: u64 = 512;
    let available = host
        .text("/proc/meminfo")
        .lines()
        .find_map(|l| l.strip_prefix("MemAvailable:")?.split_whitespace().next()?.parse::<u64>().ok())
        .map(|kib| kib / 1024);
    match available {
        Some(mib) => result(
            "memory",
            mib >= NEED_MIB,
            format!("{mib} MiB available (expected at least {NEED_MIB})"),
            "free memory for at least one pod",
        ),
        None => result("memory", false, "/proc/meminfo names no MemAvailable", "mount /proc"),
    }
}

fn containerd(host: &Host<'_>, args: &Args) -> Check {
    const HINT: &str = "install containerd 1.6 or later and start it; name its socket with --containerd-address if it is another";
    let Some(binary) = host.program("containerd") else {
        return result("containerd", false, "no containerd on PATH", HINT);
    };
    let version = (host.version)(&binary).as_deref().and_then(parse_version);
    let running = host.exists(&args.containerd_address);
    let socket = args.containerd_address.display();
    let (holds, found) = match version {
        Some((major, minor)) => (
            running && (major, minor) >= (1, 6),
            format!("version {major}.{minor} (expected at least 1.6), socket {socket}: {}", if running { "there" } else { "missing" }),
        ),
        None => (false, format!("{} tells no version", binary.display())),
    };
    result("containerd", holds, found, HINT)
}

fn program(host: &Host<'_>, name: &'static str, binary: &str, hint: &'static str) -> Check {
    match host.program(binary) {
        Some(path) => result(name, true, path.display().to_string(), hint),
        None => result(name, false, format!("no {binary} on PATH"), hint),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A host on which everything is there.
    fn host_files(root: &Path) {
        for (path, text) in [
            ("proc/cpuinfo", "flags\t\t: fpu sev sev_es sev_snp\n"),
            ("proc/meminfo", "MemTotal: 9999999 kB\nMemAvailable:    2097152 kB\n"),
            ("sys/module/kvm_amd/parameters/sev_snp", "Y\n"),
            ("sys/fs/cgroup/cgroup.controllers", "cpu memory\n"),
            ("dev/kvm", ""),
            ("dev/sev", ""),
            ("dev/vhost-vsock", ""),
            ("dev/net/tun", ""),
            ("run/containerd/containerd.sock", ""),
            ("bin/qemu-system-x86_64", ""),
            ("bin/containerd", ""),
            ("bin/containerd-shim-kata-cc-v2", ""),
            ("bin/kata-cc-node", ""),
        ] {
            let path = root.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
    }

    fn versions(program: &Path) -> Option<String> {
        Some(
            match program.file_name()?.to_str()? {
                "qemu-system-x86_64" => "QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2)",
                "containerd" => "containerd github.com/containerd/containerd 1.6.20~ds1 1.6.20",
                _ => return None,
            }
            .to_owned(),
        )
    }

    fn statuses(root: &Path, tee: Option<Tee>) -> Vec<(&'static str, Status)> {
        let host = Host { root: root.to_owned(), path: Some(root.join("bin").into()), version: &versions };
        let args = Args { tee, qemu: None, containerd_address: "/run/containerd/containerd.sock".into() };
        all(&host, &args).into_iter().map(|c| (c.name, c.status)).collect()
    }

    fn failing(root: &Path, tee: Option<Tee>) -> Vec<&'static str> {
        statuses(root, tee).into_iter().filter(|(_, s)| *s == Status::Fail).map(|(n, _)| n).collect()
    }

    #[test]
    fn a_complete_host_passes_for_the_tee_it_has_and_fails_for_the_one_it_has_not() {
        let dir = tempfile::tempdir().unwrap();
        host_files(dir.path());
        assert!(failing(dir.path(), Some(Tee::Snp)).is_empty());
        assert!(failing(dir.path(), None).is_empty());
        // QEMU 10.0 is too old for TDX as well.
        assert_eq!(failing(dir.path(), Some(Tee::Tdx)), ["qemu", "tdx"]);
        assert_eq!(failing(dir.path(), Some(Tee::Sim)), ["tee-sim"]);
    }

    #[test]
    fn each_missing_part_fails_its_own_check() {
        for (path, check) in [
            ("dev/kvm", "kvm"),
            ("dev/sev", "sev-snp"),
            ("sys/module/kvm_amd/parameters/sev_snp", "sev-snp"),
            ("dev/vhost-vsock", "vsock"),
            ("dev/net/tun", "network"),
            ("sys/fs/cgroup/cgroup.controllers", "cgroup"),
            ("proc/meminfo", "memory"),
            ("run/containerd/containerd.sock", "containerd"),
            ("bin/containerd", "containerd"),
            ("bin/qemu-system-x86_64", "qemu"),
            ("bin/containerd-shim-kata-cc-v2", "shim"),
            ("bin/kata-cc-node", "node"),
        ] {
            let dir = tempfile::tempdir().unwrap();
            host_files(dir.path());
            fs::remove_file(dir.path().join(path)).unwrap();
            assert_eq!(failing(dir.path(), Some(Tee::Snp)), [check], "without {path}");
        }
    }

    #[test]
    fn hardware_that_was_not_asked_for_is_skipped() {
        let dir = tempfile::tempdir().unwrap();
        host_files(dir.path());
        fs::remove_file(dir.path().join("dev/sev")).unwrap();
        fs::remove_file(dir.path().join("dev/kvm")).unwrap();
        let statuses = statuses(dir.path(), None);
        assert!(statuses.contains(&("sev-snp", Status::Skip)) && statuses.contains(&("kvm", Status::Skip)));
    }

    #[test]
    fn versions_are_found_in_what_programs_print() {
        assert_eq!(parse_version("QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7)"), Some((7, 2)));
        assert_eq!(parse_version("containerd github.com/containerd/containerd/v2 2.1.4"), Some((2, 1)));
        assert_eq!(parse_version("no numbers here"), None);
    }
}
