//! `measure tdx`: MRTD and RTMRs of a TD that QEMU boots directly.

use std::path::PathBuf;

use anyhow::{Context, bail};
use kata_cc_firmware::measure::tdx::{
    DirectBoot, Edk2, Event, GuestMemory, KernelHeader, MachineDigests, PageOrder, Register, TdxFirmware,
};
use kata_cc_policy::reference::{Digest, Entry, KernelInputs, TdxEntry, TdxInputs};
use serde_json::{Value, json};

use super::manifest::ManifestArgs;
use crate::files;
use crate::output::{self, Format, Outcome, show};

/// Why RTMR0 is not among the results.
const RTMR_0: &str = "has ACPI tables that QEMU makes of the whole machine; take it from a guest that you trust for other reasons, \
                      and hold the parts that --memory predicts against its event log";
/// Why RTMR3 is not.
const RTMR_3: &str = "the guest extends it while it runs";
/// Why nothing is known of what is started.
const NO_KERNEL: &str = "give --kernel; without a direct boot it has whatever is on the disks";

/// Arguments of `measure tdx`.
#[derive(clap::Args)]
pub(crate) struct Tdx {
    /// Firmware image with TDX metadata (OVMF's IntelTdx build), code and variables in one file.
    #[arg(long, value_name = "FILE")]
    firmware: PathBuf,
    /// Kernel that QEMU starts (-kernel): a bzImage that is an EFI application.
    #[arg(long, value_name = "FILE")]
    kernel: Option<PathBuf>,
    /// Initrd.
    #[arg(long, value_name = "FILE", requires = "kernel")]
    initrd: Option<PathBuf>,
    /// Kernel command line, as given to QEMU.
    #[arg(long, value_name = "TEXT", requires = "kernel")]
    append: Option<String>,
    /// How QEMU adds the firmware's pages: qemu9 (one by one: 9 and later) or qemu8 (patched versions up to 8).
    #[arg(long, value_name = "ORDER", default_value = "qemu9")]
    page_order: PageOrder,
    /// Release of edk2 that the firmware is built from: before-202411, 202411 (and 202502), 202505, 202508 (and later).
    #[arg(long, value_name = "RELEASE", default_value = "202508")]
    edk2: Edk2,
    /// QEMU up to 10.1 fills in the kernel's header before the firmware measures it; needs --memory.
    #[arg(long, requires_all = ["memory", "kernel"])]
    kernel_header_filled_in: bool,
    /// Memory of the guest in MiB (q35): predicts the parts of RTMR0 that depend on it.
    #[arg(long, value_name = "MIB", value_parser = parse_memory)]
    memory: Option<GuestMemory>,
    /// RTMR0 of a guest that is trusted for other reasons, for the manifest; may be given several times.
    #[arg(long, value_name = "HEX", requires = "sign")]
    rtmr_0: Vec<Digest<48>>,
    #[command(flatten)]
    manifest: ManifestArgs,
}

fn parse_memory(text: &str) -> Result<GuestMemory, String> {
    let mib = text.parse().map_err(|_| format!("expected a number of MiB such as 2048, found {text:?}"))?;
    GuestMemory::from_mib(mib).map_err(|e| e.to_string())
}

/// What was computed, from files that were each read once.
struct Measured {
    firmware_sha256: [u8; 32],
    mr_td: Register,
    machine: Option<MachineDigests>,
    boot: Option<DirectBoot>,
}

impl Measured {
    fn read(args: &Tdx) -> anyhow::Result<Self> {
        let image = files::read(&args.firmware)?;
        let firmware = TdxFirmware::parse(&image).with_context(|| format!("cannot measure {}", args.firmware.display()))?;
        let header = match args.memory {
            Some(memory) if args.kernel_header_filled_in => KernelHeader::FilledIn(memory),
            _ => KernelHeader::AsInFile,
        };
        let append = args.append.as_deref().unwrap_or_default();
        let boot = args.kernel.as_ref().map(|kernel| DirectBoot::of_files(kernel, args.initrd.as_deref(), append, header)).transpose()?;
        let machine = args.memory.map(|memory| firmware.machine_digests(memory)).transpose()?;
        Ok(Self { firmware_sha256: files::sha256(&image), mr_td: firmware.mrtd(args.page_order), machine, boot })
    }
}

pub(super) fn run(args: &Tdx, format: Format) -> anyhow::Result<Outcome> {
    let measured = Measured::read(args)?;
    super::note_build(&measured.firmware_sha256, format);
    if args.manifest.wanted() {
        if let Some(initrd) = measured.boot.as_ref().and_then(DirectBoot::initrd) {
            args.manifest.check_initrd(args.initrd.as_deref(), initrd.sha256(), format)?;
        }
        return args.manifest.write(vec![Entry::Tdx(entry(args, &measured)?)], "measure.tdx.manifest", format);
    }
    explain(args, &measured, format);
    show(format, "measure.tdx", &result(args, &measured), || measured.mr_td.to_string())?;
    Ok(Outcome::Done)
}

/// What the result depends on beside the files.
fn launched_by(args: &Tdx) -> String {
    let header = if args.kernel_header_filled_in { "filled in" } else { "as in the file" };
    format!("QEMU, page order {}, kernel header {header}, edk2 {}", args.page_order, args.edk2)
}

fn events(events: &[Event]) -> Value {
    events.iter().map(|event| json!({ "event": event.what, "digest": hex::encode(event.digest) })).collect()
}

fn result(args: &Tdx, measured: &Measured) -> Value {
    let mut missing = serde_json::Map::new();
    missing.insert("rtmr_0".to_owned(), RTMR_0.into());
    missing.insert("rtmr_3".to_owned(), RTMR_3.into());
    let mut result = json!({ "mr_td": measured.mr_td.to_string(), "launched_by": launched_by(args) });
    match &measured.boot {
        Some(boot) => {
            for (id, of) in [("rtmr_1", boot.rtmr_1(args.edk2)), ("rtmr_2", boot.rtmr_2(args.edk2))] {
                result[id] = Event::replay(&of).to_string().into();
                result["events"][id] = events(&of);
            }
        }
        None => {
            for id in ["rtmr_1", "rtmr_2"] {
                missing.insert(id.to_owned(), NO_KERNEL.into());
            }
        }
    }
    if let Some(machine) = &measured.machine {
        let parts = [("TD HOB", machine.td_hob), ("configuration firmware volume", machine.configuration)];
        result["events"]["rtmr_0"] = events(&parts.map(|(what, digest)| Event { what, digest }));
    }
    result["not_predicted"] = missing.into();
    result
}

/// The same on stderr, for people.
fn explain(args: &Tdx, measured: &Measured, format: Format) {
    let note = |label: &str, value: String| output::note(format, format!("{label:<15} {value}"));
    note("firmware", format!("{}, sha256 {}", args.firmware.display(), hex::encode(measured.firmware_sha256)));
    if let (Some(kernel), Some(boot)) = (&args.kernel, &measured.boot) {
        note("kernel", kernel.display().to_string());
        note("initrd", args.initrd.as_ref().map_or("none".to_owned(), |path| path.display().to_string()));
        note("command line", format!("{:?}, which the firmware makes {:?}", boot.append(), boot.load_options(args.edk2)));
    }
    note("launched by", launched_by(args));
    if let Some(boot) = &measured.boot {
        note("rtmr_1", Event::replay(&boot.rtmr_1(args.edk2)).to_string());
        note("rtmr_2", Event::replay(&boot.rtmr_2(args.edk2)).to_string());
    } else {
        note("rtmr_1, rtmr_2", format!("not predicted: {NO_KERNEL}"));
    }
    if let Some(machine) = &measured.machine {
        note("of rtmr_0", format!("TD HOB {}", hex::encode(machine.td_hob)));
        note("of rtmr_0", format!("configuration firmware volume {}", hex::encode(machine.configuration)));
    }
    note("rtmr_0", format!("not predicted: {RTMR_0}"));
    note("rtmr_3", format!("not predicted: {RTMR_3}"));
}

fn entry(args: &Tdx, measured: &Measured) -> anyhow::Result<TdxEntry> {
    let Some(boot) = &measured.boot else { bail!("a manifest says what is started; give --kernel with --sign") };
    if boot.rtmr_2(args.edk2).is_empty() {
        // Zeros are also what a kernel leaves there that measures nothing, whatever the host gave it.
        bail!("neither a command line nor an initrd is measured into RTMR2; give --append or --initrd with --sign");
    }
    let digest = |register: Register| Digest::new(*register.as_bytes());
    let inputs = TdxInputs {
        firmware: Digest::new(measured.firmware_sha256),
        boot: Some(KernelInputs {
            kernel: Digest::new(*boot.kernel_sha256()),
            initrd: boot.initrd().map(|initrd| Digest::new(*initrd.sha256())),
            cmdline: boot.append().to_owned(),
        }),
        vmm: launched_by(args),
    };
    Ok(TdxEntry {
        inputs,
        mr_td: vec![digest(measured.mr_td)],
        rtmr_0: args.rtmr_0.clone(),
        rtmr_1: vec![digest(Event::replay(&boot.rtmr_1(args.edk2)))],
        rtmr_2: vec![digest(Event::replay(&boot.rtmr_2(args.edk2)))],
    })
}
