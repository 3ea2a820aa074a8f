//! `kata-cc measure`: the launch measurement of a guest, computed before it exists.
//!
//! The digest printed here is what the owner registers as reference value; hardware reports the same for a guest launched from
//! these bytes and no others.

mod id_block;
mod initrd;
mod manifest;
mod pod;
mod range;
pub(super) mod se;
mod tdx;

use std::path::PathBuf;

use anyhow::{Context, bail};
use base64::Engine as _;
use clap::{Subcommand, ValueEnum};
use kata_cc_firmware::measure::snp::{CpuModel, KernelHashes, LaunchDigest, SnpFirmware, SnpVcpus, Vmm};
use kata_cc_firmware::ready::ReadyFirmware;

use crate::files;
use crate::output::{self, Format, Outcome, show};

/// Which TEE's measurement.
#[derive(Subcommand)]
pub(crate) enum Command {
    /// AMD SEV-SNP: the 48-byte launch digest, in hex on stdout; with --range, those of all sizes and CPU models.
    Snp(Box<Snp>),
    /// Intel TDX: MRTD in hex on stdout; with --json, RTMR1 and RTMR2 too, and what cannot be predicted.
    Tdx(Box<tdx::Tdx>),
    /// IBM Secure Execution: the tag of a boot image, in hex on stdout; the digests of its pages on stderr.
    ///
    /// The tag is the image's identity and is read from it: it covers keys that were made for this image alone, so it cannot be computed
    /// from kernel and initrd, and differs for each build.
    Se(se::Se),
    /// The machine of a pod: by its manifest and its runtime class, as `kata-cc plan` has it.
    Pod(pod::Pod),
    /// Sign values that no image measures to: patch levels of platforms, keys that sign initdata.
    Values(Box<manifest::Values>),
}

/// Arguments of `measure snp`.
#[derive(clap::Args)]
pub(crate) struct Snp {
    /// Firmware image (OVMF, AmdSev build).
    #[arg(long, value_name = "FILE")]
    ovmf: PathBuf,
    /// Kernel, for QEMU's kernel-hashes=on.
    #[arg(long, value_name = "FILE")]
    kernel: Option<PathBuf>,
    /// Initrd.
    #[arg(long, value_name = "FILE", requires = "kernel")]
    initrd: Option<PathBuf>,
    /// Kernel command line.
    #[arg(long, value_name = "TEXT", requires = "kernel")]
    append: Option<String>,
    /// Number of vCPUs; with --range, the largest.
    #[arg(long, value_name = "N")]
    vcpus: u32,
    /// CPU model as QEMU names it, such as EPYC-v4. Only QEMU lets it into the measurement. With --range it may be given several times;
    /// without it, all known models are measured.
    #[arg(long, value_name = "MODEL")]
    vcpu_type: Vec<String>,
    /// SEV_FEATURES: 0x1 is SEV-SNP alone.
    #[arg(long, value_name = "HEX", default_value = "0x1", value_parser = parse_features)]
    guest_features: u64,
    /// Who launches the guest: QEMU, ec2 or gce.
    #[arg(long, value_name = "NAME", default_value = "QEMU")]
    vmm: String,
    /// Print the digests for 1 to N vCPUs, one a line, instead of the one for N.
    #[arg(long)]
    each_vcpu_count: bool,
    /// All digests for 1 to N vCPUs and each CPU model: as a table, or with --sign as a manifest for the broker.
    #[arg(long, conflicts_with_all = ["each_vcpu_count", "output_format"])]
    range: bool,
    #[command(flatten)]
    manifest: manifest::ManifestArgs,
    #[command(flatten)]
    id_block: id_block::IdBlockArgs,
    /// The launch digest that it must be, in hex; another is an error.
    #[arg(long, value_name = "HEX", conflicts_with = "range")]
    expect: Option<LaunchDigest>,
    /// Form of the digest on stdout.
    #[arg(long, value_enum, default_value_t = Encoding::Hex)]
    output_format: Encoding,
    /// Explain on stderr what was measured.
    #[arg(long, short)]
    verbose: bool,
}

/// Forms of a digest.
#[derive(Clone, Copy, ValueEnum)]
enum Encoding {
    /// Lower-case hexadecimal.
    Hex,
    /// Standard base64.
    Base64,
}

impl Encoding {
    fn encode(self, digest: &LaunchDigest) -> String {
        match self {
            Encoding::Hex => hex::encode(digest.as_bytes()),
            Encoding::Base64 => base64::engine::general_purpose::STANDARD.encode(digest.as_bytes()),
        }
    }
}

fn parse_features(text: &str) -> Result<u64, String> {
    let parsed = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(hex) => u64::from_str_radix(hex, 16),
        None => text.parse(),
    };
    parsed.map_err(|_| format!("expected a number such as 0x1, found {text:?}"))
}

pub(crate) fn run(command: &Command, format: Format) -> anyhow::Result<Outcome> {
    match command {
        Command::Snp(args) => snp(args, format),
        Command::Tdx(args) => tdx::run(args, format),
        Command::Se(args) => se::run(args, format),
        Command::Pod(args) => pod::run(args, format),
        Command::Values(args) => manifest::values(args, format),
    }
}

/// Says which build the firmware is, where it is known.
fn note_build(firmware_sha256: &[u8; 32], format: Format) {
    if let Some(build) = ReadyFirmware::by_sha256(firmware_sha256) {
        output::note(format, format!("known build     {build}"));
    }
}

/// The files that a guest is started from, each read once: what is measured is what the manifest names by its hash.
struct Inputs {
    vmm: Vmm,
    firmware_sha256: [u8; 32],
    firmware: SnpFirmware,
    kernel: Option<KernelHashes>,
}

impl Inputs {
    fn read(args: &Snp) -> anyhow::Result<Self> {
        let vmm = args.vmm.parse()?;
        let image = files::read(&args.ovmf)?;
        let firmware = SnpFirmware::parse(&image).with_context(|| format!("cannot measure {}", args.ovmf.display()))?;
        let kernel = match &args.kernel {
            Some(kernel) => Some(KernelHashes::of_files(kernel, args.initrd.as_deref(), args.append.as_deref().unwrap_or_default())?),
            None => None,
        };
        Ok(Self { vmm, firmware_sha256: files::sha256(&image), firmware, kernel })
    }
}

fn snp(args: &Snp, format: Format) -> anyhow::Result<Outcome> {
    if args.range {
        return range::run(args, format);
    }
    if args.manifest.wanted() {
        bail!("a manifest is signed for a range of guests; give --range with --sign");
    }
    let Inputs { vmm, firmware_sha256, firmware, kernel } = Inputs::read(args)?;
    let vcpu_type: CpuModel = match (args.vcpu_type.as_slice(), vmm) {
        ([name], _) => name.parse()?,
        ([], Vmm::Qemu) => bail!("QEMU's guests are measured with their CPU model; give --vcpu-type, such as EPYC-v4"),
        // Not part of the measurement there; any will do.
        ([], _) => "EPYC".parse()?,
        _ => bail!("one digest is of one CPU model; give --vcpu-type once, or --range"),
    };
    let launch = SnpVcpus { kernel: kernel.as_ref(), vcpus: args.vcpus, vcpu_type, guest_features: args.guest_features, vmm };
    let digests = firmware.digests_per_vcpu_count(&launch)?;
    let Some(last) = digests.last() else { bail!("no vCPUs, no digest; expected --vcpus 1 or more") };

    note_build(&firmware_sha256, format);
    if args.verbose {
        let show = |path: &Option<PathBuf>| path.as_ref().map_or("none".to_owned(), |p| p.display().to_string());
        output::note(format, format!("firmware        {} ({} metadata sections)", args.ovmf.display(), firmware.sections().len()));
        output::note(format, format!("kernel          {} (checked by the firmware: {})", show(&args.kernel), firmware.checks_kernel()));
        output::note(format, format!("initrd          {}", show(&args.initrd)));
        output::note(format, format!("command line    {:?}", args.append.as_deref().unwrap_or_default()));
        output::note(
            format,
            format!("vCPUs           {} x {vcpu_type}, guest features {:#x}, launched by {vmm}", args.vcpus, args.guest_features),
        );
    }
    if let Some(expected) = args.expect.filter(|expected| expected != last) {
        bail!(
            "measured {last}, expected {expected}: firmware, kernel, initrd, command line, vCPUs or their model are others than those of that digest"
        );
    }
    let signed = args.id_block.write(last)?;
    let encode = |digest: &LaunchDigest| args.output_format.encode(digest);
    let mut result = serde_json::json!({
        "digest": encode(last),
        "vcpus": args.vcpus,
        "vcpu_type": vcpu_type.to_string(),
        "guest_features": format!("{:#x}", args.guest_features),
        "vmm": vmm.to_string(),
    });
    if args.each_vcpu_count {
        result["digests"] = digests.iter().map(encode).collect();
    }
    if let Some(signed) = &signed {
        result["id_block"] = serde_json::to_value(signed)?;
    }
    show(format, "measure.snp", &result, || {
        if args.each_vcpu_count { digests.iter().map(|d| encode(d) + "\n").collect() } else { encode(last) }
    })?;
    if let Some(signed) = &signed {
        output::note(
            format,
            format!(
                "signed an ID block for guest policy {:#x}; its class starts machines of {} vCPU(s) alone",
                signed.policy(),
                args.vcpus
            ),
        );
    }
    Ok(Outcome::Done)
}
