//! Rule: nothing in the repository speaks of the place it was written in: no path of a build machine, no package mirror.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use kata_cc_tidy::{files, none, text};

/// Folders of build machines, written so that this file does not find itself.
const FOLDERS: &[&str] = &[concat!("/wo", "rk/"), concat!("/fa", "rm/"), concat!("/ro", "ot/.")];

/// Hosts anybody may name: where the world's packages and projects are.
const PUBLIC: &[&str] = &[
    "debian.org",
    "crates.io",
    "github.com",
    "githubusercontent.com",
    "docs.rs",
    "rust-lang.org",
    "pypi.org",
    "pythonhosted.org",
    "ubuntu.com",
    "kernel.org",
    "localhost",
];

/// Hosts of this machine's own package configuration that are not public.
fn mirrors() -> BTreeSet<String> {
    let home = std::env::var_os("CARGO_HOME").map(PathBuf::from).or_else(|| std::env::home_dir().map(|h| h.join(".cargo")));
    let mut sources: Vec<PathBuf> = ["/etc/apt/sources.list", "/etc/pip.conf", "/etc/apt/apt.conf"].iter().map(PathBuf::from).collect();
    for dir in ["/etc/apt/sources.list.d", "/etc/apt/apt.conf.d"] {
        sources.extend(fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path()));
    }
    sources.extend(home.into_iter().flat_map(|h| [h.join("config.toml"), h.join("config")]));
    sources.iter().filter_map(|path| fs::read_to_string(path).ok()).flat_map(|text| hosts(&text)).collect()
}

/// Hosts of the URLs in a text, without the public ones.
fn hosts(text: &str) -> BTreeSet<String> {
    let host = |rest: &str| -> String { rest.chars().take_while(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-')).collect() };
    let all =
        text.split("://").skip(1).map(|rest| host(rest.rsplit_once('@').filter(|(user, _)| !user.contains('/')).map_or(rest, |(_, h)| h)));
    all.filter(|host| {
        host.contains('.')
            && host.parse::<std::net::IpAddr>().is_err()
            && !PUBLIC.iter().any(|p| host == p || host.ends_with(&format!(".{p}")))
    })
    .collect()
}

fn findings(path: &Path, text: &str, mirrors: &BTreeSet<String>) -> Vec<String> {
    let mut found = Vec::new();
    for (number, line) in text.lines().enumerate() {
        for folder in FOLDERS {
            // Only absolute paths: an overlay has a `work/` too.
            for (at, _) in line.match_indices(folder) {
                if !line[..at].ends_with(|c: char| c.is_alphanumeric() || matches!(c, '}' | '_' | '.' | '-' | ')' | '>' | '*')) {
                    found.push(format!("{}:{}: {folder}", path.display(), number + 1));
                }
            }
        }
        found.extend(
            mirrors.iter().filter(|host| line.contains(host.as_str())).map(|host| format!("{}:{}: {host}", path.display(), number + 1)),
        );
    }
    found
}

#[test]
fn nothing_names_the_place_it_was_written_in() {
    let mirrors = mirrors();
    let findings: Vec<String> = files(&["*"]).iter().flat_map(|path| findings(path, &text(path), &mirrors)).collect();
    none("names of a particular place", &findings);
}

#[test]
fn names_of_places_are_found_and_others_left_alone() {
    let mirrors = BTreeSet::from(["mirror.corp.example".to_owned()]);
    let path = Path::new("x");
    assert_eq!(findings(path, concat!("see /wo", "rk/x and \"/wo", "rk/y\""), &mirrors).len(), 2);
    assert_eq!(findings(path, concat!("upper/wo", "rk/x, {dir}/wo", "rk/"), &mirrors).len(), 0);
    assert_eq!(findings(path, "deb https://mirror.corp.example/debian x", &mirrors).len(), 1);
}

#[test]
fn hosts_are_taken_from_urls() {
    let text = "URIs: https://user:pw@mirror.corp.example:8443/debian\nproxy http://127.0.0.1:3128\nhttp://localhost/";
    assert_eq!(hosts(text), BTreeSet::from(["mirror.corp.example".to_owned()]));
}
