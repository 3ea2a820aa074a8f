//! The boot image: loader, header, components, parameter block.
//!
//! ```text
//! 0x0      PSW: start at 0x11000         0x14000  header, or behind stage3a if that is longer
//! 0xc000   where header and block are    behind   kernel, initrd, command line, stage3b: encrypted pages
//! 0x10000  stage3a                       behind   parameter block: header and components, for the ultravisor
//! ```
//! It is loaded to address 0, so offsets are addresses. stage3a runs unprotected and asks the ultravisor for the rest; stage3b is the
//! first thing that runs protected, and brings kernel, command line and initrd to where Linux wants them. Both are of s390-tools; they are
//! handed their parameters at their ends. Nothing outside header and components is measured, and nothing there can make the guest another.

use std::io::{self, Cursor, Read, Seek, SeekFrom, Write};

use super::PAGE;
use super::components::{Component, ComponentError, Components, Placed};
use super::header::{Header, HeaderError, PlaintextFlags, Point};
use super::seal::{Psw, SealError, Secrets, seal};

const STAGE3A: u64 = 0x10000;
const STAGE3A_ENTRY: u64 = 0x11000;
const METADATA: u64 = 0xc000;
const METADATA_MAGIC: [u8; 8] = *b"SeImgLnx";
const METADATA_VERSION: u32 = 1;
/// Where tools without the metadata look for a header first.
const FIRST_HEADER: u64 = 0x14000;
const KERNEL_ENTRY: u64 = 0x10000;
/// Where a kernel says how long its command line may be, and what it says if it is too old to.
const COMMAND_LINE_SIZE: usize = 0x10430;
const OLD_COMMAND_LINE_SIZE: u64 = 896;
/// Where every s390 kernel has `S390EP` (`arch/s390/boot/head.S`).
const ENTRY_MARK: usize = 0x10008;
/// Far more than a loader has.
const MAX_LOADER: usize = 1 << 20;
/// Parameters at a loader's end.
const STAGE3A_PARAMETERS: usize = 24;
const STAGE3B_PARAMETERS: usize = 64;
/// IPL_PBT_PV.
const PROTECTED: u8 = 5;
/// Pages that are searched for a header where no metadata say where it is.
const SEARCHED: u64 = 32;

/// What an image is made of.
#[derive(Debug)]
pub struct Inputs<'a, K, I> {
    /// First loader, as s390-tools has it.
    pub stage3a: &'a [u8],
    /// Second loader.
    pub stage3b: &'a [u8],
    /// Kernel: the binary image (`arch/s390/boot/bzImage`).
    pub kernel: K,
    /// Initrd.
    pub initrd: Option<I>,
    /// Command line, without a trailing NUL.
    pub command_line: &'a str,
    /// Host keys of the machines that may start it.
    pub host_keys: &'a [Point],
}

/// What was made.
#[derive(Clone, Debug)]
pub struct Image {
    /// Its header.
    pub header: Header,
    /// Where the header is.
    pub header_at: u64,
    /// Its components.
    pub components: Vec<Placed>,
    /// Size in bytes.
    pub size: u64,
}

/// Why no image was made, or none was found.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// Not that loader.
    #[error("{loader} has {found} bytes; expected {least} to {MAX_LOADER}, as s390-tools has it")]
    Loader {
        /// Which.
        loader: &'static str,
        /// Its size.
        found: usize,
        /// The least it has.
        least: usize,
    },
    /// Not what the machine could start.
    #[error("the kernel is {found}; expected the binary image of a Linux for s390x, arch/s390/boot/bzImage")]
    Kernel {
        /// What it looks like.
        found: &'static str,
    },
    /// Longer than the kernel takes, or with an end in the middle.
    #[error("the command line has {found} bytes and a NUL is {nul}; this kernel takes at most {limit} with the NUL at its end")]
    CommandLine {
        /// Its size, without the NUL at its end.
        found: usize,
        /// Where the first is.
        nul: &'static str,
        /// What the kernel takes.
        limit: u64,
    },
    /// A component.
    #[error("a component cannot be put into the image")]
    Component(#[from] ComponentError),
    /// The header.
    #[error("the image's header cannot be made")]
    Seal(#[from] SealError),
    /// Reading the kernel or writing failed.
    #[error("cannot {doing}")]
    Io {
        /// What was done.
        doing: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// No header where one should be.
    #[error(
        "no Secure Execution header at the start, where metadata at {METADATA:#x} say, or at one of {SEARCHED} pages from {STAGE3A:#x} on"
    )]
    NoHeader,
    /// The image says of itself what is not known.
    #[error("the image's metadata have version {found}, expected {METADATA_VERSION}")]
    Metadata {
        /// Their version.
        found: u32,
    },
    /// Something that is none.
    #[error("what is at {at:#x} is not a header")]
    Header {
        /// Where.
        at: u64,
        /// Why.
        #[source]
        source: HeaderError,
    },
}

fn io(doing: &'static str) -> impl Fn(io::Error) -> ImageError {
    move |source| ImageError::Io { doing, source }
}

/// Makes an image. What is in `out` from its start on is written over.
///
/// # Errors
/// When an input is not what it should be, there is no host key or there are too many, or reading or writing fails. `out` is then of no
/// use.
pub fn build<K: Read, I: Read>(inputs: Inputs<'_, K, I>, secrets: &Secrets, out: &mut (impl Write + Seek)) -> Result<Image, ImageError> {
    let Inputs { stage3a, stage3b, mut kernel, initrd, command_line, host_keys } = inputs;
    loader("stage3a", stage3a, usize::try_from(STAGE3A_ENTRY - STAGE3A).unwrap_or(PAGE) + STAGE3A_PARAMETERS)?;
    loader("stage3b", stage3b, 2 * STAGE3B_PARAMETERS)?;
    let mut start = Vec::new();
    kernel.by_ref().take((COMMAND_LINE_SIZE + 8) as u64).read_to_end(&mut start).map_err(io("read the kernel"))?;
    let limit = command_line_limit(&start)?;
    check_command_line(command_line, limit)?;
    let header_len = Header::size(host_keys.len()).map_err(SealError::from)?;

    let header_at = next_page(STAGE3A + stage3a.len() as u64).max(FIRST_HEADER);
    let first = next_page(header_at + header_len as u64);
    out.seek(SeekFrom::Start(first)).map_err(io("write the image"))?;
    let mut components = Components::new(secrets);
    let kernel = components.add(Component::Kernel, first, &mut Cursor::new(start).chain(kernel), out)?;
    let initrd = match initrd {
        Some(mut initrd) => Some(components.add(Component::Initrd, components.next(), &mut initrd, out)?),
        None => None,
    };
    let mut text = command_line.as_bytes().chain(&[0][..]);
    let command_line = components.add(Component::CommandLine, components.next(), &mut text, out)?;
    let stage3b = with_parameters(stage3b, &stage3b_parameters(&kernel, &command_line, initrd.as_ref()));
    let stage3b = components.add(Component::Stage3b, components.next(), &mut stage3b.as_slice(), out)?;

    let block_at = components.next();
    let header = seal(&components.finish(), host_keys, PlaintextFlags::WRAPPED_KEYS, Psw::at(stage3b.address), secrets)?;
    let bytes = header.to_bytes().map_err(SealError::from)?;
    let components: Vec<Placed> = [Some(kernel), initrd, Some(command_line), Some(stage3b)].into_iter().flatten().collect();
    let block = parameter_block(header_at, bytes.len(), &components);
    let stage3a = with_parameters(stage3a, &stage3a_parameters(stage3a.len(), header_at, bytes.len(), block_at));
    for (at, bytes) in [
        (0, short_psw().as_slice()),
        (METADATA, &metadata(header_at, block_at)),
        (STAGE3A, &stage3a),
        (header_at, &bytes),
        (block_at, &block),
    ] {
        out.seek(SeekFrom::Start(at)).and_then(|_| out.write_all(bytes)).map_err(io("write the image"))?;
    }
    out.flush().map_err(io("write the image"))?;
    Ok(Image { header, header_at, components, size: block_at + block.len() as u64 })
}

/// The header of an image, or of a file that is a header, as `pvextract-hdr` makes one: what follows it in its pages is not looked at.
///
/// # Errors
/// When there is none, or reading fails.
pub fn find_header(image: &mut (impl Read + Seek)) -> Result<Header, ImageError> {
    if let Some(bytes) = header_bytes(image, 0)? {
        return parse(&bytes, 0);
    }
    let metadata = read_at(image, METADATA, 28)?;
    if metadata.starts_with(&METADATA_MAGIC) {
        let at = metadata.get(8..).and_then(|rest| rest.first_chunk()).copied().map(u64::from_be_bytes);
        let version = metadata.get(16..).and_then(|rest| rest.first_chunk()).copied().map(u32::from_be_bytes);
        let (Some(at), Some(version)) = (at, version) else { return Err(ImageError::NoHeader) };
        if version != METADATA_VERSION {
            return Err(ImageError::Metadata { found: version });
        }
        let bytes = header_bytes(image, at)?.ok_or(ImageError::NoHeader)?;
        return parse(&bytes, at);
    }
    for page in 0..SEARCHED {
        let at = STAGE3A + page * PAGE as u64;
        if let Some(bytes) = header_bytes(image, at)? {
            return parse(&bytes, at);
        }
    }
    Err(ImageError::NoHeader)
}

fn parse(bytes: &[u8], at: u64) -> Result<Header, ImageError> {
    Header::parse_first(bytes).map(|(header, _)| header).map_err(|source| ImageError::Header { at, source })
}

/// As many bytes as a header can have, if there is one that begins at this offset.
fn header_bytes(image: &mut (impl Read + Seek), at: u64) -> Result<Option<Vec<u8>>, ImageError> {
    Ok(Some(read_at(image, at, Header::MAX)?).filter(|bytes| bytes.starts_with(b"IBMSecEx")))
}

fn read_at(image: &mut (impl Read + Seek), at: u64, len: usize) -> Result<Vec<u8>, ImageError> {
    let mut bytes = Vec::new();
    image.seek(SeekFrom::Start(at)).and_then(|_| image.take(len as u64).read_to_end(&mut bytes)).map_err(io("read the image"))?;
    Ok(bytes)
}

const fn next_page(address: u64) -> u64 {
    address.next_multiple_of(PAGE as u64)
}

fn loader(loader: &'static str, bytes: &[u8], least: usize) -> Result<(), ImageError> {
    let found = bytes.len();
    if (least..=MAX_LOADER).contains(&found) { Ok(()) } else { Err(ImageError::Loader { loader, found, least }) }
}

/// How long a command line, with its NUL, the kernel that begins like this takes.
fn command_line_limit(start: &[u8]) -> Result<u64, ImageError> {
    if start.starts_with(b"\x7fELF") {
        return Err(ImageError::Kernel { found: "an ELF file, such as vmlinux" });
    }
    if !start.get(ENTRY_MARK..).is_some_and(|rest| rest.starts_with(b"S390EP")) {
        return Err(ImageError::Kernel { found: "without the mark of such a kernel, S390EP at 0x10008" });
    }
    let size = start.get(COMMAND_LINE_SIZE..).and_then(|rest| rest.first_chunk()).copied().map(u64::from_be_bytes);
    match size {
        Some(0) => Ok(OLD_COMMAND_LINE_SIZE),
        Some(size) => Ok(size),
        None => Err(ImageError::Kernel { found: "cut off" }),
    }
}

fn check_command_line(text: &str, limit: u64) -> Result<(), ImageError> {
    // Linux would take what stands before it for all.
    let nul = text.contains('\0');
    if !nul && (text.len() as u64) < limit {
        return Ok(());
    }
    Err(ImageError::CommandLine { found: text.len(), nul: if nul { "among them" } else { "not among them" }, limit })
}

/// A loader with parameters in place of its last bytes.
fn with_parameters(loader: &[u8], parameters: &[u8]) -> Vec<u8> {
    let code = loader.get(..loader.len().saturating_sub(parameters.len())).unwrap_or_default();
    [code, parameters].concat()
}

fn words(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_be_bytes()).collect()
}

/// Where header and parameter block are, seen from the parameters.
fn stage3a_parameters(loader_len: usize, header_at: u64, header_len: usize, block_at: u64) -> Vec<u8> {
    let here = STAGE3A + (loader_len - STAGE3A_PARAMETERS) as u64;
    words(&[header_at - here, header_len as u64, block_at - here])
}

/// Address and size of kernel, command line and initrd; and how the kernel starts.
fn stage3b_parameters(kernel: &Placed, command_line: &Placed, initrd: Option<&Placed>) -> Vec<u8> {
    let (initrd, initrd_len) = initrd.map_or((0, 0), |initrd| (initrd.address, initrd.bytes));
    let psw = Psw::at(KERNEL_ENTRY);
    words(&[kernel.address, kernel.bytes, command_line.address, command_line.bytes, initrd, initrd_len, psw.mask, psw.address])
}

/// Bit 12 says that it is a short one, with an address of 31 bits.
fn short_psw() -> [u8; 8] {
    (1 << 51 | Psw::MASK | STAGE3A_ENTRY).to_be_bytes()
}

fn metadata(header_at: u64, block_at: u64) -> Vec<u8> {
    [&METADATA_MAGIC[..], &header_at.to_be_bytes(), &METADATA_VERSION.to_be_bytes(), &block_at.to_be_bytes()].concat()
}

/// The IPL parameter block of a protected guest (`linux/arch/s390/include/uapi/asm/ipl.h`, `ipl_pb0_pv`).
fn parameter_block(header_at: u64, header_len: usize, components: &[Placed]) -> Vec<u8> {
    // At most four components.
    let count = u32::try_from(components.len()).unwrap_or(u32::MAX);
    let protected_len = 128 + 24 * count;
    let mut block = Vec::new();
    block.extend((8 + protected_len).to_be_bytes());
    block.extend([0, 0, 0, 1]);
    block.extend(protected_len.to_be_bytes());
    block.extend([PROTECTED, 0, 0, 0]);
    // Load parameters, and what the other kinds of block have there.
    block.extend([0; 8 + 84 + 3]);
    block.push(1);
    block.extend([0; 4]);
    block.extend(count.to_be_bytes());
    block.extend(words(&[header_at, header_len as u64]));
    for component in components {
        block.extend(words(&[component.tweak, component.address, component.pages * PAGE as u64]));
    }
    block
}
