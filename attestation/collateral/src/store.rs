//! What was fetched: in memory, and in a directory where one is configured, each piece with the time until which it is kept.
//!
//! The directory is a cache of this crate's own and no place for other files: it may be emptied at any time.

use std::collections::HashMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use kata_cc_verifier::collateral::{Item, Need};
use serde::{Deserialize, Serialize};

use crate::directory::file_name;
use crate::{MAX_BODY, locked};

/// Most pieces in memory, and on disk.
const MAX_ITEMS: usize = 1024;
/// Most bytes in memory.
const MAX_BYTES: usize = 32 * 1024 * 1024;

/// A piece that is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Fresh {
    /// In its time.
    Yes(Item),
    /// Past it: to be fetched again.
    No(Item),
}

#[derive(Clone)]
struct Kept {
    item: Item,
    expires: u64,
}

impl Kept {
    fn at(self, now: u64) -> Fresh {
        if now < self.expires { Fresh::Yes(self.item) } else { Fresh::No(self.item) }
    }

    fn bytes(&self) -> usize {
        self.item.body.len().saturating_add(self.item.issuer_chain.len())
    }
}

/// A piece as a file. The need is in it, so that a file under another's name is noticed.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    need: String,
    expires: u64,
    body: String,
    issuer_chain: String,
}

/// The pieces.
pub(crate) struct Store {
    memory: Mutex<HashMap<Need, Kept>>,
    directory: Option<PathBuf>,
}

impl Store {
    pub(crate) fn new(directory: Option<PathBuf>) -> Self {
        Self { memory: Mutex::default(), directory }
    }

    /// A piece from memory.
    pub(crate) fn in_memory(&self, need: &Need, now: u64) -> Option<Fresh> {
        locked(&self.memory).get(need).cloned().map(|kept| kept.at(now))
    }

    /// A piece from memory or disk. Blocks.
    pub(crate) fn get(&self, need: &Need, now: u64) -> Option<Fresh> {
        if let Some(kept) = self.in_memory(need, now) {
            return Some(kept);
        }
        let kept = self.path(need).and_then(|path| load(&path, need))?;
        self.remember(need.clone(), kept.clone());
        Some(kept.at(now))
    }

    /// Keeps a piece. Blocks.
    pub(crate) fn put(&self, need: Need, item: Item, expires: u64) {
        let kept = Kept { item, expires };
        if let (Some(directory), Some(path)) = (&self.directory, self.path(&need))
            && let Err(error) = save(directory, &path, &need, &kept)
        {
            tracing::warn!(path = %path.display(), %error, "collateral is kept in memory only");
        }
        self.remember(need, kept);
    }

    fn remember(&self, need: Need, kept: Kept) {
        let mut memory = locked(&self.memory);
        memory.insert(need, kept);
        while memory.len() > MAX_ITEMS || memory.values().map(Kept::bytes).fold(0, usize::saturating_add) > MAX_BYTES {
            let Some(first) = memory.iter().min_by_key(|(_, kept)| kept.expires).map(|(need, _)| need.clone()) else { return };
            memory.remove(&first);
        }
    }

    fn path(&self, need: &Need) -> Option<PathBuf> {
        Some(self.directory.as_ref()?.join(format!("{}.json", file_name(need)?)))
    }
}

fn load(path: &Path, need: &Need) -> Option<Kept> {
    // Base64 takes a third more.
    let text = {
        use std::io::Read as _;
        let mut text = Vec::new();
        let limit = u64::try_from(MAX_BODY).ok()?.saturating_mul(2);
        std::fs::File::open(path).ok()?.take(limit).read_to_end(&mut text).ok()?;
        text
    };
    let file: File = serde_json::from_slice(&text).ok().filter(|file: &File| file.need == need.to_string())?;
    let body = STANDARD.decode(&file.body).ok()?;
    Some(Kept { item: Item { body, issuer_chain: file.issuer_chain.into_bytes() }, expires: file.expires })
}

/// Whole or not at all.
fn save(directory: &Path, path: &Path, need: &Need, kept: &Kept) -> std::io::Result<()> {
    make_room(directory)?;
    let file = File {
        need: need.to_string(),
        expires: kept.expires,
        body: STANDARD.encode(&kept.item.body),
        issuer_chain: String::from_utf8_lossy(&kept.item.issuer_chain).into_owned(),
    };
    let mut temporary = tempfile::NamedTempFile::new_in(directory)?;
    temporary.write_all(&serde_json::to_vec(&file)?)?;
    temporary.persist(path).map_err(|error| error.error)?;
    Ok(())
}

/// Takes away the oldest files while there are too many.
fn make_room(directory: &Path) -> std::io::Result<()> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        if entry.path().extension().is_some_and(|extension| extension == "json") {
            files.push((entry.metadata()?.modified()?, entry.path()));
        }
    }
    files.sort();
    let surplus = files.len().saturating_add(1).saturating_sub(MAX_ITEMS);
    for (_, path) in files.into_iter().take(surplus) {
        std::fs::remove_file(path)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use kata_cc_verifier::collateral::Source;

    fn need(path: &str) -> Need {
        Need { source: Source::AmdKds, path: path.into() }
    }

    fn item(body: &[u8]) -> Item {
        Item { body: body.into(), issuer_chain: b"chain".to_vec() }
    }

    #[test]
    fn a_piece_on_disk_outlives_the_process_and_expires() {
        let dir = tempfile::tempdir().unwrap();
        Store::new(Some(dir.path().into())).put(need("a"), item(b"\x00\xff"), 100);
        let again = Store::new(Some(dir.path().into()));
        assert_eq!(again.in_memory(&need("a"), 99), None);
        assert_eq!(again.get(&need("a"), 99), Some(Fresh::Yes(item(b"\x00\xff"))));
        assert_eq!(again.get(&need("a"), 100), Some(Fresh::No(item(b"\x00\xff"))));
        assert_eq!(again.get(&need("b"), 99), None);
    }

    #[test]
    fn a_file_under_another_name_or_cut_is_not_used() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::new(Some(dir.path().into()));
        store.put(need("a"), item(b"x"), 100);
        let file = dir.path().join("amd-kds_a.json");
        std::fs::copy(&file, dir.path().join("amd-kds_b.json")).unwrap();
        let text = std::fs::read(&file).unwrap();
        std::fs::write(dir.path().join("amd-kds_c.json"), &text[..text.len() - 1]).unwrap();
        assert_eq!(store.get(&need("b"), 1), None);
        assert_eq!(store.get(&need("c"), 1), None);
    }

    #[test]
    fn memory_and_disk_are_bounded_and_what_expires_first_goes_first() {
        let store = Store::new(None);
        for at in 0..=MAX_ITEMS {
            store.put(need(&at.to_string()), item(b"x"), at as u64);
        }
        assert_eq!(locked(&store.memory).len(), MAX_ITEMS);
        assert_eq!(store.get(&need("0"), 0), None);
        let big = Store::new(None);
        for at in 0..40 {
            big.put(need(&at.to_string()), item(&vec![0; MAX_BODY]), at);
        }
        assert!(locked(&big.memory).len() < 32);

        let dir = tempfile::tempdir().unwrap();
        for at in 0..MAX_ITEMS + 3 {
            std::fs::write(dir.path().join(format!("{at}.json")), b"").unwrap();
        }
        Store::new(Some(dir.path().into())).put(need("a"), item(b"x"), 1);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), MAX_ITEMS);
    }
}
