//! The whole shim between a containerd and a machine that are both played by this program: no root, no VM, no network.

#![expect(clippy::unwrap_used, reason = "a test with a main of its own, which Clippy does not know for one")]

#[path = "task_api/containerd.rs"]
mod containerd;
#[path = "task_api/guest.rs"]
mod guest;

use std::fs;
use std::future::Future;
use std::pin::Pin;
use std::time::{Duration, Instant};

use containerd::{Io, Task, World, exit_event};
use serde_json::json;

type Test = (&'static str, fn() -> Pin<Box<dyn Future<Output = ()>>>);

macro_rules! tests {
    ($($name:ident),* $(,)?) => { [$((stringify!($name), || Box::pin($name()))),*] };
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if guest::play(&arguments) {
        return;
    }
    let tests: [Test; 16] = tests![
        runs_a_single_container_from_create_to_delete,
        runs_a_pod_with_a_container_that_joins_it,
        carries_a_hundred_megabytes_without_loss_or_disorder,
        carries_input_and_its_end,
        executes_processes_and_tells_their_ends_apart,
        passes_on_the_agents_refusal_and_leaves_nothing,
        a_create_that_was_too_late_for_its_caller_can_be_tried_again,
        tells_why_qemu_did_not_start,
        tells_why_the_guest_did_not_come_up,
        a_pod_runs_while_its_guest_boots_and_its_first_container_waits,
        a_pod_whose_guest_does_not_come_up_tells_its_first_container_why,
        a_pod_can_be_killed_while_its_guest_boots,
        ac_68_a_machine_that_crashes_ends_its_tasks,
        ac_68_a_shim_that_is_killed_leaves_nothing_after_delete,
        ac_20_killing_never_waits_for_a_stuck_agent,
        copies_files_and_brings_last_words_back,
    ];
    let filter = arguments.iter().find(|argument| !argument.starts_with('-')).cloned().unwrap_or_default();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    for (name, test) in tests.into_iter().filter(|(name, _)| name.contains(&filter)) {
        let begin = Instant::now();
        runtime.block_on(test());
        println!("test {name} ... ok ({} ms)", begin.elapsed().as_millis());
    }
}

async fn single(world: &World, arguments: &[&str]) -> Task {
    let bundle = world.bundle("pod", arguments, &[], json!([]));
    world.start("pod", &bundle).await
}

async fn end(world: &mut World, task: &Task) {
    task.delete("").await.unwrap();
    task.shutdown().await;
    world.topics(&["/tasks/delete"]).await;
    world.nothing_left();
}

async fn runs_a_single_container_from_create_to_delete() {
    let mut world = World::new().await;
    let task = single(&world, &["exit", "7"]).await;
    task.create(&Io::default()).await.unwrap();
    assert!(task.create(&Io::default()).await.is_err(), "a second container of the same name");
    let seen = world.agent_saw("pod", "create_pod.json");
    assert_eq!(seen["storages"][0]["driver"], "image_guest_pull");
    assert_eq!(seen["storages"][0]["source"], "registry.example/app@sha256:00");
    assert_eq!(seen["OCI"]["Annotations"]["io.katacontainers.pkg.oci.container_type"], "pod_container");
    let disk = fs::read(world.path("run/pod/initdata.img")).unwrap();
    assert_eq!((disk.len() % 512, disk.starts_with(b"initdata")), (0, true));
    task.start("").await.unwrap();
    assert_eq!(task.wait("").await, 7);
    world.topics(&["/tasks/create", "/tasks/start"]).await;
    let (topic, event) = world.event().await;
    assert_eq!((topic.as_str(), exit_event(&event)), ("/tasks/exit", ("pod".into(), "pod".into(), 7)));
    end(&mut world, &task).await;
    let timeline = fs::read_to_string(world.path("timeline/pod.json")).unwrap();
    assert!(timeline.lines().any(|line| line.contains("\"agent\"")) && timeline.contains("firmware+kernel+agent"), "{timeline}");
}

const SANDBOX: [(&str, &str); 2] = [("io.kubernetes.cri.container-type", "sandbox"), ("io.kubernetes.cri.sandbox-id", "pod")];
const MEMBER: [(&str, &str); 2] = [("io.kubernetes.cri.container-type", "container"), ("io.kubernetes.cri.sandbox-id", "pod")];

/// A pod as containerd runs it: created and started, its guest perhaps still booting.
async fn pod(world: &World) -> Task {
    let bundle = world.bundle("pod", &["/pause"], &SANDBOX, json!([{"destination": "/dev/shm", "type": "bind", "source": "/dev/shm"}]));
    let pod = world.start("pod", &bundle).await;
    pod.create(&Io::default()).await.unwrap();
    pod.start("").await.unwrap();
    pod
}

async fn runs_a_pod_with_a_container_that_joins_it() {
    let mut world = World::new().await;
    let pod = pod(&world).await;
    let bundle = world.bundle("app", &["hang"], &MEMBER, json!([]));
    let app = world.start("app", &bundle).await;
    assert_eq!(app.shim_pid().await, pod.shim_pid().await);
    app.create(&Io::default()).await.unwrap();
    let seen = world.agent_saw("pod", "create_pod.json");
    assert_eq!((&seen["storages"], &seen["OCI"]["Mounts"]), (&json!([]), &json!([])));
    assert_eq!(seen["OCI"]["Annotations"]["io.katacontainers.pkg.oci.container_type"], "pod_sandbox");
    app.start("").await.unwrap();
    app.kill("", 9).await.unwrap();
    assert_eq!(app.wait("").await, 137);
    assert!(app.kill("", 9).await.is_err(), "it has ended");
    app.delete("").await.unwrap();
    // Not yet: the pod is still there.
    app.shutdown().await;
    pod.kill("", 15).await.unwrap();
    assert_eq!(pod.wait("").await, 143);
    let topics = ["create", "start", "create", "start", "exit", "delete", "exit"].map(|name| format!("/tasks/{name}"));
    world.topics(&topics.each_ref().map(String::as_str)).await;
    end(&mut world, &pod).await;
    let orphan = world.action("app", &bundle, "start");
    assert!(String::from_utf8_lossy(&orphan.stderr).contains("pod pod of container app is not running"));
}

async fn carries_a_hundred_megabytes_without_loss_or_disorder() {
    const SIZE: u64 = 100 << 20;
    let mut world = World::new().await;
    let task = single(&world, &["bytes", &SIZE.to_string()]).await;
    let io = Io::pipes(&world, "io");
    let output = io.output();
    task.create(&io).await.unwrap();
    task.start("").await.unwrap();
    assert_eq!(task.wait("").await, 0);
    // The exit is told after the last byte, so the reader has all of it, and the pipe's end.
    let output = output.join().unwrap();
    assert_eq!(output.len() as u64, SIZE);
    let wrong = output.iter().zip(0_u64..).position(|(byte, position)| *byte != guest::pattern(position));
    assert_eq!(wrong, None);
    world.topics(&["/tasks/create", "/tasks/start", "/tasks/exit"]).await;
    let status = fs::read_to_string(format!("/proc/{}/status", task.shim_pid().await)).unwrap();
    println!("{}", status.lines().find(|line| line.starts_with("VmHWM")).unwrap());
    end(&mut world, &task).await;
}

async fn carries_input_and_its_end() {
    let mut world = World::new().await;
    let task = single(&world, &["cat"]).await;
    let io = Io::pipes(&world, "io");
    let output = io.output();
    task.create(&io).await.unwrap();
    task.start("").await.unwrap();
    let data: Vec<u8> = (0..50_000).map(guest::pattern).collect();
    io.write_input(&data);
    task.close_stdin("").await;
    assert_eq!(task.wait("").await, 0);
    assert!(output.join().unwrap() == data);
    world.topics(&["/tasks/create", "/tasks/start", "/tasks/exit"]).await;
    end(&mut world, &task).await;
}

async fn executes_processes_and_tells_their_ends_apart() {
    let mut world = World::new().await;
    let task = single(&world, &["hang"]).await;
    task.create(&Io::default()).await.unwrap();
    task.start("").await.unwrap();
    world.topics(&["/tasks/create", "/tasks/start"]).await;
    let io = Io::pipes(&world, "x");
    let output = io.output();
    task.exec("x", &["bytes", "1000"], &io).await.unwrap();
    assert!(task.exec("x", &["true"], &Io::default()).await.is_err(), "a second process of the same name");
    task.start("x").await.unwrap();
    assert!(task.start("x").await.is_err(), "started twice");
    assert_eq!(task.wait("x").await, 0);
    assert_eq!(output.join().unwrap().len(), 1000);
    assert_eq!(task.delete("x").await.unwrap(), 0);
    world.topics(&["/tasks/exec-added", "/tasks/exec-started"]).await;
    let (_, event) = world.event().await;
    assert_eq!(exit_event(&event), ("pod".into(), "x".into(), 0));
    world.topics(&["/tasks/delete"]).await;
    assert!(task.delete("").await.is_err(), "it is still running");
    task.kill("", 9).await.unwrap();
    assert_eq!(task.wait("").await, 137);
    world.topics(&["/tasks/exit"]).await;
    end(&mut world, &task).await;
}

async fn passes_on_the_agents_refusal_and_leaves_nothing() {
    let world = World::new().await;
    let task = single(&world, &["denied"]).await;
    let error = task.create(&Io::default()).await.unwrap_err();
    assert!(error.to_string().contains("CreateContainerRequest is denied by the policy: image is not pinned"), "{error}");
    task.shutdown().await;
    world.nothing_left();
    let bundle = world.bundle("greedy", &["hang"], &[("io.katacontainers.config.hypervisor.kernel", "/evil")], json!([]));
    let task = world.start("greedy", &bundle).await;
    let error = task.create(&Io::default()).await.unwrap_err();
    assert!(error.to_string().contains("hypervisor.kernel is not supported"), "{error}");
    task.shutdown().await;
    world.nothing_left();
}

async fn a_create_that_was_too_late_for_its_caller_can_be_tried_again() {
    let mut world = World::new().await;
    let pod = pod(&world).await;
    world.topics(&["/tasks/create", "/tasks/start"]).await;
    let bundle = world.bundle("app", &["tardy"], &MEMBER, json!([]));
    let app = world.start("app", &bundle).await;
    for _ in 0..2 {
        let error = app.create(&Io::default()).await.unwrap_err();
        assert!(error.to_string().contains("created, but too late"), "{error}");
    }
    pod.kill("", 9).await.unwrap();
    assert_eq!(pod.wait("").await, 137);
    world.topics(&["/tasks/exit"]).await;
    end(&mut world, &pod).await;
}

async fn tells_why_qemu_did_not_start() {
    let mut world = World::new().await;
    world.environment.push(("FAKE_REFUSES".into(), "1".into()));
    let task = single(&world, &["hang"]).await;
    let error = task.create(&Io::default()).await.unwrap_err();
    assert!(error.to_string().contains("confidential guest support is not available"), "{error}");
    task.shutdown().await;
    world.nothing_left();
}

async fn tells_why_the_guest_did_not_come_up() {
    let mut world = World::new().await;
    world.environment.push(("FAKE_PANICS".into(), "1".into()));
    let task = single(&world, &["hang"]).await;
    let error = task.create(&Io::default()).await.unwrap_err();
    assert!(error.to_string().contains("initdata digest mismatch"), "{error}");
    task.shutdown().await;
    world.nothing_left();
}

async fn a_pod_runs_while_its_guest_boots_and_its_first_container_waits() {
    let mut world = World::new().await;
    world.environment.push(("FAKE_LATE".into(), "1".into()));
    let pod = pod(&world).await;
    world.topics(&["/tasks/create", "/tasks/start"]).await;
    let bundle = world.bundle("app", &["exit", "3"], &MEMBER, json!([]));
    let app = world.start("app", &bundle).await;
    let io = Io::default();
    let create = app.create(&io);
    tokio::pin!(create);
    assert!(tokio::time::timeout(Duration::from_millis(300), &mut create).await.is_err(), "there is no agent that could have created it");
    // Whoever else asks is answered meanwhile.
    pod.shim_pid().await;
    fs::write(world.path("run/pod/boot"), b"").unwrap();
    create.await.unwrap();
    app.start("").await.unwrap();
    assert_eq!(app.wait("").await, 3);
    app.delete("").await.unwrap();
    pod.kill("", 9).await.unwrap();
    assert_eq!(pod.wait("").await, 137);
    world.topics(&["create", "start", "exit", "delete", "exit"].map(|name| format!("/tasks/{name}")).each_ref().map(String::as_str)).await;
    end(&mut world, &pod).await;
}

async fn a_pod_whose_guest_does_not_come_up_tells_its_first_container_why() {
    let mut world = World::new().await;
    world.environment.push(("FAKE_PANICS".into(), "1".into()));
    let pod = pod(&world).await;
    world.topics(&["/tasks/create", "/tasks/start"]).await;
    let bundle = world.bundle("app", &["hang"], &MEMBER, json!([]));
    let app = world.start("app", &bundle).await;
    let error = app.create(&Io::default()).await.unwrap_err();
    assert!(error.to_string().contains("initdata digest mismatch"), "{error}");
    // Whoever was told may know now that the pod is over.
    assert_eq!(pod.wait("").await, 137);
    world.topics(&["/tasks/exit"]).await;
    assert!(app.create(&Io::default()).await.is_err());
    end(&mut world, &pod).await;
}

async fn a_pod_can_be_killed_while_its_guest_boots() {
    for signal in [15, 9] {
        let mut world = World::new().await;
        world.environment.push(("FAKE_LATE".into(), "1".into()));
        let pod = pod(&world).await;
        pod.kill("", signal).await.unwrap();
        assert_eq!(pod.wait("").await, 137);
        world.topics(&["/tasks/create", "/tasks/start", "/tasks/exit"]).await;
        end(&mut world, &pod).await;
    }
}

async fn ac_68_a_machine_that_crashes_ends_its_tasks() {
    let mut world = World::new().await;
    let task = single(&world, &["hang"]).await;
    task.create(&Io::default()).await.unwrap();
    task.start("").await.unwrap();
    task.exec("x", &["crash"], &Io::default()).await.unwrap();
    let _ = task.start("x").await;
    assert!(matches!(task.wait("").await, 137 | 255));
    loop {
        let (topic, event) = world.event().await;
        if topic == "/tasks/exit" && exit_event(&event).1 == "pod" {
            break;
        }
    }
    task.delete("").await.unwrap();
    task.shutdown().await;
    world.nothing_left();
}

async fn ac_68_a_shim_that_is_killed_leaves_nothing_after_delete() {
    let world = World::new().await;
    let bundle = world.bundle("pod", &["hang"], &[], json!([]));
    let task = world.start("pod", &bundle).await;
    task.create(&Io::default()).await.unwrap();
    task.start("").await.unwrap();
    let pid = i32::try_from(task.shim_pid().await).unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).unwrap();
    for _ in 0..2 {
        let output = world.action("pod", &bundle, "delete");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert!(!output.stdout.is_empty());
    }
    world.nothing_left();
    // The name is free again.
    let task = world.start("pod", &bundle).await;
    task.create(&Io::default()).await.unwrap();
    task.kill("", 9).await.unwrap();
    task.delete("").await.unwrap();
    task.shutdown().await;
    world.nothing_left();
}

async fn ac_20_killing_never_waits_for_a_stuck_agent() {
    let mut world = World::new().await;
    let task = single(&world, &["stuck"]).await;
    task.create(&Io::default()).await.unwrap();
    task.start("").await.unwrap();
    world.topics(&["/tasks/create", "/tasks/start"]).await;
    let begin = Instant::now();
    // While the fatal signal waits for the agent, others are answered.
    let (killed, ()) = tokio::join!(task.kill("", 9), async {
        let begin = Instant::now();
        task.shim_pid().await;
        assert!(task.kill("nobody", 9).await.is_err());
        assert!(begin.elapsed() < Duration::from_secs(1));
    });
    killed.unwrap();
    assert!(begin.elapsed() < Duration::from_secs(10));
    assert!(matches!(task.wait("").await, 137 | 255));
    world.topics(&["/tasks/exit"]).await;
    end(&mut world, &task).await;
}

async fn copies_files_and_brings_last_words_back() {
    let mut world = World::new().await;
    let big = world.path("big");
    fs::write(&big, vec![7; (2 << 20) + 5]).unwrap();
    // As the kubelet names it; anything else is not written to, however the mount calls itself.
    let log = world.path("pods/uid/containers/pod/0123");
    fs::create_dir_all(log.parent().unwrap()).unwrap();
    fs::write(&log, b"").unwrap();
    let mounts = json!([
        {"destination": "/etc/big", "type": "bind", "source": big, "options": ["rbind", "ro"]},
        {"destination": "/dev/termination-log", "type": "bind", "source": log, "options": ["rbind"]},
    ]);
    let bundle = world.bundle("pod", &["exit", "1"], &[], mounts);
    let task = world.start("pod", &bundle).await;
    task.create(&Io::default()).await.unwrap();
    let seen = world.agent_saw("pod", "create_pod.json");
    let source = seen["OCI"]["Mounts"][0]["source"].as_str().unwrap().to_owned();
    assert!(source.starts_with("/run/kata-containers/shared/containers/pod-") && source.ends_with("-big"), "{source}");
    let copies = fs::read_to_string(world.path("run/pod/copies")).unwrap();
    let big: Vec<_> = copies.lines().filter_map(|line| line.strip_prefix(&source)).collect();
    assert_eq!(big, [" 2097157 0 1048576", " 2097157 1048576 1048576", " 2097157 2097152 5"]);
    task.start("").await.unwrap();
    assert_eq!(task.wait("").await, 1);
    assert_eq!(fs::read(&log).unwrap(), b"last words");
    world.topics(&["/tasks/create", "/tasks/start", "/tasks/exit"]).await;
    end(&mut world, &task).await;
}
