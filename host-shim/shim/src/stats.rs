//! A container's resource use, in the form containerd and the kubelet read: cgroup v1 metrics, which every containerd knows.

use containerd_shim_protos::cgroups::metrics::{CPUStat, CPUUsage, MemoryEntry, MemoryStat, Metrics, NetworkStat, PidsStat, Throttle};
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::{Message as _, MessageField};
use kata_cc_agent_protocol::rpc::agent::{MemoryData, StatsContainerResponse};

/// The name containerd looks the message up by.
const TYPE_URL: &str = "io.containerd.cgroups.v1.Metrics";

fn entry(data: &MemoryData) -> MemoryEntry {
    MemoryEntry { limit: data.limit, usage: data.usage, max: data.max_usage, failcnt: data.failcnt, ..Default::default() }
}

fn metrics(response: &StatsContainerResponse) -> Metrics {
    let stats = &response.cgroup_stats;
    let usage = &stats.cpu_stats.cpu_usage;
    let throttling = &stats.cpu_stats.throttling_data;
    let memory = &stats.memory_stats;
    let named = |name: &str| memory.stats.get(name).copied().unwrap_or_default();
    let (rss, inactive_file) = (named("anon"), named("inactive_file"));
    let network = response.network_stats.iter().map(|stats| NetworkStat {
        name: stats.name.clone(),
        rx_bytes: stats.rx_bytes,
        rx_packets: stats.rx_packets,
        rx_errors: stats.rx_errors,
        rx_dropped: stats.rx_dropped,
        tx_bytes: stats.tx_bytes,
        tx_packets: stats.tx_packets,
        tx_errors: stats.tx_errors,
        tx_dropped: stats.tx_dropped,
        ..Default::default()
    });
    Metrics {
        pids: MessageField::some(PidsStat { current: stats.pids_stats.current, limit: stats.pids_stats.limit, ..Default::default() }),
        cpu: MessageField::some(CPUStat {
            usage: MessageField::some(CPUUsage {
                total: usage.total_usage,
                kernel: usage.usage_in_kernelmode,
                user: usage.usage_in_usermode,
                per_cpu: usage.percpu_usage.clone(),
                ..Default::default()
            }),
            throttling: MessageField::some(Throttle {
                periods: throttling.periods,
                throttled_periods: throttling.throttled_periods,
                throttled_time: throttling.throttled_time,
                ..Default::default()
            }),
            ..Default::default()
        }),
        memory: MessageField::some(MemoryStat {
            cache: memory.cache,
            rss,
            inactive_file,
            total_cache: memory.cache,
            total_rss: rss,
            // The kubelet's working set is use without this.
            total_inactive_file: inactive_file,
            pg_fault: named("pgfault"),
            pg_maj_fault: named("pgmajfault"),
            total_pg_fault: named("pgfault"),
            total_pg_maj_fault: named("pgmajfault"),
            usage: MessageField::some(entry(&memory.usage)),
            swap: MessageField::some(entry(&memory.swap_usage)),
            kernel: MessageField::some(entry(&memory.kernel_usage)),
            ..Default::default()
        }),
        network: network.collect(),
        ..Default::default()
    }
}

/// The answer to a request for statistics.
pub(crate) fn to_any(response: &StatsContainerResponse) -> Any {
    let value = metrics(response).write_to_bytes().unwrap_or_default();
    Any { type_url: TYPE_URL.into(), value, ..Default::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn carries_what_the_kubelet_reads() {
        let mut response = StatsContainerResponse::default();
        let stats = response.cgroup_stats.mut_or_insert_default();
        stats.cpu_stats.mut_or_insert_default().cpu_usage.mut_or_insert_default().total_usage = 5;
        let memory = stats.memory_stats.mut_or_insert_default();
        memory.usage.mut_or_insert_default().usage = 4096;
        memory.stats.insert("inactive_file".into(), 1024);
        let any = to_any(&response);
        let read = Metrics::parse_from_bytes(&any.value).unwrap();
        assert_eq!((any.type_url.as_str(), read.cpu.usage.total, read.memory.usage.usage), (TYPE_URL, 5, 4096));
        assert_eq!(read.memory.total_inactive_file, 1024);
        to_any(&StatsContainerResponse::default());
    }
}
