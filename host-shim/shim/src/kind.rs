//! Which part of a pod a container is, told from its annotations.

use std::collections::BTreeMap;

use kata_cc_agent_protocol::{ANNOTATION_CONTAINER_TYPE, CONTAINER_TYPE_CONTAINER, CONTAINER_TYPE_SANDBOX};
use kata_cc_vmm::plan::PlanError;
use kata_cc_vmm::request::{CpuLimit, SandboxId};

const CRI_TYPE: &str = "io.kubernetes.cri.container-type";
const CRI_SANDBOX_ID: &str = "io.kubernetes.cri.sandbox-id";
const CRIO_TYPE: &str = "io.kubernetes.cri-o.ContainerType";
const CRIO_SANDBOX_ID: &str = "io.kubernetes.cri-o.SandboxID";
const SANDBOX_CPU_QUOTA: &str = "io.kubernetes.cri.sandbox-cpu-quota";
const SANDBOX_CPU_PERIOD: &str = "io.kubernetes.cri.sandbox-cpu-period";
const SANDBOX_MEMORY: &str = "io.kubernetes.cri.sandbox-memory";

/// Which part of a pod a container is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The pod's own container: its life is the machine's.
    Sandbox,
    /// A container of the named pod.
    Container(SandboxId),
    /// A container without a pod (`ctr run`): machine and container in one.
    Single,
}

/// Why the annotations make no sense.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum KindError {
    /// Neither `sandbox` nor `container`.
    #[error("annotation {CRI_TYPE}: expected \"sandbox\" or \"container\", found {0:?}")]
    Type(String),
    /// No pod named.
    #[error("annotation {CRI_SANDBOX_ID} is missing for a container of a pod")]
    NoSandboxId,
    /// No usable name.
    #[error(transparent)]
    Id(#[from] PlanError),
    /// A number that is none.
    #[error("annotation {0}: expected a whole number")]
    Number(&'static str),
}

impl Kind {
    /// Reads the kind of a container.
    pub(crate) fn of(annotations: &BTreeMap<String, String>) -> Result<Self, KindError> {
        let get = |first: &str, second: &str| annotations.get(first).or_else(|| annotations.get(second));
        match get(CRI_TYPE, CRIO_TYPE).map(String::as_str) {
            None => Ok(Self::Single),
            Some("sandbox") => Ok(Self::Sandbox),
            Some("container") => Ok(Self::Container(get(CRI_SANDBOX_ID, CRIO_SANDBOX_ID).ok_or(KindError::NoSandboxId)?.parse()?)),
            Some(other) => Err(KindError::Type(other.chars().take(32).collect())),
        }
    }

    /// Whether the machine begins and ends with this container.
    pub(crate) fn owns_machine(&self) -> bool {
        matches!(self, Self::Sandbox | Self::Single)
    }

    /// What the agent is told. A container without a pod has an image of its own, so for the agent it is a container of a pod.
    pub(crate) fn annotation(&self) -> (String, String) {
        let value = match self {
            Self::Sandbox => CONTAINER_TYPE_SANDBOX,
            Self::Container(_) | Self::Single => CONTAINER_TYPE_CONTAINER,
        };
        (ANNOTATION_CONTAINER_TYPE.to_owned(), value.to_owned())
    }
}

/// The limits of a whole pod, as Kubernetes summed them. Absent or not positive means no limit.
pub(crate) fn pod_limits(annotations: &BTreeMap<String, String>) -> Result<(Option<CpuLimit>, Option<u64>), KindError> {
    let number = |name: &'static str| match annotations.get(name) {
        None => Ok(0),
        Some(text) => text.parse::<i64>().map_err(|_| KindError::Number(name)),
    };
    let quota = number(SANDBOX_CPU_QUOTA)?;
    let period = u64::try_from(number(SANDBOX_CPU_PERIOD)?).unwrap_or(0);
    let memory = u64::try_from(number(SANDBOX_MEMORY)?).unwrap_or(0);
    Ok(((quota > 0 && period > 0).then_some(CpuLimit { quota, period }), (memory > 0).then_some(memory)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn annotations(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect()
    }

    #[test]
    fn tells_sandboxes_containers_and_single_containers_apart() {
        assert_eq!(Kind::of(&annotations(&[])), Ok(Kind::Single));
        assert_eq!(Kind::of(&annotations(&[(CRI_TYPE, "sandbox")])), Ok(Kind::Sandbox));
        assert_eq!(Kind::of(&annotations(&[(CRI_TYPE, "container"), (CRI_SANDBOX_ID, "p")])), Ok(Kind::Container("p".parse().unwrap())));
        assert_eq!(Kind::of(&annotations(&[(CRIO_TYPE, "container"), (CRIO_SANDBOX_ID, "p")])), Ok(Kind::Container("p".parse().unwrap())));
        assert_eq!(Kind::of(&annotations(&[(CRI_TYPE, "container")])), Err(KindError::NoSandboxId));
        assert!(Kind::of(&annotations(&[(CRI_TYPE, "container"), (CRI_SANDBOX_ID, "../p")])).is_err());
        assert!(Kind::of(&annotations(&[(CRI_TYPE, "pod")])).is_err());
    }

    #[test]
    fn reads_the_limits_kubernetes_summed() {
        let all = annotations(&[(SANDBOX_CPU_QUOTA, "150000"), (SANDBOX_CPU_PERIOD, "100000"), (SANDBOX_MEMORY, "1048576")]);
        assert_eq!(pod_limits(&all), Ok((Some(CpuLimit { quota: 150_000, period: 100_000 }), Some(1_048_576))));
        assert_eq!(pod_limits(&annotations(&[(SANDBOX_CPU_QUOTA, "0"), (SANDBOX_CPU_PERIOD, "100000")])), Ok((None, None)));
        assert_eq!(pod_limits(&annotations(&[(SANDBOX_CPU_QUOTA, "-1"), (SANDBOX_CPU_PERIOD, "0")])), Ok((None, None)));
        assert_eq!(pod_limits(&annotations(&[(SANDBOX_MEMORY, "1Gi")])), Err(KindError::Number(SANDBOX_MEMORY)));
    }
}
