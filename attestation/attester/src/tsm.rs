//! configfs-tsm: the kernel's interface to reports (Linux `Documentation/ABI/testing/configfs-tsm`, since 6.7).
//!
//! `mkdir` makes an entry; writing `inblob` sets the report data, reading `outblob` makes the report, `auxblob` has the host's
//! certificates. `generation` counts writes: by it a reader knows that nobody else wrote to the entry in between.
//!
//! **Invariant:** a report is returned only if exactly one write, ours, happened between two readings of `generation`, and the provider was
//! the expected one before and after. Retries are bounded; the entry is removed whatever happens.

use std::fmt;
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use kata_cc_evidence::ReportData;
use nix::errno::Errno;

/// Where the kernel has it.
pub const DEFAULT_PATH: &str = "/sys/kernel/config/tsm/report";

/// Whose reports the kernel gives out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Provider {
    /// SEV-SNP reports.
    SevGuest,
    /// TDX quotes.
    TdxGuest,
}

impl Provider {
    /// Those this agent attests with.
    const ALL: [Self; 2] = [Self::SevGuest, Self::TdxGuest];

    /// What the kernel calls it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::SevGuest => "sev_guest",
            Self::TdxGuest => "tdx_guest",
        }
    }
}

/// How often a report is asked for before giving up on an entry others keep writing to.
const MAX_TRIES: u32 = 4;

/// How many entry names are tried.
const MAX_NAMES: u32 = 16;

/// `TSM_OUTBLOB_MAX` of the kernel this was written for.
const MAX_BLOB: usize = 32 * 1024;

/// Numbers and names are short.
const MAX_TEXT: usize = 64;

/// Why configfs-tsm gave no report.
#[derive(Debug, thiserror::Error)]
pub enum TsmError {
    /// An operation on an entry failed.
    #[error("configfs-tsm: {operation} {attribute}")]
    Io {
        /// What was done.
        operation: &'static str,
        /// To which attribute of the entry.
        attribute: &'static str,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// Every name is taken.
    #[error("configfs-tsm: no free entry name after {MAX_NAMES} tries; entries of a former process are left over")]
    NoFreeName,
    /// The provider is another TEE's, or changed.
    #[error("configfs-tsm: provider is {found:?}, expected {expected}")]
    Provider {
        /// What the provider is.
        found: String,
        /// What it should be.
        expected: &'static str,
    },
    /// An attribute is too long.
    #[error("configfs-tsm: {attribute} has more than {limit} bytes")]
    TooLong {
        /// Which.
        attribute: &'static str,
        /// The bound.
        limit: usize,
    },
    /// `generation` is no number.
    #[error("configfs-tsm: generation is not a number")]
    Generation,
    /// Somebody else keeps writing.
    #[error("configfs-tsm: another process wrote to our entry each of {MAX_TRIES} times; no report of ours could be had")]
    Contended,
}

/// What an entry gives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blobs {
    /// The raw report.
    pub out: Vec<u8>,
    /// The raw certificate table, empty where the host has none.
    pub aux: Vec<u8>,
}

/// Access to the entries' files: a seam so that tests can play the kernel and whoever races with us.
trait EntryFs: fmt::Debug + Send + Sync {
    fn create(&self, name: &str) -> io::Result<()>;
    fn remove(&self, name: &str) -> io::Result<()>;
    /// At most `limit` bytes; one more means there were more.
    fn read(&self, name: &str, attribute: &str, limit: usize) -> io::Result<Vec<u8>>;
    fn write(&self, name: &str, attribute: &str, bytes: &[u8]) -> io::Result<()>;
}

#[derive(Debug)]
struct Configfs {
    root: PathBuf,
}

impl EntryFs for Configfs {
    fn create(&self, name: &str) -> io::Result<()> {
        std::fs::create_dir(self.root.join(name))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        std::fs::remove_dir(self.root.join(name))
    }

    fn read(&self, name: &str, attribute: &str, limit: usize) -> io::Result<Vec<u8>> {
        let file = std::fs::File::open(self.root.join(name).join(attribute))?;
        let mut bytes = Vec::new();
        file.take(limit as u64 + 1).read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    fn write(&self, name: &str, attribute: &str, bytes: &[u8]) -> io::Result<()> {
        // One write, then close: configfs takes a binary attribute over when its file is closed. What goes wrong there cannot be seen
        // from here, but leaves `generation` unmoved, which is.
        let mut file = std::fs::OpenOptions::new().write(true).open(self.root.join(name).join(attribute))?;
        file.write_all(bytes)
    }
}

/// The report interface of the kernel.
#[derive(Debug)]
pub struct ReportInterface {
    fs: Box<dyn EntryFs>,
}

impl ReportInterface {
    /// At `root`, usually [`DEFAULT_PATH`]. Nothing is touched yet.
    #[must_use]
    pub fn at(root: &Path) -> Self {
        Self { fs: Box::new(Configfs { root: root.to_owned() }) }
    }

    /// Whose reports are there? `None` when there is no interface, or an interface without a TEE behind it.
    ///
    /// # Errors
    /// When there is a provider that this agent does not know, or the interface fails.
    pub fn probe(&self) -> Result<Option<Provider>, TsmError> {
        match Entry::create(self.fs.as_ref()) {
            Ok(entry) => {
                let found = entry.provider()?;
                let known = Provider::ALL.into_iter().find(|provider| provider.name() == found);
                known.map(Some).ok_or(TsmError::Provider { found, expected: "\"sev_guest\" or \"tdx_guest\"" })
            }
            // No directory: no interface. ENXIO: the kernel has the interface, and no TEE registered with it.
            Err(TsmError::Io { source, .. })
                if matches!(source.raw_os_error().map(Errno::from_raw), Some(Errno::ENOENT | Errno::ENOTDIR | Errno::ENXIO)) =>
            {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Gets a report of `provider` over `report_data`.
    ///
    /// # Errors
    /// When the provider is another, an operation fails, or others keep interfering.
    pub fn report(&self, provider: Provider, report_data: &ReportData) -> Result<Blobs, TsmError> {
        let entry = Entry::create(self.fs.as_ref())?;
        for _ in 0..MAX_TRIES {
            entry.check_provider(provider)?;
            let before = entry.generation()?;
            entry.write("inblob", report_data.as_ref())?;
            let out = match entry.read("outblob", MAX_BLOB) {
                // A write by somebody else was under way: the same as one we notice afterwards.
                Err(TsmError::Io { source, .. }) if source.kind() == io::ErrorKind::WouldBlock => continue,
                other => other?,
            };
            let aux = match entry.read("auxblob", MAX_BLOB) {
                Err(TsmError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => Vec::new(),
                Err(TsmError::Io { source, .. }) if source.kind() == io::ErrorKind::WouldBlock => continue,
                other => other?,
            };
            if entry.generation()? == before.wrapping_add(1) {
                entry.check_provider(provider)?;
                return Ok(Blobs { out, aux });
            }
        }
        Err(TsmError::Contended)
    }
}

/// One entry, removed when dropped.
struct Entry<'a> {
    fs: &'a dyn EntryFs,
    name: String,
}

impl<'a> Entry<'a> {
    /// Names are ours by process id and count, so that no two requests of one process share an entry.
    fn create(fs: &'a dyn EntryFs) -> Result<Self, TsmError> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        for _ in 0..MAX_NAMES {
            let name = format!("kata-cc-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
            match fs.create(&name) {
                Ok(()) => return Ok(Self { fs, name }),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(source) => return Err(TsmError::Io { operation: "create", attribute: "entry", source }),
            }
        }
        Err(TsmError::NoFreeName)
    }

    fn read(&self, attribute: &'static str, limit: usize) -> Result<Vec<u8>, TsmError> {
        let bytes = self.fs.read(&self.name, attribute, limit).map_err(|source| TsmError::Io { operation: "read", attribute, source })?;
        if bytes.len() > limit { Err(TsmError::TooLong { attribute, limit }) } else { Ok(bytes) }
    }

    fn write(&self, attribute: &'static str, bytes: &[u8]) -> Result<(), TsmError> {
        self.fs.write(&self.name, attribute, bytes).map_err(|source| TsmError::Io { operation: "write", attribute, source })
    }

    fn generation(&self) -> Result<u64, TsmError> {
        let text = self.read("generation", MAX_TEXT)?;
        std::str::from_utf8(&text).ok().and_then(|text| text.trim().parse().ok()).ok_or(TsmError::Generation)
    }

    fn provider(&self) -> Result<String, TsmError> {
        let found = self.read("provider", MAX_TEXT)?;
        Ok(String::from_utf8_lossy(found.strip_suffix(b"\n").unwrap_or(&found)).into_owned())
    }

    fn check_provider(&self, expected: Provider) -> Result<(), TsmError> {
        let found = self.provider()?;
        if found == expected.name() { Ok(()) } else { Err(TsmError::Provider { found, expected: expected.name() }) }
    }
}

impl Drop for Entry<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.fs.remove(&self.name) {
            tracing::warn!(%error, entry = %self.name, "configfs-tsm entry could not be removed");
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::collections::BTreeMap;
    use std::sync::{Arc, Mutex};

    /// What another process does right after our write of `inblob`.
    pub(crate) type Race = Box<dyn Fn(&mut FakeEntry) + Send + Sync>;

    #[derive(Default)]
    pub(crate) struct FakeEntry {
        generation: u64,
        inblob: Vec<u8>,
        provider: String,
    }

    /// What is in `outblob` for an `inblob`.
    pub(crate) type Make = Box<dyn Fn(&[u8]) -> Vec<u8> + Send + Sync>;

    /// Plays the kernel: `outblob` is made, or else the word `report` followed by `inblob`.
    #[derive(Default)]
    pub(crate) struct Kernel {
        pub(crate) entries: Mutex<BTreeMap<String, FakeEntry>>,
        pub(crate) created: Mutex<u32>,
        pub(crate) provider: String,
        pub(crate) make: Option<Make>,
        pub(crate) race: Option<Race>,
        pub(crate) mkdir: Option<Errno>,
        pub(crate) outblob: Option<Errno>,
        pub(crate) big: bool,
        pub(crate) without_aux: bool,
    }

    impl fmt::Debug for Kernel {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("Kernel")
        }
    }

    #[derive(Debug)]
    struct Shared(Arc<Kernel>);

    fn errno(errno: Errno) -> io::Error {
        io::Error::from_raw_os_error(errno as i32)
    }

    impl EntryFs for Shared {
        fn create(&self, name: &str) -> io::Result<()> {
            if let Some(error) = self.0.mkdir {
                return Err(errno(error));
            }
            *self.0.created.lock().expect("lock") += 1;
            let entry = FakeEntry { provider: self.0.provider.clone(), ..FakeEntry::default() };
            self.0.entries.lock().expect("lock").insert(name.into(), entry);
            Ok(())
        }
        fn remove(&self, name: &str) -> io::Result<()> {
            self.0.entries.lock().expect("lock").remove(name).map(|_| ()).ok_or_else(|| errno(Errno::ENOENT))
        }
        fn read(&self, name: &str, attribute: &str, limit: usize) -> io::Result<Vec<u8>> {
            let entries = self.0.entries.lock().expect("lock");
            let entry = entries.get(name).ok_or_else(|| errno(Errno::ENOENT))?;
            let bytes = match attribute {
                "generation" => format!("{}\n", entry.generation).into_bytes(),
                "provider" => format!("{}\n", entry.provider).into_bytes(),
                "outblob" => match self.0.outblob {
                    Some(error) => return Err(errno(error)),
                    None if self.0.big => vec![0; 100_000],
                    None => match &self.0.make {
                        Some(make) => make(&entry.inblob),
                        None => [b"report", entry.inblob.as_slice()].concat(),
                    },
                },
                "auxblob" if self.0.without_aux => return Err(errno(Errno::ENOENT)),
                "auxblob" => b"certificates".to_vec(),
                _ => return Err(errno(Errno::ENOENT)),
            };
            Ok(bytes.into_iter().take(limit + 1).collect())
        }
        fn write(&self, name: &str, attribute: &str, bytes: &[u8]) -> io::Result<()> {
            assert_eq!(attribute, "inblob");
            let mut entries = self.0.entries.lock().expect("lock");
            let entry = entries.get_mut(name).ok_or_else(|| errno(Errno::ENOENT))?;
            entry.inblob = bytes.to_vec();
            entry.generation += 1;
            if let Some(race) = &self.0.race {
                race(entry);
            }
            Ok(())
        }
    }

    /// The interface of such a kernel.
    pub(crate) fn interface(kernel: Kernel) -> ReportInterface {
        ReportInterface { fs: Box::new(Shared(Arc::new(kernel))) }
    }

    fn kernel() -> Kernel {
        Kernel { provider: "sev_guest".into(), ..Kernel::default() }
    }

    #[track_caller]
    fn ask(kernel: Kernel) -> (Result<Blobs, TsmError>, Arc<Kernel>) {
        let kernel = Arc::new(kernel);
        let result = ReportInterface { fs: Box::new(Shared(kernel.clone())) }.report(Provider::SevGuest, &ReportData([7; 64]));
        assert!(kernel.entries.lock().expect("lock").is_empty(), "an entry was left behind");
        (result, kernel)
    }

    #[test]
    fn gives_the_report_over_the_data_asked_for() {
        let (result, _) = ask(kernel());
        let blobs = result.expect("a report");
        assert_eq!(blobs.out, [&b"report"[..], &[7; 64]].concat());
        assert_eq!(blobs.aux, b"certificates");
        let (result, _) = ask(Kernel { without_aux: true, ..kernel() });
        assert_eq!(result.expect("a report").aux, b"");
    }

    #[test]
    fn ac_58_asks_again_when_somebody_else_wrote_in_between() {
        let left = Mutex::new(2);
        let race: Race = Box::new(move |entry| {
            let mut left = left.lock().expect("lock");
            if *left > 0 {
                *left -= 1;
                entry.inblob = vec![9; 64];
                entry.generation += 1;
            }
        });
        let (result, _) = ask(Kernel { race: Some(race), ..kernel() });
        assert_eq!(result.expect("a report").out[6], 7);
    }

    #[test]
    fn ac_58_gives_up_when_somebody_else_always_writes() {
        let race: Race = Box::new(|entry| entry.generation += 1);
        assert!(matches!(ask(Kernel { race: Some(race), ..kernel() }).0, Err(TsmError::Contended)));
    }

    #[test]
    fn ac_58_gives_up_when_generation_never_changes() {
        let race: Race = Box::new(|entry| entry.generation = 0);
        assert!(matches!(ask(Kernel { race: Some(race), ..kernel() }).0, Err(TsmError::Contended)));
        assert!(matches!(ask(Kernel { outblob: Some(Errno::EAGAIN), ..kernel() }).0, Err(TsmError::Contended)));
    }

    #[test]
    fn ac_58_refuses_another_provider_before_and_after() {
        let other = Kernel { provider: "tdx_guest".into(), ..kernel() };
        assert!(matches!(ask(other).0, Err(TsmError::Provider { found, .. }) if found == "tdx_guest"));
        let race: Race = Box::new(|entry| entry.provider = "sample".into());
        assert!(matches!(ask(Kernel { race: Some(race), ..kernel() }).0, Err(TsmError::Provider { found, .. }) if found == "sample"));
        let similar = Kernel { provider: "sev_guest2".into(), ..kernel() };
        assert!(matches!(ask(similar).0, Err(TsmError::Provider { .. })));
    }

    #[test]
    fn refuses_blobs_beyond_the_kernels_bound() {
        assert!(matches!(ask(Kernel { big: true, ..kernel() }).0, Err(TsmError::TooLong { attribute: "outblob", .. })));
    }

    #[test]
    fn failures_name_the_step_and_leave_nothing_behind() {
        let (result, _) = ask(Kernel { outblob: Some(Errno::EIO), ..kernel() });
        assert!(matches!(result, Err(TsmError::Io { operation: "read", attribute: "outblob", .. })));
        let (result, kernel) = ask(Kernel { mkdir: Some(Errno::EEXIST), ..kernel() });
        assert!(matches!(result, Err(TsmError::NoFreeName)));
        assert_eq!(*kernel.created.lock().expect("lock"), 0);
    }

    #[test]
    fn probe_tells_no_interface_from_a_failing_one() {
        let probe = |kernel: Kernel| interface(kernel).probe();
        assert!(matches!(probe(kernel()), Ok(Some(Provider::SevGuest))));
        assert!(matches!(probe(Kernel { provider: "tdx_guest".into(), ..kernel() }), Ok(Some(Provider::TdxGuest))));
        for nothing in [Errno::ENOENT, Errno::ENOTDIR, Errno::ENXIO] {
            assert!(matches!(probe(Kernel { mkdir: Some(nothing), ..kernel() }), Ok(None)));
        }
        assert!(matches!(probe(Kernel { mkdir: Some(Errno::EPERM), ..kernel() }), Err(TsmError::Io { .. })));
        for unknown in ["arm_cca_guest", "tdx_guest2", "", "sample"] {
            assert!(matches!(probe(Kernel { provider: unknown.into(), ..kernel() }), Err(TsmError::Provider { .. })), "{unknown}");
        }
    }
}
