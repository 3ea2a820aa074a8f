//! The template against requests as the shim sends them: the good one passes, and each mutation is denied by id of attack case.

use serde_json::{Map, Value, json};

use super::{ContainerTemplate, EmptyDirTemplate, EnvRule, MountTemplate, PodTemplate, TemplateError};
use crate::evaluate::{Budget, Evaluation, Rules};

const IMAGE: &str = "registry.example:5000/app@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
const OTHER: &str = "registry.example:5000/app@sha256:1123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
const SANDBOX: &str = "5a0db0c5";
const ID: &str = "c0ffee";

fn app() -> ContainerTemplate {
    let mut app = ContainerTemplate::new("app", IMAGE, ["/bin/server", "--port", "80"]);
    app.env = vec![
        EnvRule::Exact { name: "MODE".to_owned(), value: "prod=1".to_owned() },
        EnvRule::Pattern { name: "REPLICA".to_owned(), pattern: "[0-9]+".to_owned() },
        EnvRule::NamePattern { name_pattern: "DB_[A-Z]+".to_owned(), pattern: "db|cache".to_owned() },
    ];
    app.mounts = vec![MountTemplate { destination: "/etc/app".to_owned(), read_only: true }];
    app.exec = vec![vec!["/bin/probe".to_owned(), "-q".to_owned()]];
    app.logs = true;
    app
}

fn pod() -> PodTemplate {
    PodTemplate {
        containers: vec![app()],
        resources: vec!["default/key/1".to_owned()],
        diagnostics: vec!["timeline".to_owned()],
        ..PodTemplate::default()
    }
}

fn rules(pod: &PodTemplate) -> Rules {
    Rules::load(&pod.render().unwrap(), &Map::new(), Budget::default()).unwrap()
}

fn mount(destination: &str, type_: &str, source: &str, options: &[&str]) -> Value {
    json!({"destination": destination, "type_": type_, "source": source, "options": options})
}

fn shared(destination: &str, mode: &str) -> Value {
    let name = destination.rsplit('/').next().unwrap();
    mount(
        destination,
        "bind",
        &format!("/run/kata-containers/shared/containers/{ID}-0123456789abcdef-{name}"),
        &["rbind", "rprivate", mode],
    )
}

fn sandbox() -> Value {
    json!({"hostname": "pod", "dns": ["nameserver 10.0.0.10"], "storages": [], "sandbox_pidns": false, "sandbox_id": SANDBOX,
        "guest_hook_path": "", "kernel_modules": []})
}

fn linux() -> Value {
    json!({
        "UIDMappings": [], "GIDMappings": [], "Sysctl": {}, "CgroupsPath": "/kubepods/pod1/c0ffee", "Devices": [], "Seccomp": null,
        "RootfsPropagation": "", "MountLabel": "", "IntelRdt": null,
        "Namespaces": (["pid", "ipc", "uts", "mount", "network", "cgroup"].map(|t| json!({"Type": t, "Path": ""}))),
        "Resources": {"Devices": [
            {"Allow": false, "Type": "", "Major": 0, "Minor": 0, "Access": "rwm"},
            {"Allow": true, "Type": "c", "Major": -1, "Minor": -1, "Access": "m"},
            {"Allow": true, "Type": "c", "Major": 1, "Minor": 3, "Access": "rwm"},
            {"Allow": true, "Type": "c", "Major": 136, "Minor": -1, "Access": "rwm"}],
            "Memory": {"Limit": 1024}, "CPU": null, "Pids": null, "BlockIO": null, "HugepageLimits": [], "Network": null},
        "MaskedPaths": ["/proc/asound", "/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list",
            "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware", "/sys/devices/virtual/powercap"],
        "ReadonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
    })
}

fn sandbox_container() -> Value {
    let mut request = create();
    request["container_id"] = json!(SANDBOX);
    request["exec_id"] = json!(SANDBOX);
    request["storages"] = json!([]);
    request["OCI"]["Annotations"] = json!({"io.katacontainers.pkg.oci.container_type": "pod_sandbox"});
    request["OCI"]["Process"]["Args"] = json!(["/pause"]);
    request["OCI"]["Linux"]["Sysctl"] = json!({"net.ipv4.ip_unprivileged_port_start": "0"});
    request
}

fn create() -> Value {
    let capabilities = json!(["CAP_CHOWN", "CAP_KILL"]);
    json!({
        "container_id": ID, "exec_id": ID, "string_user": null, "devices": [], "shared_mounts": [], "sandbox_pidns": false,
        "stdin_port": 0, "stdout_port": 0, "stderr_port": 0,
        "storages": [{"driver": "image_guest_pull", "driver_options": ["image_guest_pull={\"metadata\":{}}"], "source": IMAGE,
            "fstype": "overlay", "options": [], "mount_point": format!("/run/kata-containers/{ID}/rootfs"), "fs_group": null,
            "shared": false}],
        "OCI": {
            "Version": "1.0.2-dev", "Hostname": "", "Hooks": null, "Solaris": null, "Windows": null,
            "Root": {"Path": "rootfs", "Readonly": false},
            "Annotations": {
                "io.katacontainers.pkg.oci.container_type": "pod_container",
                "io.kubernetes.cri.container-name": "app",
                "io.kubernetes.cri.container-type": "container",
                "io.kubernetes.cri.image-name": IMAGE,
            },
            "Process": {
                "Terminal": false, "ConsoleSize": null, "User": {"UID": 0, "GID": 0, "AdditionalGids": [0], "Username": ""},
                "Args": ["/bin/server", "--port", "80"],
                "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOSTNAME=pod", "MODE=prod=1", "REPLICA=3",
                    "DB_HOST=db", "KUBERNETES_SERVICE_HOST=10.0.0.1", "KUBERNETES_PORT_443_TCP=tcp://10.0.0.1:443",
                    "KUBERNETES_PORT_443_TCP_PROTO=tcp", "KUBERNETES_SERVICE_PORT_HTTPS=443"],
                "Cwd": "/",
                "Capabilities": {"Bounding": capabilities, "Effective": capabilities, "Permitted": capabilities, "Inheritable": [], "Ambient": []},
                "Rlimits": [{"Type": "RLIMIT_NOFILE", "Hard": 1024, "Soft": 1024}], "NoNewPrivileges": false,
                "ApparmorProfile": "", "OOMScoreAdj": 1000, "SelinuxLabel": "",
            },
            "Mounts": [
                mount("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
                mount("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
                mount("/dev/pts", "devpts", "devpts", &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]),
                mount("/dev/shm", "tmpfs", "shm", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
                mount("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
                mount("/sys/fs/cgroup", "cgroup", "cgroup", &["nosuid", "noexec", "nodev", "relatime", "ro"]),
                shared("/etc/hosts", "rw"),
                shared("/etc/resolv.conf", "rw"),
                shared("/dev/termination-log", "rw"),
                shared("/var/run/secrets/kubernetes.io/serviceaccount", "ro"),
                shared("/etc/app", "ro"),
            ],
            "Linux": linux(),
        },
    })
}

#[track_caller]
fn allows(rules: &mut Rules, rule: &str, input: &Value) {
    assert_eq!(rules.evaluate(rule, input), Evaluation::Allowed, "{rule}");
}

#[track_caller]
fn denies(rules: &mut Rules, rule: &str, input: &Value) -> Vec<String> {
    match rules.evaluate(rule, input) {
        Evaluation::Allowed => panic!("{rule} was allowed: {input}"),
        Evaluation::Denied { details, .. } => details,
    }
}

/// Rules after the sandbox and its container were created.
fn ready(pod: &PodTemplate) -> Rules {
    let mut rules = rules(pod);
    allows(&mut rules, "CreateSandboxRequest", &sandbox());
    allows(&mut rules, "CreateContainerRequest", &sandbox_container());
    allows(&mut rules, "StartContainerRequest", &json!({"container_id": SANDBOX}));
    rules
}

/// Rules with the application running.
fn running(pod: &PodTemplate) -> Rules {
    let mut rules = ready(pod);
    allows(&mut rules, "CreateContainerRequest", &create());
    allows(&mut rules, "StartContainerRequest", &json!({"container_id": ID}));
    rules
}

fn set(base: &Value, pointer: &str, value: Value) -> Value {
    let mut changed = base.clone();
    let (parent, last) = pointer.rsplit_once('/').unwrap();
    let last = last.replace("~1", "/");
    match changed.pointer_mut(parent).unwrap() {
        Value::Object(map) => {
            map.insert(last, value);
        }
        Value::Array(items) if last == "-" => items.push(value),
        Value::Array(items) => items[last.parse::<usize>().unwrap()] = value,
        _ => panic!("{pointer}"),
    }
    changed
}

#[test]
fn the_expected_pod_runs() {
    let mut rules = running(&pod());
    let process = json!({"container_id": ID, "exec_id": ID});
    allows(&mut rules, "ReadStreamRequest", &json!({"container_id": ID, "exec_id": "", "len": 4096}));
    for rule in ["WaitProcessRequest", "StatsContainerRequest", "CloseStdinRequest"] {
        allows(&mut rules, rule, &process);
    }
    // How the kubelet ends a container, and then the pod.
    for (id, signal) in [(ID, 15), (ID, 9), (SANDBOX, 9)] {
        allows(&mut rules, "SignalProcessRequest", &json!({"container_id": id, "exec_id": "", "signal": signal}));
    }
    allows(&mut rules, "UpdateContainerRequest", &json!({"container_id": ID, "resources": {"Devices": [], "CPU": {"Shares": 2}}}));
    allows(&mut rules, "GetResourceRequest", &json!({"path": "default/key/1", "container_id": ID, "container_name": "app"}));
    allows(&mut rules, "GetDiagnosticDataRequest", &json!({"log_type": "timeline", "container_id": ""}));
    for rule in ["GuestDetailsRequest", "GetOOMEventRequest", "ListInterfacesRequest", "ListRoutesRequest", "OnlineCPUMemRequest"] {
        allows(&mut rules, rule, &json!({}));
    }
    allows(&mut rules, "RemoveContainerRequest", &json!({"container_id": ID, "timeout": 0}));
    // A restart is a new container under the same name.
    allows(&mut rules, "CreateContainerRequest", &create());
    allows(&mut rules, "RemoveContainerRequest", &json!({"container_id": ID, "timeout": 0}));
    allows(&mut rules, "RemoveContainerRequest", &json!({"container_id": SANDBOX, "timeout": 0}));
    allows(&mut rules, "DestroySandboxRequest", &json!({}));
}

#[test]
fn sandbox_comes_first_and_once() {
    let mut rules = rules(&pod());
    denies(&mut rules, "CreateContainerRequest", &create());
    denies(&mut rules, "CreateContainerRequest", &sandbox_container());
    for (pointer, value) in [
        ("/guest_hook_path", json!("/usr/share/oci/hooks")),
        ("/kernel_modules", json!([{"name": "evil", "parameters": []}])),
        ("/storages", json!([{"driver": "blk"}])),
        ("/storages", json!([{"driver": "ephemeral", "fstype": "tmpfs", "mount_point": "/proc", "driver_options": []}])),
        ("/sandbox_pidns", json!(true)),
        ("/sandbox_id", json!("../x")),
        ("/hostname", json!("a\nb")),
    ] {
        denies(&mut rules, "CreateSandboxRequest", &set(&sandbox(), pointer, value));
    }
    allows(&mut rules, "CreateSandboxRequest", &sandbox());
    denies(&mut rules, "CreateSandboxRequest", &sandbox());
    denies(&mut rules, "CreateContainerRequest", &set(&sandbox_container(), "/container_id", json!("other")));
    denies(&mut rules, "CreateContainerRequest", &set(&sandbox_container(), "/storages", create()["storages"].clone()));
    allows(&mut rules, "CreateContainerRequest", &sandbox_container());
    denies(&mut rules, "CreateContainerRequest", &sandbox_container());
}

/// AC-31: the pod's sysctls arrive with the sandbox container. One of the interfaces' would open the loopback services to the network.
#[test]
fn ac_31_only_safe_sysctls_are_set_and_none_of_the_interfaces() {
    let mut rules = rules(&pod());
    allows(&mut rules, "CreateSandboxRequest", &sandbox());
    let good = sandbox_container();
    for (name, value) in [
        ("net.ipv4.conf.all.route_localnet", json!("1")),
        ("net.ipv4.conf.default.route_localnet", json!("1")),
        ("net.ipv4.conf.eth0.accept_local", json!("1")),
        ("net.ipv4.ip_forward", json!("1")),
        ("net.ipv4.ip_nonlocal_bind", json!("1")),
        ("net.ipv6.conf.all.forwarding", json!("1")),
        ("net.core.bpf_jit_enable", json!("1")),
        ("kernel.core_pattern", json!("|/bin/sh")),
        ("kernel.shmmax", json!("1")),
        ("kernel.shm_rmid_forced", json!("1\n1")),
        ("kernel.shm_rmid_forced", json!("")),
        ("kernel.shm_rmid_forced", json!(1)),
        ("net/ipv4/tcp_syncookies", json!("0")),
    ] {
        let reasons = denies(&mut rules, "CreateContainerRequest", &set(&good, "/OCI/Linux/Sysctl", json!({name: value})));
        assert_eq!(reasons, ["a sysctl of the pod is not one that Kubernetes calls safe"], "{name}");
    }
    denies(&mut rules, "CreateContainerRequest", &set(&good, "/OCI/Linux/Sysctl", json!(null)));
    denies(&mut rules, "CreateContainerRequest", &set(&good, "/OCI/Linux/Sysctl", json!(["net.ipv4.tcp_syncookies"])));
    let safe = json!({"net.ipv4.ip_unprivileged_port_start": "0", "net.ipv4.ping_group_range": "0 2147483647",
        "net.ipv4.ip_local_port_range": "32768\t60999", "net.ipv4.ip_local_reserved_ports": "8080,9148-9150", "net.ipv4.tcp_syncookies": "1",
        "kernel.shm_rmid_forced": "1"});
    allows(&mut rules, "CreateContainerRequest", &set(&good, "/OCI/Linux/Sysctl", safe));
}

/// AC-29: a program may write out what it holds on a signal, or read another configuration.
#[test]
fn ac_29_signals_are_those_that_stop_and_the_listed_ones() {
    let signal = |id: &str, exec_id: &str, signal: Value| json!({"container_id": id, "exec_id": exec_id, "signal": signal});
    let mut rules = running(&pod());
    for number in (1..=64).filter(|number| ![2, 9, 15, 28].contains(number)) {
        let reasons = denies(&mut rules, "SignalProcessRequest", &signal(ID, "", json!(number)));
        assert_eq!(reasons, ["the signal is not in the list"], "{number}");
        denies(&mut rules, "SignalProcessRequest", &signal(SANDBOX, "", json!(number)));
    }
    for wrong in [json!(0), json!("15"), json!(null), json!(-9)] {
        denies(&mut rules, "SignalProcessRequest", &signal(ID, "", wrong));
    }
    denies(&mut rules, "SignalProcessRequest", &signal("unknown", "", json!(9)));
    for number in [2, 9, 15, 28] {
        allows(&mut rules, "SignalProcessRequest", &signal(ID, "", json!(number)));
        allows(&mut rules, "SignalProcessRequest", &signal(ID, "e1", json!(number)));
    }
    let mut quits = pod();
    quits.containers[0].signals = vec![3];
    let mut rules = running(&quits);
    allows(&mut rules, "SignalProcessRequest", &signal(ID, ID, json!(3)));
    denies(&mut rules, "SignalProcessRequest", &signal(ID, ID, json!(10)));
    denies(&mut rules, "SignalProcessRequest", &signal(SANDBOX, "", json!(3)));
}

/// AC-25 and the guest-pull bypasses: the image is the pinned one, wherever it is named.
#[test]
fn ac_25_image_is_pinned_in_storage_and_annotation() {
    let mut rules = ready(&pod());
    let good = create();
    let storage = &good["storages"][0];
    for (pointer, value) in [
        ("/storages/0/source", json!(OTHER)),
        ("/storages/0/source", json!("registry.example:5000/app:latest")),
        ("/OCI/Annotations/io.kubernetes.cri.image-name", json!(OTHER)),
        ("/storages/0/driver", json!("blk")),
        ("/storages/0/driver", json!("overlayfs")),
        ("/storages/0/fstype", json!("erofs.multi-layer")),
        ("/storages/0/options", json!(["X-kata.multi-layer=true"])),
        ("/storages/0/mount_point", json!("/run/kata-containers/other/rootfs")),
        ("/storages/0/mount_point", json!("/")),
        ("/storages/0/shared", json!(true)),
        ("/storages/0/fs_group", json!({"group_id": 1, "group_change_policy": 0})),
        ("/storages/0/driver_options", json!(["verity=off"])),
        ("/storages", json!([])),
        ("/storages", json!([storage, storage])),
        ("/OCI/Annotations/io.katacontainers.pkg.oci.container_type", json!("pod_sandbox")),
        ("/OCI/Annotations/io.katacontainers.pkg.oci.container_type", json!("other")),
    ] {
        denies(&mut rules, "CreateContainerRequest", &set(&good, pointer, value));
    }
    let reasons = denies(&mut rules, "CreateContainerRequest", &set(&good, "/storages/0/source", json!(OTHER)));
    assert_eq!(reasons, ["the image is not the pinned one, or is not pulled by the guest"]);
    allows(&mut rules, "CreateContainerRequest", &good);
}

/// AC-27.
#[test]
fn ac_27_each_container_is_live_once_and_in_order() {
    let mut rules = ready(&pod());
    denies(&mut rules, "StartContainerRequest", &json!({"container_id": ID}));
    allows(&mut rules, "CreateContainerRequest", &create());
    denies(&mut rules, "CreateContainerRequest", &create());
    let mut second = create();
    second["container_id"] = json!("d00d");
    second["exec_id"] = json!("d00d");
    second["storages"][0]["mount_point"] = json!("/run/kata-containers/d00d/rootfs");
    assert_eq!(denies(&mut rules, "CreateContainerRequest", &second), ["a container of this name is already there"]);
    allows(&mut rules, "StartContainerRequest", &json!({"container_id": ID}));
    denies(&mut rules, "StartContainerRequest", &json!({"container_id": ID}));
    denies(&mut rules, "CreateContainerRequest", &set(&create(), "/container_id", json!("../../x")));
}

#[test]
fn ac_26_no_container_is_named_like_a_directory_of_the_agent() {
    for name in ["image", "sandbox", "shared"] {
        let mut rules = ready(&pod());
        let named = set(&create(), "/container_id", json!(name));
        let named = set(&named, "/exec_id", json!(""));
        let named = set(&named, "/storages/0/mount_point", json!(format!("/run/kata-containers/{name}/rootfs")));
        denies(&mut rules, "CreateContainerRequest", &named);
        denies(&mut self::rules(&pod()), "CreateSandboxRequest", &set(&sandbox(), "/sandbox_id", json!(name)));
        denies(&mut rules, "RemoveContainerRequest", &json!({"container_id": name}));
    }
}

#[test]
fn ac_27_init_containers_cannot_be_left_out() {
    let mut init = ContainerTemplate::new("init", OTHER, ["/bin/init"]);
    init.once = true;
    let mut main = app();
    main.after = vec!["init".to_owned()];
    let mut rules = ready(&PodTemplate { containers: vec![init, main], ..PodTemplate::default() });
    allows(&mut rules, "CreateContainerRequest", &create());
    assert_eq!(
        denies(&mut rules, "StartContainerRequest", &json!({"container_id": ID})),
        ["a container that has to be started first was not"]
    );

    let mut first = create();
    first["container_id"] = json!("f1");
    first["exec_id"] = json!("");
    first["storages"][0]["mount_point"] = json!("/run/kata-containers/f1/rootfs");
    first["storages"][0]["source"] = json!(OTHER);
    first["OCI"]["Annotations"]["io.kubernetes.cri.image-name"] = json!(OTHER);
    first["OCI"]["Annotations"]["io.kubernetes.cri.container-name"] = json!("init");
    first["OCI"]["Process"]["Args"] = json!(["/bin/init"]);
    first["OCI"]["Process"]["Env"] = json!([]);
    first["OCI"]["Mounts"].as_array_mut().unwrap().pop();
    allows(&mut rules, "CreateContainerRequest", &first);
    allows(&mut rules, "StartContainerRequest", &json!({"container_id": "f1"}));
    allows(&mut rules, "StartContainerRequest", &json!({"container_id": ID}));
    allows(&mut rules, "RemoveContainerRequest", &json!({"container_id": "f1"}));
    assert_eq!(denies(&mut rules, "CreateContainerRequest", &first), ["this container may run only once"]);
}

/// AC-27: a start that was asked for and failed opens the way for nobody, and counts as the one that a container has.
#[test]
fn ac_27_a_start_that_failed_is_tried_and_not_started() {
    let mut init = ContainerTemplate::new("init", OTHER, ["/bin/init"]);
    init.once = true;
    let mut main = app();
    main.after = vec!["init".to_owned()];
    let mut rules = ready(&PodTemplate { containers: vec![init, main], ..PodTemplate::default() });
    let mut first = set(&create(), "/container_id", json!("f1"));
    first["exec_id"] = json!("");
    first["storages"][0]["mount_point"] = json!("/run/kata-containers/f1/rootfs");
    first["storages"][0]["source"] = json!(OTHER);
    first["OCI"]["Annotations"]["io.kubernetes.cri.image-name"] = json!(OTHER);
    first["OCI"]["Annotations"]["io.kubernetes.cri.container-name"] = json!("init");
    first["OCI"]["Process"]["Args"] = json!(["/bin/init"]);
    first["OCI"]["Process"]["Env"] = json!([]);
    first["OCI"]["Mounts"].as_array_mut().unwrap().pop();
    allows(&mut rules, "CreateContainerRequest", &first);
    allows(&mut rules, "CreateContainerRequest", &create());
    // Allowed, carried out without success, and so never made.
    rules.decide("StartContainerRequest", &json!({"container_id": "f1"})).unwrap();
    assert_eq!(
        denies(&mut rules, "StartContainerRequest", &json!({"container_id": ID})),
        ["a container that has to be started first was not"]
    );
    allows(&mut rules, "RemoveContainerRequest", &json!({"container_id": "f1"}));
    assert_eq!(denies(&mut rules, "CreateContainerRequest", &first), ["this container may run only once"]);
}

/// AC-28.
#[test]
fn ac_28_environment_is_exact_or_matched_whole() {
    let mut rules = ready(&pod());
    let good = create();
    for entry in [
        "LD_PRELOAD=/x.so",
        "MODE=debug",
        "MODE=prod=1",
        "REPLICA=3x",
        "REPLICA=x3",
        "REPLICA=3\nLD_PRELOAD=x",
        "REPLICA",
        "",
        "=x",
        "DB_PORT=other",
        "DB_PORT=dbx",
        "XDB_PORT=db",
        "DB_PORT2=db",
        "HOSTNAME=other",
        "KUBERNETES_EVIL=1",
        "PATH=/evil",
        "TERM=xterm",
        "replica=3",
        "REPLICA =3",
    ] {
        denies(&mut rules, "CreateContainerRequest", &set(&good, "/OCI/Process/Env/-", json!(entry)));
    }
    let without = |name: &str| {
        let env: Vec<&str> =
            good["OCI"]["Process"]["Env"].as_array().unwrap().iter().filter_map(Value::as_str).filter(|e| !e.starts_with(name)).collect();
        set(&good, "/OCI/Process/Env", json!(env))
    };
    assert_eq!(denies(&mut rules, "CreateContainerRequest", &without("MODE=")), ["an environment variable is missing"]);
    let mut twice = without("REPLICA=");
    for value in ["REPLICA=1", "REPLICA=2"] {
        twice = set(&twice, "/OCI/Process/Env/-", json!(value));
    }
    denies(&mut rules, "CreateContainerRequest", &twice);
    allows(&mut rules, "CreateContainerRequest", &set(&without("DB_"), "/OCI/Process/Env/-", json!("DB_NAME=cache")));
}

/// AC-29.
#[test]
fn ac_29_exec_and_streams_are_listed() {
    let mut rules = running(&pod());
    let mut process = create()["OCI"]["Process"].clone();
    process["Args"] = json!(["/bin/probe", "-q"]);
    let good = json!({"container_id": ID, "exec_id": "e1", "string_user": null, "process": process, "stdin_port": 0, "stdout_port": 0,
        "stderr_port": 0});
    for (pointer, value) in [
        ("/process/Args", json!(["/bin/sh"])),
        ("/process/Args", json!(["/bin/probe", "-q", "x"])),
        ("/process/Args", json!(["/bin/probe -q"])),
        ("/process/Args", json!([])),
        ("/process/Env/-", json!("LD_PRELOAD=/x.so")),
        ("/process/Cwd", json!("/proc/self/fd/7")),
        ("/process/User/UID", json!(1)),
        ("/process/Terminal", json!(true)),
        ("/process/Capabilities/Effective", json!(["CAP_SYS_ADMIN"])),
        ("/container_id", json!(SANDBOX)),
        ("/container_id", json!("unknown")),
        ("/exec_id", json!("")),
        ("/exec_id", json!(ID)),
        ("/exec_id", json!("a/b")),
        ("/string_user", json!({"uid": "0", "gid": "0", "additionalGids": []})),
        ("/stdout_port", json!(7)),
        ("/process", json!(null)),
    ] {
        denies(&mut rules, "ExecProcessRequest", &set(&good, pointer, value));
    }
    // containerd copies the environment of the container; what is required there is required here.
    let env: Vec<Value> =
        good["process"]["Env"].as_array().unwrap().iter().filter(|entry| **entry != json!("MODE=prod=1")).cloned().collect();
    for env in [json!(env), json!([])] {
        let reasons = denies(&mut rules, "ExecProcessRequest", &set(&good, "/process/Env", env));
        assert_eq!(reasons, ["an environment variable is missing"]);
    }
    let reasons = denies(&mut rules, "ExecProcessRequest", &set(&good, "/process/Args", json!(["/bin/cat", "/run/secret"])));
    assert_eq!(reasons, ["the command is not in the list"]);
    allows(&mut rules, "ExecProcessRequest", &good);
    allows(&mut rules, "ReadStreamRequest", &json!({"container_id": ID, "exec_id": "e1", "len": 1}));

    let first = json!({"container_id": ID, "exec_id": ID});
    for rule in ["WriteStreamRequest", "TtyWinResizeRequest"] {
        denies(&mut rules, rule, &first);
        denies(&mut rules, rule, &json!({"container_id": ID, "exec_id": "e1"}));
    }
    let mut silent = pod();
    silent.containers[0].logs = false;
    silent.containers[0].exec.clear();
    let mut rules = running(&silent);
    for exec_id in ["", ID, "e1"] {
        denies(&mut rules, "ReadStreamRequest", &json!({"container_id": ID, "exec_id": exec_id, "len": 1}));
    }
    let mut open = pod();
    open.containers[0].stdin = true;
    open.containers[0].exec_tty = true;
    let mut rules = running(&open);
    allows(&mut rules, "WriteStreamRequest", &first);
    denies(&mut rules, "WriteStreamRequest", &json!({"container_id": ID, "exec_id": "e1"}));
    allows(&mut rules, "TtyWinResizeRequest", &json!({"container_id": ID, "exec_id": "e1"}));
}

#[test]
fn exec_needs_a_started_container() {
    let mut rules = ready(&pod());
    allows(&mut rules, "CreateContainerRequest", &create());
    let mut process = create()["OCI"]["Process"].clone();
    process["Args"] = json!(["/bin/probe", "-q"]);
    let exec = json!({"container_id": ID, "exec_id": "e1", "string_user": null, "process": process, "stdin_port": 0, "stdout_port": 0,
        "stderr_port": 0});
    denies(&mut rules, "ExecProcessRequest", &exec);
}

/// AC-26, AC-30.
#[test]
fn ac_30_mounts_are_the_expected_ones() {
    let mut rules = ready(&pod());
    let good = create();
    let base = "/run/kata-containers/shared/containers";
    for extra in [
        shared("/data", "rw"),
        shared("/bin/server", "ro"),
        shared("/", "rw"),
        shared("/proc", "rw"),
        mount("/etc/hostname", "bind", "/etc/shadow", &["rbind"]),
        mount("/etc/hostname", "bind", &format!("{base}/../../../x"), &["rbind"]),
        mount("/etc/hostname", "bind", &format!("{base}x/y"), &["rbind"]),
        mount("/etc/hostname", "bind", &format!("{base}/"), &["rbind"]),
        mount("/etc/hostname", "bind", &format!("/x{base}/y"), &["rbind"]),
        mount("/etc/hostname", "overlay", &format!("{base}/y"), &["rbind"]),
        mount("/etc/hostname", "bind", &format!("{base}/y"), &["rbind", "rshared"]),
        mount("/etc/hostname", "bind", &format!("{base}/y"), &["lowerdir=/"]),
        mount("/run", "tmpfs", "/dev/vda", &[]),
        mount("/run", "ext4", "tmpfs", &[]),
        mount("/dev/mqueue", "tmpfs", "mqueue", &[]),
        good["OCI"]["Mounts"][0].clone(),
    ] {
        denies(&mut rules, "CreateContainerRequest", &set(&good, "/OCI/Mounts/-", extra));
    }
    for (pointer, value) in [
        ("/OCI/Mounts/4/options", json!(["nosuid"])),
        ("/OCI/Mounts/5/options", json!(["nosuid"])),
        ("/OCI/Mounts/9/options", json!(["rbind", "rw"])),
        ("/OCI/Mounts/10/options", json!(["rbind", "rw"])),
        ("/OCI/Mounts/4/options", json!(["nosuid", "noexec", "nodev", "ro", "rw"])),
        ("/OCI/Mounts/5/options", json!(["rw", "ro"])),
        ("/OCI/Mounts/9/options", json!(["rbind", "ro", "rw"])),
        ("/OCI/Mounts/10/options", json!(["rbind", "ro", "rw"])),
        ("/OCI/Mounts/10/options", json!(["rbind", "rprivate", "rw", "ro"])),
        ("/OCI/Mounts/10/type_", json!("tmpfs")),
        ("/OCI/Mounts/10/destination", json!("/etc/app2")),
        ("/OCI/Mounts", json!([])),
    ] {
        denies(&mut rules, "CreateContainerRequest", &set(&good, pointer, value));
    }
    allows(&mut rules, "CreateContainerRequest", &set(&good, "/OCI/Mounts/-", mount("/dev/mqueue", "mqueue", "mqueue", &["nosuid"])));
}

fn with_cache(memory: bool) -> (PodTemplate, Value) {
    let mut pod = pod();
    pod.containers[0].empty_dirs =
        vec![EmptyDirTemplate { name: "cache".to_owned(), destination: "/cache".to_owned(), memory, read_only: false }];
    let (driver, kind) = if memory { ("ephemeral", "tmpfs") } else { ("local", "local") };
    let path = format!("/run/kata-containers/sandbox/{driver}/cache");
    let storage = json!({"driver": driver, "driver_options": [], "source": kind, "fstype": kind, "options": [], "mount_point": path,
        "fs_group": null, "shared": true});
    let mounted = mount("/cache", "bind", &path, &["rbind", "rprivate", "rw"]);
    (pod, set(&set(&create(), "/storages/-", storage), "/OCI/Mounts/-", mounted))
}

/// What lies in a copied directory, a container that has the directory may have exchanged for a link.
#[test]
fn ac_30_a_mounts_source_is_a_whole_copy_and_nothing_in_it() {
    let mut rules = ready(&pod());
    let good = create();
    for index in [6, 7, 9, 10] {
        let pointer = format!("/OCI/Mounts/{index}/source");
        let source = good.pointer(&pointer).and_then(Value::as_str).unwrap();
        for wrong in
            [format!("{source}/x"), format!("{source}/"), format!("{source}/a/b"), "/run/kata-containers/shared/containers/..".to_owned()]
        {
            denies(&mut rules, "CreateContainerRequest", &set(&good, &pointer, json!(wrong)));
        }
    }
    // Directories are copied with what is in them.
    let copy = json!({"path": "/run/kata-containers/shared/containers/c-0123456789abcdef-app/a/b", "file_type": "Regular",
        "symlink_target": "", "file_size": 0, "offset": 0});
    allows(&mut rules, "CopyFileRequest", &copy);
    allows(&mut rules, "CreateContainerRequest", &good);
}

/// The host may read a termination log: it is no other container's file, and no other mount is one.
#[test]
fn ac_30_a_termination_log_is_nothing_else() {
    let mut rules = ready(&pod());
    let good = create();
    let base = "/run/kata-containers/shared/containers";
    assert_eq!(good["OCI"]["Mounts"][8]["destination"], "/dev/termination-log");
    for source in [
        format!("{base}/other-0123456789abcdef-app"),
        format!("{base}/other-0123456789abcdef-app/x-termination-log"),
        format!("{base}/c-termination-log/secret"),
        format!("{base}/c-termination-logs"),
        "/run/kata-containers/sandbox/local/x-termination-log".to_owned(),
    ] {
        denies(&mut rules, "CreateContainerRequest", &set(&good, "/OCI/Mounts/8/source", json!(source)));
    }
    // The other way round: a container writes into its volume, and another's log is read.
    for index in [6, 7, 9, 10] {
        let pointer = format!("/OCI/Mounts/{index}/source");
        denies(&mut rules, "CreateContainerRequest", &set(&good, &pointer, json!(format!("{base}/c-0123456789abcdef-termination-log"))));
    }
    allows(&mut rules, "CreateContainerRequest", &good);
}

#[test]
fn ac_26_empty_dirs_are_the_guests_own_and_where_expected() {
    let (pod, good) = with_cache(false);
    let mut rules = ready(&pod);
    denies(&mut rules, "CreateContainerRequest", &create());
    for (pointer, value) in [
        ("/storages/1/mount_point", json!("/")),
        ("/storages/1/mount_point", json!("/proc")),
        ("/storages/1/mount_point", json!(format!("/run/kata-containers/{ID}/rootfs"))),
        ("/storages/1/mount_point", json!("/run/kata-containers/sandbox/local/other")),
        ("/storages/1/driver", json!("blk")),
        ("/storages/1/driver", json!("ephemeral")),
        ("/storages/1/driver", json!("image_guest_pull")),
        ("/storages/1/options", json!(["exec"])),
        ("/storages/1/driver_options", json!(["x"])),
        // A volume of its own for this container, over the one that others have.
        ("/storages/1/shared", json!(false)),
        ("/OCI/Mounts/11/source", json!("/run/kata-containers/sandbox/ephemeral/cache")),
        ("/OCI/Mounts/11/source", json!("/run/kata-containers/shared/containers/x")),
        ("/OCI/Mounts/11/destination", json!("/bin")),
    ] {
        denies(&mut rules, "CreateContainerRequest", &set(&good, pointer, value));
    }
    let reasons = denies(&mut rules, "CreateContainerRequest", &set(&good, "/storages/1/shared", json!(false)));
    assert!(reasons.iter().any(|reason| reason.contains("not shared by the pod's containers")), "{reasons:?}");
    denies(&mut ready(&self::pod()), "CreateContainerRequest", &good);
    allows(&mut rules, "CreateContainerRequest", &good);
}

/// One name in two media would be two directories: what one container has put there the other would not find.
#[test]
fn ac_26_an_empty_dir_has_the_medium_that_its_owner_wrote_down() {
    let ((disk, on_disk), (memory, in_memory)) = (with_cache(false), with_cache(true));
    denies(&mut ready(&disk), "CreateContainerRequest", &in_memory);
    denies(&mut ready(&memory), "CreateContainerRequest", &on_disk);
    allows(&mut ready(&memory), "CreateContainerRequest", &in_memory);
    let mut other = memory.containers[0].clone();
    other.name = "other".to_owned();
    let split = PodTemplate { containers: vec![disk.containers[0].clone(), other], ..PodTemplate::default() };
    assert_eq!(split.render(), Err(TemplateError::Medium { found: "cache".to_owned() }));
}

#[test]
fn ac_26_nothing_is_created_after_the_sandbox_was_destroyed() {
    // Its volumes are gone, and a container would take new ones for them.
    let mut rules = running(&pod());
    allows(&mut rules, "DestroySandboxRequest", &json!({}));
    allows(&mut rules, "RemoveContainerRequest", &json!({"container_id": ID}));
    assert_eq!(denies(&mut rules, "CreateContainerRequest", &create()), ["the sandbox was destroyed"]);
    allows(&mut rules, "RemoveContainerRequest", &json!({"container_id": SANDBOX}));
    denies(&mut rules, "CreateContainerRequest", &sandbox_container());
    denies(&mut rules, "CreateSandboxRequest", &sandbox());
    allows(&mut rules, "DestroySandboxRequest", &json!({}));
}

/// AC-31: each field of the OCI specification that matters.
#[test]
fn ac_31_each_field_of_the_specification_mutated_is_denied() {
    let mut rules = ready(&pod());
    let good = create();
    let hook = json!([{"Path": "/bin/sh", "Args": [], "Env": [], "Timeout": 0}]);
    let hooks = |kind: &str| {
        set(
            &json!({"Prestart": [], "Poststart": [], "Poststop": [], "CreateRuntime": [], "CreateContainer": [], "StartContainer": []}),
            &format!("/{kind}"),
            hook.clone(),
        )
    };
    let table = [
        ("/OCI/Version", json!("2.0")),
        ("/OCI/Hooks", hooks("Prestart")),
        ("/OCI/Hooks", hooks("CreateRuntime")),
        ("/OCI/Hooks", hooks("StartContainer")),
        ("/OCI/Hooks", hooks("Poststop")),
        ("/OCI/Root/Readonly", json!(true)),
        ("/OCI/Root", json!(null)),
        ("/OCI/Windows", json!({"dummy": "x"})),
        ("/OCI/Annotations/io.kubernetes.cri.container-name", json!("other")),
        ("/OCI/Process", json!(null)),
        ("/OCI/Process/Args", json!(["/bin/server"])),
        ("/OCI/Process/Args", json!(["/bin/server", "--port", "80", "--debug"])),
        ("/OCI/Process/Args", json!([])),
        ("/OCI/Process/Terminal", json!(true)),
        ("/OCI/Process/Cwd", json!("/tmp")),
        ("/OCI/Process/User/UID", json!(1)),
        ("/OCI/Process/User/GID", json!(1)),
        ("/OCI/Process/User/AdditionalGids", json!([0, 6])),
        ("/OCI/Process/User/Username", json!("root")),
        ("/OCI/Process/User", json!(null)),
        ("/OCI/Process/Capabilities/Bounding", json!(["CAP_SYS_ADMIN"])),
        ("/OCI/Process/Capabilities/Effective", json!(["CAP_SYS_PTRACE"])),
        ("/OCI/Process/Capabilities/Permitted", json!(["CAP_NET_ADMIN"])),
        ("/OCI/Process/Capabilities/Inheritable", json!(["CAP_CHOWN"])),
        ("/OCI/Process/Capabilities/Ambient", json!(["CAP_CHOWN"])),
        ("/OCI/Process/Capabilities", json!(null)),
        ("/OCI/Process/Rlimits/0/Type", json!("RLIMIT_CORE")),
        ("/OCI/Process/ApparmorProfile", json!("unconfined")),
        ("/OCI/Process/SelinuxLabel", json!("system_u:system_r:spc_t:s0")),
        ("/OCI/Process/OOMScoreAdj", json!(-1001)),
        ("/OCI/Linux", json!(null)),
        ("/OCI/Linux/UIDMappings", json!([{"HostID": 0, "ContainerID": 0, "Size": 1}])),
        ("/OCI/Linux/GIDMappings", json!([{"HostID": 0, "ContainerID": 0, "Size": 1}])),
        ("/OCI/Linux/Sysctl", json!({"kernel.core_pattern": "|/bin/sh"})),
        ("/OCI/Linux/CgroupsPath", json!("../../x")),
        ("/OCI/Linux/Namespaces/0/Path", json!("/proc/1/ns/pid")),
        ("/OCI/Linux/Namespaces/3/Path", json!("/proc/1/ns/mnt")),
        ("/OCI/Linux/Namespaces/0/Type", json!("user")),
        ("/OCI/Linux/Namespaces/0/Type", json!("mount")),
        ("/OCI/Linux/Namespaces", json!([])),
        ("/OCI/Linux/Namespaces", json!([{"Type": "mount", "Path": ""}])),
        ("/OCI/Linux/Namespaces", json!([{"Type": "pid", "Path": ""}])),
        ("/OCI/Linux/Devices", json!([{"Path": "/dev/vda", "Type": "b", "Major": 254, "Minor": 0}])),
        ("/OCI/Linux/Seccomp", json!({"DefaultAction": "SCMP_ACT_ERRNO"})),
        ("/OCI/Linux/RootfsPropagation", json!("rshared")),
        ("/OCI/Linux/MaskedPaths", json!([])),
        ("/OCI/Linux/ReadonlyPaths", json!([])),
        ("/OCI/Linux/MaskedPaths", json!(["/proc/kcore"])),
        ("/OCI/Linux/MaskedPaths/-", json!("/etc/ssl/certs/ca-certificates.crt")),
        ("/OCI/Linux/MaskedPaths/-", json!("/proc")),
        ("/OCI/Linux/MaskedPaths/-", json!("/proc/interrupts/")),
        ("/OCI/Linux/MaskedPaths/-", json!("/sys/devices/system/cpu/cpu0/thermal_throttle/../../../../../../etc/passwd")),
        ("/OCI/Linux/MaskedPaths/-", json!("/sys/devices/system/cpu/cpu0/../cpu0/thermal_throttle")),
        ("/OCI/Linux/ReadonlyPaths/-", json!("/var/lib/app")),
        ("/OCI/Linux/ReadonlyPaths/-", json!("/")),
        ("/OCI/Linux/MountLabel", json!("x")),
        ("/OCI/Linux/IntelRdt", json!({"L3CacheSchema": "x"})),
        ("/OCI/Linux/Resources", json!(null)),
        ("/OCI/Linux/Resources/Devices/-", json!({"Allow": true, "Type": "a", "Major": -1, "Minor": -1, "Access": "rwm"})),
        ("/OCI/Linux/Resources/Devices/-", json!({"Allow": true, "Type": "b", "Major": 254, "Minor": 0, "Access": "rw"})),
        ("/OCI/Linux/Resources/Devices/-", json!({"Allow": true, "Type": "c", "Major": 10, "Minor": 1, "Access": "rw"})),
        ("/OCI/Linux/Resources/Devices/1/Access", json!("rwm")),
        ("/OCI/Linux/Resources/Devices/0/Allow", json!(true)),
        ("/devices", json!([{"id": "x"}])),
        ("/shared_mounts", json!([{"name": "x"}])),
        ("/sandbox_pidns", json!(true)),
        ("/string_user", json!({"uid": "0", "gid": "0", "additionalGids": []})),
        ("/stdin_port", json!(1)),
        ("/stdout_port", json!(1)),
        ("/stderr_port", json!(1)),
        ("/exec_id", json!("other")),
        ("/OCI", json!(null)),
    ];
    for (pointer, value) in table {
        denies(&mut rules, "CreateContainerRequest", &set(&good, pointer, value));
    }
    allows(&mut rules, "CreateContainerRequest", &good);
}

/// What newer container runtimes hide besides the old list.
#[test]
fn the_known_masked_paths_are_allowed() {
    let mut rules = ready(&pod());
    let mut request = create();
    for path in ["/proc/interrupts", "/sys/devices/system/cpu/cpu0/thermal_throttle", "/sys/devices/system/cpu/cpu127/thermal_throttle"] {
        request = set(&request, "/OCI/Linux/MaskedPaths/-", json!(path));
    }
    allows(&mut rules, "CreateContainerRequest", &request);
}

/// No field may be left out or of another type, except those listed with the reason why they do not matter.
#[test]
fn every_field_missing_or_of_another_type_is_denied() {
    const DOES_NOT_MATTER: [&str; 9] = [
        "/OCI/Hostname",                                     // the pod's host name is the sandbox's
        "/OCI/Root/Path",                                    // the agent makes the root file system itself
        "/OCI/Process/ConsoleSize",                          // harmless
        "/OCI/Process/Rlimits/0/",                           // limits of open files
        "/OCI/Linux/Resources/", // limits of CPU and memory are the host's to set; devices are in the table above
        "/OCI/Annotations/io.kubernetes.cri.container-type", // only `container_type` of the shim counts
        "/OCI/Mounts/",          // AC-30
        "/OCI/Linux/Namespaces/", // AC-31
        "/storages/0/driver_options/", // what the host says about the image; the agent does not read it
    ];
    fn paths(value: &Value, at: &str, all: &mut Vec<String>) {
        let mut visit = |key: String, child: &Value| {
            let path = format!("{at}/{}", key.replace('/', "~1"));
            all.push(path.clone());
            paths(child, &path, all);
        };
        match value {
            Value::Object(map) => map.iter().for_each(|(key, child)| visit(key.clone(), child)),
            Value::Array(items) => items.iter().enumerate().for_each(|(i, child)| visit(i.to_string(), child)),
            _ => {}
        }
    }
    let mut rules = ready(&pod());
    let good = create();
    let mut all = Vec::new();
    paths(&good, "", &mut all);
    assert!(all.len() > 150, "{}", all.len());
    let mut passed = Vec::new();
    for path in all.iter().filter(|path| !DOES_NOT_MATTER.iter().any(|prefix| path.starts_with(prefix))) {
        if rules.evaluate("CreateContainerRequest", &set(&good, path, json!({"of": ["another", "type"]}))) == Evaluation::Allowed {
            passed.push(path);
        }
        let (parent, last) = path.rsplit_once('/').unwrap();
        let mut without = good.clone();
        if let Value::Object(map) = without.pointer_mut(parent).unwrap() {
            map.remove(&last.replace("~1", "/"));
            // With a single container there is no doubt which one is meant.
            if !path.ends_with("container-name") && rules.evaluate("CreateContainerRequest", &without) == Evaluation::Allowed {
                passed.push(path);
            }
        }
    }
    assert!(passed.is_empty(), "{passed:?}");
    allows(&mut rules, "CreateContainerRequest", &good);
}

#[test]
fn unnamed_container_is_taken_only_when_it_is_the_only_one() {
    let mut unnamed = create();
    unnamed["OCI"]["Annotations"].as_object_mut().unwrap().remove("io.kubernetes.cri.container-name");
    allows(&mut ready(&pod()), "CreateContainerRequest", &unnamed);
    let two = PodTemplate { containers: vec![app(), ContainerTemplate::new("b", OTHER, ["/b"])], ..PodTemplate::default() };
    denies(&mut ready(&two), "CreateContainerRequest", &unnamed);
}

/// AC-24, the policy's part: the agent confines the path by itself besides.
#[test]
fn ac_24_files_go_below_the_shared_directory() {
    let mut rules = rules(&pod());
    let good = json!({"path": "/run/kata-containers/shared/containers/c0ffee-0123456789abcdef-hosts", "file_type": "Regular",
        "symlink_target": "", "file_size": 10, "file_mode": 0o100_644, "dir_mode": 0o750, "uid": 0, "gid": 0, "offset": 0});
    allows(&mut rules, "CopyFileRequest", &good);
    allows(&mut rules, "CopyFileRequest", &set(&good, "/file_type", json!("Directory")));
    for path in [
        "/etc/passwd",
        "/run/kata-containers/shared/containers",
        "/run/kata-containers/shared/containers/",
        "/run/kata-containers/shared/containers/../x",
        "/run/kata-containers/shared/containers/a/..",
        "/run/kata-containers/shared/containers/a/./b",
        "/run/kata-containers/shared/containers/a/../../x",
        "/run/kata-containers/shared/containers/a//b",
        "/run/kata-containers/shared/containers/a\0b",
        "/run/kata-containers/shared/containers/a\n",
        "/run/kata-containers/shared/containers/ä",
        "/run/kata-containers/shared/containers/.hidden",
        "run/kata-containers/shared/containers/a",
    ] {
        denies(&mut rules, "CopyFileRequest", &set(&good, "/path", json!(path)));
    }
    for (pointer, value) in [("/file_type", "Symlink"), ("/file_type", "Unknown"), ("/symlink_target", "/etc")] {
        denies(&mut rules, "CopyFileRequest", &set(&good, pointer, json!(value)));
    }
    denies(&mut rules, "CopyFileRequest", &set(&good, "/offset", json!(-1)));
    denies(&mut rules, "CopyFileRequest", &set(&good, "/file_size", json!(-1)));
}

#[test]
fn network_leaves_the_loopback_alone() {
    let mut rules = rules(&pod());
    let interface = json!({"interface": {"device": "eth0", "name": "eth0", "IPAddresses": [{"family": 0, "address": "10.1.2.3", "mask": "24"}],
        "mtu": 1500, "hwAddr": "02:00:ca:fe:00:01", "devicePath": "", "type_": "", "raw_flags": 0}});
    allows(&mut rules, "UpdateInterfaceRequest", &interface);
    for (pointer, value) in [
        ("/interface/name", json!("lo")),
        ("/interface/device", json!("lo")),
        ("/interface/name", json!("a/b")),
        ("/interface/hwAddr", json!("00:00:00:00:00:00")),
        ("/interface/hwAddr", json!("")),
        ("/interface/raw_flags", json!(1)),
        ("/interface/IPAddresses/0/address", json!("127.0.0.1")),
        ("/interface/IPAddresses/0/address", json!("::1")),
        ("/interface/IPAddresses/0/address", json!("0:0:0:0:0:0:0:1")),
        ("/interface/IPAddresses/0/address", json!("::ffff:127.0.0.1")),
        ("/interface/IPAddresses/0/address", json!("::FFFF:7f00:1")),
        ("/interface", json!(null)),
    ] {
        denies(&mut rules, "UpdateInterfaceRequest", &set(&interface, pointer, value));
    }
    let routes = json!({"routes": {"Routes": [{"dest": "", "gateway": "10.1.2.1", "device": "eth0", "source": "", "scope": 0, "family": 0,
        "flags": 0, "mtu": 0}]}});
    allows(&mut rules, "UpdateRoutesRequest", &routes);
    allows(&mut rules, "UpdateRoutesRequest", &set(&routes, "/routes/Routes/0/dest", json!("10.1.2.1/32")));
    for (field, value) in
        [("device", "lo"), ("dest", "127.0.0.0/8"), ("source", "127.0.0.1"), ("gateway", "127.0.0.1"), ("dest", "::1/128")]
    {
        denies(&mut rules, "UpdateRoutesRequest", &set(&routes, &format!("/routes/Routes/0/{field}"), json!(value)));
    }
    denies(&mut rules, "UpdateRoutesRequest", &json!({"routes": null}));
    let neighbors = json!({"neighbors": {"ARPNeighbors": [{"toIPAddress": {"family": 0, "address": "10.1.2.1", "mask": ""}, "device": "eth0",
        "lladdr": "02:00:ca:fe:00:02", "state": 128, "flags": 0}]}});
    allows(&mut rules, "AddARPNeighborsRequest", &neighbors);
    for (pointer, value) in
        [("device", json!("lo")), ("state", json!(0)), ("toIPAddress", json!({"family": 0, "address": "127.0.0.1", "mask": ""}))]
    {
        denies(&mut rules, "AddARPNeighborsRequest", &set(&neighbors, &format!("/neighbors/ARPNeighbors/0/{pointer}"), value));
    }
}

#[test]
fn everything_else_is_denied() {
    let mut rules = running(&pod());
    for rule in [
        "SetPolicyRequest",
        "ReseedRandomDevRequest",
        "SetGuestDateTimeRequest",
        "MemHotplugByProbeRequest",
        "AddSwapRequest",
        "AddSwapPathRequest",
        "GetIPTablesRequest",
        "SetIPTablesRequest",
        "PauseContainerRequest",
        "ResumeContainerRequest",
        "UpdateEphemeralMountsRequest",
        "UnsealSecretRequest",
        "GetTokenRequest",
        "GetEvidenceRequest",
        "ExtendRuntimeMeasurementRequest",
        "GetMetricsRequest",
        "VolumeStatsRequest",
        "ResizeVolumeRequest",
        "MemAgentMemcgConfig",
        "RemoveStaleVirtiofsShareMountsRequest",
        "policy_data",
        "reasons",
    ] {
        denies(&mut rules, rule, &json!({"container_id": ID}));
    }
    for path in ["default/key/2", "default/key/1/", "default/key", "", "../default/key/1"] {
        denies(&mut rules, "GetResourceRequest", &json!({"path": path, "container_id": ID, "container_name": "app"}));
    }
    for nobody in [json!("unknown"), json!(null), json!("")] {
        denies(&mut rules, "GetResourceRequest", &json!({"path": "default/key/1", "container_id": nobody, "container_name": "app"}));
    }
    denies(&mut rules, "GetResourceRequest", &json!({"path": "default/key/1"}));
    denies(&mut rules, "GetDiagnosticDataRequest", &json!({"log_type": "termination_log", "container_id": ID}));
    for rule in ["SignalProcessRequest", "WaitProcessRequest", "StatsContainerRequest", "UpdateContainerRequest", "StartContainerRequest"] {
        denies(&mut rules, rule, &json!({"container_id": "unknown", "exec_id": "", "signal": 9, "resources": {"Devices": []}}));
    }
    let devices = json!({"Devices": [{"Allow": true, "Type": "a", "Access": "rwm"}]});
    denies(&mut rules, "UpdateContainerRequest", &json!({"container_id": ID, "resources": devices}));
}

#[test]
fn runtime_events_of_the_workload_are_allowed_by_name_alone() {
    let event = json!({"domain": "example.com", "operation": "op", "size": 1, "container_id": ID, "container_name": "app"});
    denies(&mut running(&pod()), "ExtendRuntimeMeasurementRequest", &event);
    let pod = PodTemplate { runtime_events: true, ..pod() };
    allows(&mut running(&pod), "ExtendRuntimeMeasurementRequest", &event);
    denies(&mut running(&pod), "ExtendRuntimeMeasurementRequest", &set(&event, "/container_id", json!("unknown")));
}

#[test]
fn a_resource_of_one_container_is_not_given_to_another() {
    let mut app = app();
    app.resources = vec!["default/app/1".to_owned()];
    let mut sidecar = ContainerTemplate::new("sidecar", IMAGE, ["/bin/sidecar"]);
    sidecar.resources = vec!["default/sidecar/1".to_owned()];
    let pod =
        PodTemplate { containers: vec![app, sidecar], resources: vec!["default/all/1".to_owned()], token: true, ..PodTemplate::default() };
    let mut rules = running(&pod);
    let ask = |path: &str, id: &str, name: &str| json!({"path": path, "container_id": id, "container_name": name});
    for path in ["default/app/1", "default/all/1"] {
        allows(&mut rules, "GetResourceRequest", &ask(path, ID, "app"));
    }
    let reasons = denies(&mut rules, "GetResourceRequest", &ask("default/sidecar/1", ID, "app"));
    assert_eq!(reasons, ["the resource is not in the list of the pod or of this container"]);
    // By the id that the policy knows it by, and not by what its creator called it; and the sidecar is not there yet.
    denies(&mut rules, "GetResourceRequest", &ask("default/sidecar/1", ID, "sidecar"));
    denies(&mut rules, "GetResourceRequest", &ask("default/sidecar/1", "5ecar", "sidecar"));
    // The sandbox container runs nothing that could ask.
    denies(&mut rules, "GetResourceRequest", &ask("default/app/1", SANDBOX, "app"));
    allows(&mut rules, "GetTokenRequest", &json!({"token_type": "kbs", "container_id": ID, "container_name": "app"}));
    denies(&mut rules, "GetTokenRequest", &json!({"token_type": "kbs", "container_id": "unknown", "container_name": "app"}));
}

#[test]
fn a_sealed_secret_is_opened_for_its_container_and_by_its_owners_key_alone() {
    let mut sidecar = ContainerTemplate::new("sidecar", IMAGE, ["/bin/sidecar"]);
    sidecar.sealed_secrets = vec!["default/sidecar/1".to_owned()];
    let mut app = app();
    app.sealed_secrets = vec!["default/db/password".to_owned()];
    let pod = PodTemplate { containers: vec![app, sidecar], sealing_keys: vec!["default/sealing/1".to_owned()], ..PodTemplate::default() };
    let mut rules = running(&pod);
    let good = json!({
        "container_id": ID, "container_name": "app", "type": "vault", "path": "default/db/password", "signed_by": "default/sealing/1",
        "target": "environment", "name": "PASSWORD",
    });
    allows(&mut rules, "UnsealSecretRequest", &good);
    for (field, value) in [
        ("/path", json!("default/sidecar/1")),
        ("/path", json!("default/sealing/1")),
        ("/signed_by", json!("default/db/password")),
        ("/container_id", json!("unknown")),
        ("/container_id", json!(SANDBOX)),
    ] {
        let reasons = denies(&mut rules, "UnsealSecretRequest", &set(&good, field, value.clone()));
        let expected = "the sealed secret is not of this container, or not signed with a key that may sign it";
        assert!(reasons.iter().any(|reason| reason == expected), "{field} {value}: {reasons:?}");
    }
    denies(&mut rules, "UnsealSecretRequest", &json!({}));
    denies(&mut running(&self::pod()), "UnsealSecretRequest", &good);
}

#[test]
fn rejects_resources_that_no_broker_has() {
    for bad in ["", "a/b", "a/b/c/d", "kbs:///a/b/c", "../b/c", "a/b/c d"] {
        let found = bad.to_owned();
        for pod in [PodTemplate { resources: vec![found.clone()], ..pod() }, PodTemplate { sealing_keys: vec![found.clone()], ..pod() }] {
            assert_eq!(pod.render(), Err(TemplateError::Resource { found: found.clone() }));
        }
        let mut app = app();
        app.sealed_secrets = vec![found.clone()];
        let render = |app: ContainerTemplate| PodTemplate { containers: vec![app], ..PodTemplate::default() }.render();
        assert_eq!(render(app), Err(TemplateError::Resource { found: found.clone() }));
        let mut app = self::app();
        app.resources = vec![found.clone()];
        assert_eq!(render(app), Err(TemplateError::Resource { found }));
    }
}

#[test]
fn rejects_templates_that_would_pin_nothing() {
    let render = |change: &dyn Fn(&mut ContainerTemplate)| {
        let mut container = app();
        change(&mut container);
        PodTemplate { containers: vec![container], ..PodTemplate::default() }.render()
    };
    assert_eq!(PodTemplate::default().render(), Err(TemplateError::NoContainers));
    for image in
        ["app", "app:latest", "app@sha256:12", "@sha256:", "app@sha256:0123456789ABCDEF0123456789abcdef0123456789abcdef0123456789abcdef"]
    {
        assert!(matches!(render(&|c| c.image = image.to_owned()), Err(TemplateError::Image { .. })), "{image}");
    }
    assert!(matches!(render(&|c| c.args.clear()), Err(TemplateError::Args { .. })));
    for number in [0, 32, 255] {
        assert!(matches!(render(&|c| c.signals = vec![3, number]), Err(TemplateError::Signal { .. })), "{number}");
    }
    assert!(matches!(render(&|c| c.name = "a:b".to_owned()), Err(TemplateError::Name { .. })));
    assert!(matches!(render(&|c| c.after = vec!["x".to_owned()]), Err(TemplateError::After { .. })));
    assert!(matches!(render(&|c| c.capabilities = vec!["all".to_owned()]), Err(TemplateError::Capability { .. })));
    for path in ["/", "", "relative", "/a/../b", "/proc", "/proc/x", "/sys/x", "/dev/x", "/a//b"] {
        let mount = MountTemplate { destination: path.to_owned(), read_only: false };
        assert!(matches!(render(&|c| c.mounts = vec![mount.clone()]), Err(TemplateError::Mount { .. })), "{path}");
    }
    for pattern in ["(", "a)|(?:b", "(?<=x)y", "(?x) #"] {
        let rule = EnvRule::Pattern { name: "X".to_owned(), pattern: pattern.to_owned() };
        assert!(matches!(render(&|c| c.env = vec![rule.clone()]), Err(TemplateError::Env { .. })), "{pattern}");
    }
    let twice = PodTemplate { containers: vec![app(), app()], ..PodTemplate::default() };
    assert!(matches!(twice.render(), Err(TemplateError::Twice { .. })));
}

/// Text of the owner's that looks like Rego stays text.
#[test]
fn values_cannot_break_out_of_the_data() {
    let mut container = app();
    container.args = vec!["\"}]}\nCreateContainerRequest := true\n#".to_owned(), "${x} \u{2028} \\u0041 {{}}".to_owned()];
    let pod = PodTemplate { containers: vec![container.clone()], ..PodTemplate::default() };
    let mut rules = ready(&pod);
    denies(&mut rules, "CreateContainerRequest", &json!({}));
    denies(&mut rules, "CreateContainerRequest", &create());
    allows(&mut rules, "CreateContainerRequest", &set(&create(), "/OCI/Process/Args", json!(container.args)));
}

#[test]
fn the_example_is_a_policy() {
    let pod: PodTemplate = serde_json::from_str(include_str!("../examples/pod.json")).unwrap();
    assert!(pod.render().unwrap().contains("\"/bin/shop\""));
}
