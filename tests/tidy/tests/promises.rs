//! Rule: each entry of docs/promises.md links the test that shows it, or says "untested".
//!
//! An entry is a table row or list item that begins with its number (`| P1 |`, `1.`, `- **P1**`), with the lines that belong to it. A link to a
//! Rust file whose text is a name in backticks means that test function.

use std::path::Path;

use kata_cc_tidy::{none, text};

const PAGE: &str = "docs/promises.md";

/// Number and text of each entry.
fn entries(page: &str) -> Vec<(String, String)> {
    let mut found: Vec<(String, String)> = Vec::new();
    for line in page.lines() {
        let bare = line.trim_start_matches(['|', '-', '*', ' ']);
        let number: String = bare.strip_prefix('P').unwrap_or(bare).chars().take_while(char::is_ascii_digit).collect();
        let after = bare.strip_prefix('P').unwrap_or(bare).get(number.len()..).unwrap_or_default();
        let begins = !number.is_empty() && after.starts_with(['.', ' ', '|', ':', '*']) && !line.starts_with(' ');
        if begins {
            found.push((number, line.to_owned()));
        } else if line.starts_with('#') || line.trim().is_empty() {
            // A blank line inside a list item is allowed when the next line is indented; it then changes nothing here.
            if line.starts_with('#') {
                found.push((String::new(), String::new()));
            }
        } else if let Some((_, entry)) = found.last_mut() {
            entry.push('\n');
            entry.push_str(line);
        }
    }
    found.retain(|(number, _)| !number.is_empty());
    found
}

/// `(text, target)` of each link.
fn links(entry: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut rest = entry;
    while let Some(middle) = rest.find("](") {
        let before = &rest[..middle];
        let after = &rest[middle + 2..];
        let Some(end) = after.find(')') else { break };
        let label = before.rfind('[').map_or("", |at| &before[at + 1..]);
        found.push((label.to_owned(), after[..end].to_owned()));
        rest = &after[end..];
    }
    found
}

fn finding(entry: &str) -> Option<String> {
    if entry.to_lowercase().contains("untested") {
        return None;
    }
    let links = links(entry);
    if links.is_empty() {
        return Some("links no test and does not say \"untested\"".to_owned());
    }
    for (label, target) in links {
        let path = Path::new("docs").join(target.split('#').next().unwrap_or_default());
        let path = path.strip_prefix("docs/..").map(Path::to_path_buf).unwrap_or(path);
        let source = text(&path);
        if source.is_empty() && !kata_cc_tidy::root().join(&path).is_dir() {
            return Some(format!("{target} is not a file of ours"));
        }
        let name = label.trim_matches('`');
        let is_name = label.starts_with('`') && !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
        if is_name
            && path.extension().is_some_and(|e| e == "rs")
            && !source.contains(&format!("fn {name}"))
            && !source.contains(&format!("{name:?}"))
        {
            return Some(format!("{target} holds no test {name}"));
        }
    }
    None
}

#[test]
fn every_promise_names_its_test() {
    let page = text(Path::new(PAGE));
    let entries = entries(&page);
    assert!(!entries.is_empty(), "{PAGE} is missing or holds no numbered entry");
    let findings: Vec<String> =
        entries.iter().filter_map(|(number, entry)| finding(entry).map(|why| format!("promise {number}: {why}"))).collect();
    none("promises without proof", &findings);
}

#[test]
fn entries_are_found_in_tables_and_lists() {
    let page = "# Promises\n| # | promise | shown by |\n|---|---|---|\n| P1 | one | untested |\n| 2 | two | x |\n\n## More\n3. three\n   goes on\n- **P4** four\n";
    let numbers: Vec<String> = entries(page).into_iter().map(|(n, _)| n).collect();
    assert_eq!(numbers, ["1", "2", "3", "4"]);
    assert!(entries(page)[2].1.contains("goes on"));
}

#[test]
fn a_promise_without_an_existing_test_is_found() {
    let test = "[`entries_are_found_in_tables_and_lists`](../tests/tidy/tests/promises.rs)";
    assert_eq!(finding(&format!("1. holds: {test}")), None);
    assert_eq!(finding("1. holds: untested"), None);
    assert!(finding("1. holds").is_some());
    assert!(finding("1. holds: [x](../tests/absent.rs)").is_some());
    assert!(finding("1. holds: [`absent_function_name`](../tests/tidy/Cargo.toml)").is_none(), "only Rust files hold tests");
    assert!(finding(&format!("1. holds: {}", test.replacen("entries", "entry", 1))).is_some());
}
