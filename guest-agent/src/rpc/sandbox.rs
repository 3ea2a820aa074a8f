//! The pod: its set-up and end, its files and network, and its policy.

use std::fs;
use std::sync::Arc;

use kata_cc_agent_protocol::rpc::protobuf::MessageField;
use kata_cc_agent_protocol::rpc::{Empty, agent, types};
use kata_cc_policy::{Allowed, SignedPolicy};

use super::SetPolicy;
use super::container::take_down;
use crate::container::ContainerError;
use crate::copy_file::{self, CopyFile};
use crate::errors::{RpcError, at};
use crate::guest::Guest;
use crate::measure;
use crate::storage;

/// Where the guest's own resolver looks. Containers bring a file of their own.
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// Bound on lines of it, and on each line.
const MAX_DNS: (usize, usize) = (64, 512);

/// Longest host name Linux takes.
const MAX_HOSTNAME: usize = 64;

pub(super) async fn create(guest: &Arc<Guest>, request: Allowed<agent::CreateSandboxRequest>) -> Result<Empty, RpcError> {
    let request = request.into_inner();
    if request.sandbox_pidns {
        return Err(RpcError::Invalid(
            "containers that share their process namespace are not supported; unset shareProcessNamespace".to_owned(),
        ));
    }
    if !request.guest_hook_path.is_empty() || !request.kernel_modules.is_empty() {
        return Err(RpcError::Invalid(
            "a confidential guest runs no hooks and loads no modules: all of it was measured at launch".to_owned(),
        ));
    }
    {
        let mut sandbox = guest.sandbox();
        if sandbox.id.is_some() {
            return Err(RpcError::State("the sandbox exists already; a guest is one pod"));
        }
        sandbox.id = Some(request.sandbox_id.clone());
    }
    if !request.hostname.is_empty() {
        if request.hostname.len() > MAX_HOSTNAME {
            return Err(RpcError::Invalid(format!("host name longer than {MAX_HOSTNAME} bytes")));
        }
        nix::unistd::sethostname(&request.hostname).map_err(at("setting the host name"))?;
    }
    if let Some(text) = resolv_conf(&request.dns)? {
        fs::create_dir_all("/etc").map_err(at("making /etc"))?;
        fs::write(RESOLV_CONF, text).map_err(at("writing the resolver's configuration"))?;
    }
    for storage in &request.storages {
        super::container::add_storage(guest, storage)?;
    }
    guest.timeline.mark("sandbox");
    // Network and resolver are in place, so the broker can be reached: one attestation serves everything that comes later.
    let ahead = Arc::clone(guest);
    tokio::spawn(async move { ahead.images.prepare_ahead().await });
    Ok(Empty::default())
}

/// The resolver's configuration, if the host gave any.
fn resolv_conf(lines: &[String]) -> Result<Option<String>, RpcError> {
    let (count, length) = MAX_DNS;
    if lines.is_empty() {
        return Ok(None);
    }
    if lines.len() > count || lines.iter().any(|line| line.len() > length) {
        return Err(RpcError::Invalid(format!("resolver configuration: expected at most {count} lines of {length} bytes")));
    }
    Ok(Some(lines.iter().map(|line| format!("{}\n", line.trim_end())).collect()))
}

pub(super) async fn destroy(guest: &Arc<Guest>, _: Allowed<agent::DestroySandboxRequest>) -> Result<Empty, RpcError> {
    // First, so that a container is either in the list below or refused.
    guest.sandbox().destroyed = true;
    // One that cannot be taken down must not keep the others.
    let mut first_failure = None;
    for container in guest.containers.all() {
        match take_down(guest, &container).await {
            // Somebody else was faster.
            Ok(()) | Err(RpcError::Container(ContainerError::NotFound(_))) => {}
            Err(error) => drop(first_failure.get_or_insert(error)),
        }
    }
    if let Some(error) = first_failure {
        // Something may still use the volumes.
        return Err(error);
    }
    let storages = std::mem::take(&mut guest.sandbox().storages);
    for target in storages.keys().rev() {
        if let Err(error) = storage::remove(target) {
            first_failure.get_or_insert(at("removing a storage")(error));
        }
    }
    first_failure.map_or(Ok(Empty::default()), Err)
}

pub(super) async fn copy_file(_: &Arc<Guest>, request: Allowed<CopyFile>) -> Result<Empty, RpcError> {
    let CopyFile(request) = request.into_inner();
    // A file of a gigabyte would keep a worker for long.
    tokio::task::spawn_blocking(move || copy_file::copy(&request)).await.map_err(|error| at("copying")(std::io::Error::other(error)))??;
    Ok(Empty::default())
}

pub(super) async fn set_policy(guest: &Arc<Guest>, request: Allowed<SetPolicy>) -> Result<Empty, RpcError> {
    // AC-22: the rule has allowed to ask; what is put in place still needs a signature by a key that initdata names and a
    // higher version than the one in force.
    let SetPolicy(request) = request.into_inner();
    let policy = SignedPolicy::verify(request.policy.as_bytes(), &guest.policy_keys)?;
    let version = policy.version();
    guest.gate.replace_after(policy, || Ok::<(), RpcError>(measure::policy(guest.attester.log(), request.policy.as_bytes(), version)?))?;
    tracing::info!(version, "policy replaced");
    Ok(Empty::default())
}

pub(super) async fn online(_: &Arc<Guest>, _: Allowed<agent::OnlineCPUMemRequest>) -> Result<Empty, RpcError> {
    // All there is was there at boot: what is plugged in later is not measured, and not used.
    Ok(Empty::default())
}

pub(super) async fn reseed(_: &Arc<Guest>, request: Allowed<agent::ReseedRandomDevRequest>) -> Result<Empty, RpcError> {
    // Mixed in without being counted as entropy: the host knows it.
    fs::write("/dev/urandom", &request.get().data).map_err(at("mixing in random data"))?;
    Ok(Empty::default())
}

pub(super) async fn update_interface(
    guest: &Arc<Guest>,
    request: Allowed<agent::UpdateInterfaceRequest>,
) -> Result<types::Interface, RpcError> {
    let Some(interface) = request.get().interface.as_ref() else {
        return Err(RpcError::Invalid("no interface is given".to_owned()));
    };
    let interface = guest.network.update_interface(interface).await?;
    guest.timeline.mark("interface");
    Ok(interface)
}

pub(super) async fn update_routes(guest: &Arc<Guest>, request: Allowed<agent::UpdateRoutesRequest>) -> Result<agent::Routes, RpcError> {
    let routes = guest.network.update_routes(&request.get().routes.Routes).await?;
    Ok(agent::Routes { Routes: routes, ..Default::default() })
}

pub(super) async fn add_neighbours(guest: &Arc<Guest>, request: Allowed<agent::AddARPNeighborsRequest>) -> Result<Empty, RpcError> {
    let neighbours: &MessageField<agent::ARPNeighbors> = &request.get().neighbors;
    guest.network.add_neighbours(&neighbours.ARPNeighbors).await?;
    Ok(Empty::default())
}

pub(super) async fn list_interfaces(guest: &Arc<Guest>, _: Allowed<agent::ListInterfacesRequest>) -> Result<agent::Interfaces, RpcError> {
    Ok(agent::Interfaces { Interfaces: guest.network.list_interfaces().await?, ..Default::default() })
}

pub(super) async fn list_routes(guest: &Arc<Guest>, _: Allowed<agent::ListRoutesRequest>) -> Result<agent::Routes, RpcError> {
    Ok(agent::Routes { Routes: guest.network.list_routes().await?, ..Default::default() })
}
