# Default appraisal of evidence: strict, so that a broker nobody has configured yet trusts nothing.
#
# Result: AR4SI claims. 2..31 affirms, 32..95 warns, 96..127 contraindicates, 0 says nothing.
#
# Reference values it asks for (register them with POST /kbs/v0/reference-value):
#   snp_launch_measurement            launch digests (hex) of the guests that may have secrets
#   snp_bootloader, snp_tee_svn,      lowest acceptable security patch level of each part of the platform
#   snp_snp_svn, snp_microcode
#   mr_td, rtmr_1, rtmr_2             of TDX: firmware, kernel, and command line with initrd (hex) of the guests that may have secrets
#   rtmr_0, xfam                      of TDX: the virtual machines they may run in (hex); rtmr_0 differs with the number of CPUs and the memory
#   tdx_tcb_status                    of TDX: Intel's judgements that will do; without it, UpToDate alone
#   mr_seam                           of TDX: the modules that will do (hex); without it, any that Intel signed and judges so
#   se_tag                            of Secure Execution: header tags (hex) of the images that may have secrets
#   se_image_phkh                     of Secure Execution: the host keys (hex) that may have unpacked them; without it, any that is trusted
#   init_data                         digests (hex) of the initdata that may have secrets, or:
#   policy_trusted_keys               the keys (PEM) that sign such initdata, with
#   policy_min_version                the lowest version of the policy in it (a number); without it, initdata of any age will do
#
# Evidence of a simulated TEE is contraindicated whatever else it says: to work with a simulation, set a policy that names it
# (see simulated-attestation.rego).
package policy

import rego.v1

default executables := 33

default hardware := 97

default configuration := 36

trust_claims := {
	"executables": executables,
	"hardware": hardware,
	"configuration": configuration,
	"file-system": 0,
	"instance-identity": 0,
	"runtime-opaque": 0,
	"storage-opaque": 0,
	"sourced-data": 0,
}

# The verifier says `simulated: false` of genuine evidence. A claim that is missing is not false.
genuine if input.snp.simulated == false

# The reference values are asked for first, so that the audit log shows them beside what was found whatever else fails.
executables := 3 if {
	input.snp.measurement in query_reference_value("snp_launch_measurement")
	genuine
}

hardware := 2 if {
	patched("snp_bootloader", input.snp.reported_tcb_bootloader)
	patched("snp_tee_svn", input.snp.reported_tcb_tee)
	patched("snp_snp_svn", input.snp.reported_tcb_snp)
	patched("snp_microcode", input.snp.reported_tcb_microcode)
	genuine
}

patched(id, level) if {
	some floor in query_reference_value(id)
	is_number(floor)
	is_number(level)
	level >= floor
}

# The launch measurement does not cover initdata: the host picks it, and with it who signs the agent policy. So either this very initdata is
# registered, or every key that it lets sign policies is.
owner if input.init_data in query_reference_value("init_data")

# The second says nothing about the other documents of initdata by itself. The guest does: it asks for nothing before it has found that one of
# these keys signed the policy together with all of them. An agent policy of a form that binds nothing shows no version here, and will not do.
owner if {
	keys := input.init_data_claims["kata-cc.toml"].policy.trusted_keys
	is_array(keys)
	count(keys) > 0
	registered := query_reference_value("policy_trusted_keys")
	every key in keys {
		key in registered
	}
	version := input.init_data_claims["policy.dsse.json"].version
	is_number(version)
	every floor in policy_min_versions {
		is_number(floor)
		version >= floor
	}
}

# Nothing registered is an empty list: then initdata of any age will do, if these keys signed it.
policy_min_versions := floors if {
	floors := query_reference_value("policy_min_version")
	is_array(floors)
}

policy_min_versions := [floor] if {
	floor := query_reference_value("policy_min_version")
	not is_array(floor)
}

configuration := 3 if {
	owner
	input.snp.policy_debug_allowed == false
	input.snp.policy_migrate_ma == false
}

# A guest the host may debug has no secrets.
configuration := 97 if input.snp.policy_debug_allowed == true

# TDX. Reference values are asked for before anything else can fail, here too, but of TDs only.
genuine_td if input.tdx.simulated == false

executables := 3 if {
	input.tdx
	firmware := query_reference_value("mr_td")
	kernel := query_reference_value("rtmr_1")
	started_with := query_reference_value("rtmr_2")
	input.tdx.mr_td in firmware
	input.tdx.rtmr_1 in kernel
	input.tdx.rtmr_2 in started_with
	genuine_td
}

# The verifier has held module and platform against what Intel says of them: this is about which of Intel's judgements will do.
hardware := 2 if {
	input.tdx
	modules := query_reference_value("mr_seam")
	input.tdx.tcb_status in td_tcb_statuses
	input.tdx.tcb_status != "Revoked"
	input.tdx.collateral_expiration_status == "0"
	wanted(input.tdx.mr_seam, modules)
	genuine_td
}

default td_tcb_statuses := ["UpToDate"]

td_tcb_statuses := statuses if {
	statuses := query_reference_value("tdx_tcb_status")
	is_array(statuses)
	count(statuses) > 0
}

# Nothing registered is an empty list: then any will do.
wanted(_, registered) if {
	is_array(registered)
	count(registered) == 0
}

wanted(found, registered) if found in registered

# The host describes the virtual machine to the firmware, and RTMR0 has what it said, ACPI tables among it: code that the kernel runs.
configuration := 3 if {
	input.tdx
	machine := query_reference_value("rtmr_0")
	features := query_reference_value("xfam")
	owner
	input.tdx.rtmr_0 in machine
	input.tdx.xfam in features
	input.tdx.td_attributes.debug == false
	input.tdx.td_attributes.septve_disable == true
	input.tdx.td_attributes.migratable == false
	input.tdx.seam_attributes == zeros(8)
	input.tdx.mr_signer_seam == zeros(48)

	# Nobody sets these: what they would mean is not known.
	input.tdx.mr_owner == zeros(48)
	input.tdx.mr_owner_config == zeros(48)
	no_service_td(input.tdx.mr_service_td)
	no_service_td(input.tdx.cur_service_td_hash)
}

zeros(count) := concat("", ["00" | numbers.range(1, count)[_]])

# Null in quotes that do not have the field.
no_service_td(digest) if is_null(digest)

no_service_td(digest) if digest == zeros(48)

configuration := 97 if input.tdx.td_attributes.debug == true

# Secure Execution. The verifier takes the measurement of configured images alone, and of machines whose host keys IBM vouches for and has not
# withdrawn: there is no security version to compare.
genuine_se if input.se.simulated == false

executables := 3 if {
	input.se
	images := query_reference_value("se_tag")
	input.se.tag in images
	genuine_se
}

hardware := 2 if {
	input.se
	machines := query_reference_value("se_image_phkh")
	wanted(input.se.image_phkh, machines)
	genuine_se
}

# The image is encrypted and has its command line in it; what the host adds is initdata.
configuration := 3 if {
	input.se
	owner
	genuine_se
}
