//! What was measured, for people and for programs.

use std::fmt;
use std::time::Duration;

use serde::Serialize;

use crate::Args;
use crate::evidence::Kind;
use crate::exchange::Steps;

/// The aim: everything but the evidence's own cryptography is at most this share of the broker's time.
const AIM: f64 = 1.0 / 3.0;

/// What CoCo's Trustee did with sample evidence at 16 clients on two cores of this kind of machine, a second.
const TRUSTEE_HANDSHAKES: f64 = 481.0;
/// How many times as many ours are to be.
const TIMES: f64 = 5.0;

/// The whole.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    schema: &'static str,
    handshakes: u32,
    cores: usize,
    measured: Vec<Measured>,
}

/// With one kind of evidence.
#[derive(Debug, Serialize)]
pub(crate) struct Measured {
    pub(crate) kind: Kind,
    pub(crate) latency: Latency,
    /// The broker's CPU time of one handshake with one resource, sequential.
    pub(crate) cpu_ms: f64,
    /// To verify the evidence, alone.
    pub(crate) verify_ms: f64,
    pub(crate) handshakes: Throughput,
    pub(crate) reads: Throughput,
    pub(crate) memory: Memory,
}

/// Of the sequential part, in milliseconds.
#[derive(Debug, Serialize)]
pub(crate) struct Latency {
    auth: Spread,
    attest: Spread,
    resource: Spread,
    whole: Spread,
}

/// Of the parallel part.
#[derive(Debug, Serialize)]
pub(crate) struct Throughput {
    pub(crate) clients: u16,
    pub(crate) done: u64,
    pub(crate) per_second: f64,
    /// The broker's CPU time of one.
    pub(crate) broker_cpu_ms: f64,
    /// The clients'.
    pub(crate) client_cpu_ms: f64,
}

/// The broker's resident memory, in KiB.
#[derive(Debug, Serialize)]
pub(crate) struct Memory {
    pub(crate) idle_kib: u64,
    pub(crate) before_parallel_kib: u64,
    pub(crate) after_handshakes_kib: u64,
    pub(crate) before_sessions_kib: u64,
    pub(crate) with_sessions_kib: u64,
}

/// Minimum, median, 99 of 100.
#[derive(Debug, Clone, Copy, Serialize)]
struct Spread {
    min: f64,
    median: f64,
    p99: f64,
}

impl Latency {
    /// Of every handshake's steps.
    pub(crate) fn of(steps: &[Steps]) -> Self {
        let spread = |of: fn(&Steps) -> Duration| Spread::of(steps.iter().map(|s| of(s).as_secs_f64() * 1e3).collect());
        Self {
            auth: spread(|s| s.auth),
            attest: spread(|s| s.attest),
            resource: spread(|s| s.resource),
            whole: spread(|s| s.auth + s.attest + s.resource),
        }
    }
}

impl Spread {
    fn of(mut ms: Vec<f64>) -> Self {
        ms.sort_by(f64::total_cmp);
        let at = |share: usize| ms.get(ms.len() * share / 100).or(ms.last()).copied().unwrap_or(f64::NAN);
        Self { min: at(0), median: at(50), p99: at(99) }
    }
}

impl Measured {
    /// Share of this CPU time of a handshake that is not the evidence's cryptography.
    fn rest(&self, cpu_ms: f64) -> f64 {
        1.0 - self.verify_ms / cpu_ms
    }
}

impl Report {
    /// Of what was measured.
    pub(crate) fn new(args: &Args, measured: Vec<Measured>) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Self { schema: "kata-cc/bench-kbs-1", handshakes: args.handshakes, cores, measured }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "key broker, {} cores, client and broker share them", self.cores)?;
        for m in &self.measured {
            writeln!(f, "{} evidence", m.kind)?;
            writeln!(f, "  one client, {} handshakes, ms (min / median / p99)", self.handshakes)?;
            for (name, s) in
                [("auth", m.latency.auth), ("attest", m.latency.attest), ("resource", m.latency.resource), ("whole", m.latency.whole)]
            {
                writeln!(f, "    {name:<10}{:>8.2} /{:>8.2} /{:>8.2}", s.min, s.median, s.p99)?;
            }
            write!(f, "  broker's CPU time of a handshake {:.2} ms", m.cpu_ms)?;
            match m.kind {
                // No signature, nothing to have a share.
                Kind::Sample => writeln!(f)?,
                _ => writeln!(
                    f,
                    ", of it the evidence {:.2} ms, the rest {:.0} % (aim: at most {:.0} %)",
                    m.verify_ms,
                    m.rest(m.cpu_ms) * 100.0,
                    AIM * 100.0
                )?,
            }
            for (name, t) in [("handshakes with a resource", &m.handshakes), ("resource reads", &m.reads)] {
                writeln!(
                    f,
                    "  {} clients: {:.0} {name} a second, {:.2} ms of the broker's CPU each and {:.2} ms of the clients'",
                    t.clients, t.per_second, t.broker_cpu_ms, t.client_cpu_ms
                )?;
            }
            if m.kind != Kind::Sample {
                let rest = m.rest(m.handshakes.broker_cpu_ms) * 100.0;
                writeln!(
                    f,
                    "  of a handshake's CPU time then, the rest {rest:.0} %: one client alone has the broker wake up for each request"
                )?;
            }
            if m.kind == Kind::Sample {
                let times = m.handshakes.per_second / TRUSTEE_HANDSHAKES;
                writeln!(
                    f,
                    "  {times:.1} times the handshakes of Trustee, which did {TRUSTEE_HANDSHAKES} a second at 16 clients on 2 cores, measured \
                     elsewhere (aim: {TIMES})"
                )?;
            }
            let mib = |kib: u64| kib as f64 / 1024.0;
            let y = &m.memory;
            writeln!(
                f,
                "  memory, MiB: idle {:.1}, after {} handshakes {:.1} (before {:.1}), with the waiting sessions {:.1} (before {:.1})",
                mib(y.idle_kib),
                m.handshakes.done,
                mib(y.after_handshakes_kib),
                mib(y.before_parallel_kib),
                mib(y.with_sessions_kib),
                mib(y.before_sessions_kib)
            )?;
        }
        Ok(())
    }
}
