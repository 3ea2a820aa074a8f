//! Mutations of a specification that is accepted (AC-25, AC-26, AC-30, AC-31, AC-35).

use super::*;
use kata_cc_agent_protocol::rpc::protobuf::MessageField;

fn good() -> oci::Spec {
    let mount = |destination: &str, type_: &str, source: &str| oci::Mount {
        destination: destination.to_owned(),
        type_: type_.to_owned(),
        source: source.to_owned(),
        ..Default::default()
    };
    let namespace = |kind: &str, path: &str| oci::LinuxNamespace { Type: kind.to_owned(), Path: path.to_owned(), ..Default::default() };
    let caps = vec!["CAP_CHOWN".to_owned(), "CAP_MKNOD".to_owned()];
    oci::Spec {
        Version: "1.1.0".to_owned(),
        Process: MessageField::some(oci::Process {
            Args: vec!["/bin/sh".to_owned()],
            Env: vec!["PATH=/bin".to_owned()],
            Cwd: "/".to_owned(),
            Capabilities: MessageField::some(oci::LinuxCapabilities {
                Bounding: caps.clone(),
                Effective: caps.clone(),
                Permitted: caps,
                ..Default::default()
            }),
            ApparmorProfile: "cri-containerd.apparmor.d".to_owned(),
            ..Default::default()
        }),
        Root: MessageField::some(oci::Root { Path: "/etc".to_owned(), ..Default::default() }),
        Hostname: "pod".to_owned(),
        Mounts: vec![
            mount("/proc", "proc", "proc"),
            mount("/sys/fs/cgroup", "cgroup", "cgroup"),
            mount("/etc/hosts", "bind", "/run/kata-containers/shared/containers/c-0123456789abcdef-hosts"),
        ],
        Linux: MessageField::some(oci::Linux {
            Namespaces: vec![
                namespace("pid", ""),
                namespace("ipc", "/proc/4711/ns/ipc"),
                namespace("uts", "/proc/4711/ns/uts"),
                namespace("mount", ""),
                namespace("network", "/proc/4711/ns/net"),
            ],
            Resources: MessageField::some(oci::LinuxResources {
                CPU: MessageField::some(oci::LinuxCPU { Shares: 102, Cpus: "3".to_owned(), ..Default::default() }),
                Memory: MessageField::some(oci::LinuxMemory { Limit: 1 << 27, ..Default::default() }),
                ..Default::default()
            }),
            CgroupsPath: "/kubepods/besteffort/x".to_owned(),
            MaskedPaths: vec!["/proc/kcore".to_owned()],
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn adapted(spec: &oci::Spec) -> Result<Value, SpecError> {
    let place = Place { id: "c1", rootfs: Path::new("/run/kata-containers/c1/rootfs") };
    adapt(spec, place).map(|spec| serde_json::to_value(spec).unwrap())
}

#[track_caller]
fn refused(change: impl FnOnce(&mut oci::Spec)) -> SpecError {
    let mut spec = good();
    change(&mut spec);
    adapted(&spec).expect_err("must be refused")
}

#[test]
fn what_the_host_says_about_places_does_not_count() {
    let value = adapted(&good()).unwrap();
    assert_eq!(value["root"]["path"], "/run/kata-containers/c1/rootfs");
    assert_eq!(value["linux"]["cgroupsPath"], "/kata-cc/c1");
    assert_eq!(value["linux"]["namespaces"], json!([{ "type": "pid" }, { "type": "mount" }, { "type": "cgroup" }]));
    assert!(value.get("hostname").is_none());
    assert_eq!(value["linux"]["resources"]["memory"]["limit"], 1 << 27);
    assert_eq!(value["linux"]["resources"]["cpu"], json!({ "shares": 102 }));
    assert_eq!(value["linux"]["maskedPaths"], json!(["/proc/kcore"]));
    assert!(value["process"].get("apparmorProfile").is_none());
}

#[test]
fn nobody_may_make_device_nodes() {
    let value = adapted(&good()).unwrap();
    for set in ["bounding", "effective", "permitted"] {
        assert_eq!(value["process"]["capabilities"][set], json!(["CAP_CHOWN"]), "{set}");
    }
}

#[test]
fn no_list_of_capabilities_means_none() {
    let mut spec = good();
    spec.Process.as_mut().unwrap().Capabilities = MessageField::none();
    let value = adapted(&spec).unwrap();
    assert_eq!(value["process"]["capabilities"]["bounding"], json!([]));
}

#[test]
fn refuses_bind_sources_that_are_not_copied_files_or_storages() {
    for source in [
        "/",
        "/etc",
        "/run/kata-containers/shared/containers",
        "/run/kata-containers/shared/containers/",
        "/run/kata-containers/shared/containers/../../../../etc",
        "/run/kata-containers/shared/containersX/f",
        "/run/kata-containers/c2/rootfs",
        // In a directory that a container may have, so it may be a link by now.
        "/run/kata-containers/shared/containers/c-0123456789abcdef-app/x",
        "/run/kata-containers/sandbox/local/cache/x",
        "/run/kata-containers/sandbox/local",
        "/run/kata-containers/sandbox/shm/x",
        "run/kata-containers/shared/containers/f",
        "",
    ] {
        let error = refused(|spec| spec.Mounts[2].source = source.to_owned());
        assert!(matches!(error, SpecError::Mount { .. }), "{source:?}: {error}");
        // The same through the option instead of the type.
        let error = refused(|spec| {
            spec.Mounts[2].source = source.to_owned();
            spec.Mounts[2].type_ = "tmpfs".to_owned();
            spec.Mounts[2].options = vec!["rbind".to_owned()];
        });
        assert!(matches!(error, SpecError::Mount { .. }), "{source:?}: {error}");
    }
}

#[test]
fn takes_whole_copies_and_storages_as_sources() {
    for source in [
        "/run/kata-containers/shared/containers/c-0123456789abcdef-app",
        "/run/kata-containers/sandbox/shm",
        "/run/kata-containers/sandbox/local/cache",
        "/run/kata-containers/sandbox/ephemeral/fast",
    ] {
        let mut spec = good();
        spec.Mounts[2].source = source.to_owned();
        assert!(adapted(&spec).is_ok(), "{source}");
    }
}

#[test]
fn a_termination_log_is_nothing_else_and_nothing_else_is_one() {
    // AC-30: what is in it is read back to the host.
    let log = "/run/kata-containers/shared/containers/c-0123456789abcdef-termination-log";
    let mut spec = good();
    spec.Mounts[2].destination = TERMINATION_LOG.to_owned();
    spec.Mounts[2].source = log.to_owned();
    assert!(adapted(&spec).is_ok());
    for source in [
        "/run/kata-containers/shared/containers/other-0123456789abcdef-app",
        "/run/kata-containers/shared/containers/other-0123456789abcdef-app/x-termination-log",
        "/run/kata-containers/sandbox/local/x-termination-log",
        "/run/kata-containers/shared/containers/x-termination-log/..",
    ] {
        let error = refused(|spec| {
            spec.Mounts[2].destination = TERMINATION_LOG.to_owned();
            spec.Mounts[2].source = source.to_owned();
        });
        assert!(matches!(error, SpecError::Mount { .. }), "{source}");
    }
    let error = refused(|spec| spec.Mounts[2].source = log.to_owned());
    assert!(matches!(error, SpecError::Mount { .. }));
}

#[test]
fn no_mount_hides_one_that_is_in_its_directory() {
    // AC-30: a required file beneath a tmpfs that came later would not be seen.
    let mut spec = good();
    let tmpfs = |at: &str| oci::Mount { destination: at.to_owned(), type_: "tmpfs".to_owned(), ..Default::default() };
    spec.Mounts.extend([tmpfs("/run/secrets/deep"), tmpfs("/etc/"), tmpfs("/run"), tmpfs("//etc//"), tmpfs("/dev")]);
    let value = adapted(&spec).unwrap();
    let order: Vec<&str> = value["mounts"].as_array().unwrap().iter().filter_map(|mount| mount["destination"].as_str()).collect();
    assert_eq!(order, ["/proc", "/etc/", "/run", "//etc//", "/dev", "/etc/hosts", "/sys/fs/cgroup", "/run/secrets/deep"]);
}

#[test]
fn refuses_a_mount_that_is_read_only_and_writable() {
    // AC-30: what a policy takes for read-only is mounted writable.
    for options in [["ro", "rw"], ["rw", "ro"], ["rro", "rrw"], ["ro", "defaults"]] {
        for index in [0, 2] {
            let error = refused(|spec| spec.Mounts[index].options = options.map(str::to_owned).to_vec());
            assert!(matches!(error, SpecError::Mount { .. }), "{options:?}");
        }
    }
}

#[test]
fn refuses_mounts_over_the_root_and_unknown_file_systems() {
    for destination in ["/", "", "etc", "/a/../..", "/./"] {
        let error = refused(|spec| spec.Mounts[0].destination = destination.to_owned());
        assert!(matches!(error, SpecError::Mount { .. }), "{destination:?}");
    }
    for kind in ["ext4", "overlay", "devtmpfs", "fuse", "9p", "virtiofs", "configfs", "securityfs"] {
        let error = refused(|spec| spec.Mounts[0].type_ = kind.to_owned());
        assert!(matches!(error, SpecError::Mount { .. }), "{kind}");
    }
}

#[test]
fn refuses_what_a_container_here_cannot_have() {
    let linux = |change: fn(&mut oci::Linux)| refused(move |spec| change(spec.Linux.as_mut().unwrap()));
    let device = |path: &str, major, minor, kind: &str| oci::LinuxDevice {
        Path: path.to_owned(),
        Type: kind.to_owned(),
        Major: major,
        Minor: minor,
        ..Default::default()
    };
    refused(|spec| {
        spec.Hooks = MessageField::some(oci::Hooks { CreateRuntime: vec![oci::Hook::default()], ..Default::default() });
    });
    linux(|linux| linux.UIDMappings.push(oci::LinuxIDMapping::default()));
    linux(|linux| linux.Namespaces[0].Path = "/proc/1/ns/pid".to_owned());
    linux(|linux| drop(linux.Namespaces.remove(0)));
    linux(|linux| linux.Namespaces[1].Type = "user".to_owned());
    linux(|linux| linux.RootfsPropagation = "rshared".to_owned());
    linux(|linux| drop(linux.Sysctl.insert("kernel.core_pattern".to_owned(), "|/x".to_owned())));
    for wrong in [
        device("/dev/vda", 254, 0, "b"),
        device("/dev/sev-guest", 10, 124, "c"),
        device("/dev/null", 1, 1, "c"),
        device("/dev/mem", 1, 1, "c"),
    ] {
        refused(move |spec| spec.Linux.as_mut().unwrap().Devices.push(wrong));
    }
}

#[test]
fn hides_from_a_container_only_what_is_the_kernels() {
    // AC-31: a masked file of the image's is an empty one.
    for path in [
        "/etc/ssl/certs/ca-certificates.crt",
        "/",
        "/proc",
        "/proc/kcore/../../etc/passwd",
        "/sys/devices/system/cpu/cpu/thermal_throttle",
        "/sys/devices/system/cpu/cpu0/../x/thermal_throttle",
        "",
    ] {
        refused(|spec| spec.Linux.as_mut().unwrap().MaskedPaths.push(path.to_owned()));
        refused(|spec| spec.Linux.as_mut().unwrap().ReadonlyPaths.push(path.to_owned()));
    }
    let mut spec = good();
    let linux = spec.Linux.as_mut().unwrap();
    linux.MaskedPaths = MASKED.map(str::to_owned).to_vec();
    linux.MaskedPaths.push("/sys/devices/system/cpu/cpu11/thermal_throttle".to_owned());
    linux.ReadonlyPaths = READONLY.map(str::to_owned).to_vec();
    assert!(adapted(&spec).is_ok());
}

#[test]
fn refuses_processes_that_are_not_whole() {
    let process = |change: fn(&mut oci::Process)| refused(move |spec| change(spec.Process.as_mut().unwrap()));
    process(|process| process.Args.clear());
    process(|process| process.Cwd = "relative".to_owned());
    process(|process| process.Env.push("PASSWORD=sealed.abc".to_owned()));
    process(|process| process.Capabilities.as_mut().unwrap().Bounding = vec!["CAP_NONSENSE".to_owned()]);
}

#[test]
fn errors_carry_no_environment_and_no_arguments() {
    // AC-61
    let error = refused(|spec| {
        let process = spec.Process.as_mut().unwrap();
        process.Env.push("TOKEN=canary-4711".to_owned());
        process.Env.push("S=sealed.canary-4711".to_owned());
    });
    assert!(!format!("{error} {error:?}").contains("canary"));
}
