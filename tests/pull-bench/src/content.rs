//! Archives that are always the same: made-up text and bytes that do not compress, in about the proportion that makes gzip's ratio that of real images.
//!
//! Format: POSIX ustar, the plainest there is, so that every contender reads it.

use std::io::{self, Write};

/// What one archive holds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shape {
    /// Files, one in twenty of them a symbolic link.
    pub(crate) files: u64,
    /// Bytes of file content, roughly.
    pub(crate) bytes: u64,
    /// Files of a directory.
    pub(crate) per_directory: u64,
}

/// A small generator of numbers (xorshift64*): the same sequence everywhere, which libraries do not promise.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, bound: u64) -> u64 {
        (self.next() >> 11) % bound.max(1)
    }
}

/// Words of the made-up language.
const WORDS: u64 = 1024;
/// One run in so many is of bytes that do not compress.
const OPAQUE_IN: u64 = 8;
/// Longest run of one kind.
const RUN: u64 = 512;

/// Writes file content.
struct Content {
    numbers: Numbers,
    words: Vec<Vec<u8>>,
}

impl Content {
    fn new(seed: u64) -> Self {
        // The language is the same in all layers, the text is not.
        let mut letters = Numbers(0x1234_5678_9abc_def1);
        let words = (0..WORDS).map(|_| {
            let length = 3 + letters.below(8);
            let mut word: Vec<u8> = (0..length).map(|_| b'a' + letters.below(26) as u8).collect();
            word.push(b' ');
            word
        });
        Self { words: words.collect(), numbers: Numbers(seed | 1) }
    }

    fn fill(&mut self, length: usize, out: &mut Vec<u8>) {
        out.clear();
        while out.len() < length {
            let end = out.len() + 64 + self.numbers.below(RUN - 64) as usize;
            if self.numbers.below(OPAQUE_IN) == 0 {
                while out.len() < end {
                    out.extend_from_slice(&self.numbers.next().to_le_bytes());
                }
            } else {
                while out.len() < end {
                    // Some words are much more frequent than others.
                    let word = self.numbers.below(WORDS).min(self.numbers.below(WORDS)).min(self.numbers.below(WORDS));
                    out.extend_from_slice(&self.words[word as usize]);
                }
            }
        }
        out.truncate(length);
    }
}

/// What was written.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Written {
    /// Bytes of the archive.
    pub(crate) bytes: u64,
    /// Files and links, without directories.
    pub(crate) files: u64,
}

/// Writes the archive of layer `number` of some image.
pub(crate) fn write(shape: Shape, number: u64, out: &mut impl Write) -> io::Result<Written> {
    let mut content = Content::new(0x9e37_79b9_7f4a_7c15u64.wrapping_mul(number + 1));
    let mut archive = Archive { out, bytes: 0 };
    let top = format!("opt/layer{number}");
    archive.entry("opt/", b'5', 0o755, 0, "")?;
    archive.entry(&format!("{top}/"), b'5', 0o755, 0, "")?;
    let mut body = Vec::new();
    let mut written = Written::default();
    let mean = (shape.bytes / shape.files).max(1);
    let mut directory = String::new();
    for file in 0..shape.files {
        if file % shape.per_directory == 0 {
            directory = format!("{top}/share/package-{:05}", file / shape.per_directory);
            if file == 0 {
                archive.entry(&format!("{top}/share/"), b'5', 0o755, 0, "")?;
            }
            archive.entry(&format!("{directory}/"), b'5', 0o755, 0, "")?;
        }
        let name = format!("{directory}/file-{file:06}");
        written.files += 1;
        // One in ten belongs to somebody else than root.
        let owner = if file % 10 == 9 { 1000 } else { 0 };
        if file % 20 == 19 {
            archive.entry(&name, b'2', 0o777, owner, &format!("file-{:06}", file - 1))?;
            continue;
        }
        // Most files are small and a few are large, as in real images; the mean of these is about the mean asked for.
        let length = match content.numbers.below(100) {
            0..70 => content.numbers.below(mean / 2),
            70..95 => content.numbers.below(mean * 4),
            _ => content.numbers.below(mean * 13),
        };
        content.fill(length as usize, &mut body);
        archive.file(&name, if file % 7 == 0 { 0o755 } else { 0o644 }, owner, &body)?;
    }
    archive.out.write_all(&[0; 1024])?;
    archive.bytes += 1024;
    written.bytes = archive.bytes;
    Ok(written)
}

struct Archive<'o, W> {
    out: &'o mut W,
    bytes: u64,
}

impl<W: Write> Archive<'_, W> {
    fn file(&mut self, name: &str, mode: u32, owner: u32, body: &[u8]) -> io::Result<()> {
        self.header(name, b'0', mode, owner, body.len() as u64, "")?;
        let padding = body.len().next_multiple_of(512) - body.len();
        self.put(body)?;
        self.put(&[0; 512][..padding])
    }

    fn entry(&mut self, name: &str, kind: u8, mode: u32, owner: u32, link: &str) -> io::Result<()> {
        self.header(name, kind, mode, owner, 0, link)
    }

    fn header(&mut self, name: &str, kind: u8, mode: u32, owner: u32, size: u64, link: &str) -> io::Result<()> {
        let mut block = [0u8; 512];
        let mut set = |at: usize, text: &[u8]| block[at..at + text.len()].copy_from_slice(text);
        set(0, name.as_bytes());
        set(100, format!("{mode:07o}").as_bytes());
        set(108, format!("{owner:07o}").as_bytes());
        set(116, format!("{owner:07o}").as_bytes());
        set(124, format!("{size:011o}").as_bytes());
        set(136, format!("{:011o}", 1_700_000_000 + self.bytes / 4096).as_bytes());
        set(148, b"        ");
        set(156, &[kind]);
        set(157, link.as_bytes());
        set(257, b"ustar\x0000");
        let sum: u32 = block.iter().map(|&b| u32::from(b)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        self.put(&block)
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.bytes += bytes.len() as u64;
        self.out.write_all(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: Shape = Shape { files: 60, bytes: 600_000, per_directory: 7 };

    #[test]
    fn the_same_layer_is_the_same_bytes_and_another_is_not() {
        let archive = |number| {
            let mut out = Vec::new();
            write(SMALL, number, &mut out).unwrap();
            out
        };
        assert_eq!(archive(1), archive(1));
        assert_ne!(archive(1), archive(2));
    }

    #[test]
    fn our_own_reader_takes_the_archive_and_finds_as_many_files() {
        let mut out = Vec::new();
        let written = write(SMALL, 0, &mut out).unwrap();
        assert_eq!(written.bytes, out.len() as u64);
        let limits = kata_cc_image_pull::Limits::default();
        let mut archive = kata_cc_image_pull::tar::Archive::new(out.as_slice(), &limits);
        let mut files = 0;
        while let Some(entry) = archive.next_entry().unwrap() {
            files += u64::from(entry.kind != kata_cc_image_pull::tar::Kind::Directory);
        }
        assert_eq!((files, written.files), (60, 60));
    }

    #[test]
    fn compresses_as_images_do() {
        let mut out = Vec::new();
        write(Shape { files: 100, bytes: 4_000_000, per_directory: 10 }, 0, &mut out).unwrap();
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        gzip.write_all(&out).unwrap();
        let ratio = out.len() as f64 / gzip.finish().unwrap().len() as f64;
        assert!((2.2..2.9).contains(&ratio), "{ratio}");
    }
}
