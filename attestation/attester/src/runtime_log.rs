//! The guest's runtime event log: what happened after boot, appended and never taken back, and extended into RTMR3 where there is one.
//!
//! Entries are CoCo's (AAEL, see [`kata_cc_evidence::eventlog::Aael`]), behind the firmware's log where there is one. The log is in the
//! memory of the guest's only program: with that program the guest ends, so there is nothing to recover.
//!
//! ```text
//! one lock:  bounds -> room in memory -> extend the register -> append (cannot fail)
//! ```
//! So an event that is refused was in neither, and one that is in the register is in the log. When the kernel fails to extend, nobody
//! knows whether the register has changed. The log is then *poisoned*: this event, every later event and every later evidence is refused,
//! since whatever would be said of the register might be a lie, and what was not recorded must not take effect.
//!
//! **Invariant:** log and register never disagree, or nothing is said of either any more.
//! **Invariant:** a program in the pod cannot record in the agent's name, nor use up the room for what the agent records.

use std::collections::HashSet;
use std::fs;
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};

use kata_cc_evidence::eventlog::{
    Aael, AaelError, EventDigest, EventLog, EventLogError, EventType, HashAlgorithm, Registers, ReplayError, encode_event, encode_header,
};

/// The register's file (Linux 6.16 and later, `tsm-mr`): 48 bytes written extend it, and are its value when read.
pub const RTMR3: &str = "/sys/devices/virtual/misc/tdx_guest/measurements/rtmr3:sha384";

/// The firmware's log.
pub const CCEL: &str = "/sys/firmware/acpi/tables/data/CCEL";

/// Domain of the agent's events, but those that CoCo's agent makes as well.
pub const AGENT_DOMAIN: &str = "kata-cc";

/// Domain of the events that CoCo's agent makes, which are the same here.
pub const COCO_DOMAIN: &str = "github.com/confidential-containers";

/// Number of RTMR3 in a log.
const REGISTER: u32 = 4;

/// The algorithm of RTMRs, and so of the log.
const ALGORITHM: HashAlgorithm = HashAlgorithm::SHA384;

/// What CoCo's agent ends a log with; parsers take it for the end.
const END_MARK: [u8; 8] = [0xff; 8];

/// How much one source may record in the life of a pod. Below what [`EventLog`] takes, firmware's log included.
#[derive(Clone, Copy, Debug)]
struct Quota {
    events: usize,
    bytes: usize,
}

/// Events of the agent. Each different one is recorded once, so a probe that runs every second does not fill this.
const AGENT: Quota = Quota { events: 4096, bytes: 1 << 20 };

/// Events of programs in the pod.
const WORKLOAD: Quota = Quota { events: 1024, bytes: 256 << 10 };

/// Why an event was not recorded, or the log is not to be had.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeLogError {
    /// The firmware's log or the register cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The firmware's log is malformed.
    #[error("the firmware's event log cannot be continued")]
    Firmware(#[from] EventLogError),
    /// The firmware's log cannot be replayed.
    #[error("the firmware's event log cannot be continued")]
    Replay(#[from] ReplayError),
    /// The register was extended by somebody else.
    #[error("RTMR3 is {found}, expected {expected} by the event log: something extended it and left no event")]
    Register {
        /// By the log, in hex.
        expected: String,
        /// As read or as in the quote, in hex.
        found: String,
    },
    /// The event is none.
    #[error(transparent)]
    Event(#[from] AaelError),
    /// A program used the agent's domain.
    #[error("domain \"{found}\" is the agent's own; expected one of the program's")]
    Domain {
        /// Which.
        found: String,
    },
    /// There is no room.
    #[error(
        "the runtime event log is full: {events} events of {bytes} bytes are recorded at most; what cannot be recorded is not done. Start the pod anew"
    )]
    Full {
        /// Most events.
        events: usize,
        /// Most bytes.
        bytes: usize,
    },
    /// An earlier extension failed.
    #[error(
        "extending RTMR3 has failed, so nobody knows what it holds; nothing is recorded and no evidence is made any more. Start the pod anew"
    )]
    Poisoned,
}

/// Where the log begins, and what it is extended into.
#[derive(Clone, Debug)]
pub struct RuntimePaths {
    /// The register's file.
    pub register: PathBuf,
    /// The firmware's log.
    pub firmware: PathBuf,
}

impl Default for RuntimePaths {
    fn default() -> Self {
        Self { register: RTMR3.into(), firmware: CCEL.into() }
    }
}

/// The log.
#[derive(Debug)]
pub struct RuntimeLog {
    register: Option<PathBuf>,
    firmware: PathBuf,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    bytes: Vec<u8>,
    /// What RTMR3 holds, or would, before the first runtime event and after each, with the length of the log there.
    values: Vec<(Vec<u8>, usize)>,
    /// Digests of the agent's events so far.
    recorded: HashSet<Vec<u8>>,
    agent: Quota,
    workload: Quota,
    poisoned: bool,
}

/// A file, if it is there. One that is longer than any log is cut, one byte too late for a parser of logs.
fn read(path: &Path) -> Result<Option<Vec<u8>>, RuntimeLogError> {
    let mut bytes = Vec::new();
    match fs::File::open(path).and_then(|file| file.take(EventLog::MAX_LEN as u64 + 1).read_to_end(&mut bytes)) {
        Ok(_) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(RuntimeLogError::Read { path: path.to_owned(), source }),
    }
}

impl RuntimeLog {
    /// Begins the log of this guest.
    ///
    /// # Errors
    /// When the firmware's log is there and malformed, or the register already holds something else than it says.
    pub fn open() -> Result<Self, RuntimeLogError> {
        Self::open_at(&RuntimePaths::default())
    }

    /// Begins the log with files at given places.
    ///
    /// # Errors
    /// As [`RuntimeLog::open`].
    pub fn open_at(paths: &RuntimePaths) -> Result<Self, RuntimeLogError> {
        let found = read(&paths.register)?;
        // Without a register nothing holds the firmware's log against anything, and on such a machine it is the host's to write.
        let firmware = if found.is_some() { read(&paths.firmware)? } else { None };
        let bytes = match firmware {
            Some(bytes) => EventLog::parse(&bytes)?.to_bytes(),
            None => encode_header(&[ALGORITHM]),
        };
        let value = EventLog::parse(&bytes)?.replay(Registers::Cc, ALGORITHM)?.remove(&REGISTER).unwrap_or_default();
        let register = match found {
            Some(found) if found == value => Some(paths.register.clone()),
            Some(found) => return Err(RuntimeLogError::Register { expected: hex::encode(value), found: hex::encode(found) }),
            None => None,
        };
        let state = State {
            values: vec![(value, bytes.len())],
            bytes,
            recorded: HashSet::new(),
            agent: AGENT,
            workload: WORKLOAD,
            poisoned: false,
        };
        Ok(Self { register, firmware: paths.firmware.clone(), state: Mutex::new(state) })
    }

    /// Whether events go into a register of the hardware.
    #[must_use]
    pub fn has_register(&self) -> bool {
        self.register.is_some()
    }

    fn state(&self) -> Result<MutexGuard<'_, State>, RuntimeLogError> {
        // A thread that died with the lock may have extended and not appended.
        let state = self.state.lock().map_err(|_| RuntimeLogError::Poisoned)?;
        if state.poisoned { Err(RuntimeLogError::Poisoned) } else { Ok(state) }
    }

    /// Records an event of the agent's, before what it tells of takes effect. The same event again is on record already.
    ///
    /// # Errors
    /// When it cannot be recorded. What it tells of must not happen then.
    pub fn record(&self, event: &Aael) -> Result<(), RuntimeLogError> {
        let mut state = self.state()?;
        let data = event.to_data();
        let digest = digest(&data);
        if state.recorded.contains(&digest) {
            return Ok(());
        }
        state.agent = left(state.agent, &data, AGENT)?;
        self.append(&mut state, &digest, &data)?;
        state.recorded.insert(digest);
        Ok(())
    }

    /// Records an event of a program in the pod.
    ///
    /// # Errors
    /// When it is in a domain of the agent's, or cannot be recorded.
    pub fn record_for_workload(&self, event: &Aael) -> Result<(), RuntimeLogError> {
        if [AGENT_DOMAIN, COCO_DOMAIN].iter().any(|domain| event.domain().eq_ignore_ascii_case(domain)) {
            return Err(RuntimeLogError::Domain { found: event.domain().to_owned() });
        }
        let mut state = self.state()?;
        let data = event.to_data();
        state.workload = left(state.workload, &data, WORKLOAD)?;
        self.append(&mut state, &digest(&data), &data)
    }

    fn append(&self, state: &mut State, digest: &[u8], data: &[u8]) -> Result<(), RuntimeLogError> {
        let entry = encode_event(REGISTER, EventType::EVENT_TAG, EventDigest { algorithm: ALGORITHM, bytes: digest.to_vec() }, data);
        let before = state.values.last().map(|(value, _)| value.as_slice()).unwrap_or_default();
        let after = ALGORITHM.hash(&[before, digest]).unwrap_or_default();
        state.bytes.reserve(entry.len());
        state.values.reserve(1);
        if let Some(register) = &self.register
            && let Err(error) = extend(register, digest)
        {
            state.poisoned = true;
            tracing::error!(%error, "RTMR3 cannot be extended; no event is recorded and no evidence made any more");
            return Err(RuntimeLogError::Poisoned);
        }
        state.bytes.extend(entry);
        let end = state.bytes.len();
        state.values.push((after, end));
        Ok(())
    }

    /// Whether anything may still be said of the guest.
    ///
    /// # Errors
    /// When the log is poisoned.
    pub fn check(&self) -> Result<(), RuntimeLogError> {
        self.state().map(drop)
    }

    /// The log as it is, closed by CoCo's end mark: for evidence that has no register.
    ///
    /// # Errors
    /// When it is poisoned.
    pub fn snapshot(&self) -> Result<Vec<u8>, RuntimeLogError> {
        let state = self.state()?;
        Ok([state.bytes.as_slice(), &END_MARK].concat())
    }

    /// The log as it was when RTMR3 was `rtmr3`, closed by CoCo's end mark: for a quote that was made while events went on, without holding them up.
    ///
    /// # Errors
    /// When it is poisoned, or RTMR3 never was that: somebody else extended it.
    pub fn snapshot_at(&self, rtmr3: &[u8; 48]) -> Result<Vec<u8>, RuntimeLogError> {
        let state = self.state()?;
        let (last, _) = state.values.last().cloned().unwrap_or_default();
        let end = state.values.iter().rev().find(|(value, _)| value == rtmr3).map(|(_, end)| *end);
        let log = end.and_then(|end| state.bytes.get(..end));
        let log = log.ok_or_else(|| RuntimeLogError::Register { expected: hex::encode(last), found: hex::encode(rtmr3) })?;
        Ok([log, &END_MARK].concat())
    }

    /// The log that belongs beside a quote: this one as it was at `rtmr3` where a register holds it, else the firmware's, which the quote's other
    /// registers hold. `None` without either.
    ///
    /// # Errors
    /// When this log is in doubt, or the firmware's cannot be read.
    pub fn beside_quote(&self, rtmr3: &[u8; 48]) -> Result<Option<Vec<u8>>, RuntimeLogError> {
        if self.has_register() {
            return self.snapshot_at(rtmr3).map(Some);
        }
        self.check()?;
        // Without the rest of the area that the firmware had set aside for it.
        read(&self.firmware)?.map(|bytes| Ok(EventLog::parse(&bytes)?.to_bytes())).transpose()
    }
}

fn digest(data: &[u8]) -> Vec<u8> {
    ALGORITHM.hash(&[data]).unwrap_or_default()
}

/// What is left of a quota after an event.
fn left(quota: Quota, data: &[u8], whole: Quota) -> Result<Quota, RuntimeLogError> {
    let left = quota.events.checked_sub(1).zip(quota.bytes.checked_sub(data.len()));
    left.map(|(events, bytes)| Quota { events, bytes }).ok_or(RuntimeLogError::Full { events: whole.events, bytes: whole.bytes })
}

/// One write of the whole digest: the kernel takes no part of one.
fn extend(register: &Path, digest: &[u8]) -> io::Result<()> {
    let mut file = fs::OpenOptions::new().write(true).open(register)?;
    match file.write(digest)? {
        written if written == digest.len() => Ok(()),
        written => Err(io::Error::other(format!("{written} bytes of {} were taken", digest.len()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Place(tempfile::TempDir);

    impl Place {
        fn new() -> Self {
            Self(tempfile::tempdir().expect("temporary directory"))
        }

        fn paths(&self) -> RuntimePaths {
            RuntimePaths { register: self.0.path().join("rtmr3"), firmware: self.0.path().join("CCEL") }
        }
    }

    fn event(text: &str) -> Aael {
        Aael::new(AGENT_DOMAIN, "op", text).expect("well formed")
    }

    fn program(text: &str) -> Aael {
        Aael::new("example.com", "op", text).expect("well formed")
    }

    fn rtmr3(log: &[u8]) -> Vec<u8> {
        EventLog::parse(log).expect("parses").replay(Registers::Cc, ALGORITHM).expect("replays")[&4].clone()
    }

    #[test]
    fn without_a_register_events_are_in_the_log_alone_and_the_log_is_wellformed() {
        let log = RuntimeLog::open_at(&Place::new().paths()).expect("opens");
        assert!(!log.has_register());
        log.record(&event("1")).expect("records");
        log.record_for_workload(&program("2")).expect("records");
        let parsed = EventLog::parse(&log.snapshot().expect("whole")).expect("parses");
        assert_eq!((parsed.events().len(), parsed.findings(Registers::Cc)), (2, vec![]));
    }

    #[test]
    fn an_event_of_the_agents_is_recorded_once_and_a_programs_each_time() {
        let log = RuntimeLog::open_at(&Place::new().paths()).expect("opens");
        for _ in 0..3 {
            log.record(&event("probe")).expect("records");
            log.record_for_workload(&program("count")).expect("records");
        }
        assert_eq!(EventLog::parse(&log.snapshot().expect("whole")).expect("parses").events().len(), 4);
    }

    #[test]
    fn the_digest_that_is_extended_is_the_one_in_the_log() {
        let place = Place::new();
        fs::write(place.paths().register, [0; 48]).expect("writes");
        let log = RuntimeLog::open_at(&place.paths()).expect("opens");
        assert!(log.has_register());
        log.record(&event("1")).expect("records");
        // A file where the register would be keeps what was written last.
        let parsed = EventLog::parse(&log.snapshot().expect("whole")).expect("parses");
        assert_eq!(fs::read(place.paths().register).expect("reads"), parsed.events()[0].digests[0].bytes);
    }

    #[test]
    fn after_a_failed_extension_nothing_is_recorded_and_nothing_said() {
        let place = Place::new();
        fs::write(place.paths().register, [0; 48]).expect("writes");
        let log = RuntimeLog::open_at(&place.paths()).expect("opens");
        log.record(&event("1")).expect("records");
        fs::remove_file(place.paths().register).expect("removes");
        assert!(matches!(log.record(&event("2")), Err(RuntimeLogError::Poisoned)));
        // Also when the register works again, and for what is on record already.
        fs::write(place.paths().register, [0; 48]).expect("writes");
        assert!(matches!(log.record(&event("1")), Err(RuntimeLogError::Poisoned)));
        assert!(matches!(log.record_for_workload(&program("3")), Err(RuntimeLogError::Poisoned)));
        assert!(matches!(log.snapshot(), Err(RuntimeLogError::Poisoned)));
        assert!(matches!(log.check(), Err(RuntimeLogError::Poisoned)));
        assert!(matches!(log.snapshot_at(&[0; 48]), Err(RuntimeLogError::Poisoned)));
    }

    #[test]
    fn a_register_that_takes_a_part_of_the_digest_poisons_the_log() {
        // A device that takes no byte.
        let paths = RuntimePaths { register: "/dev/full".into(), firmware: Place::new().paths().firmware };
        let log = RuntimeLog { register: Some(paths.register.clone()), ..RuntimeLog::open_at(&Place::new().paths()).expect("opens") };
        assert!(matches!(log.record(&event("1")), Err(RuntimeLogError::Poisoned)));
    }

    #[test]
    fn a_register_that_somebody_extended_before_is_refused() {
        let place = Place::new();
        fs::write(place.paths().register, [1; 48]).expect("writes");
        assert!(matches!(RuntimeLog::open_at(&place.paths()), Err(RuntimeLogError::Register { .. })));
        fs::write(place.paths().firmware, b"no log").expect("writes");
        assert!(matches!(RuntimeLog::open_at(&place.paths()), Err(RuntimeLogError::Firmware(_))));
    }

    #[test]
    fn the_firmwares_log_is_continued_behind_its_last_event() {
        let place = Place::new();
        let early = encode_event(4, EventType::IPL, EventDigest { algorithm: ALGORITHM, bytes: vec![7; 48] }, b"early");
        let firmware = [encode_header(&[ALGORITHM]), early].concat();
        fs::write(place.paths().firmware, [firmware.as_slice(), &[0xff; 4096]].concat()).expect("writes");
        fs::write(place.paths().register, rtmr3(&firmware)).expect("writes");
        let log = RuntimeLog::open_at(&place.paths()).expect("opens");
        log.record(&event("1")).expect("records");
        let snapshot = log.snapshot().expect("whole");
        assert!(snapshot.starts_with(&firmware));
        assert_eq!(EventLog::parse(&snapshot).expect("parses").events().len(), 2);
    }

    #[test]
    fn a_quote_gets_the_log_of_its_own_moment() {
        let log = RuntimeLog::open_at(&Place::new().paths()).expect("opens");
        log.record(&event("1")).expect("records");
        let then = log.snapshot().expect("whole");
        let register: [u8; 48] = rtmr3(&then).try_into().expect("48 bytes");
        log.record(&event("2")).expect("records");
        assert_eq!(log.snapshot_at(&register).expect("was so"), then);
        assert!(matches!(log.snapshot_at(&[9; 48]), Err(RuntimeLogError::Register { .. })));
    }

    #[test]
    fn ac_56_a_program_cannot_record_in_the_agents_name_nor_use_up_its_room() {
        let log = RuntimeLog::open_at(&Place::new().paths()).expect("opens");
        for domain in ["kata-cc", "Kata-CC", "github.com/confidential-containers"] {
            let forged = Aael::new(domain, "PullImage", "{}").expect("well formed");
            assert!(matches!(log.record_for_workload(&forged), Err(RuntimeLogError::Domain { .. })));
        }
        for _ in 0..WORKLOAD.events {
            log.record_for_workload(&program("x")).expect("records");
        }
        assert!(matches!(log.record_for_workload(&program("x")), Err(RuntimeLogError::Full { .. })));
        log.record(&event("still room")).expect("records");
    }

    #[test]
    fn the_agents_log_is_bounded_and_what_fills_it_parses() {
        let log = RuntimeLog::open_at(&Place::new().paths()).expect("opens");
        let mut number = 0;
        while log.record(&event(&format!("{number:0>240}"))).is_ok() {
            number += 1;
        }
        let large = Aael::new("example.com", "op", &"x".repeat(16 << 10)).expect("well formed");
        while log.record_for_workload(&large).is_ok() {}
        assert!(number > 3000 && number <= AGENT.events);
        assert!(EventLog::parse(&log.snapshot().expect("whole")).is_ok());
    }

    #[test]
    fn events_of_many_threads_are_in_the_order_of_the_register() {
        let log = RuntimeLog::open_at(&Place::new().paths()).expect("opens");
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let log = &log;
                scope.spawn(move || (0..50).for_each(|n| log.record(&event(&format!("{thread}-{n}"))).expect("records")));
            }
        });
        let snapshot = log.snapshot().expect("whole");
        let value: [u8; 48] = rtmr3(&snapshot).try_into().expect("48 bytes");
        assert_eq!(log.snapshot_at(&value).expect("is so"), snapshot);
    }
}
