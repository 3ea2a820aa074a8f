//! Table tests of planning.

use super::*;
use crate::config::tests::SIM;

pub(crate) fn config(extra: &str) -> Config {
    Config::parse(&format!("{extra}\n{SIM}")).unwrap()
}

pub(crate) fn request() -> PodRequest {
    PodRequest {
        sandbox_id: "pod-1".parse().unwrap(),
        annotations: BTreeMap::new(),
        cpu_limits: Vec::new(),
        memory_limits: Vec::new(),
        initdata_digest: Some(InitdataDigest::new(&[0xab; 32]).unwrap()),
        nics: Vec::new(),
        id_block: None,
        host: Host { vsock_cid: None, vhost_net: false },
    }
}

#[test]
fn sizes_a_machine_from_its_limits() {
    /// Quota and period of each limit, memory limits in MiB; processors and MiB to come out.
    type Case = (&'static [(i64, u64)], &'static [u64], u32, u32);
    let table: [Case; 6] = [
        (&[], &[], 1, 256),
        (&[(75_000, 100_000), (25_000, 100_000)], &[], 1, 256),
        (&[(75_000, 100_000), (120_000, 100_000)], &[128], 2, 384),
        (&[(10_000, 100_000); 10], &[1, 1, 1], 1, 260),
        (&[(100_000, 100_000)], &[100, 101], 1, 458),
        (&[(300_000, 100_000)], &[], 3, 256),
    ];
    for (cpus, memory, vcpus, memory_mib) in table {
        let mut request = request();
        request.cpu_limits = cpus.iter().map(|&(quota, period)| CpuLimit { quota, period }).collect();
        request.memory_limits = memory.iter().map(|mib| mib * MIB).collect();
        let plan = plan(&config(""), &request).unwrap();
        assert_eq!((plan.vcpus, plan.memory_mib), (vcpus, memory_mib), "{cpus:?} {memory:?}");
    }
}

#[test]
fn a_machine_never_gets_less_memory_than_it_boots_with() {
    let config = Config::parse(&SIM.replace("default_memory_mib = 256", "default_memory_mib = 1")).unwrap();
    assert_eq!(plan(&config, &request()).unwrap().memory_mib, MIN_MEMORY_MIB);
}

#[test]
fn under_secure_execution_a_pod_has_what_it_asked_for_beside_the_sealed_images_buffer() {
    let se = |more: &str, limit_mib: u64| {
        let config = Config::parse(&format!("tee = \"se\"\nkernel = \"/k\"\n{more}")).unwrap();
        let mut request = request();
        request.host.vsock_cid = Some(77);
        request.memory_limits = vec![limit_mib * MIB];
        plan(&config, &request).map(|plan| plan.memory_mib)
    };
    assert_eq!(se("", 0), Ok(512 + 512));
    assert_eq!(se("default_memory_mib = 256\n[se]\nswiotlb_mib = 64\n", 1000), Ok(256 + 64 + 1000));
    // The buffer does not count as what kernel and agent need to come up.
    assert_eq!(se("default_memory_mib = 1\n", 0), Ok(MIN_MEMORY_MIB + 512));
    assert_eq!(se("max_memory_mib = 1030\n", 8), Err(PlanError::TooMuchMemory { needed: 1032, allowed: 1030 }));
}

#[test]
fn refuses_a_machine_beyond_the_class_bounds() {
    let mut big = request();
    big.cpu_limits = vec![CpuLimit { quota: 500_000, period: 100_000 }];
    assert_eq!(plan(&config("max_vcpus = 4"), &big), Err(PlanError::TooManyVcpus { needed: 5, allowed: 4 }));
    let mut big = request();
    big.memory_limits = vec![u64::MAX, u64::MAX];
    assert!(matches!(plan(&config("max_memory_mib = 4096"), &big), Err(PlanError::TooMuchMemory { .. })));
}

#[test]
fn ac_66_annotations_that_affect_the_host_are_refused_unless_permitted() {
    let with = |name: &str, value: &str| {
        let mut request = request();
        request.annotations.insert(format!("{HYPERVISOR_PREFIX}{name}"), value.into());
        request
    };
    for name in ["path", "kernel", "kernel_params", "firmware", "initrd", "machine_type", "entropy_source", ""] {
        assert!(matches!(plan(&config(""), &with(name, "/tmp/x")), Err(PlanError::AnnotationUnknown { .. })), "{name}");
    }
    assert!(matches!(plan(&config(""), &with("default_vcpus", "2")), Err(PlanError::AnnotationRefused { .. })));
    assert!(matches!(plan(&config(""), &with("default_memory", "2048")), Err(PlanError::AnnotationRefused { .. })));
    let permitted = config("allowed_annotations = [\"default_vcpus\", \"default_memory\"]");
    assert_eq!(plan(&permitted, &with("default_vcpus", "1.5")).unwrap().vcpus, 2);
    assert_eq!(plan(&permitted, &with("default_memory", "2048")).unwrap().memory_mib, 2048);
    assert!(matches!(plan(&permitted, &with("default_memory", "2G")), Err(PlanError::AnnotationValue { .. })));
    let mut runtime = request();
    runtime.annotations.insert("io.katacontainers.config.runtime.sandbox_bind_mounts".into(), "/etc".into());
    assert!(matches!(plan(&permitted, &runtime), Err(PlanError::AnnotationUnknown { .. })));
}

#[test]
fn annotations_of_others_and_initdata_are_no_concern() {
    let mut request = request();
    request.annotations.insert(INITDATA_ANNOTATION.into(), "x".into());
    request.annotations.insert("io.kubernetes.cri.container-type".into(), "sandbox".into());
    request.annotations.insert("zzz".into(), String::new());
    plan(&config(""), &request).unwrap();
}

#[test]
fn refuses_a_pod_without_initdata() {
    let mut request = request();
    request.initdata_digest = None;
    assert_eq!(plan(&config(""), &request), Err(PlanError::NoInitdata));
}

#[test]
fn refuses_identifiers_that_are_paths() {
    for id in ["", ".", "..", "a/b", "../x", "a..b", "-a", "a-", "a b", &"a".repeat(77)] {
        assert!(id.parse::<SandboxId>().is_err(), "{id:?}");
    }
}

#[test]
fn refuses_sockets_no_socket_can_have_and_paths_qemu_would_misread() {
    let long = format!("run_dir = \"/{}\"", "r".repeat(100));
    assert!(matches!(plan(&config(&long), &request()), Err(PlanError::SocketPath(_))));
    assert!(matches!(plan(&config("run_dir = \"/run/a,b\""), &request()), Err(PlanError::Comma(_))));
    let mut longest = request();
    longest.sandbox_id = "f".repeat(64).parse().unwrap();
    plan(&config(""), &longest).unwrap();
}

#[test]
fn real_tees_need_the_kernels_vsock() {
    let config = Config::parse("tee = \"snp\"\nfirmware = \"/f\"\nkernel = \"/k\"\ninitrd = \"/i\"\n").unwrap();
    assert_eq!(plan(&config, &request()), Err(PlanError::NoKernelVsock(TeeKind::Snp)));
    let mut request = request();
    request.host.vsock_cid = Some(77);
    assert_eq!(plan(&config, &request).unwrap().vsock, Vsock::Kernel { cid: 77 });
}

#[test]
fn plans_survive_serialisation() {
    let mut request = request();
    request.nics = vec!["02:42:ac:11:00:02".parse().unwrap()];
    let plan = plan(&config(""), &request).unwrap();
    let json = serde_json::to_string(&plan).unwrap();
    assert_eq!(serde_json::from_str::<LaunchPlan>(&json).unwrap(), plan);
    assert!(serde_json::from_str::<LaunchPlan>(&json.replacen("\"qemu\"", "\"qemv\"", 1)).is_err());
}

#[test]
fn digests_are_cut_or_padded_to_the_field() {
    let digest = InitdataDigest::new(&[1; 48]).unwrap();
    assert_eq!(digest.padded::<32>(), [1; 32]);
    assert_eq!(digest.padded::<64>()[48..], [0; 16]);
    assert_eq!(InitdataDigest::new(&[1; 20]), Err(PlanError::DigestLength(20)));
}

#[test]
fn reads_ethernet_addresses_strictly() {
    assert_eq!("02:42:AC:11:00:02".parse::<Mac>().unwrap().to_string(), "02:42:ac:11:00:02");
    for text in ["", "0242ac110002", "02:42:ac:11:00", "02:42:ac:11:00:02:03", "024:2a:c1:10:00:2"] {
        assert!(text.parse::<Mac>().is_err(), "{text:?}");
    }
}

#[test]
fn a_simulated_td_differs_from_a_simulated_snp_guest_in_what_the_simulation_is_told() {
    let simulated = |extra: &str| {
        let plan = plan(&Config::parse(&format!("{SIM}{extra}\n")).unwrap(), &request()).unwrap();
        let Tee::Sim(sim) = &plan.tee else { panic!("not simulated") };
        let words: Vec<String> = sim.service_arguments(&plan).into_iter().map(|word| word.into_string().unwrap()).collect();
        let value = |name: &str| words.iter().position(|word| word == name).and_then(|at| words.get(at + 1).cloned());
        (plan.cmdline.clone(), value("--append"), value("--tee"), value("--host-data"), value("--mr-config-id"), value("--vcpu-type"))
    };
    let digest = "ab".repeat(32);
    let (cmdline, append, tee, host_data, mr_config_id, vcpu_type) = simulated("");
    assert_eq!((tee, host_data, mr_config_id, vcpu_type), (None, Some(digest.clone()), None, Some("EPYC-v4".into())));
    assert_eq!(append, Some(cmdline.clone()));
    let (td_cmdline, append, tee, host_data, mr_config_id, vcpu_type) = simulated("tee = \"tdx\"");
    let padded = format!("{digest}{}", "00".repeat(16));
    assert_eq!((tee, host_data, mr_config_id, vcpu_type), (Some("tdx".into()), None, Some(padded), None));
    assert_eq!((td_cmdline, append), (format!("tee_sim=tdx {cmdline}"), Some(format!("tee_sim=tdx {cmdline}"))));
    assert!(Config::parse(&format!("{SIM}tee = \"se\"\n")).is_err());
}

#[test]
fn ac_10_an_id_block_is_planned_only_for_the_class_that_names_it_and_its_policy() {
    let class =
        |more: &str| Config::parse(&format!("tee = \"snp\"\nfirmware = \"/f\"\nkernel = \"/k\"\ninitrd = \"/i\"\n[snp]\n{more}")).unwrap();
    let signed = |policy: u64| crate::tee::snp::id_block::tests::signed(policy, true);
    let with = |id_block: Option<SignedIdBlock>| PodRequest { id_block, host: Host { vsock_cid: Some(77), vhost_net: false }, ..request() };
    let named = "id_block = \"/b\"\nid_auth = \"/a\"\n";
    let planned = plan(&class(named), &with(Some(signed(0x3_0000)))).unwrap();
    assert_eq!(planned.id_block.as_ref().map(SignedIdBlock::launch_digest), Some(&[0xd1; 48][..]));
    let command = crate::qemu::command(&planned).unwrap();
    assert!(command.iter().any(|word| word.to_str().unwrap().contains(",id-block=0dHR")), "{command:?}");
    let json = serde_json::to_string(&planned).unwrap();
    assert_eq!(serde_json::from_str::<LaunchPlan>(&json).unwrap(), planned);

    assert_eq!(plan(&class(named), &with(Some(signed(0x1_0000)))), Err(PlanError::IdBlockPolicy { signed: 0x1_0000, class: 0x3_0000 }));
    plan(&class(&format!("{named}[snp.policy]\nsmt = false\n")), &with(Some(signed(0x2_0000)))).unwrap();
    assert_eq!(plan(&class(named), &with(None)), Err(PlanError::IdBlock { named: true }));
    assert_eq!(plan(&class(""), &with(Some(signed(0x3_0000)))), Err(PlanError::IdBlock { named: false }));
    let mut simulated = request();
    simulated.id_block = Some(signed(0x3_0000));
    assert_eq!(plan(&config(""), &simulated), Err(PlanError::IdBlock { named: false }));
}

#[test]
fn the_nodes_blob_cache_is_in_the_plan_of_a_class_that_names_it() {
    let named = plan(&config("node_blobs = \"/run/kata-cc/blobs.sock\""), &request()).unwrap();
    let Vsock::VhostUser { node_blobs, .. } = &named.vsock else { panic!("{:?}", named.vsock) };
    assert_eq!(node_blobs.as_deref(), Some(Path::new("/run/kata-cc/blobs.sock")));
    let json = serde_json::to_string(&named).unwrap();
    assert_eq!(serde_json::from_str::<LaunchPlan>(&json).unwrap(), named);
    let other = serde_json::to_string(&plan(&config(""), &request()).unwrap()).unwrap();
    assert!(json.contains("/run/kata-cc/blobs.sock") && !other.contains("node_blobs"), "{other}");
}
