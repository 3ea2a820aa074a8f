//! Against the real kernel, in namespaces made for the test; needs root.

use std::process::Command;

use super::*;

fn ip(arguments: &str) {
    let status = Command::new("ip").args(arguments.split(' ')).status().unwrap();
    assert!(status.success(), "ip {arguments}");
}

struct Netns(String);

impl Drop for Netns {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.0]).status();
    }
}

#[tokio::test]
async fn needs_root_reads_a_pods_network_and_joins_taps() {
    if !nix::unistd::geteuid().is_root() || Command::new("ip").arg("-V").output().is_err() {
        eprintln!("SKIPPED: needs root and iproute2");
        return;
    }
    let name = format!("kcc-test-{}", std::process::id());
    ip(&format!("netns add {name}"));
    let guard = Netns(name.clone());
    for command in [
        "link add eth0 address 02:42:ac:11:00:02 mtu 1400 type veth peer name peer0",
        "addr add 10.7.0.2/24 dev eth0",
        "link set eth0 up",
        "link set lo up",
        "route add default via 10.7.0.1 dev eth0",
        "neigh add 10.7.0.1 lladdr 02:42:ac:11:00:01 dev eth0 nud permanent",
    ] {
        ip(&format!("-n {name} {command}"));
    }
    let path = PathBuf::from(format!("/var/run/netns/{name}"));
    let network = PodNetwork::read(&path).await.unwrap();
    let interfaces: Vec<_> = network.interfaces().collect();
    assert_eq!(interfaces.len(), 1);
    assert_eq!((interfaces[0].name.as_str(), interfaces[0].mtu), ("eth0", 1400));
    assert_eq!(interfaces[0].hwAddr, "02:42:ac:11:00:02");
    assert_eq!((interfaces[0].IPAddresses[0].address.as_str(), interfaces[0].IPAddresses[0].mask.as_str()), ("10.7.0.2", "24"));
    assert_eq!(network.routes.len(), 1);
    assert_eq!((network.routes[0].dest.as_str(), network.routes[0].gateway.as_str()), ("", "10.7.0.1"));
    assert_eq!(network.neighbours[0].lladdr, "02:42:ac:11:00:01");
    let taps = network.attach().await.unwrap();
    assert_eq!(taps.len(), 1);
    let show = |what: &str| {
        let output = Command::new("tc").args(["-n", &name]).args(what.split(' ')).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    assert!(show("filter show dev eth0 ingress").contains("Redirect to device tap0_kata"), "{}", show("filter show dev eth0 ingress"));
    assert!(show("filter show dev tap0_kata ingress").contains("Redirect to device eth0"));
    network.detach().await;
    drop(taps);
    assert!(!show("qdisc show dev eth0").contains("ingress"));
    assert!(show("qdisc show dev tap0_kata").is_empty(), "the tap goes with its descriptor");
    drop(guard);
    network.detach().await;
    assert!(PodNetwork::read(&path).await.is_err());
}
