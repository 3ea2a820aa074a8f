//! Reading a `newc` archive: strict, bounded, without unpacking anything.

use super::{HEADER_LEN, MAGIC, MAX_PATH, Node, S_IFCHR, S_IFDIR, S_IFLNK, S_IFREG, TRAILER, is_plain};

/// More entries than this no initrd of ours has.
const MAX_ENTRIES: usize = 1 << 16;

/// One entry of an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    /// Path relative to the root.
    pub path: String,
    /// What is there.
    pub node: Node,
}

/// The entries of an archive, in its order.
///
/// # Errors
/// When it is not an archive as [`super::Archive`] writes them: of root's, without times, of plain paths, ended.
pub fn read(archive: &[u8]) -> Result<Vec<Item>, CpioError> {
    let mut items = Vec::new();
    let mut at = 0_usize;
    loop {
        let entry = archive.get(at..).ok_or(CpioError::Cut { at })?;
        let header = Header::read(entry).ok_or(CpioError::Header { at })?;
        let name_end = HEADER_LEN.checked_add(header.name_size).ok_or(CpioError::Cut { at })?;
        if header.name_size > MAX_PATH {
            return Err(CpioError::Header { at });
        }
        let name = entry.get(HEADER_LEN..name_end).ok_or(CpioError::Cut { at })?;
        let path = name.strip_suffix(&[0]).and_then(|n| std::str::from_utf8(n).ok()).ok_or(CpioError::Path { at })?;
        let data_start = name_end.next_multiple_of(4);
        let data_end = data_start.checked_add(header.size).ok_or(CpioError::Cut { at })?;
        let data = entry.get(data_start..data_end).ok_or(CpioError::Cut { at })?;
        let next = at + data_end.next_multiple_of(4);
        if path == TRAILER {
            let rest = archive.get(next..).unwrap_or_default();
            // Linux would unpack a second archive here; nothing may hide behind the end.
            return if rest.iter().all(|byte| *byte == 0) { Ok(items) } else { Err(CpioError::Trailing { at: next }) };
        }
        if !is_plain(path) {
            return Err(CpioError::Path { at });
        }
        if items.len() == MAX_ENTRIES {
            return Err(CpioError::TooMany);
        }
        let node = header.node(data).ok_or(CpioError::Node { path: path.into() })?;
        items.push(Item { path: path.into(), node });
        at = next;
    }
}

/// The fields of a header that may differ from entry to entry.
struct Header {
    mode: u32,
    size: usize,
    major: u32,
    minor: u32,
    name_size: usize,
}

impl Header {
    fn read(entry: &[u8]) -> Option<Self> {
        let fields = entry.get(..HEADER_LEN)?.strip_prefix(MAGIC)?;
        let mut numbers = [0_u32; 13];
        for (number, digits) in numbers.iter_mut().zip(fields.chunks_exact(8)) {
            let digits = std::str::from_utf8(digits).ok().filter(|d| d.bytes().all(|b| b.is_ascii_hexdigit()))?;
            *number = u32::from_str_radix(digits, 16).ok()?;
        }
        let [_, mode, uid, gid, _, mtime, size, _, _, major, minor, name_size, check] = numbers;
        let ours = uid == 0 && gid == 0 && mtime == 0 && check == 0;
        ours.then_some(Self { mode, size: size as usize, major, minor, name_size: name_size as usize })
    }

    fn node(&self, data: &[u8]) -> Option<Node> {
        let mode = self.mode & 0o7777;
        match self.mode & !0o7777 {
            S_IFDIR if data.is_empty() => Some(Node::Directory { mode }),
            S_IFREG => Some(Node::File { mode, content: data.to_vec() }),
            S_IFLNK => Some(Node::Symlink { target: String::from_utf8(data.to_vec()).ok()? }),
            S_IFCHR if data.is_empty() => Some(Node::CharDevice { mode, major: self.major, minor: self.minor }),
            _ => None,
        }
    }
}

/// Why bytes are not an archive of ours.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CpioError {
    /// Ends before its trailer.
    #[error("the archive ends inside the entry at offset {at}")]
    Cut {
        /// Where the entry starts.
        at: usize,
    },
    /// Not a `newc` header of root's without a time.
    #[error("expected a newc header with owner 0 and time 0 at offset {at}")]
    Header {
        /// Where.
        at: usize,
    },
    /// A name that is not a plain relative path.
    #[error("the entry at offset {at} has no plain relative path")]
    Path {
        /// Where.
        at: usize,
    },
    /// A kind of node that has no business in an initrd.
    #[error("{path:?} is not a directory, file, symbolic link or character device, or has content it must not have")]
    Node {
        /// Which.
        path: String,
    },
    /// Bytes after the end.
    #[error("found bytes after the end of the archive, at offset {at}")]
    Trailing {
        /// Where.
        at: usize,
    },
    /// More entries than plausible.
    #[error("more than {MAX_ENTRIES} entries")]
    TooMany,
}

#[cfg(test)]
mod tests {
    use super::super::Archive;
    use super::*;

    fn archive() -> Vec<u8> {
        let mut archive = Archive::with_base_tree();
        archive.add_program("init", vec![7; 1000]).unwrap();
        archive.to_bytes()
    }

    #[test]
    fn refuses_an_archive_cut_anywhere() {
        let whole = archive();
        let end = whole.windows(TRAILER.len()).rposition(|w| w == TRAILER.as_bytes()).unwrap() + TRAILER.len() + 1;
        for length in 0..end {
            assert!(read(&whole[..length]).is_err(), "{length}");
        }
        assert!(read(&whole[..end.next_multiple_of(4)]).is_ok());
    }

    #[test]
    fn refuses_an_archive_behind_the_archive() {
        let mut two = archive();
        let at = two.windows(TRAILER.len()).rposition(|w| w == TRAILER.as_bytes()).unwrap() + TRAILER.len() + 1;
        two.extend(archive());
        assert_eq!(read(&two), Err(CpioError::Trailing { at: at.next_multiple_of(4) }));
    }

    #[test]
    fn refuses_another_owner_time_or_format() {
        let whole = archive();
        // uid, gid, mtime, checksum; then a digit that is none, then the magic
        for (offset, byte) in [(22, b'1'), (30, b'1'), (53, b'1'), (109, b'1'), (53, b'+'), (5, b'2')] {
            let mut bad = whole.clone();
            bad[offset] = byte;
            assert_eq!(read(&bad), Err(CpioError::Header { at: 0 }), "{offset}");
        }
    }

    #[test]
    fn refuses_sizes_that_lead_nowhere() {
        let mut bad = archive();
        bad[54..62].copy_from_slice(b"ffffffff");
        assert_eq!(read(&bad), Err(CpioError::Cut { at: 0 }));
    }
}
