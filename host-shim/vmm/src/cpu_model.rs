//! CPU models that a class may name: for each TEE a closed list of bare names.
//!
//! A model goes to QEMU's `-cpu`, where what follows a comma turns features of the processor on and off. Of an SNP guest the model's CPUID
//! signature is measured and its features are not, so a class names a model and the plan adds the flags. **Invariant:** no text of a
//! configuration reaches `-cpu`.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::tee::TeeKind;

/// A CPU model by QEMU's name, from the list of a TEE.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct CpuModel(&'static str);

impl CpuModel {
    /// AMD's server processors as QEMU names them up to 11.1; a version may be missing from an older QEMU, which then refuses it by name.
    const EPYC: &'static [Self] = &[
        Self("EPYC"),
        Self("EPYC-v1"),
        Self("EPYC-v2"),
        Self("EPYC-IBPB"),
        Self("EPYC-v3"),
        Self("EPYC-v4"),
        Self("EPYC-v5"),
        Self("EPYC-Rome"),
        Self("EPYC-Rome-v1"),
        Self("EPYC-Rome-v2"),
        Self("EPYC-Rome-v3"),
        Self("EPYC-Rome-v4"),
        Self("EPYC-Rome-v5"),
        Self("EPYC-Milan"),
        Self("EPYC-Milan-v1"),
        Self("EPYC-Milan-v2"),
        Self("EPYC-Milan-v3"),
        Self("EPYC-Milan-v4"),
        Self("EPYC-Genoa"),
        Self("EPYC-Genoa-v1"),
        Self("EPYC-Genoa-v2"),
        Self("EPYC-Genoa-v3"),
        Self("EPYC-Turin"),
        Self("EPYC-Turin-v1"),
        Self("EPYC-Turin-v2"),
    ];
    /// The host's own processor, which is all that TDX and Secure Execution can give a guest.
    const HOST: &'static [Self] = &[Self("host")];
    /// All that TCG can emulate.
    const MAX: &'static [Self] = &[Self("max")];

    /// The models that a class of this TEE may name.
    #[must_use]
    pub const fn all(tee: TeeKind) -> &'static [Self] {
        match tee {
            TeeKind::Sim => Self::MAX,
            TeeKind::Snp => Self::EPYC,
            TeeKind::Tdx | TeeKind::Se => Self::HOST,
        }
    }

    /// The model of a class that names none.
    #[must_use]
    pub const fn default_of(tee: TeeKind) -> Self {
        match tee {
            TeeKind::Sim => Self("max"),
            // The model's signature is measured, so it is fixed rather than the host's.
            TeeKind::Snp => Self("EPYC-v4"),
            TeeKind::Tdx | TeeKind::Se => Self("host"),
        }
    }

    /// The model of that name.
    ///
    /// # Errors
    ///
    /// Anything that is not, letter by letter, a name of the TEE's list.
    pub fn named(tee: TeeKind, name: &str) -> Result<Self, UnknownCpuModel> {
        let known = Self::all(tee).iter().find(|model| model.0 == name);
        known.copied().ok_or_else(|| UnknownCpuModel { tee, found: name.chars().take(64).collect() })
    }

    /// QEMU's name.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        self.0
    }
}

impl fmt::Display for CpuModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl<'de> Deserialize<'de> for CpuModel {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = String::deserialize(deserializer)?;
        let found = [Self::MAX, Self::EPYC, Self::HOST].into_iter().flatten().find(|model| model.0 == name);
        found.copied().ok_or_else(|| serde::de::Error::custom(format!("expected a CPU model that plans have, found {name:?}")))
    }
}

/// A CPU model that a class of this TEE cannot have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnknownCpuModel {
    tee: TeeKind,
    found: String,
}

impl std::error::Error for UnknownCpuModel {}

impl fmt::Display for UnknownCpuModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = CpuModel::all(self.tee).iter().map(|model| model.0).collect();
        let expected = if names.len() == 1 { "" } else { "one of " };
        write!(
            f,
            "expected {expected}{} with tee = \"{}\", found {:?}; flags cannot be given, the plan has its own",
            names.join(", "),
            self.tee,
            self.found
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEES: [TeeKind; 4] = [TeeKind::Sim, TeeKind::Snp, TeeKind::Tdx, TeeKind::Se];

    #[test]
    fn every_model_is_known_by_its_name_and_every_default_is_one_of_them() {
        for tee in TEES {
            assert_eq!(CpuModel::named(tee, CpuModel::default_of(tee).as_str()), Ok(CpuModel::default_of(tee)));
            for model in CpuModel::all(tee) {
                assert_eq!(CpuModel::named(tee, model.as_str()), Ok(*model));
                let json = serde_json::to_string(model).unwrap();
                assert_eq!(serde_json::from_str::<CpuModel>(&json).unwrap(), *model);
            }
        }
    }

    #[test]
    fn ac_07_nothing_but_a_name_of_the_list_is_a_model() {
        for tee in TEES {
            for found in ["", "EPYC-v4,pmu=off", "max,sev=off", "host,+svm", "epyc", "EPYC-v99", "EPYC ", "host-model", "qemu64", "Skylake"]
            {
                let error = CpuModel::named(tee, found).unwrap_err().to_string();
                let default = CpuModel::default_of(tee).as_str();
                assert!(
                    error.contains(default) && error.contains(&format!("{found:?}")) && error.contains(&format!("\"{tee}\"")),
                    "{error}"
                );
            }
        }
        assert!(CpuModel::named(TeeKind::Snp, "host").is_err() && CpuModel::named(TeeKind::Snp, "max").is_err());
        assert!(CpuModel::named(TeeKind::Tdx, "EPYC-v4").is_err() && CpuModel::named(TeeKind::Sim, "host").is_err());
        assert!(serde_json::from_str::<CpuModel>("\"EPYC-v4,pmu=off\"").is_err());
    }
}
