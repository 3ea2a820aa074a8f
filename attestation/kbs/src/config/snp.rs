//! `[snp]`: what is asked of every SNP platform whatever the attestation policy says.
//!
//! ```toml
//! [snp]
//! require_crl = true
//! allow_vlek = false
//! deny_generations = ["Milan"]
//! [snp.minimum_tcb.Genoa]
//! bootloader = 9
//! tee = 0
//! snp = 21
//! microcode = 72
//! ```

use kata_cc_evidence::snp::{Generation, TcbVersion};
use kata_cc_verifier::snp::SnpRules;
use serde::{Deserialize, Deserializer};
use std::collections::BTreeMap;

/// Settings of SNP.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Snp {
    /// Refuse where no current revocation list is at hand; needs `[collateral]`.
    pub require_crl: bool,
    /// Accept reports signed by a VLEK.
    pub allow_vlek: bool,
    /// Generations that are refused.
    #[serde(deserialize_with = "generations")]
    pub deny_generations: Vec<Generation>,
    /// Lowest TCB by generation.
    #[serde(deserialize_with = "floors")]
    pub minimum_tcb: Vec<(Generation, TcbVersion)>,
}

impl Default for Snp {
    fn default() -> Self {
        let SnpRules { require_crl, allow_vlek, deny_generations, minimum_tcb } = SnpRules::default();
        Self { require_crl, allow_vlek, deny_generations, minimum_tcb }
    }
}

/// Security patch levels, all of them: a part left out would have no floor, and nobody would see that.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
struct Tcb {
    bootloader: u8,
    tee: u8,
    snp: u8,
    microcode: u8,
    /// Turin has it, the others do not.
    fmc: Option<u8>,
}

fn generation<E: serde::de::Error>(name: &str) -> Result<Generation, E> {
    let known = Generation::ALL.into_iter().find(|generation| generation.name() == name);
    let names = || Generation::ALL.map(Generation::name).join(", ");
    known.ok_or_else(|| E::custom(format_args!("{name:?} is not a generation of EPYC; expected one of {}", names())))
}

fn generations<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Generation>, D::Error> {
    Vec::<String>::deserialize(deserializer)?.iter().map(|name| generation(name)).collect()
}

fn floors<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<(Generation, TcbVersion)>, D::Error> {
    let floors = BTreeMap::<String, Tcb>::deserialize(deserializer)?;
    let floor = |(name, Tcb { bootloader, tee, snp, microcode, fmc }): (String, Tcb)| {
        let generation = generation(&name)?;
        if fmc.is_some() != (generation == Generation::Turin) {
            return Err(serde::de::Error::custom("`fmc` is a part of Turin's TCB: give it there, and nowhere else"));
        }
        Ok((generation, TcbVersion { fmc, bootloader, tee, snp, microcode }))
    };
    floors.into_iter().map(floor).collect()
}

impl Snp {
    /// The rules for the verifier.
    pub fn rules(&self) -> SnpRules {
        let Self { require_crl, allow_vlek, deny_generations, minimum_tcb } = self.clone();
        SnpRules { require_crl, allow_vlek, deny_generations, minimum_tcb }
    }
}
