//! The snapshots this node knows: an index in memory, one small file each on disk.
//!
//! Not a layer store: nothing here holds file content of an image. Invariants: a change is on disk before it is in memory, each by one
//! atomic rename or unlink, so a crash leaves either the old state or the new one; a parent is committed and is never removed
//! before its children. Committed records are also flushed (containerd will not tell us about a layer twice); active ones are not,
//! since after a loss of power no container that used them is left.
//!
//! ```text
//! <state>/lock              held while a service runs
//! <state>/empty/            what every container and view "mounts"
//! <state>/snapshots/<n>.json
//! <state>/scratch/<n>/      only while containerd itself unpacks a layer it already had
//! ```

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use nix::fcntl::{Flock, FlockArg};

use crate::error::SnapshotError;
use crate::filter::Filter;
use crate::record::{Kind, RECORD_VERSION, Record, TARGET_LABEL, check_chain_id, check_labels, check_name, is_unpack_key};

/// A record with the longest names and labels stays below this.
const MAX_RECORD_FILE: u64 = 2 * 1024 * 1024;

/// What containerd is to mount for a snapshot: always one bind mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Bind {
    /// Directory on the host.
    pub(crate) source: PathBuf,
    /// Writable only for an unpacking in progress.
    pub(crate) writable: bool,
}

struct Entry {
    file: u64,
    record: Record,
}

/// All snapshots of this node.
pub(crate) struct Store {
    root: PathBuf,
    entries: BTreeMap<String, Entry>,
    next_file: u64,
    _lock: Flock<File>,
}

impl Store {
    /// Opens (or makes) the state directory and reads every record in it.
    ///
    /// Unreadable records, which only a loss of power or a person can leave behind, are set aside as `<n>.json.bad` and logged.
    pub(crate) fn open(root: &Path) -> Result<Self, SnapshotError> {
        make_dir(root, 0o711)?;
        let lock = lock(&root.join("lock"))?;
        for (name, mode) in [("snapshots", 0o700), ("scratch", 0o700), ("empty", 0o755)] {
            make_dir(&root.join(name), mode)?;
        }
        let empty = root.join("empty");
        let mut found = fs::read_dir(&empty).map_err(at("read", &empty))?;
        if let Some(stray) = found.next() {
            let name = stray.map_err(at("read", &empty))?.file_name();
            return Err(SnapshotError::Precondition(format!(
                "{} must be empty, since containerd takes it for the root of every image; found {name:?}. Remove it and start again",
                empty.display()
            )));
        }
        let mut store = Store { root: root.to_owned(), entries: BTreeMap::new(), next_file: 0, _lock: lock };
        store.load()?;
        store.sweep()?;
        Ok(store)
    }

    /// Number of snapshots.
    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    /// One snapshot.
    pub(crate) fn stat(&self, name: &str) -> Result<&Record, SnapshotError> {
        self.entries.get(name).map(|e| &e.record).ok_or_else(|| SnapshotError::NotFound(name.to_owned()))
    }

    /// Every snapshot that matches, by name.
    pub(crate) fn list(&self, filter: &Filter) -> Vec<Record> {
        self.entries.values().map(|e| &e.record).filter(|r| filter.matches(r)).cloned().collect()
    }

    /// Where containerd may look for the root of an active snapshot or a view.
    pub(crate) fn mounts(&self, key: &str) -> Result<Bind, SnapshotError> {
        let entry = self.entries.get(key).ok_or_else(|| SnapshotError::NotFound(key.to_owned()))?;
        match (entry.record.kind, entry.record.scratch) {
            (Kind::Committed, _) => {
                Err(SnapshotError::Precondition(format!("snapshot {key:?} is committed; only active ones and views have mounts")))
            }
            (_, true) => Ok(Bind { source: self.scratch(entry.file), writable: true }),
            (_, false) => Ok(Bind { source: self.root.join("empty"), writable: false }),
        }
    }

    /// Answers containerd's `Prepare`.
    ///
    /// With the target label the layer is recorded as committed and the answer is [`SnapshotError::AlreadyExists`], by which
    /// containerd neither downloads nor unpacks it. Without, it is the root of a container.
    pub(crate) fn prepare(
        &mut self,
        key: &str,
        parent: &str,
        labels: impl IntoIterator<Item = (String, String)>,
        now: SystemTime,
    ) -> Result<Bind, SnapshotError> {
        let labels = check_labels(labels)?;
        if let Some(target) = labels.get(TARGET_LABEL).cloned() {
            check_name("key", key)?;
            self.adopt(target, parent, labels, now)
        } else {
            let scratch = is_unpack_key(key);
            self.activate(Kind::Active, key, parent, labels, scratch, now)
        }
    }

    /// Answers containerd's `View`.
    pub(crate) fn view(
        &mut self,
        key: &str,
        parent: &str,
        labels: impl IntoIterator<Item = (String, String)>,
        now: SystemTime,
    ) -> Result<Bind, SnapshotError> {
        let labels = check_labels(labels)?;
        self.activate(Kind::View, key, parent, labels, false, now)
    }

    fn adopt(&mut self, target: String, parent: &str, labels: BTreeMap<String, String>, now: SystemTime) -> Result<Bind, SnapshotError> {
        check_chain_id(&target)?;
        self.check_parent(parent)?;
        let known = self
            .entries
            .values()
            .any(|e| e.record.kind == Kind::Committed && e.record.parent == parent && e.record.labels.get(TARGET_LABEL) == Some(&target));
        if !known {
            // A chain ID fixes its parents, but not under which name they were stored: a parent containerd unpacked itself has another
            // name than one that was adopted. Both may exist; only the name must differ.
            let name = if self.entries.contains_key(&target) { format!("{target}@{parent}") } else { target.clone() };
            check_name("name", &name)?;
            let record = Record {
                version: RECORD_VERSION,
                name,
                parent: parent.to_owned(),
                kind: Kind::Committed,
                labels,
                created_at: now,
                updated_at: now,
                scratch: false,
            };
            self.insert(record)?;
        }
        Err(SnapshotError::AlreadyExists(target))
    }

    fn activate(
        &mut self,
        kind: Kind,
        key: &str,
        parent: &str,
        labels: BTreeMap<String, String>,
        scratch: bool,
        now: SystemTime,
    ) -> Result<Bind, SnapshotError> {
        check_name("key", key)?;
        self.check_parent(parent)?;
        if self.entries.contains_key(key) {
            return Err(SnapshotError::AlreadyExists(key.to_owned()));
        }
        if scratch {
            let path = self.scratch(self.next_file);
            make_dir(&path, 0o755)?;
        }
        let record = Record {
            version: RECORD_VERSION,
            name: key.to_owned(),
            parent: parent.to_owned(),
            kind,
            labels,
            created_at: now,
            updated_at: now,
            scratch,
        };
        self.insert(record)?;
        self.mounts(key)
    }

    fn check_parent(&self, parent: &str) -> Result<(), SnapshotError> {
        if parent.is_empty() {
            return Ok(());
        }
        match self.entries.get(parent) {
            None => Err(SnapshotError::NotFound(parent.to_owned())),
            Some(e) if e.record.kind != Kind::Committed => {
                Err(SnapshotError::Invalid(format!("parent {parent:?} is {}; expected a committed snapshot", e.record.kind.as_str())))
            }
            Some(_) => Ok(()),
        }
    }

    /// Turns an active snapshot into a committed one under `name`. What was written into it is thrown away.
    pub(crate) fn commit(
        &mut self,
        name: &str,
        key: &str,
        labels: impl IntoIterator<Item = (String, String)>,
        now: SystemTime,
    ) -> Result<(), SnapshotError> {
        check_name("name", name)?;
        let labels = check_labels(labels)?;
        let entry = self.entries.get(key).ok_or_else(|| SnapshotError::NotFound(key.to_owned()))?;
        if entry.record.kind != Kind::Active {
            return Err(SnapshotError::Precondition(format!(
                "snapshot {key:?} is {}; only an active one can be committed",
                entry.record.kind.as_str()
            )));
        }
        if self.entries.contains_key(name) {
            return Err(SnapshotError::AlreadyExists(name.to_owned()));
        }
        let file = entry.file;
        let record = Record {
            version: RECORD_VERSION,
            name: name.to_owned(),
            parent: entry.record.parent.clone(),
            kind: Kind::Committed,
            labels,
            created_at: now,
            updated_at: now,
            scratch: false,
        };
        // One rename replaces the active record by the committed one.
        self.write(file, &record)?;
        self.entries.remove(key);
        self.entries.insert(name.to_owned(), Entry { file, record });
        self.clear_scratch(file);
        Ok(())
    }

    /// Changes labels; with `fields`, only `labels` or `labels.<key>`.
    pub(crate) fn update(
        &mut self,
        name: &str,
        labels: impl IntoIterator<Item = (String, String)>,
        fields: &[String],
        now: SystemTime,
    ) -> Result<Record, SnapshotError> {
        let given: BTreeMap<String, String> = labels.into_iter().collect();
        let entry = self.entries.get(name).ok_or_else(|| SnapshotError::NotFound(name.to_owned()))?;
        let mut record = entry.record.clone();
        let file = entry.file;
        if fields.is_empty() || fields.iter().any(|f| f == "labels") {
            record.labels = check_labels(given)?;
        } else {
            let mut merged = record.labels.clone();
            for field in fields {
                let Some(key) = field.strip_prefix("labels.") else {
                    return Err(SnapshotError::Invalid(format!("field {field:?} of a snapshot cannot be changed; only labels can")));
                };
                merged.insert(key.to_owned(), given.get(key).cloned().unwrap_or_default());
            }
            record.labels = check_labels(merged)?;
        }
        record.updated_at = now;
        self.write(file, &record)?;
        self.entries.insert(name.to_owned(), Entry { file, record: record.clone() });
        Ok(record)
    }

    /// Forgets a snapshot that has no children.
    pub(crate) fn remove(&mut self, name: &str) -> Result<(), SnapshotError> {
        let entry = self.entries.get(name).ok_or_else(|| SnapshotError::NotFound(name.to_owned()))?;
        if let Some(child) = self.entries.values().find(|e| e.record.parent == name) {
            return Err(SnapshotError::Precondition(format!(
                "snapshot {name:?} is the parent of {:?}; remove that first",
                child.record.name
            )));
        }
        let file = entry.file;
        let path = self.record_path(file);
        match fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(at("remove", &path)(e)),
            _ => {}
        }
        self.entries.remove(name);
        self.clear_scratch(file);
        Ok(())
    }

    /// Removes scratch directories and half-written files nobody refers to.
    pub(crate) fn sweep(&self) -> Result<(), SnapshotError> {
        let root = self.root.join("scratch");
        for dir in fs::read_dir(&root).map_err(at("read", &root))? {
            let dir = dir.map_err(at("read", &root))?;
            let in_use = dir
                .file_name()
                .to_str()
                .and_then(|n| n.parse::<u64>().ok())
                .is_some_and(|n| self.entries.values().any(|e| e.file == n && e.record.scratch));
            if !in_use {
                fs::remove_dir_all(dir.path()).map_err(at("remove", &dir.path()))?;
            }
        }
        Ok(())
    }

    fn insert(&mut self, record: Record) -> Result<(), SnapshotError> {
        let file = self.next_file;
        self.write(file, &record)?;
        self.next_file = file.saturating_add(1);
        self.entries.insert(record.name.clone(), Entry { file, record });
        Ok(())
    }

    fn write(&self, file: u64, record: &Record) -> Result<(), SnapshotError> {
        let path = self.record_path(file);
        let tmp = path.with_extension("tmp");
        let bytes = serde_json::to_vec(record).map_err(|e| SnapshotError::Internal(format!("cannot encode a record: {e}")))?;
        let durable = record.kind == Kind::Committed;
        let written = (|| {
            let mut out = File::create(&tmp)?;
            out.write_all(&bytes)?;
            if durable {
                out.sync_data()?;
            }
            fs::rename(&tmp, &path)?;
            if durable {
                File::open(self.root.join("snapshots"))?.sync_all()?;
            }
            Ok(())
        })();
        written.map_err(at("write", &path))
    }

    fn load(&mut self) -> Result<(), SnapshotError> {
        let dir = self.root.join("snapshots");
        for item in fs::read_dir(&dir).map_err(at("read", &dir))? {
            let path = item.map_err(at("read", &dir))?.path();
            let extension = path.extension().and_then(|e| e.to_str());
            let number = path.file_stem().and_then(|s| s.to_str()).and_then(|s| s.parse::<u64>().ok());
            match (extension, number) {
                (Some("json"), Some(file)) => match read_record(&path) {
                    Ok(record) => {
                        self.next_file = self.next_file.max(file.saturating_add(1));
                        self.entries.insert(record.name.clone(), Entry { file, record });
                    }
                    Err(why) => {
                        tracing::error!(path = %path.display(), %why, "snapshot record set aside; pull the image it belonged to again");
                        fs::rename(&path, path.with_extension("json.bad")).map_err(at("rename", &path))?;
                    }
                },
                (Some("tmp"), _) => fs::remove_file(&path).map_err(at("remove", &path))?,
                _ => {}
            }
        }
        Ok(())
    }

    fn clear_scratch(&self, file: u64) {
        let path = self.scratch(file);
        if let Err(e) = fs::remove_dir_all(&path)
            && e.kind() != io::ErrorKind::NotFound
        {
            // The record is gone already; the next sweep tries again.
            tracing::warn!(path = %path.display(), error = %e, "scratch directory left behind for now");
        }
    }

    fn record_path(&self, file: u64) -> PathBuf {
        self.root.join("snapshots").join(format!("{file}.json"))
    }

    fn scratch(&self, file: u64) -> PathBuf {
        self.root.join("scratch").join(file.to_string())
    }
}

fn read_record(path: &Path) -> Result<Record, String> {
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(|e| e.to_string())?;
    file.take(MAX_RECORD_FILE + 1).read_to_end(&mut bytes).map_err(|e| e.to_string())?;
    if bytes.len() as u64 > MAX_RECORD_FILE {
        return Err(format!("longer than {MAX_RECORD_FILE} bytes"));
    }
    let record: Record = serde_json::from_slice(&bytes).map_err(|e| e.to_string())?;
    if record.version != RECORD_VERSION {
        return Err(format!("version {}; expected {RECORD_VERSION}", record.version));
    }
    check_name("name", &record.name).map_err(|e| e.to_string())?;
    check_labels(record.labels.clone()).map_err(|e| e.to_string())?;
    Ok(record)
}

fn lock(path: &Path) -> Result<Flock<File>, SnapshotError> {
    let file = File::create(path).map_err(at("create", path))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| {
        if errno == nix::errno::Errno::EWOULDBLOCK {
            SnapshotError::Precondition(format!(
                "{} is held: another kata-cc-node uses this state directory; stop it or choose another",
                path.display()
            ))
        } else {
            at("lock", path)(errno.into())
        }
    })
}

fn make_dir(path: &Path, mode: u32) -> Result<(), SnapshotError> {
    match DirBuilder::new().mode(mode).create(path) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            DirBuilder::new().mode(mode).recursive(true).create(path).map_err(at("create", path))?;
        }
        Err(e) => return Err(at("create", path)(e)),
        Ok(()) => {}
    }
    // The mode given above is cut by the umask.
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(at("change the mode of", path))
}

fn at(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> SnapshotError {
    let path = path.to_owned();
    move |source| SnapshotError::State { action, path, source }
}

#[cfg(test)]
#[path = "store_tests.rs"]
mod tests;
