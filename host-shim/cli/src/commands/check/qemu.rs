//! QEMU, and the configuration of the class it is started by: files, what the firmware is built for, parameters that follow the processor.

use std::error::Error;
use std::path::{Path, PathBuf};

use kata_cc_firmware::measure::snp::SnpFirmware;
use kata_cc_firmware::measure::tdx::TdxFirmware;
use kata_cc_vmm::config::Config;
use kata_cc_vmm::tee::TeeKind;
use kata_cc_vmm::tee::snp::Snp;

use super::amd::EncryptedMemory;
use super::host::{Host, Seen};
use super::{Check, Tee};

/// Firmware images are a few MiB.
const MAX_FIRMWARE_BYTES: u64 = 64 << 20;

/// The configuration as far as it could be read.
pub(super) enum Class {
    /// Nobody named one and there is none at the default place.
    None,
    /// It cannot be used: why.
    Bad(String),
    /// It can.
    Good(Box<Config>),
}

impl Class {
    /// Reads a configuration; `named`: somebody asked for it, so it must be there.
    pub(super) fn load(host: &Host<'_>, path: &Path, named: bool) -> Self {
        if !named && host.there(path) == Seen::Absent {
            return Class::None;
        }
        match Config::load(&host.at(path)) {
            Ok(config) => Class::Good(Box::new(config)),
            Err(error) => {
                let mut text = error.to_string();
                let mut source = error.source();
                while let Some(cause) = source {
                    text += &format!(": {}", cause.to_string().trim_end().replace('\n', " "));
                    source = cause.source();
                }
                Class::Bad(text)
            }
        }
    }

    pub(super) fn config(&self) -> Option<&Config> {
        match self {
            Class::Good(config) => Some(config),
            Class::None | Class::Bad(_) => None,
        }
    }
}

pub(super) fn version(host: &Host<'_>, tee: Option<Tee>, named: Option<&Path>, config: Option<&Config>) -> Check {
    const NAME: &str = "qemu";
    let need = match tee {
        Some(Tee::Snp) => (9, 1),
        Some(Tee::Tdx) => (10, 1),
        Some(Tee::Sim | Tee::Se) | None => (7, 2),
    };
    let is_s390x = tee == Some(Tee::Se) || tee.is_none() && host.is_s390x();
    let program = if is_s390x { "qemu-system-s390x" } else { "qemu-system-x86_64" };
    let hint = format!("install {program} {}.{} or later, or name it with --qemu or in the configuration", need.0, need.1);
    let configured = || config.map(|c| host.at(c.effective_qemu()));
    let Some(binary) = named.map(PathBuf::from).or_else(configured).or_else(|| host.program(program)) else {
        return Check::fail(NAME, format!("no {program} on PATH"), hint);
    };
    let Some(found) = host.version(&binary) else {
        return Check::fail(NAME, format!("{} tells no version", binary.display()), hint);
    };
    let text = format!("{} is version {}.{} (expected at least {}.{})", binary.display(), found.0, found.1, need.0, need.1);
    Check::when(found >= need, NAME, text, hint)
}

/// The checks of a configuration for `tee`, where it is for another kind and nobody named it, are skipped.
pub(super) fn checks(host: &Host<'_>, tee: Option<Tee>, class: &Class, path: &Path, named: bool) -> Vec<Check> {
    const NAMES: [&str; 3] = ["config-files", "config-firmware", "config-cpuid"];
    let skipped = |first: Check, why: &str| [first].into_iter().chain(NAMES.map(|name| Check::skip(name, why))).collect();
    let path = path.display();
    let config = match class {
        Class::None => return skipped(Check::skip("config", format!("no {path}")), "no configuration"),
        Class::Bad(why) => {
            let hint = "correct the file by the commented example, config.toml.example";
            return skipped(Check::fail("config", format!("{path}: {why}"), hint), "the configuration cannot be used");
        }
        Class::Good(config) => config,
    };
    let found = format!("{path} is for {}", config.tee);
    if tee.is_some_and(|tee| tee.kind() != config.tee) {
        let hint = "name a configuration of the TEE that --tee says, or leave out --tee";
        return skipped(Check::fail("config", found, hint).needed(named), "a configuration for another TEE");
    }
    vec![Check::pass("config", found), files(host, config), firmware(host, config), cpuid(host, config)]
}

fn files(host: &Host<'_>, config: &Config) -> Check {
    const NAME: &str = "config-files";
    let named = [("firmware", config.firmware.as_deref()), ("kernel", Some(config.kernel.as_path())), ("initrd", config.initrd.as_deref())];
    let mut fine = Vec::new();
    for (key, path) in named {
        let Some(path) = path else { continue };
        let why = match host.begins(path) {
            Seen::Is(true) => {
                fine.push(key);
                continue;
            }
            Seen::Is(false) => "is empty".to_owned(),
            Seen::Absent => "is missing".to_owned(),
            Seen::Unreadable(why) => format!("cannot be read: {why}"),
        };
        let hint = format!("install the guest's files, or correct {key} in the configuration");
        return Check::fail(NAME, format!("{key} {} {why}", path.display()), hint);
    }
    Check::pass(NAME, format!("{} can be read", fine.join(", ")))
}

fn firmware(host: &Host<'_>, config: &Config) -> Check {
    const NAME: &str = "config-firmware";
    let path = match (config.tee, config.firmware.as_deref()) {
        (TeeKind::Snp | TeeKind::Tdx, Some(path)) => path,
        (TeeKind::Sim | TeeKind::Se, _) | (_, None) => return Check::skip(NAME, format!("nothing to look for with {}", config.tee)),
    };
    if host.begins(path) != Seen::Is(true) {
        return Check::skip(NAME, format!("{} cannot be read (see config-files)", path.display()));
    }
    let image = match host.bytes(path, MAX_FIRMWARE_BYTES) {
        Seen::Is(image) => image,
        other => {
            let why = if let Seen::Unreadable(why) = other { why } else { "missing".to_owned() };
            return Check::fail(NAME, format!("{}: {why}", path.display()), "name a firmware image of a few MiB in the configuration");
        }
    };
    let problem = match config.tee {
        TeeKind::Snp => match SnpFirmware::parse(&image) {
            Ok(firmware) => firmware.hash_table_offset().err().map(|why| format!("is not measured with a kernel: {why}")),
            Err(error) => Some(format!("is no firmware for SEV-SNP: {error}")),
        },
        TeeKind::Tdx => TdxFirmware::parse(&image).err().map(|error| format!("is no firmware for TDX: {error}")),
        TeeKind::Sim | TeeKind::Se => None,
    };
    match problem {
        None => Check::pass(NAME, format!("{} has the metadata {} needs", path.display(), config.tee)),
        Some(problem) => {
            let hint = match config.tee {
                TeeKind::Tdx => {
                    "use OVMF as one image with TDX metadata (edk2's IntelTdxX64, or OvmfPkgX64 with code and variables in one)"
                }
                TeeKind::Snp | TeeKind::Sim | TeeKind::Se => {
                    "use edk2's AmdSev build of OVMF, which checks kernel, initrd and command line"
                }
            };
            Check::fail(NAME, format!("{} {problem}", path.display()), hint)
        }
    }
}

/// As QEMU does: the C-bit must be the processor's. Of address bits a guest loses one, however many the processor loses, so they are not
/// compared; they have six bits in the guest's CPUID.
fn cpuid(host: &Host<'_>, config: &Config) -> Check {
    const NAME: &str = "config-cpuid";
    if config.tee != TeeKind::Snp {
        return Check::skip(NAME, format!("nothing to compare with {}", config.tee));
    }
    let Some(memory) = EncryptedMemory::of(host).filter(|memory| memory.snp) else {
        // That is what snp-cpu says.
        return Check::skip(NAME, "the processor has no SEV-SNP to compare with");
    };
    let Snp { cbitpos, reduced_phys_bits, .. } = config.snp.clone().unwrap_or_default();
    let found =
        format!("cbitpos = {cbitpos} (the processor has {}), reduced_phys_bits = {reduced_phys_bits} (expected 1 to 63)", memory.cbitpos);
    let hint = format!("set cbitpos = {} and reduced_phys_bits = 1 under [snp]", memory.cbitpos);
    Check::when(cbitpos == memory.cbitpos && (1..=63).contains(&reduced_phys_bits), NAME, found, hint)
}
