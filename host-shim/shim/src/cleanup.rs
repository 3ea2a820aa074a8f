//! `delete`: called by containerd for a pod whose shim is gone. Ends what it left running and removes what it left lying; may be repeated.

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use containerd_shim_protos::protobuf::{Message as _, MessageField};
use containerd_shim_protos::shim::shim::DeleteResponse;
use kata_cc_vmm::request::SandboxId;
use kata_cc_vmm::run_dir::RunDir;

use crate::args::Flags;
use crate::bootstrap::{remove_address, socket_address};
use crate::config::recall_run_dir;
use crate::kind::Kind;
use crate::network::PodNetwork;
use crate::oci::Spec;
use crate::process::{ExitInfo, STATUS_KILLED};

/// Answers `delete`.
pub(crate) async fn delete(flags: &Flags) -> anyhow::Result<()> {
    let bundle = if flags.bundle.is_empty() { PathBuf::from(".") } else { flags.bundle.clone().into() };
    let spec = Spec::load(&bundle).ok();
    // A container of a pod owns nothing on the host.
    let owns = spec.as_ref().is_none_or(|spec| Kind::of(&spec.annotations).is_ok_and(|kind| kind.owns_machine()));
    if owns {
        clean(flags, &bundle, spec.as_ref()).await?;
    }
    let exit = ExitInfo::now(STATUS_KILLED);
    let response = DeleteResponse { exit_status: exit.status, exited_at: MessageField::some(exit.at), ..Default::default() };
    io::stdout().write_all(&response.write_to_bytes()?).context("cannot answer containerd")
}

async fn clean(flags: &Flags, bundle: &Path, spec: Option<&Spec>) -> anyhow::Result<()> {
    let id: SandboxId = flags.id.parse()?;
    if let Some(run_dir) = recall_run_dir(bundle).context("cannot read the note in the bundle")? {
        RunDir::remove_leftovers(&run_dir, &id)?;
    }
    if let Some(namespace) = spec.and_then(|spec| spec.namespace("network")).filter(|namespace| !namespace.path.is_empty())
        && let Ok(network) = PodNetwork::read(Path::new(&namespace.path)).await
    {
        network.detach().await;
    }
    if let Some(spec) = spec {
        crate::cgroup::remove(spec.cgroups_path()).await;
    }
    let address = std::fs::read_to_string(bundle.join("address"))
        .unwrap_or_else(|_| socket_address(None, &flags.address, &flags.namespace, &flags.id));
    remove_address(address.trim());
    Ok(())
}
