//! The guest image: what is measured and boots.
//!
//! Invariants: what it makes depends on the source alone, not on where or when or by whom it is built ([`crate::repro`] tests that); each
//! initrd says what it is, and [`crate::manifest`] holds it against where it is put.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use kata_cc_firmware::initrd::{Archive, ImageKind, LABEL_PATH, Label, Node};
use kata_cc_firmware::kernel::PATCHES;
use kata_cc_firmware::sim_firmware;
use sha2::{Digest, Sha256};

use crate::artifacts::Artifacts;
use crate::context::{Context, sha256_of, write_whole};
use crate::kernel;
use crate::manifest::{self, AGENT, AGENT_PATH, BARE, FIRMWARE, Files, KERNEL, Origin, PRODUCTION, SBOM, SIMULATION};
use crate::process;
use crate::sbom::{self, Parts};
use crate::setup::debian::version_of;

const TARGET: &str = "x86_64-unknown-linux-gnu";
/// Debian's `qemu-system-data`.
const QBOOT: &str = "/usr/share/qemu/qboot.rom";
const SIMULATION_PROGRAM: &str = "kata-cc-tee-sim";
/// The init of the benches' yardstick.
const BARE_PROGRAM: &str = "kata-cc-bare-init";
/// The workspace's, and so the agent's.
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The programs that go into initrds.
struct Programs {
    agent: Vec<u8>,
    simulation: Vec<u8>,
    bare: Vec<u8>,
}

/// Builds the image into the artifact directory and lists what is in it.
pub(crate) fn image(cx: &Context) -> Result<Artifacts> {
    let artifacts = Artifacts::of(cx);
    let dir = artifacts.guest();
    let files = contents(cx, cx.root(), &cx.root().join("target-guest"))?;
    // The manifests last: one that is there is of files that are there.
    for last in [false, true] {
        for (name, content) in files.iter().filter(|(name, _)| manifest::is_manifest(name) == last) {
            write_if_new(&dir.join(name), content)?;
        }
    }
    for (name, content) in &files {
        let sha256 = hex::encode(Sha256::digest(content));
        eprintln!("    {name:<24} {:<10} {:>9} bytes  sha256:{sha256}", manifest::kind_of(name), content.len());
    }
    Ok(artifacts)
}

/// The whole image, manifests included, of a source tree.
pub(crate) fn contents(cx: &Context, source: &Path, target: &Path) -> Result<Files> {
    let kernel = kernel::build(cx)?;
    let read = |path: &Path| fs::read(path).with_context(|| format!("cannot read {}", path.display()));
    let config = kernel.image.with_file_name("config");
    let origin = Origin {
        version: VERSION,
        kernel_source: kernel.source,
        kernel_config_sha256: sha256_of(&config)?.0,
        kernel_patches_sha256: PATCHES.iter().map(|(name, patch)| (*name, hex::encode(Sha256::digest(patch)))).collect(),
        rustc: process::output(Command::new("rustc").arg("--version").current_dir(source))?.trim().to_owned(),
    };
    let kernel = read(&kernel.image)?;
    let programs = programs(cx, source, target)?;
    let parts = Parts { kernel: &kernel, agent: &programs.agent, libc: &version_of("libc6-dev")?, origin: &origin };
    let sbom = sbom::document(&parts, &sbom::crates(cx, source, TARGET)?)?;
    let qboot = read(Path::new(QBOOT)).context("run `cargo xtask setup`")?;
    let mut files = initrds(&programs)?;
    files.extend([(KERNEL, kernel), (FIRMWARE, sim_firmware(&qboot)?), (SBOM, sbom), (AGENT, programs.agent)]);
    let manifests = manifest::manifests(&files, &origin)?;
    files.extend(manifests);
    Ok(files)
}

fn write_if_new(path: &Path, content: &[u8]) -> Result<()> {
    if fs::read(path).is_ok_and(|present| present == content) { Ok(()) } else { write_whole(path, content) }
}

fn built(target: &Path, name: &str) -> PathBuf {
    target.join(TARGET).join("guest").join(name)
}

/// Builds the guest programs from a source tree.
fn programs(cx: &Context, source: &Path, target: &Path) -> Result<Programs> {
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
    Ok(Programs { agent: one(AGENT)?, simulation: one(SIMULATION_PROGRAM)?, bare: one(BARE_PROGRAM)? })
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

/// The archives made of the programs, each saying what it is.
fn initrds(programs: &Programs) -> Result<Files> {
    let base = |kind: ImageKind| -> Result<Archive> {
        let mut archive = Archive::with_base_tree();
        archive.add(LABEL_PATH, Label::new(kind, VERSION)?.to_node())?;
        Ok(archive)
    };
    let mut production = base(ImageKind::Production)?;
    production.add_program(AGENT_PATH, programs.agent.clone())?;
    production.add("init", Node::Symlink { target: AGENT_PATH.into() })?;
    let mut simulation = base(ImageKind::Simulation)?;
    simulation.add_program(AGENT_PATH, programs.agent.clone())?;
    simulation.add_program("init", programs.simulation.clone())?;
    let mut bare = base(ImageKind::Bench)?;
    bare.add_program("init", programs.bare.clone())?;
    let all = [(PRODUCTION, production), (SIMULATION, simulation), (BARE, bare)];
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
