//! docs/claims.md beside what verifiers make: no claim is missing there, and none is there that no verifier makes. The broker's tests hold the
//! kinds it has policies for; these are the others, whose made-up and real evidence is here.

#![allow(dead_code, reason = "each test program uses its part")]

use std::collections::BTreeSet;

use serde_json::Value;

const PAGE: &str = include_str!("../../../../docs/claims.md");

/// What the first column of the tables below a heading names.
#[derive(Debug, Default)]
struct Listed {
    /// By their whole names, such as `tpm.pcr00`.
    names: BTreeSet<String>,
    /// First parts of names of which the page says that there are others.
    others: BTreeSet<String>,
}

impl Listed {
    fn below(heading: &str) -> Self {
        let section = PAGE.split("\n## ").find(|section| section.starts_with(heading)).expect("the page has the heading");
        let mut listed = Self::default();
        for cell in section.lines().filter_map(|line| line.strip_prefix("| `")?.split(" | ").next()) {
            // The first backtick is gone: what is at even places stands between two.
            let mut parts = cell.split('`').step_by(2).map(str::to_owned).filter(|name| !name.is_empty()).peekable();
            let (range, others) = (cell.contains("` to `"), cell.contains(" and the others"));
            if let (true, Some(first)) = (range, parts.peek().cloned()) {
                let last = parts.nth(1).expect("a range has an end");
                listed.names.extend(between(&first, &last));
            }
            for name in parts {
                if let (true, Some((whole, _))) = (others, name.split_once('.')) {
                    listed.others.insert(whole.to_owned());
                }
                listed.names.insert(name);
            }
        }
        listed
    }

    fn has(&self, name: &str) -> bool {
        let whole = name.split('.').next().unwrap_or(name);
        self.names.contains(name) || self.names.contains(whole) || self.others.contains(whole)
    }

    /// Whether the claim or a part of it is listed.
    fn has_some_of(&self, name: &str) -> bool {
        let whole = name.split('.').next();
        self.names.iter().any(|listed| listed.split(['.', ' ']).next() == whole)
    }
}

/// `pcr00`, `pcr01` and so on.
fn between(first: &str, last: &str) -> Vec<String> {
    let number = |name: &str| name.trim_start_matches(|c: char| !c.is_ascii_digit()).len();
    let (stem, digits) = first.split_at(first.len() - number(first));
    let (from, to): (usize, usize) = (digits.parse().expect("a number"), last[stem.len()..].parse().expect("a number"));
    let width = digits.len();
    (from..=to).map(|n| format!("{stem}{n:0width$}")).collect()
}

/// Names of claims, those in an object as `object.name`.
fn names(claims: &Value) -> BTreeSet<String> {
    let inner = |(name, value): (&String, &Value)| match value {
        Value::Object(fields) if !fields.is_empty() => fields.keys().map(|field| format!("{name}.{field}")).collect(),
        _ => vec![name.clone()],
    };
    claims.as_object().expect("claims are an object").iter().flat_map(inner).collect()
}

/// Compares the page's section for a kind with all claims that are made of it. What `also` has, as the section of the hardware below, need not be
/// in the kind's own.
#[track_caller]
pub(crate) fn compare(heading: &str, also: &[&str], made: &[&Value]) {
    let (own, others) = (Listed::below(heading), also.iter().map(|heading| Listed::below(heading)).collect::<Vec<_>>());
    let made: BTreeSet<String> = made.iter().flat_map(|claims| names(claims)).collect();
    let is_listed = |name: &&String| own.has(name) || others.iter().any(|listed| listed.has_some_of(name));
    let missing: Vec<_> = made.iter().filter(|name| !is_listed(name)).collect();
    assert!(missing.is_empty(), "docs/claims.md does not list {missing:?} under {heading}");
    let is_made =
        |name: &&String| made.iter().any(|made| made == *name || made.strip_prefix(name.as_str()).is_some_and(|r| r.starts_with('.')));
    let left: Vec<_> = own.names.iter().filter(|name| !is_made(name)).collect();
    assert!(left.is_empty(), "docs/claims.md lists {left:?} under {heading}, which no verifier makes");
}
