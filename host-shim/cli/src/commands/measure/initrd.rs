//! Whether an initrd may be signed for as what somebody calls it.
//!
//! Only the lie upward is refused: a production image among a developer's values does no harm, a simulated one among an owner's is a guest
//! whose reports anybody can make. Initrds of other projects say nothing of themselves; they are the signer's to know.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use anyhow::{Context, bail};
use kata_cc_firmware::initrd::{ImageKind, LABEL_PATH, label};
use kata_cc_policy::reference::Kind;
use ring::digest::SHA256;

use crate::output::{self, Format};

/// Refuses to sign for an initrd that says it is of another kind; `measured` is the SHA-256 of what was measured.
pub(super) fn check(path: &Path, measured: &[u8; 32], kind: Kind, format: Format) -> anyhow::Result<()> {
    let shown = path.display();
    let file = File::open(path).with_context(|| format!("cannot open {shown}"))?;
    let mut hashed = Hashed { inner: file, hash: ring::digest::Context::new(&SHA256) };
    let label = label(&mut hashed).with_context(|| format!("initrd {shown}: cannot tell what kind of image it is"))?;
    io::copy(&mut hashed, &mut io::sink()).with_context(|| format!("cannot read {shown}"))?;
    if hashed.hash.finish().as_ref() != measured {
        bail!("{shown} was changed while it was measured, or can be read only once; give a regular file that nobody writes to");
    }
    let Some(label) = label else {
        let note = format!(
            "note: initrd {shown} does not say what kind of image it is (no {LABEL_PATH} that can be read); signed as {kind} on your word"
        );
        output::note(format, note);
        return Ok(());
    };
    if !may_be_signed_as(label.kind(), kind) {
        bail!(
            "initrd {shown} says it is a {} image (version {}) and is not signed as {kind}; give the {kind} image{}",
            label.kind(),
            label.version(),
            if label.kind() == ImageKind::Bench { String::new() } else { format!(", or --kind {}", label.kind()) }
        );
    }
    Ok(())
}

/// Whether what says it is one may be called the other.
const fn may_be_signed_as(says: ImageKind, kind: Kind) -> bool {
    match says {
        ImageKind::Production => true,
        ImageKind::Debug => matches!(kind, Kind::Debug),
        ImageKind::Simulation => matches!(kind, Kind::Simulation),
        // Attests nothing.
        ImageKind::Bench => false,
    }
}

/// Hashes what is read through it.
struct Hashed<R> {
    inner: R,
    hash: ring::digest::Context,
}

impl<R: Read> Read for Hashed<R> {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(to)?;
        self.hash.update(to.get(..count).unwrap_or_default());
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use ring::digest::digest;

    use super::*;

    #[test]
    fn nothing_is_signed_as_more_than_it_says() {
        let may = |says| [Kind::Production, Kind::Debug, Kind::Simulation].map(|kind| may_be_signed_as(says, kind));
        assert_eq!(may(ImageKind::Production), [true; 3]);
        assert_eq!(may(ImageKind::Debug), [false, true, false]);
        assert_eq!(may(ImageKind::Simulation), [false, false, true]);
        assert_eq!(may(ImageKind::Bench), [false; 3]);
    }

    #[test]
    fn a_file_that_is_not_what_was_measured_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("initrd");
        std::fs::write(&path, "initrd").unwrap();
        let sha256 = |bytes: &[u8]| <[u8; 32]>::try_from(digest(&SHA256, bytes).as_ref()).unwrap();
        assert!(check(&path, &sha256(b"initrd"), Kind::Production, Format::Text).is_ok());
        let error = check(&path, &sha256(b"other"), Kind::Production, Format::Text).unwrap_err();
        assert!(error.to_string().contains("was changed"), "{error}");
    }
}
