//! RTMR1 and RTMR2 of a TD that QEMU boots directly (`-kernel`, `-initrd`, `-append`), and RTMR0 as far as it can be known.
//!
//! OVMF extends RTMR1 with the kernel's Authenticode digest and with what it does next; Linux's EFI stub extends RTMR2 with its load
//! options, in UTF-16LE with the NUL at their end, and with the initrd (Linux 6.9 or later). Files, command line and version of
//! firmware decide all of that. RTMR0 has the machine as well: the ACPI tables that QEMU makes of it (devices, number of vCPUs)
//! nobody can predict who does not have that QEMU.
//!
//! Each function gives the events with their digests, to be held against the log of a guest; [`Register::extended`] has the sum.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use sha2::{Digest as _, Sha256, Sha384};

use super::authenticode::{PeError, authenticode};
use super::kernel_header::{KernelHeader, KernelHeaderError, fill_in};
use super::register::{Digest, Register, sha384};
use crate::measure::stream::stream;

/// Largest kernel accepted; it is held whole. Distributions' have 15 MiB.
pub const MAX_KERNEL_BYTES: u64 = 256 << 20;

/// From which release of edk2 on the firmware's events are as described.
///
/// [`Self::Before202411`] is held against the log of a real guest, the load options of [`Self::From202508`] against a register recorded on
/// hardware. The rest is edk2's own account of its changes (tianocore/edk2, pull requests 6051 and 11115).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Edk2 {
    /// Before edk2-stable202411: RTMR0 has the second separator too.
    Before202411,
    /// edk2-stable202411 and 202502: the second separator is in RTMR1.
    From202411,
    /// edk2-stable202505: RTMR0 has events that depend on more of the machine.
    From202505,
    /// edk2-stable202508 and later: `initrd=initrd` is put before the command line and no longer behind it.
    From202508,
}

impl Edk2 {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Before202411, Self::From202411, Self::From202505, Self::From202508];

    /// Its name.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Before202411 => "before-202411",
            Self::From202411 => "202411",
            Self::From202505 => "202505",
            Self::From202508 => "202508",
        }
    }
}

impl fmt::Display for Edk2 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Edk2 {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let known = || Self::ALL.map(Self::as_str).join(", ");
        Self::ALL.into_iter().find(|edk2| edk2.as_str() == text).ok_or_else(|| format!("expected one of {}, found {text:?}", known()))
    }
}

/// Something that is extended into a register.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Event {
    /// What it is of.
    pub what: &'static str,
    /// What is extended.
    pub digest: Digest,
}

impl Event {
    pub(super) fn of(what: &'static str, bytes: &[u8]) -> Self {
        Self { what, digest: sha384(&[bytes]) }
    }

    /// `EV_SEPARATOR`: what comes after it is the operating system's.
    pub(super) fn separator() -> Self {
        Self::of("separator", &[0; 4])
    }

    /// An RTMR after these events.
    #[must_use]
    pub fn replay(events: &[Self]) -> Register {
        Register::extended(events.iter().map(|event| &event.digest))
    }
}

/// Digests of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Initrd {
    size: u64,
    sha256: [u8; 32],
    sha384: Digest,
}

impl Initrd {
    /// Of an initrd in memory.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self { size: bytes.len() as u64, sha256: Sha256::digest(bytes).into(), sha384: sha384(&[bytes]) }
    }

    /// Of a file, streamed.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn read(path: &Path) -> Result<Self, BootError> {
        let (mut sha256, mut sha384, mut size) = (Sha256::new(), Sha384::new(), 0_u64);
        let take = |bytes: &[u8]| {
            sha256.update(bytes);
            sha384.update(bytes);
            size += bytes.len() as u64;
        };
        stream(path, take).map_err(|source| BootError::Read { path: path.to_owned(), source })?;
        Ok(Self { size, sha256: sha256.finalize().into(), sha384: sha384.finalize().into() })
    }

    /// Its SHA-256, by which manifests name it.
    #[must_use]
    pub const fn sha256(&self) -> &[u8; 32] {
        &self.sha256
    }
}

/// What a VMM starts directly.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirectBoot {
    kernel: Digest,
    kernel_sha256: [u8; 32],
    initrd: Option<Initrd>,
    append: String,
}

impl DirectBoot {
    /// A kernel image, an initrd, and a command line without trailing NUL.
    ///
    /// # Errors
    /// When the firmware could not load the kernel as an EFI application, or QEMU not start it.
    pub fn new(kernel: Vec<u8>, initrd: Option<Initrd>, append: &str, header: KernelHeader) -> Result<Self, BootError> {
        // Firmware makes a 16-bit unit of each byte: other text would be measured, and read by the kernel, as something else.
        if let Some(found) = append.chars().find(|c| !matches!(c, ' '..='~' | '\t')) {
            return Err(BootError::CommandLine { found });
        }
        if initrd.as_ref().is_some_and(|initrd| initrd.size == 0) {
            return Err(BootError::EmptyInitrd);
        }
        let kernel_sha256 = Sha256::digest(&kernel).into();
        let mut image = kernel;
        if let KernelHeader::FilledIn(memory) = header {
            fill_in(&mut image, memory, initrd.as_ref().map(|initrd| initrd.size), append)?;
        }
        Ok(Self { kernel: authenticode(&image)?, kernel_sha256, initrd, append: append.to_owned() })
    }

    /// The same from files. The initrd is streamed.
    ///
    /// # Errors
    /// When one cannot be read, the kernel is too large, or as [`Self::new`].
    pub fn of_files(kernel: &Path, initrd: Option<&Path>, append: &str, header: KernelHeader) -> Result<Self, BootError> {
        let read = || -> io::Result<Vec<u8>> {
            let mut bytes = Vec::new();
            File::open(kernel)?.take(MAX_KERNEL_BYTES + 1).read_to_end(&mut bytes)?;
            Ok(bytes)
        };
        let bytes = read().map_err(|source| BootError::Read { path: kernel.to_owned(), source })?;
        if bytes.len() as u64 > MAX_KERNEL_BYTES {
            return Err(BootError::KernelTooLarge { path: kernel.to_owned() });
        }
        Self::new(bytes, initrd.map(Initrd::read).transpose()?, append, header)
    }

    /// SHA-256 of the kernel's file, by which manifests name it.
    #[must_use]
    pub const fn kernel_sha256(&self) -> &[u8; 32] {
        &self.kernel_sha256
    }

    /// The initrd.
    #[must_use]
    pub const fn initrd(&self) -> Option<&Initrd> {
        self.initrd.as_ref()
    }

    /// The command line.
    #[must_use]
    pub fn append(&self) -> &str {
        &self.append
    }

    /// What RTMR1 is extended with: the kernel, and what the firmware did with it.
    #[must_use]
    pub fn rtmr_1(&self, edk2: Edk2) -> Vec<Event> {
        let mut events = vec![
            Event { what: "kernel", digest: self.kernel },
            Event::of("calling the kernel", b"Calling EFI Application from Boot Option"),
        ];
        if edk2 >= Edk2::From202411 {
            events.push(Event::separator());
        }
        events.push(Event::of("exit of boot services", b"Exit Boot Services Invocation"));
        events.push(Event::of("success of that", b"Exit Boot Services Returned with Success"));
        events
    }

    /// What RTMR2 is extended with: command line and initrd.
    #[must_use]
    pub fn rtmr_2(&self, edk2: Edk2) -> Vec<Event> {
        let mut events = Vec::new();
        let options = self.load_options(edk2);
        if !options.is_empty() {
            let utf16: Vec<u8> = options.encode_utf16().chain([0]).flat_map(u16::to_le_bytes).collect();
            events.push(Event::of("command line", &utf16));
        }
        if let Some(initrd) = &self.initrd {
            events.push(Event { what: "initrd", digest: initrd.sha384 });
        }
        events
    }

    /// The command line as the firmware hands it to the kernel.
    #[must_use]
    pub fn load_options(&self, edk2: Edk2) -> String {
        let append = &self.append;
        match &self.initrd {
            None => append.clone(),
            Some(_) if edk2 >= Edk2::From202508 => format!("initrd=initrd {append}"),
            Some(_) => format!("{append} initrd=initrd"),
        }
    }
}

/// Why a boot cannot be predicted.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// A file could not be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The kernel is larger than any.
    #[error("the kernel {} has more than {MAX_KERNEL_BYTES} bytes", path.display())]
    KernelTooLarge {
        /// Which file.
        path: PathBuf,
    },
    /// The kernel is not an EFI application.
    #[error("the kernel cannot be measured")]
    Kernel(#[from] PeError),
    /// QEMU could not start it, or not as described.
    #[error(transparent)]
    Header(#[from] KernelHeaderError),
    /// Text whose measurement depends on who converts it.
    #[error("expected a command line of printable ASCII characters, found {found:?} in it")]
    CommandLine {
        /// The first that is not.
        found: char,
    },
    /// Firmware takes an empty initrd for none.
    #[error("the initrd is empty; leave it out")]
    EmptyInitrd,
}
