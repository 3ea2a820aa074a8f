//! Containers: create, start, remove, and their limits.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use kata_cc_agent_protocol::rpc::{Empty, agent, oci};
use kata_cc_agent_protocol::{
    ANNOTATION_CONTAINER_TYPE, ANNOTATION_IMAGE_NAME, CONTAINER_TYPE_CONTAINER, CONTAINER_TYPE_SANDBOX, DRIVER_IMAGE_GUEST_PULL, SHARED_DIR,
};
use kata_cc_policy::Allowed;
use pathrs::flags::{OpenFlags, ResolverFlags};
use tokio::sync::watch;

use super::process::expect;
use crate::container::cgroup::Group;
use crate::container::helper::Verb;
use crate::container::{Container, ContainerError, ContainerId, Kind, State, rootfs, spec};
use crate::errors::{RpcError, at};
use crate::guest::Guest;
use crate::measure::{self, Identity};
use crate::reaper::ended;
use crate::sealed::{Sealed, Unsealer, volume};
use crate::{storage, sysctl};

/// What the CRI calls the type of a container.
const CRI_CONTAINER_TYPE: &str = "io.kubernetes.cri.container-type";

/// What the CRI calls the name of a container in its pod.
const CRI_CONTAINER_NAME: &str = "io.kubernetes.cri.container-name";

/// How many of a container's last words Kubernetes takes.
const MAX_TERMINATION_LOG: u64 = 4096;

/// Volumes are gone with the sandbox: a container after it would take empty ones for them.
const DESTROYED: RpcError = RpcError::State("the sandbox was destroyed; nothing is created in it any more");

fn invalid(text: impl Into<String>) -> RpcError {
    RpcError::Invalid(text.into())
}

/// Whether the request is for the pod's own container.
fn is_sandbox(spec: &oci::Spec) -> Result<bool, RpcError> {
    let get = |name: &str| spec.Annotations.get(name).map(String::as_str);
    let kata = match get(ANNOTATION_CONTAINER_TYPE) {
        None => None,
        Some(CONTAINER_TYPE_SANDBOX) => Some(true),
        Some(CONTAINER_TYPE_CONTAINER | "single_container") => Some(false),
        Some(_) => return Err(invalid(format!("annotation {ANNOTATION_CONTAINER_TYPE} is not known"))),
    };
    let cri = get(CRI_CONTAINER_TYPE).map(|kind| kind == "sandbox");
    match (kata, cri) {
        // Two sources that could be played off against each other must agree.
        (Some(kata), Some(cri)) if kata != cri => {
            Err(invalid(format!("annotations {ANNOTATION_CONTAINER_TYPE} and {CRI_CONTAINER_TYPE} contradict each other")))
        }
        (Some(sandbox), _) | (None, Some(sandbox)) => Ok(sandbox),
        (None, None) => Ok(false),
    }
}

/// The image of a container: named once as a storage, once as an annotation, and the same both times (AC-25).
fn image<'a>(id: &ContainerId, request: &'a agent::CreateContainerRequest) -> Result<&'a str, RpcError> {
    let mut images = request.storages.iter().filter(|storage| storage.driver == DRIVER_IMAGE_GUEST_PULL);
    let (Some(storage), None) = (images.next(), images.next()) else {
        return Err(invalid(format!(
            "expected exactly one storage with driver {DRIVER_IMAGE_GUEST_PULL}: the guest pulls images itself and takes no root file system from the host"
        )));
    };
    if Path::new(&storage.mount_point) != rootfs::mount_point(id) {
        return Err(invalid("the image's storage is not mounted at the container's root file system"));
    }
    let annotated = request.OCI.Annotations.get(ANNOTATION_IMAGE_NAME);
    if annotated.map(String::as_str) != Some(storage.source.as_str()) {
        return Err(invalid(format!("the image's storage and the annotation {ANNOTATION_IMAGE_NAME} name different images")));
    }
    Ok(&storage.source)
}

pub(super) async fn create(guest: &Arc<Guest>, request: Allowed<agent::CreateContainerRequest>) -> Result<Empty, RpcError> {
    let (request, decision) = request.into_parts();
    let id: ContainerId = request.container_id.parse()?;
    let oci = request.OCI.as_ref().ok_or(RpcError::Spec(spec::SpecError::Missing("OCI")))?;
    for (there, what) in [
        (request.string_user.is_some(), "users by name; give numbers"),
        (!request.devices.is_empty(), "devices of the host"),
        (!request.shared_mounts.is_empty(), "mounts shared by containers"),
        (request.sandbox_pidns, "a process namespace shared by containers; unset shareProcessNamespace"),
        ([request.stdin_port, request.stdout_port, request.stderr_port] != [0; 3], "streams on ports of their own"),
    ] {
        if there {
            return Err(invalid(format!("a confidential guest does not support {what}")));
        }
    }
    let sandbox = is_sandbox(oci)?;
    let (kind, reference) = if sandbox { (sandbox_kind(guest, &request)?, None) } else { (Kind::Workload, Some(image(&id, &request)?)) };
    let container = guest.containers.reserve(Container::new(id, kind, &request.exec_id))?;
    let mut state = container.steps.lock().await;
    // A removal may have been faster.
    expect(&container, *state, State::Creating)?;
    // The policy's word is in effect before anything is done, so that nobody else gets the name. Reserved first: a removal that
    // comes now finds the container, and waits for what becomes of it.
    let destroyed = guest.sandbox().destroyed;
    let undo = match if destroyed { Err(DESTROYED) } else { decision.commit().map_err(RpcError::from) } {
        Ok(undo) => undo,
        Err(refused) => {
            *state = State::Removed;
            guest.containers.forget(&container.id);
            return Err(refused);
        }
    };
    let result = match reference {
        Some(reference) => prepare(guest, &container, reference, &request, oci).await,
        None => sysctl::apply(&oci.Linux.Sysctl).map_err(|error| invalid(error.to_string())),
    };
    let Err(error) = result else {
        *state = State::Created;
        return Ok(Empty::default());
    };
    *state = State::Ending;
    match clear(guest, &container).await {
        Ok(()) => {
            *state = State::Removed;
            guest.containers.forget(&container.id);
            // Last: as soon as the policy does not know of it, nothing here may.
            if !undo.undo() {
                tracing::warn!(container = %container.id, "the policy still counts a container that could not be created");
            }
        }
        // Not gone, so its name stays taken until a removal succeeds. The failure to report is the first one.
        Err(error) => tracing::error!(container = %container.id, %error, "cannot clean up after a failed create"),
    }
    Err(error)
}

/// What a sandbox container is made of: nothing that comes from the host.
fn sandbox_kind(guest: &Guest, request: &agent::CreateContainerRequest) -> Result<Kind, RpcError> {
    if !request.storages.is_empty() {
        return Err(invalid("the sandbox container has no storages: it runs nothing"));
    }
    let another = |container: &Arc<Container>| matches!(container.kind, Kind::Sandbox { .. });
    if guest.containers.all().iter().any(another) {
        return Err(RpcError::State("there is a sandbox container already; a guest is one pod"));
    }
    Ok(Kind::Sandbox { end: watch::channel(None).0 })
}

async fn prepare(
    guest: &Arc<Guest>,
    container: &Arc<Container>,
    reference: &str,
    request: &agent::CreateContainerRequest,
    oci: &oci::Spec,
) -> Result<(), RpcError> {
    let id = &container.id;
    let place = spec::Place { id: id.as_str(), rootfs: &rootfs::mount_point(id) };
    // Everything that can be refused without pulling is refused before.
    check_bind_sources(oci)?;
    let (sealed, without) = Sealed::find(oci)?;
    let mut adapted = spec::adapt(&without, place)?;
    note_what_is_left_out(id, oci);
    for other in request.storages.iter().filter(|storage| storage.driver != DRIVER_IMAGE_GUEST_PULL) {
        add_storage(guest, other)?;
    }
    let began = Instant::now();
    let name = oci.Annotations.get(CRI_CONTAINER_NAME).map_or(id.as_str(), String::as_str).to_owned();
    let unsealer = Unsealer { gate: &guest.gate, broker: guest.broker.as_ref(), container: id, name: &name };
    let pull = async { guest.images.pull(reference).await.map_err(RpcError::from) };
    let open = async { sealed.open(unsealer).await.map_err(RpcError::from) };
    let (image, mut opened) = tokio::try_join!(pull, open)?;
    measure::image(guest.attester.log(), reference, &image.digest)?;
    let _ = container.identity.set(Identity { name, image: image.digest });
    rootfs::mount(id, &image.layers)?;
    guest.timeline.since("image", began);

    let began = Instant::now();
    opened.put(id, &mut adapted)?;
    let _ = container.secrets.set(opened);
    let bundle = id.bundle();
    fs::create_dir_all(&bundle).map_err(at("making the bundle"))?;
    adapted.save(bundle.join("config.json")).map_err(|error| at("writing the specification")(std::io::Error::other(error.to_string())))?;
    let terminal = oci.Process.Terminal;
    let process = guest.runtime.launch(Verb::Create, id, &bundle, terminal).await?;
    if let Some(size) = oci.Process.ConsoleSize.as_ref().filter(|size| terminal && size.Height > 0)
        && let (Ok(rows), Ok(columns)) = (size.Height.try_into(), size.Width.try_into())
    {
        process.streams.resize(rows, columns).map_err(at("sizing the terminal"))?;
    }
    container.add_process("", Arc::new(process))?;
    if let Some(mount) = oci.Mounts.iter().find(|mount| mount.destination == spec::TERMINATION_LOG) {
        let _ = container.termination_log.set(PathBuf::from(&mount.source));
    }
    guest.oom.watch(id.clone());
    guest.timeline.since("container", began);
    Ok(())
}

/// A storage that containers share is made once, and never a second one over it.
pub(super) fn add_storage(guest: &Guest, storage: &agent::Storage) -> Result<(), RpcError> {
    let mut sandbox = guest.sandbox();
    if sandbox.destroyed {
        return Err(DESTROYED);
    }
    match sandbox.storages.get(Path::new(&storage.mount_point)) {
        Some(driver) if storage.shared && *driver == storage.driver => Ok(()),
        Some(driver) => Err(invalid(format!(
            "storage at {:?}: there is one of driver {driver}; expected the same, shared, since another one over it would hide what it holds",
            storage.mount_point
        ))),
        None => {
            let place = storage::add(storage)?;
            sandbox.storages.insert(place, storage.driver.clone());
            Ok(())
        }
    }
}

/// Sources of bind mounts must be there, beneath their directory, and reached through no symbolic link (AC-30). The host can make
/// links by copying them, but only this agent makes anything under these directories, so what holds now holds at the mount.
fn check_bind_sources(oci: &oci::Spec) -> Result<(), RpcError> {
    for source in oci.Mounts.iter().map(|mount| mount.source.as_str()) {
        for directory in spec::SOURCE_DIRS {
            let Ok(rest) = Path::new(source).strip_prefix(directory) else {
                continue;
            };
            let found = pathrs::Root::open(directory).and_then(|root| root.with_resolver_flags(ResolverFlags::NO_SYMLINKS).resolve(rest));
            if let Err(error) = found {
                return Err(invalid(format!("source of a mount: expected a file or directory that was copied or made before ({error})")));
            }
        }
    }
    Ok(())
}

/// Profiles of the host's kernel mean nothing here. The guest's boundary is the hardware's; say so rather than pretend.
fn note_what_is_left_out(id: &ContainerId, oci: &oci::Spec) {
    if oci.Linux.Seccomp.is_some() {
        tracing::info!(container = %id, "seccomp filter not applied: there is none in this guest");
    }
    if !oci.Process.ApparmorProfile.is_empty() || !oci.Process.SelinuxLabel.is_empty() {
        tracing::info!(container = %id, "security profile of the host not applied: there is none in this guest");
    }
}

pub(super) async fn start(guest: &Arc<Guest>, request: Allowed<agent::StartContainerRequest>) -> Result<Empty, RpcError> {
    let (request, mut decision) = request.into_parts();
    let container = guest.containers.get(&request.container_id)?;
    let mut state = container.steps.lock().await;
    expect(&container, *state, State::Created)?;
    // The lock may have been long in coming.
    decision.renew()?;
    if let Kind::Workload = container.kind {
        if let Some(identity) = container.identity.get() {
            measure::start(guest.attester.log(), identity)?;
        }
        let began = guest.runtime.run(Verb::Start, &container.id, &container.id.bundle()).await;
        if let Err(error) = began {
            *state = State::Failed;
            // It may have begun before the failure, and is not to go on: the policy counts it as not started.
            kill(&container);
            return Err(error.into());
        }
        guest.timeline.mark("start");
    }
    // Only now may others start that come after it.
    if let Err(denied) = decision.commit() {
        *state = State::Failed;
        kill(&container);
        return Err(denied.into());
    }
    *state = State::Started;
    Ok(Empty::default())
}

fn kill(container: &Container) {
    if let Kind::Workload = container.kind
        && let Err(error) = Group::of(&container.id).kill()
    {
        tracing::error!(container = %container.id, %error, "cannot kill a container that is not to run");
    }
}

pub(super) async fn remove(guest: &Arc<Guest>, request: Allowed<agent::RemoveContainerRequest>) -> Result<Empty, RpcError> {
    let (request, decision) = request.into_parts();
    let container = guest.containers.get(&request.container_id)?;
    take_down(guest, &container).await?;
    // The container is gone here before its name is free there.
    decision.commit()?;
    Ok(Empty::default())
}

/// Ends a container and takes away all of it. What fails can be tried again.
///
/// # Errors
/// When something of it stays, or it is gone already.
pub(super) async fn take_down(guest: &Arc<Guest>, container: &Arc<Container>) -> Result<(), RpcError> {
    let mut state = container.steps.lock().await;
    match *state {
        State::Removed => return Err(ContainerError::NotFound(container.id.clone()).into()),
        // The lock was free and nothing was made: its create has not begun yet, and will not.
        State::Creating => {}
        _ => {
            *state = State::Ending;
            match &container.kind {
                Kind::Sandbox { end } => {
                    end.send_if_modified(|code| {
                        let first = code.is_none();
                        code.get_or_insert(137);
                        first
                    });
                }
                Kind::Workload => clear(guest, container).await?,
            }
        }
    }
    *state = State::Removed;
    guest.containers.forget(&container.id);
    Ok(())
}

async fn clear(guest: &Arc<Guest>, container: &Container) -> Result<(), RpcError> {
    if let Kind::Sandbox { .. } = container.kind {
        return Ok(());
    }
    let id = &container.id;
    Group::of(id).kill().map_err(at("killing the container"))?;
    if let Ok(first) = container.process("") {
        ended(&first.exit).await;
    }
    let bundle = id.bundle();
    let mut result = Ok(());
    if Path::new(crate::container::helper::STATE_DIR).join(id.as_str()).exists() {
        result = guest.runtime.run(Verb::Delete, id, &bundle).await.map_err(RpcError::from);
    }
    let unmounted = rootfs::remove(id).map_err(RpcError::from);
    let deleted = match fs::remove_dir_all(&bundle) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(at("removing the bundle")(error)),
        _ => Ok(()),
    };
    let wiped = volume::remove(id).map_err(at("removing the container's secrets"));
    result.and(unmounted).and(deleted).and(wiped)
}

pub(super) async fn update(guest: &Arc<Guest>, request: Allowed<agent::UpdateContainerRequest>) -> Result<Empty, RpcError> {
    let request = request.get();
    let container = guest.containers.get(&request.container_id)?;
    if let (Kind::Workload, Some(resources)) = (&container.kind, request.resources.as_ref()) {
        Group::of(&container.id).update(resources).map_err(at("setting the container's limits"))?;
    }
    Ok(Empty::default())
}

pub(super) async fn pause(guest: &Arc<Guest>, request: Allowed<agent::PauseContainerRequest>) -> Result<Empty, RpcError> {
    freeze(guest, &request.get().container_id, true).await
}

pub(super) async fn resume(guest: &Arc<Guest>, request: Allowed<agent::ResumeContainerRequest>) -> Result<Empty, RpcError> {
    freeze(guest, &request.get().container_id, false).await
}

async fn freeze(guest: &Guest, id: &str, frozen: bool) -> Result<Empty, RpcError> {
    let container = guest.containers.get(id)?;
    if let Kind::Workload = container.kind {
        Group::of(&container.id).freeze(frozen).await.map_err(at("pausing or resuming the container"))?;
    }
    Ok(Empty::default())
}

/// A container's last words, if it has a place for them.
pub(super) fn termination_log(guest: &Guest, id: &str) -> Result<String, RpcError> {
    let container = guest.containers.get(id)?;
    let Some(name) = container.termination_log.get().and_then(|source| source.strip_prefix(SHARED_DIR).ok()) else {
        return Ok(String::new());
    };
    // The container owns the file's contents, so it is opened as anything a stranger has named.
    let file = pathrs::Root::open(SHARED_DIR)
        .and_then(|root| {
            root.with_resolver_flags(ResolverFlags::NO_SYMLINKS)
                .open_subpath(name, OpenFlags::O_RDONLY | OpenFlags::O_NONBLOCK | OpenFlags::O_CLOEXEC)
        })
        .map_err(|error| at("opening the termination log")(std::io::Error::other(error)))?;
    let mut text = Vec::new();
    file.take(MAX_TERMINATION_LOG).read_to_end(&mut text).map_err(at("reading the termination log"))?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use kata_cc_agent_protocol::rpc::protobuf::MessageField;

    const IMAGE: &str = "registry.example/app@sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";

    fn request() -> agent::CreateContainerRequest {
        let mut spec = oci::Spec::default();
        spec.Annotations.insert(ANNOTATION_IMAGE_NAME.to_owned(), IMAGE.to_owned());
        agent::CreateContainerRequest {
            container_id: "c1".to_owned(),
            OCI: MessageField::some(spec),
            storages: vec![agent::Storage {
                driver: DRIVER_IMAGE_GUEST_PULL.to_owned(),
                source: IMAGE.to_owned(),
                mount_point: "/run/kata-containers/c1/rootfs".to_owned(),
                ..Default::default()
            }],
            ..Default::default()
        }
    }

    fn image_of(request: &agent::CreateContainerRequest) -> Result<&str, RpcError> {
        image(&"c1".parse().unwrap(), request)
    }

    #[test]
    fn the_image_is_named_twice_and_the_same() {
        assert_eq!(image_of(&request()).unwrap(), IMAGE);
    }

    #[test]
    fn refuses_an_image_that_is_not_the_annotated_one() {
        // AC-25
        let mut other = request();
        other.storages[0].source = IMAGE.replace("aaaa", "bbbb");
        assert!(image_of(&other).is_err());
        let mut missing = request();
        missing.OCI.mut_or_insert_default().Annotations.clear();
        assert!(image_of(&missing).is_err());
    }

    #[test]
    fn refuses_no_image_two_images_and_an_image_mounted_elsewhere() {
        // AC-26, AC-70
        let mut none = request();
        none.storages.clear();
        assert!(image_of(&none).is_err());
        let mut two = request();
        two.storages.push(two.storages[0].clone());
        assert!(image_of(&two).is_err());
        for place in ["/", "/run/kata-containers/c2/rootfs", "/run/kata-containers/c1/rootfs/../../x", ""] {
            let mut elsewhere = request();
            elsewhere.storages[0].mount_point = place.to_owned();
            assert!(image_of(&elsewhere).is_err(), "{place}");
        }
    }

    #[test]
    fn the_type_of_a_container_is_not_up_to_one_annotation() {
        let spec = |annotations: &[(&str, &str)]| {
            let mut spec = oci::Spec::default();
            for (name, value) in annotations {
                spec.Annotations.insert((*name).to_owned(), (*value).to_owned());
            }
            spec
        };
        let (kata, cri) = (ANNOTATION_CONTAINER_TYPE, CRI_CONTAINER_TYPE);
        assert!(is_sandbox(&spec(&[(kata, "pod_sandbox"), (cri, "sandbox")])).unwrap());
        assert!(!is_sandbox(&spec(&[(kata, "pod_container"), (cri, "container")])).unwrap());
        assert!(!is_sandbox(&spec(&[])).unwrap());
        assert!(is_sandbox(&spec(&[(kata, "pod_sandbox"), (cri, "container")])).is_err());
        assert!(is_sandbox(&spec(&[(kata, "other")])).is_err());
    }
}
