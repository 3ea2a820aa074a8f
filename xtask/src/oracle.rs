//! Launch digests compared with those of `sev-snp-measure`, an independent implementation, on random launches.
//!
//! Launches that make no sense are among them on purpose: there both must refuse. So are those of the firmware builds that are known, where
//! their files are there. [`tdx`] does the same for TDs.

pub(crate) mod tdx;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, bail};
use kata_cc_firmware::footer::{Footer, SEV_ES_RESET, SEV_HASH_TABLE, SEV_METADATA};
use kata_cc_firmware::measure::snp::{CpuModel, SnpFiles, measure_files};
use serde::Serialize;

use crate::artifacts::Artifacts;
use crate::context::Context;
use crate::process;
use crate::setup::{python, unpacked};

const PACKAGE: &str = "sev-snp-measure==0.0.13";
const SCRIPT: &str = include_str!("oracle.py");
/// CPU models that it does not know; their signatures are held against QEMU's alone (firmware/tests/qemu_cpus.rs).
const NOT_THEIRS: &[&str] = &[
    "EPYC-v5",
    "EPYC-Rome-v4",
    "EPYC-Rome-v5",
    "EPYC-Milan-v3",
    "EPYC-Milan-v4",
    "EPYC-Genoa-v2",
    "EPYC-Genoa-v3",
    "EPYC-Turin-v1",
    "EPYC-Turin-v2",
];
/// Real firmware, where a machine has it.
const REAL_FIRMWARE: &[&str] = &["/usr/share/OVMF/OVMF_CODE.fd", "/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/ovmf/OVMF.fd"];

/// A launch as the other implementation reads it.
#[derive(Debug, Serialize)]
struct Launch {
    firmware: PathBuf,
    kernel: Option<PathBuf>,
    initrd: Option<PathBuf>,
    append: Option<String>,
    vcpus: u32,
    vcpu_type: &'static str,
    guest_features: u64,
    vmm: &'static str,
    /// Whether it can be measured, where that is known.
    #[serde(skip)]
    measurable: Option<bool>,
}

/// The other implementation's Python, installed if need be; or why it cannot be had.
pub(crate) fn prepare(cx: &Context) -> Result<Result<PathBuf, String>> {
    Ok(python::environment(cx, PACKAGE)?.map(|environment| environment.join("bin/python3")))
}

/// The seed to repeat, or one of this moment.
pub(crate) fn seed_or_new(seed: Option<u64>) -> Result<u64> {
    let now = || anyhow::Ok(u64::try_from(std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_micros())?);
    seed.map_or_else(now, Ok)
}

/// Compares so many launches; says what was compared.
pub(crate) fn run(cx: &Context, seed: Option<u64>, cases: u32) -> Result<String> {
    let python = match prepare(cx)? {
        Ok(python) => python,
        Err(why) => bail!("{why}"),
    };
    let seed = seed_or_new(seed)?;
    let mut random = Random(seed);
    let dir = tempfile::tempdir()?;
    let mut launches: Vec<_> = (0..cases).map(|n| random_launch(&mut random, dir.path(), n)).collect::<Result<_>>()?;
    launches.extend(real_launches(cx));
    let ready = ready_launches(cx, dir.path())?;
    let of_ready = ready.len();
    launches.extend(ready);
    let script = dir.path().join("oracle.py");
    let list = dir.path().join("launches.json");
    fs::write(&script, SCRIPT)?;
    fs::write(&list, serde_json::to_vec(&launches)?)?;
    let theirs = process::output(Command::new(python).arg(script).arg(list))?;
    let theirs: Vec<&str> = theirs.lines().collect();
    if theirs.len() != launches.len() {
        bail!("expected {} digests of sev-snp-measure, found {}", launches.len(), theirs.len());
    }
    let mut refused = 0;
    for (launch, theirs) in launches.iter().zip(theirs) {
        let ours = measure(launch)?;
        refused += u32::from(ours == "refused");
        if ours != theirs {
            bail!("seed {seed}: {launch:?}: ours is {ours}, sev-snp-measure's is {theirs}");
        }
        if launch.measurable.is_some_and(|measurable| measurable == (ours == "refused")) {
            bail!("{launch:?}: both say {ours}, which is not what the table of ready firmware says");
        }
    }
    Ok(format!(
        "{} launches measured alike ({refused} refused by both; {of_ready} of firmware that is known by its digest); seed {seed}",
        launches.len()
    ))
}

fn measure(launch: &Launch) -> Result<String> {
    let files = SnpFiles {
        firmware: &launch.firmware,
        kernel: launch.kernel.as_deref(),
        initrd: launch.initrd.as_deref(),
        append: launch.append.as_deref(),
        vcpus: launch.vcpus,
        vcpu_type: launch.vcpu_type.parse()?,
        guest_features: launch.guest_features,
        vmm: launch.vmm.parse()?,
    };
    Ok(measure_files(&files).map_or_else(|_| "refused".into(), |digest| digest.to_string()))
}

/// The image we boot, and firmware of this machine.
fn real_launches(cx: &Context) -> Vec<Launch> {
    let guest = Artifacts::of(cx).guest();
    let launch = |firmware: PathBuf, kernel: Option<PathBuf>, initrd: Option<PathBuf>| Launch {
        firmware,
        append: kernel.as_ref().map(|_| "console=hvc0 panic=-1".into()),
        kernel,
        initrd,
        vcpus: 3,
        vcpu_type: "EPYC-Milan",
        guest_features: 1,
        vmm: "qemu",
        measurable: None,
    };
    let ours = launch(guest.join("firmware-sim.bin"), Some(guest.join("vmlinuz")), Some(guest.join("simulation.cpio")));
    let all = REAL_FIRMWARE.iter().map(|path| launch(path.into(), None, None)).chain([ours]);
    all.filter(|one| {
        one.firmware.is_file() && one.kernel.as_ref().is_none_or(|k| k.is_file()) && one.initrd.as_ref().is_none_or(|i| i.is_file())
    })
    .collect()
}

/// Launches of each firmware of the table whose package is there, with a kernel.
fn ready_launches(cx: &Context, dir: &Path) -> Result<Vec<Launch>> {
    let (kernel, initrd) = (dir.join("ready.kernel"), dir.join("ready.initrd"));
    fs::write(&kernel, b"kernel")?;
    fs::write(&initrd, b"initrd")?;
    let mut launches = Vec::new();
    for (package, build) in unpacked::ready_firmware() {
        if !package.is_there(cx) {
            continue;
        }
        let firmware = package.place(cx).join(build.path);
        for (vcpus, vcpu_type, initrd, append) in
            [(1, "EPYC-v4", None, None), (4, "EPYC-Genoa", Some(&initrd), Some("console=hvc0 panic=-1".to_owned()))]
        {
            let (firmware, kernel, initrd) = (firmware.clone(), Some(kernel.clone()), initrd.cloned());
            let measurable = Some(build.snp);
            launches.push(Launch { firmware, kernel, initrd, append, vcpus, vcpu_type, guest_features: 1, vmm: "qemu", measurable });
        }
    }
    Ok(launches)
}

/// Writes a file of launch `n`.
fn file_of(dir: &Path, n: u32, kind: &str, content: Vec<u8>) -> Result<PathBuf> {
    let path = dir.join(format!("{n}.{kind}"));
    fs::write(&path, content)?;
    Ok(path)
}

fn random_launch(random: &mut Random, dir: &Path, n: u32) -> Result<Launch> {
    let file = |kind: &str, content: Vec<u8>| file_of(dir, n, kind, content);
    let firmware = file("firmware", random_firmware(random))?;
    let kernel = if random.one_in(4) { None } else { Some(file("kernel", random.bytes(20_000))?) };
    let initrd = if kernel.is_none() || random.one_in(4) { None } else { Some(file("initrd", random.bytes(20_000))?) };
    let append = match kernel {
        None => None,
        Some(_) if random.one_in(4) => None,
        Some(_) => Some((0..random.below(100)).map(|_| char::from(b' ' + random.below(95) as u8)).collect()),
    };
    let models: Vec<_> = CpuModel::NAMES.iter().map(|(name, _)| *name).filter(|name| !NOT_THEIRS.contains(name)).collect();
    let vcpu_type = models[random.below(models.len() as u64) as usize];
    let vmm = ["qemu", "ec2", "gce"][random.below(3) as usize];
    Ok(Launch {
        firmware,
        kernel,
        initrd,
        append,
        vcpus: 1 + random.below(9) as u32,
        vcpu_type,
        guest_features: random.next(),
        vmm,
        measurable: None,
    })
}

fn random_firmware(random: &mut Random) -> Vec<u8> {
    let mut image = random.bytes(0);
    let pages = 1 + random.below(8) as usize;
    while image.len() < pages * 4096 {
        image.extend(random.next().to_le_bytes());
    }
    // Sections one behind the other, with gaps; the hash table in at most one of them.
    let (mut gpa, mut table) = (0x1000 * random.below(0x1000) as u32, 0);
    let mut metadata = Vec::new();
    let count = random.below(7) as u32;
    for _ in 0..count {
        let kind = [1, 2, 3, 4, 0x10, 0x10][random.below(6) as usize];
        let kind = if kind == 0x10 && table != 0 { 1 } else { kind };
        let size = if kind == 1 || kind == 4 { 0x1000 * (1 + random.below(5) as u32) } else { 0x1000 };
        if kind == 0x10 {
            table = gpa + 16 * random.below((4096 - 176) / 16 + 1) as u32;
        }
        metadata.extend([gpa, size, kind].map(u32::to_le_bytes).concat());
        gpa += size + 0x1000 * random.below(3) as u32;
    }
    let header = [16 + 12 * count, 1, count].map(u32::to_le_bytes).concat();
    let metadata = [b"ASEV".as_slice(), &header, &metadata].concat();
    image[..metadata.len()].copy_from_slice(&metadata);
    let from_end = (image.len() as u32).to_le_bytes();
    let reset = if random.one_in(8) { 0 } else { random.next() as u32 };
    let (reset, table) = (reset.to_le_bytes(), [table, 0x400].map(u32::to_le_bytes).concat());
    let mut entries = vec![(SEV_ES_RESET, &reset[..]), (SEV_METADATA, &from_end[..]), (SEV_HASH_TABLE, &table[..])];
    if random.one_in(8) {
        entries.remove(1);
    }
    let table = Footer::build(&entries);
    let place = Footer::place(image.len(), &table).expect("the table is smaller than a page");
    image[place].copy_from_slice(&table);
    image
}

/// xorshift64*: good enough to vary inputs, and repeatable.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.max(1);
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, bound: u64) -> u64 {
        (self.next() >> 8) % bound
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    fn bytes(&mut self, at_most: u64) -> Vec<u8> {
        (0..self.below(at_most + 1)).map(|_| self.next() as u8).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_the_same_launches() {
        let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        for (dir, mut random) in [(&a, Random(5)), (&b, Random(5))] {
            for n in 0..20 {
                random_launch(&mut random, dir.path(), n).unwrap();
            }
        }
        for n in 0..20 {
            let name = format!("{n}.firmware");
            assert_eq!(fs::read(a.path().join(&name)).unwrap(), fs::read(b.path().join(&name)).unwrap());
        }
    }

    #[test]
    fn random_launches_are_not_all_refused() {
        let dir = tempfile::tempdir().unwrap();
        let mut random = Random(7);
        let all: Vec<_> = (0..60).map(|n| measure(&random_launch(&mut random, dir.path(), n).unwrap()).unwrap()).collect();
        let refused = all.iter().filter(|m| *m == "refused").count();
        assert!((1..40).contains(&refused), "{refused} of 60");
    }
}
