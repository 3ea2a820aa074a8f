//! What the agent holds while it serves: one value, shared by all requests, each part with its own synchronisation.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

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
    pub(crate) containers: Containers,
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

/// What `CreateSandbox` set up.
#[derive(Debug, Default)]
pub(crate) struct Sandbox {
    /// The pod's name, once there is one.
    pub(crate) id: Option<String>,
    /// Where storages shared by containers were mounted.
    pub(crate) storages: BTreeSet<PathBuf>,
}
