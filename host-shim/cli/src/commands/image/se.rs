//! `kata-cc image se`: boot images of IBM Secure Execution.
//!
//! Format and encryption are `kata_cc_firmware`'s, host-key documents are verified by `kata_cc_verifier`'s own check, the one that brokers
//! have. Invariants: an image is encrypted to verified host keys alone; its keys are made for it, are written nowhere but, encrypted, into
//! it, and are gone when it is done.

use std::fs::File;
use std::io::{BufReader, BufWriter};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail};
use clap::Subcommand;
use kata_cc_firmware::measure::se::header::Point;
use kata_cc_firmware::measure::se::image::{Inputs, build};
use kata_cc_firmware::measure::se::seal::Secrets;
use kata_cc_verifier::se::{Documents, File as Named, HostKey};
use kata_cc_vmm::tee::se::Swiotlb;
use ring::rand::{SecureRandom, SystemRandom};
use serde_json::json;

use crate::commands::measure::se::{described, explained};
use crate::commands::verify::parse_time;
use crate::files;
use crate::output::{self, Format, Outcome, show};

/// What to do with such an image.
#[derive(Subcommand)]
pub(crate) enum Command {
    /// Make a boot image that machines with these host keys can start, and no others; prints its tag.
    ///
    /// The two loaders are s390 code of IBM's s390-tools and not part of kata-cc: take stage3a.bin and stage3b_reloc.bin from the package
    /// s390-tools of a distribution for s390x (below /usr/share/s390-tools, in pvimg or, before, genprotimg). All keys are made anew for
    /// each image, so the tag is another each time.
    Build(Box<Build>),
}

/// Arguments of `image se build`.
#[derive(clap::Args)]
pub(crate) struct Build {
    /// Kernel for s390x: the binary image, arch/s390/boot/bzImage.
    #[arg(long, value_name = "FILE")]
    kernel: PathBuf,
    /// Initrd.
    #[arg(long, value_name = "FILE")]
    initrd: PathBuf,
    /// Kernel command line, with swiotlb=SLOTS: what of the guest's memory is set aside for I/O with the host, in slots of 2 KiB. 262144 are
    /// the 512 MiB that a class expects by default; another size goes into `[se] swiotlb_mib` of the class, and without it Linux takes 64 MiB.
    #[arg(long, value_name = "TEXT")]
    append: String,
    /// First loader, stage3a.bin of s390-tools.
    #[arg(long, value_name = "FILE")]
    stage3a: PathBuf,
    /// Second loader, stage3b_reloc.bin of s390-tools.
    #[arg(long, value_name = "FILE")]
    stage3b: PathBuf,
    /// Host-key document of a machine that may start the image; may be given several times. Each must verify.
    #[arg(long, value_name = "FILE", required = true)]
    host_key_document: Vec<PathBuf>,
    /// Certificate of IBM's signing key, and those between it and the root; may be given several times.
    #[arg(long, value_name = "FILE", required = true)]
    certificate: Vec<PathBuf>,
    /// Revocation list, of each who issued one of the certificates; may be given several times.
    #[arg(long, value_name = "FILE", required = true)]
    crl: Vec<PathBuf>,
    /// Root certificate; may be given several times. None is built in.
    #[arg(long, value_name = "FILE", required = true)]
    root: Vec<PathBuf>,
    /// Where the image goes.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Write the header into this file as well, for `images` in the broker's `[se]`.
    #[arg(long, value_name = "FILE")]
    header: Option<PathBuf>,
    /// Verify the documents as of this time, such as 2026-01-31T12:00:00Z. Default: now.
    #[arg(long, value_name = "RFC3339", value_parser = parse_time)]
    now: Option<SystemTime>,
    /// Known to pvimg's users, who are told why it is not taken.
    #[arg(long, hide = true)]
    no_verify: bool,
}

pub(super) fn run(command: &Command, format: Format) -> anyhow::Result<Outcome> {
    match command {
        Command::Build(args) => build_image(args, format),
    }
}

fn build_image(args: &Build, format: Format) -> anyhow::Result<Outcome> {
    if args.no_verify {
        bail!(
            "--no-verify is refused: whoever made a host-key document that is not IBM's could read the image; \
             give --certificate, --crl and --root, which IBM and its root publish"
        );
    }
    let swiotlb = Swiotlb::of_command_line(&args.append).context("--append")?;
    let keys = host_keys(args)?;
    let points = keys.iter().map(|(_, key)| Point::from_coordinates(key.coordinates())).collect::<Result<Vec<_>, _>>()?;
    let (stage3a, stage3b) = (files::read(&args.stage3a)?, files::read(&args.stage3b)?);
    let inputs = Inputs {
        stage3a: &stage3a,
        stage3b: &stage3b,
        kernel: open(&args.kernel)?,
        initrd: Some(open(&args.initrd)?),
        command_line: &args.append,
        host_keys: &points,
    };
    let random = SystemRandom::new();
    let fill = |bytes: &mut [u8]| random.fill(bytes).map_err(|_| std::io::Error::other("the system's random source failed"));
    let secrets = Secrets::draw(fill)?;

    // Beside its place first: an image that is not whole has no name.
    let dir = args.out.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut file = tempfile::Builder::new()
        .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644))
        .tempfile_in(dir)
        .with_context(|| format!("cannot write in {}", dir.display()))?;
    let image = build(inputs, &secrets, &mut BufWriter::new(&mut file)).with_context(|| format!("cannot make {}", args.out.display()))?;
    if let Some(to) = &args.header {
        files::write(to, &image.header.to_bytes()?)?;
    }
    file.persist(&args.out).with_context(|| format!("cannot write {}", args.out.display()))?;

    let tag = hex::encode(image.header.tags().tag);
    let mut result = described(&image.header);
    result["image"] = json!(args.out);
    result["bytes"] = json!(image.size);
    result["swiotlb_mib"] = json!(swiotlb);
    result["documents"] = keys
        .iter()
        .map(|(document, key)| json!({ "document": document, "host_key": hex::encode(key.phkh()), "root": key.root() }))
        .collect();
    show(format, "image.se.build", &result, || tag.clone())?;
    output::note(format, explained(&image.header));
    output::note(format, format!("for the class: [se] swiotlb_mib = {} ({swiotlb} on the kernel's command line)", swiotlb.mib()));
    output::note(format, configured(args, &tag));
    Ok(Outcome::Done)
}

/// What the broker must know before a guest of this image can have anything.
fn configured(args: &Build, tag: &str) -> String {
    let header = match &args.header {
        Some(path) => format!("[se] images = [\"{}\"] in the broker's configuration", path.display()),
        None => {
            format!("kata-cc measure se {} --header FILE; then [se] images = [\"FILE\"] in the broker's configuration", args.out.display())
        }
    };
    format!("for the broker: {header},\nand the reference value se_tag: kata-cc measure values --text se_tag={tag} --sign KEY …")
}

fn open(path: &Path) -> anyhow::Result<BufReader<File>> {
    Ok(BufReader::new(File::open(path).with_context(|| format!("cannot open {}", path.display()))?))
}

/// The documents' keys. One that does not verify fails all: whoever names a machine wants the image to start there.
fn host_keys(args: &Build) -> anyhow::Result<Vec<(String, HostKey)>> {
    let now = args.now.unwrap_or_else(SystemTime::now).duration_since(UNIX_EPOCH).context("the time is before 1970")?.as_secs();
    let read = |paths: &[PathBuf]| -> anyhow::Result<Vec<(String, Vec<u8>)>> {
        paths.iter().map(|path| Ok((path.display().to_string(), files::read(path)?))).collect()
    };
    let (roots, certificates, lists, documents) =
        (read(&args.root)?, read(&args.certificate)?, read(&args.crl)?, read(&args.host_key_document)?);
    let documents = Documents::parse(&named(&roots), &named(&certificates), &named(&lists), &named(&documents))
        .context("the host-key documents cannot be verified")?;
    let key = |(document, key): (&str, Result<HostKey, _>)| {
        let key = key.with_context(|| format!("host-key document {document} is not to be trusted"))?;
        Ok((document.to_owned(), key))
    };
    documents.verify(now).into_iter().map(key).collect()
}

fn named(files: &[(String, Vec<u8>)]) -> Vec<Named<'_>> {
    files.iter().map(|(name, bytes)| Named { name, bytes }).collect()
}
