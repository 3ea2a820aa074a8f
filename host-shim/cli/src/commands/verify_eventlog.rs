//! `kata-cc verify eventlog`: what a CCEL or TCG2 event log says, and what its registers must hold.
//!
//! Parsing and replay are `kata_cc_evidence`'s. Invariant: a log with a finding, or one that does not replay to a register that was
//! given, exits with 3; a register that was not given is shown and not called right.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Context, bail};
use clap::ValueEnum;
use kata_cc_evidence::eventlog::{Event, EventLog, HashAlgorithm, Payload, PayloadCheck, Registers};
use kata_cc_verifier::eventlog::claims;
use serde_json::{Value, json};

use crate::files;
use crate::output::{Format, Outcome, show};

/// Longest label in the table, in characters.
const MAX_LABEL: usize = 60;

/// Arguments of `verify eventlog`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The log: a CCEL (`/sys/firmware/acpi/tables/data/CCEL`), one with runtime events, or a TPM's (`-`: stdin).
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// What a register must hold: its number and value in hex, such as 0=2dc7… for RTMR0. May be given several times.
    #[arg(long, value_name = "N=HEX", value_parser = parse_register)]
    rtmr: Vec<(u32, Vec<u8>)>,
    /// The same for a PCR of a TPM. The log's registers are PCRs then.
    #[arg(long, value_name = "N=HEX", value_parser = parse_register, conflicts_with = "rtmr")]
    pcr: Vec<(u32, Vec<u8>)>,
    /// Replay in this algorithm. Default: SHA-384 where the log has it, else the log's first.
    #[arg(long, value_enum)]
    algorithm: Option<Algorithm>,
}

/// Algorithms that logs are replayed in.
#[derive(Clone, Copy, ValueEnum)]
enum Algorithm {
    Sha1,
    Sha256,
    Sha384,
    Sha512,
}

impl From<Algorithm> for HashAlgorithm {
    fn from(algorithm: Algorithm) -> Self {
        match algorithm {
            Algorithm::Sha1 => Self::SHA1,
            Algorithm::Sha256 => Self::SHA256,
            Algorithm::Sha384 => Self::SHA384,
            Algorithm::Sha512 => Self::SHA512,
        }
    }
}

fn parse_register(text: &str) -> Result<(u32, Vec<u8>), String> {
    let form = || format!("expected a register's number and its value in hex, such as 0=2dc7…, found {text:?}");
    let (number, value) = text.split_once('=').ok_or_else(form)?;
    Ok((number.parse().map_err(|_| form())?, hex::decode(value).map_err(|_| form())?))
}

/// A register as replayed, beside what it must hold.
struct Register {
    name: String,
    replayed: String,
    expected: Option<String>,
}

impl Register {
    fn status(&self) -> &'static str {
        match &self.expected {
            None => "not-compared",
            Some(expected) if *expected == self.replayed => "pass",
            Some(_) => "fail",
        }
    }
}

/// What was found out about a log.
struct Report {
    log: EventLog,
    algorithm: HashAlgorithm,
    registers: Vec<Register>,
    findings: Vec<String>,
}

impl Report {
    fn passed(&self) -> bool {
        self.findings.is_empty() && self.registers.iter().all(|register| register.status() != "fail")
    }
}

pub(crate) fn run(args: &Args, format: Format) -> anyhow::Result<Outcome> {
    let report = examine(args, &files::read(&args.file)?).with_context(|| format!("cannot use {}", args.file.display()))?;
    show(format, "verify.eventlog", &json(&report), || text(&report))?;
    Ok(Outcome::when(report.passed()))
}

fn examine(args: &Args, bytes: &[u8]) -> anyhow::Result<Report> {
    let log = EventLog::parse(bytes)?;
    let kind = if args.pcr.is_empty() { Registers::Cc } else { Registers::Pcr };
    let has = |algorithm: &HashAlgorithm| log.algorithms().iter().any(|(listed, _)| listed == algorithm);
    let first = log.algorithms().first().map(|(algorithm, _)| *algorithm);
    let default = Some(HashAlgorithm::SHA384).filter(has).or(first);
    let algorithm = args.algorithm.map(HashAlgorithm::from).or(default).context("the log has no hash algorithm")?;
    let replayed = log.replay(kind, algorithm)?;
    let registers = compare(kind, &replayed, if kind == Registers::Cc { &args.rtmr } else { &args.pcr })?;
    let findings = log.findings(kind).iter().map(ToString::to_string).collect();
    Ok(Report { log, algorithm, registers, findings })
}

fn compare(kind: Registers, replayed: &BTreeMap<u32, Vec<u8>>, given: &[(u32, Vec<u8>)]) -> anyhow::Result<Vec<Register>> {
    // A log counts RTMR0 as 1.
    let (name, base) = if kind == Registers::Cc { ("RTMR", 1) } else { ("PCR", 0) };
    let mut given: BTreeMap<u32, &Vec<u8>> = {
        let mut map = BTreeMap::new();
        for (number, value) in given {
            if map.insert(*number, value).is_some() {
                bail!("{name}{number} is given twice");
            }
        }
        map
    };
    let mut registers = Vec::new();
    for (index, value) in replayed {
        let number = index - base;
        let expected = given.remove(&number);
        if let Some(expected) = expected
            && expected.len() != value.len()
        {
            bail!("{name}{number}: expected {} bytes in hex, found {}", value.len(), expected.len());
        }
        registers.push(Register { name: format!("{name}{number}"), replayed: hex::encode(value), expected: expected.map(hex::encode) });
    }
    // A PCR that no event names holds what it began with, and a TDX guest has no RTMR4: neither is guessed here.
    if let Some(number) = given.keys().next() {
        bail!(
            "no event of the log is for {name}{number}; expected one of {}",
            registers.iter().map(|r| r.name.as_str()).collect::<Vec<_>>().join(", ")
        );
    }
    Ok(registers)
}

/// What an event says of itself, short and without control characters: the log may be hostile, and this goes to a terminal.
fn label(event: &Event) -> String {
    let text = match event.payload() {
        Ok(Payload::Text(text)) => text.to_owned(),
        Ok(Payload::Variable(variable)) => variable.name,
        Ok(Payload::Image(path)) => path.last().cloned().unwrap_or_default(),
        Ok(Payload::Gpt(partitions)) => format!("{} partitions", partitions.len()),
        Ok(Payload::Aael(aael)) => aael.text(),
        Ok(Payload::Tagged { id, data }) => format!("{id:#010x} {}", String::from_utf8_lossy(data)),
        Ok(Payload::TdShim { name, .. } | Payload::Blob { name }) => name.to_owned(),
        Ok(Payload::Separator(_) | Payload::Opaque(_)) => String::new(),
        Err(_) => "malformed".to_owned(),
    };
    text.chars().filter(|c| !c.is_control() && !matches!(c, '\u{200e}'..='\u{202e}' | '\u{2066}'..='\u{2069}')).take(MAX_LABEL).collect()
}

fn payload(event: &Event) -> &'static str {
    match event.check_payload() {
        PayloadCheck::Matches => "measured",
        PayloadCheck::Differs => "DIFFERS",
        PayloadCheck::Elsewhere => "label",
        PayloadCheck::NotComputable => "not computed",
    }
}

fn digest(event: &Event, algorithm: HashAlgorithm) -> String {
    event.digest(algorithm).map(hex::encode).unwrap_or_default()
}

fn text(report: &Report) -> String {
    let mut out = format!("{:>4} {:>8} {:>3}  {:<32} {:<12} {:<13} says\n", "no.", "offset", "reg", "type", "payload", "digest");
    for (number, event) in report.log.events().iter().enumerate() {
        let digest: String = digest(event, report.algorithm).chars().take(12).collect();
        let (kind, payload, label) = (event.kind.to_string(), payload(event), label(event));
        out.push_str(&format!("{number:>4} {:>8} {:>3}  {kind:<32} {payload:<12} {digest:<13} {label}\n", event.offset, event.index));
    }
    out.push_str(&format!(
        "\n{}, {} events; payload: measured = its digest is of it; label = nothing vouches for what it says\n",
        report.algorithm,
        report.log.events().len()
    ));
    for register in &report.registers {
        let verdict = match (&register.expected, register.status()) {
            (Some(expected), "fail") => format!("FAIL: expected {expected}"),
            (_, status) => status.to_owned(),
        };
        out.push_str(&format!("{:<8} {}  {verdict}\n", register.name, register.replayed));
    }
    for finding in &report.findings {
        out.push_str(&format!("FINDING {finding}\n"));
    }
    out
}

fn json(report: &Report) -> Value {
    let events: Vec<Value> = report
        .log
        .events()
        .iter()
        .enumerate()
        .map(|(number, event)| {
            json!({ "event": number, "offset": event.offset, "index": event.index, "type": event.kind.to_string(), "payload": payload(event),
                "digest": digest(event, report.algorithm), "says": label(event) })
        })
        .collect();
    let registers: Vec<Value> = report
        .registers
        .iter()
        .map(|r| json!({ "name": r.name, "replayed": r.replayed, "expected": r.expected, "status": r.status() }))
        .collect();
    let mut claims = claims(&report.log);
    let mut claim = |name: &str| claims.get_mut(name).map(Value::take);
    json!({ "algorithm": report.algorithm.to_string(), "events": events, "registers": registers, "findings": report.findings,
        "boot": claim("boot"), "runtime_events": claim("runtime_events"), "passed": report.passed() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use kata_cc_evidence::eventlog::{EventDigest, EventType, encode_event, encode_header};

    fn log(last: u8) -> Vec<u8> {
        let algorithm = HashAlgorithm::SHA384;
        let digest = EventDigest { algorithm, bytes: algorithm.hash(&[&[0; 4]]).unwrap() };
        [encode_header(&[algorithm]), encode_event(1, EventType::SEPARATOR, digest, &[0, 0, 0, last])].concat()
    }

    fn args(rtmr: &[&str]) -> Args {
        Args { file: "-".into(), rtmr: rtmr.iter().map(|text| parse_register(text).unwrap()).collect(), pcr: Vec::new(), algorithm: None }
    }

    #[test]
    fn a_register_that_is_given_must_be_what_the_log_replays_to() {
        let report = examine(&args(&[]), &log(0)).unwrap();
        assert!(report.passed() && report.registers.iter().all(|register| register.status() == "not-compared"));
        let value = report.registers[0].replayed.clone();
        let given = |value: &str| examine(&args(&[&format!("0={value}")]), &log(0)).unwrap();
        assert!(given(&value).passed());
        let wrong = given(&"0".repeat(96));
        assert!(!wrong.passed() && text(&wrong).contains("FAIL: expected 0000"));
        assert_eq!(json(&wrong)["registers"][0]["status"], "fail");
    }

    #[test]
    fn a_finding_is_a_no() {
        let report = examine(&args(&[]), &log(1)).unwrap();
        assert!(!report.passed() && text(&report).contains("FINDING event 0 at offset 65"));
    }

    #[test]
    fn registers_that_are_not_there_or_of_another_length_are_errors() {
        for (given, says) in [("4=00", "no event of the log is for RTMR4"), ("0=00", "expected 48 bytes")] {
            assert!(examine(&args(&[given]), &log(0)).err().unwrap().to_string().contains(says));
        }
        let zeros = format!("0={}", "0".repeat(96));
        assert!(examine(&args(&[&zeros, &zeros]), &log(0)).err().unwrap().to_string().contains("twice"));
        assert!(parse_register("0").is_err() && parse_register("x=00").is_err() && parse_register("0=0").is_err());
    }

    #[test]
    fn a_hostile_label_cannot_steer_a_terminal() {
        let digest = EventDigest { algorithm: HashAlgorithm::SHA384, bytes: vec![0; 48] };
        let data = "\u{1b}[2Jgone\u{202e}\n".as_bytes();
        let bytes = [encode_header(&[HashAlgorithm::SHA384]), encode_event(3, EventType::IPL, digest, data)].concat();
        let report = examine(&args(&[]), &bytes).unwrap();
        assert!(text(&report).contains(" [2Jgone\n"));
    }
}
