//! The initial RAM file system: a `newc` cpio archive (Linux Documentation/driver-api/early-userspace/buffer-format.rst).
//!
//! The archive is measured, so the writer is a function of its entries alone: sorted by path, owner 0, time 0, inode
//! numbers counted, no matter who builds it where. The reader accepts what the writer writes and little else; it is for
//! tools and tests that ask what is in an image.
//!
//! Invariant: one tree, one byte string. Each entry's parent directory precedes it, because the kernel makes none.

mod label;
mod read;

use std::collections::BTreeMap;

pub use label::{ImageKind, LABEL_PATH, Label, LabelError, label};
pub use read::{CpioError, Item, read};

/// Name of the entry that ends an archive.
const TRAILER: &str = "TRAILER!!!";
const MAGIC: &[u8; 6] = b"070701";
const HEADER_LEN: usize = 110;
/// What the kernel accepts as a name (PATH_MAX, with its NUL).
const MAX_PATH: usize = 4096;

const S_IFDIR: u32 = 0o040_000;
const S_IFCHR: u32 = 0o020_000;
const S_IFREG: u32 = 0o100_000;
const S_IFLNK: u32 = 0o120_000;

/// What is at a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Node {
    /// A directory with these permission bits.
    Directory {
        /// Permission bits.
        mode: u32,
    },
    /// A regular file.
    File {
        /// Permission bits.
        mode: u32,
        /// Its content.
        content: Vec<u8>,
    },
    /// A symbolic link.
    Symlink {
        /// Where to.
        target: String,
    },
    /// A character device.
    CharDevice {
        /// Permission bits.
        mode: u32,
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
}

impl Node {
    const fn mode(&self) -> u32 {
        match self {
            Self::Directory { mode } => S_IFDIR | *mode,
            Self::File { mode, .. } => S_IFREG | *mode,
            Self::Symlink { .. } => S_IFLNK | 0o777,
            Self::CharDevice { mode, .. } => S_IFCHR | *mode,
        }
    }

    const fn data(&self) -> &[u8] {
        match self {
            Self::File { content, .. } => content.as_slice(),
            Self::Symlink { target } => target.as_bytes(),
            Self::Directory { .. } | Self::CharDevice { .. } => &[],
        }
    }
}

/// An archive in the making.
#[derive(Debug, Clone, Default)]
pub struct Archive(BTreeMap<String, Node>);

impl Archive {
    /// An empty archive.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The least every guest of ours needs: mount points, and the two device nodes the kernel opens or programs expect
    /// before `/dev` is mounted (without `/dev/console`, init would start without standard output).
    #[must_use]
    pub fn with_base_tree() -> Self {
        let mut tree = Self::new();
        for path in ["dev", "etc", "proc", "root", "run", "sbin", "sys", "tmp", "var"] {
            let mode = if path == "tmp" { 0o1777 } else { 0o755 };
            tree.0.insert(path.into(), Node::Directory { mode });
        }
        tree.0.insert("dev/console".into(), Node::CharDevice { mode: 0o600, major: 5, minor: 1 });
        tree.0.insert("dev/null".into(), Node::CharDevice { mode: 0o666, major: 1, minor: 3 });
        tree
    }

    /// Adds a node. The path is relative to the root, without `.` or `..`; its parent must be there.
    ///
    /// # Errors
    /// When the path is not of that form, its parent is no directory in the archive, or it is taken.
    pub fn add(&mut self, path: &str, node: Node) -> Result<(), InitrdError> {
        if !is_plain(path) || path == TRAILER {
            return Err(InitrdError::Path { path: path.into() });
        }
        if let Some((parent, _)) = path.rsplit_once('/')
            && !matches!(self.0.get(parent), Some(Node::Directory { .. }))
        {
            return Err(InitrdError::NoParent { path: path.into() });
        }
        let special = match &node {
            Node::Directory { mode } | Node::File { mode, .. } | Node::CharDevice { mode, .. } => mode & !0o7777 != 0,
            Node::Symlink { target } => target.is_empty() || target.len() >= MAX_PATH || target.contains('\0'),
        };
        if special || u32::try_from(node.data().len()).is_err() {
            return Err(InitrdError::Node { path: path.into() });
        }
        if self.0.contains_key(path) {
            return Err(InitrdError::Taken { path: path.into() });
        }
        self.0.insert(path.into(), node);
        Ok(())
    }

    /// Adds an executable.
    ///
    /// # Errors
    /// As [`Self::add`].
    pub fn add_program(&mut self, path: &str, content: Vec<u8>) -> Result<(), InitrdError> {
        self.add(path, Node::File { mode: 0o755, content })
    }

    /// The archive's bytes.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let content: usize = self.0.iter().map(|(path, node)| HEADER_LEN + path.len() + node.data().len() + 8).sum();
        let mut out = Vec::with_capacity(content + 512);
        // A parent's path is a prefix of its children's, so the order of the map puts it before them.
        for (inode, (path, node)) in (1..).zip(&self.0) {
            entry(&mut out, inode, path, Some(node));
        }
        entry(&mut out, 0, TRAILER, None);
        out.resize(out.len().next_multiple_of(512), 0);
        out
    }
}

/// A relative path of plain components.
fn is_plain(path: &str) -> bool {
    path.len() < MAX_PATH && !path.contains('\0') && path.split('/').all(|part| !part.is_empty() && part != "." && part != "..")
}

fn entry(out: &mut Vec<u8>, inode: u32, path: &str, node: Option<&Node>) {
    let data = node.map_or(&[][..], Node::data);
    let links = match node {
        Some(Node::Directory { .. }) => 2,
        _ => 1,
    };
    let (major, minor) = match node {
        Some(Node::CharDevice { major, minor, .. }) => (*major, *minor),
        _ => (0, 0),
    };
    out.extend_from_slice(MAGIC);
    let size = u32::try_from(data.len()).expect("add refuses larger files");
    let name_size = u32::try_from(path.len() + 1).expect("add refuses longer paths");
    // inode, mode, uid, gid, links, mtime, size, device of the file (2), device number (2), name size, checksum
    for field in [inode, node.map_or(0, Node::mode), 0, 0, links, 0, size, 0, 0, major, minor, name_size, 0] {
        out.extend_from_slice(format!("{field:08x}").as_bytes());
    }
    out.extend_from_slice(path.as_bytes());
    out.push(0);
    out.resize(out.len().next_multiple_of(4), 0);
    out.extend_from_slice(data);
    out.resize(out.len().next_multiple_of(4), 0);
}

/// Why a node cannot be added.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InitrdError {
    /// Not a plain relative path.
    #[error("expected a relative path of plain components, found {path:?}")]
    Path {
        /// What was given.
        path: String,
    },
    /// The kernel would silently not unpack it.
    #[error("{path:?} has no parent directory in the archive; add that first")]
    NoParent {
        /// What was given.
        path: String,
    },
    /// Two nodes at one path: which one counts would depend on the reader.
    #[error("{path:?} is in the archive already")]
    Taken {
        /// What was given.
        path: String,
    },
    /// Mode, target or size out of range.
    #[error("{path:?}: expected permission bits only, a non-empty link target, and less than 4 GiB")]
    Node {
        /// What was given.
        path: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Archive {
        let mut archive = Archive::with_base_tree();
        archive.add_program("sbin/agent", b"ELF".to_vec()).unwrap();
        archive.add("init", Node::Symlink { target: "sbin/agent".into() }).unwrap();
        archive
    }

    #[test]
    fn reads_back_what_it_wrote() {
        let archive = sample();
        let items = read(&archive.to_bytes()).unwrap();
        let back: BTreeMap<_, _> = items.into_iter().map(|item| (item.path, item.node)).collect();
        assert_eq!(back, archive.0);
    }

    #[test]
    fn order_of_adding_does_not_matter() {
        let (mut a, mut b) = (Archive::with_base_tree(), Archive::with_base_tree());
        let files = [("x", b"1"), ("sbin/y", b"2")];
        for (path, content) in files {
            a.add_program(path, content.to_vec()).unwrap();
        }
        for (path, content) in files.into_iter().rev() {
            b.add_program(path, content.to_vec()).unwrap();
        }
        assert_eq!(a.to_bytes(), b.to_bytes());
    }

    #[test]
    fn parents_precede_children_even_beside_names_that_sort_between() {
        let mut archive = Archive::new();
        for path in ["a", "a/b", "a-c", "a/b/d"] {
            archive.add(path, Node::Directory { mode: 0o755 }).unwrap();
        }
        let items = read(&archive.to_bytes()).unwrap();
        let at = |path: &str| items.iter().position(|item| item.path == path).unwrap();
        assert!(at("a") < at("a/b") && at("a/b") < at("a/b/d"));
    }

    #[test]
    fn refuses_paths_that_are_not_plain() {
        let mut archive = Archive::new();
        for path in ["", "/init", "a//b", "./a", "../a", "a/", "a\0b", TRAILER, &"x".repeat(MAX_PATH)] {
            let error = archive.add_program(path, vec![]).unwrap_err();
            assert!(matches!(error, InitrdError::Path { .. }), "{path:?}: {error}");
        }
    }

    #[test]
    fn refuses_orphans_duplicates_and_special_modes() {
        let mut archive = sample();
        assert_eq!(archive.add_program("usr/x", vec![]), Err(InitrdError::NoParent { path: "usr/x".into() }));
        assert_eq!(archive.add_program("init/x", vec![]), Err(InitrdError::NoParent { path: "init/x".into() }));
        assert_eq!(archive.add_program("init", vec![]), Err(InitrdError::Taken { path: "init".into() }));
        assert_eq!(archive.add("d", Node::Directory { mode: S_IFDIR }), Err(InitrdError::Node { path: "d".into() }));
        assert_eq!(archive.add("l", Node::Symlink { target: String::new() }), Err(InitrdError::Node { path: "l".into() }));
    }
}
