//! The Authenticode digest of a PE image: what UEFI firmware measures of an image it loads (Microsoft, Windows Authenticode Portable
//! Executable Signature Format, "Calculating the PE Image Hash"; TCG PC Client Platform Firmware Profile 1.06, section 10.2.3).
//!
//! Everything but the checksum, the entry that points to signatures, and the signatures themselves; so a signed kernel measures like
//! the same one unsigned. Linux's x86 kernels are such images.
//!
//! Invariant: an image of which two readers could hash different parts is refused: sections are in the file and do not overlap, the
//! signatures are at its end, and it needs no padding.

use sha2::Sha384;
use sha2::digest::Output;

use super::register::Digest;

const DOS_MAGIC: &[u8] = b"MZ";
const PE_MAGIC: &[u8] = b"PE\0\0";
/// Offset in the DOS header of where the PE header is.
const PE_AT: usize = 0x3c;
const COFF_LEN: usize = 20;
const SECTION_LEN: usize = 40;
/// Of the optional header: checksum, and all headers' size.
const CHECKSUM_AT: usize = 64;
const HEADERS_SIZE_AT: usize = 60;
/// The entry of the data directories that points to signatures.
const CERTIFICATES: usize = 4;
/// The format's limit of sections is 96; Linux has four.
const MAX_SECTIONS: u16 = 96;
/// Signatures are aligned so, and tools pad differently what is not.
const ALIGNMENT: usize = 8;

/// Why an image has no digest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a PE image that UEFI firmware could measure: {part}: expected {expected}, found {found}")]
pub struct PeError {
    /// Which part is wrong.
    pub part: &'static str,
    /// What would do.
    pub expected: String,
    /// What is there.
    pub found: String,
}

fn wrong<T>(part: &'static str, expected: impl ToString, found: impl ToString) -> Result<T, PeError> {
    Err(PeError { part, expected: expected.to_string(), found: found.to_string() })
}

struct Image<'a>(&'a [u8]);

impl<'a> Image<'a> {
    fn part(&self, part: &'static str, from: usize, to: usize) -> Result<&'a [u8], PeError> {
        match self.0.get(from..to) {
            Some(bytes) => Ok(bytes),
            None => wrong(part, format_args!("bytes {from:#x} to {to:#x} of the image"), format_args!("{:#x} bytes", self.0.len())),
        }
    }

    fn u16(&self, part: &'static str, at: usize) -> Result<u16, PeError> {
        Ok(self.part(part, at, at.saturating_add(2))?.iter().rev().fold(0, |n, byte| n << 8 | u16::from(*byte)))
    }

    fn u32(&self, part: &'static str, at: usize) -> Result<u32, PeError> {
        Ok(self.part(part, at, at.saturating_add(4))?.iter().rev().fold(0, |n, byte| n << 8 | u32::from(*byte)))
    }

    /// A 32-bit number that is an offset or a length.
    fn size(&self, part: &'static str, at: usize) -> Result<usize, PeError> {
        let found = self.u32(part, at)?;
        usize::try_from(found).or_else(|_| wrong(part, "a number of bytes", found))
    }
}

/// The SHA-384 Authenticode digest of an image.
///
/// # Errors
/// When it is not a PE image of one meaning.
pub fn authenticode(image: &[u8]) -> Result<Digest, PeError> {
    digest::<Sha384>(image).map(Into::into)
}

/// By any algorithm: signatures have others, which tests hold this against.
fn digest<H: sha2::Digest>(image: &[u8]) -> Result<Output<H>, PeError> {
    let image = Image(image);
    let length = image.0.len();
    if image.part("DOS header", 0, 2)? != DOS_MAGIC {
        return wrong("DOS header", "MZ at its start", "something else; is it a bzImage with CONFIG_EFI_STUB?");
    }
    if !length.is_multiple_of(ALIGNMENT) {
        return wrong("length", format_args!("a multiple of {ALIGNMENT} bytes"), format_args!("{length} bytes"));
    }
    let pe = image.size("PE header's offset", PE_AT)?;
    // Offsets below are of 32 bits and small parts: they do not overflow 64.
    let coff = pe.saturating_add(PE_MAGIC.len());
    if image.part("PE header", pe, coff)? != PE_MAGIC {
        return wrong("PE header", "PE at its start", "something else");
    }
    let optional = coff.saturating_add(COFF_LEN);
    let directories = match image.u16("optional header", optional)? {
        0x10b => optional + 96,
        0x20b => optional + 112,
        found => return wrong("optional header", "0x10b or 0x20b", format_args!("{found:#x}")),
    };
    let table = optional + usize::from(image.u16("optional header's length", coff + 16)?);
    let count = image.u32("number of data directories", directories - 4)?;
    let certificates = directories + 8 * CERTIFICATES;
    if usize::try_from(count).is_ok_and(|count| count <= CERTIFICATES) || table < certificates + 8 {
        return wrong("data directories", "an entry for signatures", format_args!("{count} entries"));
    }
    let sections = image.u16("number of sections", coff + 2)?;
    let headers = image.size("size of the headers", optional + HEADERS_SIZE_AT)?;
    let table_end = table + SECTION_LEN * usize::from(sections);
    if sections == 0 || sections > MAX_SECTIONS || headers < table_end || headers > length {
        let expected = format!("1 to {MAX_SECTIONS}, in headers that are in the image");
        return wrong("sections", expected, format_args!("{sections}, in headers of {headers:#x} bytes"));
    }

    let checksum = optional + CHECKSUM_AT;
    let mut hasher = H::new();
    hasher.update(image.part("headers", 0, checksum)?);
    hasher.update(image.part("headers", checksum + 4, certificates)?);
    hasher.update(image.part("headers", certificates + 8, headers)?);
    let mut end = headers;
    for (from, size) in in_file_order(&image, table, sections)? {
        // Firmware hashes sections and then what is behind as many bytes, wherever those are: only without gaps is that one thing.
        if from != end {
            return wrong(
                "sections",
                format_args!("one at {end:#x}, where headers or another section end"),
                format_args!("one at {from:#x}"),
            );
        }
        hasher.update(image.part("section", from, from + size)?);
        end = from + size;
    }
    let (at, size) = (image.size("signatures", certificates)?, image.size("signatures", certificates + 4)?);
    let signatures = if size == 0 { length } else { at };
    if signatures < end || (size != 0 && at.checked_add(size) != Some(length)) {
        return wrong("signatures", "none, or at the end of the image behind all sections", format_args!("{size:#x} bytes at {at:#x}"));
    }
    hasher.update(image.part("bytes behind the sections", end, signatures)?);
    Ok(hasher.finalize())
}

/// Offset and length of the sections that have bytes.
fn in_file_order(image: &Image<'_>, table: usize, count: u16) -> Result<Vec<(usize, usize)>, PeError> {
    let mut found = Vec::new();
    for header in (table..).step_by(SECTION_LEN).take(usize::from(count)) {
        let (size, from) = (image.size("section's length", header + 16)?, image.size("section's offset", header + 20)?);
        if size > 0 {
            found.push((from, size));
        }
    }
    found.sort_unstable();
    Ok(found)
}

#[cfg(test)]
mod tests;
