//! A reader of layer archives: ustar, GNU and PAX headers, nothing more, one entry after the other.
//!
//! Not a general tar library. It knows the types a layer may hold (OCI image-spec "layer.md") and refuses the rest, and it refuses every archive that
//! two readers could take for two different trees: a PAX size that contradicts the header, a name given twice, data after a link, entries after the
//! end of the archive, a number that goes on after its end. The reader it is measured against is Go's `archive/tar`, which registries, builders and
//! scanners read layers with: what that reads otherwise is refused.
//!
//! **Invariant:** the place of the next header follows from one number only, the checked size of the entry before it.
//!
//! Format: POSIX.1-2001 pax interchange format; GNU tar "Basic Tar Format" for types `L` and `K` and base-256 numbers.

use std::collections::BTreeMap;
use std::io::{self, BufRead};

use crate::limits::Limits;

const BLOCK: u64 = 512;

/// What is wrong with an archive.
#[derive(Debug, thiserror::Error)]
pub enum TarError {
    /// The source failed.
    #[error("reading the archive")]
    Read(#[from] io::Error),
    /// It ends inside an entry.
    #[error("the archive ends inside an entry")]
    Truncated,
    /// A header is not one.
    #[error("archive header at byte {at}: {what}")]
    Header {
        /// Where the header begins.
        at: u64,
        /// What is wrong with it.
        what: String,
    },
    /// Something after the end.
    #[error("the archive goes on after its end: bytes other than zero after the end-of-archive blocks")]
    Tail,
}

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A regular file of this many bytes, which follow.
    File(u64),
    /// A directory.
    Directory,
    /// A symbolic link to this text, which is never followed here.
    Symlink(Vec<u8>),
    /// Another name for the entry of this path.
    Hardlink(EntryPath),
    /// A character device with major and minor number.
    CharDevice(u32, u32),
    /// A block device with major and minor number.
    BlockDevice(u32, u32),
    /// A named pipe.
    Fifo,
}

/// Names beneath the image's root, checked: no empty, `.` or `..` part, no NUL. Empty is the root itself.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct EntryPath(Vec<u8>);

impl EntryPath {
    fn parse(raw: &[u8], limits: &Limits) -> Result<Self, String> {
        let shown = || String::from_utf8_lossy(raw.get(..raw.len().min(200)).unwrap_or_default()).into_owned();
        if raw.is_empty() {
            return Err("an empty name".to_owned());
        }
        if raw.len() > limits.path_bytes {
            return Err(format!("a name of {} bytes, at most {} are allowed", raw.len(), limits.path_bytes));
        }
        if raw.contains(&0) {
            return Err("a name with a zero byte".to_owned());
        }
        // A leading `/` means the image's root, as for containerd and umoci: builders such as umoci and ko write such names.
        let mut clean = Vec::with_capacity(raw.len());
        let mut parts = 0usize;
        for part in raw.split(|&b| b == b'/').filter(|part| !part.is_empty() && *part != b".") {
            if part == b".." {
                return Err(format!("the name {:?} leads out of its directory", shown()));
            }
            if part.len() > 255 {
                return Err("a part of a name longer than 255 bytes".to_owned());
            }
            parts += 1;
            if parts > limits.path_parts {
                return Err(format!("a name of more than {} parts", limits.path_parts));
            }
            if !clean.is_empty() {
                clean.push(b'/');
            }
            clean.extend_from_slice(part);
        }
        Ok(Self(clean))
    }

    /// The bytes, parts joined by `/`.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The directory's path and the name in it. `None` for the root.
    #[must_use]
    pub fn split(&self) -> Option<(&[u8], &[u8])> {
        if self.0.is_empty() {
            return None;
        }
        Some(match self.0.iter().rposition(|&b| b == b'/') {
            Some(at) => (self.0.get(..at)?, self.0.get(at + 1..)?),
            None => (&[], &self.0),
        })
    }
}

/// One entry of an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Where it is to be.
    pub path: EntryPath,
    /// What it is.
    pub kind: Kind,
    /// Permission bits with set-user-id, set-group-id and sticky.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Modification time: seconds since the epoch, nanoseconds.
    pub mtime: (i64, u32),
    /// Extended attributes.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// Reads an archive from a source.
pub struct Archive<'l, R> {
    source: R,
    limits: &'l Limits,
    at: u64,
    body: u64,
    padding: u64,
}

/// What extension headers said about the entry that follows them.
#[derive(Default)]
struct Extensions {
    pax: Option<BTreeMap<Vec<u8>, Vec<u8>>>,
    long_name: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
}

impl<'l, R: BufRead> Archive<'l, R> {
    /// Begins at the first header.
    pub const fn new(source: R, limits: &'l Limits) -> Self {
        Self { source, limits, at: 0, body: 0, padding: 0 }
    }

    /// The next entry, or `None` once the end of the archive has been seen and nothing but zeros followed it.
    ///
    /// What is left of the body of the entry before is skipped.
    ///
    /// # Errors
    /// If the archive is malformed, ambiguous, or beyond the limits.
    pub fn next_entry(&mut self) -> Result<Option<Entry>, TarError> {
        self.skip_body()?;
        let mut extensions = Extensions::default();
        loop {
            let start = self.at;
            let fail = |what: String| TarError::Header { at: start, what };
            let Some(block) = self.header()? else {
                if extensions.pax.is_some() || extensions.long_name.is_some() || extensions.long_link.is_some() {
                    return Err(fail("the archive ends after an extension header".to_owned()));
                }
                self.drain()?;
                return Ok(None);
            };
            let header = RawHeader(&block);
            header.verify_checksum().map_err(fail)?;
            header.gnu_times().map_err(fail)?;
            match header.kind() {
                b'x' => {
                    let body = self.extension(&header).map_err(|e| e.at(start))?;
                    let records = pax_records(&body).map_err(fail)?;
                    if extensions.pax.replace(records).is_some() {
                        return Err(fail("a second pax header for one entry".to_owned()));
                    }
                }
                b'g' => {
                    let body = self.extension(&header).map_err(|e| e.at(start))?;
                    let records = pax_records(&body).map_err(fail)?;
                    // Builders leave comments here. Anything that would change later entries is read differently by different readers.
                    if let Some(key) = records.keys().find(|key| !matches!(key.as_slice(), b"comment" | b"mtime" | b"atime" | b"ctime")) {
                        return Err(fail(format!("a global pax header sets {:?}", String::from_utf8_lossy(key))));
                    }
                }
                kind @ (b'L' | b'K') => {
                    let mut body = self.extension(&header).map_err(|e| e.at(start))?;
                    while body.last() == Some(&0) {
                        body.pop();
                    }
                    let slot = if kind == b'L' { &mut extensions.long_name } else { &mut extensions.long_link };
                    if slot.replace(body).is_some() {
                        return Err(fail("a second long name for one entry".to_owned()));
                    }
                }
                _ => {
                    let entry = header.entry(extensions, self.limits).map_err(fail)?;
                    if let Kind::File(size) = entry.kind {
                        self.body = size;
                        self.padding = padding_of(size);
                    }
                    return Ok(Some(entry));
                }
            }
        }
    }

    /// The next bytes of the entry's body; empty at its end. [`Self::consume`] takes them.
    ///
    /// # Errors
    /// If the source fails or ends inside the body.
    pub fn body(&mut self) -> Result<&[u8], TarError> {
        if self.body == 0 {
            return Ok(&[]);
        }
        let left = usize::try_from(self.body).unwrap_or(usize::MAX);
        let there = self.source.fill_buf()?;
        if there.is_empty() {
            return Err(TarError::Truncated);
        }
        Ok(there.get(..left.min(there.len())).unwrap_or_default())
    }

    /// Takes bytes that [`Self::body`] showed.
    pub fn consume(&mut self, taken: usize) {
        let taken = taken.min(usize::try_from(self.body).unwrap_or(usize::MAX));
        self.source.consume(taken);
        self.body -= taken as u64;
        self.at += taken as u64;
    }

    fn skip_body(&mut self) -> Result<(), TarError> {
        let body = std::mem::take(&mut self.body);
        self.skip(body)?;
        let padding = std::mem::take(&mut self.padding);
        // Some writers leave out the padding of the last entry along with the end blocks. Every byte of the body is there, so nothing is in doubt.
        if padding == 0 || self.source.fill_buf()?.is_empty() {
            return Ok(());
        }
        self.skip(padding)
    }

    fn skip(&mut self, mut left: u64) -> Result<(), TarError> {
        while left > 0 {
            let there = self.source.fill_buf()?.len();
            if there == 0 {
                return Err(TarError::Truncated);
            }
            let step = usize::try_from(left).unwrap_or(usize::MAX).min(there);
            self.source.consume(step);
            self.at += step as u64;
            left -= step as u64;
        }
        Ok(())
    }

    fn read_exact(&mut self, buf: &mut [u8]) -> Result<(), TarError> {
        self.source.read_exact(buf).map_err(|e| if e.kind() == io::ErrorKind::UnexpectedEof { TarError::Truncated } else { e.into() })?;
        self.at += buf.len() as u64;
        Ok(())
    }

    /// The next header block; `None` at the end: two blocks of zeros, or the source's end where a header would begin.
    fn header(&mut self) -> Result<Option<[u8; 512]>, TarError> {
        let mut block = [0u8; 512];
        if self.source.fill_buf()?.is_empty() {
            return Ok(None);
        }
        self.read_exact(&mut block)?;
        if block.iter().any(|&b| b != 0) {
            return Ok(Some(block));
        }
        if self.source.fill_buf()?.is_empty() {
            return Ok(None);
        }
        self.read_exact(&mut block)?;
        if block.iter().any(|&b| b != 0) {
            return Err(TarError::Header { at: self.at - BLOCK, what: "a header after a single block of zeros".to_owned() });
        }
        Ok(None)
    }

    /// Reads to the source's end and holds that only zeros come: entries there would be a second tree for readers that go on.
    fn drain(&mut self) -> Result<(), TarError> {
        loop {
            let there = self.source.fill_buf()?;
            if there.is_empty() {
                return Ok(());
            }
            if there.iter().any(|&b| b != 0) {
                return Err(TarError::Tail);
            }
            let step = there.len();
            self.source.consume(step);
            self.at += step as u64;
        }
    }

    fn extension(&mut self, header: &RawHeader<'_>) -> Result<Vec<u8>, ExtensionError> {
        let size = header.size().map_err(ExtensionError::Header)?;
        if size > self.limits.extension_bytes {
            return Err(ExtensionError::Header(format!(
                "an extension header of {size} bytes, at most {} are allowed",
                self.limits.extension_bytes
            )));
        }
        let mut body = vec![0u8; usize::try_from(size).map_err(|_| ExtensionError::Header("an extension header too long".to_owned()))?];
        self.read_exact(&mut body).map_err(ExtensionError::Archive)?;
        self.padding = padding_of(size);
        self.skip_body().map_err(ExtensionError::Archive)?;
        Ok(body)
    }
}

enum ExtensionError {
    Header(String),
    Archive(TarError),
}

impl ExtensionError {
    fn at(self, at: u64) -> TarError {
        match self {
            Self::Header(what) => TarError::Header { at, what },
            Self::Archive(error) => error,
        }
    }
}

const fn padding_of(size: u64) -> u64 {
    (BLOCK - size % BLOCK) % BLOCK
}

/// One header block, not yet believed.
struct RawHeader<'b>(&'b [u8; 512]);

impl RawHeader<'_> {
    fn field(&self, from: usize, len: usize) -> &[u8] {
        self.0.get(from..from + len).expect("fields lie within the block")
    }

    fn text(&self, from: usize, len: usize) -> &[u8] {
        let field = self.field(from, len);
        field.split(|&b| b == 0).next().unwrap_or_default()
    }

    fn kind(&self) -> u8 {
        self.0[156]
    }

    fn number(&self, from: usize, len: usize, what: &str) -> Result<i64, String> {
        let field = self.field(from, len);
        let wrong = || format!("{what} is no number");
        match field.split_first() {
            // Base 256: the first bit marks it, the second is the sign.
            Some((&first, rest)) if first & 0x80 != 0 => {
                let mut value = i128::from(first & 0x3f) - if first & 0x40 != 0 { 0x40 } else { 0 };
                for &byte in rest {
                    value = value.checked_mul(256).and_then(|v| v.checked_add(i128::from(byte))).ok_or_else(wrong)?;
                }
                i64::try_from(value).map_err(|_| wrong())
            }
            _ => {
                let end = field.iter().position(|&b| b == 0).unwrap_or(field.len());
                let (text, rest) = field.split_at(end);
                // Go drops zero bytes at both ends before it reads digits, so `\0` and digits are a number to it and nothing to others.
                if rest.iter().any(|&b| b != 0 && b != b' ') {
                    return Err(format!("{what} goes on after its end"));
                }
                let begin = text.iter().position(|&b| b != b' ').unwrap_or(text.len());
                let end = text.iter().rposition(|&b| b != b' ').map_or(begin, |last| last + 1);
                let mut value = 0i64;
                for &digit in text.get(begin..end).unwrap_or_default() {
                    if !(b'0'..=b'7').contains(&digit) {
                        return Err(wrong());
                    }
                    value = value.checked_mul(8).and_then(|v| v.checked_add(i64::from(digit - b'0'))).ok_or_else(wrong)?;
                }
                Ok(value)
            }
        }
    }

    /// GNU's headers have the times of access and change where ustar's have a prefix of the name. Go takes them for a prefix all the same if they are no
    /// numbers (its issues 12594 and 21005), so there they must be numbers or absent.
    fn gnu_times(&self) -> Result<(), String> {
        if self.field(257, 8) != b"ustar  \0" {
            return Ok(());
        }
        for (from, what) in [(345, "the time of access"), (357, "the time of change")] {
            if self.field(from, 1) != [0] {
                self.number(from, 12, what)
                    .map_err(|e| format!("a GNU header in which {e}: other readers take it for a part of the name"))?;
            }
        }
        Ok(())
    }

    fn size(&self) -> Result<u64, String> {
        let size = self.number(124, 12, "the size")?;
        u64::try_from(size).map_err(|_| "a negative size".to_owned())
    }

    fn verify_checksum(&self) -> Result<(), String> {
        let stated = self.number(148, 8, "the checksum")?;
        let sum = |as_number: fn(u8) -> i64| {
            self.0.iter().enumerate().map(|(i, &b)| if (148..156).contains(&i) { 32 } else { as_number(b) }).sum::<i64>()
        };
        // Ancient writers summed signed bytes.
        if stated == sum(i64::from) || stated == sum(|b| i64::from(b.cast_signed())) {
            Ok(())
        } else {
            Err("the checksum is wrong: this is no header".to_owned())
        }
    }

    fn name(&self) -> Vec<u8> {
        let name = self.text(0, 100);
        let posix = self.field(257, 6) == b"ustar\0";
        // star keeps times in the last bytes of the prefix.
        let prefix_len = if self.field(508, 4) == b"tar\0" { 131 } else { 155 };
        let prefix = if posix { self.text(345, prefix_len) } else { &[] };
        if prefix.is_empty() { name.to_vec() } else { [prefix, b"/", name].concat() }
    }

    fn id(&self, from: usize, what: &str, pax: Option<&Vec<u8>>) -> Result<u32, String> {
        let value = match pax {
            Some(text) => decimal(text).ok_or_else(|| format!("pax: {what} is no number"))?,
            None => u64::try_from(self.number(from, 8, what)?).map_err(|_| format!("a negative {what}"))?,
        };
        // The last value means "leave as it is" to chown(2).
        u32::try_from(value).ok().filter(|&id| id != u32::MAX).ok_or_else(|| format!("{what} {value} is out of range"))
    }

    fn entry(&self, extensions: Extensions, limits: &Limits) -> Result<Entry, String> {
        let Extensions { pax, long_name, long_link } = extensions;
        let pax = pax.unwrap_or_default();
        let get = |key: &str| pax.get(key.as_bytes());
        if let Some(key) = pax.keys().find(|key| key.starts_with(b"GNU.sparse.")) {
            return Err(format!("a sparse file ({}): write the layer without sparse files", String::from_utf8_lossy(key)));
        }
        let one = |pax: Option<&Vec<u8>>, long: Option<Vec<u8>>, plain: Vec<u8>, what: &str| match (pax, long) {
            (Some(_), Some(_)) => Err(format!("{what} given both by pax and by a GNU long name")),
            (Some(value), None) => Ok(value.clone()),
            (None, Some(value)) => Ok(value),
            (None, None) => Ok(plain),
        };
        let raw_path = one(get("path"), long_name, self.name(), "the name")?;
        let link = one(get("linkpath"), long_link, self.text(157, 100).to_vec(), "the link's target")?;

        let header_size = self.size()?;
        let size = match get("size") {
            None => header_size,
            Some(text) => {
                let size = decimal(text).filter(|&size| i64::try_from(size).is_ok()).ok_or("pax: the size is no number")?;
                // A header can say sizes below 8 GiB itself. One that says another is read as two different archives by two readers.
                if size != header_size && size < 1 << 33 {
                    return Err(format!("pax says a size of {size} bytes, the header says {header_size}"));
                }
                size
            }
        };
        let directory_name = raw_path.ends_with(b"/");
        // The kernel's own bounds. Beyond them mknod(2) drops bits without a word, and 4096:0 would become 0:0, overlayfs's whiteout.
        let device = || -> Result<(u32, u32), String> {
            // Headers before POSIX have no such fields: Go sees 0:0 there, overlayfs's whiteout, whatever the bytes are.
            if self.field(257, 6) != b"ustar\0" && self.field(257, 8) != b"ustar  \0" {
                return Err("a device in a header of the format before POSIX, which has no device numbers".to_owned());
            }
            let number = |from, what: &str, bound: u32| {
                let value = self.number(from, 8, what)?;
                u32::try_from(value).ok().filter(|&n| n < bound).ok_or_else(|| format!("{what} {value}, expected one below {bound}"))
            };
            Ok((number(329, "the device's major number", 1 << 12)?, number(337, "the device's minor number", 1 << 20)?))
        };
        let kind = match self.kind() {
            0 if directory_name => Kind::Directory,
            b'0' | b'7' | 0 => Kind::File(size),
            b'1' => Kind::Hardlink(EntryPath::parse(&link, limits).map_err(|e| format!("a hard link to {e}"))?),
            b'2' => {
                if link.is_empty() || link.len() >= limits.path_bytes || link.contains(&0) {
                    return Err("a symbolic link whose target is empty, too long or holds a zero byte".to_owned());
                }
                Kind::Symlink(link)
            }
            b'3' => device().map(|(major, minor)| Kind::CharDevice(major, minor))?,
            b'4' => device().map(|(major, minor)| Kind::BlockDevice(major, minor))?,
            b'5' => Kind::Directory,
            b'6' => Kind::Fifo,
            b'S' => return Err("a sparse file: write the layer without sparse files".to_owned()),
            other => return Err(format!("an entry of the unknown type {:?}", char::from(other))),
        };
        if !matches!(kind, Kind::File(_)) && size != 0 {
            return Err(format!("an entry that is no file but has {size} bytes"));
        }
        if matches!(kind, Kind::File(_)) && directory_name {
            return Err("a file whose name ends with /".to_owned());
        }
        let mode = u32::try_from(self.number(100, 8, "the mode")?).map_err(|_| "a negative mode")? & 0o7777;
        let mtime = match get("mtime") {
            Some(text) => pax_time(text).ok_or("pax: the modification time is no time")?,
            None => (self.number(136, 12, "the modification time")?, 0),
        };
        let xattrs: Vec<_> =
            pax.iter().filter_map(|(key, value)| Some((key.strip_prefix(b"SCHILY.xattr.")?.to_vec(), value.clone()))).collect();
        if xattrs.len() > limits.xattrs {
            return Err(format!("{} extended attributes, at most {} are allowed", xattrs.len(), limits.xattrs));
        }
        Ok(Entry {
            path: EntryPath::parse(&raw_path, limits)?,
            kind,
            mode,
            uid: self.id(108, "the owner", get("uid"))?,
            gid: self.id(116, "the group", get("gid"))?,
            mtime,
            xattrs,
        })
    }
}

fn decimal(text: &[u8]) -> Option<u64> {
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// Seconds with an optional fraction, possibly negative.
fn pax_time(text: &[u8]) -> Option<(i64, u32)> {
    let text = std::str::from_utf8(text).ok()?;
    let (negative, text) = text.strip_prefix('-').map_or((false, text), |rest| (true, rest));
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds = i64::try_from(decimal(whole.as_bytes())?).ok()?;
    if !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let nanos = fraction.bytes().chain(std::iter::repeat(b'0')).take(9).fold(0u32, |n, digit| n * 10 + u32::from(digit - b'0'));
    Some(match (negative, nanos) {
        (false, _) => (seconds, nanos),
        (true, 0) => (-seconds, 0),
        (true, _) => (-seconds - 1, 1_000_000_000 - nanos),
    })
}

/// The records `<length> <key>=<value>\n` of a pax header.
fn pax_records(mut body: &[u8]) -> Result<BTreeMap<Vec<u8>, Vec<u8>>, String> {
    let mut records = BTreeMap::new();
    while !body.is_empty() {
        let wrong = || "a malformed pax record".to_owned();
        let space = body.iter().take(20).position(|&b| b == b' ').ok_or_else(wrong)?;
        let length = body.get(..space).and_then(decimal).and_then(|n| usize::try_from(n).ok()).ok_or_else(wrong)?;
        let record = body.get(space + 1..length).ok_or_else(wrong)?;
        body = body.get(length..).ok_or_else(wrong)?;
        let record = record.strip_suffix(b"\n").ok_or_else(wrong)?;
        let equals = record.iter().position(|&b| b == b'=').ok_or_else(wrong)?;
        let (key, value) = record.split_at(equals);
        let value = value.get(1..).unwrap_or_default();
        let textual = matches!(key, b"path" | b"linkpath" | b"size" | b"uid" | b"gid" | b"mtime");
        if key.is_empty() || (textual && (value.is_empty() || value.contains(&0))) {
            return Err(wrong());
        }
        if records.insert(key.to_vec(), value.to_vec()).is_some() {
            return Err(format!("pax gives {:?} twice", String::from_utf8_lossy(key)));
        }
    }
    Ok(records)
}
