//! One snapshot as this service knows it, and the names it may have.
//!
//! A record says what containerd may ask about a snapshot; it never holds file content, because there is none: the guest pulls
//! the image itself. Invariant: every [`Record`] has passed [`check_name`] and [`check_labels`], so whatever is on disk or in
//! memory fits the bounds below.

use std::collections::BTreeMap;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use crate::error::SnapshotError;

/// Label by which containerd says: this snapshot will be known under that chain ID. A snapshotter that already has it answers
/// "already exists", and the layer is neither downloaded nor unpacked.
pub(crate) const TARGET_LABEL: &str = "containerd.io/snapshot.ref";

/// Longest name or key. containerd's are `<namespace>/<number>/<key>`, about 160 bytes.
const MAX_NAME: usize = 1024;
/// containerd's own bound for one label: key and value together.
const MAX_LABEL: usize = 4096;
/// More labels than containerd ever sends; a bound so that one call cannot fill the disk.
const MAX_LABELS: usize = 128;

/// What a snapshot is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Kind {
    /// Read-only view for somebody who looks into an image.
    View,
    /// The root of a container, or an unpacking in progress.
    Active,
    /// A layer of an image (by name only).
    Committed,
}

impl Kind {
    /// The word containerd's filter language uses.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Kind::View => "view",
            Kind::Active => "active",
            Kind::Committed => "committed",
        }
    }
}

/// One snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Record {
    /// Format of this file.
    pub(crate) version: u32,
    /// Name (committed) or key (active, view); unique.
    pub(crate) name: String,
    /// Name of the parent, empty for none.
    pub(crate) parent: String,
    /// What it is.
    pub(crate) kind: Kind,
    /// Labels as containerd gave them.
    pub(crate) labels: BTreeMap<String, String>,
    /// When it was made.
    pub(crate) created_at: SystemTime,
    /// When it was last changed.
    pub(crate) updated_at: SystemTime,
    /// Whether containerd unpacks a layer into it and so needs a private writable directory until it is committed.
    pub(crate) scratch: bool,
}

/// Version written into new records.
pub(crate) const RECORD_VERSION: u32 = 1;

/// Refuses names that are empty, too long, or hold control characters.
pub(crate) fn check_name(what: &'static str, name: &str) -> Result<(), SnapshotError> {
    if name.is_empty() {
        return Err(SnapshotError::Invalid(format!("{what} is empty; containerd must send one")));
    }
    if name.len() > MAX_NAME {
        return Err(SnapshotError::Invalid(format!("{what} has {} bytes; at most {MAX_NAME} are allowed", name.len())));
    }
    if name.chars().any(char::is_control) {
        return Err(SnapshotError::Invalid(format!("{what} holds a control character")));
    }
    Ok(())
}

/// Refuses labels beyond containerd's own bounds, and drops empty values as containerd's store does.
pub(crate) fn check_labels(labels: impl IntoIterator<Item = (String, String)>) -> Result<BTreeMap<String, String>, SnapshotError> {
    let mut checked = BTreeMap::new();
    for (key, value) in labels {
        if key.is_empty() || key.len() + value.len() > MAX_LABEL {
            return Err(SnapshotError::Invalid(format!(
                "a label has {} bytes; expected a key and at most {MAX_LABEL} bytes for key and value together",
                key.len() + value.len()
            )));
        }
        if !value.is_empty() {
            checked.insert(key, value);
        }
    }
    if checked.len() > MAX_LABELS {
        return Err(SnapshotError::Invalid(format!("{} labels; at most {MAX_LABELS} are allowed", checked.len())));
    }
    Ok(checked)
}

/// Refuses a chain ID that is not `<algorithm>:<hex>`.
pub(crate) fn check_chain_id(target: &str) -> Result<(), SnapshotError> {
    let valid = target.split_once(':').is_some_and(|(algorithm, hex)| {
        let length = match algorithm {
            "sha256" => 64,
            "sha384" => 96,
            "sha512" => 128,
            _ => return false,
        };
        hex.len() == length && hex.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
    });
    if valid {
        Ok(())
    } else {
        Err(SnapshotError::Invalid(format!("label {TARGET_LABEL} must hold a chain ID such as sha256:<64 hex digits>")))
    }
}

/// Whether a key is the one containerd unpacks a layer under (`extract-<unique> <chain ID>`, possibly behind `<namespace>/<number>/`).
pub(crate) fn is_unpack_key(key: &str) -> bool {
    key.rsplit('/').next().unwrap_or(key).starts_with("extract-")
}
