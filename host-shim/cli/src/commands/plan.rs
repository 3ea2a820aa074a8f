//! `kata-cc plan`: the machine that the shim would make for a pod, before anybody asks for it.
//!
//! It starts nothing and asks the host nothing: what only a host can tell (the guest's vsock address, the pod's interfaces) is assumed, and
//! said. Sizes are those that the kubelet hands to the shim.

mod manifest;
mod quantity;

use std::ffi::OsString;
use std::path::PathBuf;

use anyhow::Context as _;
use clap::ValueEnum;
use kata_cc_policy::Initdata;
use kata_cc_vmm::config::{Config, DEFAULT_PATH, PATH_VARIABLE};
use kata_cc_vmm::plan::{INITDATA_ANNOTATION, LaunchPlan, plan};
use kata_cc_vmm::qemu;
use kata_cc_vmm::request::{Host, InitdataDigest, Mac, PodRequest};
use kata_cc_vmm::tee::TeeKind;

use crate::files;
use crate::output::{self, Format, Outcome, show};

/// Arguments of `plan`.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    class: Class,
    /// Print QEMU's command line in place of the plan.
    #[arg(long)]
    command_line: bool,
}

/// A pod, and the class that it is planned for.
#[derive(clap::Args)]
pub(super) struct Class {
    /// Kubernetes manifest with one pod, or with one workload that has a pod's template (`-`: stdin).
    #[arg(value_name = "FILE")]
    manifest: PathBuf,
    /// The runtime class's configuration; default: the file that $KATA_CC_CONFIG names, else /etc/kata-cc/config.toml.
    #[arg(long, value_name = "FILE", conflicts_with = "tee")]
    config: Option<PathBuf>,
    /// Plan for a class of this TEE with nothing configured, in place of an installed one.
    #[arg(long, value_enum)]
    tee: Option<Tee>,
    /// Network interfaces of the pod.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u8).range(..=8))]
    interfaces: u8,
}

/// TEEs, and the simulation of one.
#[derive(Clone, Copy, ValueEnum)]
enum Tee {
    Snp,
    Tdx,
    Se,
    /// The simulated TEE, which protects nothing.
    Sim,
}

impl Tee {
    /// A class with every default; its files are where the documentation puts them.
    fn class(self) -> &'static str {
        match self {
            Self::Snp => {
                "tee = \"snp\"\nfirmware = \"/opt/kata-cc/share/AMDSEV.fd\"\nkernel = \"/opt/kata-cc/share/vmlinuz\"\ninitrd = \"/opt/kata-cc/share/initrd\"\n"
            }
            Self::Tdx => {
                "tee = \"tdx\"\nfirmware = \"/opt/kata-cc/share/OVMF.inteltdx.fd\"\nkernel = \"/opt/kata-cc/share/vmlinuz\"\ninitrd = \"/opt/kata-cc/share/initrd\"\n"
            }
            Self::Se => "tee = \"se\"\nkernel = \"/opt/kata-cc/share/guest.img\"\n",
            Self::Sim => {
                "tee = \"sim\"\nfirmware = \"/opt/kata-cc/share/firmware-sim.bin\"\nkernel = \"/opt/kata-cc/share/vmlinuz\"\ninitrd = \"/opt/kata-cc/share/simulation.cpio\"\n\
                 [simulation]\nkeys = \"/var/lib/kata-cc/tee-sim\"\n"
            }
        }
    }
}

/// The first address a guest can have.
const ASSUMED_CID: u32 = 3;

pub(crate) fn run(args: &Args, format: Format) -> anyhow::Result<Outcome> {
    let plan = args.class.plan()?;
    let command = words(&plan)?;
    let result = serde_json::json!({ "plan": plan, "command": command });
    let text = if args.command_line { shell(&command) } else { serde_json::to_string_pretty(&plan)? };
    show(format, "plan", &result, || text)?;
    warn_of_simulation(&plan, format);
    output::note(
        format,
        format!(
            "assumed: vsock address {ASSUMED_CID}, {} network interface(s), /dev/vhost-net on the host; QEMU inherits descriptors {} and up",
            args.class.interfaces,
            qemu::FIRST_FD
        ),
    );
    Ok(Outcome::Done)
}

/// Says of a simulated machine what it is not.
pub(super) fn warn_of_simulation(plan: &LaunchPlan, format: Format) {
    if plan.tee.kind() == TeeKind::Sim {
        output::note(
            format,
            "warning: the simulated TEE protects nothing: the host can read and change all of this guest; for development only",
        );
    }
}

impl Class {
    /// The plan of the pod's machine.
    pub(super) fn plan(&self) -> anyhow::Result<LaunchPlan> {
        let config = self.config()?;
        let name = self.manifest.display();
        let pod = manifest::Pod::read(&files::read_text(&self.manifest)?).with_context(|| format!("{name} does not describe a pod"))?;
        planned(&config, &pod, self.interfaces).with_context(|| format!("the pod of {name} cannot be planned"))
    }

    fn config(&self) -> anyhow::Result<Config> {
        if let Some(tee) = self.tee {
            return Ok(Config::parse(tee.class())?);
        }
        let named = self.config.clone().or_else(|| std::env::var_os(PATH_VARIABLE).map(PathBuf::from));
        let path = named.unwrap_or_else(|| DEFAULT_PATH.into());
        Config::load(&path).context("no class to plan for: name its configuration with --config, or a TEE with --tee")
    }
}

fn planned(config: &Config, pod: &manifest::Pod, interfaces: u8) -> anyhow::Result<LaunchPlan> {
    let initdata_digest = match pod.annotations.get(INITDATA_ANNOTATION) {
        Some(value) => Some(InitdataDigest::new(Initdata::from_annotation(value)?.digest().as_bytes())?),
        None => None,
    };
    let request = PodRequest {
        sandbox_id: "planned".parse()?,
        annotations: pod.annotations.clone(),
        cpu_limits: pod.cpu_limit.into_iter().collect(),
        memory_limits: pod.memory_limit.into_iter().collect(),
        initdata_digest,
        nics: (1..=interfaces).map(|number| Mac([2, 0, 0, 0, 0, number])).collect(),
        id_block: config.read_id_block()?,
        host: Host { vsock_cid: Some(ASSUMED_CID), vhost_net: true },
    };
    Ok(plan(config, &request)?)
}

/// QEMU and its arguments.
fn words(plan: &LaunchPlan) -> anyhow::Result<Vec<String>> {
    let program = OsString::from(plan.qemu.clone());
    let words = std::iter::once(program).chain(qemu::command(plan)?);
    words.map(|word| word.into_string().map_err(|word| anyhow::anyhow!("{} is not UTF-8", word.display()))).collect()
}

/// A command as a shell reads it, an option a line.
pub(super) fn shell(words: &[String]) -> String {
    let mut text = String::new();
    for (index, word) in words.iter().enumerate() {
        let gap = match index {
            0 => "",
            _ if word.starts_with('-') => " \\\n  ",
            _ => " ",
        };
        text += gap;
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_=.,:/@%+".contains(&byte);
        if !word.is_empty() && word.bytes().all(plain) {
            text += word;
        } else {
            text += &format!("'{}'", word.replace('\'', "'\\''"));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_quoted_for_a_shell() {
        let words = ["/q", "-append", "a b", "-object", "{\"it's\":1}", "-x", ""].map(str::to_owned);
        assert_eq!(shell(&words), "/q \\\n  -append 'a b' \\\n  -object '{\"it'\\''s\":1}' \\\n  -x ''");
    }
}
