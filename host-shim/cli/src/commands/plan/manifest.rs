//! The pod in a Kubernetes manifest, as far as its machine is concerned.

use std::collections::BTreeMap;

use anyhow::{Context as _, bail};
use kata_cc_vmm::request::CpuLimit;
use serde::Deserialize;
use serde_json::Value;

use super::quantity;

/// Microseconds; the kubelet's default.
const PERIOD: u64 = 100_000;
/// The least quota that the kubelet sets, in microseconds.
const MIN_QUOTA: u64 = 1000;

/// What a pod asks of its machine.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Pod {
    pub(super) annotations: BTreeMap<String, String>,
    /// Absent unless every container has one.
    pub(super) cpu_limit: Option<CpuLimit>,
    /// In bytes; absent unless every container has one.
    pub(super) memory_limit: Option<u64>,
}

/// A pod, or the template of one.
#[derive(Deserialize)]
struct Template {
    #[serde(default)]
    metadata: Metadata,
    spec: Spec,
}

#[derive(Default, Deserialize)]
struct Metadata {
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Spec {
    containers: Vec<Container>,
    #[serde(default)]
    init_containers: Vec<Container>,
    /// Limits of the whole pod (KEP-2837), by which newer kubelets size a sandbox.
    resources: Option<Value>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Container {
    name: String,
    #[serde(default)]
    restart_policy: Option<String>,
    #[serde(default)]
    resources: Resources,
}

#[derive(Default, Deserialize)]
struct Resources {
    #[serde(default)]
    limits: BTreeMap<String, Value>,
}

impl Container {
    /// An init container that goes on beside the others.
    fn is_sidecar(&self) -> bool {
        self.restart_policy.as_deref() == Some("Always")
    }

    /// A limit in units of one `per_unit`-th; none and zero are the same.
    fn limit(&self, resource: &str, per_unit: u64) -> anyhow::Result<Option<u64>> {
        let Some(value) = self.resources.limits.get(resource) else { return Ok(None) };
        let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        let units = quantity::parse(&text, per_unit).with_context(|| format!("container {:?}, limit of {resource}", self.name))?;
        Ok((units > 0).then_some(units))
    }
}

impl Pod {
    /// Reads the one pod of a manifest, which may have other objects beside it.
    pub(super) fn read(text: &str) -> anyhow::Result<Self> {
        let objects: Vec<Value> = serde_saphyr::from_multiple(text).context("not YAML")?;
        let pods: Vec<&Value> = objects.iter().filter_map(template).collect();
        let [pod] = pods.as_slice() else {
            bail!("expected one pod or workload, found {} among {} objects", pods.len(), objects.len());
        };
        let template = Template::deserialize(*pod)?;
        if template.spec.resources.is_some() {
            bail!("expected limits at containers only, found spec.resources: how it changes what the shim is told is not known here");
        }
        let milli = template.spec.limit("cpu", 1000)?;
        Ok(Self {
            annotations: template.metadata.annotations,
            cpu_limit: milli
                .map(|milli| milli.saturating_mul(PERIOD / 1000).max(MIN_QUOTA))
                .map(|quota| anyhow::Ok(CpuLimit { quota: i64::try_from(quota)?, period: PERIOD }))
                .transpose()?,
            memory_limit: template.spec.limit("memory", 1)?,
        })
    }
}

/// Where an object has a pod.
fn template(object: &Value) -> Option<&Value> {
    match object.get("kind")?.as_str()? {
        "Pod" => Some(object),
        "Deployment" | "StatefulSet" | "DaemonSet" | "ReplicaSet" | "ReplicationController" | "Job" => object.pointer("/spec/template"),
        "CronJob" => object.pointer("/spec/jobTemplate/spec/template"),
        _ => None,
    }
}

impl Spec {
    /// A pod's limit as the kubelet sums it (KEP-753): all that run beside each other, or the largest that runs before them with the sidecars
    /// started by then. The kubelet hands it on only if every container has a limit.
    fn limit(&self, resource: &str, per_unit: u64) -> anyhow::Result<Option<u64>> {
        let (mut sidecars, mut before, mut unlimited) = (0_u64, 0_u64, false);
        for container in &self.init_containers {
            let limit = container.limit(resource, per_unit)?;
            let with_sidecars = sidecars.saturating_add(limit.unwrap_or(0));
            unlimited |= limit.is_none();
            if container.is_sidecar() {
                sidecars = with_sidecars;
            }
            before = before.max(with_sidecars);
        }
        let mut beside = sidecars;
        for container in &self.containers {
            let limit = container.limit(resource, per_unit)?;
            unlimited |= limit.is_none();
            beside = beside.saturating_add(limit.unwrap_or(0));
        }
        Ok((!unlimited && !self.containers.is_empty()).then_some(beside.max(before)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(containers: &str) -> Pod {
        Pod::read(&format!("kind: Pod\nmetadata: {{annotations: {{a: b}}}}\nspec:\n{containers}")).unwrap()
    }

    fn limits(containers: &str) -> (Option<i64>, Option<u64>) {
        let pod = pod(containers);
        (pod.cpu_limit.map(|limit| limit.quota), pod.memory_limit)
    }

    #[test]
    fn limits_are_summed_as_the_kubelet_does() {
        let container = |cpu: &str, memory: &str| format!("{{name: c, resources: {{limits: {{cpu: {cpu}, memory: {memory}}}}}}}");
        let (small, large) = (container("250m", "64Mi"), container("2", "1Gi"));
        let sidecar = small.replace("name: c", "name: c, restartPolicy: Always");
        let none = "{name: without}";
        for (spec, cpu, memory) in [
            (format!("  containers: [{small}]"), Some(25_000), Some(64 << 20)),
            (format!("  containers: [{small}, {small}]"), Some(50_000), Some(128 << 20)),
            // One that runs before and needs more, or less.
            (format!("  containers: [{small}, {small}]\n  initContainers: [{large}]"), Some(200_000), Some(1 << 30)),
            (format!("  containers: [{large}]\n  initContainers: [{small}]"), Some(200_000), Some(1 << 30)),
            // One that goes on beside the others, and beside those that start after it.
            (format!("  containers: [{small}]\n  initContainers: [{sidecar}]"), Some(50_000), Some(128 << 20)),
            (format!("  containers: [{small}]\n  initContainers: [{sidecar}, {large}]"), Some(225_000), Some((1 << 30) + (64 << 20))),
            (format!("  containers: [{small}]\n  initContainers: [{large}, {sidecar}]"), Some(200_000), Some(1 << 30)),
            // Without a limit for one there is none for the pod.
            (format!("  containers: [{small}, {none}]"), None, None),
            (format!("  containers: [{small}]\n  initContainers: [{none}]"), None, None),
            (format!("  containers: [{}]", container("1m", "1")), Some(1000), Some(1)),
            (format!("  containers: [{}]", container("0", "1Gi")), None, Some(1 << 30)),
        ] {
            assert_eq!(limits(&spec), (cpu, memory), "{spec}");
        }
    }

    #[test]
    fn finds_the_pod_among_other_objects_and_in_workloads() {
        let spec = "spec: {containers: [{name: c}]}";
        for text in [
            format!("kind: Pod\n{spec}"),
            format!("kind: ConfigMap\n---\nkind: Pod\n{spec}"),
            format!("kind: Deployment\nspec: {{template: {{{spec}}}}}"),
            format!("kind: CronJob\nspec: {{jobTemplate: {{spec: {{template: {{{spec}}}}}}}}}"),
        ] {
            assert!(Pod::read(&text).is_ok(), "{text}");
        }
        for (text, why) in [
            (String::new(), "found 0 among"),
            ("kind: Service".into(), "found 0 among 1"),
            (format!("kind: Pod\n{spec}\n---\nkind: Pod\n{spec}"), "found 2 among 2"),
            ("kind: Pod\nspec: {containers: 1}".into(), "invalid type"),
            ("kind: Pod\nspec: {}".into(), "containers"),
            ("kind: Pod\nspec: {containers: [{name: c, resources: {limits: {cpu: lots}}}]}".into(), "limit of cpu"),
            ("kind: Pod\nspec: {containers: [], resources: {limits: {cpu: 1}}}".into(), "spec.resources"),
            ("a: [".into(), "not YAML"),
        ] {
            let error = format!("{:#}", Pod::read(&text).unwrap_err());
            assert!(error.contains(why), "{text:?}: {error}");
        }
    }
}
