//! Rule: every Rust file opens with `//!`: what it is, what it is not, what must stay true in it.

use std::path::Path;

use kata_cc_tidy::{files, none, text};

fn finding(path: &Path, text: &str) -> Option<String> {
    let head: String = text.lines().take_while(|line| line.starts_with("//!")).collect::<Vec<_>>().join(" ");
    let words = head.replace("//!", " ").split_whitespace().count();
    if words == 0 {
        return Some(format!("{} does not begin with //!", path.display()));
    }
    if words < 4 || head.to_lowercase().contains("placeholder") {
        return Some(format!("{} begins with a //! that says nothing", path.display()));
    }
    None
}

#[test]
fn every_rust_file_says_what_it_is() {
    let findings: Vec<String> = files(&["rs"]).iter().filter_map(|path| finding(path, &text(path))).collect();
    none("files without a head", &findings);
}

#[test]
fn a_missing_or_empty_head_is_found() {
    let path = Path::new("x.rs");
    for bad in ["", "use std::fs;\n", "// a comment\n", "//!\n//!\nfn main() {}", "//! Placeholder while the crate is laid out.\n"] {
        assert!(finding(path, bad).is_some(), "{bad:?}");
    }
    assert!(finding(path, "//! One snapshot as this service knows it.\n").is_none());
}
