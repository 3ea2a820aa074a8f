//! Measurements of TDs compared with those of a second implementation (`tdx.py`, from the public documents), on random launches.
//!
//! Where virt-firmware (Red Hat's, from PyPI) can be had, the script holds its own reading of the TDX metadata and its Authenticode
//! digests against it, so that there are three.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use kata_cc_firmware::footer::{Footer, TDX_METADATA};
use kata_cc_firmware::measure::tdx::register::sha384;
use kata_cc_firmware::measure::tdx::{DirectBoot, Edk2, Event, GuestMemory, KernelHeader, PageOrder, TdxFirmware};
use serde::{Deserialize, Serialize};

use super::{Random, file_of};
use crate::artifacts::Artifacts;
use crate::context::Context;
use crate::process;
use crate::setup::python;

const PACKAGE: &str = "virt-firmware==26.10";
const SCRIPT: &str = include_str!("tdx.py");
/// Real firmware with TDX metadata, where a machine has it (Debian's `ovmf` and `ovmf-inteltdx`).
const REAL_FIRMWARE: &[&str] = &["/usr/share/ovmf/OVMF.fd", "/usr/share/ovmf/OVMF.inteltdx.fd", "/usr/share/OVMF/OVMF.inteltdx.fd"];
const PAGE: usize = 4096;
/// Variants of a real kernel; each is some MB.
const REAL_KERNELS: u32 = 8;

/// A launch as the other implementation reads it.
#[derive(Debug, Clone, Serialize)]
struct Launch {
    firmware: PathBuf,
    kernel: PathBuf,
    initrd: Option<PathBuf>,
    append: String,
    memory: u64,
    order: &'static str,
    edk2: &'static str,
    filled_in: bool,
}

/// Digests in hexadecimal, or `refused`.
#[derive(Debug, PartialEq, Eq, Deserialize)]
struct Measured {
    mr_td: String,
    td_hob: String,
    configuration: String,
    rtmr_1: String,
    rtmr_2: String,
}

/// One line of the script.
#[derive(Debug, Deserialize)]
struct Theirs {
    #[serde(flatten)]
    measured: Measured,
    /// What virt-firmware was asked about this launch, and agreed.
    #[serde(rename = "virt-firmware")]
    agreed: u32,
}

/// What was compared.
pub(crate) struct Compared {
    /// For people.
    pub(crate) text: String,
    /// Launches.
    pub(crate) launches: u64,
    /// Why virt-firmware was not among the implementations.
    pub(crate) without: Option<String>,
}

/// Compares so many random launches, and those of real files.
pub(crate) fn run(cx: &Context, seed: u64, cases: u32) -> Result<Compared> {
    let (python, without) = match python::environment(cx, PACKAGE)? {
        Ok(environment) => (environment.join("bin/python3"), None),
        Err(why) => ("python3".into(), Some(format!("{why}: its Authenticode digests and its reading of TDX metadata are not compared"))),
    };
    let mut random = Random(seed);
    let dir = tempfile::tempdir()?;
    let mut launches: Vec<_> = (0..cases).map(|n| random_launch(&mut random, dir.path(), n)).collect::<Result<_>>()?;
    real_files(cx, &mut random, dir.path(), &mut launches)?;
    let (script, list) = (dir.path().join("tdx.py"), dir.path().join("launches.json"));
    fs::write(&script, SCRIPT)?;
    fs::write(&list, serde_json::to_vec(&launches)?)?;
    let theirs = process::output(Command::new(python).arg(script).arg(list))?;
    let theirs: Vec<Theirs> = theirs.lines().map(serde_json::from_str).collect::<Result<_, _>>().context("the second implementation")?;
    if theirs.len() != launches.len() {
        bail!("expected {} lines of the second implementation, found {}", launches.len(), theirs.len());
    }
    let (mut refused, mut agreed) = (0, 0);
    for (launch, theirs) in launches.iter().zip(theirs) {
        let ours = measure(launch)?;
        if ours != theirs.measured {
            bail!("seed {seed}: {launch:?}: ours is {ours:?}, the second implementation's is {:?}", theirs.measured);
        }
        refused += u32::from([&ours.mr_td, &ours.td_hob, &ours.rtmr_1].into_iter().any(|value| value == REFUSED));
        agreed += theirs.agreed;
    }
    if without.is_none() && agreed == 0 {
        bail!("virt-firmware is installed and was asked nothing");
    }
    let text = format!(
        "{} launches of TDs measured alike (parts of {refused} refused by both; virt-firmware agreed on {agreed} files); seed {seed}",
        launches.len()
    );
    Ok(Compared { text, launches: launches.len() as u64, without })
}

const REFUSED: &str = "refused";

fn measure(launch: &Launch) -> Result<Measured> {
    let image = fs::read(&launch.firmware)?;
    let firmware = TdxFirmware::parse(&image).ok();
    let memory = GuestMemory::from_mib(launch.memory)?;
    let (order, edk2): (PageOrder, Edk2) = match (launch.order.parse(), launch.edk2.parse()) {
        (Ok(order), Ok(edk2)) => (order, edk2),
        (Err(why), _) | (_, Err(why)) => bail!("{why}"),
    };
    let header = if launch.filled_in { KernelHeader::FilledIn(memory) } else { KernelHeader::AsInFile };
    let boot = DirectBoot::of_files(&launch.kernel, launch.initrd.as_deref(), &launch.append, header).ok();
    let or_refused = |value: Option<String>| value.unwrap_or_else(|| REFUSED.to_owned());
    let digest = |bytes: &[u8]| hex::encode(sha384(&[bytes]));
    Ok(Measured {
        mr_td: or_refused(firmware.as_ref().map(|f| f.mrtd(order).to_string())),
        td_hob: or_refused(firmware.as_ref().and_then(|f| f.td_hob_content(memory).ok()).map(|hob| digest(&hob))),
        configuration: or_refused(firmware.as_ref().and_then(TdxFirmware::configuration).map(digest)),
        rtmr_1: or_refused(boot.as_ref().map(|b| Event::replay(&b.rtmr_1(edk2)).to_string())),
        rtmr_2: or_refused(boot.as_ref().map(|b| Event::replay(&b.rtmr_2(edk2)).to_string())),
    })
}

/// Adds launches of the firmware and the kernel that are there: each image in every order and release, the kernel with bytes changed.
fn real_files(cx: &Context, random: &mut Random, dir: &Path, launches: &mut Vec<Launch>) -> Result<()> {
    let vectors = std::env::var_os("KATA_CC_VECTORS").map(|v| PathBuf::from(v).join("virtee/tdx/tests/data/OVMF.inteltdx.fd"));
    let firmware = REAL_FIRMWARE.iter().map(PathBuf::from).chain(vectors).filter(|path| path.is_file());
    for path in firmware.collect::<Vec<_>>() {
        // Debian's newer images have the variables in a file of their own: those both refuse.
        for (n, base) in launches.clone().into_iter().take(8).enumerate() {
            let (order, edk2) = (PageOrder::ALL[n % 2].as_str(), Edk2::ALL[n / 2].as_str());
            launches.push(Launch { firmware: path.clone(), order, edk2, ..base });
        }
    }
    let Ok(kernel) = fs::read(Artifacts::of(cx).guest().join("vmlinuz")) else { return Ok(()) };
    for n in 0..REAL_KERNELS.min(launches.len() as u32) {
        let mut changed = kernel.clone();
        for _ in 0..n {
            // Behind the headers: what is in sections.
            let at = PAGE + random.below((kernel.len() - PAGE) as u64) as usize;
            changed[at] = random.next() as u8;
        }
        let path = dir.join(format!("{n}.vmlinuz"));
        fs::write(&path, changed)?;
        launches.push(Launch { kernel: path, filled_in: n % 2 == 0, ..launches[n as usize].clone() });
    }
    Ok(())
}

fn random_launch(random: &mut Random, dir: &Path, n: u32) -> Result<Launch> {
    let file = |kind: &str, content: Vec<u8>| file_of(dir, n, kind, content);
    let firmware = file("firmware", random_firmware(random))?;
    let kernel = file("kernel", random_kernel(random))?;
    let initrd = if random.one_in(4) { None } else { Some(file("initrd", [vec![0], random.bytes(20_000)].concat())?) };
    let append = if random.one_in(4) { 0 } else { random.below(100) };
    Ok(Launch {
        firmware,
        kernel,
        initrd,
        append: (0..append).map(|_| char::from(b' ' + random.below(95) as u8)).collect(),
        // At the split at 2816 MiB as often as anywhere else, and too little for some firmware.
        memory: if random.one_in(3) { 2814 + random.below(4) } else { 16 + random.below(1 << 14) },
        order: PageOrder::ALL[random.below(2) as usize].as_str(),
        edk2: Edk2::ALL[random.below(4) as usize].as_str(),
        filled_in: random.one_in(2),
    })
}

/// An image with code at its end, variables before it, and memory here and there; one in five no TD can be made of.
fn random_firmware(random: &mut Random) -> Vec<u8> {
    let (code, variables) = (1 + random.below(4) as usize, random.below(4) as usize);
    let mut image: Vec<u8> = Vec::new();
    while image.len() < (code + variables) * PAGE {
        image.extend(random.next().to_le_bytes());
    }
    let start = (1_u64 << 32) - image.len() as u64;
    let split = variables * PAGE;
    let mut sections = vec![(split, code * PAGE, start + split as u64, code * PAGE, 0_u32, 1_u32)];
    if variables > 0 {
        sections.push((0, split, start, split, 1, random.below(2) as u32));
    }
    let mut gpa = 0x1000 * random.below(0x800);
    let memories = random.below(12);
    let hob = random.below(memories + 1);
    for n in 0..=memories {
        let pages = 1 + random.below(8) as usize;
        sections.push((0, 0, gpa, pages * PAGE, if n == hob { 2 } else { 3 }, 0));
        gpa += (pages as u64 + random.below(3)) * 0x1000;
        if random.one_in(16) {
            gpa += random.below(0x2000) << 12;
        }
    }
    // Any order: the TD is built in the order of the metadata.
    for n in (1..sections.len()).rev() {
        sections.swap(n, random.below(n as u64 + 1) as usize);
    }
    if random.one_in(5) {
        let n = random.below(sections.len() as u64) as usize;
        let other = sections[random.below(sections.len() as u64) as usize];
        match random.below(5) {
            0 => sections[n].4 = 4 + random.below(5) as u32,
            1 => sections[n].2 += 0x800,
            2 => sections[n].3 += 0x10,
            3 => sections.push(other),
            _ => sections.retain(|section| section.4 != 2),
        }
    }
    let count = sections.len() as u32;
    let mut metadata = [*b"TDVF", (16 + 32 * count).to_le_bytes(), 1_u32.to_le_bytes(), count.to_le_bytes()].concat();
    for (offset, length, gpa, size, kind, attributes) in sections {
        metadata.extend([offset as u32, length as u32].map(u32::to_le_bytes).concat());
        metadata.extend([gpa, size as u64].map(u64::to_le_bytes).concat());
        metadata.extend([kind, attributes].map(u32::to_le_bytes).concat());
    }
    image[split..split + metadata.len()].copy_from_slice(&metadata);
    let table = Footer::build(&[(TDX_METADATA, &((code * PAGE) as u32).to_le_bytes())]);
    let place = Footer::place(image.len(), &table).expect("the table is smaller than a page");
    image[place].copy_from_slice(&table);
    image
}

/// A bzImage that is an EFI application, sections in any order of their headers, some signed; one in eight is no kernel.
fn random_kernel(random: &mut Random) -> Vec<u8> {
    let headers = 0x600 + 0x200 * random.below(4) as usize;
    let mut kernel: Vec<u8> = (0..headers).map(|_| random.next() as u8).collect();
    let pe = 0x280 + 8 * random.below(16) as usize;
    let count = 1 + random.below(7) as usize;
    let mut table = Vec::new();
    for _ in 0..count {
        let size = 8 * random.below(200) as usize;
        table.push((size as u32, kernel.len() as u32));
        kernel.extend((0..size).map(|_| random.next() as u8));
    }
    for n in (1..count).rev() {
        table.swap(n, random.below(n as u64 + 1) as usize);
    }
    kernel.extend((0..8 * random.below(3) * 40).map(|_| random.next() as u8));
    let end = kernel.len() as u32;
    let signature = if random.one_in(3) { 8 * (2 + random.below(100)) as u32 } else { 0 };
    kernel.extend((0..signature).map(|_| random.next() as u8));
    let protocol = [0x203, 0x20b, 0x20c, 0x20f, 0x20f, 0x20f][random.below(6) as usize];
    let highest = [0x37ff_ffff, 0x7fff_ffff][random.below(2) as usize];
    let mut put = |at: usize, bytes: &[u8]| kernel[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, b"MZ");
    put(0x3c, &(pe as u32).to_le_bytes());
    put(0x202, b"HdrS");
    put(0x206, &u16::to_le_bytes(protocol));
    put(0x211, &[1 | (random.next() as u8)]);
    put(0x22c, &u32::to_le_bytes(highest));
    put(0x236, &[random.next() as u8, 0]);
    put(pe, b"PE\0\0");
    put(pe + 6, &(count as u16).to_le_bytes());
    let optional = pe + 24;
    let optional_len = 112 + 8 * 6;
    put(pe + 20, &(optional_len as u16).to_le_bytes());
    put(optional, &0x20b_u16.to_le_bytes());
    put(optional + 60, &(headers as u32).to_le_bytes());
    put(optional + 108, &6_u32.to_le_bytes());
    let at = if signature == 0 { 0 } else { end };
    put(optional + 112 + 32, &[at, signature].map(u32::to_le_bytes).concat());
    for (n, (size, from)) in table.into_iter().enumerate() {
        put(optional + optional_len + 40 * n, b".name\0\0\0");
        put(optional + optional_len + 40 * n + 16, &[size, from].map(u32::to_le_bytes).concat());
    }
    if random.one_in(8) {
        let at = [0, pe, 0x202][random.below(3) as usize];
        put(at, b"x");
    }
    kernel
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_launches_are_not_all_refused() {
        let dir = tempfile::tempdir().unwrap();
        let mut random = Random(7);
        let all: Vec<_> = (0..100).map(|n| measure(&random_launch(&mut random, dir.path(), n).unwrap()).unwrap()).collect();
        let values: [fn(&Measured) -> &String; 5] = [|m| &m.mr_td, |m| &m.td_hob, |m| &m.configuration, |m| &m.rtmr_1, |m| &m.rtmr_2];
        for value in values {
            let refused = all.iter().filter(|m| value(m) == REFUSED).count();
            assert!((1..60).contains(&refused), "{refused} of 100");
        }
    }
}
