//! Reading the repository for the rules of the house, which are the tests of this crate: one file in `tests/` for each rule.
//!
//! Invariant: only files of the checkout are read, never built artifacts, and each rule has a test that it finds what it forbids.

use std::fs;
use std::path::{Path, PathBuf};

/// Directories that hold nothing people wrote.
const SKIPPED: &[&str] = &[".git", ".kata-cc-cache", "node_modules"];

/// The root of the checkout.
#[must_use]
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).map(Path::to_path_buf).unwrap_or_default()
}

/// Every file of the checkout whose name has one of these extensions (`*`: any), by path relative to the root, in order.
#[must_use]
pub fn files(extensions: &[&str]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    walk(&root(), &mut found, extensions);
    let root = root();
    let mut relative: Vec<PathBuf> = found.iter().filter_map(|p| p.strip_prefix(&root).ok()).map(Path::to_path_buf).collect();
    relative.sort();
    relative
}

fn walk(dir: &Path, found: &mut Vec<PathBuf>, extensions: &[&str]) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        // A link may lead out of the checkout.
        let Ok(kind) = entry.file_type() else { continue };
        if kind.is_dir() && !name.starts_with("target") && !SKIPPED.contains(&name.as_str()) {
            walk(&entry.path(), found, extensions);
        } else if kind.is_file() {
            let extension = Path::new(&name).extension().and_then(|e| e.to_str()).unwrap_or_default();
            if extensions.contains(&"*") || extensions.contains(&extension) {
                found.push(entry.path());
            }
        }
    }
}

/// The text of a file of the checkout; empty when it is not text.
#[must_use]
pub fn text(relative: &Path) -> String {
    fs::read_to_string(root().join(relative)).unwrap_or_default()
}

/// A crate of the workspace as its manifest describes it.
#[derive(Debug, Clone)]
pub struct Crate {
    /// Its name.
    pub name: String,
    /// Its folder, relative to the root.
    pub folder: PathBuf,
    /// What it is built from.
    pub dependencies: Vec<String>,
    /// Those of them that only a feature asks for.
    pub optional: Vec<String>,
    /// What its build script is built from.
    pub build_dependencies: Vec<String>,
    /// What its tests are built from besides.
    pub dev_dependencies: Vec<String>,
}

/// Every member of the workspace.
///
/// # Panics
/// When a manifest cannot be read: then no rule about it can be held.
#[must_use]
pub fn crates() -> Vec<Crate> {
    let workspace = manifest(Path::new("Cargo.toml"));
    let members = workspace["workspace"]["members"].as_array().expect("the workspace lists its members");
    members.iter().map(|member| read_crate(Path::new(member.as_str().expect("a member is a path")))).collect()
}

fn read_crate(folder: &Path) -> Crate {
    let manifest = manifest(&folder.join("Cargo.toml"));
    let names = |section: &str| -> Vec<String> {
        manifest.get(section).and_then(toml::Value::as_table).map(|table| table.keys().cloned().collect()).unwrap_or_default()
    };
    let optional =
        |name: &String| manifest["dependencies"][name.as_str()].get("optional").is_some_and(|value| value.as_bool() == Some(true));
    Crate {
        name: manifest["package"]["name"].as_str().expect("a package has a name").to_owned(),
        folder: folder.to_path_buf(),
        dependencies: names("dependencies"),
        optional: names("dependencies").into_iter().filter(optional).collect(),
        build_dependencies: names("build-dependencies"),
        dev_dependencies: names("dev-dependencies"),
    }
}

fn manifest(relative: &Path) -> toml::Table {
    text(relative).parse().unwrap_or_else(|e| panic!("{} is not a manifest: {e}", relative.display()))
}

/// Fails with one line for each finding.
///
/// # Panics
/// When there is a finding.
#[track_caller]
pub fn none(rule: &str, findings: &[String]) {
    assert!(findings.is_empty(), "{rule}:\n  {}", findings.join("\n  "));
}
