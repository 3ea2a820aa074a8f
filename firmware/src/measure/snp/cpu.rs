//! Virtual CPU models and the CPUID signature each puts into the measurement.
//!
//! A signature is CPUID Fn0000_0001_EAX (AMD 25481): family, model and stepping. QEMU starts every vCPU with it in RDX.

use std::fmt;
use std::str::FromStr;

/// CPUID Fn0000_0001_EAX.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct CpuSignature(u32);

impl CpuSignature {
    /// A signature known as a number.
    #[must_use]
    pub const fn new(value: u32) -> Self {
        Self(value)
    }

    /// The signature of a family (base plus extended, as data sheets count), model and stepping.
    #[must_use]
    pub const fn of(family: u32, model: u32, stepping: u32) -> Self {
        let (base, extended) = if family > 0xf { (0xf, (family - 0xf) & 0xff) } else { (family, 0) };
        Self((extended << 20) | ((model >> 4 & 0xf) << 16) | (base << 8) | ((model & 0xf) << 4) | (stepping & 0xf))
    }

    /// The 32 bits.
    #[must_use]
    pub const fn value(self) -> u32 {
        self.0
    }
}

impl fmt::Display for CpuSignature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// A virtual CPU model, by its QEMU name or by a signature.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CpuModel {
    /// A model of [`CpuModel::NAMES`].
    Named(&'static str, CpuSignature),
    /// Any other.
    Signature(CpuSignature),
}

const NAPLES: CpuSignature = CpuSignature::of(23, 1, 2);
const ROME: CpuSignature = CpuSignature::of(23, 49, 0);
const MILAN: CpuSignature = CpuSignature::of(25, 1, 1);
const GENOA: CpuSignature = CpuSignature::of(25, 17, 0);
const TURIN: CpuSignature = CpuSignature::of(26, 0, 0);

impl CpuModel {
    /// QEMU's AMD server models, up to QEMU 11.1. The versions of a model differ in features, not in signature. `tests/qemu_cpus.rs` asks
    /// QEMU for them.
    pub const NAMES: &'static [(&'static str, CpuSignature)] = &[
        ("EPYC", NAPLES),
        ("EPYC-v1", NAPLES),
        ("EPYC-v2", NAPLES),
        ("EPYC-IBPB", NAPLES),
        ("EPYC-v3", NAPLES),
        ("EPYC-v4", NAPLES),
        ("EPYC-v5", NAPLES),
        ("EPYC-Rome", ROME),
        ("EPYC-Rome-v1", ROME),
        ("EPYC-Rome-v2", ROME),
        ("EPYC-Rome-v3", ROME),
        ("EPYC-Rome-v4", ROME),
        ("EPYC-Rome-v5", ROME),
        ("EPYC-Milan", MILAN),
        ("EPYC-Milan-v1", MILAN),
        ("EPYC-Milan-v2", MILAN),
        ("EPYC-Milan-v3", MILAN),
        ("EPYC-Milan-v4", MILAN),
        ("EPYC-Genoa", GENOA),
        ("EPYC-Genoa-v1", GENOA),
        ("EPYC-Genoa-v2", GENOA),
        ("EPYC-Genoa-v3", GENOA),
        ("EPYC-Turin", TURIN),
        ("EPYC-Turin-v1", TURIN),
        ("EPYC-Turin-v2", TURIN),
    ];

    /// Its signature.
    #[must_use]
    pub const fn signature(self) -> CpuSignature {
        match self {
            Self::Named(_, signature) | Self::Signature(signature) => signature,
        }
    }
}

impl fmt::Display for CpuModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Named(name, _) => f.write_str(name),
            Self::Signature(signature) => signature.fmt(f),
        }
    }
}

/// A CPU model whose signature is not known.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown vCPU model {found:?}; expected a signature such as 0x800f12 or one of {}", known())]
pub struct UnknownCpuModel {
    found: String,
}

fn known() -> String {
    CpuModel::NAMES.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ")
}

impl FromStr for CpuModel {
    type Err = UnknownCpuModel;

    fn from_str(text: &str) -> Result<Self, UnknownCpuModel> {
        if let Some((name, signature)) = Self::NAMES.iter().find(|(name, _)| *name == text) {
            return Ok(Self::Named(name, *signature));
        }
        text.strip_prefix("0x")
            .filter(|digits| !digits.starts_with('+'))
            .and_then(|digits| u32::from_str_radix(digits, 16).ok())
            .map(|value| Self::Signature(CpuSignature(value)))
            .ok_or_else(|| UnknownCpuModel { found: text.chars().take(64).collect() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signatures_are_those_of_the_data_sheets() {
        assert_eq!(CpuSignature::of(23, 1, 2).value(), 0x0080_0f12);
        assert_eq!(CpuSignature::of(14, 1, 2).value(), 0xe12);
        assert_eq!(CpuSignature::of(25, 17, 0).value(), 0x00a1_0f10);
    }

    #[test]
    fn every_name_parses_and_prints_as_itself() {
        for (name, signature) in CpuModel::NAMES {
            let model: CpuModel = name.parse().unwrap();
            assert_eq!(model.to_string(), *name);
            assert_eq!(model.signature(), *signature);
        }
        assert_eq!("0x800f12".parse::<CpuModel>().unwrap().signature(), NAPLES);
    }

    #[test]
    fn refuses_names_it_has_no_signature_for() {
        for bad in ["", "max", "epyc", "EPYC-v9", "0x", "0x1ffffffff", "0x+1", "800f12"] {
            assert!(bad.parse::<CpuModel>().is_err(), "{bad}");
        }
    }
}
