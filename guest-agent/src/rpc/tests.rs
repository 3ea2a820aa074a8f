//! The service without a guest, the table of methods against the protocol, and the service under a generated policy in a guest that
//! is none: what policy and agent each hold for true must be the same, whatever fails and whoever hangs up.

use super::*;
use crate::container::io::Streams;
use crate::container::process::Process;
use crate::container::{Container, Kind, State};
use kata_cc_agent_protocol::rpc::health_ttrpc::Health;
use kata_cc_agent_protocol::rpc::oci;
use kata_cc_agent_protocol::rpc::protobuf::MessageField;
use kata_cc_policy::template::{ContainerTemplate, PodTemplate};

fn context() -> TtrpcContext {
    TtrpcContext {
        mh: ttrpc::MessageHeader::default(),
        metadata: std::collections::HashMap::default(),
        timeout_nano: 0,
        connection_data: Arc::default(),
    }
}

fn refused() -> Service {
    Service::Refused { reason: "no initdata".to_owned(), told: Notify::new() }
}

fn code<T: std::fmt::Debug>(result: ttrpc::Result<T>) -> (Code, String) {
    match result {
        Err(ttrpc::Error::RpcStatus(status)) => (status.code(), status.message),
        other => panic!("expected a status, found {other:?}"),
    }
}

#[tokio::test]
async fn a_guest_that_refuses_says_so_to_every_request() {
    let service = refused();
    let (found, text) = code(service.create_container(&context(), Default::default()).await);
    assert_eq!(found, Code::FAILED_PRECONDITION);
    assert!(text.contains("no initdata"));
    assert_eq!(code(service.read_stdout(&context(), Default::default()).await).0, Code::FAILED_PRECONDITION);
    assert_eq!(code(service.check(&context(), Default::default()).await).0, Code::FAILED_PRECONDITION);
    let Service::Refused { told, .. } = &service else {
        unreachable!();
    };
    told.notified().await;
}

#[test]
fn every_method_of_the_protocol_is_in_the_table() {
    // A method left out would answer with the generated default, past the gate.
    let protocol = include_str!("../../protocol/protos/agent.proto");
    let table = include_str!("mod.rs");
    let methods: Vec<&str> =
        protocol.lines().filter_map(|line| line.trim().strip_prefix("rpc ")?.split_once('(').map(|(name, _)| name)).collect();
    assert!(methods.len() > 40);
    for method in methods {
        let flat = |name: &str| name.to_lowercase().replace('_', "");
        let found = table.lines().any(|line| {
            let line = line.trim();
            let name = line.strip_prefix("async fn ").unwrap_or(line).split(['(', ':']).next().unwrap_or("");
            flat(name) == flat(method)
        });
        assert!(found, "{method} is not in the table");
    }
}

#[test]
fn policies_do_not_see_what_is_written_to_a_process() {
    let request = agent::WriteStreamRequest { container_id: "c".to_owned(), data: b"canary".to_vec(), ..Default::default() };
    let input = WriteStream(request).policy_input();
    assert_eq!(input["size"], 6);
    assert!(!input.to_string().contains("canary"));
}

const IMAGE: &str = "registry.example/app@sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
const SANDBOX: &str = "5a0db0c5";

/// A pod of `init` and, after it, `main`.
fn pod() -> PodTemplate {
    let init = ContainerTemplate::new("init", IMAGE, ["/init"]);
    let mut main = ContainerTemplate::new("main", IMAGE, ["/main"]);
    main.after = vec!["init".to_owned()];
    PodTemplate { containers: vec![init, main], ..PodTemplate::default() }
}

/// The request for a container of the pod.
fn create(id: &str, name: &str) -> agent::CreateContainerRequest {
    let strings = |list: &[&str]| list.iter().map(|text| (*text).to_owned()).collect::<Vec<String>>();
    let mut spec = oci::Spec {
        Version: "1.1.0".to_owned(),
        Process: MessageField::some(oci::Process {
            Args: vec![format!("/{name}")],
            Cwd: "/".to_owned(),
            User: MessageField::some(oci::User::default()),
            Capabilities: MessageField::some(oci::LinuxCapabilities::default()),
            ..Default::default()
        }),
        Root: MessageField::some(oci::Root { Path: "rootfs".to_owned(), ..Default::default() }),
        Linux: MessageField::some(oci::Linux {
            CgroupsPath: "/kubepods/x".to_owned(),
            Namespaces: ["pid", "mount"].map(|kind| oci::LinuxNamespace { Type: kind.to_owned(), ..Default::default() }).to_vec(),
            Resources: MessageField::some(oci::LinuxResources::default()),
            MaskedPaths: strings(&[
                "/proc/acpi",
                "/proc/asound",
                "/proc/kcore",
                "/proc/keys",
                "/proc/latency_stats",
                "/proc/timer_list",
                "/proc/timer_stats",
                "/proc/sched_debug",
                "/proc/scsi",
                "/sys/firmware",
            ]),
            ReadonlyPaths: strings(&["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]),
            ..Default::default()
        }),
        ..Default::default()
    };
    for (annotation, value) in [
        (kata_cc_agent_protocol::ANNOTATION_CONTAINER_TYPE, "pod_container"),
        (kata_cc_agent_protocol::ANNOTATION_IMAGE_NAME, IMAGE),
        ("io.kubernetes.cri.container-name", name),
    ] {
        spec.Annotations.insert(annotation.to_owned(), value.to_owned());
    }
    agent::CreateContainerRequest {
        container_id: id.to_owned(),
        OCI: MessageField::some(spec),
        storages: vec![agent::Storage {
            driver: "image_guest_pull".to_owned(),
            source: IMAGE.to_owned(),
            mount_point: format!("/run/kata-containers/{id}/rootfs"),
            ..Default::default()
        }],
        ..Default::default()
    }
}

fn start(id: &str) -> agent::StartContainerRequest {
    agent::StartContainerRequest { container_id: id.to_owned(), ..Default::default() }
}

fn remove(id: &str) -> agent::RemoveContainerRequest {
    agent::RemoveContainerRequest { container_id: id.to_owned(), ..Default::default() }
}

/// A guest with its sandbox, under the pod's policy.
fn ready(pod: &PodTemplate) -> (Arc<Guest>, Service) {
    let guest = Arc::new(Guest::for_tests(&pod.render().unwrap()));
    guest.gate.check(agent::CreateSandboxRequest { sandbox_id: SANDBOX.to_owned(), ..Default::default() }).unwrap();
    let service = Service::Ready(Arc::clone(&guest));
    (guest, service)
}

/// Puts a container there as a successful create would.
fn put(guest: &Guest, id: &str, name: &str) -> Arc<Container> {
    guest.gate.check(create(id, name)).unwrap();
    let container = guest.containers.reserve(Container::new(id.parse().unwrap(), Kind::Workload, "")).unwrap();
    *container.steps.try_lock().unwrap() = State::Created;
    container
}

/// Begins a request and hangs up, as soon as it waits for something.
async fn hang_up<T>(request: impl Future<Output = T> + Send) {
    let mut request = Box::pin(request);
    // So often that what the request has spawned waits for what it has to wait for.
    for _ in 0..32 {
        assert!(futures::poll!(&mut request).is_pending(), "the request was to wait");
        tokio::task::yield_now().await;
    }
}

/// AC-27, AC-33: the policy may not free a name while the container of that name lives.
#[tokio::test]
async fn a_removal_that_the_host_hangs_up_on_ends_all_the_same_and_frees_the_name_only_then() {
    let (guest, service) = ready(&pod());
    let container = put(&guest, "c1", "init");
    let steps = container.steps.lock().await;
    hang_up(service.remove_container(&context(), remove("c1"))).await;
    // The container is there, so its name means what it meant, and no other container gets it or its place.
    assert_eq!(code(service.create_container(&context(), create("c1", "main")).await).0, Code::PERMISSION_DENIED);
    assert_eq!(code(service.create_container(&context(), create("c2", "init")).await).0, Code::PERMISSION_DENIED);
    assert!(Arc::ptr_eq(&guest.containers.get("c1").unwrap(), &container));
    drop(steps);
    // Nobody asks any more, and still it is carried out. The second removal can but wait for the first.
    let (code, _) = code(service.remove_container(&context(), remove("c1")).await);
    assert_eq!(code, Code::NOT_FOUND);
    assert!(guest.containers.get("c1").is_err());
    // The first is still to tell the policy.
    let told = async {
        while guest.gate.decide(create("c2", "init")).is_err() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(10), told).await.expect("the policy is told within the time of a task switch");
}

/// AC-27: a name that was given free by the policy is still not given to another container by the agent.
#[tokio::test]
async fn a_name_is_not_used_again_and_what_the_policy_said_of_it_is_taken_back() {
    let (guest, service) = ready(&pod());
    put(&guest, "c1", "init");
    service.remove_container(&context(), remove("c1")).await.unwrap();
    let (found, text) = code(service.create_container(&context(), create("c1", "main")).await);
    assert_eq!(found, Code::ALREADY_EXISTS, "{text}");
    assert!(text.contains("not used before"), "{text}");
    guest.gate.decide(create("c2", "main")).unwrap();
}

/// AC-27: `after` asks whether the other container was started, not whether somebody has asked for it.
#[tokio::test]
async fn a_create_that_failed_leaves_nothing_that_could_be_started() {
    let (guest, service) = ready(&pod());
    // The initdata of this guest names no signature policy, so no image is pulled.
    assert_eq!(code(service.create_container(&context(), create("f1", "init")).await).0, Code::FAILED_PRECONDITION);
    assert!(guest.containers.get("f1").is_err());
    assert_eq!(code(service.start_container(&context(), start("f1")).await).0, Code::PERMISSION_DENIED);
    put(&guest, "m1", "main");
    let (found, text) = code(service.start_container(&context(), start("m1")).await);
    assert_eq!(found, Code::PERMISSION_DENIED);
    assert!(text.contains("has to be started first"), "{text}");
    // The name is free again: the kubelet tries again under another id.
    guest.gate.decide(create("f2", "init")).unwrap();
}

/// AC-27: a start that failed was none, neither for those that come after it nor for exec, and cannot be repeated.
#[tokio::test]
async fn a_start_that_failed_opens_the_way_for_nobody() {
    let (guest, service) = ready(&pod());
    // The runtime of this guest fails at everything.
    let container = put(&guest, "f1", "init");
    assert_eq!(code(service.start_container(&context(), start("f1")).await).0, Code::INTERNAL);
    assert_eq!(*container.steps.lock().await, State::Failed);
    put(&guest, "m1", "main");
    assert_eq!(code(service.start_container(&context(), start("m1")).await).0, Code::PERMISSION_DENIED);
    assert_eq!(code(service.start_container(&context(), start("f1")).await).0, Code::FAILED_PRECONDITION);
}

/// AC-27: of two creates of one container in flight one is carried out.
#[tokio::test]
async fn a_second_create_is_denied_while_the_first_is_in_flight() {
    let (guest, service) = ready(&pod());
    let first = guest.gate.decide(create("c1", "init")).unwrap();
    let second = guest.gate.decide(create("c2", "init")).unwrap();
    first.into_parts().1.commit().unwrap();
    assert!(container::create(&guest, second).await.is_err());
    assert!(guest.containers.get("c2").is_err());
    assert_eq!(code(service.create_container(&context(), create("c3", "init")).await).0, Code::PERMISSION_DENIED);
}

/// AC-27: what is put behind a removal is carried out upon nothing.
#[tokio::test]
async fn a_start_that_waited_for_a_removal_starts_nothing() {
    let (guest, service) = ready(&pod());
    let container = put(&guest, "c1", "init");
    let steps = container.steps.lock().await;
    hang_up(service.remove_container(&context(), remove("c1"))).await;
    let begun = start("c1");
    let context = context();
    let late = service.start_container(&context, begun);
    let (result, ()) = tokio::join!(late, async {
        tokio::task::yield_now().await;
        drop(steps);
    });
    assert_eq!(code(result).0, Code::FAILED_PRECONDITION);
    put(&guest, "m1", "main");
    assert_eq!(code(service.start_container(&self::context(), start("m1")).await).0, Code::PERMISSION_DENIED);
}

/// A process of the container's, as if it were started, that ends by the returned sender.
fn put_process(container: &Container, exec_id: &str) -> tokio::sync::watch::Sender<Option<i32>> {
    let (end, exit) = tokio::sync::watch::channel(None);
    let streams = Streams::pipes().unwrap().0;
    // A number that no process has: what must not be signalled or joined cannot be.
    let pid = nix::unistd::Pid::from_raw(i32::MAX);
    container.add_process(exec_id, Arc::new(Process { pid, exit, streams })).unwrap();
    end
}

/// AC-33: the number of a process that has ended may be another's by now, and its namespaces another container's.
#[tokio::test]
async fn nothing_is_executed_in_a_container_whose_first_process_has_ended() {
    let mut pod = pod();
    pod.containers[0].exec = vec![vec!["/probe".to_owned()]];
    let (guest, service) = ready(&pod);
    let container = put(&guest, "c1", "init");
    guest.gate.check(start("c1")).unwrap();
    *container.steps.lock().await = State::Started;
    let end = put_process(&container, "");
    let mut process = create("c1", "init").OCI.unwrap().Process.unwrap();
    process.Args = vec!["/probe".to_owned()];
    let exec = agent::ExecProcessRequest {
        container_id: "c1".to_owned(),
        exec_id: "e1".to_owned(),
        process: MessageField::some(process),
        ..Default::default()
    };
    end.send_replace(Some(0));
    let (found, text) = code(service.exec_process(&context(), exec).await);
    assert_eq!(found, Code::NOT_FOUND, "{text}");
    assert!(text.contains("has ended"), "{text}");
    assert!(!container.has_live_process("e1"));
}

/// AC-26: whatever the policy says, one place is one volume.
#[tokio::test]
async fn no_volume_is_mounted_over_another_nor_made_after_the_end_of_the_sandbox() {
    let (guest, service) = ready(&pod());
    let cache = "/run/kata-containers/sandbox/local/cache";
    guest.sandbox().storages.insert(cache.into(), "local".to_owned());
    let storage = |driver: &str, shared, place: &str| agent::Storage {
        driver: driver.to_owned(),
        fstype: "tmpfs".to_owned(),
        mount_point: place.to_owned(),
        shared,
        ..Default::default()
    };
    container::add_storage(&guest, &storage("local", true, cache)).unwrap();
    for (driver, shared, place) in [
        ("local", false, cache.to_owned()),
        ("ephemeral", true, cache.to_owned()),
        ("ephemeral", false, cache.to_owned()),
        ("ephemeral", false, format!("{cache}/")),
        ("ephemeral", false, cache.replace("local", "/local")),
    ] {
        let error = container::add_storage(&guest, &storage(driver, shared, &place)).unwrap_err();
        assert!(matches!(error, RpcError::Invalid(_)), "{driver} {shared} {place}: {error}");
    }
    guest.sandbox().storages.clear();
    // A create that was allowed before, and comes to be carried out after.
    let decided = guest.gate.decide(create("c1", "init")).unwrap();
    service.destroy_sandbox(&context(), Default::default()).await.unwrap();
    assert!(matches!(container::add_storage(&guest, &storage("local", true, cache)), Err(RpcError::State(_))));
    assert!(matches!(container::create(&guest, decided).await, Err(RpcError::State(_))));
    let (found, text) = code(service.create_container(&context(), create("c2", "init")).await);
    assert_eq!(found, Code::PERMISSION_DENIED);
    assert!(text.contains("the sandbox was destroyed"), "{text}");
}

/// Logs that stay in the guest are not kept in a pipe until the program can write no more.
#[tokio::test]
async fn output_that_the_host_may_not_have_is_taken_from_the_program_all_the_same() {
    let (guest, service) = ready(&pod());
    let container = put(&guest, "c1", "init");
    let (end, exit) = tokio::sync::watch::channel(None);
    let (streams, child) = Streams::pipes().unwrap();
    let pid = nix::unistd::Pid::from_raw(i32::MAX);
    container.add_process("", Arc::new(Process { pid, exit, streams })).unwrap();
    // More than a pipe holds. It stays open, as if a descendant had it.
    let writer = std::thread::spawn(move || {
        let mut out = std::fs::File::from(child.stdout);
        std::io::Write::write_all(&mut out, &vec![b'x'; 1 << 20]).unwrap();
        end.send_replace(Some(0));
        out
    });
    let request = agent::ReadStreamRequest { container_id: "c1".to_owned(), len: 4096, ..Default::default() };
    let context = context();
    let read = service.read_stdout(&context, request);
    let answer = tokio::time::timeout(std::time::Duration::from_secs(60), read).await.expect("the program stands still").unwrap();
    assert!(answer.data.is_empty());
    drop(writer.join().unwrap());
    // What is not there is empty at once.
    let request = agent::ReadStreamRequest { container_id: "none".to_owned(), len: 1, ..Default::default() };
    assert!(service.read_stdout(&context, request).await.unwrap().data.is_empty());
}
