//! Rule: each case of an attack in the tables of docs/threat-model.md (`| AC-07 … |`) links a file that names it (`AC-07`, or `ac_07` in the name of
//! a test), or its row says that nothing here can show it.

use std::path::{Component, Path, PathBuf};

use kata_cc_tidy::{none, root, text};

const PAGE: &str = "docs/threat-model.md";
/// What a row says for which no test is possible on this side of the hardware, or none is needed.
const WITHOUT_TEST: &[&str] = &["hardware only", "argued"];

/// Numbers of a row's cases: of its first cell.
fn cases(row: &str) -> Vec<String> {
    let Some(first) = row.strip_prefix("| AC-").and_then(|rest| rest.split('|').next()) else { return Vec::new() };
    let number = |text: &str| text.chars().take_while(char::is_ascii_digit).collect::<String>();
    std::iter::once(number(first)).chain(first.split("AC-").skip(1).map(number)).collect()
}

/// Files that a row links, by path relative to the root.
fn linked(row: &str) -> Vec<PathBuf> {
    let targets = row.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    targets.map(|target| Path::new("docs").join(target.split('#').next().unwrap_or_default())).map(|path| plain(&path)).collect()
}

/// `docs/../x` as `x`.
fn plain(path: &Path) -> PathBuf {
    let mut out = PathBuf::new();
    for part in path.components() {
        if part == Component::ParentDir {
            out.pop();
        } else {
            out.push(part);
        }
    }
    out
}

fn findings(page: &str, content: impl Fn(&Path) -> String) -> Vec<String> {
    let mut found = Vec::new();
    for row in page.lines().filter(|line| line.starts_with("| AC-")) {
        let shown_by = row.trim_end_matches(['|', ' ']).rsplit('|').next().unwrap_or_default();
        if WITHOUT_TEST.iter().any(|words| shown_by.contains(words)) {
            continue;
        }
        let files: Vec<_> = linked(row).iter().map(|path| content(path)).collect();
        let named = |case: &String| files.iter().any(|file| file.contains(&format!("AC-{case}")) || file.contains(&format!("ac_{case}_")));
        found.extend(cases(row).into_iter().filter(|case| !named(case)).map(|case| format!("AC-{case}: no linked file names it")));
    }
    found
}

#[test]
fn every_attack_is_a_test_that_names_it_or_says_why_not() {
    let page = text(Path::new(PAGE));
    assert!(page.lines().any(|line| line.starts_with("| AC-")) && root().join(PAGE).is_file());
    none("attacks without a test", &findings(&page, text));
}

#[test]
fn a_case_that_no_linked_file_names_is_found() {
    let content = |path: &Path| match path.to_str() {
        Some("x.rs") => "fn ac_07_other_vcpus() {}".to_owned(),
        Some("y.rs") => "// AC-70".to_owned(),
        _ => String::new(),
    };
    let row = |cases: &str, shown_by: &str| findings(&format!("| {cases} what | how | {shown_by} |\n"), content).len();
    assert_eq!(row("AC-07", "[x](../x.rs)"), 0);
    assert_eq!(row("AC-07, AC-70", "[x](../x.rs#L1), [y](../y.rs)"), 0);
    assert_eq!(row("AC-07, AC-70", "[x](../x.rs)"), 1);
    assert_eq!(row("AC-08, AC-71", "[x](../x.rs), [y](../y.rs)"), 2);
    assert_eq!(row("AC-07", "lab"), 1);
    assert_eq!(row("AC-12", "OVMF; hardware only"), 0);
}
