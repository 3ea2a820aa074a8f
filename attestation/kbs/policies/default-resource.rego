# Default release of secrets: to guests whose appraisal affirms them and whose launch measurement matched a reference value.
#
# A policy may also say what a guest is told that is refused, with a rule `disclose`: "nothing", "names" of the claims that do not affirm, which is
# what it is told without the rule, or their "values". Never what was expected.
#
# input: the claims of the attestation token. data: {"plugin", "resource-path": [repository, type, tag], "query"}.
package policy

import rego.v1

default allow := false

cpu := input.submods.cpu0

allow if {
	data.plugin == "resource"
	cpu["ear.status"] == "affirming"

	# "affirming" alone is also said of evidence in which nothing speaks about the executables.
	measured := cpu["ear.trustworthiness-vector"].executables
	measured >= 2
	measured <= 31
}
