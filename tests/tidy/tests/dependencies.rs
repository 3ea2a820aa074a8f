//! Rules: every direct dependency of the measured guest has its line in docs/dependencies.md; no crate lists a dependency it does not use.
//!
//! What is linked into the agent is trusted code of every pod, so adding to it takes a sentence of justification.

use std::collections::BTreeSet;
use std::path::Path;

use kata_cc_tidy::{Crate, crates, files, none, text};

/// What the agent is made of.
const GUEST: &[&str] = &[
    "kata-cc-agent",
    "kata-cc-agent-protocol",
    "kata-cc-attester",
    "kata-cc-evidence",
    "kata-cc-image-pull",
    "kata-cc-kbs-protocol",
    "kata-cc-policy",
    "nc",
];

/// Crate and dependency that only generated code names.
const UNNAMED: &[(&str, &str)] = &[("kata-cc-agent-protocol", "async-trait")];

fn guest_dependencies(crates: &[Crate]) -> BTreeSet<String> {
    let guest = crates.iter().filter(|c| GUEST.contains(&c.name.as_str()));
    let built = |c: &Crate| -> Vec<String> { c.dependencies.iter().filter(|name| !c.optional.contains(name)).cloned().collect() };
    guest.flat_map(built).filter(|name| !name.starts_with("kata-cc-")).collect()
}

/// Names in the first column of the page's tables, in backticks; several may share a row.
fn listed(page: &str) -> BTreeSet<String> {
    let cells = page.lines().filter_map(|line| line.strip_prefix('|')?.split('|').next());
    cells.flat_map(|cell| cell.split('`').skip(1).step_by(2)).map(str::to_owned).collect()
}

/// What a feature adds is the broker's: the guest asks for no features of these crates, its tests aside.
#[test]
fn the_guest_asks_for_no_feature_of_its_crates() {
    let manifest: toml::Table = toml::from_str(&text(Path::new("guest-agent/Cargo.toml"))).expect("a manifest");
    let dependencies = manifest["dependencies"].as_table().expect("a table");
    let asks = |name: &&String| GUEST.contains(&name.as_str()) && dependencies[name.as_str()].get("features").is_some();
    none("guest-agent/Cargo.toml asks for features", &dependencies.keys().filter(asks).cloned().collect::<Vec<_>>());
    let workspace: toml::Table = toml::from_str(&text(Path::new("Cargo.toml"))).expect("a manifest");
    let protocol = &workspace["workspace"]["dependencies"]["kata-cc-kbs-protocol"];
    assert_eq!(protocol["default-features"].as_bool(), Some(false), "the broker's side would be in the guest");
}

#[test]
fn every_guest_dependency_is_justified() {
    let listed = listed(&text(Path::new("docs/dependencies.md")));
    let used = guest_dependencies(&crates());
    let mut findings: Vec<String> =
        used.difference(&listed).map(|name| format!("{name} is built into the guest but has no line")).collect();
    findings.extend(listed.difference(&used).map(|name| format!("{name} has a line but is not a direct dependency of the guest")));
    none("docs/dependencies.md and the manifests disagree", &findings);
}

/// Dependencies of a crate that none of its files names.
fn unused(member: &Crate, sources: &str) -> Vec<String> {
    let all = member.dependencies.iter().chain(&member.build_dependencies).chain(&member.dev_dependencies);
    let named = |name: &str| {
        let ident = name.replace('-', "_");
        sources.match_indices(&ident).any(|(at, _)| {
            let before = sources[..at].chars().next_back();
            let after = sources[at + ident.len()..].chars().next();
            let boundary = |c: Option<char>| !c.is_some_and(|c| c.is_alphanumeric() || c == '_');
            boundary(before) && boundary(after)
        })
    };
    all.filter(|name| !UNNAMED.contains(&(&member.name, name)) && !named(name))
        .map(|name| format!("{} lists {name}", member.name))
        .collect()
}

#[test]
fn listed_dependencies_are_used() {
    let rust = files(&["rs"]);
    let crates = crates();
    let mut findings = Vec::new();
    for member in &crates {
        let inner = |path: &Path| {
            crates.iter().any(|c| c.folder != member.folder && c.folder.starts_with(&member.folder) && path.starts_with(&c.folder))
        };
        let sources: String = rust.iter().filter(|path| path.starts_with(&member.folder) && !inner(path)).map(|path| text(path)).collect();
        findings.extend(unused(member, &sources));
    }
    none("dependencies nothing uses", &findings);
}

#[test]
fn an_unused_dependency_is_found() {
    let member = Crate {
        name: "x".to_owned(),
        folder: "x".into(),
        dependencies: vec!["serde-json".to_owned(), "hex".to_owned()],
        optional: Vec::new(),
        build_dependencies: Vec::new(),
        dev_dependencies: Vec::new(),
    };
    assert_eq!(unused(&member, "use serde_json::Value; let x = hexagon; let my_hex = 1;"), ["x lists hex"]);
}

#[test]
fn lines_of_the_page_are_read_from_tables() {
    let page = "| crate | why |\n|---|---|\n| `a`, `b-c` | uses `d` |\ntext `e`\n";
    assert_eq!(listed(page), BTreeSet::from(["a".to_owned(), "b-c".to_owned()]));
}
