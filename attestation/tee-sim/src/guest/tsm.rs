//! The kernel's configfs-tsm report interface as a pure state machine: entries, attributes, generations. No FUSE, no sockets.
//!
//! Follows `drivers/virt/coco/tsm.c` and Documentation/ABI/testing/configfs-tsm-report of Linux 6.12:
//!
//! * `mkdir NAME` makes an entry with the attributes below, `rmdir NAME` removes it;
//! * a write of `inblob` or `privlevel` advances the *write generation*, which `generation` shows;
//! * a read of `outblob` or `auxblob` with `inblob` unset answers EINVAL; with *read generation* ≠ write generation it asks the
//!   hardware for a fresh report and sets the read generation; otherwise it serves the cached one;
//! * a write that would bring the write generation round to the read generation again answers EBUSY.
//!
//! **Invariant:** no blob is ever served for an input other than the last one written.

use crate::wire::Blobs;
use std::collections::BTreeMap;

/// Longest `inblob` the kernel takes (`TSM_REPORT_INBLOB_MAX`).
pub const INBLOB_MAX: usize = 64;
/// What the SNP and TDX drivers insist on: exactly 64 bytes of report data.
const REPORT_DATA_LEN: usize = 64;
const PRIVLEVEL_MAX: u32 = 3;
/// Entries are cheap for the kernel but this process holds them, so there is a bound.
const MAX_ENTRIES: usize = 64;
/// Longest entry name configfs takes.
const NAME_MAX: usize = 255;

/// Errors as the kernel's interface gives them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// No such entry.
    NotFound,
    /// An entry of this name exists.
    Exists,
    /// Not allowed on this file or here.
    NotPermitted,
    /// Value out of range, or no input yet.
    Invalid,
    /// Too many writes without a read.
    Busy,
    /// Input longer than the attribute takes.
    TooBig,
    /// Too many entries.
    NoSpace,
    /// Entry name too long.
    NameTooLong,
    /// The hardware did not answer.
    Io,
}

/// The attributes of an entry, in the order directories list them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attribute {
    /// Report data in.
    Inblob,
    /// Report out.
    Outblob,
    /// Certificate table out.
    Auxblob,
    /// Name of the driver.
    Provider,
    /// Write generation.
    Generation,
    /// Privilege level asked for.
    Privlevel,
    /// Lowest privilege level that may be asked for.
    PrivlevelFloor,
}

impl Attribute {
    /// All of them.
    pub const ALL: [Self; 7] =
        [Self::Inblob, Self::Outblob, Self::Auxblob, Self::Provider, Self::Generation, Self::Privlevel, Self::PrivlevelFloor];

    /// File name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Inblob => "inblob",
            Self::Outblob => "outblob",
            Self::Auxblob => "auxblob",
            Self::Provider => "provider",
            Self::Generation => "generation",
            Self::Privlevel => "privlevel",
            Self::PrivlevelFloor => "privlevel_floor",
        }
    }

    /// By file name.
    pub fn by_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|a| a.name() == name)
    }

    /// Mode bits of the file: write-only inputs, read-only outputs.
    pub fn mode(self) -> u16 {
        if self.writable() { 0o200 } else { 0o400 }
    }

    /// Whether it takes writes.
    pub fn writable(self) -> bool {
        matches!(self, Self::Inblob | Self::Privlevel)
    }
}

/// The driver that registered with the interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Provider {
    /// SNP reports.
    SevGuest,
    /// TDX quotes.
    TdxGuest,
}

impl Provider {
    /// What the kernel calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::SevGuest => "sev_guest",
            Self::TdxGuest => "tdx_guest",
        }
    }

    /// Whether its entries have this attribute: a TD has no privilege levels to ask for, and its driver gives nothing beside the quote.
    pub fn has(self, attribute: Attribute) -> bool {
        match self {
            Self::SevGuest => true,
            Self::TdxGuest => !matches!(attribute, Attribute::Auxblob | Attribute::Privlevel | Attribute::PrivlevelFloor),
        }
    }
}

/// Identifies an entry for its lifetime; never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct EntryId(pub u64);

/// Where reports come from.
pub trait Hardware {
    /// A report over `report_data` at `vmpl`. Any failure is EIO to the reader; the implementation logs why.
    fn report(&mut self, report_data: &[u8; 64], vmpl: u8) -> Result<Blobs, Refusal>;
}

#[derive(Debug)]
struct Entry {
    name: String,
    inblob: Vec<u8>,
    privlevel: u32,
    write_generation: u64,
    read_generation: u64,
    blobs: Option<Blobs>,
}

impl Entry {
    fn advance(&mut self) -> Result<(), Refusal> {
        if self.write_generation == self.read_generation.wrapping_sub(1) {
            return Err(Refusal::Busy);
        }
        self.write_generation = self.write_generation.wrapping_add(1);
        Ok(())
    }

    fn fresh(&self) -> Option<&Blobs> {
        self.blobs.as_ref().filter(|_| self.read_generation == self.write_generation)
    }
}

/// The state behind `/sys/kernel/config/tsm/report`.
#[derive(Debug)]
pub struct ReportInterface<H> {
    hardware: H,
    provider: Provider,
    entries: BTreeMap<EntryId, Entry>,
    next: u64,
}

impl<H: Hardware> ReportInterface<H> {
    /// An interface without entries.
    pub fn new(hardware: H, provider: Provider) -> Self {
        Self { hardware, provider, entries: BTreeMap::new(), next: 1 }
    }

    /// The driver.
    pub fn provider(&self) -> Provider {
        self.provider
    }

    /// `mkdir NAME`.
    pub fn make(&mut self, name: &str) -> Result<EntryId, Refusal> {
        if name.len() > NAME_MAX {
            return Err(Refusal::NameTooLong);
        }
        if self.find(name).is_some() {
            return Err(Refusal::Exists);
        }
        if self.entries.len() >= MAX_ENTRIES {
            return Err(Refusal::NoSpace);
        }
        let id = EntryId(self.next);
        self.next += 1;
        let entry = Entry { name: name.into(), inblob: Vec::new(), privlevel: 0, write_generation: 0, read_generation: 0, blobs: None };
        self.entries.insert(id, entry);
        Ok(id)
    }

    /// `rmdir NAME`.
    pub fn remove(&mut self, name: &str) -> Result<(), Refusal> {
        let id = self.find(name).ok_or(Refusal::NotFound)?;
        self.entries.remove(&id);
        Ok(())
    }

    /// The entry of this name.
    pub fn find(&self, name: &str) -> Option<EntryId> {
        self.entries.iter().find(|(_, e)| e.name == name).map(|(id, _)| *id)
    }

    /// Whether the entry is still there.
    pub fn contains(&self, id: EntryId) -> bool {
        self.entries.contains_key(&id)
    }

    /// Entries and their names.
    pub fn list(&self) -> impl Iterator<Item = (EntryId, &str)> {
        self.entries.iter().map(|(id, e)| (*id, e.name.as_str()))
    }

    /// A complete write of an attribute.
    pub fn write(&mut self, id: EntryId, attribute: Attribute, value: &[u8]) -> Result<(), Refusal> {
        let entry = self.entries.get_mut(&id).filter(|_| self.provider.has(attribute)).ok_or(Refusal::NotFound)?;
        match attribute {
            Attribute::Inblob => {
                if value.len() > INBLOB_MAX {
                    return Err(Refusal::TooBig);
                }
                entry.advance()?;
                entry.inblob = value.to_vec();
                Ok(())
            }
            Attribute::Privlevel => {
                let text = std::str::from_utf8(value).map_err(|_| Refusal::Invalid)?;
                let level: u32 = text.strip_suffix('\n').unwrap_or(text).parse().map_err(|_| Refusal::Invalid)?;
                if level > PRIVLEVEL_MAX {
                    return Err(Refusal::Invalid);
                }
                entry.advance()?;
                entry.privlevel = level;
                Ok(())
            }
            _ => Err(Refusal::NotPermitted),
        }
    }

    /// A complete read of an attribute; asks the hardware where the cached report is stale.
    pub fn read(&mut self, id: EntryId, attribute: Attribute) -> Result<Vec<u8>, Refusal> {
        if !self.provider.has(attribute) {
            return Err(Refusal::NotFound);
        }
        match attribute {
            Attribute::Outblob => self.report(id).map(|b| b.outblob.clone()),
            Attribute::Auxblob => self.report(id).map(|b| b.auxblob.clone()),
            Attribute::Generation => {
                let entry = self.entries.get(&id).ok_or(Refusal::NotFound)?;
                Ok(format!("{}\n", entry.write_generation).into_bytes())
            }
            Attribute::Provider if self.contains(id) => Ok(format!("{}\n", self.provider.name()).into_bytes()),
            Attribute::PrivlevelFloor if self.contains(id) => Ok(b"0\n".to_vec()),
            Attribute::Provider | Attribute::PrivlevelFloor => Err(Refusal::NotFound),
            Attribute::Inblob | Attribute::Privlevel => Err(Refusal::NotPermitted),
        }
    }

    fn report(&mut self, id: EntryId) -> Result<&Blobs, Refusal> {
        let entry = self.entries.get_mut(&id).ok_or(Refusal::NotFound)?;
        if entry.inblob.is_empty() {
            return Err(Refusal::Invalid);
        }
        if entry.fresh().is_none() {
            entry.blobs = None;
            // The drivers' own rule, stricter than the interface's "at most 64".
            let report_data: [u8; REPORT_DATA_LEN] = entry.inblob.as_slice().try_into().map_err(|_| Refusal::Invalid)?;
            let vmpl = u8::try_from(entry.privlevel).map_err(|_| Refusal::Invalid)?;
            entry.blobs = Some(self.hardware.report(&report_data, vmpl)?);
            entry.read_generation = entry.write_generation;
        }
        entry.blobs.as_ref().ok_or(Refusal::Io)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Counts requests and answers with what it was asked, so that a stale answer shows.
    #[derive(Default)]
    struct Echo {
        asked: usize,
        broken: bool,
    }

    impl Hardware for Echo {
        fn report(&mut self, report_data: &[u8; 64], vmpl: u8) -> Result<Blobs, Refusal> {
            if self.broken {
                return Err(Refusal::Io);
            }
            self.asked += 1;
            Ok(Blobs { outblob: [report_data.as_slice(), &[vmpl]].concat(), auxblob: vec![self.asked as u8; 9000] })
        }
    }

    fn interface() -> (ReportInterface<Echo>, EntryId) {
        let mut tsm = ReportInterface::new(Echo::default(), Provider::SevGuest);
        let id = tsm.make("report0").unwrap();
        (tsm, id)
    }

    fn generation(tsm: &mut ReportInterface<Echo>, id: EntryId) -> String {
        String::from_utf8(tsm.read(id, Attribute::Generation).unwrap()).unwrap()
    }

    #[test]
    fn each_write_of_inblob_or_privlevel_advances_the_generation() {
        let (mut tsm, id) = interface();
        assert_eq!(generation(&mut tsm, id), "0\n");
        tsm.write(id, Attribute::Inblob, &[1; 64]).unwrap();
        assert_eq!(generation(&mut tsm, id), "1\n");
        tsm.write(id, Attribute::Privlevel, b"1\n").unwrap();
        assert_eq!(generation(&mut tsm, id), "2\n");
        tsm.read(id, Attribute::Outblob).unwrap();
        assert_eq!(generation(&mut tsm, id), "2\n", "reading does not advance");
    }

    #[test]
    fn refused_writes_leave_the_generation_alone() {
        let (mut tsm, id) = interface();
        assert_eq!(tsm.write(id, Attribute::Inblob, &[1; 65]), Err(Refusal::TooBig));
        assert_eq!(tsm.write(id, Attribute::Privlevel, b"4"), Err(Refusal::Invalid));
        assert_eq!(tsm.write(id, Attribute::Privlevel, b"one"), Err(Refusal::Invalid));
        assert_eq!(tsm.write(id, Attribute::Provider, b"x"), Err(Refusal::NotPermitted));
        assert_eq!(generation(&mut tsm, id), "0\n");
    }

    #[test]
    fn one_report_serves_outblob_and_auxblob_until_the_next_write() {
        let (mut tsm, id) = interface();
        tsm.write(id, Attribute::Inblob, &[1; 64]).unwrap();
        let out = tsm.read(id, Attribute::Outblob).unwrap();
        assert_eq!(out[..64], [1; 64]);
        assert_eq!(tsm.read(id, Attribute::Auxblob).unwrap(), vec![1; 9000]);
        assert_eq!(tsm.hardware.asked, 1);
        tsm.write(id, Attribute::Inblob, &[2; 64]).unwrap();
        assert_eq!(tsm.read(id, Attribute::Auxblob).unwrap(), vec![2; 9000]);
        assert_eq!(tsm.read(id, Attribute::Outblob).unwrap()[..64], [2; 64]);
        assert_eq!(tsm.hardware.asked, 2);
    }

    #[test]
    fn the_privilege_level_reaches_the_hardware() {
        let (mut tsm, id) = interface();
        tsm.write(id, Attribute::Inblob, &[1; 64]).unwrap();
        tsm.write(id, Attribute::Privlevel, b"2").unwrap();
        assert_eq!(tsm.read(id, Attribute::Outblob).unwrap()[64], 2);
    }

    #[test]
    fn refuses_to_report_without_input_or_with_a_short_one() {
        let (mut tsm, id) = interface();
        assert_eq!(tsm.read(id, Attribute::Outblob), Err(Refusal::Invalid));
        tsm.write(id, Attribute::Inblob, &[1; 48]).unwrap();
        assert_eq!(tsm.read(id, Attribute::Outblob), Err(Refusal::Invalid));
    }

    #[test]
    fn a_failed_report_is_an_error_and_never_the_former_report() {
        let (mut tsm, id) = interface();
        tsm.write(id, Attribute::Inblob, &[1; 64]).unwrap();
        tsm.read(id, Attribute::Outblob).unwrap();
        tsm.write(id, Attribute::Inblob, &[2; 64]).unwrap();
        tsm.hardware.broken = true;
        assert_eq!(tsm.read(id, Attribute::Outblob), Err(Refusal::Io));
        tsm.hardware.broken = false;
        assert_eq!(tsm.read(id, Attribute::Outblob).unwrap()[..64], [2; 64]);
    }

    #[test]
    fn writing_all_the_way_round_without_reading_is_busy() {
        let (mut tsm, id) = interface();
        tsm.write(id, Attribute::Inblob, &[1; 64]).unwrap();
        tsm.read(id, Attribute::Outblob).unwrap();
        let entry = tsm.entries.get_mut(&id).unwrap();
        entry.write_generation = entry.read_generation.wrapping_sub(1);
        assert_eq!(tsm.write(id, Attribute::Inblob, &[2; 64]), Err(Refusal::Busy));
        tsm.read(id, Attribute::Outblob).unwrap();
        tsm.write(id, Attribute::Inblob, &[2; 64]).unwrap();
    }

    #[test]
    fn entries_are_apart_and_go_away() {
        let (mut tsm, a) = interface();
        let b = tsm.make("report1").unwrap();
        tsm.write(a, Attribute::Inblob, &[1; 64]).unwrap();
        tsm.write(b, Attribute::Inblob, &[2; 64]).unwrap();
        assert_eq!(tsm.read(a, Attribute::Outblob).unwrap()[..64], [1; 64]);
        assert_eq!(tsm.read(b, Attribute::Outblob).unwrap()[..64], [2; 64]);
        assert_eq!(tsm.make("report0"), Err(Refusal::Exists));
        tsm.remove("report0").unwrap();
        assert_eq!(tsm.remove("report0"), Err(Refusal::NotFound));
        assert_eq!(tsm.read(a, Attribute::Outblob), Err(Refusal::NotFound));
        assert_ne!(tsm.make("report0").unwrap(), a, "an id is never used again");
    }

    #[test]
    fn entries_are_bounded() {
        let mut tsm = ReportInterface::new(Echo::default(), Provider::SevGuest);
        for i in 0..MAX_ENTRIES {
            tsm.make(&format!("r{i}")).unwrap();
        }
        assert_eq!(tsm.make("one-more"), Err(Refusal::NoSpace));
    }

    #[test]
    fn provider_is_the_snp_driver() {
        let (mut tsm, id) = interface();
        assert_eq!(tsm.read(id, Attribute::Provider).unwrap(), b"sev_guest\n");
        assert_eq!(tsm.read(id, Attribute::PrivlevelFloor).unwrap(), b"0\n");
        assert_eq!(tsm.read(id, Attribute::Inblob), Err(Refusal::NotPermitted));
    }

    #[test]
    fn entries_of_the_tdx_driver_have_no_levels_and_nothing_beside_the_quote() {
        let mut tsm = ReportInterface::new(Echo::default(), Provider::TdxGuest);
        let id = tsm.make("report0").unwrap();
        assert_eq!(tsm.read(id, Attribute::Provider).unwrap(), b"tdx_guest\n");
        tsm.write(id, Attribute::Inblob, &[1; 64]).unwrap();
        assert_eq!(tsm.read(id, Attribute::Outblob).unwrap()[..64], [1; 64]);
        assert_eq!(tsm.write(id, Attribute::Privlevel, b"1"), Err(Refusal::NotFound));
        for absent in [Attribute::Auxblob, Attribute::Privlevel, Attribute::PrivlevelFloor] {
            assert_eq!(tsm.read(id, absent), Err(Refusal::NotFound));
        }
    }
}
