//! What is measured: one client after the other, many at once, and memory with sessions that wait.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};

use crate::Args;
use crate::broker::{self, Broker};
use crate::connection::Connection;
use crate::driver::Driver;
use crate::evidence::{Kind, Machine};
use crate::exchange::{self, Steps};
use crate::report::{Latency, Measured, Memory, Throughput};

/// Handshakes before anything is counted.
const WARM_UP: u32 = 20;
/// How often evidence is verified in this process to know what its cryptography costs.
const VERIFICATIONS: u32 = 200;

/// Everything, for one kind of evidence, with a broker of its own.
pub(crate) fn measure(args: &Args, kind: Kind) -> Result<Measured> {
    let machine = Machine::make(kind)?;
    let verify_ms = machine.verify_ms(kind, VERIFICATIONS)?;
    let broker = Broker::start(&args.bin, &machine)?;
    let idle_kib = broker.resident_kib()?;
    let (latency, cpu_ms) = sequential(args, kind, &machine, &broker)?;
    let before = broker.resident_kib()?;
    let handshakes =
        parallel(args, &broker, |_| Ok(()), |driver, ()| driver.attest(&machine, kind).and_then(|cookie| driver.read(&cookie)))?;
    let after_handshakes_kib = broker.resident_kib()?;
    let reads = parallel(args, &broker, |driver| driver.attest(&machine, kind), |driver, cookie| driver.read(cookie))?;
    let mut connection = Connection::open(broker.address())?;
    let waiting = broker.resident_kib()?;
    for session in 0..args.sessions {
        exchange::begin(&mut connection, kind).with_context(|| format!("session {session}"))?;
    }
    let memory = Memory {
        idle_kib,
        before_parallel_kib: before,
        after_handshakes_kib,
        before_sessions_kib: waiting,
        with_sessions_kib: broker.resident_kib()?,
    };
    Ok(Measured { kind, latency, cpu_ms, verify_ms, handshakes, reads, memory })
}

fn sequential(args: &Args, kind: Kind, machine: &Machine, broker: &Broker) -> Result<(Latency, f64)> {
    let mut connection = Connection::open(broker.address())?;
    for _ in 0..WARM_UP {
        exchange::handshake(&mut connection, machine, kind)?;
    }
    let cpu = broker.cpu()?;
    let mut steps: Vec<Steps> = Vec::new();
    for _ in 0..args.handshakes {
        steps.push(exchange::handshake(&mut connection, machine, kind)?.1);
    }
    let cpu_ms = broker.cpu()?.saturating_sub(cpu).as_secs_f64() * 1e3 / f64::from(args.handshakes);
    Ok((Latency::of(&steps), cpu_ms))
}

/// As much of `work` as can be done by the clients in the time, each after it has done what comes before.
fn parallel<T>(
    args: &Args,
    broker: &Broker,
    before: impl Fn(&mut Driver) -> Result<T> + Sync,
    work: impl Fn(&mut Driver, &T) -> Result<()> + Sync,
) -> Result<Throughput> {
    let over = AtomicBool::new(false);
    let (cpu, own) = (broker.cpu()?, broker::cpu_of(std::process::id())?);
    let start = Instant::now();
    let done = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..args.clients)
            .map(|_| {
                scope.spawn(|| {
                    let mut driver = Driver::new(Connection::open(broker.address())?)?;
                    let kept = before(&mut driver)?;
                    let mut done = 0u64;
                    while !over.load(Ordering::Relaxed) {
                        work(&mut driver, &kept)?;
                        done += 1;
                    }
                    anyhow::Ok(done)
                })
            })
            .collect();
        std::thread::sleep(Duration::from_secs(args.seconds.into()));
        over.store(true, Ordering::Relaxed);
        clients.into_iter().map(|client| client.join().map_err(|_| anyhow!("a client died"))?).sum::<Result<u64>>()
    })?;
    let seconds = start.elapsed().as_secs_f64();
    let each = |now: Duration, then: Duration| now.saturating_sub(then).as_secs_f64() * 1e3 / done as f64;
    Ok(Throughput {
        clients: args.clients,
        done,
        per_second: done as f64 / seconds,
        broker_cpu_ms: each(broker.cpu()?, cpu),
        client_cpu_ms: each(broker::cpu_of(std::process::id())?, own),
    })
}
