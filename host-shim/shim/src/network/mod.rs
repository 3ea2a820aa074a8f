//! The pod's network, moved into the guest.
//!
//! The network plugin gave the pod's network namespace interfaces with addresses. They are read there; each gets a tap beside it, and all packets
//! are redirected between the two (tc mirred). The guest gets the same Ethernet and IP addresses, routes and neighbours, by RPC.
//! The tap lives as long as its descriptor, so nothing of it is left when the machine is gone.

mod netns;
mod read;
mod tap;

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use kata_cc_agent_protocol::rpc::types;
use kata_cc_vmm::request::Mac;

/// Why the pod's network cannot be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NetworkError {
    /// The namespace itself.
    #[error("cannot enter the pod's network namespace {}: {source}", path.display())]
    Namespace {
        /// Its path.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A question to the kernel, or an order.
    #[error("{step}: {source}")]
    Netlink {
        /// What was being done.
        step: &'static str,
        /// What the kernel said.
        source: rtnetlink::Error,
    },
    /// The tap.
    #[error("cannot create the tap {name}: {source}")]
    Tap {
        /// Its name.
        name: String,
        /// What the system said.
        source: io::Error,
    },
    /// More interfaces than make sense.
    #[error("the pod has more than {MAX_INTERFACES} interfaces")]
    TooMany,
}

/// A machine has some thirty PCI slots; no pod has more than a handful of interfaces.
const MAX_INTERFACES: usize = 16;
/// Bounds what a network namespace can make us send.
const MAX_ENTRIES: usize = 4096;

/// One interface of the pod.
#[derive(Debug, Clone)]
pub(crate) struct Interface {
    index: u32,
    name: String,
    mac: Mac,
    mtu: u32,
    addresses: Vec<types::IPAddress>,
}

/// The pod's network as the plugin set it up.
#[derive(Debug, Clone)]
pub(crate) struct PodNetwork {
    netns: PathBuf,
    interfaces: Vec<Interface>,
    /// In the order the guest must add them.
    pub(crate) routes: Vec<types::Route>,
    pub(crate) neighbours: Vec<types::ARPNeighbor>,
}

impl PodNetwork {
    /// Reads the network of a namespace.
    pub(crate) async fn read(netns: &Path) -> Result<Self, NetworkError> {
        let path = netns.to_owned();
        netns::within(netns, move |handle| async move { read::network(&handle, path).await }).await
    }

    /// The interfaces' Ethernet addresses, in order.
    pub(crate) fn macs(&self) -> Vec<Mac> {
        self.interfaces.iter().map(|interface| interface.mac).collect()
    }

    /// What the guest is told of its interfaces.
    pub(crate) fn interfaces(&self) -> impl Iterator<Item = types::Interface> {
        self.interfaces.iter().map(|interface| types::Interface {
            device: interface.name.clone(),
            name: interface.name.clone(),
            IPAddresses: interface.addresses.clone(),
            mtu: interface.mtu.into(),
            hwAddr: interface.mac.to_string(),
            type_: "veth".into(),
            ..Default::default()
        })
    }

    /// Makes a tap for each interface and joins them. The descriptors are in the interfaces' order.
    pub(crate) async fn attach(&self) -> Result<Vec<OwnedFd>, NetworkError> {
        let interfaces = self.interfaces.clone();
        netns::within(&self.netns, move |handle| async move {
            let mut taps = Vec::new();
            for (number, interface) in interfaces.iter().enumerate() {
                taps.push(tap::attach(&handle, number, interface).await?);
            }
            Ok(taps)
        })
        .await
    }

    /// Undoes what [`PodNetwork::attach`] left on the pod's interfaces. A namespace that is gone took it along.
    pub(crate) async fn detach(&self) {
        let interfaces = self.interfaces.clone();
        let detached = netns::within(&self.netns, move |handle| async move {
            for interface in &interfaces {
                tap::detach(&handle, interface).await;
            }
            Ok(())
        });
        if let Err(error) = detached.await {
            tracing::debug!(%error, "network namespace is gone already");
        }
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
