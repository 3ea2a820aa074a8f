//! The made-up vendor: a root, a key signing service under it, and their revocation lists.

use p521::PublicKey;
use rand_core::OsRng;
use rsa::{RsaPrivateKey, RsaPublicKey};

use crate::cert::{Draft, List, signing_service};
use crate::machine::Machine;

/// Smallest that verifiers take.
const BITS: usize = 2048;
const YEAR: u64 = 365 * 24 * 3600;
const ROOT: &str = "CN=Simulated root without security";

/// Root and signing service.
#[derive(Debug)]
pub struct Vendor {
    root: RsaPrivateKey,
    signing: RsaPrivateKey,
    now: u64,
}

impl Vendor {
    /// A new one, whose certificates and lists hold for a year from `now` on, in seconds since the epoch.
    #[must_use]
    pub fn new(now: u64) -> Self {
        let key = || RsaPrivateKey::new(&mut OsRng, BITS).expect("a key of a size that is taken");
        Self { root: key(), signing: key(), now }
    }

    /// The root's key.
    #[must_use]
    pub fn root_key(&self) -> &RsaPrivateKey {
        &self.root
    }

    /// The signing service's key.
    #[must_use]
    pub fn signing_key(&self) -> &RsaPrivateKey {
        &self.signing
    }

    /// A certificate of this vendor's time.
    #[must_use]
    pub fn draft<'a>(&self, subject: &'a str, issuer: &'a str, serial: u8, authority: bool) -> Draft<'a> {
        Draft { subject, issuer, serial, not_before: self.now, not_after: self.now + YEAR, authority }
    }

    /// The root's certificate, PEM.
    #[must_use]
    pub fn root(&self) -> String {
        self.draft(ROOT, ROOT, 1, true).signed(&RsaPublicKey::from(&self.root), &self.root)
    }

    /// The signing service's certificate, PEM.
    #[must_use]
    pub fn signing_service(&self) -> String {
        self.draft(signing_service(), ROOT, 2, false).signed(&RsaPublicKey::from(&self.signing), &self.root)
    }

    /// Revocation lists of both, PEM. These serial numbers are on the signing service's.
    #[must_use]
    pub fn lists(&self, revoked: &[u8]) -> String {
        let (this_update, next_update) = (self.now, self.now + YEAR);
        let root = List { issuer: ROOT, revoked: &[], this_update, next_update }.signed(&self.root);
        root + &List { issuer: signing_service(), revoked, this_update, next_update }.signed(&self.signing)
    }

    /// The host-key document of a machine, PEM.
    #[must_use]
    pub fn document(&self, machine: &Machine, serial: u8) -> String {
        let key: &PublicKey = machine.public_key();
        self.draft("CN=Simulated host key", signing_service(), serial, false).signed(key, &self.signing)
    }
}
