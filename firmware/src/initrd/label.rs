//! What an initrd says it is: the file [`LABEL_PATH`], which `cargo xtask image` puts into each.
//!
//! The label is in the measured bytes, so two kinds of image never measure the same. It is for people and tools that must not take one for
//! the other; nothing in the guest acts on it, and it proves nothing: whoever makes an initrd makes its label.
//!
//! The reader here takes initrds of other projects too, which [`super::read`] refuses: any owner and time, several archives one behind the
//! other. It reads once from front to end in constant memory. Source: Linux Documentation/driver-api/early-userspace/buffer-format.rst.

use std::fmt;
use std::io::{self, BufRead, BufReader, Read};
use std::str::FromStr;

use super::{HEADER_LEN, MAGIC, MAX_PATH, Node, S_IFREG, TRAILER};

/// Where the label is.
pub const LABEL_PATH: &str = "etc/kata-cc-image";
/// The same format with checksums.
const MAGIC_CRC: &[u8; 6] = b"070702";
/// Longest label, in bytes.
const MAX_LABEL: usize = 256;
/// Longest version, in bytes.
const MAX_VERSION: usize = 64;

/// What an image is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ImageKind {
    /// May have secrets of value.
    Production,
    /// Lets somebody look into it. None is built; the name is kept so that nobody gives it another meaning.
    Debug,
    /// Measured and signed for by a simulated TEE.
    Simulation,
    /// A yardstick of benches, without an agent.
    Bench,
}

impl ImageKind {
    const ALL: [Self; 4] = [Self::Production, Self::Debug, Self::Simulation, Self::Bench];

    /// As in the label.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Production => "production",
            Self::Debug => "debug",
            Self::Simulation => "simulation",
            Self::Bench => "bench",
        }
    }
}

impl fmt::Display for ImageKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// An image's kind and version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Label {
    kind: ImageKind,
    version: String,
}

impl Label {
    /// A label.
    ///
    /// # Errors
    /// When the version is empty, longer than 64 bytes or has other characters than letters, digits, `.`, `+`, `-`.
    pub fn new(kind: ImageKind, version: &str) -> Result<Self, LabelError> {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b".+-".contains(&byte);
        if version.is_empty() || version.len() > MAX_VERSION || !version.bytes().all(plain) {
            return Err(LabelError::Text { found: version.chars().take(MAX_VERSION).collect() });
        }
        Ok(Self { kind, version: version.to_owned() })
    }

    /// The kind.
    #[must_use]
    pub const fn kind(&self) -> ImageKind {
        self.kind
    }

    /// The version.
    #[must_use]
    pub fn version(&self) -> &str {
        &self.version
    }

    /// The file of it.
    #[must_use]
    pub fn to_node(&self) -> Node {
        Node::File { mode: 0o644, content: self.to_string().into_bytes() }
    }
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "kind={}\nversion={}", self.kind, self.version)
    }
}

impl FromStr for Label {
    type Err = LabelError;

    fn from_str(text: &str) -> Result<Self, LabelError> {
        let parts = || {
            let (kind, version) = text.strip_prefix("kind=")?.strip_suffix('\n')?.split_once("\nversion=")?;
            Some((ImageKind::ALL.into_iter().find(|known| known.as_str() == kind)?, version))
        };
        let (kind, version) = parts().ok_or_else(|| LabelError::Text { found: text.chars().take(MAX_VERSION).collect() })?;
        Self::new(kind, version)
    }
}

/// The label of an initrd; `None` where it has none.
///
/// What follows the last `newc` archive and is compressed is not looked into, nor is an initrd that is compressed as a whole: `None`.
///
/// # Errors
/// When reading fails; when an archive is malformed or cut short; when there is a label that is no regular file, is not understood, or is
/// not the only one.
pub fn label(initrd: impl Read) -> Result<Option<Label>, LabelError> {
    let mut source = Source { inner: BufReader::new(initrd), at: 0 };
    let mut found = None;
    let mut inside = false;
    loop {
        if !inside && !source.skip_zeros()? {
            return Ok(found);
        }
        let start = source.at;
        let mut header = [0; HEADER_LEN];
        let (magic, fields) = header.split_at_mut(MAGIC.len());
        let complete = source.fill_or_end(magic)?;
        if !complete || (magic != MAGIC && magic != MAGIC_CRC) {
            // Between archives it is something compressed; inside of one it is damage.
            return if inside { Err(LabelError::Header { at: start }) } else { Ok(found) };
        }
        source.fill(fields)?;
        let [mode, size, name_size] = [1, 6, 11].map(|field| number(fields, field));
        let (Some(mode), Some(size), Some(name_size)) = (mode, size, name_size) else { return Err(LabelError::Header { at: start }) };
        let name_size = usize::try_from(name_size).ok().filter(|size| (1..=MAX_PATH).contains(size));
        let mut name = vec![0; name_size.ok_or(LabelError::Header { at: start })?];
        source.fill(&mut name)?;
        if name.pop() != Some(0) {
            return Err(LabelError::Header { at: start });
        }
        source.align(start)?;
        inside = name != TRAILER.as_bytes();
        if inside && is_label(&name) {
            let content = source.label_content(mode, size)?;
            if found.replace(content.parse()?).is_some() {
                return Err(LabelError::Two);
            }
        } else {
            source.skip(size.into())?;
        }
        if inside {
            source.align(start)?;
        }
    }
}

/// Field `index` of a header: eight hexadecimal digits.
fn number(fields: &[u8], index: usize) -> Option<u32> {
    let digits = fields.chunks_exact(8).nth(index)?;
    let digits = std::str::from_utf8(digits).ok().filter(|d| d.bytes().all(|b| b.is_ascii_hexdigit()))?;
    u32::from_str_radix(digits, 16).ok()
}

/// Whether a name leads there; `cpio` writes `./etc/…`, others `/etc/…`.
fn is_label(name: &[u8]) -> bool {
    let parts = name.split(|byte| *byte == b'/').filter(|part| !part.is_empty() && *part != b".");
    parts.eq(LABEL_PATH.as_bytes().split(|byte| *byte == b'/'))
}

/// Bytes, and how many of them are read.
struct Source<R> {
    inner: BufReader<R>,
    at: u64,
}

impl<R: Read> Source<R> {
    fn fill(&mut self, to: &mut [u8]) -> Result<(), LabelError> {
        if self.fill_or_end(to)? { Ok(()) } else { Err(LabelError::Cut { at: self.at }) }
    }

    /// Whether there was enough.
    fn fill_or_end(&mut self, to: &mut [u8]) -> Result<bool, LabelError> {
        match self.inner.read_exact(to) {
            Ok(()) => {
                self.at = self.at.saturating_add(to.len() as u64);
                Ok(true)
            }
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
            Err(error) => Err(LabelError::Read(error)),
        }
    }

    fn skip(&mut self, count: u64) -> Result<(), LabelError> {
        let skipped = io::copy(&mut self.inner.by_ref().take(count), &mut io::sink()).map_err(LabelError::Read)?;
        self.at = self.at.saturating_add(skipped);
        if skipped == count { Ok(()) } else { Err(LabelError::Cut { at: self.at }) }
    }

    /// To the next multiple of four bytes after `start`.
    fn align(&mut self, start: u64) -> Result<(), LabelError> {
        let over = self.at.saturating_sub(start) % 4;
        if over == 0 { Ok(()) } else { self.skip(4_u64.saturating_sub(over)) }
    }

    /// Whether something follows them.
    fn skip_zeros(&mut self) -> Result<bool, LabelError> {
        loop {
            let buffer = self.inner.fill_buf().map_err(LabelError::Read)?;
            if buffer.is_empty() {
                return Ok(false);
            }
            let zeros = buffer.iter().take_while(|byte| **byte == 0).count();
            let more = zeros < buffer.len();
            self.inner.consume(zeros);
            self.at = self.at.saturating_add(zeros as u64);
            if more {
                return Ok(true);
            }
        }
    }

    fn label_content(&mut self, mode: u32, size: u32) -> Result<String, LabelError> {
        let size = usize::try_from(size).ok().filter(|size| *size <= MAX_LABEL && mode & !0o7777 == S_IFREG);
        let mut content = vec![0; size.ok_or(LabelError::Node)?];
        self.fill(&mut content)?;
        String::from_utf8(content).map_err(|_| LabelError::Text { found: "bytes that are no text".into() })
    }
}

/// Why an initrd does not say what it is, or what it says does not count.
#[derive(Debug, thiserror::Error)]
pub enum LabelError {
    /// The bytes cannot be had.
    #[error("cannot read it")]
    Read(#[source] io::Error),
    /// Ends inside an archive.
    #[error("it ends inside a cpio archive, after {at} bytes")]
    Cut {
        /// How many there are.
        at: u64,
    },
    /// Not a `newc` header where one must be.
    #[error("expected the header of an entry of a newc archive at offset {at}")]
    Header {
        /// Where.
        at: u64,
    },
    /// Something else at the label's place.
    #[error("expected {LABEL_PATH} to be a regular file of at most {MAX_LABEL} bytes")]
    Node,
    /// Not a label.
    #[error("{LABEL_PATH}: expected the lines kind=production, debug, simulation or bench, and version=…, found {found:?}")]
    Text {
        /// Its beginning.
        found: String,
    },
    /// Which one counts would depend on the reader.
    #[error("{LABEL_PATH} is in it twice; expected one kind")]
    Two,
}

#[cfg(test)]
mod tests {
    use super::super::Archive;
    use super::*;

    fn labelled(text: &str) -> Vec<u8> {
        let mut archive = Archive::with_base_tree();
        archive.add(LABEL_PATH, Node::File { mode: 0o644, content: text.as_bytes().to_vec() }).unwrap();
        archive.add_program("init", vec![7; 1001]).unwrap();
        archive.to_bytes()
    }

    fn of(bytes: &[u8]) -> Result<Option<Label>, LabelError> {
        label(bytes)
    }

    #[test]
    fn reads_what_it_wrote() {
        for kind in ImageKind::ALL {
            let written = Label::new(kind, "1.2.3-rc.1+x").unwrap();
            assert_eq!(of(&labelled(&written.to_string())).unwrap(), Some(written));
        }
    }

    #[test]
    fn an_initrd_without_a_label_has_none() {
        let plain = Archive::with_base_tree().to_bytes();
        // gzip's magic, alone and behind an archive as early microcode has it
        for bytes in
            [b"".to_vec(), b"initrd".to_vec(), vec![0; 64], plain.clone(), b"\x1f\x8b\x08".to_vec(), [&plain[..], b"\x1f\x8b\x08"].concat()]
        {
            assert_eq!(of(&bytes).unwrap(), None);
        }
    }

    #[test]
    fn finds_a_label_of_another_writer_and_in_a_later_archive() {
        let text = "kind=simulation\nversion=1\n";
        let mut foreign = labelled(text);
        // Owner and time of the first entry, which the strict reader refuses.
        foreign[29] = b'1';
        foreign[53] = b'1';
        assert!(super::super::read(&foreign).is_err());
        assert_eq!(of(&foreign).unwrap().unwrap().kind(), ImageKind::Simulation);
        let second = [Archive::with_base_tree().to_bytes(), labelled(text)].concat();
        assert_eq!(of(&second).unwrap().unwrap().kind(), ImageKind::Simulation);
        for name in ["./etc/kata-cc-image", "/etc/kata-cc-image", "etc//kata-cc-image"] {
            assert!(is_label(name.as_bytes()), "{name}");
        }
        for name in ["etc/kata-cc-image2", "x/etc/kata-cc-image", "etc", "etc/../etc/kata-cc-image"] {
            assert!(!is_label(name.as_bytes()), "{name}");
        }
    }

    #[test]
    fn refuses_a_label_that_is_not_understood() {
        for text in [
            "",
            "kind=production\n",
            "kind=Production\nversion=1\n",
            "kind=prod\nversion=1\n",
            "kind=production\nversion=1",
            "kind=production\nversion=\n",
            "kind=production\nversion=1 \n",
            "kind=production\nversion=1\nkind=simulation\n",
            "version=1\nkind=production\n",
            " kind=production\nversion=1\n",
        ] {
            assert!(matches!(of(&labelled(text)), Err(LabelError::Text { .. })), "{text:?}");
        }
        let long = format!("kind=production\nversion={}\n", "1".repeat(MAX_VERSION + 1));
        assert!(matches!(of(&labelled(&long)), Err(LabelError::Text { .. })));
        assert!(matches!(of(&labelled(&"x".repeat(MAX_LABEL + 1))), Err(LabelError::Node)));
    }

    #[test]
    fn refuses_two_labels() {
        let one = labelled("kind=production\nversion=1\n");
        assert!(matches!(of(&[&one[..], &labelled("kind=simulation\nversion=1\n")].concat()), Err(LabelError::Two)));
        assert!(matches!(of(&[&one[..], &one].concat()), Err(LabelError::Two)));
    }

    #[test]
    fn refuses_a_label_that_is_a_link() {
        let mut archive = Archive::with_base_tree();
        archive.add(LABEL_PATH, Node::Symlink { target: "x".into() }).unwrap();
        assert!(matches!(of(&archive.to_bytes()), Err(LabelError::Node)));
    }

    #[test]
    fn refuses_an_archive_cut_after_its_first_entry_began() {
        let whole = labelled("kind=production\nversion=1\n");
        let end = whole.windows(TRAILER.len()).rposition(|w| w == TRAILER.as_bytes()).unwrap() + TRAILER.len() + 1;
        for length in MAGIC.len()..end {
            assert!(of(&whole[..length]).is_err(), "{length}");
        }
        assert!(of(&whole[..end.next_multiple_of(4)]).unwrap().is_some());
    }

    #[test]
    fn refuses_damage_in_an_archive() {
        let whole = labelled("kind=production\nversion=1\n");
        // A digit of the size that is none; a size that leads nowhere; the second entry's magic; a name without its end.
        let second = 110 + 4 + 2;
        for (offset, bytes) in
            [(54, &b"+0000000"[..]), (54, b"fffffff0"), (second, b"x"), (94, b"00000000"), (94, b"ffffffff"), (113, b"x")]
        {
            let mut bad = whole.clone();
            bad[offset..offset + bytes.len()].copy_from_slice(bytes);
            assert!(of(&bad).is_err(), "{offset} {bytes:?}");
        }
    }
}
