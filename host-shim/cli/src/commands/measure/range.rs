//! `measure snp --range`: the digests of every size and CPU model of an image.

use anyhow::bail;
use kata_cc_firmware::measure::snp::{CpuDigests, CpuModel, SnpVcpus, Vmm};
use kata_cc_policy::reference::{Digest, Entry, Features, KernelInputs, SnpDigests, SnpEntry, SnpInputs};
use serde_json::json;

use super::{Inputs, Snp};
use crate::output::{Format, Outcome, show};

pub(super) fn run(args: &Snp, format: Format) -> anyhow::Result<Outcome> {
    let inputs = Inputs::read(args)?;
    if let Some(hashes) = &inputs.kernel {
        args.manifest.check_initrd(args.initrd.as_deref(), hashes.initrd(), format)?;
    }
    let models: Vec<CpuModel> = match args.vcpu_type.as_slice() {
        [] => CpuModel::NAMES.iter().map(|(name, signature)| CpuModel::Named(name, *signature)).collect(),
        names if inputs.vmm == Vmm::Qemu => names.iter().map(|name| name.parse()).collect::<Result<_, _>>()?,
        _ => bail!("{} does not let the CPU model into the measurement; leave --vcpu-type out", inputs.vmm),
    };
    let largest = SnpVcpus {
        kernel: inputs.kernel.as_ref(),
        vcpus: args.vcpus,
        // Each of `models` takes its place.
        vcpu_type: "EPYC".parse()?,
        guest_features: args.guest_features,
        vmm: inputs.vmm,
    };
    let cpus = inputs.firmware.digests_per_cpu(&largest, &models)?;
    super::note_build(&inputs.firmware_sha256, format);
    let entry = SnpEntry { inputs: described(args, &inputs), cpus: cpus.iter().map(listed).collect() };
    if args.manifest.wanted() {
        return args.manifest.write(vec![Entry::Snp(entry)], "measure.snp.manifest", format);
    }
    show(format, "measure.snp.range", &json!({ "entry": entry }), || table(&entry))?;
    Ok(Outcome::Done)
}

fn described(args: &Snp, inputs: &Inputs) -> SnpInputs {
    let boot = inputs.kernel.as_ref().map(|hashes| KernelInputs {
        kernel: Digest::new(*hashes.kernel()),
        initrd: args.initrd.as_ref().map(|_| Digest::new(*hashes.initrd())),
        cmdline: args.append.clone().unwrap_or_default(),
    });
    SnpInputs {
        firmware: Digest::new(inputs.firmware_sha256),
        boot,
        vmm: inputs.vmm.to_string(),
        guest_features: Features(args.guest_features),
    }
}

fn listed(cpu: &CpuDigests) -> SnpDigests {
    SnpDigests {
        cpu_models: cpu.models.iter().map(ToString::to_string).collect(),
        cpu_signature: cpu.signature.map(|signature| signature.value()),
        launch_digests: cpu.digests.iter().map(|digest| Digest::new(*digest.as_bytes())).collect(),
    }
}

/// A digest, its number of vCPUs and its CPU models on each line.
fn table(entry: &SnpEntry) -> String {
    let mut out = String::new();
    for cpu in &entry.cpus {
        let models = if cpu.cpu_models.is_empty() { "any CPU".to_owned() } else { cpu.cpu_models.join(",") };
        for (i, digest) in cpu.launch_digests.iter().enumerate() {
            out.push_str(&format!("{digest} {} {models}\n", i + 1));
        }
    }
    out
}
