//! Create: the machine where the container owns one, then the container in the guest.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use containerd_shim_protos::events::task::{TaskCreate, TaskIO};
use containerd_shim_protos::shim::shim::CreateTaskRequest;
use kata_cc_agent_protocol::rpc::agent::{CreateContainerRequest, Storage};
use kata_cc_agent_protocol::rpc::oci as wire;
use kata_cc_agent_protocol::{ANNOTATION_IMAGE_NAME, CONTAINER_DIR, DRIVER_IMAGE_GUEST_PULL};
use kata_cc_vmm::config::Config;
use kata_cc_vmm::request::SandboxId;
use protobuf::MessageField;
use serde_json::json;

use super::{end, pid};
use crate::config;
use crate::error::Error;
use crate::host_file::kubelet_termination_log;
use crate::kind::Kind;
use crate::machine::Order;
use crate::oci::Spec;
use crate::pod::{Container, Pod};
use crate::process::Process;
use crate::sandbox::Sandbox;
use crate::stdio::{ProcessId, StdioPaths};
use crate::volumes;

const CRIO_IMAGE_NAME: &str = "io.kubernetes.cri-o.ImageName";
/// Where the kubelet mounts the file for a container's last words.
const TERMINATION_LOG: &str = "/dev/termination-log";
/// Says which pod of the kubelet this is.
const SANDBOX_UID: &str = "io.kubernetes.cri.sandbox-uid";
const BUNDLE_ANNOTATION: &str = "io.katacontainers.pkg.oci.bundle_path";

/// Creates a container, and the pod's machine with the container that owns it.
pub(super) async fn create(pod: Arc<Pod>, request: CreateTaskRequest) -> Result<(), Error> {
    // The name becomes part of paths, here and in the guest.
    let id: SandboxId = request.id.parse()?;
    if pod.container(&request.id).is_ok() {
        return Err(Error::Exists(format!("container {id}")));
    }
    let bundle = PathBuf::from(&request.bundle);
    let spec = Spec::load(&bundle)?;
    let kind = Kind::of(&spec.annotations)?;
    let sandbox = if kind.owns_machine() { launch(&pod, &request, id, &kind, &spec).await? } else { pod.sandbox().await? };
    let created = match kind {
        // It begins with the machine.
        Kind::Sandbox => add(&pod, &request, bundle, kind.clone(), &spec, sandbox),
        Kind::Container(_) | Kind::Single => match create_in_guest(&request, &kind, &spec, &sandbox).await {
            Ok(()) => add(&pod, &request, bundle, kind.clone(), &spec, sandbox),
            Err(error) => Err(error),
        },
    };
    if created.is_err() && kind.owns_machine() {
        pod.stop_sandbox().await;
    }
    created
}

/// Launches the pod's machine. It boots while containerd goes on.
async fn launch(pod: &Arc<Pod>, request: &CreateTaskRequest, id: SandboxId, kind: &Kind, spec: &Spec) -> Result<Arc<Sandbox>, Error> {
    let mut place = pod.sandbox_place().await;
    if place.is_some() {
        return Err(Error::State("this shim has a machine already; a second pod needs a shim of its own".into()));
    }
    let config = Config::load(&config::path(request.options.as_ref())?)?;
    config::remember_run_dir(Path::new(&request.bundle), &config.run_dir).map_err(Error::host("cannot write to the bundle"))?;
    let own_container = match kind {
        Kind::Sandbox => Some(question(request, kind, spec, spec.to_wire(&[]), Vec::new())),
        Kind::Container(_) | Kind::Single => None,
    };
    let sandbox = Sandbox::launch(Order { config, id, kind: kind.clone(), spec: spec.clone(), own_container }).await?;
    pod.watch(&sandbox);
    *place = Some(Arc::clone(&sandbox));
    Ok(sandbox)
}

/// What the agent is asked for a container.
fn question(
    request: &CreateTaskRequest,
    kind: &Kind,
    spec: &Spec,
    mut guest_spec: wire::Spec,
    storages: Vec<Storage>,
) -> CreateContainerRequest {
    guest_spec.Annotations.extend([kind.annotation(), (BUNDLE_ANNOTATION.to_owned(), request.bundle.clone())]);
    CreateContainerRequest {
        container_id: request.id.clone(),
        OCI: MessageField::some(guest_spec),
        storages,
        // A pid namespace with a path is one that others are in: the pod shares its processes.
        sandbox_pidns: spec.namespace("pid").is_some_and(|namespace| !namespace.path.is_empty()),
        ..Default::default()
    }
}

async fn create_in_guest(request: &CreateTaskRequest, kind: &Kind, spec: &Spec, sandbox: &Sandbox) -> Result<(), Error> {
    let agent = sandbox.agent().await?;
    let begin = Instant::now();
    let random = std::iter::repeat_with(volumes::random_hex).take(spec.mounts.len()).collect::<Result<Vec<_>, _>>();
    let mut random = random.map_err(Error::host("cannot read /dev/urandom"))?.into_iter();
    let volumes = volumes::plan(kind, &request.id, &spec.mounts, || random.next().unwrap_or_default(), volumes::is_tmpfs);
    let mut storages = vec![image_storage(&request.id, spec)?];
    storages.extend(volumes.storages.iter().map(volumes::LocalVolume::to_wire));
    for copy in &volumes.copies {
        copy.send(&agent).await?;
    }
    let question = question(request, kind, spec, spec.to_wire(&volumes.mounts), storages);
    if let Err(error) = agent.client().create_container(agent.create_context(), &question).await {
        // The agent carries a create out to its end, also past our deadline: then the container is there, under a name that the next try wants.
        if !matches!(&error, ttrpc::Error::RpcStatus(status) if status.code() != ttrpc::Code::DEADLINE_EXCEEDED) {
            end::remove_in_guest(&agent, &request.id).await;
        }
        return Err(error.into());
    }
    sandbox.timeline().record(format!("create container {}", request.id), begin);
    Ok(())
}

/// Notes a container that is there, and tells containerd.
fn add(pod: &Pod, request: &CreateTaskRequest, bundle: PathBuf, kind: Kind, spec: &Spec, sandbox: Arc<Sandbox>) -> Result<(), Error> {
    let stdio = StdioPaths {
        stdin: request.stdin.clone(),
        stdout: request.stdout.clone(),
        stderr: request.stderr.clone(),
        terminal: request.terminal,
    };
    let init = Process::new(ProcessId { container: request.id.clone(), exec: String::new() }, stdio, None);
    // The guest's text is written there by root, so only where the kubelet made the file for it, and never through a read-only mount.
    let last_words = spec
        .mounts
        .iter()
        .find(|mount| mount.destination == TERMINATION_LOG && !mount.options.iter().any(|option| option == "ro"))
        .and_then(|mount| kubelet_termination_log(Path::new(&mount.source), spec.annotations.get(SANDBOX_UID).map(String::as_str)));
    pod.add(Container::new(request.id.clone(), bundle, kind, sandbox, init, last_words))?;
    let io = TaskIO {
        stdin: request.stdin.clone(),
        stdout: request.stdout.clone(),
        stderr: request.stderr.clone(),
        terminal: request.terminal,
        ..Default::default()
    };
    let event = TaskCreate {
        container_id: request.id.clone(),
        bundle: request.bundle.clone(),
        rootfs: request.rootfs.clone(),
        io: MessageField::some(io),
        pid: pid(),
        ..Default::default()
    };
    pod.events.publish(event);
    Ok(())
}

/// Tells the agent which image to pull. The root file system containerd offers is not used: the host has no say in what runs.
fn image_storage(container: &str, spec: &Spec) -> Result<Storage, Error> {
    let image = spec.annotations.get(ANNOTATION_IMAGE_NAME).or_else(|| spec.annotations.get(CRIO_IMAGE_NAME)).ok_or_else(|| {
        Error::Invalid(format!("container {container} names no image: the annotation {ANNOTATION_IMAGE_NAME} is missing"))
    })?;
    let metadata = json!({"metadata": spec.annotations});
    Ok(Storage {
        driver: DRIVER_IMAGE_GUEST_PULL.into(),
        driver_options: vec![format!("{DRIVER_IMAGE_GUEST_PULL}={metadata}")],
        source: image.clone(),
        fstype: "overlay".into(),
        mount_point: format!("{CONTAINER_DIR}/{container}/rootfs"),
        ..Default::default()
    })
}
