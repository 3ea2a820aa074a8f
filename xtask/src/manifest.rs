//! What the image's files are for, and the manifests that name them: `manifest.json` all of them, each with its kind, and
//! `manifest.production.json` those of production alone.
//!
//! Invariants: what production's manifest names is of production by the table below and, where a file says what it is, by its own word;
//! production's initrd has the agent, its label and nothing else to run; no file is over its budget.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result, bail, ensure};
use flate2::Compression;
use flate2::write::GzEncoder;
use kata_cc_firmware::initrd::{ImageKind, LABEL_PATH, Node, label, read};
use serde::Serialize;
use sha2::{Digest, Sha256};

/// The agent, alone and in initrds.
pub(crate) const AGENT: &str = "kata-cc-agent";
/// The agent's place in initrds.
pub(crate) const AGENT_PATH: &str = "sbin/kata-cc-agent";
/// The kernel.
pub(crate) const KERNEL: &str = "vmlinuz";
/// The initrds.
pub(crate) const PRODUCTION: &str = "production.cpio";
pub(crate) const SIMULATION: &str = "simulation.cpio";
pub(crate) const BARE: &str = "bare.cpio";
/// The firmware of the simulation.
pub(crate) const FIRMWARE: &str = "firmware-sim.bin";
/// What production's image is made of.
pub(crate) const SBOM: &str = "sbom.cdx.json";
/// The manifests.
pub(crate) const MANIFEST: &str = "manifest.json";
pub(crate) const MANIFEST_OF_PRODUCTION: &str = "manifest.production.json";

/// Every file and what it is for. There is no debug image: the agent has nothing to open.
const KINDS: [(&str, ImageKind); 7] = [
    (KERNEL, ImageKind::Production),
    (PRODUCTION, ImageKind::Production),
    (AGENT, ImageKind::Production),
    (SBOM, ImageKind::Production),
    (SIMULATION, ImageKind::Simulation),
    (FIRMWARE, ImageKind::Simulation),
    (BARE, ImageKind::Bench),
];

/// How large things may be, in bytes: they are measured and unpacked for each pod.
struct Budgets {
    agent: usize,
    /// Production's, when compressed by gzip.
    initrd: usize,
}

const BUDGETS: Budgets = Budgets { agent: 15_000_000, initrd: 10_000_000 };

/// Files by name.
pub(crate) type Files = BTreeMap<&'static str, Vec<u8>>;

/// What the files were made of.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Origin {
    /// The image's version.
    pub(crate) version: &'static str,
    /// Debian's package and version.
    pub(crate) kernel_source: String,
    /// SHA-256 of the kernel's complete configuration.
    pub(crate) kernel_config_sha256: String,
    /// SHA-256 of each change to that source, by file name.
    pub(crate) kernel_patches_sha256: BTreeMap<&'static str, String>,
    /// As the compiler says it.
    pub(crate) rustc: String,
}

#[derive(Serialize)]
struct Manifest<'a> {
    schema: &'static str,
    of: &'static str,
    files: BTreeMap<&'static str, Entry>,
    #[serde(flatten)]
    origin: &'a Origin,
}

#[derive(Serialize)]
struct Entry {
    kind: &'static str,
    sha256: String,
    bytes: usize,
}

/// The manifests of these files: of all, and of production.
///
/// # Errors
/// When a file is missing, unknown, not of its kind, or over its budget.
pub(crate) fn manifests(files: &Files, origin: &Origin) -> Result<[(&'static str, Vec<u8>); 2]> {
    let known: BTreeSet<_> = KINDS.iter().map(|(name, _)| *name).collect();
    let given: BTreeSet<_> = files.keys().copied().collect();
    ensure!(known == given, "expected the files {known:?}, found {given:?}");
    for (name, kind) in KINDS {
        if name.ends_with(".cpio") {
            is_labelled(name, &files[name], kind)?;
        }
    }
    has_the_agent_alone(&files[PRODUCTION], &files[AGENT])?;
    within_budgets(files, &BUDGETS)?;
    let manifest = |of, name, wanted: fn(ImageKind) -> bool| -> Result<_> {
        let chosen = KINDS.iter().filter(|(_, kind)| wanted(*kind));
        let entry = |(name, kind): &(&'static str, ImageKind)| {
            let content = &files[name];
            (*name, Entry { kind: kind.as_str(), sha256: hex::encode(Sha256::digest(content)), bytes: content.len() })
        };
        let mut json = serde_json::to_vec_pretty(&Manifest { schema: "kata-cc/image-2", of, files: chosen.map(entry).collect(), origin })?;
        json.push(b'\n');
        Ok((name, json))
    };
    Ok([manifest("all", MANIFEST, |_| true)?, manifest("production", MANIFEST_OF_PRODUCTION, |kind| kind == ImageKind::Production)?])
}

/// Whether a file is one of the manifests.
pub(crate) fn is_manifest(name: &str) -> bool {
    [MANIFEST, MANIFEST_OF_PRODUCTION].contains(&name)
}

/// A file's kind, for people.
pub(crate) fn kind_of(name: &str) -> &'static str {
    KINDS.iter().find(|(known, _)| *known == name).map_or("manifest", |(_, kind)| kind.as_str())
}

fn is_labelled(name: &str, initrd: &[u8], kind: ImageKind) -> Result<()> {
    let label = label(initrd).with_context(|| format!("{name} does not say what it is"))?;
    match label {
        Some(label) if label.kind() == kind => Ok(()),
        Some(label) => bail!("expected {name} to say that it is a {kind} image, but it says {}", label.kind()),
        None => bail!("expected {name} to say that it is a {kind} image, but it has no {LABEL_PATH}"),
    }
}

fn has_the_agent_alone(initrd: &[u8], agent: &[u8]) -> Result<()> {
    let mut found = false;
    for item in read(initrd).with_context(|| format!("{PRODUCTION} cannot be read"))? {
        let Node::File { content, .. } = &item.node else { continue };
        match item.path.as_str() {
            AGENT_PATH if content == agent => found = true,
            AGENT_PATH => bail!("the agent in {PRODUCTION} is not the file {AGENT}"),
            LABEL_PATH => {}
            other => bail!("expected {PRODUCTION} to have the agent and its label alone, found {other:?} in it"),
        }
    }
    ensure!(found, "{PRODUCTION} has no {AGENT_PATH}");
    Ok(())
}

fn within_budgets(files: &Files, budgets: &Budgets) -> Result<()> {
    let mut gzip = GzEncoder::new(Vec::new(), Compression::best());
    std::io::Write::write_all(&mut gzip, &files[PRODUCTION])?;
    let compressed = gzip.finish()?.len();
    for (what, bytes, budget) in [(AGENT, files[AGENT].len(), budgets.agent), ("production.cpio, compressed", compressed, budgets.initrd)] {
        ensure!(
            bytes <= budget,
            "{what} has {bytes} bytes, over its budget of {budget}: make it smaller, or say in the design why it may grow"
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use kata_cc_firmware::initrd::{Archive, Label};

    use super::*;

    fn initrd(kind: Option<ImageKind>, programs: &[(&str, &[u8])]) -> Vec<u8> {
        let mut archive = Archive::with_base_tree();
        if let Some(kind) = kind {
            archive.add(LABEL_PATH, Label::new(kind, "1").unwrap().to_node()).unwrap();
        }
        for (path, content) in programs {
            archive.add_program(path, content.to_vec()).unwrap();
        }
        archive.to_bytes()
    }

    fn good() -> Files {
        let agent: (&str, &[u8]) = (AGENT_PATH, b"agent");
        BTreeMap::from([
            (KERNEL, b"kernel".to_vec()),
            (PRODUCTION, initrd(Some(ImageKind::Production), &[agent])),
            (AGENT, b"agent".to_vec()),
            (SBOM, b"{}".to_vec()),
            (SIMULATION, initrd(Some(ImageKind::Simulation), &[agent, ("init", b"simulation")])),
            (FIRMWARE, b"firmware".to_vec()),
            (BARE, initrd(Some(ImageKind::Bench), &[("init", b"bare")])),
        ])
    }

    fn origin() -> Origin {
        Origin {
            version: "1",
            kernel_source: "linux 1".into(),
            kernel_config_sha256: "00".into(),
            kernel_patches_sha256: BTreeMap::new(),
            rustc: "rustc 1".into(),
        }
    }

    #[track_caller]
    fn refused(files: &Files, word: &str) {
        let error = format!("{:#}", manifests(files, &origin()).expect_err("refused"));
        assert!(error.contains(word), "no {word:?} in {error}");
    }

    #[test]
    fn productions_manifest_names_production_alone() {
        let [(_, all), (name, production)] = manifests(&good(), &origin()).unwrap();
        assert_eq!(name, MANIFEST_OF_PRODUCTION);
        let [all, production] = [all, production].map(|json| serde_json::from_slice::<serde_json::Value>(&json).unwrap());
        let names = |manifest: &serde_json::Value| manifest["files"].as_object().unwrap().keys().cloned().collect::<BTreeSet<_>>();
        assert_eq!(names(&production), BTreeSet::from([KERNEL, PRODUCTION, AGENT, SBOM].map(str::to_owned)));
        assert_eq!(names(&all).len(), KINDS.len());
        for (name, kind) in [(PRODUCTION, "production"), (SIMULATION, "simulation"), (FIRMWARE, "simulation"), (BARE, "bench")] {
            assert_eq!(all["files"][name]["kind"], kind);
        }
        assert_eq!(production["files"][KERNEL]["sha256"], hex::encode(Sha256::digest(b"kernel")));
    }

    #[test]
    fn an_initrd_of_another_kind_is_in_no_manifest() {
        for (of, word) in [(SIMULATION, "says simulation"), (BARE, "says bench")] {
            let mut files = good();
            files.insert(PRODUCTION, files[of].clone());
            refused(&files, word);
        }
        let mut files = good();
        files.insert(SIMULATION, files[PRODUCTION].clone());
        refused(&files, "says production");
        files = good();
        files.insert(PRODUCTION, initrd(None, &[(AGENT_PATH, b"agent")]));
        refused(&files, LABEL_PATH);
    }

    #[test]
    fn productions_initrd_has_the_agent_and_nothing_else() {
        let with = |programs: &[(&str, &[u8])]| {
            let mut files = good();
            files.insert(PRODUCTION, initrd(Some(ImageKind::Production), programs));
            files
        };
        refused(&with(&[(AGENT_PATH, b"agent"), ("init", b"simulation")]), "\"init\"");
        refused(&with(&[(AGENT_PATH, b"another agent")]), "is not the file");
        refused(&with(&[]), "has no sbin/kata-cc-agent");
    }

    #[test]
    fn a_missing_or_further_file_is_refused() {
        let mut files = good();
        files.remove(SBOM);
        refused(&files, "expected the files");
        files = good();
        files.insert("shell", b"#!".to_vec());
        refused(&files, "shell");
    }

    #[test]
    fn what_is_over_its_budget_is_refused() {
        let of = |agent: Vec<u8>| {
            let mut files = good();
            files.insert(PRODUCTION, initrd(Some(ImageKind::Production), &[(AGENT_PATH, &agent)]));
            files.insert(AGENT, agent);
            files
        };
        refused(&of(vec![0; 15_000_001]), "kata-cc-agent has 15000001 bytes");
        let budgets = Budgets { agent: 15_000_000, initrd: 10_000 };
        assert!(within_budgets(&of(vec![0; 20_000]), &budgets).is_ok());
        // Noise does not get smaller.
        let mut state = 1_u64;
        let mut noise = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            state.to_be_bytes()[0]
        };
        let error = within_budgets(&of((0..20_000).map(|_| noise()).collect()), &budgets).unwrap_err();
        assert!(error.to_string().contains("production.cpio, compressed"), "{error}");
    }
}
