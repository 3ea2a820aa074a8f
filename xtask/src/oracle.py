# Reads launches as JSON from a file, prints one line each: the digest, or "refused".
import json
import sys

from sevsnpmeasure import guest
from sevsnpmeasure.sev_mode import SevMode
from sevsnpmeasure.vcpu_types import CPU_SIGS
from sevsnpmeasure.vmm_types import VMMType

VMMS = {"qemu": VMMType.QEMU, "ec2": VMMType.ec2, "gce": VMMType.gce}

with open(sys.argv[1]) as file:
    launches = json.load(file)
for launch in launches:
    try:
        digest = guest.calc_launch_digest(
            SevMode.SEV_SNP, launch["vcpus"], CPU_SIGS[launch["vcpu_type"]], launch["firmware"], launch["kernel"],
            launch["initrd"], launch["append"], launch["guest_features"], vmm_type=VMMS[launch["vmm"]])
        print(digest.hex())
    except (RuntimeError, AttributeError):
        print("refused")
