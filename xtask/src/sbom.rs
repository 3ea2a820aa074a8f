//! What the production image is made of: `sbom.cdx.json`, a CycloneDX 1.6 document (ECMA-424).
//!
//! The kernel, the agent, every crate that is linked into the agent with the checksum of Cargo.lock, and what the compiler links into it besides.
//! Crates that only run while building (build scripts, procedural macros) are left out: their output is in the agent, they are not.
//! The features are the agent's own, so the list has no crate that only other programs of the workspace bring.
//!
//! Invariant: a function of source and tools; no time, no chance, no path. The serial number is made of the document's digest.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use kata_cc_firmware::kernel::PATCHES;
use serde::Deserialize;
use serde_json::json;
use sha2::{Digest, Sha256};

use crate::context::Context;
use crate::manifest::{AGENT, Origin};
use crate::process;
use crate::setup::python;

/// Where crates come from; `deny.toml` allows no other registry.
const CRATES_IO: &str = "registry+https://github.com/rust-lang/crates.io-index";

/// Has the schemas as CycloneDX publishes them.
const CYCLONEDX: &str = "cyclonedx-python-lib[json-validation]==11.12.0";
/// The second document is the first without what every one must have: a validator that takes it would take anything.
const VALIDATE: &str = r#"
import json, sys
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
validator = JsonStrictValidator(SchemaVersion.V1_6)
text = open(sys.argv[1]).read()
error = validator.validate_str(text)
if error:
    sys.exit(f"not as CycloneDX 1.6 has it: {error}")
without = json.loads(text)
del without["components"][0]["name"]
if not validator.validate_str(json.dumps(without)):
    sys.exit("the validator takes a component without a name: it checks nothing")
print(len(without["components"]), "components")
"#;

/// A crate in the agent.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Crate {
    name: String,
    version: String,
    /// SPDX expression.
    license: Option<String>,
    /// SHA-256 of its archive; none for a crate of this workspace.
    checksum: Option<String>,
}

/// What a lock file says, as far as is needed here.
#[derive(Deserialize)]
struct Lock {
    package: Vec<Locked>,
}

#[derive(Deserialize)]
struct Locked {
    name: String,
    version: String,
    source: Option<String>,
    checksum: Option<String>,
}

/// What is in an image beside crates.
pub(crate) struct Parts<'a> {
    /// The kernel's bytes.
    pub(crate) kernel: &'a [u8],
    /// The agent's bytes.
    pub(crate) agent: &'a [u8],
    /// Version of Debian's libc6-dev, which is linked statically.
    pub(crate) libc: &'a str,
    /// Versions.
    pub(crate) origin: &'a Origin,
}

/// The crates that are linked into the agent.
pub(crate) fn crates(cx: &Context, source: &Path, target: &str) -> Result<Vec<Crate>> {
    let mut cargo = cx.cargo();
    cargo.current_dir(source).args(["tree", "--locked", "--package", AGENT, "--target", target, "--edges", "normal,no-proc-macro"]);
    let tree = process::output(cargo.args(["--prefix", "none", "--format", "{p}\t{l}"]))?;
    let path = source.join("Cargo.lock");
    let lock = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    read(&tree, &lock)
}

fn read(tree: &str, lock: &str) -> Result<Vec<Crate>> {
    let lock: Lock = toml::from_str(lock).context("Cargo.lock is not understood")?;
    let mut crates = BTreeMap::new();
    for line in tree.lines().filter(|line| !line.is_empty()) {
        let (package, license) =
            line.split_once('\t').with_context(|| format!("cargo tree: expected a package and its license, found {line:?}"))?;
        let mut words = package.split(' ');
        let (Some(name), Some(version)) = (words.next(), words.next().and_then(|word| word.strip_prefix('v'))) else {
            bail!("cargo tree: expected a name and a version, found {package:?}");
        };
        // Cargo marks what it has shown before.
        let license = license.trim_end_matches(" (*)");
        let mut locked = lock.package.iter().filter(|locked| locked.name == name && locked.version == version);
        let (Some(found), None) = (locked.next(), locked.next()) else { bail!("expected {name} {version} once in Cargo.lock") };
        let checksum = match (found.source.as_deref(), &found.checksum) {
            (None, None) => None,
            (Some(CRATES_IO), Some(checksum)) => Some(checksum.clone()),
            (source, _) => bail!("expected {name} {version} to come from crates.io with a checksum, found {source:?}"),
        };
        let entry = Crate {
            name: name.to_owned(),
            version: version.to_owned(),
            // Before SPDX expressions, "/" was how crates said "or".
            license: (!license.is_empty()).then(|| license.replace(" / ", "/").replace('/', " OR ")),
            checksum,
        };
        crates.insert((name.to_owned(), version.to_owned()), entry);
    }
    if !crates.keys().any(|(name, _)| name == AGENT) {
        bail!("cargo tree named no {AGENT}");
    }
    Ok(crates.into_values().collect())
}

/// The document.
pub(crate) fn document(parts: &Parts<'_>, crates: &[Crate]) -> Result<Vec<u8>> {
    let Parts { kernel, agent, libc, origin } = parts;
    let sha256 = |content: &str| json!([{ "alg": "SHA-256", "content": content }]);
    let (package, version) = origin.kernel_source.split_once(' ').context("a kernel's source has a name and a version")?;
    let rustc = origin.rustc.split(' ').nth(1).context("rustc says its version")?;
    // The whole text: whoever reads the document sees what was changed.
    let patches = PATCHES.iter().map(|(_, patch)| json!({ "type": "unofficial", "diff": { "text": { "content": patch } } }));
    let mut components = vec![
        json!({
            "type": "operating-system", "bom-ref": "kernel", "name": "linux", "version": version, "purl": format!("pkg:deb/debian/{package}@{version}"),
            "licenses": [{ "expression": "GPL-2.0-only WITH Linux-syscall-note" }],
            "hashes": sha256(&hex::encode(Sha256::digest(kernel))),
            "pedigree": { "patches": patches.collect::<Vec<_>>() },
            "properties": [{ "name": "kata-cc:kernel-config-sha256", "value": origin.kernel_config_sha256 }],
        }),
        json!({
            "type": "library", "bom-ref": "libc", "name": "glibc", "version": libc, "purl": format!("pkg:deb/debian/libc6-dev@{libc}"),
            "licenses": [{ "expression": "LGPL-2.1-or-later" }],
        }),
        json!({
            "type": "library", "bom-ref": "rust", "name": "rust-std", "version": rustc,
            "licenses": [{ "expression": "MIT OR Apache-2.0" }],
            "properties": [{ "name": "kata-cc:rustc", "value": origin.rustc }],
        }),
    ];
    for one in crates {
        let is_agent = one.name == AGENT;
        let reference = format!("cargo:{}@{}", one.name, one.version);
        let kind = if is_agent { "application" } else { "library" };
        let mut component = json!({ "type": kind, "bom-ref": reference, "name": one.name, "version": one.version });
        if let Some(license) = &one.license {
            component["licenses"] = json!([{ "expression": license }]);
        }
        if let Some(checksum) = &one.checksum {
            component["hashes"] = sha256(checksum);
            // "+" has a meaning of its own in a purl.
            component["purl"] = format!("pkg:cargo/{}@{}", one.name, one.version.replace('+', "%2B")).into();
        }
        if is_agent {
            component["hashes"] = sha256(&hex::encode(Sha256::digest(agent)));
        }
        components.push(component);
    }
    let mut document = json!({
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": { "component": { "type": "firmware", "bom-ref": "image", "name": "kata-cc-guest", "version": origin.version } },
        "components": components,
    });
    document["serialNumber"] = serial(&serde_json::to_vec(&document)?).into();
    let mut json = serde_json::to_vec_pretty(&document)?;
    json.push(b'\n');
    Ok(json)
}

/// A UUID of version 8 (RFC 9562, section 5.8), made of a digest.
fn serial(content: &[u8]) -> String {
    let digest = Sha256::digest(content);
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&digest[..16]);
    bytes[6] = bytes[6] & 0x0f | 0x80;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let hex = hex::encode(bytes);
    format!("urn:uuid:{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

/// Holds a document against CycloneDX's own schema; or why that cannot be done.
pub(crate) fn validate(cx: &Context, document: &Path) -> Result<Result<(), String>> {
    let environment = match python::environment(cx, CYCLONEDX)? {
        Ok(environment) => environment,
        Err(why) => return Ok(Err(why)),
    };
    let mut python = Command::new(environment.join("bin/python3"));
    cx.run.logged("SBOM against CycloneDX's schema", python.arg("-c").arg(VALIDATE).arg(document)).map(|_| Ok(()))
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    #[track_caller]
    fn component<'a>(document: &'a Value, name: &str) -> &'a Value {
        document["components"].as_array().unwrap().iter().find(|component| component["name"] == name).unwrap()
    }

    const LOCK: &str = r#"
version = 4
[[package]]
name = "kata-cc-agent"
version = "0.1.0"
[[package]]
name = "old"
version = "1.0.0+x"
source = "registry+https://github.com/rust-lang/crates.io-index"
checksum = "aa"
[[package]]
name = "git"
version = "1.0.0"
source = "git+https://example.com/git"
"#;
    const TREE: &str = "kata-cc-agent v0.1.0 (/some/where)\tApache-2.0\nold v1.0.0+x\tMIT/Apache-2.0\nold v1.0.0+x\tMIT/Apache-2.0 (*)\n";

    fn origin() -> Origin {
        Origin {
            version: "1",
            kernel_source: "linux-source 6".into(),
            kernel_config_sha256: "cc".into(),
            kernel_patches_sha256: BTreeMap::new(),
            rustc: "rustc 1.2.3 (x)".into(),
        }
    }

    fn made(crates: &[Crate], agent: &[u8]) -> Value {
        let parts = Parts { kernel: b"kernel", agent, libc: "2", origin: &origin() };
        serde_json::from_slice(&document(&parts, crates).unwrap()).unwrap()
    }

    #[test]
    fn every_crate_has_checksum_license_and_source() {
        let crates = read(TREE, LOCK).unwrap();
        assert_eq!(crates.len(), 2);
        let document = made(&crates, b"agent");
        let old = component(&document, "old");
        assert_eq!(old["purl"], "pkg:cargo/old@1.0.0%2Bx");
        assert_eq!(old["hashes"][0]["content"], "aa");
        assert_eq!(old["licenses"][0]["expression"], "MIT OR Apache-2.0");
        let agent = component(&document, AGENT);
        assert_eq!(agent["hashes"][0]["content"], hex::encode(Sha256::digest(b"agent")));
        // Not of crates.io, where somebody else could have a crate of that name.
        assert!(agent.get("purl").is_none());
        assert_eq!(component(&document, "linux")["purl"], "pkg:deb/debian/linux-source@6");
        assert!(!document.to_string().contains("/some/where"));
    }

    #[test]
    fn the_kernel_comes_with_what_was_changed_in_it() {
        let document = made(&read(TREE, LOCK).unwrap(), b"agent");
        let patches = component(&document, "linux")["pedigree"]["patches"].as_array().unwrap();
        let texts: Vec<_> = patches.iter().map(|patch| patch["diff"]["text"]["content"].as_str().unwrap()).collect();
        assert_eq!(texts, PATCHES.map(|(_, text)| text));
    }

    #[test]
    fn the_serial_number_follows_from_the_content() {
        let crates = read(TREE, LOCK).unwrap();
        let serial = |agent: &[u8]| made(&crates, agent)["serialNumber"].as_str().unwrap().to_owned();
        assert_eq!(serial(b"agent"), serial(b"agent"));
        assert_ne!(serial(b"agent"), serial(b"other"));
        assert_eq!(serial(b"agent").len(), "urn:uuid:".len() + 36);
    }

    #[test]
    fn a_crate_from_elsewhere_or_unknown_is_refused() {
        for (line, word) in [
            ("git v1.0.0\tMIT", "crates.io"),
            ("old v2.0.0\tMIT", "once in Cargo.lock"),
            ("old 1.0.0\tMIT", "a name and a version"),
            ("old v1.0.0+x", "its license"),
        ] {
            let error = format!("{:#}", read(&format!("{TREE}{line}\n"), LOCK).unwrap_err());
            assert!(error.contains(word), "no {word:?} in {error}");
        }
        assert!(read("old v1.0.0+x\tMIT\n", LOCK).unwrap_err().to_string().contains(AGENT));
    }
}
