//! Intel TDX: quote, certificate chain, collateral and binding, checked in the order that gives the most telling error.
//!
//! ```text
//! root (trusted by configuration) -> PCK CA -> PCK certificate -> QE report -> attestation key -> quote (header, TD report)
//!                                 -> TCB Signing -> TCB info, QE identity -> TCB status
//! ```
//! First what the quote proves by itself, then the collateral without which that is not worth anything, and only then what the TD report says.
//! Nothing of the quote is believed before its signature, except which certificate to look for and which collateral to ask for.
//!
//! Specifications: Intel "TDX DCAP Quoting Library API" (quotes), "SGX PCK Certificate and CRL Profile", "SGX and TDX Provisioning
//! Certification Service API v4" (collateral, and how TCB levels are matched).
//!
//! Every status but Revoked is genuine evidence with a claim `tcb_status`; which ones will do is for the policy.

mod cert;
mod chain;
mod claims;
mod collateral;
mod error;
mod event_log;
mod needs;
mod pck;
mod qe_identity;
mod roots;
mod signed_json;
mod status;
mod tcb_info;

use crate::checks::Checks;
use crate::collateral::{Collateral, Need};
use crate::{Expected, Verified, Verifier, VerifyError};
pub use cert::CertError;
pub use error::{Part, Piece, TdxError};
use kata_cc_evidence::tdx::{CertificationDataType, Evidence, INTEL_QE_VENDOR_ID, Quote};
use kata_cc_evidence::{MrConfigId, ReportData, TeeType};
pub use needs::Missing;
pub use roots::{RootError, RootSet};
use serde::Deserialize as _;
use serde_json::Value;
pub use status::{Judgement, TcbStatus};

use needs::Needs;
use pck::Platform;

/// What is trusted of TDX.
#[derive(Clone, Debug)]
pub struct TdxTrust {
    /// Trusted roots.
    pub roots: RootSet,
    /// What is asked beyond genuine signatures.
    pub rules: TdxRules,
}

impl From<RootSet> for TdxTrust {
    fn from(roots: RootSet) -> Self {
        Self { roots, rules: TdxRules::default() }
    }
}

/// Rules for all TDX evidence, whatever the attestation policy says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TdxRules {
    /// Refuse TDs without SEPT_VE_DISABLE, into which the host can inject exceptions. Default: yes. Some clouds launch TDs without it;
    /// Azure's are among them, so evidence of kind `az-tdx-vtpm` is refused until this is turned off.
    pub require_sept_ve_disable: bool,
    /// Lowest tcbEvaluationDataNumber of TCB info and QE identity: against collateral that was rolled back within its time. Default: 0.
    pub minimum_tcb_evaluation_data_number: u32,
}

impl Default for TdxRules {
    fn default() -> Self {
        Self { require_sept_ve_disable: true, minimum_tcb_evaluation_data_number: 0 }
    }
}

/// What a quote must be bound to.
#[derive(Clone, Copy, Debug)]
pub struct TdxExpected<'a> {
    /// REPORTDATA; `None` only offline, where there was no exchange and it is not compared.
    pub report_data: Option<&'a ReportData>,
    /// MRCONFIGID; `None` only where the client sent no initdata to compare. What the TD was launched with is in the claims either way.
    pub mr_config_id: Option<&'a MrConfigId>,
    /// Now, in seconds since the epoch: certificates and collateral must be in their time.
    pub now_unix: u64,
}

/// Proof that a quote was verified. Private fields: only [`verify`] makes it.
#[derive(Clone, Debug)]
pub struct VerifiedTdx {
    quote: Quote,
    platform: Platform,
    root_name: String,
    simulated: bool,
    tcb: Judgement,
    tcb_evaluation_data_number: u32,
    collateral_valid_until: u64,
    event_log_claims: Option<Value>,
}

impl VerifiedTdx {
    /// The quote, header and TD report of which the quoting enclave signed.
    #[must_use]
    pub fn quote(&self) -> &Quote {
        &self.quote
    }

    /// Name of the root the evidence hangs from.
    #[must_use]
    pub fn root_name(&self) -> &str {
        &self.root_name
    }

    /// Name of the root if it is a simulated one.
    #[must_use]
    pub fn simulated_root(&self) -> Option<&str> {
        self.simulated.then_some(self.root_name.as_str())
    }

    /// Intel's judgement of platform, TDX module and quoting enclave together.
    #[must_use]
    pub fn tcb(&self) -> &Judgement {
        &self.tcb
    }

    /// Claims for tokens and policies.
    #[must_use]
    pub fn claims(&self) -> Value {
        claims::claims(self)
    }
}

/// Verifies TDX evidence, recording each check.
///
/// # Errors
/// One variant a check; see [`TdxError`].
pub fn verify(
    evidence: &Evidence,
    expected: &TdxExpected<'_>,
    trust: &TdxTrust,
    collateral: &Collateral,
    checks: &mut Checks,
) -> Result<VerifiedTdx, TdxError> {
    let (quote, now) = (evidence.quote(), expected.now_unix);
    let form = format!(
        "version {}, body of {} bytes, {} bytes after it",
        quote.header.version,
        quote.body_type().size(),
        evidence.trailing().len()
    );
    checks.record("quote", form, "version 4 or 5, whole", quote.signed_bytes().map(|_| ()).map_err(TdxError::from))?;
    let (found, wanted) = (hex::encode(quote.header.qe_vendor_id), hex::encode(INTEL_QE_VENDOR_ID));
    let outcome = if found == wanted { Ok(()) } else { Err(TdxError::Vendor { found: found.clone(), expected: wanted.clone() }) };
    checks.record("QE vendor", found, wanted, outcome)?;

    // What the quote proves by itself.
    let trusted = trust.roots.names().join(", ");
    let chain = certification(quote).and_then(|pem| chain::verify_pck(pem, &trust.roots, now));
    let found = chain.as_ref().map_or_else(|_| "not verified".into(), |chain| format!("to {}", chain.root.name));
    let chain = checks.record("PCK chain", found, format_args!("to one of: {trusted}"), chain)?;
    let platform = Platform::of(&chain.leaf).map_err(chain::bad_pck);
    let found = platform.as_ref().map_or_else(|_| "none".into(), |platform| format!("FMSPC {}", hex::encode(platform.fmspc)));
    let platform = checks.record("PCK extensions", found, "a platform", platform)?;
    check_signatures(quote, &chain, checks)?;

    // What it is worth.
    let needs = Needs::of(&platform, chain.ca);
    let pieces = needs.find(collateral);
    let found = format!("{} of 4", 4_usize.saturating_sub(pieces.as_ref().err().map_or(0, |missing| missing.needs().len())));
    let pieces = checks.record("collateral", found, "4 of 4", pieces.map_err(TdxError::Missing))?;
    let known = collateral::verify(&pieces, &chain, &trust.rules, now, checks)?;
    let tcb = judge(quote, &platform, &known, checks)?;

    // What it says.
    check_attributes(quote, &trust.rules, checks)?;
    check_binding(quote, expected, checks)?;
    let event_log_claims = event_log::claims(evidence.cc_eventlog(), &quote.body, checks)?;
    Ok(VerifiedTdx {
        quote: quote.clone(),
        platform,
        root_name: chain.root.name.clone(),
        simulated: chain.root.simulated,
        tcb,
        tcb_evaluation_data_number: known.tcb_info.tcb_evaluation_data_number,
        collateral_valid_until: known.valid_until,
        event_log_claims,
    })
}

/// Collateral that [`verify`] will look for.
pub(crate) fn needs(evidence: &Evidence) -> Vec<Need> {
    let needs = || {
        let (leaf, _, ca, _) = chain::read_pck(certification(evidence.quote()).ok()?).ok()?;
        Some(Needs::of(&Platform::of(&leaf).ok()?, ca))
    };
    needs().map(|needs| needs.all().map(Need::clone).to_vec()).unwrap_or_default()
}

/// The PCK chain in a quote, PEM.
fn certification(quote: &Quote) -> Result<&[u8], TdxError> {
    let certification = &quote.signature_data.qe.certification;
    match certification.kind {
        CertificationDataType::PCK_CERT_CHAIN => Ok(&certification.data),
        CertificationDataType(found) => Err(TdxError::CertificationData { found }),
    }
}

/// PCK key over the quoting enclave's report, report over the attestation key, attestation key over the quote.
fn check_signatures(quote: &Quote, chain: &chain::PckChain<'_>, checks: &mut Checks) -> Result<(), TdxError> {
    let signed = &quote.signature_data;
    let genuine = chain.leaf.verify_fixed(&signed.qe.report.to_bytes(), &signed.qe.report_signature);
    let outcome = genuine.then_some(()).ok_or(TdxError::QeReportSignature);
    checks.record("QE report", "ECDSA P-256", "signed by the PCK key", outcome)?;

    let bound = [signed.attestation_key.as_slice(), &signed.qe.auth_data].concat();
    let digest = ring::digest::digest(&ring::digest::SHA256, &bound);
    let expected = hex::encode(ReportData::from_digest(digest.as_ref()).as_bytes());
    let found = hex::encode(signed.qe.report.report_data);
    let outcome =
        if found == expected { Ok(()) } else { Err(TdxError::AttestationKey { found: found.clone(), expected: expected.clone() }) };
    checks.record("attestation key", found, expected, outcome)?;

    let genuine = cert::verify_raw_key(&signed.attestation_key, &quote.signed_bytes()?, &signed.signature);
    checks.record("quote signature", "ECDSA P-256", "by the attestation key", genuine.then_some(()).ok_or(TdxError::QuoteSignature))
}

/// Quoting enclave, TDX module and platform against what Intel says of them.
fn judge(quote: &Quote, platform: &Platform, known: &collateral::Verified, checks: &mut Checks) -> Result<Judgement, TdxError> {
    let report = &quote.signature_data.qe.report;
    let enclave = format!("MRSIGNER {}, ISVPRODID {}", hex::encode(report.mr_signer), report.isv_prod_id);
    checks.record("quoting enclave", enclave, "as in the QE identity", known.qe_identity.check(report))?;
    let model = format!("FMSPC {}", hex::encode(known.tcb_info.fmspc.0));
    checks.record("TCB info's platform", model, "that of the PCK certificate", known.tcb_info.check_is_for(platform))?;
    let body = &quote.body;
    let module = format!("MRSIGNERSEAM {}, attributes {}", body.mr_signer_seam, hex::encode(body.seam_attributes));
    checks.record("TDX module", module, "as in the TCB info", known.tcb_info.check_module(body))?;

    // Versions as of launch and, where the quote has them, as of now: a TD that started under an old module may have been tampered with then, and
    // one that was moved may be on an old platform now.
    let judged = known.tcb_info.judge(platform, &body.tee_tcb_svn).and_then(|mut judged| {
        if let Some(extension) = body.extension {
            judged = judged.with(known.tcb_info.judge(platform, &extension.tee_tcb_svn2)?);
        }
        Ok(judged.with(known.qe_identity.judge(report)?))
    });
    let judged = judged.and_then(|judged| match judged.status {
        TcbStatus::Revoked => {
            Err(TdxError::TcbRevoked { advisories: judged.advisories.iter().map(String::as_str).collect::<Vec<_>>().join(", ") })
        }
        _ => Ok(judged),
    });
    let found = match &judged {
        Ok(judged) => judged.status.as_str(),
        Err(TdxError::TcbRevoked { .. }) => TcbStatus::Revoked.as_str(),
        Err(_) => "no level",
    };
    checks.record("TCB status", found, "any but Revoked; which will do is for the policy", judged)
}

fn check_attributes(quote: &Quote, rules: &TdxRules, checks: &mut Checks) -> Result<(), TdxError> {
    let attributes = quote.body.td_attributes;
    let found = || attributes.to_string();
    let outcome = attributes.is_trusted().then_some(()).ok_or_else(|| TdxError::Debug { found: found() });
    checks.record("debugging", attributes, "no bit of the group TUD", outcome)?;
    let outcome = if attributes.reserved() == 0 { Ok(()) } else { Err(TdxError::ReservedAttributes { found: found() }) };
    checks.record("TD attributes", attributes, "no reserved bit", outcome)?;
    if rules.require_sept_ve_disable {
        let outcome = attributes.sept_ve_disable().then_some(()).ok_or_else(|| TdxError::SeptVe { found: found() });
        checks.record("SEPT_VE_DISABLE", attributes.sept_ve_disable(), "true", outcome)?;
    } else {
        checks.not_compared("SEPT_VE_DISABLE", attributes.sept_ve_disable());
    }
    Ok(())
}

fn check_binding(quote: &Quote, expected: &TdxExpected<'_>, checks: &mut Checks) -> Result<(), TdxError> {
    let found = quote.body.report_data;
    match expected.report_data {
        Some(expected) => {
            let mismatch = || TdxError::ReportData { expected: Box::new(*expected), found: Box::new(found) };
            checks.record("report data", found, expected, (found == *expected).then_some(()).ok_or_else(mismatch))?;
        }
        None => checks.not_compared("report data", found),
    }
    let found = quote.body.mr_config_id;
    match expected.mr_config_id {
        Some(expected) => {
            let mismatch = TdxError::MrConfigId { expected: *expected, found };
            checks.record("MRCONFIGID", found, expected, (found == *expected).then_some(()).ok_or(mismatch))?;
        }
        None => checks.not_compared("MRCONFIGID", found),
    }
    Ok(())
}

/// TDX among the kinds of evidence.
pub(crate) struct TdxVerifier {
    pub(crate) trust: TdxTrust,
}

impl Verifier for TdxVerifier {
    fn tee(&self) -> TeeType {
        TeeType::Tdx
    }

    fn needs(&self, evidence: &Value) -> Vec<Need> {
        Evidence::deserialize(evidence).map_or_else(|_| Vec::new(), |evidence| needs(&evidence))
    }

    fn parse_raw(&self, raw: &[u8]) -> Result<Value, VerifyError> {
        let refused = |reason: String| VerifyError::Raw { tee: TeeType::Tdx, reason };
        let evidence = Evidence::from_raw(raw, None).map_err(|error| refused(error.to_string()))?;
        serde_json::to_value(evidence).map_err(|error| refused(error.to_string()))
    }

    /// MRTD: firmware alone. Kernel and initrd are in RTMR1 and RTMR2.
    fn measurement<'a>(&self, claims: &'a Value) -> Option<&'a str> {
        claims.get("mr_td")?.as_str()
    }

    fn verify(
        &self,
        evidence: &Value,
        expected: &Expected<'_>,
        collateral: &Collateral,
        checks: &mut Checks,
    ) -> Result<Verified, VerifyError> {
        let tee = TeeType::Tdx;
        let evidence = Evidence::deserialize(evidence).map_err(|source| VerifyError::Malformed { tee, source })?;
        let mr_config_id = expected.initdata_digest.map(MrConfigId::from_digest);
        let expected = TdxExpected { report_data: expected.report_data, mr_config_id: mr_config_id.as_ref(), now_unix: expected.now_unix };
        let verified = verify(&evidence, &expected, &self.trust, collateral, checks)?;
        Ok(Verified { tee, claims: verified.claims(), simulated_root: verified.simulated_root().map(str::to_owned) })
    }
}

#[cfg(test)]
mod tests;
