//! What the agent holds while it serves: one value, shared by all requests, each part with its own synchronisation.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kata_cc_policy::Gate;

use crate::attest::Attester;
use crate::container::Containers;
use crate::container::oom::OomEvents;
use crate::container::runtime::Runtime;
use crate::image::Images;
use crate::kbs::Broker;
use crate::network::Network;
use crate::timeline::Timeline;

/// The guest.
#[derive(Debug)]
pub(crate) struct Guest {
    /// The policy in front of everything.
    pub(crate) gate: Arc<Gate>,
    /// Keys that may sign a replacement of the policy.
    pub(crate) policy_keys: kata_cc_policy::TrustedKeys,
    /// The pod's containers.
    pub(crate) containers: Arc<Containers>,
    /// Runs them.
    pub(crate) runtime: Runtime,
    /// Kills for want of memory, on their way to the host.
    pub(crate) oom: OomEvents,
    /// Interfaces and routes.
    pub(crate) network: Network,
    /// Pulls images.
    pub(crate) images: Images,
    /// The TEE.
    pub(crate) attester: Attester,
    /// The key broker, if initdata names one.
    pub(crate) broker: Option<Arc<Broker>>,
    /// What happened when.
    pub(crate) timeline: Arc<Timeline>,
    /// The pod.
    pub(crate) sandbox: Mutex<Sandbox>,
}

impl Guest {
    /// The pod, for a moment.
    pub(crate) fn sandbox(&self) -> MutexGuard<'_, Sandbox> {
        self.sandbox.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What `CreateSandbox` set up.
#[derive(Debug, Default)]
pub(crate) struct Sandbox {
    /// The pod's name, once there is one.
    pub(crate) id: Option<String>,
    /// Where storages shared by containers were made, and by which driver.
    pub(crate) storages: BTreeMap<PathBuf, String>,
    /// It was destroyed. Nothing is made in it any more.
    pub(crate) destroyed: bool,
}

#[cfg(test)]
impl Guest {
    /// A guest under a policy, outside of any machine: nothing can be pulled, and nothing runs.
    pub(crate) fn for_tests(rego: &str) -> Self {
        let (gate, policy_keys) = Self::gate_and_keys(rego);
        let timeline = Arc::new(Timeline::starting(std::time::Instant::now()));
        Self {
            gate: Arc::new(gate),
            policy_keys,
            containers: Arc::default(),
            runtime: Runtime::mute(),
            oom: OomEvents::default(),
            network: Network::open().unwrap(),
            images: Images::new(Default::default(), None, std::time::Duration::from_secs(5), Arc::clone(&timeline)),
            attester: Attester::mute(),
            broker: None,
            timeline,
            sandbox: Mutex::new(Sandbox::default()),
        }
    }

    /// A gate with a policy in force.
    pub(crate) fn gate_for_tests(rego: &str) -> Gate {
        Self::gate_and_keys(rego).0
    }

    fn gate_and_keys(rego: &str) -> (Gate, kata_cc_policy::TrustedKeys) {
        use kata_cc_policy::binding::DocumentDigests;
        use kata_cc_policy::envelope::PolicyPayload;
        use kata_cc_policy::initdata::InitdataBuilder;
        use kata_cc_policy::keys::KeyKind;
        use kata_cc_policy::{SignedPolicy, SigningKey, TrustedKeys};
        let key = SigningKey::generate(KeyKind::Ed25519).unwrap();
        let policy_keys = TrustedKeys::new([key.public_key()], 1).unwrap();
        let initdata = InitdataBuilder::new().document("workload.txt", "a pod").build().unwrap();
        let documents = DocumentDigests::of(&initdata);
        let payload = PolicyPayload { version: 1, rego: rego.to_owned(), data: serde_json::Map::new(), documents };
        let policy = SignedPolicy::verify(&SignedPolicy::sign(&payload, &[&key]).unwrap(), &policy_keys).unwrap();
        let gate = Gate::new();
        gate.install(policy.bind(&initdata).unwrap()).unwrap();
        (gate, policy_keys)
    }
}
