//! One client's handshake, and what each of its steps took.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use kata_cc_kbs_protocol::{Attested, ClientSession, ResourcePath};

use crate::broker::{RESOURCE, SECRET};
use crate::connection::Connection;
use crate::evidence::{Kind, Machine, now};

/// What a step took, from the first byte sent to the last received; the client's own work between the steps is not in it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Steps {
    /// `/auth`.
    pub(crate) auth: Duration,
    /// `/attest`.
    pub(crate) attest: Duration,
    /// One resource.
    pub(crate) resource: Duration,
}

/// Leaves a session waiting for evidence.
pub(crate) fn begin(connection: &mut Connection, kind: Kind) -> Result<()> {
    let (_, request) = ClientSession::start(kind.tee());
    match connection.send(&request)?.status {
        200 => Ok(()),
        status => bail!("/auth was answered with {status}"),
    }
}

/// A whole handshake and one resource.
pub(crate) fn handshake(connection: &mut Connection, machine: &Machine, kind: Kind) -> Result<(Attested, Steps)> {
    let (state, request) = ClientSession::start(kind.tee());
    let (response, auth) = timed(|| connection.send(&request))?;
    let state = state.handle(&response)?;
    let evidence = machine.evidence(state.report_data())?;
    let (state, request) = state.submit(evidence, None)?;
    let (response, attest) = timed(|| connection.send(&request))?;
    let attested = state.handle(&response, now()?)?;
    let resource = read(connection, &attested)?;
    Ok((attested, Steps { auth, attest, resource }))
}

/// One resource under a token that is there.
pub(crate) fn read(connection: &mut Connection, attested: &Attested) -> Result<Duration> {
    let path: ResourcePath = RESOURCE.parse()?;
    let request = attested.get_resource(&path);
    let (response, took) = timed(|| connection.send(&request))?;
    if attested.open_resource(&response)?.expose() != SECRET {
        bail!("the broker gave another secret than it was given");
    }
    Ok(took)
}

fn timed<T>(work: impl FnOnce() -> Result<T>) -> Result<(T, Duration)> {
    let start = Instant::now();
    Ok((work()?, start.elapsed()))
}
