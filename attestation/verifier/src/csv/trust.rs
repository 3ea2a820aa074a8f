//! What is trusted of CSV, and the chain from it to a platform's key (GM/T 0003: SM2 signatures, each under its signer's name).

use super::error::CsvError;
use kata_cc_evidence::csv::{CaCertificate, Certificate, ChipChain, Evidence, PublicKey, Signature, Usage};
use sm2::dsa::VerifyingKey;
use sm2::dsa::signature::Verifier as _;

/// Roots, and certificates of chips known beforehand.
#[derive(Clone, Debug, Default)]
pub struct CsvTrust {
    roots: Vec<(String, CaCertificate)>,
    chips: Vec<ChipChain>,
}

/// Whether this is the key's signature.
pub(super) fn is_signed(key: &PublicKey, message: &[u8], signature: &Signature) -> bool {
    let key = VerifyingKey::from_sec1_bytes(&key.user_id, &key.point);
    let signature = sm2::dsa::Signature::from_bytes(&signature.0);
    key.is_ok_and(|key| signature.is_ok_and(|signature| key.verify(message, &signature).is_ok()))
}

impl CsvTrust {
    /// Trusts a root as well: Hygon's root key (HRK) certificate. The name is the claim `root`.
    ///
    /// # Errors
    /// When it is none.
    pub fn with_root(mut self, name: &str, certificate: &[u8]) -> Result<Self, CsvError> {
        let root = CaCertificate::parse(certificate)?;
        if root.usage != Usage::HRK || !is_signed_by_ca(&root, &root) {
            return Err(CsvError::NotARoot);
        }
        self.roots.push((name.to_owned(), root));
        Ok(self)
    }

    /// Knows a chip's certificates, HSK and CEK in one file as Hygon serves them, for guests that do not send them. They are verified when
    /// they are used.
    ///
    /// # Errors
    /// When they are none.
    pub fn with_chip(mut self, certificates: &[u8]) -> Result<Self, CsvError> {
        self.chips.push(ChipChain::parse(certificates)?);
        Ok(self)
    }

    /// Whether no root is trusted, and so no chip.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.roots.is_empty()
    }

    /// The chip's certificates: from the evidence, else those among the configured ones that the platform's key hangs from.
    pub(super) fn chip<'a>(&'a self, evidence: &'a Evidence) -> Result<(&'a ChipChain, &'static str), CsvError> {
        if let Some(chip) = &evidence.chain.chip {
            return Ok((chip, "in the evidence"));
        }
        let known = self.chips.iter().find(|chip| has_signed(&chip.cek, &evidence.chain.pek));
        known.map(|chip| (chip, "known beforehand")).ok_or(CsvError::NoChip { configured: self.chips.len() })
    }

    /// Checks every step from a root to the platform's key. Says which root it is.
    pub(super) fn verify<'a>(&'a self, chip: &ChipChain, pek: &Certificate) -> Result<&'a str, CsvError> {
        let usage = |part, found: Usage, expected: Usage| {
            if found == expected { Ok(()) } else { Err(CsvError::Usage { part, found: found.0, expected: expected.0 }) }
        };
        usage("HSK", chip.hsk.usage, Usage::HSK)?;
        usage("CEK", chip.cek.usage, Usage::CEK)?;
        usage("PEK", pek.usage, Usage::PEK)?;
        let wrong = |part, issuer| CsvError::ChainSignature { part, issuer };
        let root = self.roots.iter().find(|(_, root)| is_signed_by_ca(root, &chip.hsk));
        let (name, _) = root.ok_or(wrong("HSK", "a trusted root"))?;
        let signatures = of_usage(&chip.cek, Usage::HSK);
        let genuine = signatures.into_iter().any(|signature| is_signed(&chip.hsk.key, chip.cek.signed_bytes(), signature));
        genuine.then_some(()).ok_or(wrong("CEK", "the HSK"))?;
        has_signed(&chip.cek, pek).then_some(()).ok_or(wrong("PEK", "the CEK"))?;
        Ok(name)
    }
}

fn of_usage(certificate: &Certificate, usage: Usage) -> Vec<&Signature> {
    certificate.signatures.iter().filter(|(signer, _)| *signer == usage).map(|(_, signature)| signature).collect()
}

/// Authorities name their signer by its number.
fn is_signed_by_ca(signer: &CaCertificate, certificate: &CaCertificate) -> bool {
    certificate.signer_id == signer.key_id && is_signed(&signer.key, certificate.signed_bytes(), &certificate.signature)
}

fn has_signed(cek: &Certificate, pek: &Certificate) -> bool {
    of_usage(pek, Usage::CEK).into_iter().any(|signature| is_signed(&cek.key, pek.signed_bytes(), signature))
}
