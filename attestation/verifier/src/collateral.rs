//! What verification needs beside the evidence: certificates, revocation lists, TCB levels. Who fetches and keeps it is the caller's business.
//!
//! **Invariant:** collateral is signed by its maker and is checked like evidence; where it came from is no reason for trust. Its absence
//! never makes a check pass.

use std::collections::BTreeMap;
use std::fmt;

/// Who serves a piece of collateral.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Source {
    /// AMD's key distribution service (AMD 57230); base URL `https://kdsintf.amd.com`.
    AmdKds,
    /// Intel's provisioning certification service, or a PCCS that mirrors it; base URL `https://api.trustedservices.intel.com`.
    IntelPcs,
}

/// One piece of collateral: where its maker serves it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Need {
    /// Whose it is.
    pub source: Source,
    /// Path and query below the source's base URL, without a leading slash. Made of fixed words and hexadecimal digits only, never of text that
    /// evidence brought, since evidence asks for it before anything of it is verified.
    pub path: String,
}

impl fmt::Display for Need {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let source = match self.source {
            Source::AmdKds => "AMD KDS",
            Source::IntelPcs => "Intel PCS",
        };
        write!(f, "{source} {}", self.path)
    }
}

/// What was served.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Item {
    /// The body.
    pub body: Vec<u8>,
    /// The certificates that signed it, PEM, where the service sends them in a header (Intel).
    pub issuer_chain: Vec<u8>,
}

/// The pieces at hand for one verification.
#[derive(Clone, Debug, Default)]
pub struct Collateral {
    items: BTreeMap<Need, Item>,
}

impl Collateral {
    /// With nothing in it.
    #[must_use]
    pub const fn none() -> Self {
        Self { items: BTreeMap::new() }
    }

    /// Adds a piece.
    pub fn insert(&mut self, need: Need, item: Item) {
        self.items.insert(need, item);
    }

    /// A piece, if it is there.
    #[must_use]
    pub fn get(&self, need: &Need) -> Option<&Item> {
        self.items.get(need)
    }
}
