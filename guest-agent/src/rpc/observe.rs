//! What the host may know: figures, events, the timeline, and the agent's abilities.

use std::fmt::Write;
use std::fs;
use std::sync::Arc;

use kata_cc_agent_protocol::rpc::agent;
use kata_cc_agent_protocol::rpc::protobuf::MessageField;
use kata_cc_agent_protocol::{DRIVER_EPHEMERAL, DRIVER_IMAGE_GUEST_PULL, DRIVER_LOCAL};
use kata_cc_policy::Allowed;

use crate::container::Kind;
use crate::container::cgroup::Group;
use crate::errors::{RpcError, at};
use crate::guest::Guest;

pub(super) async fn stats(
    guest: &Arc<Guest>,
    request: Allowed<agent::StatsContainerRequest>,
) -> Result<agent::StatsContainerResponse, RpcError> {
    let container = guest.containers.get(&request.get().container_id)?;
    let cgroup_stats = match container.kind {
        Kind::Sandbox { .. } => agent::CgroupStats::default(),
        Kind::Workload => Group::of(&container.id).stats().map_err(at("reading the container's figures"))?,
    };
    Ok(agent::StatsContainerResponse {
        cgroup_stats: MessageField::some(cgroup_stats),
        network_stats: network_stats().map_err(at("reading the network's figures"))?,
        ..Default::default()
    })
}

/// The pod's interfaces, as every container shares them.
fn network_stats() -> std::io::Result<Vec<agent::NetworkStats>> {
    Ok(parse_net_dev(&fs::read_to_string("/proc/net/dev")?))
}

fn parse_net_dev(text: &str) -> Vec<agent::NetworkStats> {
    text.lines()
        .filter_map(|line| {
            let (name, figures) = line.split_once(':')?;
            let figures: Vec<u64> = figures.split_ascii_whitespace().map(|figure| figure.parse().unwrap_or(0)).collect();
            let figure = |index: usize| figures.get(index).copied().unwrap_or(0);
            (name.trim() != "lo").then(|| agent::NetworkStats {
                name: name.trim().to_owned(),
                rx_bytes: figure(0),
                rx_packets: figure(1),
                rx_errors: figure(2),
                rx_dropped: figure(3),
                tx_bytes: figure(8),
                tx_packets: figure(9),
                tx_errors: figure(10),
                tx_dropped: figure(11),
                ..Default::default()
            })
        })
        .collect()
}

pub(super) async fn guest_details(_: &Arc<Guest>, _: Allowed<agent::GuestDetailsRequest>) -> Result<agent::GuestDetailsResponse, RpcError> {
    let details = agent::AgentDetails {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        init_daemon: true,
        storage_handlers: [DRIVER_IMAGE_GUEST_PULL, DRIVER_EPHEMERAL, DRIVER_LOCAL].map(str::to_owned).to_vec(),
        // There is no libseccomp in the guest: its boundary is the hardware's, not the filter's.
        supports_seccomp: false,
        extra_features: vec!["initdata-bound".to_owned(), "signed-policy".to_owned()],
        ..Default::default()
    };
    Ok(agent::GuestDetailsResponse { agent_details: MessageField::some(details), ..Default::default() })
}

pub(super) async fn metrics(guest: &Arc<Guest>, _: Allowed<agent::GetMetricsRequest>) -> Result<agent::Metrics, RpcError> {
    let mut text = String::new();
    let containers = guest.containers.all().len();
    let _ = writeln!(text, "# TYPE kata_cc_agent_containers gauge\nkata_cc_agent_containers {containers}");
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    if let Some(kib) = resident_kib(&status) {
        let bytes = kib.saturating_mul(1024);
        let _ = writeln!(text, "# TYPE kata_cc_agent_resident_memory_bytes gauge\nkata_cc_agent_resident_memory_bytes {bytes}");
    }
    let _ = writeln!(text, "# TYPE kata_cc_agent_phase_end_milliseconds gauge");
    // The first of each, which is what the pod's start waited for; a metric has one value.
    let mut seen = std::collections::BTreeSet::new();
    for entry in guest.timeline.entries().iter().filter(|entry| seen.insert(entry.phase.clone())) {
        let _ = writeln!(text, "kata_cc_agent_phase_end_milliseconds{{phase=\"{}\"}} {}", entry.phase, entry.end_ms);
    }
    Ok(agent::Metrics { metrics: text, ..Default::default() })
}

fn resident_kib(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

pub(super) async fn diagnostic_data(
    guest: &Arc<Guest>,
    request: Allowed<agent::GetDiagnosticDataRequest>,
) -> Result<agent::GetDiagnosticDataResponse, RpcError> {
    let request = request.get();
    let data = match request.log_type.as_str() {
        "timeline" => guest.timeline.json(),
        "termination_log" => super::container::termination_log(guest, &request.container_id)?,
        _ => {
            return Err(RpcError::Invalid("log_type: expected timeline or termination_log".to_owned()));
        }
    };
    Ok(agent::GetDiagnosticDataResponse { data, ..Default::default() })
}

pub(super) async fn oom_event(guest: &Arc<Guest>, _: Allowed<agent::GetOOMEventRequest>) -> Result<agent::OOMEvent, RpcError> {
    let container = guest.oom.next().await.ok_or(RpcError::State("no more events"))?;
    Ok(agent::OOMEvent { container_id: container.to_string(), ..Default::default() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interfaces_are_counted_but_loopback() {
        let text = "Inter-| Receive | Transmit\n face |bytes packets\n    lo: 1 1 0 0 0 0 0 0 1 1 0 0 0 0 0 0\n  eth0: 10 2 3 4 0 0 0 0 20 5 6 7 0 0 0 0\n";
        let stats = parse_net_dev(text);
        assert_eq!(stats.len(), 1);
        assert_eq!((stats[0].name.as_str(), stats[0].rx_bytes, stats[0].tx_dropped), ("eth0", 10, 7));
    }

    #[test]
    fn resident_memory_is_found() {
        assert_eq!(resident_kib("Name:\tx\nVmRSS:\t    1234 kB\n"), Some(1234));
        assert_eq!(resident_kib(""), None);
    }
}
