//! What the host has, as labels of a Kubernetes node, in the names of Node Feature Discovery (its documentation, "Feature labels",
//! `cpu-security`). A label says that something is there; what is not there, or does not tell, has none.

use std::collections::BTreeMap;

use super::host::{Host, Seen};

const PREFIX: &str = "feature.node.kubernetes.io/cpu-security.";

/// Label without the prefix, and the parameter of a kernel module that it follows.
const SWITCHES: [(&str, &str, &str); 4] = [
    ("sev.enabled", "kvm_amd", "sev"),
    ("sev.es.enabled", "kvm_amd", "sev_es"),
    ("sev.snp.enabled", "kvm_amd", "sev_snp"),
    ("tdx.enabled", "kvm_intel", "tdx"),
];

/// What is counted where a label is there: that label, the count's own, and the resource in `misc.capacity`.
const COUNTS: [(&str, &str, &str); 3] = [
    ("sev.enabled", "sev.asids", "sev"),
    ("sev.es.enabled", "sev.encrypted_state_ids", "sev_es"),
    ("tdx.enabled", "tdx.total_keys", "tdx"),
];

pub(super) fn labels(host: &Host<'_>) -> BTreeMap<String, String> {
    let mut labels = BTreeMap::new();
    let mut put = |name: &str, value: String| labels.insert(format!("{PREFIX}{name}"), value);
    for (name, module, parameter) in SWITCHES {
        if host.parameter(module, parameter) != Seen::Is(true) {
            continue;
        }
        put(name, "true".to_owned());
        for (_, count, resource) in COUNTS.into_iter().filter(|(switch, ..)| *switch == name) {
            if let Seen::Is(Some(found)) = host.capacity(resource) {
                put(count, found.to_string());
            }
        }
    }
    if host.text("/sys/firmware/uv/prot_virt_host") == Seen::Is("1".to_owned()) {
        put("se.enabled", "true".to_owned());
    }
    labels
}
