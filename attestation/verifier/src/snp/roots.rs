//! The roots SNP evidence may hang from: AMD's, compiled in, and simulated ones, each configured by name.
//!
//! **Invariant:** a root is trusted because it is in this set, never because evidence brought it along.

use kata_cc_evidence::snp::Generation;

use super::cert::{Cert, CertError, common_name};
use super::crl::RevocationList;

/// Why a root cannot be trusted as configured.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RootError {
    /// The certificate is unusable.
    #[error("simulated root {name:?}: {source}")]
    Certificate {
        /// The configured name.
        name: String,
        /// Why.
        source: CertError,
    },
    /// Not a root.
    #[error("simulated root {name:?}: the first certificate must be self-signed by an RSA key and be a certificate authority")]
    NotARoot {
        /// The configured name.
        name: String,
    },
    /// A name that is empty or taken.
    #[error("simulated root {name:?}: the name must be new, 1 to 64 characters, and not one of AMD's")]
    Name {
        /// The configured name.
        name: String,
    },
    /// The subject is that of a root already there.
    #[error("simulated root {name:?}: a trusted root with subject {subject:?} is already there")]
    Subject {
        /// The configured name.
        name: String,
        /// The subject.
        subject: String,
    },
    /// A revocation list of no trusted root.
    #[error("revocation list is malformed or not signed by a trusted root")]
    RevocationList,
}

#[derive(Clone, Debug)]
pub(super) struct Root {
    pub(super) name: String,
    /// Set for AMD's roots, each of which serves one generation.
    pub(super) generation: Option<Generation>,
    pub(super) simulated: bool,
    pub(super) ark: Cert,
    pub(super) intermediates: Vec<Cert>,
    /// Lists configured, genuine; evidence and collateral may bring more.
    pub(super) lists: Vec<RevocationList>,
}

/// A set of trusted roots.
#[derive(Clone, Debug)]
pub struct RootSet {
    roots: Vec<Root>,
}

impl RootSet {
    /// AMD's roots for Milan, Genoa and Turin, with their ASK and ASVK.
    #[must_use]
    pub fn amd() -> Self {
        let files: [(Generation, &[u8]); 3] = [
            (Generation::Milan, include_bytes!("../../roots/milan.pem")),
            (Generation::Genoa, include_bytes!("../../roots/genoa.pem")),
            (Generation::Turin, include_bytes!("../../roots/turin.pem")),
        ];
        let roots = files.map(|(generation, pem)| {
            let certs = Cert::parse_pem(pem).expect("the compiled-in certificates parse; a test holds it");
            let (roots, intermediates): (Vec<Cert>, Vec<Cert>) = certs.into_iter().partition(Cert::is_self_issued);
            let ark = roots.into_iter().next().expect("each compiled-in file has one root; a test holds it");
            Root {
                name: format!("AMD {}", generation.name()),
                generation: Some(generation),
                simulated: false,
                ark,
                intermediates,
                lists: Vec::new(),
            }
        });
        Self { roots: roots.into() }
    }

    /// Trusts a simulated root as well. PEM: the root first, then any intermediates evidence may leave out.
    ///
    /// Evidence under it is verified exactly as AMD's and marked `simulated` in the result and in the claims.
    ///
    /// # Errors
    /// When the name or the certificate is not fit.
    pub fn with_simulated(mut self, name: &str, pem: &[u8]) -> Result<Self, RootError> {
        let name = name.to_owned();
        let taken = name.is_empty() || name.chars().count() > 64 || name.to_ascii_lowercase().contains("amd");
        if taken || self.roots.iter().any(|root| root.name == name) {
            return Err(RootError::Name { name });
        }
        let mut certs = Cert::parse_pem(pem).map_err(|source| RootError::Certificate { name: name.clone(), source })?.into_iter();
        let Some(ark) = certs.next().filter(|cert| cert.is_self_issued() && cert.is_authority() && cert.is_signed_by(cert)) else {
            return Err(RootError::NotARoot { name });
        };
        if self.roots.iter().any(|root| root.ark.subject() == ark.subject()) {
            return Err(RootError::Subject { name, subject: common_name(ark.subject()) });
        }
        let root = Root { name, generation: None, simulated: true, ark, intermediates: certs.collect(), lists: Vec::new() };
        self.roots.push(root);
        Ok(self)
    }

    /// Honours a revocation list in DER, as AMD gives it at `https://kdsintf.amd.com/vcek/v1/<Product>/crl`.
    ///
    /// # Errors
    /// When it is malformed or no trusted root signed it.
    pub fn with_revocation_list(mut self, der: &[u8]) -> Result<Self, RootError> {
        let mut genuine = false;
        for root in &mut self.roots {
            if let Some(list) = root.ark.revocation_list(der) {
                root.lists.push(list);
                genuine = true;
            }
        }
        if genuine { Ok(self) } else { Err(RootError::RevocationList) }
    }

    /// Names of all roots, for messages.
    #[must_use]
    pub fn names(&self) -> Vec<&str> {
        self.roots.iter().map(|root| root.name.as_str()).collect()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Root> {
        self.roots.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn compiled_in_roots_sign_themselves_and_their_intermediates() {
        let set = RootSet::amd();
        assert_eq!(set.names(), ["AMD Milan", "AMD Genoa", "AMD Turin"]);
        for root in set.iter() {
            let product = root.generation.expect("AMD's roots have one").name();
            assert!(root.ark.is_signed_by(&root.ark) && root.ark.is_authority());
            assert_eq!(common_name(root.ark.subject()), format!("ARK-{product}"));
            let names: Vec<_> = root.intermediates.iter().map(|cert| common_name(cert.subject())).collect();
            assert_eq!(names, [format!("SEV-{product}"), format!("SEV-VLEK-{product}")]);
            assert!(root.intermediates.iter().all(|cert| cert.is_signed_by(&root.ark) && cert.is_authority()));
        }
    }

    #[test]
    fn compiled_in_files_are_the_documented_ones() {
        for (bytes, digest) in [
            (&include_bytes!("../../roots/milan.pem")[..], "cc871f0d2294176386175d9b5b962e18556b15ec13f55f8698b5f7a07aebf0c7"),
            (&include_bytes!("../../roots/genoa.pem")[..], "7397ae50f4bac4699393121cf7ce9e72bac49f9f7b8c524be8df97e59ca151e3"),
            (&include_bytes!("../../roots/turin.pem")[..], "34251ef16c414387e2bf36a69b675329156361e6e8113241209e46ebbd6da93f"),
        ] {
            assert_eq!(hex::encode(ring::digest::digest(&ring::digest::SHA256, bytes)), digest);
        }
    }

    #[test]
    fn an_amd_root_cannot_be_configured_as_simulated() {
        let amd = &include_bytes!("../../roots/milan.pem")[..];
        assert!(matches!(RootSet::amd().with_simulated("mine", amd), Err(RootError::NotARoot { .. })));
        assert!(matches!(RootSet::amd().with_simulated("AMD Milan", amd), Err(RootError::Name { .. })));
        assert!(matches!(RootSet::amd().with_simulated("", amd), Err(RootError::Name { .. })));
        assert!(matches!(RootSet::amd().with_simulated("mine", b"x"), Err(RootError::Certificate { .. } | RootError::NotARoot { .. })));
        assert!(matches!(RootSet::amd().with_revocation_list(b"x"), Err(RootError::RevocationList)));
    }
}
