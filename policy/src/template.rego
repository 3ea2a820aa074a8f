# Strict agent policy for a known set of containers. The rules are the same for every pod; what this pod may do is in
# `policy_data` at the end. Everything not allowed here is denied.
#
# State (data.pstate), by flat keys: "sandbox": id of the sandbox; "destroyed": it has been; "c:<id>": name of the container with that id ("" for the
# sandbox container); "n:<name>": id of the live container with that name; "r:<id>": it was started; "s:<name>": one of that name was
# started; "t:<name>": a start of one was tried. All but the last become true when the agent has done it, not when it was asked to.

package agent_policy

default CreateSandboxRequest := false
default CreateContainerRequest := false
default StartContainerRequest := false
default RemoveContainerRequest := false
default ExecProcessRequest := false
default SignalProcessRequest := false
default WaitProcessRequest := false
default StatsContainerRequest := false
default UpdateContainerRequest := false
default ReadStreamRequest := false
default WriteStreamRequest := false
default CloseStdinRequest := false
default TtyWinResizeRequest := false
default CopyFileRequest := false
default UpdateInterfaceRequest := false
default UpdateRoutesRequest := false
default AddARPNeighborsRequest := false
default GetDiagnosticDataRequest := false
default GetResourceRequest := false
default UnsealSecretRequest := false
default GetTokenRequest := false
default GetEvidenceRequest := false
default ExtendRuntimeMeasurementRequest := false
default SetPolicyRequest := false

# What tells the host nothing that it does not know, and changes nothing that it does not hold anyway.
GuestDetailsRequest := true
GetOOMEventRequest := true
ListInterfacesRequest := true
ListRoutesRequest := true
OnlineCPUMemRequest := true

# The end of the pod, and of its volumes: nothing comes after it that could take empty ones for them.
DestroySandboxRequest := {"allowed": true, "ops": [{"op": "add", "path": "/pstate/destroyed", "value": true}]}

# ---------------------------------------------------------------------------------------------------------------- helpers

valid_id(id) if {
	regex.match(`^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$`, id)
	not id in agent_directories
}

# What is in the agent's directory beside containers: a container of such a name would be in the way of all images or volumes.
agent_directories := {"image", "sandbox", "shared"}

key(kind, id) := concat(":", [kind, id])

path(k) := concat("/", ["/pstate", k])

# Name of a live container, "" for the sandbox container; undefined for any other id.
name_of(id) := data.pstate[key("c", id)]

known if {
	valid_id(input.container_id)
	name_of(input.container_id)
}

# What policy_data says about the live container that the request names. Undefined for the sandbox container.
spec_of(id) := spec if {
	some spec in policy_data.containers
	spec.name == name_of(id)
}

is_first if input.exec_id == ""
is_first if input.exec_id == input.container_id

empty(x) if x == null
empty(x) if x == []
empty(x) if x == {}
empty(x) if x == ""

shared_file(source) if {
	regex.match(`^/run/kata-containers/shared/containers/[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9._-]+)*$`, source)
	no_parent(source)
}

# What a container may have mounted: something copied in as a whole, and nothing in it. What lies in it a container with the whole of
# it may have put there, or exchanged for a link.
shared_mount(source) if {
	regex.match(`^/run/kata-containers/shared/containers/[A-Za-z0-9][A-Za-z0-9._-]*$`, source)
	no_parent(source)
	not endswith(source, termination_log)
}

# The host may read a container's last words back. So no other mount is of such a file, and this one is of no other: the agent would
# hand out what a container has written into a volume.
termination_log := "-termination-log"

allow_mount(_, mount) if {
	mount.destination == "/dev/termination-log"
	mount.type_ == "bind"
	shared_file(mount.source)
	endswith(mount.source, termination_log)
	count(split(mount.source, "/")) == 6
}

# `not` is only ever asked about what is there: for something absent it would come true.
no_parent(text) if {
	is_string(text)
	every part in split(text, "/") { not part in {".", ".."} }
}

no_path(text) if {
	is_string(text)
	not contains(text, "/")
}

not_loopback(address) if {
	is_string(address)
	not loopback(address)
}

# ---------------------------------------------------------------------------------------------------------------- sandbox

CreateSandboxRequest := {"allowed": true, "ops": [{"op": "add", "path": "/pstate/sandbox", "value": input.sandbox_id}]} if {
	not data.pstate.sandbox
	valid_id(input.sandbox_id)
	input.guest_hook_path == ""
	input.kernel_modules == []
	input.sandbox_pidns == false
	every storage in input.storages { sandbox_shm(storage) }
	allow_hostname(input.hostname)
}

sandbox_shm(storage) if {
	storage.driver == "ephemeral"
	storage.fstype == "tmpfs"
	storage.mount_point == "/run/kata-containers/sandbox/shm"
	storage.driver_options == []
}

allow_hostname(name) if {
	policy_data.hostname == null
	regex.match(`^[A-Za-z0-9.-]{0,253}$`, name)
}

allow_hostname(name) if name == policy_data.hostname

# -------------------------------------------------------------------------------------------------------- create container

container_type := input.OCI.Annotations["io.katacontainers.pkg.oci.container_type"]

# The sandbox ("pause") container: the guest's own, so there is no image and nothing of the host's in it.
CreateContainerRequest := {"allowed": true, "ops": [{"op": "add", "path": path(key("c", input.container_id)), "value": ""}]} if {
	container_type == "pod_sandbox"
	data.pstate.sandbox == input.container_id
	not data.pstate.destroyed
	valid_id(input.container_id)
	not data.pstate[key("c", input.container_id)]
	input.storages == []
	create_common
	allow_sysctls(input.OCI.Linux.Sysctl)
}

# Kernel parameters of the pod: by name, those that Kubernetes calls safe. None of `net.ipv4.conf`: `route_localnet` there would open
# the guest's loopback services to the host's network. Numbers only.
pod_sysctls := {
	"kernel.shm_rmid_forced", "net.ipv4.ip_local_port_range", "net.ipv4.ip_local_reserved_ports",
	"net.ipv4.ip_unprivileged_port_start", "net.ipv4.ping_group_range", "net.ipv4.tcp_fin_timeout", "net.ipv4.tcp_keepalive_intvl",
	"net.ipv4.tcp_keepalive_probes", "net.ipv4.tcp_keepalive_time", "net.ipv4.tcp_rmem", "net.ipv4.tcp_syncookies",
	"net.ipv4.tcp_wmem",
}

allow_sysctls(sysctls) if {
	is_object(sysctls)
	every name, value in sysctls {
		name in pod_sysctls
		is_string(value)
		regex.match(`^[0-9]{1,10}([ \t,-][0-9]{1,10}){0,15}$`, value)
	}
}

# The names in the request only choose what it is compared with; every name can be live once.
CreateContainerRequest := {"allowed": true, "ops": [
	{"op": "add", "path": path(key("c", input.container_id)), "value": spec.name},
	{"op": "add", "path": path(key("n", spec.name)), "value": input.container_id},
]} if {
	container_type == "pod_container"
	data.pstate.sandbox
	not data.pstate.destroyed
	valid_id(input.container_id)
	not data.pstate[key("c", input.container_id)]
	spec := create_spec
	not data.pstate[key("n", spec.name)]
	allow_again(spec)
	create_common
	create_image(spec)
	allow_process(spec, input.OCI.Process)
	input.OCI.Process.Args == spec.args
	allow_env_complete(spec, input.OCI.Process.Env)
	input.OCI.Process.Terminal == spec.tty
	input.OCI.Root.Readonly == spec.readonly_root
	create_linux
	create_mounts(spec)
}

container_name := input.OCI.Annotations["io.kubernetes.cri.container-name"]

create_spec := spec if {
	some spec in policy_data.containers
	spec.name == container_name
}

# Outside Kubernetes nobody names containers. With a single one there is no doubt.
create_spec := policy_data.containers[0] if {
	not container_name
	count(policy_data.containers) == 1
}

allow_again(spec) if spec.once == false
allow_again(spec) if not data.pstate[key("t", spec.name)]

create_common if {
	input.exec_id in {"", input.container_id}
	input.devices == []
	input.shared_mounts == []
	input.sandbox_pidns == false
	no_user(input.string_user)
	input.stdin_port == 0
	input.stdout_port == 0
	input.stderr_port == 0
	startswith(input.OCI.Version, "1.")
	no_hooks(input.OCI.Hooks)
	empty(input.OCI.Solaris)
	empty(input.OCI.Windows)
	input.OCI.Linux.Devices == []
	input.OCI.Linux.UIDMappings == []
	input.OCI.Linux.GIDMappings == []
}

no_user(user) if user == null
no_user(user) if user == {"uid": "", "gid": "", "additionalGids": []}

no_hooks(hooks) if hooks == null
no_hooks(hooks) if { every _, list in hooks { list == [] } }

# The guest pulls the image itself, and it is the one that is pinned: in the storage, and in the annotation.
create_image(spec) if {
	pulls := [storage | some storage in input.storages; storage.driver == "image_guest_pull"]
	count(pulls) == 1
	every storage in input.storages { allow_storage(spec, storage) }
	storage := pulls[0]
	storage.source == spec.image
	input.OCI.Annotations["io.kubernetes.cri.image-name"] == spec.image
	storage.fstype in {"overlay", ""}
	storage.options == []
	storage.shared == false
	empty(storage.fs_group)
	storage.mount_point == concat("/", ["/run/kata-containers", input.container_id, "rootfs"])
	count(storage.driver_options) <= 1
	every option in storage.driver_options { startswith(option, "image_guest_pull=") }
}

allow_storage(_, storage) if storage.driver == "image_guest_pull"

# An emptyDir: memory of the guest's, shared by the containers of the pod under one name. One name is one place, so that all of them see
# the same; and it is made once, so that none is given an empty one over what another has put there.
allow_storage(spec, storage) if {
	storage.driver_options == []
	storage.options == []
	storage.shared == true
	empty(storage.fs_group)
	some volume in spec.empty_dirs
	[storage.driver, storage.mount_point] == empty_dir(volume)
}

empty_dir(volume) := ["ephemeral", concat("/", ["/run/kata-containers/sandbox/ephemeral", volume.name])] if volume.memory == true
empty_dir(volume) := ["local", concat("/", ["/run/kata-containers/sandbox/local", volume.name])] if volume.memory == false

allow_process(spec, process) if {
	process.Cwd == spec.cwd
	process.User.UID == spec.user.uid
	process.User.GID == spec.user.gid
	process.User.Username == ""
	allow_groups(spec, process.User.AdditionalGids)
	allow_capabilities(spec, process.Capabilities)
	allow_privileges(spec, process.NoNewPrivileges)
	process.ApparmorProfile in {"", "cri-containerd.apparmor.d"}
	process.SelinuxLabel == ""
	process.OOMScoreAdj >= -1000
	process.OOMScoreAdj <= 1000
	every limit in process.Rlimits { limit.Type == "RLIMIT_NOFILE" }
	every entry in process.Env { allow_env(spec, entry) }
	names := [split(entry, "=")[0] | some entry in process.Env]
	count(names) == count({name | some name in names})
}

# At most these: containerd adds the primary group, and leaves out what it cannot look up in an image that it does not have.
allow_groups(spec, groups) if {
	every group in groups { group in array.concat(spec.user.additional_gids, [spec.user.gid]) }
}

allow_capabilities(spec, capabilities) if {
	every kind in ["Bounding", "Effective", "Permitted"] {
		every capability in capabilities[kind] { capability in spec.capabilities }
	}
	every kind in ["Inheritable", "Ambient"] {
		every capability in capabilities[kind] { capability in spec.ambient_capabilities }
	}
}

allow_privileges(_, no_new_privileges) if no_new_privileges == true
allow_privileges(spec, no_new_privileges) if {
	spec.no_new_privileges == false
	no_new_privileges == false
}

allow_env(spec, entry) if entry in spec.env.required
allow_env(spec, entry) if {
	parts := split(entry, "=")
	count(parts) > 1
	not parts[0] in spec.env.exact_names
	value := concat("=", array.slice(parts, 1, count(parts)))
	some rule in spec.env.patterns
	regex.match(rule.name, parts[0])
	regex.match(rule.value, value)
}

allow_env_complete(spec, env) if {
	every entry in spec.env.required { entry in env }
}

create_linux if {
	linux := input.OCI.Linux
	linux.Sysctl == {}
	empty(linux.Seccomp)
	empty(linux.MountLabel)
	allow_rdt(linux.IntelRdt)
	linux.RootfsPropagation in {"", "private", "rprivate"}
	no_parent(linux.CgroupsPath)
	allow_namespaces(linux.Namespaces)
	every device in linux.Resources.Devices { allow_device(device) }
	every masked in masked_paths { masked in linux.MaskedPaths }
	every readonly in readonly_paths { readonly in linux.ReadonlyPaths }
	every masked in linux.MaskedPaths { allow_masked(masked) }
	every readonly in linux.ReadonlyPaths { readonly in readonly_paths }
}

allow_rdt(rdt) if rdt == null
allow_rdt(rdt) if rdt == {"L3CacheSchema": ""}

# New namespaces only, each kind once; its own process and mount namespace always, so that a container never sees the agent.
allow_namespaces(namespaces) if {
	every namespace in namespaces {
		namespace.Path == ""
		namespace.Type in {"pid", "mount", "ipc", "uts", "network", "cgroup"}
	}
	types := {namespace.Type | some namespace in namespaces}
	count(types) == count(namespaces)
	"pid" in types
	"mount" in types
}

# What container runtimes allow to every container: mknod, and the harmless character devices.
allow_device(device) if device.Allow == false
allow_device(device) if {
	device.Access == "m"
	device.Type in {"c", "b"}
}
allow_device(device) if {
	device.Type == "c"
	[device.Major, device.Minor] in [[1, 3], [1, 5], [1, 7], [1, 8], [1, 9], [5, 0], [5, 1], [5, 2]]
}
allow_device(device) if {
	device.Type == "c"
	device.Major == 136
}

masked_paths := [
	"/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list",
	"/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware",
]

# What some container runtimes hide besides, and nothing else: hiding a file of the image's changes what the program finds, an empty list
# of revoked certificates for example.
also_masked := ["/proc/interrupts", "/sys/devices/virtual/powercap"]

allow_masked(masked) if masked in masked_paths
allow_masked(masked) if masked in also_masked
allow_masked(masked) if regex.match(`^/sys/devices/system/cpu/cpu[0-9]{1,4}/thermal_throttle$`, masked)

readonly_paths := ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]

# ------------------------------------------------------------------------------------------------------------------ mounts

create_mounts(spec) if {
	every mount in input.OCI.Mounts {
		allow_mount(spec, mount)
		every option in mount.options { allow_option(option) }
		one_mode(mount.options)
	}
	count({mount.destination | some mount in input.OCI.Mounts}) == count(input.OCI.Mounts)
	every volume in array.concat(spec.mounts, spec.empty_dirs) {
		volume.destination in {mount.destination | some mount in input.OCI.Mounts}
	}
}

kernel_mounts := {
	"/proc": ["proc"],
	"/dev": ["tmpfs"],
	"/dev/pts": ["devpts"],
	"/dev/shm": ["tmpfs"],
	"/dev/mqueue": ["mqueue"],
	"/run": ["tmpfs"],
}

allow_mount(_, mount) if {
	mount.type_ in kernel_mounts[mount.destination]
	no_path(mount.source)
}

readonly_kernel_mounts := {"/sys": ["sysfs"], "/sys/fs/cgroup": ["cgroup", "cgroup2"]}

allow_mount(_, mount) if {
	mount.type_ in readonly_kernel_mounts[mount.destination]
	no_path(mount.source)
	"ro" in mount.options
}

allow_mount(_, mount) if {
	mount.destination == "/dev/shm"
	mount.type_ == "bind"
	mount.source == "/run/kata-containers/sandbox/shm"
}

pod_files := {"/etc/hosts", "/etc/hostname", "/etc/resolv.conf"}

allow_mount(_, mount) if {
	mount.destination in pod_files
	mount.type_ == "bind"
	shared_mount(mount.source)
}

allow_mount(spec, mount) if {
	spec.service_account == true
	mount.destination == "/var/run/secrets/kubernetes.io/serviceaccount"
	mount.type_ == "bind"
	shared_mount(mount.source)
	"ro" in mount.options
}

allow_mount(spec, mount) if {
	some volume in spec.mounts
	mount.destination == volume.destination
	mount.type_ == "bind"
	shared_mount(mount.source)
	volume_mode(volume, mount.options)
}

allow_mount(spec, mount) if {
	some volume in spec.empty_dirs
	mount.destination == volume.destination
	mount.type_ == "bind"
	mount.source == empty_dir(volume)[1]
	mount.source in {storage.mount_point | some storage in input.storages}
	volume_mode(volume, mount.options)
}

# The last word would count, and the rules ask only whether `ro` is among them.
one_mode(options) if not "rw" in options
one_mode(options) if not "ro" in options

volume_mode(volume, _) if volume.read_only == false
volume_mode(_, options) if "ro" in options

allow_option(option) if {
	option in {
		"bind", "rbind", "ro", "rw", "nosuid", "nodev", "noexec", "private", "rprivate", "relatime", "noatime", "strictatime",
		"newinstance", "ptmxmode=0666", "nsdelegate", "memory_recursiveprot",
	}
}
allow_option(option) if regex.match(`^(mode=[01]?[0-7]{3}|gid=5|size=[0-9]{1,10}[kKmMgG]?)$`, option)

# --------------------------------------------------------------------------------------------------------------- life cycle

# Once for each container, and not before those it waits for. Others may start after it only if its start succeeded; whether it may
# run again is decided by whether it was tried, since a start that fails late may have run something.
StartContainerRequest := {
	"allowed": true,
	"before": [{"op": "add", "path": path(key("t", spec.name)), "value": true} | spec := spec_of(input.container_id)],
	"ops": array.concat(
		[{"op": "add", "path": path(key("r", input.container_id)), "value": true}],
		[{"op": "add", "path": path(key("s", spec.name)), "value": true} | spec := spec_of(input.container_id)],
	),
} if {
	known
	not data.pstate[key("r", input.container_id)]
	every name in start_after { data.pstate[key("s", name)] }
}

default start_after := []

start_after := spec_of(input.container_id).after

# The name is free again when the agent has ended and taken away all of the container.
RemoveContainerRequest := {"allowed": true, "ops": [{"op": "remove", "path": path(k)} |
	some k in [
		key("c", input.container_id),
		key("r", input.container_id),
		key("n", name_of(input.container_id)),
	]
	k in object.keys(data.pstate)
]} if {
	known
}

# Of a container that is not there: cleaning up after a denied creation.
RemoveContainerRequest := true if {
	valid_id(input.container_id)
	not known
}

# What a stop needs (SIGINT, SIGTERM, SIGKILL), a terminal's new size (SIGWINCH), and what the owner lists: many programs write out what
# they hold, or take another configuration, on other signals.
SignalProcessRequest if {
	known
	input.signal in {2, 9, 15, 28}
}
SignalProcessRequest if {
	input.signal in spec_of(input.container_id).signals
}

WaitProcessRequest if known
StatsContainerRequest if known

UpdateContainerRequest if {
	known
	empty(input.resources.Devices)
}

# --------------------------------------------------------------------------------------------------------- exec and streams

ExecProcessRequest if {
	spec := spec_of(input.container_id)
	valid_id(input.exec_id)
	not is_first
	data.pstate[key("r", input.container_id)]
	input.process.Args in spec.exec
	allow_process(spec, input.process)
	# Container runtimes hand the container's whole environment to what is executed in it; a program must not run without a part of it.
	allow_env_complete(spec, input.process.Env)
	allow_terminal(spec, input.process.Terminal)
	no_user(input.string_user)
	input.stdin_port == 0
	input.stdout_port == 0
	input.stderr_port == 0
}

allow_terminal(_, terminal) if terminal == false
allow_terminal(spec, terminal) if {
	terminal == true
	spec.exec_tty == true
}

# The output of the container itself only where its owner lets it out; that of listed commands always.
ReadStreamRequest if {
	is_first
	spec_of(input.container_id).logs == true
}
ReadStreamRequest if {
	not is_first
	valid_id(input.exec_id)
	count(spec_of(input.container_id).exec) > 0
}

WriteStreamRequest if allow_stdin
CloseStdinRequest if allow_stdin

allow_stdin if {
	is_first
	spec_of(input.container_id).stdin == true
}
allow_stdin if {
	not is_first
	valid_id(input.exec_id)
	spec_of(input.container_id).exec_stdin == true
}

# Whether or not there is any, the end of the input harms nobody.
CloseStdinRequest if known

TtyWinResizeRequest if {
	is_first
	spec_of(input.container_id).tty == true
}
TtyWinResizeRequest if {
	not is_first
	valid_id(input.exec_id)
	spec_of(input.container_id).exec_tty == true
}

# ------------------------------------------------------------------------------------------------------- files and network

CopyFileRequest if {
	input.file_type in {"Regular", "Directory"}
	shared_file(input.path)
	input.symlink_target in {"", null}
	input.file_size >= 0
	input.offset >= 0
}

UpdateInterfaceRequest if {
	interface := input.interface
	interface.name != "lo"
	interface.device != "lo"
	regex.match(`^[A-Za-z0-9_.-]{1,15}$`, interface.name)
	regex.match(`^([0-9A-Fa-f]{2}:){5}[0-9A-Fa-f]{2}$`, interface.hwAddr)
	interface.hwAddr != "00:00:00:00:00:00"
	interface.raw_flags in {0, 128}
	every address in interface.IPAddresses { not_loopback(address.address) }
}

UpdateRoutesRequest if {
	every route in input.routes.Routes {
		route.device != "lo"
		not_loopback(route.source)
		not_loopback(route.dest)
		not_loopback(route.gateway)
	}
}

AddARPNeighborsRequest if {
	every neighbor in input.neighbors.ARPNeighbors {
		neighbor.device != "lo"
		not_loopback(neighbor.toIPAddress.address)
		neighbor.state in {2, 128}
	}
}

# 127.0.0.0/8 and ::1 in any spelling, also as IPv4-mapped addresses.
loopback(address) if startswith(address, "127.")
loopback(address) if regex.match(`^[0:]*:0*1(/[0-9]+)?$`, address)
loopback(address) if regex.match(`^[0:]*:(ffff:)?(127\.|7f[0-9a-f]{2}:)`, lower(address))

# ----------------------------------------------------------------------------------------------------------- the guest's own

GetDiagnosticDataRequest if input.log_type in policy_data.diagnostics

# Asked by containers, through the REST interface; the agent says which. `known` is for those of the pod that are live.
GetResourceRequest if {
	known
	input.path in policy_data.resources
}
GetResourceRequest if input.path in spec_of(input.container_id).resources

# Each secret for the container that it is for, wherever the host puts its sealed form, and only as signed with a key of the owner's.
UnsealSecretRequest if {
	input.signed_by in policy_data.sealing_keys
	input.path in spec_of(input.container_id).sealed_secrets
}

default unsealed := false

unsealed if UnsealSecretRequest

GetTokenRequest if {
	known
	policy_data.token == true
}

GetEvidenceRequest if {
	known
	policy_data.evidence == true
}

# The agent's own domains are refused whatever this says.
ExtendRuntimeMeasurementRequest if {
	known
	policy_data.runtime_events == true
}

# The signature and a higher version are checked whatever this says.
SetPolicyRequest if policy_data.policy_updates == true

# ------------------------------------------------------------------------------------------------- why a request was denied

create if {
	container_type == "pod_container"
	create_spec
}

reasons contains "no container of this name is expected" if {
	container_type == "pod_container"
	not create_spec
}
reasons contains "a container of this name is already there" if {
	create
	data.pstate[key("n", create_spec.name)]
}
reasons contains "this container may run only once" if {
	create
	not allow_again(create_spec)
}
reasons contains "the sandbox was not created" if {
	create
	not data.pstate.sandbox
}
reasons contains "the sandbox was destroyed" if {
	create
	data.pstate.destroyed
}
reasons contains "the image is not the pinned one, or is not pulled by the guest" if {
	create
	not create_image(create_spec)
	every_storage_allowed
}
reasons contains "a volume is not expected, not shared by the pod's containers, or of the other medium than described" if {
	create
	not every_storage_allowed
}
reasons contains "the arguments differ" if {
	create
	not input.OCI.Process.Args == create_spec.args
}
reasons contains "the sealed secret is not of this container, or not signed with a key that may sign it" if {
	input.signed_by
	not unsealed
}
reasons contains "an environment variable is missing" if {
	create
	not allow_env_complete(create_spec, input.OCI.Process.Env)
}
reasons contains "an environment variable is not allowed" if {
	create
	some entry in input.OCI.Process.Env
	not allow_env(create_spec, entry)
}
reasons contains "the working directory differs" if {
	create
	not input.OCI.Process.Cwd == create_spec.cwd
}
reasons contains "the user or a group differs" if {
	create
	not same_user(create_spec, input.OCI.Process.User)
}
reasons contains "a capability is not allowed" if {
	create
	not allow_capabilities(create_spec, input.OCI.Process.Capabilities)
}
reasons contains "the process (user, capabilities, environment, limits, profile) is not as allowed" if {
	create
	not allow_process(create_spec, input.OCI.Process)
}
reasons contains "the terminal setting differs" if {
	create
	not input.OCI.Process.Terminal == create_spec.tty
}
reasons contains "the root file system's read-only setting differs" if {
	create
	not input.OCI.Root.Readonly == create_spec.readonly_root
}
reasons contains "the Linux part (namespaces, devices, sysctls, masked paths, seccomp) is not as allowed" if {
	create
	not create_linux
}
reasons contains "a mount is not allowed" if {
	create
	not create_mounts(create_spec)
}
reasons contains "hooks, devices, ports or mappings are not allowed" if {
	create
	not create_common
}
reasons contains "the request does not say whether this is the sandbox or a container of the pod" if {
	input.OCI
	not container_type in {"pod_sandbox", "pod_container"}
}
reasons contains "a sysctl of the pod is not one that Kubernetes calls safe" if {
	container_type == "pod_sandbox"
	not allow_sysctls(input.OCI.Linux.Sysctl)
}
reasons contains "the sandbox container must bring no image, hooks, devices, ports or mappings, and have the sandbox's id" if {
	container_type == "pod_sandbox"
	not sandbox_alone
}
reasons contains "the command is not in the list" if {
	spec := spec_of(input.container_id)
	not input.process.Args in spec.exec
	input.process
}
reasons contains "an environment variable is missing" if {
	input.process
	not allow_env_complete(spec_of(input.container_id), input.process.Env)
}
reasons contains "the signal is not in the list" if {
	known
	is_number(input.signal)
	not input.signal in {2, 9, 15, 28}
}
reasons contains "the container is not known" if {
	valid_id(input.container_id)
	not input.OCI
	not known
}
reasons contains "a container that has to be started first was not" if {
	count(input) == 1
	some name in start_after
	not data.pstate[key("s", name)]
}
default listed_resource := false

listed_resource if GetResourceRequest

reasons contains "the resource is not in the list of the pod or of this container" if {
	input.path
	not input.file_type
	not input.signed_by
	not listed_resource
}

every_storage_allowed if {
	every storage in input.storages { allow_storage(create_spec, storage) }
}

sandbox_alone if {
	data.pstate.sandbox == input.container_id
	input.storages == []
	create_common
}

same_user(spec, user) if {
	user.UID == spec.user.uid
	user.GID == spec.user.gid
	user.Username == ""
	allow_groups(spec, user.AdditionalGids)
}

# ------------------------------------------------------------------------------------------------------- what this pod may do

