//! Evidence to claims: checks what hardware signed and says what it says, one module per TEE.
//!
//! ```text
//! needs(evidence) -> what to fetch          (the caller fetches: no network here)
//! verify(evidence, expected, collateral)    -> Verified, every check recorded
//! ```
//! Not here: whether the claims are *wanted*. Reference values and policy are the broker's business.
//!
//! **Invariant:** claims come out only of a proof type that its TEE's `verify` alone can make. A kind without a verifier is refused;
//! nothing ever falls back to weaker evidence.

#![deny(clippy::indexing_slicing, clippy::panic)]
#![cfg_attr(test, allow(clippy::indexing_slicing, clippy::panic))]

pub mod azure;
pub mod cca;
pub mod checks;
#[cfg(test)]
#[path = "../tests/claims_page/mod.rs"]
mod claims_page;
pub mod collateral;
pub mod csv;
pub mod eventlog;
pub mod nvidia;
pub mod pem;
pub mod sample;
pub mod se;
pub mod snp;
pub mod tdx;
pub mod tpm;
#[cfg(test)]
mod vectors;

use checks::Checks;
use collateral::{Collateral, Need};
use kata_cc_evidence::{ReportData, TeeType};
use serde_json::Value;

/// What evidence must be bound to.
#[derive(Clone, Copy, Debug)]
pub struct Expected<'a> {
    /// The report data that binds nonce and key of this exchange; `None` only offline, where there was no exchange and it is not compared.
    pub report_data: Option<&'a ReportData>,
    /// Digest of the initdata the client sent, if it sent any. Each TEE places it in its own field.
    pub initdata_digest: Option<&'a [u8]>,
    /// Now, in seconds since the epoch.
    pub now_unix: u64,
}

/// Verified evidence, whatever the TEE. Private fields: only a [`Verifier`] makes it.
#[derive(Clone, Debug)]
pub struct Verified {
    tee: TeeType,
    claims: Value,
    simulated_root: Option<String>,
}

impl Verified {
    /// Kind of TEE.
    #[must_use]
    pub fn tee(&self) -> TeeType {
        self.tee
    }

    /// The claims, in CoCo's names and more.
    #[must_use]
    pub fn claims(&self) -> &Value {
        &self.claims
    }

    /// Name of the simulated root the evidence hangs from; `None` for hardware.
    #[must_use]
    pub fn simulated_root(&self) -> Option<&str> {
        self.simulated_root.as_deref()
    }
}

/// Why evidence is refused.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// No verifier for this kind.
    #[error("evidence of kind \"{tee}\" cannot be verified here: verified are {verified}")]
    Unsupported {
        /// The kind.
        tee: TeeType,
        /// The kinds that have a verifier.
        verified: String,
    },
    /// Evidence anybody can make.
    #[error("evidence of kind \"{tee}\" proves nothing, since anybody can make it; it is refused")]
    NoTrust {
        /// The kind.
        tee: TeeType,
    },
    /// Not of the kind's JSON form.
    #[error("evidence of kind \"{tee}\" is malformed: {source}")]
    Malformed {
        /// The kind.
        tee: TeeType,
        /// What the parser says.
        source: serde_json::Error,
    },
    /// Bytes that are not what the hardware of the kind hands out.
    #[error("not a raw report of kind \"{tee}\": {reason}")]
    Raw {
        /// The kind.
        tee: TeeType,
        /// What the parser says.
        reason: String,
    },
    /// SNP evidence did not verify.
    #[error("SNP evidence is refused: {0}")]
    Snp(#[from] snp::SnpError),
    /// TDX evidence did not verify.
    #[error("TDX evidence is refused: {0}")]
    Tdx(#[from] tdx::TdxError),
    /// Evidence of Secure Execution did not verify, or no request for it can be made.
    #[error("Secure Execution evidence is refused: {0}")]
    Se(#[from] se::SeError),
    /// Sample evidence is not even that.
    #[error("sample evidence is refused: {0}")]
    Sample(#[from] sample::SampleError),
    /// Evidence of a VM of Azure did not verify.
    #[error("evidence of an Azure VM is refused: {0}")]
    Azure(#[from] azure::AzureError),
    /// Evidence of a TPM did not verify.
    #[error("TPM evidence is refused: {0}")]
    Tpm(#[from] tpm::TpmError),
    /// CCA evidence did not verify.
    #[error("CCA evidence is refused: {0}")]
    Cca(#[from] cca::CcaError),
    /// CSV evidence did not verify.
    #[error("CSV evidence is refused: {0}")]
    Csv(#[from] csv::CsvError),
    /// Evidence of GPUs did not verify.
    #[error("NVIDIA evidence is refused: {0}")]
    Nvidia(#[from] nvidia::NvidiaError),
}

impl VerifyError {
    /// Name of the check that failed, without values: what a guest may know.
    #[must_use]
    pub fn rule(&self) -> &'static str {
        match self {
            Self::Unsupported { .. } | Self::NoTrust { .. } => "tee",
            Self::Malformed { .. } | Self::Raw { .. } => "evidence-form",
            Self::Snp(error) => error.rule(),
            Self::Tdx(error) => error.rule(),
            Self::Se(error) => error.rule(),
            Self::Sample(error) => error.rule(),
            Self::Azure(error) => error.rule(),
            Self::Tpm(error) => error.rule(),
            Self::Cca(error) => error.rule(),
            Self::Csv(error) => error.rule(),
            Self::Nvidia(error) => error.rule(),
        }
    }
}

/// A TEE's verifier: one module, listed in [`Verifiers::new`].
pub trait Verifier: Send + Sync {
    /// The kind it verifies.
    fn tee(&self) -> TeeType;

    /// Whether guests of this kind must be asked before they can make evidence.
    fn asks(&self) -> bool {
        false
    }

    /// What a guest of this kind must be asked before it can make evidence, in the kind's JSON form; nothing for kinds whose evidence needs no request.
    ///
    /// # Errors
    /// When the kind needs a request and none can be made by what is trusted.
    fn challenge(&self, now_unix: u64) -> Result<Option<Value>, VerifyError> {
        let _ = now_unix;
        Ok(None)
    }

    /// Collateral that [`Verifier::verify`] will look for, by what the evidence says of itself. Nothing is verified yet, so the list is short and
    /// says nothing but where to look. Evidence that is malformed needs nothing: `verify` says why.
    fn needs(&self, evidence: &Value) -> Vec<Need> {
        let _ = evidence;
        Vec::new()
    }

    /// Evidence in the kind's JSON form from a raw report or quote, as the hardware hands it out: for verification offline.
    ///
    /// # Errors
    /// When it is not one, or the kind has no raw form.
    fn parse_raw(&self, raw: &[u8]) -> Result<Value, VerifyError> {
        let _ = raw;
        Err(VerifyError::Raw { tee: self.tee(), reason: "this kind has no raw form; give the evidence as JSON".into() })
    }

    /// Launch digest among this kind's claims, hexadecimal.
    fn measurement<'a>(&self, claims: &'a Value) -> Option<&'a str> {
        claims.get("measurement")?.as_str()
    }

    /// Verifies evidence in the kind's JSON form, recording each check.
    ///
    /// # Errors
    /// When anything about it is not as it must be, or collateral without which it cannot be known is not there.
    fn verify(
        &self,
        evidence: &Value,
        expected: &Expected<'_>,
        collateral: &Collateral,
        checks: &mut Checks,
    ) -> Result<Verified, VerifyError>;
}

/// What is trusted, for each kind of TEE.
#[derive(Clone, Debug)]
pub struct Trust {
    /// Of SNP evidence, that of VMs of Azure among it.
    pub snp: snp::SnpTrust,
    /// Of TDX evidence, that of VMs of Azure among it.
    pub tdx: tdx::TdxTrust,
    /// Of Secure Execution evidence. Without it there is nobody who could have asked for any, and it is refused.
    pub se: Option<se::CurrentTrust>,
    /// Whether evidence is looked at that nobody signed. For trying CoCo's clients; no policy that comes with the broker affirms it but the one for
    /// that.
    pub sample: bool,
    /// Of TPMs. Without a key there is none, and the kind is refused.
    pub tpm: tpm::TpmTrust,
    /// Of CCA. Without a platform there is none, and the kind is refused.
    pub cca: cca::CcaTrust,
    /// Of CSV. Without a root there is none, and the kind is refused.
    pub csv: csv::CsvTrust,
    /// Of NVIDIA's GPUs. Without a root there is none, and the kind is refused. A broker has none: a GPU is no guest.
    pub nvidia: nvidia::NvidiaTrust,
}

/// All verifiers, and the one place that says which kind has which.
pub struct Verifiers {
    all: Vec<Box<dyn Verifier>>,
}

impl Trust {
    /// The makers' roots alone, with the default rules.
    #[must_use]
    pub fn hardware() -> Self {
        Self {
            snp: snp::RootSet::amd().into(),
            tdx: tdx::RootSet::intel().into(),
            se: None,
            sample: false,
            tpm: tpm::TpmTrust::default(),
            cca: cca::CcaTrust::default(),
            csv: csv::CsvTrust::default(),
            nvidia: nvidia::NvidiaTrust::default(),
        }
    }
}

impl Verifiers {
    /// With what is trusted.
    #[must_use]
    pub fn new(trust: Trust) -> Self {
        let mut all: Vec<Box<dyn Verifier>> = vec![
            Box::new(azure::AzureSnpVerifier { trust: trust.snp.clone() }),
            Box::new(azure::AzureTdxVerifier { trust: trust.tdx.clone() }),
            Box::new(snp::SnpVerifier { trust: trust.snp }),
            Box::new(tdx::TdxVerifier { trust: trust.tdx }),
        ];
        if !trust.tpm.is_empty() {
            all.push(Box::new(tpm::TpmVerifier { trust: trust.tpm }));
        }
        if !trust.cca.is_empty() {
            all.push(Box::new(cca::CcaVerifier { trust: trust.cca }));
        }
        if !trust.csv.is_empty() {
            all.push(Box::new(csv::CsvVerifier { trust: trust.csv }));
        }
        if !trust.nvidia.is_empty() {
            all.push(Box::new(nvidia::NvidiaVerifier { trust: trust.nvidia }));
        }
        all.extend(trust.se.map(|trust| Box::new(se::SeVerifier { trust }) as Box<dyn Verifier>));
        if trust.sample {
            all.push(Box::new(sample::SampleVerifier));
        }
        Self { all }
    }

    /// The kinds that can be verified.
    pub fn kinds(&self) -> impl Iterator<Item = TeeType> {
        self.all.iter().map(|verifier| verifier.tee())
    }

    /// The verifier for a kind.
    ///
    /// # Errors
    /// When there is none.
    pub fn get(&self, tee: TeeType) -> Result<&dyn Verifier, VerifyError> {
        match (tee, self.all.iter().find(|verifier| verifier.tee() == tee)) {
            (_, Some(verifier)) => Ok(verifier.as_ref()),
            (TeeType::Sample | TeeType::SampleDevice, None) => Err(VerifyError::NoTrust { tee }),
            (_, None) => Err(VerifyError::Unsupported {
                tee,
                verified: self.all.iter().map(|verifier| format!("\"{}\"", verifier.tee())).collect::<Vec<_>>().join(", "),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sample_evidence_is_refused_by_default_and_others_are_unsupported() {
        let verifiers = Verifiers::new(Trust::hardware());
        for tee in TeeType::ALL {
            match (tee, verifiers.get(tee)) {
                (TeeType::AzSnpVtpm | TeeType::AzTdxVtpm | TeeType::Snp | TeeType::Tdx, Ok(verifier)) => assert_eq!(verifier.tee(), tee),
                (TeeType::Sample | TeeType::SampleDevice, Err(VerifyError::NoTrust { .. })) => {}
                (_, Err(VerifyError::Unsupported { .. })) => {}
                (tee, _) => panic!("{tee} is treated wrongly"),
            }
        }
    }

    #[test]
    fn malformed_evidence_is_refused_by_name() {
        let verifiers = Verifiers::new(Trust::hardware());
        let expected = Expected { report_data: Some(&ReportData::ZERO), initdata_digest: None, now_unix: 0 };
        for evidence in [Value::Null, serde_json::json!({}), serde_json::json!({"svn": "1", "report_data": "AAAA"})] {
            let refused =
                verifiers.get(TeeType::Snp).expect("listed").verify(&evidence, &expected, &Collateral::none(), &mut Checks::default());
            assert!(matches!(refused, Err(VerifyError::Malformed { tee: TeeType::Snp, .. })));
        }
    }
}
