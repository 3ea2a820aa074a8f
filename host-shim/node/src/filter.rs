//! The part of containerd's filter language that makes sense for snapshots.
//!
//! `field==value,field!=value,field` — comma is "and"; several filters of one call are "or". Fields: `name`, `parent`, `kind`,
//! `labels.<key>` with the key quoted when it holds dots. A filter this file cannot read is refused, never read as "everything":
//! containerd would otherwise take the wrong snapshot for a layer. Regular expressions (`~=`) are refused.

use crate::error::SnapshotError;
use crate::record::Record;

/// Longest filter read.
const MAX_FILTER: usize = 16 * 1024;

#[derive(Debug, Clone, PartialEq, Eq)]
enum Field {
    Name,
    Parent,
    Kind,
    Label(String),
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Test {
    Present,
    Equal(String),
    NotEqual(String),
}

/// Several filters, any of which may match; none at all matches everything.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Filter(Vec<Vec<(Field, Test)>>);

impl Filter {
    /// Reads the filters of one call.
    pub(crate) fn parse(filters: &[String]) -> Result<Self, SnapshotError> {
        // An empty expression is containerd's "always".
        if filters.iter().any(|f| f.trim().is_empty()) {
            return Ok(Filter::default());
        }
        filters.iter().map(|text| parse_one(text)).collect::<Result<_, _>>().map(Filter)
    }

    /// Whether a snapshot is wanted.
    pub(crate) fn matches(&self, record: &Record) -> bool {
        self.0.is_empty() || self.0.iter().any(|all| all.iter().all(|(field, test)| holds(record, field, test)))
    }
}

fn holds(record: &Record, field: &Field, test: &Test) -> bool {
    let value = match field {
        Field::Name => Some(record.name.as_str()),
        Field::Parent => Some(record.parent.as_str()),
        Field::Kind => Some(record.kind.as_str()),
        Field::Label(key) => record.labels.get(key).map(String::as_str),
    };
    match test {
        Test::Present => value.is_some_and(|v| !v.is_empty()),
        Test::Equal(want) => value == Some(want.as_str()),
        Test::NotEqual(want) => value != Some(want.as_str()),
    }
}

fn refuse(text: &str, why: &str) -> SnapshotError {
    SnapshotError::Invalid(format!("cannot read the filter {text:?}: {why}; expected field==value, joined by commas"))
}

fn parse_one(text: &str) -> Result<Vec<(Field, Test)>, SnapshotError> {
    if text.len() > MAX_FILTER {
        return Err(SnapshotError::Invalid(format!("filter of {} bytes; at most {MAX_FILTER} are read", text.len())));
    }
    let mut scan = Scan { text, rest: text };
    let mut tests = Vec::new();
    loop {
        let field = scan.field()?;
        let test = scan.test()?;
        tests.push((field, test));
        scan.skip_space();
        if scan.rest.is_empty() {
            return Ok(tests);
        }
        if !scan.take(",") {
            return Err(refuse(text, "something follows a value that is not a comma"));
        }
    }
}

struct Scan<'a> {
    text: &'a str,
    rest: &'a str,
}

impl Scan<'_> {
    fn skip_space(&mut self) {
        self.rest = self.rest.trim_start();
    }

    fn take(&mut self, token: &str) -> bool {
        match self.rest.strip_prefix(token) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    /// A quoted string, or the characters up to one of `stops`.
    fn word(&mut self, stops: &[char]) -> Result<String, SnapshotError> {
        if self.rest.starts_with('"') {
            return self.quoted();
        }
        let end = self.rest.find(stops).unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(end);
        let word = word.trim_end();
        if word.is_empty() {
            return Err(refuse(self.text, "a name or value is missing"));
        }
        let word = word.to_owned();
        self.rest = rest;
        Ok(word)
    }

    fn quoted(&mut self) -> Result<String, SnapshotError> {
        let mut out = String::new();
        let mut chars = self.rest.char_indices().skip(1);
        while let Some((at, c)) = chars.next() {
            match c {
                '"' => {
                    self.rest = self.rest.get(at + 1..).unwrap_or_default();
                    return Ok(out);
                }
                '\\' => match chars.next() {
                    Some((_, e @ ('"' | '\\' | '/'))) => out.push(e),
                    _ => return Err(refuse(self.text, "an escape other than \\\" and \\\\")),
                },
                c => out.push(c),
            }
        }
        Err(refuse(self.text, "a quote is not closed"))
    }

    fn field(&mut self) -> Result<Field, SnapshotError> {
        const STOPS: &[char] = &['.', '=', '!', '~', ',', ' '];
        self.skip_space();
        let word = self.word(STOPS)?;
        match word.as_str() {
            "name" => Ok(Field::Name),
            "parent" => Ok(Field::Parent),
            "kind" => Ok(Field::Kind),
            "labels" => {
                let mut key = Vec::new();
                while self.take(".") {
                    key.push(self.word(STOPS)?);
                }
                if key.is_empty() {
                    return Err(refuse(self.text, "labels needs a key: labels.\"key\""));
                }
                Ok(Field::Label(key.join(".")))
            }
            other => Err(refuse(self.text, &format!("unknown field {other:?} (known: name, parent, kind, labels.<key>)"))),
        }
    }

    fn test(&mut self) -> Result<Test, SnapshotError> {
        const STOPS: &[char] = &[','];
        self.skip_space();
        if self.take("==") {
            self.skip_space();
            // containerd writes parent=="" for a base layer.
            return self.word(STOPS).map(Test::Equal);
        }
        if self.take("!=") {
            self.skip_space();
            return self.word(STOPS).map(Test::NotEqual);
        }
        if self.rest.starts_with("~=") {
            return Err(refuse(self.text, "regular expressions (~=) are not supported"));
        }
        Ok(Test::Present)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{Kind, RECORD_VERSION};
    use std::time::SystemTime;

    fn record() -> Record {
        Record {
            version: RECORD_VERSION,
            name: "sha256:aa".into(),
            parent: "sha256:bb".into(),
            kind: Kind::Committed,
            labels: [("containerd.io/snapshot.ref".to_owned(), "sha256:aa".to_owned()), ("plain".to_owned(), "x".to_owned())].into(),
            created_at: SystemTime::UNIX_EPOCH,
            updated_at: SystemTime::UNIX_EPOCH,
            scratch: false,
        }
    }

    #[track_caller]
    fn check(filters: &[&str], expected: Result<bool, ()>) {
        let filters: Vec<String> = filters.iter().map(|f| f.to_string()).collect();
        let got = Filter::parse(&filters).map(|f| f.matches(&record())).map_err(|_| ());
        assert_eq!(got, expected, "{filters:?}");
    }

    #[test]
    fn reads_the_filter_containerd_sends_for_a_target() {
        check(&[r#"labels."containerd.io/snapshot.ref"==sha256:aa,parent=="sha256:bb""#], Ok(true));
        check(&[r#"labels."containerd.io/snapshot.ref"==sha256:aa,parent=="""#], Ok(false));
        check(&[r#"labels."containerd.io/snapshot.ref"==sha256:ab,parent=="sha256:bb""#], Ok(false));
    }

    #[test]
    fn filters_are_or_and_their_parts_are_and() {
        check(&[], Ok(true));
        check(&[""], Ok(true));
        check(&["name==x", "kind==committed"], Ok(true));
        check(&["name==x,kind==committed"], Ok(false));
        check(&["labels.plain==x , kind!=active"], Ok(true));
        check(&["labels.plain"], Ok(true));
        check(&["labels.absent"], Ok(false));
    }

    #[test]
    fn refuses_what_it_cannot_read_instead_of_matching_everything() {
        for bad in ["size==1", "name~=x", "name==", "labels==x", "name==\"x", "name==\"x\"y", "==x", "name==x,", "name=x"] {
            check(&[bad], Err(()));
        }
    }
}
