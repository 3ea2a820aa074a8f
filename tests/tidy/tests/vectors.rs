//! Rule: real evidence that is at hand is used. Each file of the vectors' manifest is named by a test, or `vectors.txt` says what has it, or why
//! nothing has.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use kata_cc_tidy::{files, none, root, text};

/// The folder, if it is there.
fn vectors() -> Option<PathBuf> {
    let dir = std::env::var_os("KATA_CC_VECTORS").map_or_else(|| root().join("../shared/vectors"), PathBuf::from);
    if dir.join("MANIFEST.md").is_file() {
        return Some(dir);
    }
    eprintln!("SKIPPED: no vectors at {}; set KATA_CC_VECTORS", dir.display());
    None
}

/// Path and size of each file in the manifest's tables, which have a heading for each repository.
fn listed(manifest: &str) -> Vec<(String, u64)> {
    let (mut repository, mut found) = (String::new(), Vec::new());
    for line in manifest.lines() {
        if let Some(heading) = line.strip_prefix("## ") {
            repository = heading.split_once(" @ ").map(|(name, _)| name.to_owned()).unwrap_or_default();
        }
        let mut cells = line.strip_prefix("| ").into_iter().flat_map(|row| row.split(" | "));
        if let (Some(path), Some(Ok(size))) = (cells.next(), cells.next().map(str::parse))
            && !repository.is_empty()
        {
            found.push((format!("{repository}/{path}"), size));
        }
    }
    found
}

/// A line of `vectors.txt`.
struct Entry<'a> {
    path: &'a str,
    /// File and text, or none where there is a reason.
    by: Option<(&'a str, &'a str)>,
}

impl Entry<'_> {
    fn is_of(&self, file: &str) -> bool {
        self.path.strip_suffix('*').map_or(self.path == file, |start| file.starts_with(start))
    }
}

fn entries<'a>(list: &'a str, findings: &mut Vec<String>) -> Vec<Entry<'a>> {
    let lines = list.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    let parse = |line: &'a str| {
        let (path, rest) = line.split_once(' ')?;
        if let Some(reason) = rest.strip_prefix("not: ") {
            return (!reason.trim().is_empty()).then_some(Entry { path, by: None });
        }
        let by = rest.strip_prefix("by ")?.split_once(" as ")?;
        Some(Entry { path, by: Some(by) })
    };
    let mut found = Vec::new();
    for line in lines {
        match parse(line) {
            Some(entry) => found.push(entry),
            None => findings.push(format!("{line:?} is neither `PATH by FILE as TEXT` nor `PATH not: REASON`")),
        }
    }
    found
}

/// What is wrong with a list for these files, some of which are named by tests.
fn findings(files: &[String], is_named: &dyn Fn(&str) -> bool, list: &str, source: &dyn Fn(&str) -> String) -> Vec<String> {
    let mut found = Vec::new();
    let entries = entries(list, &mut found);
    for file in files {
        let of: Vec<&Entry<'_>> = entries.iter().filter(|entry| entry.is_of(file)).collect();
        match of.as_slice() {
            [] if !is_named(file) => found.push(format!("{file} is used by no test: use it, or say why not in tests/tidy/vectors.txt")),
            [] | [_] => {}
            _ => found.push(format!("{file} is in vectors.txt more than once")),
        }
    }
    for entry in entries {
        let of: Vec<&String> = files.iter().filter(|file| entry.is_of(file)).collect();
        match entry.by {
            _ if of.is_empty() => found.push(format!("vectors.txt has {}, which the manifest has not", entry.path)),
            Some((file, text)) if !source(file).contains(text) => found.push(format!("{file} has no {text:?}")),
            None if of.iter().all(|file| is_named(file)) => {
                found.push(format!("{} is used by a test: take it out of vectors.txt", entry.path));
            }
            _ => {}
        }
    }
    found
}

#[test]
fn real_evidence_is_used_or_it_is_said_why_not() {
    let Some(dir) = vectors() else { return };
    let manifest = std::fs::read_to_string(dir.join("MANIFEST.md")).expect("text");
    let listed = listed(&manifest);
    assert!(listed.len() > 200, "{} files: the manifest's tables are not read as they are meant", listed.len());
    let missing: Vec<String> = listed
        .iter()
        .filter(|(path, size)| std::fs::metadata(dir.join(path)).map_or(true, |found| found.len() != *size))
        .map(|(path, _)| format!("{path} is not there, or not of its size"))
        .collect();
    none("files of the manifest", &missing);
    let own = Path::new("tests/tidy");
    let sources: String = files(&["rs"]).iter().filter(|path| !path.starts_with(own)).map(|path| text(path)).collect();
    // A name as a literal, alone or at the end of a path.
    let names: BTreeSet<&str> = sources.split(['"', '/']).collect();
    let is_named = |path: &str| path.rsplit('/').next().is_some_and(|name| names.contains(name));
    let paths: Vec<String> = listed.into_iter().map(|(path, _)| path).collect();
    none("real evidence", &findings(&paths, &is_named, &text(Path::new("tests/tidy/vectors.txt")), &|file| text(Path::new(file))));
}

#[test]
fn files_that_are_forgotten_and_lines_that_are_stale_are_found() {
    let files = ["o/r/a.bin", "o/r/b1.bin", "o/r/b2.bin"].map(str::to_owned);
    let named = |path: &str| path == "o/r/a.bin";
    let source = |file: &str| if file == "x.rs" { "b{n}.bin".to_owned() } else { String::new() };
    let check = |list: &str| findings(&files, &named, list, &source).len();
    assert_eq!(check("# why\n\no/r/b* by x.rs as b{n}.bin"), 0);
    assert_eq!(check("o/r/b* not: too old"), 0);
    assert_eq!(check(""), 2, "forgotten");
    assert_eq!(check("o/r/b1.bin not: too old"), 1, "one of them forgotten");
    assert_eq!(check("o/r/b* by x.rs as c{n}.bin"), 1, "not in that file");
    assert_eq!(check("o/r/b* by y.rs as b{n}.bin"), 1, "no such file");
    assert_eq!(check("o/r/b* not: too old\no/r/c.bin not: too old"), 1, "not in the manifest");
    assert_eq!(check("o/r/b* not: too old\no/r/b1.bin not: too old"), 1, "twice");
    assert_eq!(check("o/r/b* not: too old\no/r/a.bin not: too old"), 1, "used all the same");
    assert_eq!(check("o/r/b* not: "), 3, "no reason");
}

#[test]
fn the_manifests_tables_are_read_with_their_repositories() {
    let manifest = "# x\n## o/r @ 1234 — licence\n\n| path | bytes |\n|---|---|\n| a/b.bin | 12 | ab | c |\n## other\n| c | 1 | d | e |\n";
    assert_eq!(listed(manifest), [("o/r/a/b.bin".to_owned(), 12)]);
}
