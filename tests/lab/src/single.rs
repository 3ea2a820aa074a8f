//! A container without a pod, as `ctr run` makes one: machine and container in one, in a network namespace that somebody else set up.

use std::path::Path;
use std::process::Command;

use anyhow::{Result, ensure};

use crate::containerd::Containerd;
use crate::cri::PodSpec;
use crate::namespaces::{BRIDGE, GATEWAY};
use crate::process::{run, run_with};
use crate::world::{Recipe, SECRET, World};

const NAME: &str = "e2e-single";
/// An address of the lab's network that the network plugin does not give away.
const ADDRESS: &str = "10.88.77.9/24";

const ENDS: &str = "echo \"secret: $(wget -q -O - http://127.0.0.1:8006/cdh/resource/default/demo/secret)\"; exit 3";
const STAYS: &str = "trap 'exit 0' TERM; while :; do sleep 1 & wait $!; done";

/// Runs one to its end by `ctr run`, then one that stays, with what `ctr tasks` has for it.
pub(crate) fn single_container(world: &World) -> Result<()> {
    let network = Network::make()?;
    let pod = world.pod(&Recipe::script(NAME, ENDS))?;
    let output = start("--rm", &pod, world, &network).output()?;
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.code() == Some(3), "expected exit code 3, found {}: {out}{err}", output.status);
    ensure!(out == format!("secret: {SECRET}\n"), "the container printed {out:?} and {err:?}");

    let pod = world.pod(&Recipe::script(NAME, STAYS))?;
    run_with(&mut start("--detach", &pod, world, &network))?;
    let looked_at = look();
    run_with(&mut ctr(&["tasks", "delete", "--force", NAME]))?;
    run_with(&mut ctr(&["containers", "delete", NAME]))?;
    looked_at
}

fn look() -> Result<()> {
    let list = run_with(&mut ctr(&["tasks", "ls"]))?;
    ensure!(list.lines().any(|line| line.contains(NAME) && line.contains("RUNNING")), "ctr tasks ls: {list}");
    let shown = run_with(&mut ctr(&["tasks", "ps", NAME]))?;
    ensure!(shown.lines().count() == 2, "a head and one process, the machine's: {shown}");
    let metrics = run_with(&mut ctr(&["tasks", "metrics", "--format", "json", NAME]))?;
    ensure!(metrics.contains("\"usage\"") || metrics.contains("usage"), "no use of anything in ctr tasks metrics: {metrics}");
    // The policy says nothing of holding a program, and what it says nothing of is denied.
    let paused = ctr(&["tasks", "pause", NAME]).output()?;
    let said = String::from_utf8_lossy(&paused.stderr).into_owned();
    ensure!(!paused.status.success() && said.contains("PauseContainerRequest"), "ctr tasks pause: {said}");
    Ok(())
}

/// Debian's `ctr`, in a namespace of containerd's that the CRI plugin does not look into.
fn ctr(arguments: &[&str]) -> Command {
    let mut ctr = Command::new("/usr/bin/ctr");
    ctr.arg("--address").arg(Containerd::socket()).args(["--namespace", "single"]).args(arguments);
    ctr
}

/// `ctr run`. The root file system it wants is an empty directory of the host: what runs is the image that the guest pulls.
fn start(how: &str, pod: &PodSpec, world: &World, network: &Network) -> Command {
    let mut command = ctr(&["run", how, "--rootfs", "--runtime", "io.containerd.kata-cc.v2", "--env", "PATH=/bin", "--cwd", "/"]);
    command.arg("--runtime-config-path").arg(world.work().join(format!("{}.toml", pod.handler)));
    command.args(["--with-ns", &format!("network:{}", network.path())]);
    command.args(["--annotation", &format!("io.kubernetes.cri.image-name={}", pod.image)]);
    if let Some(initdata) = &pod.initdata {
        command.args(["--annotation", &format!("io.katacontainers.config.hypervisor.cc_init_data={initdata}")]);
    }
    command.arg(Path::new("/run/kcc-lab")).arg(&pod.name).args(&pod.command);
    command
}

/// A network namespace with one interface on the lab's bridge. Dropping it removes both.
struct Network;

impl Network {
    const NAMESPACE: &str = "kcc-single";

    fn make() -> Result<Self> {
        run("ip", ["netns", "add", Self::NAMESPACE])?;
        // From here on there is something to remove.
        let network = Self;
        run("ip", ["link", "add", "kcc-single0", "type", "veth", "peer", "name", "eth0", "netns", Self::NAMESPACE])?;
        run("ip", ["link", "set", "kcc-single0", "master", BRIDGE, "up"])?;
        let inside = |arguments: &[&str]| run("ip", [&["-netns", Self::NAMESPACE], arguments].concat());
        inside(&["addr", "add", ADDRESS, "dev", "eth0"])?;
        inside(&["link", "set", "eth0", "up"])?;
        inside(&["route", "add", "default", "via", GATEWAY])?;
        Ok(network)
    }

    fn path(&self) -> String {
        format!("/run/netns/{}", Self::NAMESPACE)
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        if let Err(error) = run("ip", ["netns", "del", Self::NAMESPACE]) {
            eprintln!("warning: {error:#}");
        }
    }
}
