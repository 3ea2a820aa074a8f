//! A launch plan as a QEMU command line. Pure.
//!
//! Descriptors are inherited under fixed numbers ([`FIRST_FD`] and up), so the command line is a function of the plan alone.

use std::ffi::OsString;

use crate::plan::{LaunchPlan, PlanError, Vsock};
use crate::tee::Tee;

/// Inherited descriptors start here, above anything a freshly started shim has open itself.
pub const FIRST_FD: i32 = 100;

/// What an inherited descriptor is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FdRole {
    /// Our end's peer of the QMP socket pair.
    Qmp,
    /// Our end's peer of the console socket pair.
    Console,
    /// The connection to the vsock helper, made by us: a path would race with the helper's start.
    VsockHelper,
    /// `/dev/vhost-vsock` with the guest's address set.
    VhostVsock,
    /// The tap of the n-th interface.
    Tap(usize),
    /// `/dev/vhost-net` for the n-th interface.
    VhostNet(usize),
}

/// The descriptors a plan's QEMU inherits, in order from [`FIRST_FD`].
#[must_use]
pub fn inherited(plan: &LaunchPlan) -> Vec<FdRole> {
    let mut roles = vec![FdRole::Qmp, FdRole::Console];
    roles.push(match plan.vsock {
        Vsock::VhostUser { .. } => FdRole::VsockHelper,
        Vsock::Kernel { .. } => FdRole::VhostVsock,
    });
    for (index, nic) in plan.nics.iter().enumerate() {
        roles.push(FdRole::Tap(index));
        if nic.vhost {
            roles.push(FdRole::VhostNet(index));
        }
    }
    roles
}

fn fd(plan: &LaunchPlan, role: FdRole) -> i32 {
    let position = inherited(plan).iter().position(|&other| other == role).and_then(|position| i32::try_from(position).ok());
    FIRST_FD + position.expect("only roles of this plan are asked for")
}

struct Arguments(Vec<OsString>);

impl Arguments {
    fn flag(&mut self, name: &str) {
        self.0.push(name.into());
    }
    fn option(&mut self, name: &str, value: impl Into<OsString>) {
        self.0.push(name.into());
        self.0.push(value.into());
    }
}

/// The arguments QEMU is started with (without the binary itself).
pub fn command(plan: &LaunchPlan) -> Result<Vec<OsString>, PlanError> {
    let bus = if matches!(plan.tee, Tee::Se(_)) { "ccw" } else { "pci" };
    let virtio = plan.tee.virtio_options();
    let mut arguments = Arguments(Vec::new());
    arguments.option("-name", format!("sandbox-{}", plan.sandbox_id));
    // Nothing but what is named below: every default device is something the host gave the guest without being asked.
    for flag in ["-nodefaults", "-no-user-config", "-no-reboot"] {
        arguments.flag(flag);
    }
    arguments.option("-display", "none");
    arguments.option("-vga", "none");
    arguments.0.extend(plan.tee.arguments(plan));
    arguments.option("-smp", plan.vcpus.to_string());
    if plan.seccomp {
        arguments.option("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny");
    }
    if let Some(firmware) = &plan.firmware {
        arguments.option("-bios", firmware);
    }
    arguments.option("-kernel", &plan.kernel);
    if let Some(initrd) = &plan.initrd {
        arguments.option("-initrd", initrd);
    }
    if !matches!(plan.tee, Tee::Se(_)) {
        arguments.option("-append", &plan.cmdline);
    }
    arguments.option("-chardev", format!("socket,id=qmp,fd={}", fd(plan, FdRole::Qmp)));
    arguments.option("-mon", "chardev=qmp,mode=control");
    arguments.option("-chardev", format!("socket,id=console,fd={}", fd(plan, FdRole::Console)));
    if matches!(plan.tee, Tee::Se(_)) {
        arguments.option("-device", "sclpconsole,chardev=console");
    } else {
        arguments.option("-serial", "chardev:console");
    }
    arguments.option("-object", "rng-random,id=rng0,filename=/dev/urandom");
    arguments.option("-device", format!("virtio-rng-{bus},rng=rng0{virtio}"));
    match &plan.vsock {
        Vsock::VhostUser { .. } => {
            arguments.option("-chardev", format!("socket,id=vsock,fd={}", fd(plan, FdRole::VsockHelper)));
            // Without event indices each side is always told of new work. With them, under load, a wake-up was once seen to get lost for good:
            // every request was answered only when the next one came. Being told too often costs nothing that can be measured.
            arguments.option("-device", format!("vhost-user-vsock-{bus},chardev=vsock,event_idx=off{virtio}"));
        }
        Vsock::Kernel { cid } => {
            arguments.option("-device", format!("vhost-vsock-{bus},vhostfd={},guest-cid={cid}{virtio}", fd(plan, FdRole::VhostVsock)));
        }
    }
    for disk in &plan.disks {
        let read_only = if disk.read_only { "on" } else { "off" };
        let id = &disk.id;
        arguments
            .option("-blockdev", path_option(&format!("driver=file,node-name={id}-file,read-only={read_only},filename="), &disk.path)?);
        arguments.option("-blockdev", format!("driver=raw,node-name={id},read-only={read_only},file={id}-file"));
        arguments.option("-device", format!("virtio-blk-{bus},drive={id},serial={id}{virtio}"));
    }
    for (index, nic) in plan.nics.iter().enumerate() {
        let vhost = if nic.vhost { format!(",vhost=on,vhostfd={}", fd(plan, FdRole::VhostNet(index))) } else { String::new() };
        let rom = if bus == "pci" { ",romfile=" } else { "" };
        arguments.option("-netdev", format!("tap,id=net{index},fd={}{vhost}", fd(plan, FdRole::Tap(index))));
        arguments.option("-device", format!("virtio-net-{bus},netdev=net{index},mac={}{rom}{virtio}", nic.mac));
    }
    Ok(arguments.0)
}

fn path_option(prefix: &str, path: &std::path::Path) -> Result<OsString, PlanError> {
    let text = path.to_str().ok_or_else(|| PlanError::NotUtf8(path.to_owned()))?;
    if text.contains(',') {
        return Err(PlanError::Comma(path.to_owned()));
    }
    Ok(format!("{prefix}{text}").into())
}

/// The vsock helper's command line (without the binary itself).
#[must_use]
pub fn vsock_helper(cid: u32, device_socket: &std::path::Path, socket: &std::path::Path) -> Vec<OsString> {
    let mut vm = OsString::from(format!("guest-cid={cid},socket="));
    vm.push(device_socket);
    vm.push(",uds-path=");
    vm.push(socket);
    vec!["--vm".into(), vm]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::plan::plan;
    use crate::plan::tests::{config, request};
    use crate::request::Host;

    fn line(config: &Config, nics: &[&str]) -> String {
        let mut request = request();
        request.nics = nics.iter().map(|mac| mac.parse().unwrap()).collect();
        request.host = Host { vsock_cid: Some(77), vhost_net: true };
        let arguments = command(&plan(config, &request).unwrap()).unwrap();
        arguments
            .iter()
            .map(|argument| argument.to_str().unwrap().to_owned())
            .collect::<Vec<_>>()
            .join("\n")
            .replace("\n-", " \n-")
            .replace("\n", " ")
    }

    fn golden(actual: &str, expected: &str) {
        let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(words(actual), words(expected), "\nfull line: {actual}");
    }

    #[test]
    fn simulated_tee_command_line_is_as_reviewed() {
        golden(&line(&config(""), &["02:42:ac:11:00:02"]), include_str!("../tests/golden/sim.txt"));
    }

    #[test]
    fn snp_command_line_is_as_reviewed() {
        golden(&line(&class("snp", ""), &["02:42:ac:11:00:02"]), include_str!("../tests/golden/snp.txt"));
    }

    #[test]
    fn tdx_command_line_is_as_reviewed() {
        golden(&line(&class("tdx", ""), &[]), include_str!("../tests/golden/tdx.txt"));
    }

    /// A class with files, and with more of its own.
    fn class(tee: &str, more: &str) -> Config {
        Config::parse(&format!("tee = \"{tee}\"\nfirmware = \"/f\"\nkernel = \"/k\"\ninitrd = \"/i\"\n{more}")).unwrap()
    }

    #[test]
    fn command_lines_of_every_option_are_as_reviewed() {
        let snp = class("snp", include_str!("../tests/golden/snp-options.toml"));
        golden(&line(&snp, &[]), include_str!("../tests/golden/snp-options.txt"));
        let tdx = class("tdx", include_str!("../tests/golden/tdx-options.toml"));
        golden(&line(&tdx, &[]), include_str!("../tests/golden/tdx-options.txt"));
    }

    #[test]
    fn secure_execution_command_line_is_as_reviewed() {
        let se = |more: &str, nics: &[&str]| line(&Config::parse(&format!("tee = \"se\"\nkernel = \"/k\"\n{more}")).unwrap(), nics);
        golden(&se("", &["02:42:ac:11:00:02"]), include_str!("../tests/golden/se.txt"));
        let options = include_str!("../tests/golden/se-options.toml");
        golden(&se(options, &[]), include_str!("../tests/golden/se-options.txt"));
    }

    #[test]
    fn every_real_tee_asks_qemu_for_its_protection_and_shares_no_memory() {
        for tee in ["snp", "tdx", "se"] {
            let files = if tee == "se" { "kernel = \"/k\"" } else { "firmware = \"/f\"\nkernel = \"/k\"\ninitrd = \"/i\"" };
            let line = line(&Config::parse(&format!("tee = \"{tee}\"\n{files}\n")).unwrap(), &[]);
            assert!(line.contains("confidential-guest-support="), "{line}");
            assert!(!line.contains("share=on"), "{line}");
        }
    }
}
