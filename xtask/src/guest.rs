//! The guest image: what is measured and boots.
//!
//! Invariant: what it makes depends on the source alone, not on where or when or by whom it is built. [`crate::repro`]
//! tests that.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use kata_cc_firmware::initrd::{Archive, Node};
use kata_cc_firmware::sim_firmware;
use serde::Serialize;

use crate::artifacts::Artifacts;
use crate::context::{Context, copy_whole, sha256_of, write_whole};
use crate::kernel;
use crate::process;

const TARGET: &str = "x86_64-unknown-linux-gnu";
/// Debian's `qemu-system-data`.
const QBOOT: &str = "/usr/share/qemu/qboot.rom";
const AGENT: &str = "kata-cc-agent";
const SIMULATION: &str = "kata-cc-tee-sim";
/// The init of the start bench's yardstick.
const BARE: &str = "kata-cc-bare-init";

/// The programs that go into initrds.
pub(crate) struct Programs {
    agent: Vec<u8>,
    simulation: Vec<u8>,
    bare: Vec<u8>,
}

/// Initrds by file name.
pub(crate) type Initrds = BTreeMap<&'static str, Vec<u8>>;

#[derive(Serialize)]
struct Manifest {
    schema: &'static str,
    files: BTreeMap<String, Entry>,
    kernel_source: String,
    rustc: String,
}

#[derive(Serialize)]
struct Entry {
    sha256: String,
    bytes: u64,
}

impl Entry {
    fn of(path: &Path) -> Result<Self> {
        let (sha256, bytes) = sha256_of(path)?;
        Ok(Self { sha256, bytes })
    }
}

/// Builds the image into the artifact directory and lists what is in it.
pub(crate) fn image(cx: &Context) -> Result<Artifacts> {
    let artifacts = Artifacts::of(cx);
    let dir = artifacts.guest();
    let kernel = kernel::build(cx)?;
    copy_whole(&kernel.image, &dir.join("vmlinuz"))?;

    let target = cx.root().join("target-guest");
    let programs = programs(cx, cx.root(), &target)?;
    for (name, bytes) in initrds(&programs)? {
        write_if_new(&dir.join(name), &bytes)?;
    }
    write_if_new(&dir.join(AGENT), &programs.agent)?;
    let qboot = fs::read(QBOOT).with_context(|| format!("cannot read {QBOOT}; run `cargo xtask setup`"))?;
    write_if_new(&dir.join("firmware-sim.bin"), &sim_firmware(&qboot)?)?;

    let files = ["vmlinuz", "production.cpio", "simulation.cpio", "bare.cpio", "firmware-sim.bin", AGENT];
    let manifest = Manifest {
        schema: "kata-cc/image-1",
        files: files.into_iter().map(|name| Ok((name.to_owned(), Entry::of(&dir.join(name))?))).collect::<Result<_>>()?,
        kernel_source: kernel.source,
        rustc: process::output(Command::new("rustc").arg("--version").current_dir(cx.root()))?.trim().to_owned(),
    };
    let mut json = serde_json::to_vec_pretty(&manifest)?;
    json.push(b'\n');
    write_if_new(&dir.join("manifest.json"), &json)?;
    for (name, entry) in &manifest.files {
        eprintln!("    {name:<18} {:>9} bytes  sha256:{}", entry.bytes, entry.sha256);
    }
    Ok(artifacts)
}

fn write_if_new(path: &Path, content: &[u8]) -> Result<()> {
    if fs::read(path).is_ok_and(|present| present == content) { Ok(()) } else { write_whole(path, content) }
}

fn built(target: &Path, name: &str) -> PathBuf {
    target.join(TARGET).join("guest").join(name)
}

/// Builds the guest programs from a source tree.
pub(crate) fn programs(cx: &Context, source: &Path, target: &Path) -> Result<Programs> {
    let one = |name: &str| -> Result<Vec<u8>> {
        // One at a time: built together, the simulation's features of shared crates would get into the agent.
        let mut cargo = cx.cargo();
        cargo.current_dir(source).args(["build", "--locked", "--profile", "guest", "--target", TARGET, "-p", name, "--target-dir"]);
        cargo.arg(target).env("CARGO_ENCODED_RUSTFLAGS", flags(source, target)).env_remove("RUSTFLAGS").env("CARGO_INCREMENTAL", "0");
        cx.run.logged(&format!("build {name} for the guest"), &mut cargo)?;
        let path = built(target, name);
        let program = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        if !is_static(&program) {
            bail!("{} asks for a dynamic linker, which the guest does not have", path.display());
        }
        Ok(program)
    };
    Ok(Programs { agent: one(AGENT)?, simulation: one(SIMULATION)?, bare: one(BARE)? })
}

/// Static, and without the names of this machine's directories.
fn flags(source: &Path, target: &Path) -> OsString {
    let cargo_home = std::env::var_os("CARGO_HOME").map_or_else(|| home().join(".cargo"), PathBuf::from);
    let mut flags = OsString::from("-Ctarget-feature=+crt-static");
    // The last that matches counts, so what lies in the source tree comes after it.
    for (from, to) in [(source, "/kata-cc"), (target, "/target"), (&cargo_home, "/cargo")] {
        flags.push("\x1f--remap-path-prefix=");
        flags.push(from);
        flags.push("=");
        flags.push(to);
    }
    flags
}

fn home() -> PathBuf {
    std::env::var_os("HOME").map_or_else(|| "/root".into(), PathBuf::from)
}

/// Whether an x86_64 ELF file has no PT_INTERP segment.
fn is_static(elf: &[u8]) -> bool {
    const PT_INTERP: [u8; 4] = 3_u32.to_le_bytes();
    const ENTRY: usize = 56;
    let number = |at: usize, length: usize| -> Option<usize> {
        let bytes = elf.get(at..at + length)?;
        Some(bytes.iter().rev().fold(0, |n, byte| n << 8 | usize::from(*byte)))
    };
    let headers = || -> Option<&[u8]> {
        let (start, count) = (number(32, 8)?, number(56, 2)?);
        elf.get(start..start.checked_add(count * ENTRY)?)
    };
    elf.starts_with(b"\x7fELF\x02\x01") && headers().is_some_and(|all| all.chunks_exact(ENTRY).all(|one| !one.starts_with(&PT_INTERP)))
}

/// The archives made of the programs.
pub(crate) fn initrds(programs: &Programs) -> Result<Initrds> {
    let mut production = Archive::with_base_tree();
    production.add_program("sbin/kata-cc-agent", programs.agent.clone())?;
    let mut simulation = production.clone();
    production.add("init", Node::Symlink { target: "sbin/kata-cc-agent".into() })?;
    simulation.add_program("init", programs.simulation.clone())?;
    let mut bare = Archive::with_base_tree();
    bare.add_program("init", programs.bare.clone())?;
    let all = [("production.cpio", production), ("simulation.cpio", simulation), ("bare.cpio", bare)];
    Ok(all.into_iter().map(|(name, archive)| (name, archive.to_bytes())).collect())
}

#[cfg(test)]
mod tests {
    use kata_cc_firmware::initrd::read;

    use super::*;

    #[test]
    fn production_initrd_has_nothing_of_the_simulation() {
        let programs = Programs { agent: b"agent".to_vec(), simulation: b"simulation".to_vec(), bare: b"bare".to_vec() };
        let initrds = initrds(&programs).unwrap();
        let production = read(&initrds["production.cpio"]).unwrap();
        assert!(production.iter().all(|item| !matches!(&item.node, Node::File { content, .. } if content == b"simulation")));
        assert!(production.iter().any(|item| item.path == "init" && item.node == Node::Symlink { target: "sbin/kata-cc-agent".into() }));
        let simulation = read(&initrds["simulation.cpio"]).unwrap();
        assert!(
            simulation
                .iter()
                .any(|item| item.path == "init" && matches!(&item.node, Node::File { content, .. } if content == b"simulation"))
        );
    }

    #[test]
    fn tells_static_programs_from_dynamic_ones() {
        let mut elf = vec![0; 64 + 56];
        elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
        elf[32] = 64;
        elf[56] = 1;
        elf[64] = 1;
        assert!(is_static(&elf));
        elf[64] = 3;
        assert!(!is_static(&elf));
        elf[56] = 2;
        assert!(!is_static(&elf), "headers past the end");
        assert!(!is_static(b"#!/bin/sh"));
    }
}
