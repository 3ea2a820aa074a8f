//! `kata-cc measure se`: what the ultravisor says of a guest, read from its boot image.

use std::fs::File;
use std::path::PathBuf;

use anyhow::Context;
use kata_cc_firmware::measure::se::header::{Digests, Header, PlaintextFlags};
use kata_cc_firmware::measure::se::image::find_header;
use serde_json::{Value, json};

use crate::files;
use crate::output::{self, Format, Outcome, show};

/// Arguments of `measure se`.
#[derive(clap::Args)]
pub(crate) struct Se {
    /// Boot image, or its header alone.
    #[arg(value_name = "FILE")]
    image: PathBuf,
    /// Write the header into this file, for `images` in the broker's `[se]`.
    #[arg(long, value_name = "FILE")]
    header: Option<PathBuf>,
}

pub(super) fn run(args: &Se, format: Format) -> anyhow::Result<Outcome> {
    let path = args.image.display();
    let mut file = File::open(&args.image).with_context(|| format!("cannot open {path}"))?;
    let header = find_header(&mut file).with_context(|| format!("cannot measure {path}"))?;
    if let Some(to) = &args.header {
        files::write(to, &header.to_bytes()?)?;
    }
    show(format, "measure.se", &described(&header), || hex::encode(header.tags().tag))?;
    output::note(format, explained(&header));
    Ok(Outcome::Done)
}

/// All that a header says without a key.
pub(crate) fn described(header: &Header) -> Value {
    let (head, Digests { pld, ald, tld }) = (header.head(), header.head().digests());
    json!({
        "tag": hex::encode(header.tags().tag),
        "page_list_digest": hex::encode(pld),
        "address_list_digest": hex::encode(ald),
        "tweak_list_digest": hex::encode(tld),
        "pages": head.pages(),
        "host_keys": head.slots().iter().map(|slot| hex::encode(slot.phkh)).collect::<Vec<_>>(),
        "plaintext_flags": format!("{:#x}", head.flags().0),
        "pages_encrypted": !head.flags().contains(PlaintextFlags::PLAIN_PAGES),
        "dumping_allowed": head.flags().contains(PlaintextFlags::DUMPING),
    })
}

/// The same for people, and what is unusual of it.
pub(crate) fn explained(header: &Header) -> String {
    let (head, Digests { pld, ald, tld }) = (header.head(), header.head().digests());
    let mut text = output::line("page list digest", hex::encode(pld));
    text += &output::line("address list digest", hex::encode(ald));
    text += &output::line("tweak list digest", hex::encode(tld));
    text += &output::line("pages", head.pages());
    text += &output::line("plaintext flags", format_args!("{:#x}", head.flags().0));
    for slot in head.slots() {
        text += &output::line("host key", hex::encode(slot.phkh));
    }
    if head.flags().contains(PlaintextFlags::PLAIN_PAGES) {
        text += "warning: the pages are not encrypted: whoever has the image can read kernel, initrd and command line\n";
    }
    if head.flags().contains(PlaintextFlags::DUMPING) {
        text += "warning: the guest's memory may be dumped, to whoever has the image's communication key\n";
    }
    text.trim_end().to_owned()
}
