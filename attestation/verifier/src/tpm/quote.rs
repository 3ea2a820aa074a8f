//! A quote under a key that is already trusted: signature, PCR values, report data, initdata.

use super::error::TpmError;
use super::key::AttestationKey;
use crate::Expected;
use crate::checks::Checks;
use kata_cc_evidence::ReportData;
use kata_cc_evidence::tpm::{PCRS, Quote};
use ring::digest::{Context, SHA256};
use serde_json::{Map, Value, json};

/// The register that CoCo's agents extend by the initdata digest.
const INITDATA_PCR: usize = 8;

/// Proof that a quote was verified. Private fields: only [`verify`] makes it.
#[derive(Clone, Debug)]
pub(crate) struct VerifiedQuote<'a> {
    quote: &'a Quote,
    initdata_digest: Option<&'a [u8]>,
}

/// Verifies a quote, recording each check. That the key may be trusted is the caller's business.
///
/// # Errors
/// One variant a check; see [`TpmError`].
pub(crate) fn verify<'a>(
    quote: &'a Quote,
    key: &AttestationKey,
    expected: &Expected<'a>,
    checks: &mut Checks,
) -> Result<VerifiedQuote<'a>, TpmError> {
    let genuine = key.has_signed(quote.attest.as_bytes(), quote.signature.as_bytes());
    checks.record("TPM quote", "RSASSA, SHA-256", "by the attestation key", genuine.then_some(()).ok_or(TpmError::Signature))?;

    // From here on the quote is the TPM's word.
    let (found, quoted) = (hex::encode(quote.pcr_digest()), hex::encode(quote.attest.pcr_digest()));
    let outcome = if found == quoted { Ok(()) } else { Err(TpmError::PcrDigest { found: found.clone(), quoted: quoted.clone() }) };
    checks.record("PCR values", found, quoted, outcome)?;

    check_report_data(quote.attest.extra_data(), expected.report_data, checks)?;
    check_initdata(quote.pcr(INITDATA_PCR), expected.initdata_digest, checks)?;
    Ok(VerifiedQuote { quote, initdata_digest: expected.initdata_digest })
}

/// Some attesters pad what they are given to 64 bytes, some do not: shorter extra data are compared as if padded.
fn check_report_data(extra: &[u8], expected: Option<&ReportData>, checks: &mut Checks) -> Result<(), TpmError> {
    let found = hex::encode(extra);
    match expected {
        Some(expected) => {
            let equal = extra.len() <= ReportData::LEN && ReportData::from_digest(extra) == *expected;
            let mismatch = || TpmError::ReportData { expected: Box::new(*expected), found: found.clone() };
            checks.record("extra data", &found, expected, equal.then_some(()).ok_or_else(mismatch))
        }
        None => {
            checks.not_compared("extra data", found);
            Ok(())
        }
    }
}

fn check_initdata(pcr: Option<&[u8; 32]>, digest: Option<&[u8]>, checks: &mut Checks) -> Result<(), TpmError> {
    let found = pcr.map_or_else(|| "not quoted".into(), hex::encode);
    let Some(digest) = digest else {
        checks.not_compared("PCR 8 (initdata)", found);
        return Ok(());
    };
    let expected = extended_once(digest).map(hex::encode);
    let outcome = expected
        .clone()
        .and_then(|expected| if found == expected { Ok(()) } else { Err(TpmError::InitData { expected, found: found.clone() }) });
    checks.record("PCR 8 (initdata)", &found, expected.unwrap_or_else(|_| "a digest of 32 bytes, extended".into()), outcome)
}

/// What a register of zeros is once a digest was extended into it.
pub(super) fn extended_once(digest: &[u8]) -> Result<[u8; 32], TpmError> {
    let wrong = || TpmError::InitDataDigest { found: digest.len() };
    let digest: &[u8; 32] = digest.try_into().map_err(|_| wrong())?;
    let mut context = Context::new(&SHA256);
    context.update(&[0; 32]);
    context.update(digest);
    context.finish().as_ref().try_into().map_err(|_| wrong())
}

impl VerifiedQuote<'_> {
    /// What the TPM says: a claim for each register the quote is over, and none for others.
    pub(crate) fn claims(&self) -> Map<String, Value> {
        let registers = (0..PCRS).filter_map(|index| Some((format!("pcr{index:02}"), json!(hex::encode(self.quote.pcr(index)?)))));
        let mut claims: Map<String, Value> = registers.collect();
        let clock = self.quote.attest.clock();
        claims.insert("report_data".into(), json!(hex::encode(self.quote.attest.extra_data())));
        claims.insert("firmware_version".into(), json!(format!("{:016x}", self.quote.attest.firmware_version())));
        claims.insert("reset_count".into(), json!(clock.reset_count));
        claims.insert("restart_count".into(), json!(clock.restart_count));
        claims
    }

    /// Digest of the initdata that PCR 8 was found to hold, and null where there was none to look for.
    pub(crate) fn init_data(&self) -> Value {
        self.initdata_digest.map(hex::encode).into()
    }
}
