# Appraisal for trying CoCo's clients: affirms evidence that anybody can make. Whoever reaches a broker with this policy can read its secrets.
package policy

import rego.v1

default trusted := 97

trust_claims := {
	"executables": trusted,
	"hardware": trusted,
	"configuration": trusted,
	"file-system": 0,
	"instance-identity": 0,
	"runtime-opaque": 0,
	"storage-opaque": 0,
	"sourced-data": 0,
}

trusted := 2 if input.sample.simulated == true
