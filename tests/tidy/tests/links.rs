//! Rule: a link in a page leads somewhere: to a file or folder of this repository, and to a heading that is there.

use std::path::{Component, Path, PathBuf};

use kata_cc_tidy::{files, none, root, text};

/// Targets of `[…](target)` outside code, with their line numbers.
fn links(page: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let mut fenced = false;
    for (number, line) in page.lines().enumerate() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
        }
        if fenced {
            continue;
        }
        let mut rest = line;
        while let Some(at) = rest.find("](") {
            rest = &rest[at + 2..];
            let Some(end) = rest.find(')') else { break };
            found.push((number + 1, rest[..end].trim().to_owned()));
            rest = &rest[end..];
        }
    }
    found
}

/// The anchor a heading gets.
fn anchor(heading: &str) -> String {
    let kept = heading.trim().chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.collect::<String>().to_lowercase().replace(' ', "-")
}

fn anchors(page: &str) -> Vec<String> {
    page.lines().filter_map(|line| line.strip_prefix('#')).map(|rest| anchor(rest.trim_start_matches('#'))).collect()
}

/// `folder/../x` as `x`; `None` when it leaves the repository.
fn normal(path: &Path) -> Option<PathBuf> {
    let mut out = PathBuf::new();
    for part in path.components() {
        match part {
            Component::Normal(name) => out.push(name),
            Component::CurDir => {}
            Component::ParentDir if out.pop() => {}
            _ => return None,
        }
    }
    Some(out)
}

fn finding(page: &Path, content: &str, target: &str) -> Option<String> {
    if target.contains("://") || target.starts_with("mailto:") {
        return None;
    }
    let (path, fragment) = target.split_once('#').map_or((target, None), |(path, fragment)| (path, Some(fragment)));
    let (resolved, linked) = if path.is_empty() {
        (page.to_path_buf(), content.to_owned())
    } else {
        let Some(resolved) = normal(&page.parent().unwrap_or(Path::new("")).join(path)) else {
            return Some(format!("{target} leaves the repository"));
        };
        if !root().join(&resolved).exists() {
            return Some(format!("{target} does not exist"));
        }
        let linked = text(&resolved);
        (resolved, linked)
    };
    match fragment {
        Some(fragment) if resolved.extension().is_some_and(|e| e == "md") && !anchors(&linked).iter().any(|a| a == fragment) => {
            Some(format!("{target}: {} has no such heading", resolved.display()))
        }
        _ => None,
    }
}

#[test]
fn links_in_pages_lead_somewhere() {
    let mut findings = Vec::new();
    for page in files(&["md"]) {
        let content = text(&page);
        for (line, target) in links(&content) {
            findings.extend(finding(&page, &content, &target).map(|why| format!("{}:{line}: {why}", page.display())));
        }
    }
    none("links to nowhere", &findings);
}

#[test]
fn links_to_nowhere_are_found() {
    let page = Path::new("docs/page.md");
    let content = "# One heading, here\n";
    for bad in ["absent.md", "../../etc/passwd", "#other", "../Cargo.toml/x", "/etc/passwd"] {
        assert!(finding(page, content, bad).is_some(), "{bad}");
    }
    for good in ["../Cargo.toml", "#one-heading-here", "https://example.org/x", "../docs", "../host-shim/cli/src/main.rs#L10"] {
        assert!(finding(page, content, good).is_none(), "{good}");
    }
}

#[test]
fn links_in_code_are_not_links() {
    let found = links("see [a](b.md) and [c](d.md#e)\n```\n[x](y)\n```\n[f](g)");
    assert_eq!(found, [(1, "b.md".to_owned()), (1, "d.md#e".to_owned()), (5, "g".to_owned())]);
}
