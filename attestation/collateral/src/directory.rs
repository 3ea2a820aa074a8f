//! Collateral in files an administrator put into one directory, and the names of those files.
//!
//! The name of a piece is `amd-kds_` or `intel-pcs_` and its path, with `_` for each `/`, `?` and `&`:
//! `amd-kds_vcek_v1_Genoa_crl`, `intel-pcs_tdx_certification_v4_tcb_fmspc=50806f000000`. The file holds the body as served. Where the service sends
//! the certificates that signed it in a header, they are in a file of the same name and `.issuer-chain.pem`, as PEM.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use kata_cc_verifier::collateral::{Collateral, Item, Need, Source};

use crate::MAX_BODY;

/// Longest file name that file systems take, with room for our endings.
const MAX_NAME: usize = 230;

/// Name of the file of a piece; `None` for a path that no verifier of ours makes.
#[must_use]
pub fn file_name(need: &Need) -> Option<String> {
    let source = match need.source {
        Source::AmdKds => "amd-kds",
        Source::IntelPcs => "intel-pcs",
    };
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '/' | '?' | '&' | '=' | '-' | '.' | ':');
    // Paths are made of fixed words and digits. Should one come to be otherwise, it leads nowhere rather than out of the directory.
    if need.path.is_empty() || !need.path.chars().all(plain) || need.path.contains("..") {
        return None;
    }
    let name = format!("{source}_{}", need.path.replace(['/', '?', '&'], "_"));
    (name.len() <= MAX_NAME).then_some(name)
}

/// The directory.
#[derive(Clone, Debug)]
pub struct Directory {
    path: PathBuf,
}

impl Directory {
    /// At this path.
    #[must_use]
    pub fn new(path: PathBuf) -> Self {
        Self { path }
    }

    /// A piece, if its file is there, can be read, and is no larger than any piece is.
    #[must_use]
    pub fn get(&self, need: &Need) -> Option<Item> {
        let name = file_name(need)?;
        let body = read(&self.path.join(&name))?;
        let issuer_chain = read(&self.path.join(format!("{name}.issuer-chain.pem"))).unwrap_or_default();
        Some(Item { body, issuer_chain })
    }

    /// Puts a piece there; its files are whole or not there at all. Returns the name of the body's file.
    ///
    /// # Errors
    /// When a file cannot be written, or the path has no file name.
    pub fn put(&self, need: &Need, item: &Item) -> std::io::Result<String> {
        let name =
            file_name(need).ok_or_else(|| std::io::Error::new(std::io::ErrorKind::InvalidInput, format!("{need} has no file name")))?;
        let write = |name: &str, bytes: &[u8]| {
            let mut file = tempfile::NamedTempFile::new_in(&self.path)?;
            std::io::Write::write_all(&mut file, bytes)?;
            file.persist(self.path.join(name)).map(drop).map_err(|error| error.error)
        };
        // The chain first: a body without it would be refused for want of a signature.
        if !item.issuer_chain.is_empty() {
            write(&format!("{name}.issuer-chain.pem"), &item.issuer_chain)?;
        }
        write(&name, &item.body)?;
        Ok(name)
    }

    /// What is there of `needs`.
    #[must_use]
    pub fn collect(&self, needs: &[Need]) -> Collateral {
        let mut collateral = Collateral::none();
        for need in needs {
            if let Some(item) = self.get(need) {
                collateral.insert(need.clone(), item);
            }
        }
        collateral
    }
}

/// A file's bytes; says why where there is a file that cannot be used.
pub(crate) fn read(path: &Path) -> Option<Vec<u8>> {
    let bytes = std::fs::File::open(path).and_then(|file| {
        let mut bytes = Vec::new();
        let limit = u64::try_from(MAX_BODY).unwrap_or(u64::MAX).saturating_add(1);
        file.take(limit).read_to_end(&mut bytes)?;
        Ok(bytes)
    });
    match bytes {
        Ok(bytes) if bytes.len() <= MAX_BODY => Some(bytes),
        Ok(_) => {
            tracing::warn!(path = %path.display(), "ignored: larger than {MAX_BODY} bytes, which no collateral is");
            None
        }
        Err(error) => {
            if error.kind() != std::io::ErrorKind::NotFound {
                tracing::warn!(path = %path.display(), %error, "ignored: cannot be read");
            }
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn need(path: &str) -> Need {
        Need { source: Source::IntelPcs, path: path.into() }
    }

    #[test]
    fn names_are_made_of_the_path() {
        let of = |path: &str| file_name(&need(path));
        assert_eq!(
            of("sgx/certification/v4/pckcrl?ca=platform&encoding=der").as_deref(),
            Some("intel-pcs_sgx_certification_v4_pckcrl_ca=platform_encoding=der")
        );
        let vcek = Need { source: Source::AmdKds, path: format!("vcek/v1/Turin/{}?fmcSPL=01&blSPL=03", "ab".repeat(8)) };
        assert_eq!(file_name(&vcek).as_deref(), Some("amd-kds_vcek_v1_Turin_abababababababab_fmcSPL=01_blSPL=03"));
        let longest = format!("vcek/v1/Milan/{}?blSPL=255&teeSPL=255&snpSPL=255&ucodeSPL=255", "ab".repeat(64));
        assert!(of(&longest).is_some());
    }

    #[test]
    fn a_path_that_could_lead_elsewhere_has_no_name() {
        for path in ["", "../crl", "a/../b", "a b", "a\\b", "a%2e", "a\0b", "\u{e9}", &"a".repeat(300)] {
            assert_eq!(file_name(&need(path)), None, "{path:?}");
        }
    }

    #[test]
    fn what_is_put_there_is_found_there() {
        let dir = tempfile::tempdir().unwrap();
        let directory = Directory::new(dir.path().into());
        let item = Item { body: b"body".to_vec(), issuer_chain: b"chain".to_vec() };
        assert_eq!(directory.put(&need("a/b"), &item).unwrap(), "intel-pcs_a_b");
        assert_eq!(directory.get(&need("a/b")), Some(item));
        assert!(directory.put(&need("../b"), &Item::default()).is_err());
    }

    #[test]
    fn reads_bodies_and_issuer_chains_and_nothing_too_large() {
        let dir = tempfile::tempdir().unwrap();
        let directory = Directory::new(dir.path().into());
        assert_eq!(directory.get(&need("a")), None);
        std::fs::write(dir.path().join("intel-pcs_a"), b"body").unwrap();
        assert_eq!(directory.get(&need("a")), Some(Item { body: b"body".to_vec(), issuer_chain: Vec::new() }));
        std::fs::write(dir.path().join("intel-pcs_a.issuer-chain.pem"), b"chain").unwrap();
        assert_eq!(directory.collect(&[need("a"), need("b")]).get(&need("a")).unwrap().issuer_chain, b"chain");
        std::fs::File::create(dir.path().join("intel-pcs_a")).unwrap().set_len(MAX_BODY as u64 + 1).unwrap();
        assert_eq!(directory.get(&need("a")), None);
    }
}
