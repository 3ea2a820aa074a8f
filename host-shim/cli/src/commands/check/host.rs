//! The host as the checks see it. Tests put a directory in place of `/`, and recorded answers in place of programs and of CPUID.
//!
//! Invariant: what cannot be read is told apart from what is not there, and neither counts as a yes. Nothing is read without a bound.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// `/proc/cpuinfo` of the largest hosts is a few MiB; everything else is far smaller.
const MAX_TEXT_BYTES: u64 = 32 << 20;

/// EAX, EBX, ECX and EDX of one CPUID leaf.
pub(super) type Registers = [u32; 4];

/// What looking at one thing showed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Seen<T> {
    /// It is not there.
    Absent,
    /// It is there and does not tell: what the system said, or what is wrong with it.
    Unreadable(String),
    /// It is this.
    Is(T),
}

impl<T> Seen<T> {
    pub(super) fn map<U>(self, f: impl FnOnce(T) -> U) -> Seen<U> {
        match self {
            Seen::Absent => Seen::Absent,
            Seen::Unreadable(why) => Seen::Unreadable(why),
            Seen::Is(value) => Seen::Is(f(value)),
        }
    }

    fn from_io(result: io::Result<T>) -> Self {
        match result {
            Ok(value) => Seen::Is(value),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Seen::Absent,
            Err(error) => Seen::Unreadable(error.to_string()),
        }
    }
}

impl Seen<bool> {
    /// For people: `yes`, `no`, `missing`, or why it does not tell.
    pub(super) fn words(&self) -> String {
        match self {
            Seen::Is(true) => "yes".to_owned(),
            Seen::Is(false) => "no".to_owned(),
            Seen::Absent => "missing".to_owned(),
            Seen::Unreadable(why) => format!("unreadable ({why})"),
        }
    }
}

/// The host.
pub(super) struct Host<'a> {
    /// In place of `/`.
    pub(super) root: PathBuf,
    /// Where programs are looked for.
    pub(super) path: Option<OsString>,
    /// First line a program prints for `--version`.
    pub(super) version: &'a dyn Fn(&Path) -> Option<String>,
    /// One CPUID leaf; `None` where the processor has no such leaf, or no CPUID.
    pub(super) cpuid: &'a dyn Fn(u32) -> Option<Registers>,
}

impl Host<'_> {
    /// Where an absolute path of the host is.
    pub(super) fn at(&self, path: impl AsRef<Path>) -> PathBuf {
        let path = path.as_ref();
        self.root.join(path.strip_prefix("/").unwrap_or(path))
    }

    /// Whether something has this name. A socket is not connected to, a device not opened.
    pub(super) fn there(&self, path: impl AsRef<Path>) -> Seen<()> {
        Seen::from_io(fs::metadata(self.at(path)).map(|_| ()))
    }

    /// Whether this user can open a device to read and write.
    pub(super) fn opens(&self, path: impl AsRef<Path>) -> Seen<()> {
        Seen::from_io(OpenOptions::new().read(true).write(true).open(self.at(path)).map(|_| ()))
    }

    /// A whole file of at most so many bytes.
    pub(super) fn bytes(&self, path: impl AsRef<Path>, max: u64) -> Seen<Vec<u8>> {
        let read = || {
            let mut bytes = Vec::new();
            File::open(self.at(path))?.take(max + 1).read_to_end(&mut bytes)?;
            if bytes.len() as u64 > max {
                return Err(io::Error::other(format!("larger than {max} bytes")));
            }
            Ok(bytes)
        };
        Seen::from_io(read())
    }

    /// Whether a file of any size can be read and has a first byte.
    pub(super) fn begins(&self, path: impl AsRef<Path>) -> Seen<bool> {
        let first = || File::open(self.at(path))?.read(&mut [0]);
        Seen::from_io(first().map(|bytes| bytes > 0))
    }

    /// A text file without the white space around it.
    pub(super) fn text(&self, path: impl AsRef<Path>) -> Seen<String> {
        match self.bytes(path, MAX_TEXT_BYTES) {
            Seen::Is(bytes) => match String::from_utf8(bytes) {
                Ok(text) => Seen::Is(text.trim().to_owned()),
                Err(error) => Seen::Unreadable(format!("not UTF-8 text: {}", error.utf8_error())),
            },
            other => other.map(|_| String::new()),
        }
    }

    /// A program on PATH.
    pub(super) fn program(&self, name: &str) -> Option<PathBuf> {
        let path = self.path.as_ref()?;
        std::env::split_paths(path).map(|dir| dir.join(name)).find(|file| file.is_file())
    }

    /// Whether a word is in the first line of this name in `/proc/cpuinfo` (`flags` of x86, `facilities` of s390x).
    pub(super) fn cpu(&self, line: &str, word: &str) -> Seen<bool> {
        self.text("/proc/cpuinfo").map(|text| {
            let values = text.lines().filter_map(|l| l.split_once(':')).find(|(name, _)| name.trim() == line);
            values.is_some_and(|(_, words)| words.split_whitespace().any(|w| w == word))
        })
    }

    /// Whether this is a machine of IBM Z, whose `/proc/cpuinfo` lists facilities.
    pub(super) fn is_s390x(&self) -> bool {
        let lists = |text: String| text.lines().any(|l| l.starts_with("facilities"));
        self.text("/proc/cpuinfo").map(lists) == Seen::Is(true)
    }

    /// A parameter of a loaded kernel module that is on or off: `Y` and `N`, or numbers in older kernels.
    pub(super) fn parameter(&self, module: &str, parameter: &str) -> Seen<bool> {
        self.text(format!("/sys/module/{module}/parameters/{parameter}")).map(|text| text.starts_with(['Y', '1']))
    }

    /// How much of a resource the kernel has to give (`misc.capacity` of the root cgroup). `None`: a kernel that counts has none of it.
    pub(super) fn capacity(&self, resource: &str) -> Seen<Option<u64>> {
        let text = match self.text("/sys/fs/cgroup/misc.capacity") {
            Seen::Is(text) => text,
            other => return other.map(|_| None),
        };
        // Whole words: `sev` is also how `sev_es` begins.
        let line = text.lines().map(|l| l.split_whitespace().collect::<Vec<_>>()).find(|words| words.first() == Some(&resource));
        match line.as_deref() {
            None => Seen::Is(None),
            Some([_, count]) if count.parse::<u64>().is_ok() => Seen::Is(count.parse().ok()),
            Some(words) => Seen::Unreadable(format!("expected one number behind {resource}, found {:?}", words.join(" "))),
        }
    }

    /// `(major, minor)` that a program tells of itself.
    pub(super) fn version(&self, program: &Path) -> Option<(u32, u32)> {
        (self.version)(program).as_deref().and_then(parse_version)
    }
}

/// First line a program prints for `--version`.
pub(super) fn version_of(program: &Path) -> Option<String> {
    let output = Command::new(program).arg("--version").stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout);
    text.lines().next().map(|l| l.chars().take(200).collect())
}

/// A leaf of the processor this runs on. Only extended leaves are asked for, which AMD's have up to the number in EAX of the first.
#[cfg(target_arch = "x86_64")]
pub(super) fn cpuid_of(leaf: u32) -> Option<Registers> {
    use core::arch::x86_64::__cpuid_count;
    if leaf > __cpuid_count(leaf & 0x8000_0000, 0).eax {
        return None;
    }
    let found = __cpuid_count(leaf, 0);
    Some([found.eax, found.ebx, found.ecx, found.edx])
}

/// Other processors have no CPUID.
#[cfg(not(target_arch = "x86_64"))]
pub(super) fn cpuid_of(_leaf: u32) -> Option<Registers> {
    None
}

/// `(major, minor)` of the first thing in a text that looks like a version.
pub(super) fn parse_version(text: &str) -> Option<(u32, u32)> {
    text.split(|c: char| !(c.is_ascii_digit() || c == '.')).find_map(|word| {
        let mut parts = word.split('.');
        Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
    })
}
