//! The roots TDX evidence may hang from: Intel's, compiled in, and simulated ones, each configured by name.
//!
//! **Invariant:** a root is trusted because it is in this set, never because evidence or collateral brought it along.

use super::cert::{Cert, CertError, common_name};

/// Why a root cannot be trusted as configured.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RootError {
    /// The certificate is unusable.
    #[error("simulated TDX root {name:?}: {source}")]
    Certificate {
        /// The configured name.
        name: String,
        /// Why.
        source: CertError,
    },
    /// Not a root.
    #[error(
        "simulated TDX root {name:?}: the file must hold one certificate, self-signed on P-256, that may sign certificates and revocation lists"
    )]
    NotARoot {
        /// The configured name.
        name: String,
    },
    /// A name that is empty or taken.
    #[error("simulated TDX root {name:?}: the name must be new, 1 to 64 characters, and not Intel's")]
    Name {
        /// The configured name.
        name: String,
    },
    /// The subject is that of a root already there.
    #[error("simulated TDX root {name:?}: a trusted root with subject {subject:?} is already there")]
    Subject {
        /// The configured name.
        name: String,
        /// The subject.
        subject: String,
    },
}

#[derive(Clone, Debug)]
pub(super) struct Root {
    pub(super) name: String,
    pub(super) simulated: bool,
    pub(super) cert: Cert,
}

/// A set of trusted roots.
#[derive(Clone, Debug)]
pub struct RootSet {
    roots: Vec<Root>,
}

impl RootSet {
    /// Intel's SGX root CA, which TDX hangs from as well.
    #[must_use]
    pub fn intel() -> Self {
        let pem = include_bytes!("../../roots/intel-sgx.pem");
        let certs = Cert::parse_pem(pem).expect("the compiled-in certificate parses; a test holds it");
        let cert = certs.into_iter().next().expect("the compiled-in file has one certificate; a test holds it");
        Self { roots: vec![Root { name: "Intel SGX Root CA".into(), simulated: false, cert }] }
    }

    /// Trusts a simulated root as well, given in PEM.
    ///
    /// Evidence under it is verified exactly as Intel's, with collateral under the same root, and marked `simulated` in the result and in the
    /// claims.
    ///
    /// # Errors
    /// When the name or the certificate is not fit.
    pub fn with_simulated(mut self, name: &str, pem: &[u8]) -> Result<Self, RootError> {
        let name = name.to_owned();
        let taken = name.is_empty() || name.chars().count() > 64 || name.to_ascii_lowercase().contains("intel");
        if taken || self.roots.iter().any(|root| root.name == name) {
            return Err(RootError::Name { name });
        }
        let mut certs = Cert::parse_pem(pem).map_err(|source| RootError::Certificate { name: name.clone(), source })?.into_iter();
        let (Some(cert), None) = (certs.next().filter(|cert| cert.is_authority() && cert.is_signed_by(cert)), certs.next()) else {
            return Err(RootError::NotARoot { name });
        };
        if self.roots.iter().any(|root| root.cert.subject() == cert.subject()) {
            return Err(RootError::Subject { name, subject: common_name(cert.subject()) });
        }
        self.roots.push(Root { name, simulated: true, cert });
        Ok(self)
    }

    /// Names of all roots, for messages.
    #[must_use]
    pub fn names(&self) -> Vec<&str> {
        self.roots.iter().map(|root| root.name.as_str()).collect()
    }

    pub(super) fn issuer_of(&self, cert: &Cert) -> Option<&Root> {
        self.roots.iter().find(|root| root.cert.subject() == cert.issuer())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn compiled_in_root_signs_itself() {
        let set = RootSet::intel();
        assert_eq!(set.names(), ["Intel SGX Root CA"]);
        let root = &set.roots[0];
        assert!(root.cert.is_authority() && root.cert.is_signed_by(&root.cert) && !root.simulated);
        assert_eq!(common_name(root.cert.subject()), "Intel SGX Root CA");
    }

    #[test]
    fn compiled_in_file_is_the_documented_one() {
        let digest = ring::digest::digest(&ring::digest::SHA256, include_bytes!("../../roots/intel-sgx.pem"));
        assert_eq!(hex::encode(digest), "194123d2a18be2beb525d0f0cc10a8998be1e63d7a0ecb723cb194f3e9833912");
    }

    #[test]
    fn intels_root_cannot_be_configured_as_simulated() {
        let intel = &include_bytes!("../../roots/intel-sgx.pem")[..];
        assert!(matches!(RootSet::intel().with_simulated("mine", intel), Err(RootError::Subject { .. })));
        assert!(matches!(RootSet::intel().with_simulated("my Intel", intel), Err(RootError::Name { .. })));
        assert!(matches!(RootSet::intel().with_simulated("", intel), Err(RootError::Name { .. })));
        assert!(matches!(RootSet::intel().with_simulated("mine", b"x"), Err(RootError::Certificate { .. })));
        assert!(matches!(RootSet::intel().with_simulated("mine", &[intel, intel].concat()), Err(RootError::NotARoot { .. })));
    }
}
