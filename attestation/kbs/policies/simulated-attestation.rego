# Appraisal for a broker of a development set-up: evidence under a configured simulated root may be affirmed. Never for production.
#
# Everything but the hardware is appraised as the default policy does: the launch measurement must be a reference value.
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

executables := 3 if input.snp.measurement in query_reference_value("snp_launch_measurement")

executables := 3 if {
	input.tdx
	firmware := query_reference_value("mr_td")
	kernel := query_reference_value("rtmr_1")
	started_with := query_reference_value("rtmr_2")
	input.tdx.mr_td in firmware
	input.tdx.rtmr_1 in kernel
	input.tdx.rtmr_2 in started_with
}

hardware := 2 if input.snp.simulated == true

hardware := 2 if input.tdx.simulated == true

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

configuration := 97 if input.snp.policy_debug_allowed == true

configuration := 3 if {
	owner
	input.tdx.td_attributes.debug == false
	input.tdx.td_attributes.migratable == false
}

configuration := 97 if input.tdx.td_attributes.debug == true
